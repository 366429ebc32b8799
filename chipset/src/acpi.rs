//! The ACPI tables of the PC: RSDP, XSDT, FADT, FACS, MADT, DSDT.
//!
//! Source: ACPI specification 6.5, chapter 5. The hardware is the fixed-feature model (PM1a block, SCI 9) without
//! 8259 (MADT flag PCAT_COMPAT clear), keyboard controller and VGA (FADT boot flags), so that an operating system
//! looks for none of them.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Window, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::{ioapic, misc, pm, rtc, serial};

const OEM_ID: [u8; 6] = *b"PRTERE";
const OEM_TABLE: [u8; 8] = *b"PARTERRE";
const OEM_REVISION: u32 = 1;

/// Physical address of the local APICs.
const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Memory-mapped space for devices of VMBus, between RAM and IO-APIC: first and last address.
pub const VMBUS_MMIO: (u32, u32) = (0xF800_0000, 0xFEBF_FFFF);
/// FADT boot flags: there are ISA devices; VGA must not be probed.
const BOOT_FLAGS: u16 = 1 << 0 | 1 << 2;
/// MADT interrupt source override: active high, level.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;

/// Where the tables go in guest memory, and what is in them.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The bytes, starting with the RSDP.
    pub bytes: Vec<u8>,
}

/// Lays tables out one after the other, each aligned as ACPI wants it.
struct Layout {
    base: u64,
    bytes: Vec<u8>,
}

