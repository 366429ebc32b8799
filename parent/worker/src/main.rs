//! vmwp: the worker process of one virtual machine

fn main() {}
