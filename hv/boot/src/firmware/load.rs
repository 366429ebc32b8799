//! Bringing things into memory: the parent's kernel, initrd and what it is told; the hypervisor's region.

use parterre_boot::config::Config;
use parterre_boot::kernel::{HEADER_BYTES, Kernel};
use parterre_boot::memory::{self as map, MemoryMap};
use parterre_boot::zero_page::{Screen, e820_extension_length};
use parterre_boot::{parent_tables, zero_page};
use parterre_hw::launch::{PAGE_SIZE, PhysicalRange, REGION_ALIGNMENT, TRAMPOLINE_PAGES, region_bytes};
use uefi::Status;
use uefi::boot::{self, MemoryType};
use uefi::mem::memory_map::MemoryMap as _;

use super::BootError;
use super::files::{OpenFile, Partition};
use super::memory::{ANYWHERE, BELOW_4G, Pages, current_map, descriptor};
use super::output::say;
use super::platform::{self, Platform};

/// How many descriptors the firmware's map may grow by until boot services are left, and by our cuts.
const MAP_GROWTH: usize = 64;

/// The parent, loaded.
pub struct Parent {
    /// What its kernel says about itself.
    pub kernel: Kernel,
    /// The kernel's memory, code at the beginning.
    pub code: Pages,
    /// Initial RAM disk and its length in bytes.
    pub initrd: Option<(Pages, u64)>,
    /// What it is told.
    pub block: ParentBlock,
    /// ACPI.
    pub rsdp: u64,
    /// The screen.
    pub screen: Option<Screen>,
}

/// One block of memory with everything that the parent reads at its start.
pub struct ParentBlock {
    /// The memory.
    pub pages: Pages,
    /// Places in it.
    pub layout: Layout,
}

/// Offsets in a [`ParentBlock`]; each begins on a page of its own. The zero page is at 0.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The GDT.
    pub gdt: usize,
    /// The command line.
    pub cmdline: usize,
    /// The e820 entries that the zero page has no room for.
    pub e820: usize,
    /// The EFI memory map.
    pub efi_map: usize,
    /// Page tables.
    pub page_tables: usize,
    /// The block's length.
    pub length: usize,
}

impl Layout {
    fn new(cmdline: usize, efi_map: usize, mapped: u64) -> Self {
        let after = |start: usize, length: usize| start + length.next_multiple_of(PAGE_SIZE as usize);
        let gdt = zero_page::LENGTH;
        let cmdline_at = after(gdt, PAGE_SIZE as usize);
        let e820 = after(cmdline_at, cmdline + 1);
        let efi_map_at = after(e820, e820_extension_length(map::CAPACITY));
        let page_tables = after(efi_map_at, efi_map);
        let length = page_tables + parent_tables::page_tables_length(mapped);
        Self { gdt, cmdline: cmdline_at, e820, efi_map: efi_map_at, page_tables, length }
    }
}

/// Loads the parent.
pub fn parent(files: &mut Partition, config: &Config) -> Result<Parent, BootError> {
    let mut file = files.find(&config.kernel)?;
    let kernel = parse_kernel(&mut file)?;
    let longest = kernel.cmdline_size as usize;
    if config.cmdline.len() > longest {
        return Err(BootError::new(
            Status::INVALID_PARAMETER,
            format_args!(
                "the command line has {} bytes, and the kernel takes {longest}; shorten `cmdline` in {}",
                config.cmdline.len(),
                parterre_boot::config::PATH
            ),
        ));
    }
    let mut code = kernel_memory(&kernel)
        .ok_or_else(|| no_memory("the parent's kernel", file.path(), kernel.init_size))?;
    if let Some(crc32) = config.kernel_crc32 {
        check_kernel_crc32(&mut file, crc32)?;
    }
    file.read_at(kernel.code_offset, &mut code.bytes()[..kernel.code_length as usize])?;
    say!("kernel {}: {} KiB at {:#x}", file.path(), kernel.code_length >> 10, code.address());
    let initrd = match &config.initrd {
        None => None,
        Some(path) => Some(load_initrd(files, path, config.initrd_crc32, &kernel)?),
    };
    let block = parent_block(&config.cmdline)?;
    Ok(Parent { kernel, code, initrd, block, rsdp: platform::rsdp()?, screen: platform::screen() })
}

