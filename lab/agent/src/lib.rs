//! The lab's protocol: how a command travels into a box and its output and exit status come back.
//!
//! Both ends speak frames over a reliable byte stream (a virtio-serial port): a kind, the number of the command
//! that the frame belongs to, and a payload. Several commands run at the same time over one stream. It is not a
//! remote shell: there is no terminal here (the box has consoles for that) and no authentication (the stream is
//! the machine's own cable).

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

/// The largest payload of one frame, in bytes. Larger data travels in several frames.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The name of the virtio-serial port that carries the protocol.
pub const PORT_NAME: &str = "parterre.lab.agent";

const HEADER: usize = 9;

/// One message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the box: start a command.
    Run {
        /// The number by which later frames name the command.
        id: u32,
        /// Program and arguments; none of them holds a NUL byte.
        argv: Vec<String>,
    },
    /// To the box: bytes for the command's standard input; none means end of file.
    Stdin {
        /// The command.
        id: u32,
        /// What it shall read.
        data: Vec<u8>,
    },
    /// To the box: send a signal to the command's process group.
    Kill {
        /// The command.
        id: u32,
        /// The signal's number, as Linux on x86-64 counts them.
        signal: i32,
    },
    /// From the box: the agent runs; the text is the kernel's release.
    Hello {
        /// For people: what runs there.
        system: String,
    },
    /// From the box: the command wrote to its standard output.
    Stdout {
        /// The command.
        id: u32,
        /// What it wrote.
        data: Vec<u8>,
    },
    /// From the box: the command wrote to its standard error.
    Stderr {
        /// The command.
        id: u32,
        /// What it wrote.
        data: Vec<u8>,
    },
    /// From the box: the command ended; its number is free again.
    Exit {
        /// The command.
        id: u32,
        /// Its exit status, or 128 plus the number of the signal that ended it.
        status: i32,
    },
    /// From the box: the command could not be started; its number is free again.
    Failed {
        /// The command.
        id: u32,
        /// Why, as a sentence.
        reason: String,
    },
}

impl Frame {
    fn parts(&self) -> (u8, u32, Vec<u8>) {
        match self {
            Frame::Run { id, argv } => (1, *id, argv.join("\0").into_bytes()),
            Frame::Stdin { id, data } => (2, *id, data.clone()),
            Frame::Kill { id, signal } => (3, *id, signal.to_le_bytes().to_vec()),
            Frame::Hello { system } => (16, 0, system.clone().into_bytes()),
            Frame::Stdout { id, data } => (17, *id, data.clone()),
            Frame::Stderr { id, data } => (18, *id, data.clone()),
            Frame::Exit { id, status } => (19, *id, status.to_le_bytes().to_vec()),
            Frame::Failed { id, reason } => (20, *id, reason.clone().into_bytes()),
        }
    }

    fn from_parts(kind: u8, id: u32, payload: Vec<u8>) -> io::Result<Frame> {
        let text = |p: Vec<u8>| String::from_utf8(p).map_err(|_| bad("holds text that is not UTF-8"));
        let number = |p: Vec<u8>| {
            let bytes: [u8; 4] = p.try_into().map_err(|_| bad("holds a number that is not 4 bytes long"))?;
            Ok::<i32, io::Error>(i32::from_le_bytes(bytes))
        };
        Ok(match kind {
            1 => Frame::Run { id, argv: text(payload)?.split('\0').map(str::to_owned).collect() },
            2 => Frame::Stdin { id, data: payload },
            3 => Frame::Kill { id, signal: number(payload)? },
            16 => Frame::Hello { system: text(payload)? },
            17 => Frame::Stdout { id, data: payload },
            18 => Frame::Stderr { id, data: payload },
            19 => Frame::Exit { id, status: number(payload)? },
            20 => Frame::Failed { id, reason: text(payload)? },
            other => return Err(bad(&format!("has the unknown kind {other}"))),
        })
    }

    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// The stream's own errors, and `InvalidInput` when the payload is longer than [`MAX_PAYLOAD`].
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, id, payload) = self.parts();
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("A frame of {} bytes is longer than the {MAX_PAYLOAD} allowed.", payload.len()),
            ));
        }
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next frame; `None` at the end of the stream between two frames.
    ///
    /// # Errors
    /// The stream's own errors, `UnexpectedEof` inside a frame, `InvalidData` for what is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut header = [0u8; HEADER];
        let first = loop {
            match from.read(&mut header[..1]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[1..])?;
        let [kind, i0, i1, i2, i3, l0, l1, l2, l3] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_PAYLOAD {
            return Err(bad(&format!("claims {len} bytes, more than the {MAX_PAYLOAD} allowed")));
        }
        let mut payload = vec![0; len];
        from.read_exact(&mut payload)?;
        Frame::from_parts(kind, u32::from_le_bytes([i0, i1, i2, i3]), payload).map(Some)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("A frame of the lab's protocol {what}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_survives_the_wire() {
        let frames = [
            Frame::Run { id: 7, argv: vec!["sh".into(), "-c".into(), "echo a b".into()] },
            Frame::Stdin { id: 1, data: vec![] },
            Frame::Kill { id: u32::MAX, signal: 15 },
            Frame::Hello { system: "7.2".into() },
            Frame::Stdout { id: 2, data: vec![0; MAX_PAYLOAD] },
            Frame::Stderr { id: 2, data: b"\xff\0".to_vec() },
            Frame::Exit { id: 3, status: -1 },
            Frame::Failed { id: 4, reason: "no such file".into() },
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut rest).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).unwrap(), None);
    }

    #[test]
    fn damaged_frames_are_refused() {
        let too_long = [17, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(Frame::read(&mut &too_long[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let unknown = [99, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Frame::read(&mut &unknown[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let short_number = [19, 0, 0, 0, 0, 1, 0, 0, 0, 5];
        assert_eq!(Frame::read(&mut &short_number[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let cut = [17, 0, 0, 0, 0, 9, 0, 0, 0, 1];
        assert_eq!(Frame::read(&mut &cut[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let latin1 = [20, 0, 0, 0, 0, 1, 0, 0, 0, 0xe4];
        assert_eq!(Frame::read(&mut &latin1[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_that_is_too_long_is_not_sent() {
        let frame = Frame::Stdout { id: 1, data: vec![0; MAX_PAYLOAD + 1] };
        let mut wire = Vec::new();
        assert_eq!(frame.write(&mut wire).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(wire.is_empty());
    }
}
