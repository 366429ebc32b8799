//! The zero page: what a Linux kernel is told at its 64-bit entry.
//!
//! Source: Linux `Documentation/arch/x86/zero-page.rst` and `boot.rst`; layouts of `struct boot_params`,
//! `struct screen_info`, `struct efi_info`, `struct setup_data`. Numbers here are offsets in the page.

use core::mem::size_of;

use parterre_hw::launch::PhysicalRange;

use crate::kernel::{Kernel, SETUP_HEADER};
use crate::memory::E820Entry;

/// Length of the zero page.
pub const LENGTH: usize = 4096;

/// How many e820 entries the page itself holds; more go to the extension, [`write_e820_extension`].
pub const E820_ENTRIES: usize = 128;

const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_CMD_LINE_PTR: usize = 0x0c8;
const EFI_INFO: usize = 0x1c0;
const E820_COUNT: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

/// A boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// `screen_info`: a frame buffer that EFI set up.
const VIDEO_TYPE_EFI: u8 = 0x70;
/// `screen_info.capabilities`: the base address has 64 bits.
const VIDEO_CAPABILITY_64BIT_BASE: u32 = 1 << 1;
/// `setup_data` with more e820 entries.
const SETUP_E820_EXT: u32 = 1;

/// What the parent needs to call EFI runtime services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EfiInfo {
    /// Physical address of the system table.
    pub system_table: u64,
    /// Where the copy of the memory map lies.
    pub map: PhysicalRange,
    /// Distance of its descriptors.
    pub descriptor_length: u32,
    /// Their version.
    pub descriptor_version: u32,
}

/// One colour in a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// How many bits.
    pub size: u8,
    /// The lowest of them.
    pub position: u8,
}

impl Channel {
    /// The channel whose bits are set in `mask`.
    pub fn from_mask(mask: u32) -> Self {
        // A mask is at most 32 ones, so both fit.
        Self { size: mask.count_ones() as u8, position: mask.trailing_zeros() as u8 % 32 }
    }
}

/// A linear frame buffer (UEFI graphics output protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Screen {
    /// Where it lies.
    pub memory: PhysicalRange,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// Bytes from one line to the next.
    pub stride: u16,
    /// Red, green, blue, reserved.
    pub channels: [Channel; 4],
}

/// Everything that goes into the zero page.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Physical address of the command line, which ends with a zero.
    pub cmdline: u64,
    /// The initial RAM disk.
    pub initrd: Option<PhysicalRange>,
    /// Physical address of the ACPI RSDP.
    pub rsdp: u64,
    /// EFI.
    pub efi: EfiInfo,
    /// The screen.
    pub screen: Option<Screen>,
    /// The memory map; what exceeds [`E820_ENTRIES`] is left to the extension.
    pub e820: &'a [E820Entry],
    /// Physical address of the list of `setup_data`, 0 when there is none.
    pub setup_data: u64,
}

/// Writes the page.
pub fn write(page: &mut [u8; LENGTH], contents: &Contents<'_>) {
    page.fill(0);
    // The header was read from 1 KiB, so it ends before the e820 table.
    let header = &contents.kernel.header;
    let length = header.len().min(E820_TABLE - SETUP_HEADER);
    page[SETUP_HEADER..SETUP_HEADER + length].copy_from_slice(&header[..length]);

    let mut page = Page(page);
    page.put(TYPE_OF_LOADER, &[LOADER_UNKNOWN]);
    page.put_split(CMD_LINE_PTR, EXT_CMD_LINE_PTR, contents.cmdline);
    let initrd = contents.initrd.unwrap_or_default();
    page.put_split(RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, initrd.base);
    page.put_split(RAMDISK_SIZE, EXT_RAMDISK_SIZE, initrd.length);
    page.put(ACPI_RSDP_ADDR, &contents.rsdp.to_le_bytes());
    page.put(SETUP_DATA, &contents.setup_data.to_le_bytes());
    page.put_efi(&contents.efi);
    if let Some(screen) = &contents.screen {
        page.put_screen(screen);
    }
    page.put_e820(contents.e820);
}

