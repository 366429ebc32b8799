//! What the boot program hands to the machine layer when the machine changes hands.
//!
//! `parterre.efi` reads files, asks the firmware and parses ACPI tables while boot services exist. It leaves them,
//! puts everything that it learned into one [`LaunchInfo`] and calls `parterre_hw::start`. These types are plain
//! data: nothing here touches the machine.
//!
//! The machine at that moment:
//! * the boot processor runs in 64-bit mode, interrupts off, on the firmware's page tables (identity mapping of all
//!   RAM), GDT, IDT and **stack**. All four lie in memory that is the parent's from now on ([`MemoryKind::Ram`]), so the
//!   machine layer moves to its own before the parent's first instruction;
//! * the other processors wait as the firmware left them, for INIT and SIPI;
//! * every slice below lies in the program's image or in the hypervisor's region and stays valid for ever.

/// The unit of physical memory in all lists here: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;

/// Alignment of the hypervisor's region, so that the parent's SLAT loses as few large pages as possible: 2 MiB.
pub const REGION_ALIGNMENT: u64 = 2 << 20;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalRange {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

impl PhysicalRange {
    /// The range `[base, base + length)`.
    pub const fn new(base: u64, length: u64) -> Self {
        Self { base, length }
    }

    /// The first address behind the range. A range that would wrap ends at the highest address.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.length)
    }

    /// Whether `address` lies in the range.
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.base && address < self.end()
    }
}

/// Pages at [`LaunchInfo::trampoline`].
pub const TRAMPOLINE_PAGES: u64 = 2;

/// What a range of physical memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryKind {
    /// RAM of the parent. Includes what boot services used and what holds the parent's kernel and initrd.
    Ram,
    /// Reserved by the firmware (runtime services among them). The parent may access it, identity-mapped.
    Reserved,
    /// ACPI tables; RAM of the parent once it has read them.
    AcpiReclaim,
    /// Memory that the firmware's ACPI code needs for ever.
    AcpiNvs,
    /// Device registers that the firmware's map names (others lie in the map's holes).
    Mmio,
    /// Byte-addressable memory that keeps its content without power.
    Persistent,
    /// RAM that the firmware found faulty.
    Unusable,
    /// The hypervisor's own: image, region, trampoline page. Never in a partition, except pages that the hypervisor
    /// picks from it on purpose (the parent's special pages). The parent's memory map says `Reserved` here.
    HypervisorOwned,
}

/// One entry of the physical memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte, a multiple of [`PAGE_SIZE`].
    pub base: u64,
    /// Length in bytes, a multiple of [`PAGE_SIZE`], not 0.
    pub length: u64,
    /// What it is for.
    pub kind: MemoryKind,
}

impl MemoryRange {
    /// The addresses of the entry.
    pub const fn range(&self) -> PhysicalRange {
        PhysicalRange::new(self.base, self.length)
    }
}

/// A processor that the firmware enabled (ACPI 6.5, 5.2.12: MADT local APIC or local x2APIC structure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// The local APIC's identifier, as an x2APIC has it.
    pub apic_id: u32,
    /// NUMA proximity domain (SRAT); 0 on a machine without SRAT.
    pub proximity_domain: u32,
}

/// The NUMA proximity domain of a range of memory (ACPI 6.5, 5.2.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDomain {
    /// The addresses, sorted by base in the list; they may cover holes and memory that is hot-pluggable.
    pub range: PhysicalRange,
    /// NUMA proximity domain.
    pub proximity_domain: u32,
}

/// A section of the program's image, for page rights (PE/COFF specification, section table).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageSection {
    /// Where it lies; base and length are multiples of [`PAGE_SIZE`].
    pub range: PhysicalRange,
    /// Content may be written.
    pub write: bool,
    /// Content may be executed. All sections may be read; `write` and `execute` are never both set.
    pub execute: bool,
}

/// The program's own image where the firmware loaded it; it stays there.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The whole image, headers included. An address minus `range.base` is what symbol files call an RVA.
    pub range: PhysicalRange,
    /// Its sections. What no section covers (the headers) needs no more than read access.
    pub sections: &'static [ImageSection],
}

/// ACPI's generic address of a register that resets the machine (ACPI 6.5, 4.8.3.6), where the FADT declares one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetRegister {
    /// Write `value` to this I/O port.
    Port {
        /// The port.
        port: u16,
        /// The byte to write.
        value: u8,
    },
    /// Write `value` to this byte of physical memory.
    Memory {
        /// The physical address.
        address: u64,
        /// The byte to write.
        value: u8,
    },
}

/// The fixed ACPI hardware that power states need (ACPI 6.5, 4.8.3.2). The values to write for S5 come from the
/// parent later (system property "sleep state").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerHardware {
    /// I/O port of PM1a_CNT; none on a machine of the hardware-reduced kind.
    pub pm1a_control: Option<u16>,
    /// I/O port of PM1b_CNT, where the machine has one.
    pub pm1b_control: Option<u16>,
    /// How to reset the machine, where the firmware says so.
    pub reset: Option<ResetRegister>,
}

