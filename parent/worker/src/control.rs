//! The connections of the management service: requests in, reports out, one JSON value per line.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use parterre_api::worker::{WorkerRequest, WorkerStatus};

/// Longest request line; a connection that sends more is closed.
const LINE_LIMIT: usize = 4096;

struct Connection {
    stream: UnixStream,
    pending: Vec<u8>,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Connections {
    open: BTreeMap<u64, Connection>,
}

fn line(status: &WorkerStatus) -> Vec<u8> {
    // A status holds strings and numbers only, which always have a JSON form.
    let mut line = serde_json::to_vec(status).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Connections {
    /// Number of connections.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Adds a connection (non-blocking) and tells it the state.
    pub(crate) fn add(&mut self, token: u64, stream: UnixStream, status: &WorkerStatus) {
        let mut connection = Connection { stream, pending: Vec::new() };
        if connection.stream.write_all(&line(status)).is_ok() {
            self.open.insert(token, connection);
        }
    }

    /// Tells everybody. A connection that does not take a line of a hundred bytes has stopped reading: it is closed.
    pub(crate) fn broadcast(&mut self, status: &WorkerStatus) {
        let line = line(status);
        self.open.retain(|_, connection| connection.stream.write_all(&line).is_ok());
    }

    /// The requests that have arrived on a connection. A connection that closed or talks nonsense is forgotten.
    pub(crate) fn read(&mut self, token: u64) -> Vec<WorkerRequest> {
        let Some(connection) = self.open.get_mut(&token) else { return Vec::new() };
        let (requests, alive) = connection.read();
        if !alive {
            self.open.remove(&token);
        }
        requests
    }
}

impl Connection {
    fn read(&mut self) -> (Vec<WorkerRequest>, bool) {
        let mut requests = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return (requests, false),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return (requests, e.kind() == ErrorKind::WouldBlock),
            }
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(request) => requests.push(request),
                    Err(_) => return (requests, false),
                }
            }
            if self.pending.len() > LINE_LIMIT {
                return (requests, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parterre_api::worker::WorkerPhase;
    use std::io::BufRead;
    use uuid::Uuid;

    fn status() -> WorkerStatus {
        WorkerStatus::new(Uuid::nil(), 1, WorkerPhase::Running { resets: 0 })
    }

    fn connect() -> (UnixStream, Connections) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connections = Connections::default();
        connections.add(5, ours, &status());
        (theirs, connections)
    }

    #[test]
    fn reports_go_out_and_requests_come_in_pieces() {
        let (mut theirs, mut connections) = connect();
        theirs.write_all(b"{\"request\":\"reset\"}\n{\"requ").unwrap();
        assert_eq!(connections.read(5), [WorkerRequest::Reset]);
        theirs.write_all(b"est\":\"power_off\"}\n").unwrap();
        assert_eq!(connections.read(5), [WorkerRequest::PowerOff]);
        connections.broadcast(&status());
        let mut reader = std::io::BufReader::new(theirs);
        for _ in 0..2 {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert_eq!(serde_json::from_str::<WorkerStatus>(&line).unwrap(), status());
        }
    }

    #[test]
    fn nonsense_and_floods_close_the_connection() {
        for bytes in [b"hello\n".to_vec(), vec![b'x'; 2 * LINE_LIMIT], Vec::new()] {
            let (mut theirs, mut connections) = connect();
            theirs.write_all(&bytes).unwrap();
            if bytes.is_empty() {
                drop(theirs);
            }
            assert!(connections.read(5).is_empty());
            assert!(connections.open.is_empty());
        }
    }
}
