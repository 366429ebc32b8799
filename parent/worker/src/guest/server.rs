//! The guest socket: one request on each connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use parterre_api::ErrorCode;
use parterre_api::guest::{GuestAnswer, GuestRequest};

use super::Guest;
use crate::processor::log_line;

/// Longest request line; longer ones are no requests.
const LINE_LIMIT: u64 = 16 << 10;
/// Most requests at a time.
const MAX_REQUESTS: usize = 64;
/// Stack of a request's thread.
const STACK_SIZE: usize = 256 << 10;

/// Serves the socket from a thread of its own, for as long as the process lives.
///
/// # Errors
/// No thread can be started.
pub fn serve(guest: Arc<Guest>, listener: UnixListener) -> std::io::Result<()> {
    let places = Arc::new(());
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, or a client that went away: others may have more luck.
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            if Arc::strong_count(&places) > MAX_REQUESTS {
                send(&stream, &refused(ErrorCode::Conflict, "too many requests to this guest at a time"));
                continue;
            }
            let (guest, place) = (guest.clone(), places.clone());
            let started =
                thread::Builder::new().name("request".into()).stack_size(STACK_SIZE).spawn(move || {
                    let _place = place;
                    take(&guest, stream);
                });
            if let Err(error) = started {
                log_line(format_args!("no thread for a request to the guest: {error}"));
            }
        }
    };
    thread::Builder::new().name("guest".into()).stack_size(STACK_SIZE).spawn(accept).map(drop)
}

fn refused(code: ErrorCode, message: &str) -> GuestAnswer {
    GuestAnswer::Failed { code, message: message.into() }
}

/// Reads the request and has it carried out.
fn take(guest: &Guest, stream: UnixStream) {
    match read_request(&stream) {
        Ok(Some(request)) => guest.carry_out(request, stream),
        Ok(None) => {}
        Err(message) => send(&stream, &refused(ErrorCode::BadRequest, &message)),
    }
}

/// The request; `None` if the connection closed without one. No byte behind the line is taken.
fn read_request(stream: &UnixStream) -> Result<Option<GuestRequest>, String> {
    let mut line = Vec::new();
    // One byte at a time: what follows the line is not ours.
    let mut reader = BufReader::with_capacity(1, stream.take(LINE_LIMIT));
    reader.read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| format!("that is no request: {error}"))
}

/// An answer as it is sent.
pub(super) fn answer_line(answer: &GuestAnswer) -> Vec<u8> {
    // An answer holds strings and numbers only, which always have a JSON form.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Sends an answer. Who has gone need not have it.
pub(super) fn send(mut stream: &UnixStream, answer: &GuestAnswer) {
    let _ = stream.write_all(&answer_line(answer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_and_what_follows_stays() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"request\":\"thaw\"}\nbytes of a file").unwrap();
        drop(theirs);
        assert_eq!(read_request(&ours), Ok(Some(GuestRequest::Thaw)));
        let mut rest = String::new();
        (&ours).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "bytes of a file");
    }

    #[test]
    fn nonsense_and_floods_are_no_requests() {
        for bytes in [b"hello\n".to_vec(), vec![b'x'; 20 << 10], b"{\"request\":\"fly\"}\n".to_vec()] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            assert!(read_request(&ours).unwrap_err().contains("no request"));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(read_request(&ours), Ok(None));
    }
}
