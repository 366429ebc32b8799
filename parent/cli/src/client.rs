//! HTTP over the service's unix socket.

use std::io::ErrorKind;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use parterre_api::{ErrorBody, Paths, Vm};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::Error;

/// The service.
pub struct Client {
    paths: Paths,
}

/// Bytes that stand for themselves in a path segment.
pub fn escape(segment: &str) -> String {
    let mut escaped = String::new();
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A path with one more segment.
pub fn join(path: &str, segment: &str) -> String {
    format!("{path}/{}", escape(segment))
}

/// The path of a virtual machine.
pub fn vm_path(name: &str) -> String {
    format!("/v1/vms/{}", escape(name))
}

impl Client {
    /// The service whose socket the environment names.
    pub fn new() -> Client {
        Client { paths: Paths::from_environment() }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Error> {
        let socket = self.paths.api_socket();
        let stream = UnixStream::connect(&socket).await.map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => Error::NotAllowed { path: socket },
            _ => Error::Unreachable { path: socket, source },
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Errors of the connection show in the answer.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "vmms")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Error::Protocol(e.to_string()))?;
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request and reads the whole answer.
    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(Error::Service(body)),
            Err(_) => Err(Error::Protocol(format!("status {status}"))),
        }
    }

    /// GET.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        parse(&self.exchange(Method::GET, path, Vec::new()).await?)
    }

    /// GET of something that is no JSON.
    pub async fn get_file(&self, path: &str) -> Result<Bytes, Error> {
        self.exchange(Method::GET, path, Vec::new()).await
    }

    /// POST.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|e| Error::Protocol(e.to_string()))?;
        parse(&self.exchange(Method::POST, path, body).await?)
    }

    /// PUT with an answer.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|e| Error::Protocol(e.to_string()))?;
        parse(&self.exchange(Method::PUT, path, body).await?)
    }

    /// PUT without an answer.
    pub async fn store(&self, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(body).map_err(|e| Error::Protocol(e.to_string()))?;
        self.exchange(Method::PUT, path, body).await.map(drop)
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        self.exchange(Method::DELETE, path, Vec::new()).await.map(drop)
    }

    /// Tells each state of a virtual machine, for as long as it is polled.
    pub async fn watch(&self, name: &str, mut tell: impl FnMut(&Vm)) -> Result<(), Error> {
        let path = vm_path(name) + "/watch";
        let mut body = self.send(Method::GET, &path, Vec::new()).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                pending.extend_from_slice(&data);
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                tell(&parse(&line)?);
            }
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Protocol(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths() {
        assert_eq!(vm_path("web 1/ü"), "/v1/vms/web%201%2F%C3%BC");
    }
}