/// Writes the `setup_data` node with the entries that the page does not hold to the beginning of `target`.
///
/// Returns false, with nothing written, when there is none to write or `target` is shorter than
/// [`e820_extension_length`].
#[must_use]
pub fn write_e820_extension(e820: &[E820Entry], target: &mut [u8]) -> bool {
    let Some(rest) = e820.get(E820_ENTRIES..).filter(|rest| !rest.is_empty()) else {
        return false;
    };
    let Some(node) = target.get_mut(..e820_extension_length(e820.len())) else {
        return false;
    };
    let data_length = (rest.len() * E820_ENTRY) as u32;
    node[0..8].fill(0);
    node[8..12].copy_from_slice(&SETUP_E820_EXT.to_le_bytes());
    node[12..16].copy_from_slice(&data_length.to_le_bytes());
    for (slot, entry) in node[16..].chunks_exact_mut(E820_ENTRY).zip(rest) {
        slot.copy_from_slice(&e820_bytes(entry));
    }
    true
}

/// Length of the node for a map of `entries`: `next`, `type`, `len` and the data.
pub const fn e820_extension_length(entries: usize) -> usize {
    2 * size_of::<u64>() + entries.saturating_sub(E820_ENTRIES) * E820_ENTRY
}

fn e820_bytes(entry: &E820Entry) -> [u8; E820_ENTRY] {
    let mut bytes = [0; E820_ENTRY];
    bytes[0..8].copy_from_slice(&entry.base.to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.length.to_le_bytes());
    bytes[16..20].copy_from_slice(&entry.kind.to_le_bytes());
    bytes
}

struct Page<'a>(&'a mut [u8; LENGTH]);