fn parse_kernel(file: &mut OpenFile<'_>) -> Result<Kernel, BootError> {
    let mut start = [0; HEADER_BYTES];
    let seen = file.length().min(HEADER_BYTES as u64) as usize;
    file.read_at(0, &mut start[..seen])?;
    Kernel::parse(&start[..seen], file.length())
        .map_err(|error| BootError::new(Status::LOAD_ERROR, format_args!("kernel {}: {error}", file.path())))
}

/// Memory for the kernel: where it likes best, else below 4 GiB, else anywhere, as far as it can be moved. The type is
/// "code" for firmware that forbids execution elsewhere.
fn kernel_memory(kernel: &Kernel) -> Option<Pages> {
    let limits: &[u64] = if kernel.above_4g { &[BELOW_4G, ANYWHERE] } else { &[BELOW_4G] };
    Pages::at(kernel.preferred_address, kernel.init_size, MemoryType::LOADER_CODE).or_else(|| {
        let alignment = kernel.alignment?;
        Pages::below(limits, kernel.init_size, alignment, MemoryType::LOADER_CODE)
    })
}

/// The file has more than what is loaded, so it is read once as a whole for its checksum.
fn check_kernel_crc32(file: &mut OpenFile<'_>, expected: u32) -> Result<(), BootError> {
    let (path, length) = (file.path(), file.length());
    let mut whole = Pages::below(&[BELOW_4G, ANYWHERE], length, PAGE_SIZE, MemoryType::LOADER_DATA)
        .ok_or_else(|| no_memory("the parent's kernel", path, length))?;
    let bytes = &mut whole.bytes()[..length as usize];
    file.read_at(0, bytes)?;
    check_crc32("kernel", path, bytes, expected)
}

fn check_crc32(what: &str, path: &str, bytes: &[u8], expected: u32) -> Result<(), BootError> {
    match boot::calculate_crc32(bytes) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(BootError::new(
            Status::CRC_ERROR,
            format_args!(
                "{what} {path}: the file is damaged: its CRC-32 is {found:08x}, and {} says {expected:08x}; copy it \
                 anew, or correct `{what}-crc32`",
                parterre_boot::config::PATH
            ),
        )),
        Err(error) => Err(BootError::new(
            error.status(),
            format_args!("{what} {path}: the firmware cannot compute a CRC-32; remove `{what}-crc32`"),
        )),
    }
}

fn load_initrd(
    files: &mut Partition,
    path: &str,
    crc32: Option<u32>,
    kernel: &Kernel,
) -> Result<(Pages, u64), BootError> {
    let mut file = files.find(path)?;
    let length = file.length();
    if length == 0 {
        return Err(BootError::new(
            Status::LOAD_ERROR,
            format_args!("initrd {path} is empty; copy it anew, or remove `initrd` from the configuration"),
        ));
    }
    let low = (kernel.initrd_addr_max + 1).min(BELOW_4G);
    let limits: &[u64] = if kernel.above_4g { &[low, BELOW_4G, ANYWHERE] } else { &[low] };
    let mut pages = Pages::below(limits, length, PAGE_SIZE, MemoryType::LOADER_DATA)
        .ok_or_else(|| no_memory("the initrd", path, length))?;
    let (bytes, rest) = pages.bytes().split_at_mut(length as usize);
    rest.fill(0);
    file.read_at(0, bytes)?;
    if let Some(crc32) = crc32 {
        check_crc32("initrd", path, bytes, crc32)?;
    }
    if let Some(problem) = parterre_boot::initrd::problem(bytes) {
        return Err(BootError::new(Status::LOAD_ERROR, format_args!("initrd {path}: {problem}")));
    }
    say!("initrd {path}: {} KiB at {:#x}", length >> 10, pages.address());
    Ok((pages, length))
}

fn no_memory(what: &str, path: &str, length: u64) -> BootError {
    BootError::new(
        Status::OUT_OF_RESOURCES,
        format_args!(
            "there is no free contiguous memory of {} MiB for {what} ({path}); the machine needs more memory",
            length.div_ceil(1 << 20)
        ),
    )
}