/// The state in which the parent's boot processor begins (Linux x86 boot protocol, "64-bit boot protocol").
///
/// 64-bit mode, interrupts off, `RIP = entry`, `RSI = boot_params`, `CR3 = page_tables`, `GDTR = gdt`, CS 0x10
/// (64-bit code), DS = ES = SS 0x18 (flat data). All of it lies in the parent's own RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentStart {
    /// The kernel's 64-bit entry.
    pub entry: u64,
    /// The zero page (`struct boot_params`).
    pub boot_params: u64,
    /// Level-4 page table that maps everything the kernel touches at first onto itself.
    pub page_tables: u64,
    /// Base of a GDT with the two selectors named above; limit [`PARENT_GDT_LIMIT`].
    pub gdt: u64,
}

/// Limit of the GDT at [`ParentStart::gdt`]: four descriptors.
pub const PARENT_GDT_LIMIT: u16 = 4 * 8 - 1;
/// Code selector of [`ParentStart`].
pub const PARENT_CODE_SELECTOR: u16 = 0x10;
/// Data selector of [`ParentStart`].
pub const PARENT_DATA_SELECTOR: u16 = 0x18;

/// Everything that the machine layer is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct LaunchInfo {
    /// The physical memory map: sorted by base, no overlaps, neighbours of one kind merged, holes not listed.
    pub memory: &'static [MemoryRange],
    /// The hypervisor's one contiguous region, aligned to [`REGION_ALIGNMENT`], at least [`region_bytes`] long.
    pub region: PhysicalRange,
    /// The part of `region` that holds nothing yet (the boot program keeps the symbols before it). Not zeroed.
    pub free: PhysicalRange,
    /// The program's image.
    pub image: Image,
    /// All enabled processors; the boot processor is first, the others in the order of the MADT.
    pub processors: &'static [Processor],
    /// NUMA domains of memory, empty on a machine without SRAT.
    pub memory_domains: &'static [MemoryDomain],
    /// Power control.
    pub power: PowerHardware,
    /// Content of the file of symbols, empty when there is none. Not checked by the boot program.
    pub symbols: &'static [u8],
    /// I/O base of the 16550 that the hypervisor writes to; already set to 115200 8N1.
    pub serial: Option<u16>,
    /// [`TRAMPOLINE_PAGES`] pages of conventional memory below 1 MiB: one for the code in which other processors start, one
    /// for the root of the page tables that they load, which must be an address of 32 bits.
    pub trampoline: u64,
    /// Physical address of the ACPI RSDP.
    pub rsdp: u64,
    /// How the parent's boot processor begins.
    pub parent: ParentStart,
}

/// Base part of [`region_bytes`]: heap, host page tables, tables of the root partition that do not grow.
pub const REGION_FIXED: u64 = 4 << 20;

/// Per-processor part of [`region_bytes`]: stacks (one per IST entry), VMCB and host save area, permission maps,
/// the root VP's special pages.
pub const REGION_PER_PROCESSOR: u64 = 256 << 10;

/// How long the hypervisor's region must be, in bytes: a multiple of [`REGION_ALIGNMENT`].
///
/// * [`REGION_FIXED`], and [`REGION_PER_PROCESSOR`] for each of `processors`;
/// * the frame table: 8 bytes per 4 KiB page up to `ram_end`, the first address behind the highest RAM;
/// * the root's SLAT: one 4 KiB table per GiB up to `ram_end` and four more GiB for what lies in holes;
/// * the reserve for splitting the root's large SLAT pages: one 4 KiB table per 2 MiB of the `ram_bytes` of RAM;
/// * `extra` bytes that the boot program itself keeps there (symbols).
pub const fn region_bytes(processors: u64, ram_end: u64, ram_bytes: u64, extra: u64) -> u64 {
    let frame_table = (ram_end.div_ceil(PAGE_SIZE) * 8).next_multiple_of(PAGE_SIZE);
    let slat = (ram_end.div_ceil(1 << 30) + 4) * PAGE_SIZE;
    let split_reserve = ram_bytes.div_ceil(2 << 20) * PAGE_SIZE;
    let total = REGION_FIXED
        + processors * REGION_PER_PROCESSOR
        + frame_table
        + slat
        + split_reserve
        + extra.next_multiple_of(PAGE_SIZE);
    total.next_multiple_of(REGION_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_grows_with_each_of_its_parts() {
        let base = region_bytes(1, 1 << 30, 1 << 30, 0);
        assert_eq!(base % REGION_ALIGNMENT, 0);
        assert!(base >= REGION_FIXED + REGION_PER_PROCESSOR + (2 << 20) + (2 << 20));
        assert!(region_bytes(64, 1 << 30, 1 << 30, 0) >= base + 62 * REGION_PER_PROCESSOR);
        assert!(region_bytes(1, 1 << 40, 1 << 30, 0) >= base + (2 << 30) - (4 << 20));
        assert!(region_bytes(1, 1 << 30, 1 << 30, 8 << 20) >= base + (8 << 20) - REGION_ALIGNMENT);
    }

    #[test]
    fn a_range_knows_its_end_and_content() {
        let range = PhysicalRange::new(0x1000, 0x2000);
        assert_eq!(range.end(), 0x3000);
        assert!(range.contains(0x1000) && range.contains(0x2fff));
        assert!(!range.contains(0x3000) && !range.contains(0xfff));
        assert_eq!(PhysicalRange::new(u64::MAX - 1, 10).end(), u64::MAX);
    }
}
