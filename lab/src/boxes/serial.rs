//! A box's serial port: everything written to it is kept, and a panic is noticed.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// What is kept in memory; the file has everything.
const KEPT: usize = 4 << 20;
/// What panics look like, in small letters: the hypervisor's, and Linux's.
const PANICS: [&str; 2] = ["parterre: panic", "kernel panic - not syncing"];

#[derive(Debug, Default)]
struct Log {
    text: Vec<u8>,
    line: Vec<u8>,
    panic: Option<String>,
}

/// The log of a serial port, shared with the thread that reads it.
#[derive(Debug, Clone, Default)]
pub struct Serial(Arc<Mutex<Log>>);

impl Serial {
    /// Reads `from` on a thread of its own to its end, copying everything to `file`.
    pub fn follow(&self, mut from: impl Read + Send + 'static, mut file: File) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                let _ = file.write_all(&buffer[..n]);
                log.add(&buffer[..n]);
            }
        })
    }

    fn add(&self, bytes: &[u8]) {
        let Ok(mut log) = self.0.lock() else { return };
        log.text.extend_from_slice(bytes);
        if log.text.len() > 2 * KEPT {
            let surplus = log.text.len() - KEPT;
            log.text.drain(..surplus);
        }
        for &byte in bytes {
            if byte != b'\n' {
                // A line without an end shall not grow without end.
                if log.line.len() < 4096 {
                    log.line.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut log.line);
            if log.panic.is_none() {
                log.panic = panic_in(&String::from_utf8_lossy(&line));
            }
        }
    }

    /// The line that announced a panic, if there was one.
    pub fn panic(&self) -> Option<String> {
        self.0.lock().ok()?.panic.clone()
    }

    /// The log so far, as text without terminal control sequences.
    pub fn text(&self) -> String {
        let bytes = self.0.lock().map(|log| log.text.clone()).unwrap_or_default();
        plain(&String::from_utf8_lossy(&bytes))
    }
}

/// The line, if it announces a panic.
fn panic_in(line: &str) -> Option<String> {
    let small = line.to_ascii_lowercase();
    let is_one = PANICS.iter().any(|panic| small.contains(panic));
    is_one.then(|| line.trim().chars().take(300).collect())
}

/// A text without carriage returns, escape sequences and other control characters, which firmware is fond of.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                // Parameters and intermediates, up to the final byte (ECMA-48, section 5.4).
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_noticed_across_pieces() {
        let serial = Serial::default();
        serial.add(b"[ 1.0] Kernel pan");
        assert_eq!(serial.panic(), None);
        serial.add(b"ic - not syncing: Attempted to kill init!\r\n");
        assert!(serial.panic().unwrap().ends_with("Attempted to kill init!"));
        serial.add(b"Kernel panic - not syncing: a second one\n");
        assert!(serial.panic().unwrap().ends_with("Attempted to kill init!"));
    }

    #[test]
    fn the_log_is_bounded_and_plain() {
        let serial = Serial::default();
        for _ in 0..3 {
            serial.add(&vec![b'x'; KEPT]);
        }
        assert!(serial.text().len() <= 2 * KEPT);
        assert_eq!(plain("\x1b[2J\x1b[01;01Hboot\r\nok\x07\x1b["), "boot\nok");
    }
}
