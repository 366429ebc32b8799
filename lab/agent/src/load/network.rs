//! A network: a stream in either direction, and requests with their answers, one at a time, over TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Measured;

const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(20);
const CHUNK: usize = 128 << 10;

/// What a client asks of the server, by the first byte it sends.
const TAKE: u8 = b't';
const GIVE: u8 = b'g';
const ECHO: u8 = b'e';

/// Serves clients until it is killed.
pub fn serve() -> Result<()> {
    keep_growing();
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("The port cannot be listened at.")?;
    for client in listener.incoming() {
        // A client that goes away ends its thread, and nothing else.
        thread::spawn(move || client.map_err(anyhow::Error::from).and_then(answer));
    }
    Ok(())
}

fn answer(mut client: TcpStream) -> Result<()> {
    client.set_nodelay(true)?;
    let mut wish = [0];
    client.read_exact(&mut wish)?;
    let mut chunk = vec![0; CHUNK];
    match wish[0] {
        TAKE => while client.read(&mut chunk)? != 0 {},
        GIVE => loop {
            client.write_all(&chunk)?;
        },
        _ => loop {
            client.read_exact(&mut wish)?;
            client.write_all(&wish)?;
        },
    }
    Ok(())
}

/// Measures all rows.
pub fn measure(server: &str, time: Duration) -> Result<()> {
    keep_growing();
    let mut chunk = vec![0; CHUNK];
    const MIB: f64 = (1 << 20) as f64;
    crate::begin();
    let mut out = connect(server, TAKE)?;
    let sent = rate(time, || Ok(out.write(&chunk)? as u64))?;
    crate::row("stream out", &sent, MIB);
    let mut from = connect(server, GIVE)?;
    let received = rate(time, || Ok(from.read(&mut chunk)? as u64))?;
    crate::row("stream in", &received, MIB);
    let mut echo = connect(server, ECHO)?;
    let mut byte = [0];
    let answered = rate(time, || {
        echo.write_all(&byte)?;
        echo.read_exact(&mut byte)?;
        Ok(1)
    })?;
    crate::row("request and answer", &answered, 1.0);
    Ok(())
}

/// Has CUBIC do without HyStart, which takes the uneven delays of an emulated machine for a full network: some streams would never
/// leave a window of a few frames, whatever lies below.
fn keep_growing() {
    // Another algorithm has no such thing.
    let _ = std::fs::write("/sys/module/tcp_cubic/parameters/hystart", "0");
}

fn connect(server: &str, wish: u8) -> Result<TcpStream> {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((server, PORT)) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("{server} does not answer."));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    };
    stream.set_nodelay(true)?;
    stream.write_all(&[wish])?;
    Ok(stream)
}

/// What comes together in a time.
fn rate(time: Duration, mut once: impl FnMut() -> Result<u64>) -> Result<Measured> {
    let warm = Instant::now();
    let mut before = 0;
    while warm.elapsed() < time / 4 {
        before += once()?;
    }
    let begun = Instant::now();
    let mut amount = 0;
    while begun.elapsed() < time {
        amount += once()?;
    }
    Ok(Measured { amount, seconds: begun.elapsed().as_secs_f64(), total: before + amount })
}
