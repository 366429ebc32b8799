//! Requests on a worker's guest socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use parterre_api::guest::{GuestAnswer, GuestRequest};
use parterre_api::{ErrorBody, Vm};

use crate::error::Error;

/// Longest answer that makes sense.
const MAX_ANSWER: usize = 8 << 20;

/// An answer that does not fit its request.
pub(super) fn unexpected() -> Error {
    Error::Protocol("an answer of the worker's".into())
}

/// Sends a request and reads its answer; the connection stays open behind it. Failures that are told are errors.
pub(super) fn open(vm: &Vm, request: &GuestRequest) -> Result<(UnixStream, GuestAnswer), Error> {
    let name = &vm.settings.name;
    let Some(path) = &vm.guest else { return Err(Error::NoGuest(name.clone())) };
    let mut stream =
        UnixStream::connect(path).map_err(|source| Error::File { path: path.clone(), source })?;
    let mut line = serde_json::to_vec(request).map_err(|e| Error::Protocol(e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let answer = read_answer(name, &stream)?;
    Ok((stream, answer))
}

/// Sends a request and reads its answer.
pub(super) fn ask(vm: &Vm, request: &GuestRequest) -> Result<GuestAnswer, Error> {
    open(vm, request).map(|(_, answer)| answer)
}

/// Reads an answer, and no byte more.
pub(super) fn read_answer(name: &str, mut stream: &UnixStream) -> Result<GuestAnswer, Error> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && line.len() < MAX_ANSWER {
        match stream.read(&mut byte)? {
            0 => return Err(Error::Protocol("the worker ended before it answered".into())),
            _ => line.push(byte[0]),
        }
    }
    match serde_json::from_slice(&line) {
        Ok(GuestAnswer::Failed { code, message }) => {
            Err(Error::Service(ErrorBody { code, message: format!("virtual machine '{name}': {message}") }))
        }
        Ok(answer) => Ok(answer),
        Err(error) => Err(Error::Protocol(error.to_string())),
    }
}
