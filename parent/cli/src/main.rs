//! parterre: the command line tool

fn main() {}
