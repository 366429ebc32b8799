//! What stands in guest memory and in the registers when a kernel is entered.

use std::fs::File;
use std::io::Write;

use parterre_partition::memory::GuestMemory;
use parterre_partition::registers::Register;
use parterre_worker::boot::{BootError, BootSource, load};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("boot", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

/// The smallest bzImage that a loader accepts: one setup sector, a header of protocol 2.15, a payload.
fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]); // setup sectors
    put(0x1FE, &[0x55, 0xAA]);
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // xloadflags: 64-bit entry
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // preferred address
    put(0x260, &init_size.to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn source(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str) -> BootSource {
    BootSource { kernel: file(kernel), initrd: initrd.map(file), command_line: command_line.into() }
}

fn get<T: vm_memory::ByteValued>(memory: &GuestMemory, at: u64) -> T {
    memory.regions().read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn a_kernel_finds_everything_the_protocol_promises() {
    let memory = GuestMemory::new(128 * MIB).unwrap();
    let initrd = vec![0xA5; 5000];
    let kernel = bzimage(b"payload", 32 << 20);
    let source = source(&kernel, Some(&initrd), "console=ttyS0 quiet");
    let state = load(&memory, &source, 2).unwrap();

    assert_eq!(state.general[Register::Rip as usize], 0x10_0200);
    let zero_page = state.general[Register::Rsi as usize];
    assert_eq!(get::<u32>(&memory, zero_page + 0x202), 0x5372_6448);
    assert_eq!(get::<[u8; 7]>(&memory, 0x10_0000), *b"payload");
    // Command line and initrd are where the header says.
    let line = u64::from(get::<u32>(&memory, zero_page + 0x228));
    assert_eq!(get::<[u8; 20]>(&memory, line), *b"console=ttyS0 quiet\0");
    let at = u64::from(get::<u32>(&memory, zero_page + 0x218));
    assert_eq!((at % 4096, get::<u32>(&memory, zero_page + 0x21C)), (0, 5000));
    assert!(at + 5000 <= 128 * MIB);
    assert_eq!(get::<u8>(&memory, at + 4999), 0xA5);
    // ACPI tables are in a reserved range of the memory map.
    let rsdp = get::<u64>(&memory, zero_page + 0x70);
    assert_eq!(get::<[u8; 8]>(&memory, rsdp), *b"RSD PTR ");
    assert_eq!(get::<u8>(&memory, zero_page + 0x1E8), 3);
    let entry = |i: u64| {
        let at = zero_page + 0x2D0 + i * 20;
        (get::<u64>(&memory, at), get::<u64>(&memory, at + 8), get::<u32>(&memory, at + 16))
    };
    assert_eq!(entry(0), (0, 0x9_FC00, 1));
    assert_eq!(entry(1), (0x9_FC00, 0x10_0000 - 0x9_FC00, 2));
    assert_eq!(entry(2), (MIB, 127 * MIB, 1));
}

#[test]
fn the_processor_starts_in_long_mode_on_identity_pages() {
    let memory = GuestMemory::new(64 * MIB).unwrap();
    let state = load(&memory, &source(&bzimage(b"x", 1 << 20), None, ""), 1).unwrap();
    assert_eq!((state.cr0 & 0x8000_0001, state.cr4 & 0x20, state.efer & 0x500), (0x8000_0001, 0x20, 0x500));
    let entry = |table: u64, index: u64| get::<u64>(&memory, (table & !0xFFF) + index * 8);
    for address in [0u64, 0x10_0200, 0xFEC0_0000] {
        let pdpt = entry(state.cr3, 0);
        let directory = entry(pdpt, address >> 30);
        let large = entry(directory, address >> 21 & 511);
        assert_eq!(large & !0x1F_FFFF, address & !0x1F_FFFF);
        assert_eq!(large & 0x83, 0x83);
    }
    let code = get::<u64>(&memory, state.gdtr.base + u64::from(state.segments[1].selector));
    assert_eq!(code, 0x00AF_9B00_0000_FFFF);
    assert_eq!(state.segments[1].attributes & (1 << 13), 1 << 13);
}

#[test]
fn memory_above_the_hole_is_in_the_map() {
    let memory = GuestMemory::new(4096 * MIB).unwrap();
    let state = load(&memory, &source(&bzimage(b"x", 1 << 20), None, ""), 1).unwrap();
    let zero_page = state.general[Register::Rsi as usize];
    assert_eq!(get::<u8>(&memory, zero_page + 0x1E8), 4);
    let last = zero_page + 0x2D0 + 3 * 20;
    assert_eq!((get::<u64>(&memory, last), get::<u64>(&memory, last + 8)), (4096 * MIB, 1024 * MIB));
}

#[test]
fn what_cannot_boot_is_said_in_words() {
    let memory = GuestMemory::new(64 * MIB).unwrap();
    let kernel = bzimage(b"x", 1 << 20);
    let mut old = kernel.clone();
    old[0x236] = 0;
    let cases: [(BootSource, &str); 6] = [
        (source(b"#!/bin/sh\n", None, ""), "not a bzImage"),
        (source(b"", None, ""), "not a bzImage"),
        (source(&old, None, ""), "no 64-bit entry"),
        (source(&bzimage(b"x", 100 << 20), None, ""), "more memory"),
        (source(&kernel, Some(&vec![0; 60 << 20]), ""), "the initrd needs 60 MiB"),
        (source(&kernel, None, &"x".repeat(3000)), "the kernel takes 2047"),
    ];
    for (source, words) in cases {
        let error = load(&memory, &source, 1).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = load(&memory, &source(&kernel, None, "a\0b"), 1).unwrap_err();
    assert!(matches!(error, BootError::CommandLine { length: 3, .. }));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    /// A kernel file is a person's input: whatever its header says, loading ends with a sentence or a machine.
    #[test]
    fn any_header_is_survived(header in proptest::collection::vec(proptest::num::u8::ANY, 0x1F1..0x280)) {
        let memory = GuestMemory::new(16 * MIB).unwrap();
        let mut kernel = bzimage(&[0; 4096], 1 << 20);
        kernel[0x1F1..header.len()].copy_from_slice(&header[0x1F1..]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        match load(&memory, &source(&kernel, Some(b"initrd"), "quiet"), 1) {
            Ok(state) => assert!(state.general[Register::Rip as usize] < 4096 * MIB + 0x200),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