impl Layout {
    /// Adds a table and returns its physical address.
    fn add(&mut self, align: usize, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.base + at as u64
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Builds the tables for a machine whose processors have the APIC ids `0..processors`. `base` is the physical address
/// of the first byte, the RSDP; it must lie below 4 GiB and be a multiple of 64.
pub fn build(base: u64, processors: u32) -> Tables {
    let mut layout = Layout { base, bytes: vec![0; Rsdp::len()] };
    let facs = layout.add(64, &bytes_of(&FACS::new()));
    let dsdt = layout.add(16, dsdt().as_slice());
    let fadt = layout.add(16, &bytes_of(&fadt(facs, dsdt)));
    let madt = layout.add(16, madt(processors).as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = layout.add(16, &bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    layout.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Tables { bytes: layout.bytes }
}

fn io_gas(port: u64, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port)
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let control = pm::BASE + 4;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton) // a set bit says: no fixed sleep button
        .flag(Flags::FixRtc) // and no wake-up by the clock
        .flag(Flags::ResetRegSup)
        .flag(Flags::ForceApicPhysicalDestinationMode);
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = u16::from(pm::SCI).into();
    fadt.pm1a_evt_blk = (pm::BASE as u32).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = (control as u32).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = io_gas(pm::BASE, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_gas(control, 16, AccessSize::WordAccess);
    // Latencies above these limits say: no C2, no C3.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = io_gas(misc::RESET_CONTROL, 8, AccessSize::ByteAccess);
    fadt.reset_value = misc::RESET_VALUE;
    fadt.finalize()
}

fn madt(processors: u32) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE, OEM_REVISION);
    let mut add = |bytes: &[u8]| madt.append_slice(bytes);
    add(&LOCAL_APIC.to_le_bytes());
    add(&0u32.to_le_bytes()); // flags: no 8259
    for id in 0..processors {
        match u8::try_from(id) {
            // Local APIC: processor uid, APIC id, enabled.
            Ok(id) if id < 255 => add(&[0, 8, id, id, 1, 0, 0, 0]),
            // Local x2APIC: for the ids that one byte cannot say.
            _ => {
                add(&[9, 16, 0, 0]);
                add(&id.to_le_bytes());
                add(&1u32.to_le_bytes());
                add(&id.to_le_bytes());
            }
        }
    }
    add(&[1, 12, ioapic::ID, 0]);
    add(&(ioapic::BASE as u32).to_le_bytes());
    add(&0u32.to_le_bytes()); // first global interrupt
    // Interrupt source override: the SCI is level-triggered.
    add(&[2, 10, 0, pm::SCI]);
    add(&u32::from(pm::SCI).to_le_bytes());
    add(&ACTIVE_HIGH_LEVEL.to_le_bytes());
    madt
}

fn dsdt() -> Sdt {
    let s5 = Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&pm::SLEEP_TYPE_OFF, &pm::SLEEP_TYPE_OFF, &0u8, &0u8]),
    );
    let com1_io = IO::new(serial::COM1 as u16, serial::COM1 as u16, 1, serial::LEN as u8);
    // Consumer, edge-triggered, active high, exclusive.
    let com1_interrupt = Interrupt::new(true, true, false, false, u32::from(serial::COM1_IRQ));
    let serial_resources = ResourceTemplate::new(vec![&com1_io, &com1_interrupt]);
    let com1 = (
        Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
        Name::new(Path::new("_UID"), &1u8),
        Name::new(Path::new("_CRS"), &serial_resources),
    );
    let rtc_io = IO::new(rtc::BASE as u16, rtc::BASE as u16, 1, rtc::LEN as u8);
    // Without an interrupt: the clock has no alarm.
    let rtc_resources = ResourceTemplate::new(vec![&rtc_io]);
    let clock = (
        Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
        Name::new(Path::new("_CRS"), &rtc_resources),
    );
    let com1 = Device::new(Path::new("COM1"), vec![&com1.0, &com1.1, &com1.2]);
    let clock = Device::new(Path::new("RTC_"), vec![&clock.0, &clock.1]);
    // VMBus as Hyper-V has it: the space for its devices belongs to a module device (ACPI0004) around it.
    let (first, last) = VMBUS_MMIO;
    let window = Window::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let window = ResourceTemplate::new(vec![&window]);
    // The bus has no resources of its own, but has to say so: Linux asks it before it asks the module.
    let nothing = ResourceTemplate::new(vec![]);
    let bus = (
        Name::new(Path::new("_HID"), &"VMBus"),
        Name::new(Path::new("_UID"), &0u8),
        Name::new(Path::new("_CRS"), &nothing),
    );
    let bus = Device::new(Path::new("VMBS"), vec![&bus.0, &bus.1, &bus.2]);
    let module = (
        Name::new(Path::new("_HID"), &"ACPI0004"),
        Name::new(Path::new("_UID"), &0u8),
        Name::new(Path::new("_CRS"), &window),
    );
    let module = Device::new(Path::new("VMOD"), vec![&module.0, &module.1, &module.2, &bus]);
    let devices = Scope::new(Path::new("\\_SB_"), vec![&com1, &clock, &module]);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&bytes_of(&s5));
    dsdt.append_slice(&bytes_of(&devices));
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xE_0000;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a physical address, cut to its length; its checksum must be right.
    fn table(tables: &Tables, address: u64) -> &[u8] {
        let bytes = &tables.bytes[(address - BASE) as usize..];
        let table = &bytes[..u32_at(bytes, 4) as usize];
        if &table[..4] != b"FACS" {
            assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "{:?}", &table[..4]);
        }
        table
    }

    #[test]
    fn the_chain_from_rsdp_to_dsdt_holds() {
        let tables = build(BASE, 2);
        assert_eq!(&tables.bytes[..8], b"RSD PTR ");
        assert_eq!(tables.bytes[..20].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        let xsdt = table(&tables, u64_at(&tables.bytes, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&tables, u64_at(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64)), (0x600, 0x604));
        assert_eq!(&table(&tables, u64_at(fadt, 140))[..4], b"DSDT");
        assert_eq!(&table(&tables, u32_at(fadt, 36).into())[..4], b"FACS");
        assert_eq!(&table(&tables, u64_at(xsdt, 44))[..4], b"APIC");
    }

    #[test]
    fn the_guest_finds_vmbus_by_its_name() {
        let dsdt = dsdt();
        for name in [b"VMBS".as_slice(), b"VMBus\0", b"ACPI0004\0"] {
            assert!(dsdt.as_slice().windows(name.len()).any(|bytes| bytes == name), "{name:?}");
        }
    }

    /// `Name (_CRS, Buffer (N) { 0x79, checksum })`: an empty template. Without it Linux gives no device of VMBus any space.
    #[test]
    fn vmbus_says_that_it_has_no_resources() {
        let dsdt = dsdt();
        let bytes = dsdt.as_slice();
        let bus = bytes.windows(4).position(|name| name == b"VMBS").unwrap();
        let resources = bytes[bus..].windows(4).position(|name| name == b"_CRS").unwrap();
        assert!(bytes[bus + resources..][4..].starts_with(&[0x11, 0x05, 0x0A, 0x02, 0x79]));
    }

    #[test]
    fn madt_names_every_processor_and_no_8259() {
        let madt = madt(300);
        let bytes = madt.as_slice();
        assert_eq!(u32_at(bytes, 40) & 1, 0);
        let (mut at, mut ids) = (44, Vec::new());
        while at < bytes.len() {
            match bytes[at] {
                0 => ids.push(u32::from(bytes[at + 3])),
                9 => ids.push(u32_at(bytes, at + 4)),
                1 => assert_eq!(u32_at(bytes, at + 4), 0xFEC0_0000),
                2 => assert_eq!(bytes[at + 3], 9),
                kind => panic!("structure {kind}"),
            }
            at += usize::from(bytes[at + 1]);
        }
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
    }
}