impl Page<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A number whose halves lie in two places.
    fn put_split(&mut self, low: usize, high: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.put(low, &bytes[..4]);
        self.put(high, &bytes[4..]);
    }

    fn put_efi(&mut self, efi: &EfiInfo) {
        self.put(EFI_INFO, b"EL64");
        self.put_split(EFI_INFO + 4, EFI_INFO + 24, efi.system_table);
        self.put(EFI_INFO + 8, &efi.descriptor_length.to_le_bytes());
        self.put(EFI_INFO + 12, &efi.descriptor_version.to_le_bytes());
        self.put_split(EFI_INFO + 16, EFI_INFO + 28, efi.map.base);
        self.put(EFI_INFO + 20, &(efi.map.length as u32).to_le_bytes());
    }

    /// `struct screen_info`, at the page's beginning.
    fn put_screen(&mut self, screen: &Screen) {
        let depth: u16 = screen.channels.iter().map(|channel| u16::from(channel.size)).sum();
        self.put(0x0f, &[VIDEO_TYPE_EFI]);
        self.put(0x12, &screen.width.to_le_bytes());
        self.put(0x14, &screen.height.to_le_bytes());
        self.put(0x16, &depth.to_le_bytes());
        self.put_split(0x18, 0x3a, screen.memory.base);
        self.put(0x1c, &u32::try_from(screen.memory.length).unwrap_or(u32::MAX).to_le_bytes());
        self.put(0x24, &screen.stride.to_le_bytes());
        for (index, channel) in screen.channels.iter().enumerate() {
            self.put(0x26 + 2 * index, &[channel.size, channel.position]);
        }
        if screen.memory.base >> 32 != 0 {
            self.put(0x36, &VIDEO_CAPABILITY_64BIT_BASE.to_le_bytes());
        }
    }

    fn put_e820(&mut self, e820: &[E820Entry]) {
        let here = &e820[..e820.len().min(E820_ENTRIES)];
        self.put(E820_COUNT, &[here.len() as u8]);
        for (index, entry) in here.iter().enumerate() {
            self.put(E820_TABLE + index * E820_ENTRY, &e820_bytes(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
    use crate::kernel::tests::sample;

    fn page(change: impl FnOnce(&mut Contents<'_>)) -> [u8; LENGTH] {
        let kernel = Kernel::parse(&sample(), u64::MAX).unwrap();
        let mut contents = Contents {
            kernel: &kernel,
            cmdline: 0x1_2345_6000,
            initrd: Some(PhysicalRange::new(0x2_8000_0000, 0x1_0000_0004)),
            rsdp: 0x7fe0_0014,
            efi: EfiInfo {
                system_table: 0x1_7fee_0018,
                map: PhysicalRange::new(0x2_0000_3000, 4800),
                descriptor_length: 48,
                descriptor_version: 1,
            },
            screen: None,
            e820: &[E820Entry { base: 0x10_0000, length: 0x7ff0_0000, kind: 1 }],
            setup_data: 0x5000,
        };
        change(&mut contents);
        let mut page = [0xcc; LENGTH];
        write(&mut page, &contents);
        page
    }

    #[test]
    fn each_field_lies_where_linux_reads_it() {
        let page = page(|_| {});
        assert_eq!(page[SETUP_HEADER..0x210], sample()[SETUP_HEADER..0x210]);
        assert_eq!(u8_at(&page, 0x210), Some(0xff));
        assert_eq!((u32_at(&page, 0x228), u32_at(&page, 0xc8)), (Some(0x2345_6000), Some(1)));
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0xc0)), (Some(0x8000_0000), Some(2)));
        assert_eq!((u32_at(&page, 0x21c), u32_at(&page, 0xc4)), (Some(4), Some(1)));
        assert_eq!((u64_at(&page, 0x70), u64_at(&page, 0x250)), (Some(0x7fe0_0014), Some(0x5000)));
        assert_eq!(&page[0x1c0..0x1c4], b"EL64");
        let efi: Vec<_> = (1..8).map(|i| u32_at(&page, 0x1c0 + 4 * i).unwrap()).collect();
        assert_eq!(efi, [0x7fee_0018, 48, 1, 0x3000, 4800, 1, 2]);
        assert_eq!(u8_at(&page, 0x1e8), Some(1));
        assert_eq!(
            (u64_at(&page, 0x2d0), u64_at(&page, 0x2d8), u32_at(&page, 0x2e0)),
            (Some(0x10_0000), Some(0x7ff0_0000), Some(1))
        );
        assert_eq!(u8_at(&page, 0x1ef), Some(0), "the sentinel says that the page was cleared");
        assert_eq!(page[..0x40], [0; 0x40], "no screen");
    }

    #[test]
    fn a_screen_is_described() {
        let masks = [0xff_0000, 0xff00, 0xff, 0xff00_0000];
        let page = page(|contents| {
            contents.screen = Some(Screen {
                memory: PhysicalRange::new(0x80_8000_0000, 0x30_0000),
                width: 1024,
                height: 768,
                stride: 4096,
                channels: masks.map(Channel::from_mask),
            });
        });
        assert_eq!(page[0x0f], 0x70);
        let numbers: Vec<_> = [0x12, 0x14, 0x16, 0x24].iter().map(|at| u16_at(&page, *at).unwrap()).collect();
        assert_eq!(numbers, [1024, 768, 32, 4096]);
        assert_eq!((u32_at(&page, 0x18), u32_at(&page, 0x3a)), (Some(0x8000_0000), Some(0x80)));
        assert_eq!(page[0x26..0x2e], [8, 16, 8, 8, 8, 0, 8, 24]);
        assert_eq!(u32_at(&page, 0x36), Some(2));
        assert_eq!(Channel::from_mask(0), Channel { size: 0, position: 0 });
    }

    #[test]
    fn entries_beyond_128_go_to_the_extension() {
        let entry = |i: u64| E820Entry { base: i << 12, length: 0x1000, kind: 1 + (i % 2) as u32 };
        let e820: Vec<_> = (0..130).map(entry).collect();
        assert_eq!(page(|contents| contents.e820 = &[])[0x1e8], 0);
        let kernel = Kernel::parse(&sample(), u64::MAX).unwrap();
        let mut page = [0; LENGTH];
        let contents = Contents {
            kernel: &kernel,
            cmdline: 0,
            initrd: None,
            rsdp: 0,
            efi: EfiInfo::default(),
            screen: None,
            e820: &e820,
            setup_data: 0,
        };
        write(&mut page, &contents);
        assert_eq!(page[0x1e8], 128);
        assert_eq!(u64_at(&page, 0x2d0 + 127 * 20), Some(127 << 12));
        let mut node = vec![0xcc; e820_extension_length(130)];
        assert!(write_e820_extension(&e820, &mut node));
        assert_eq!((u64_at(&node, 0), u32_at(&node, 8), u32_at(&node, 12)), (Some(0), Some(1), Some(40)));
        assert_eq!((u64_at(&node, 16), u64_at(&node, 36)), (Some(128 << 12), Some(129 << 12)));
        assert!(!write_e820_extension(&e820[..128], &mut node));
        assert!(!write_e820_extension(&[], &mut node));
        assert!(!write_e820_extension(&e820, &mut node[..55]));
    }
}
