//! vmms: the virtual machine management service

fn main() {}
