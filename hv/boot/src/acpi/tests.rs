//! A firmware's tables, made up and damaged.

use super::*;
use parterre_hw::launch::{PhysicalRange, PowerHardware, ResetRegister};
use proptest::prelude::*;

/// Memory that begins at [`BASE`].
struct Memory(Vec<u8>);

const BASE: u64 = 0x7ff0_0000;

impl PhysicalMemory for Memory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let Some(from) = address.checked_sub(BASE).and_then(|from| usize::try_from(from).ok()) else {
            return false;
        };
        let Some(bytes) = from.checked_add(buffer.len()).and_then(|to| self.0.get(from..to)) else {
            return false;
        };
        buffer.copy_from_slice(bytes);
        true
    }
}

fn seal(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = 0_u8.wrapping_sub(sum(bytes));
}

fn make(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[0..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    seal(&mut bytes, 9);
    bytes
}

/// RSDP at the beginning, root table behind it, then the tables.
fn firmware(tables: &[Vec<u8>], revision: u8) -> Memory {
    let width = if revision >= 2 { 8 } else { 4 };
    let mut next = BASE + 64 + (HEADER + width * tables.len()) as u64;
    let mut list = Vec::new();
    for table in tables {
        list.extend_from_slice(&next.to_le_bytes()[..width]);
        next += table.len() as u64;
    }
    let mut rsdp = vec![0; 64];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[15] = revision;
    let root = (BASE + 64).to_le_bytes();
    if revision >= 2 {
        rsdp[24..32].copy_from_slice(&root);
    } else {
        rsdp[16..20].copy_from_slice(&root[..4]);
    }
    seal(&mut rsdp[..20], 8);
    seal(&mut rsdp[..36], 32);
    rsdp.extend(make(if revision >= 2 { b"XSDT" } else { b"RSDT" }, &list));
    rsdp.extend(tables.concat());
    Memory(rsdp)
}

#[test]
fn tables_are_found_by_either_list() {
    for revision in [0, 2] {
        let memory = firmware(&[make(b"FACP", &[1; 100]), make(b"APIC", &[2; 10])], revision);
        let tables = find(&memory, BASE).unwrap();
        assert_eq!(tables.iter().map(|t| &t.signature).collect::<Vec<_>>(), [b"FACP", b"APIC"]);
        let apic = table(&tables, *b"APIC").unwrap();
        assert_eq!(read(&memory, apic).unwrap()[HEADER..], [2; 10]);
        assert_eq!(table(&tables, *b"DMAR"), None);
    }
}

#[test]
fn damage_is_told() {
    let good = || firmware(&[make(b"APIC", &[2; 10])], 2);
    assert_eq!(find(&good(), BASE + 1), Err(AcpiError::Rsdp));
    assert_eq!(find(&good(), 0), Err(AcpiError::Rsdp));
    let mut memory = good();
    memory.0[19] ^= 1;
    assert_eq!(find(&memory, BASE), Err(AcpiError::Rsdp));
    let mut memory = good();
    memory.0[64 + HEADER] ^= 1;
    assert_eq!(find(&memory, BASE), Err(AcpiError::Root));
    let mut memory = good();
    memory.0[64] = b'Y';
    assert_eq!(find(&memory, BASE), Err(AcpiError::Root));
    let mut memory = good();
    *memory.0.last_mut().unwrap() ^= 1;
    let tables = find(&memory, BASE).unwrap();
    assert_eq!(read(&memory, &tables[0]), Err(AcpiError::Damaged(*b"APIC")));
    assert_eq!(
        AcpiError::Damaged(*b"APIC").to_string(),
        "the firmware's ACPI table APIC is damaged; update the firmware"
    );
}

#[test]
fn entries_that_lead_nowhere_are_left_out() {
    let mut long = make(b"LONG", &[]);
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut short = make(b"SHRT", &[]);
    short[4..8].copy_from_slice(&35_u32.to_le_bytes());
    let memory = firmware(&[long, short, make(b"GOOD", &[])], 2);
    let tables = find(&memory, BASE).unwrap();
    assert_eq!(tables.len(), 1);
    assert_eq!(&tables[0].signature, b"GOOD");
}

#[test]
fn a_hidden_table_is_whole_but_not_found() {
    for signature in HIDDEN {
        let mut bytes = make(&signature, &[7; 50]);
        let start: [u8; 10] = array(&bytes, 0).unwrap();
        bytes[..10].copy_from_slice(&hidden_header(&start));
        assert_eq!(sum(&bytes), 0);
        assert_ne!(bytes[..4], signature);
        assert_eq!(bytes[1..9], start[1..9]);
    }
}

fn local_apic(id: u8, flags: u8) -> Vec<u8> {
    vec![0, 8, 0, id, flags, 0, 0, 0]
}

fn x2apic(id: u32, flags: u8) -> Vec<u8> {
    let mut bytes = vec![9, 16, 0, 0];
    bytes.extend(id.to_le_bytes());
    bytes.extend([flags, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn enabled_processors_are_listed_with_the_boot_processor_first() {
    let io_apic = vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    let list = [
        vec![0; 8],
        local_apic(0, 1),
        local_apic(2, 1),
        io_apic,
        local_apic(4, 0),
        local_apic(0xff, 1),
        x2apic(2, 1),
        x2apic(300, 1),
        x2apic(301, 2),
    ];
    let madt = make(b"APIC", &list.concat());
    assert_eq!(processors(&madt, 0), Ok(vec![0, 2, 300]));
    assert_eq!(processors(&madt, 300), Ok(vec![300, 0, 2]));
    assert_eq!(processors(&madt, 4), Err(AcpiError::Processors));
    assert_eq!(processors(&[], 0), Err(AcpiError::Processors));
}

#[test]
fn a_structure_of_no_length_ends_the_list() {
    let madt = make(b"APIC", &[vec![0; 8], local_apic(1, 1), vec![0, 0], local_apic(2, 1)].concat());
    assert_eq!(processors(&madt, 1), Ok(vec![1]));
    let madt = make(b"APIC", &[vec![0; 8], local_apic(1, 1), vec![9, 16, 0]].concat());
    assert_eq!(processors(&madt, 1), Ok(vec![1]));
}

fn fadt(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 276];
    for (at, value) in fields {
        bytes[*at..at + value.len()].copy_from_slice(value);
    }
    bytes
}

#[test]
fn power_hardware_is_read_from_old_and_new_fields() {
    let flags = (1_u32 << 10).to_le_bytes();
    let old = fadt(&[(64, &[4, 6]), (112, &flags), (116, &[1, 8, 0, 1, 0xf9, 0x0c]), (128, &[0xf])]);
    let reset = Some(ResetRegister::Port { port: 0xcf9, value: 0xf });
    assert_eq!(power(&old), PowerHardware { pm1a_control: Some(0x604), pm1b_control: None, reset });
    let new = fadt(&[(64, &[4, 6]), (172, &[1, 16, 0, 2, 4, 8]), (184, &[1, 16, 0, 2, 8, 8])]);
    assert_eq!(
        power(&new),
        PowerHardware { pm1a_control: Some(0x804), pm1b_control: Some(0x808), reset: None }
    );
    let memory = fadt(&[(112, &flags), (116, &[0, 8, 0, 1, 0, 0, 0, 0xfe]), (128, &[1])]);
    assert_eq!(power(&memory).reset, Some(ResetRegister::Memory { address: 0xfe00_0000, value: 1 }));
    let reduced = fadt(&[(64, &[4, 6]), (112, &(1_u32 << 20).to_le_bytes())]);
    assert_eq!(power(&reduced), PowerHardware::default());
    assert_eq!(power(&[0; 40]), PowerHardware::default());
    assert_eq!(power(&fadt(&[(66, &[1])])), PowerHardware::default(), "no port of 32 bits");
}

#[test]
fn domains_of_processors_and_memory_are_read() {
    let mut memory = vec![0; 40];
    memory[..6].copy_from_slice(&[1, 40, 3, 0, 0, 1]);
    memory[8..16].copy_from_slice(&0x1_0000_0000_u64.to_le_bytes());
    memory[16..24].copy_from_slice(&0x8000_0000_u64.to_le_bytes());
    memory[28] = 1;
    let mut low = memory.clone();
    low[8..16].fill(0);
    let mut off = memory.clone();
    off[28] = 0;
    let apic = vec![0, 16, 2, 5, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let mut wide = vec![0; 24];
    wide[..12].copy_from_slice(&[2, 24, 0, 0, 7, 0, 0, 0, 44, 1, 0, 0]);
    wide[12] = 1;
    let affinity = affinity(&make(b"SRAT", &[vec![0; 12], memory, apic, wide, off, low].concat()));
    assert_eq!(
        (affinity.of_processor(5), affinity.of_processor(300), affinity.of_processor(9)),
        (0x102, 7, 0)
    );
    let ranges: Vec<_> = affinity.memory.iter().map(|d| (d.range, d.proximity_domain)).collect();
    let domain = 0x0100_0003;
    assert_eq!(
        ranges,
        [(PhysicalRange::new(0, 0x8000_0000), domain), (PhysicalRange::new(1 << 32, 0x8000_0000), domain)]
    );
}

proptest! {
    #[test]
    fn any_tables_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = processors(&bytes, 0);
        let _ = power(&bytes);
        let _ = affinity(&bytes);
    }

    #[test]
    fn damage_anywhere_gives_an_answer(at in 0usize..200, value: u8) {
        let mut memory = firmware(&[make(b"APIC", &[2; 30]), make(b"FACP", &[0; 60])], 2);
        memory.0[at] = value;
        if let Ok(tables) = find(&memory, BASE) {
            for table in &tables {
                let _ = read(&memory, table);
            }
        }
    }
}
