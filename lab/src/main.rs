//! Runs Parterre on emulated machines

fn main() {}
