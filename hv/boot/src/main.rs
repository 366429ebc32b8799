//! parterre.efi: the UEFI application that starts the hypervisor

fn main() {}
