//! parterre.efi
fn main() {}
