//! The load that `cargo lab bench` measures devices of guests by: a disk's operations in a second, and a network's.
//!
//! A static program, because it runs in guests that have no C library. It prints `load ROW NUMBER` for each measurement and
//! `load done` at the end. Each operation is one of a thread's own, as many threads as the queue is deep.

#![forbid(unsafe_code)]

mod disk;
mod network;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["disk"] => disk::measure()?,
        ["network", server] => network::measure(server)?,
        ["network-server"] => network::serve()?,
        _ => bail!("Give one of: disk, network ADDRESS, network-server."),
    }
    println!("load done");
    Ok(())
}

/// Prints a row: `amount` in `seconds`, as an amount in a second.
fn row(name: &str, amount: u64, seconds: f64) {
    println!("load {name} {:.1}", amount as f64 / seconds);
}
