//! Direct kernel boot: puts a bzImage, its initrd and its parameters into guest memory and says with which registers
//! the first processor starts.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".

mod cpu;
mod params;

use std::fs::File;
use std::io::{Read, Seek};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use parterre_partition::memory::{GuestMemory, LOW_RAM_END};
use parterre_partition::registers::ArchState;
use vm_memory::{Bytes, GuestAddress};

/// Guest physical addresses of what the loader places below 1 MiB.
pub(crate) mod address {
    /// Global descriptor table.
    pub(crate) const GDT: u64 = 0x500;
    /// The zero page (`struct boot_params`).
    pub(crate) const ZERO_PAGE: u64 = 0x7000;
    /// Top of a small stack.
    pub(crate) const STACK: u64 = 0x8FF0;
    /// Page tables: PML4, PDPT, four page directories.
    pub(crate) const PAGE_TABLES: u64 = 0x9000;
    /// Command line.
    pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
    /// End of conventional memory.
    pub(crate) const LOW_END: u64 = 0x9_FC00;
    /// ACPI tables, where a BIOS has them.
    pub(crate) const ACPI: u64 = 0xE_0000;
    /// RAM above the first MiB.
    pub(crate) const HIGH: u64 = 0x10_0000;
}

/// Longest command line that fits its place.
const COMMAND_LINE_MAX: usize = 0x1_0000;
/// `xloadflags` bit: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where the 64-bit entry point lies in the loaded kernel.
const ENTRY_64: u64 = 0x200;

/// What can be wrong with a guest's boot files.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Not a Linux bzImage.
    #[error("the kernel file is not a bzImage ({0}); give the file that /boot/vmlinuz-* is")]
    Kernel(String),
    /// An old or a 32-bit kernel.
    #[error("the kernel has no 64-bit entry point (boot protocol {version:#06x}); give an x86-64 kernel")]
    Not64Bit {
        /// Boot protocol version of the file.
        version: u16,
    },
    /// It does not fit.
    #[error(
        "{what} needs {need} MiB, the virtual machine has {have} MiB of memory in reach; give it more memory"
    )]
    TooSmall {
        /// Kernel or initrd.
        what: &'static str,
        /// MiB needed.
        need: u64,
        /// MiB available.
        have: u64,
    },
    /// The command line is too long.
    #[error("the command line has {length} bytes, the kernel takes {limit}")]
    CommandLine {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Reading a file or writing guest memory failed.
    #[error("cannot load {what}: {detail}")]
    Load {
        /// What was being loaded.
        what: &'static str,
        /// Why not.
        detail: String,
    },
}

impl BootError {
    fn load(what: &'static str) -> impl FnOnce(vm_memory::GuestMemoryError) -> BootError {
        move |error| BootError::Load { what, detail: error.to_string() }
    }
}

/// The files and the words with which a guest starts. The files stay open, so that a restart needs no path.
#[derive(Debug)]
pub struct BootSource {
    /// A bzImage.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// Kernel command line.
    pub command_line: String,
}

/// Fills guest memory and returns the state of the first processor.
pub fn load(memory: &GuestMemory, source: &BootSource, processors: u32) -> Result<ArchState, BootError> {
    let ram = memory.regions();
    let kernel = load_kernel(memory, &source.kernel)?;
    let mut header = kernel.header;
    if let Some(initrd) = &source.initrd {
        let (at, len) = load_initrd(memory, initrd, &header, kernel.end)?;
        header.ramdisk_image = at as u32;
        header.ramdisk_size = len as u32;
    }
    load_command_line(memory, &source.command_line, &mut header)?;
    let tables = parterre_chipset::acpi::build(address::ACPI, processors);
    ram.write_slice(&tables.bytes, GuestAddress(address::ACPI)).map_err(BootError::load("ACPI tables"))?;
    params::write_zero_page(memory, header)?;
    cpu::prepare(memory, kernel.start + ENTRY_64)
}

struct Kernel {
    header: setup_header,
    start: u64,
    end: u64,
}

/// The end of RAM below the hole.
fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory.ranges().first().map_or(0, |range| range.gpa + range.len).min(LOW_RAM_END)
}

fn load_kernel(memory: &GuestMemory, file: &File) -> Result<Kernel, BootError> {
    let mut file: &File = file;
    let size = file.seek(std::io::SeekFrom::End(0)).unwrap_or(0);
    let have = low_ram_end(memory).saturating_sub(address::HIGH);
    let too_small =
        |need: u64| BootError::TooSmall { what: "the kernel", need: need >> 20, have: have >> 20 };
    if size > have {
        return Err(too_small(size));
    }
    let mut reader = file.try_clone().map_err(|e| BootError::Kernel(e.to_string()))?;
    let result = BzImage::load(memory.regions(), None, &mut reader, Some(GuestAddress(address::HIGH)))
        .map_err(|e| BootError::Kernel(e.to_string()))?;
    let header = result.setup_header.unwrap_or_default();
    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x020C || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Not64Bit { version });
    }
    // The kernel unpacks itself to its preferred address and needs this much there.
    let need = header.pref_address.saturating_add(u64::from(header.init_size));
    if need > low_ram_end(memory) {
        return Err(too_small(need));
    }
    Ok(Kernel { header, start: result.kernel_load.0, end: result.kernel_end.max(need) })
}

/// Puts the initrd as high as the kernel and the memory allow.
fn load_initrd(
    memory: &GuestMemory,
    file: &File,
    header: &setup_header,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let mut file: &File = file;
    let io_error = |e: std::io::Error| BootError::Load { what: "the initrd", detail: e.to_string() };
    let len = file.seek(std::io::SeekFrom::End(0)).map_err(io_error)?;
    file.rewind().map_err(io_error)?;
    let limit = low_ram_end(memory).min(u64::from(header.initrd_addr_max) + 1);
    let have = limit.saturating_sub(kernel_end);
    if len > have {
        return Err(BootError::TooSmall {
            what: "the initrd",
            need: len.div_ceil(1 << 20),
            have: have >> 20,
        });
    }
    let at = (limit - len) & !0xFFF;
    let mut copied = 0;
    let mut buffer = vec![0; 64 << 10];
    while copied < len {
        let count = file.read(&mut buffer).map_err(io_error)?;
        if count == 0 {
            return Err(io_error(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let count = count.min((len - copied) as usize);
        let target = GuestAddress(at + copied);
        memory.regions().write_slice(&buffer[..count], target).map_err(BootError::load("the initrd"))?;
        copied += count as u64;
    }
    Ok((at, len))
}

fn load_command_line(memory: &GuestMemory, line: &str, header: &mut setup_header) -> Result<(), BootError> {
    let limit = (header.cmdline_size as usize).min(COMMAND_LINE_MAX - 1);
    if line.len() > limit || line.contains('\0') {
        return Err(BootError::CommandLine { length: line.len(), limit });
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    let at = GuestAddress(address::COMMAND_LINE);
    memory.regions().write_slice(&bytes, at).map_err(BootError::load("the command line"))?;
    header.cmd_line_ptr = address::COMMAND_LINE as u32;
    Ok(())
}
