//! The load that `cargo lab bench` measures devices of guests by: a disk's operations in a second, and a network's.
//!
//! A static program, because it runs in guests that have no C library. It prints `load ROW NUMBER` for each measurement,
//! `count ROW NUMBER` with all operations since the line before (`count begin 0` is the first), and `load done` at the end. Each operation is one of a thread's own, as many threads as the queue is deep.

#![forbid(unsafe_code)]

mod disk;
mod network;

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long each row is measured, after a quarter of that to warm up.
const MEASURED: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["disk"] => disk::measure(MEASURED)?,
        ["disk", time] => disk::measure(milliseconds(time)?)?,
        ["network", server] => network::measure(server, MEASURED)?,
        ["network", server, time] => network::measure(server, milliseconds(time)?)?,
        ["network-server"] => network::serve()?,
        _ => bail!("Give one of: disk [MILLISECONDS], network ADDRESS [MILLISECONDS], network-server."),
    }
    println!("load done");
    Ok(())
}

fn milliseconds(text: &str) -> Result<Duration> {
    let number = text.parse().with_context(|| format!("'{text}' is no number of milliseconds."))?;
    Ok(Duration::from_millis(number))
}

/// What was measured.
struct Measured {
    amount: u64,
    seconds: f64,
    /// With what was done before and after.
    total: u64,
}

/// Prints that measuring begins.
fn begin() {
    println!("count begin 0");
}

/// Prints a row, as an amount in a second, in units of `unit`.
fn row(name: &str, measured: &Measured, unit: f64) {
    println!("load {name} {:.1}", measured.amount as f64 / unit / measured.seconds);
    println!("count {name} {:.1}", measured.total as f64 / unit);
}