fn parent_block(cmdline: &str) -> Result<ParentBlock, BootError> {
    let firmware = current_map()?;
    let efi_map = (firmware.len() + MAP_GROWTH) * firmware.meta().desc_size;
    let (ram_end, _) = map::ram_extent(&memory_map(&[])?);
    let mapped = ram_end.next_multiple_of(1 << 30).clamp(4 << 30, parent_tables::MAX_MAPPED);
    let layout = Layout::new(cmdline.len(), efi_map, mapped);
    let mut pages = Pages::below(&[BELOW_4G], layout.length as u64, PAGE_SIZE, MemoryType::LOADER_DATA)
        .ok_or_else(|| no_memory("the parent's boot data", "below 4 GiB", layout.length as u64))?
        .zeroed();
    let base = pages.address();
    let bytes = pages.bytes();
    let gdt = parent_tables::gdt_bytes();
    bytes[layout.gdt..layout.gdt + gdt.len()].copy_from_slice(&gdt);
    bytes[layout.cmdline..layout.cmdline + cmdline.len()].copy_from_slice(cmdline.as_bytes());
    let tables = &mut bytes[layout.page_tables..layout.length];
    // The layout was made for exactly these tables.
    let written = parent_tables::write_page_tables(tables, base + layout.page_tables as u64, mapped);
    assert!(written, "the parent's page tables have the length that they were given");
    Ok(ParentBlock { pages, layout })
}

/// The map as it is now, with the ranges in `owned` the hypervisor's.
fn memory_map(owned: &[PhysicalRange]) -> Result<MemoryMap, BootError> {
    let firmware = current_map()?;
    let map = map::build(firmware.entries().map(descriptor), owned);
    // What is left until boot services end may add some.
    map.ok()
        .filter(|map| map.len() + MAP_GROWTH <= map::CAPACITY)
        .ok_or_else(|| BootError::new(Status::BUFFER_TOO_SMALL, map::TooManyRanges))
}

/// What belongs to the hypervisor.
pub struct Hypervisor {
    /// Its region.
    pub region: Pages,
    /// Length in bytes of the symbols at the region's beginning.
    pub symbols: usize,
    /// The page in which other processors start.
    pub trampoline: Pages,
    /// Its serial line.
    pub serial: Option<u16>,
}

/// Sets memory aside for the hypervisor and loads its symbols.
pub fn hypervisor(
    files: &mut Partition,
    config: &Config,
    platform: &Platform,
) -> Result<Hypervisor, BootError> {
    let trampoline = Pages::below(&[1 << 20], TRAMPOLINE_PAGES * PAGE_SIZE, PAGE_SIZE, MemoryType::RESERVED)
        .ok_or_else(|| {
            BootError::new(
                Status::OUT_OF_RESOURCES,
                "there are no two free pages below 1 MiB, where other processors start; update the firmware",
            )
        })?;
    let mut symbols = config.symbols.as_deref().and_then(|path| match files.find(path) {
        Ok(file) => Some(file),
        Err(error) => {
            say!("warning: {}; traces will have no names.", error.message);
            None
        }
    });
    let symbols_length = symbols.as_ref().map_or(0, OpenFile::length);
    let (ram_end, ram_bytes) = map::ram_extent(&memory_map(&[platform.image])?);
    let length = region_bytes(platform.processors.len() as u64, ram_end, ram_bytes, symbols_length);
    let mut region = Pages::below(&[BELOW_4G, ANYWHERE], length, REGION_ALIGNMENT, MemoryType::RESERVED)
        .ok_or_else(|| no_memory("the hypervisor", "aligned to 2 MiB", length))?;
    if let Some(file) = &mut symbols {
        file.read_at(0, &mut region.bytes()[..symbols_length as usize])?;
    }
    say!(
        "hypervisor: {} KiB program, {} MiB of memory at {:#x}, {} processors, {} MiB of RAM",
        platform.image.length >> 10,
        length >> 20,
        region.address(),
        platform.processors.len(),
        ram_bytes >> 20
    );
    Ok(Hypervisor { region, symbols: symbols_length as usize, trampoline, serial: config.serial })
}
