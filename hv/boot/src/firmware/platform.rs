//! What the firmware knows about the machine: ACPI tables, the screen, where this program lies.

use alloc::vec::Vec;
use core::slice;

use arrayvec::ArrayVec;
use parterre_boot::acpi::{self, AcpiError, Affinity, Table};
use parterre_boot::image;
use parterre_boot::zero_page::{Channel, Screen};
use parterre_hw::launch::{ImageSection, MemoryDomain, PhysicalRange, PowerHardware, Processor};
use uefi::proto::console::gop::{GraphicsOutput, ModeInfo, PixelFormat};
use uefi::proto::loaded_image::LoadedImage;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Status, boot, system};

use super::memory::{self, Mapped};
use super::output::say;
use super::{BootError, cpu};

/// How many processors the lists hold.
pub const MAX_PROCESSORS: usize = 1024;
/// How many ranges of memory with a NUMA domain the lists hold.
pub const MAX_DOMAINS: usize = 256;

/// What the hypervisor must know.
pub struct Platform {
    /// Enabled processors, this one first.
    pub processors: Vec<Processor>,
    /// NUMA domains of memory.
    pub domains: Vec<MemoryDomain>,
    /// Power control.
    pub power: PowerHardware,
    /// Tables that the parent must not find.
    pub hidden: Vec<Table>,
    /// Where this program lies.
    pub image: PhysicalRange,
    /// Its sections.
    pub sections: ArrayVec<ImageSection, { image::CAPACITY }>,
}

/// Physical address of the ACPI RSDP.
pub fn rsdp() -> Result<u64, BootError> {
    let find = |guid| {
        system::with_config_table(|tables| {
            tables.iter().find(|entry| entry.guid == guid).map(|entry| entry.address.addr() as u64)
        })
    };
    find(ConfigTableEntry::ACPI2_GUID)
        .or_else(|| find(ConfigTableEntry::ACPI_GUID))
        .ok_or_else(|| BootError::new(Status::NOT_FOUND, AcpiError::Rsdp))
}

/// Reads everything.
pub fn read(rsdp: u64) -> Result<Platform, BootError> {
    let failed = |error: AcpiError| BootError::new(Status::COMPROMISED_DATA, error);
    let mapped = Mapped::new()?;
    let tables = acpi::find(&mapped, rsdp).map_err(failed)?;
    let optional = |signature| match acpi::table(&tables, signature) {
        None => None,
        Some(table) => match acpi::read(&mapped, table) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                say!("warning: {error}; it is not used.");
                None
            }
        },
    };
    if acpi::table(&tables, *b"MCFG").is_none() {
        say!(
            "warning: the firmware has no ACPI table MCFG, without which Linux as a parent finds no PCI device; \
             update the firmware."
        );
    }
    let madt = acpi::table(&tables, *b"APIC").ok_or_else(|| failed(AcpiError::Missing(*b"APIC")))?;
    let madt = acpi::read(&mapped, madt).map_err(failed)?;
    let ids = acpi::processors(&madt, cpu::apic_id()).map_err(failed)?;
    if ids.len() > MAX_PROCESSORS {
        return Err(failed(AcpiError::TooManyProcessors(MAX_PROCESSORS)));
    }
    let affinity = optional(*b"SRAT").map(|srat| acpi::affinity(&srat)).unwrap_or_default();
    let power = optional(*b"FACP").map(|fadt| acpi::power(&fadt)).unwrap_or_default();
    let (image, sections) = own_image()?;
    Ok(Platform {
        processors: processors(&ids, &affinity),
        domains: domains(affinity),
        power,
        hidden: tables.into_iter().filter(|table| acpi::HIDDEN.contains(&table.signature)).collect(),
        image,
        sections,
    })
}

fn processors(ids: &[u32], affinity: &Affinity) -> Vec<Processor> {
    let processor = |id: &u32| Processor { apic_id: *id, proximity_domain: affinity.of_processor(*id) };
    ids.iter().map(processor).collect()
}

fn domains(affinity: Affinity) -> Vec<MemoryDomain> {
    if affinity.memory.len() > MAX_DOMAINS {
        say!("warning: the firmware names more than {MAX_DOMAINS} NUMA ranges of memory; none is used.");
        return Vec::new();
    }
    affinity.memory
}

fn own_image() -> Result<(PhysicalRange, ArrayVec<ImageSection, { image::CAPACITY }>), BootError> {
    let failed = |what: &str| {
        BootError::new(
            Status::LOAD_ERROR,
            format_args!("this program's image cannot be used: {what}; copy parterre.efi anew."),
        )
    };
    let loaded =
        memory::peek::<LoadedImage>(boot::image_handle()).ok_or_else(|| failed("the firmware hides it"))?;
    let (base, length) = loaded.info();
    let headers = usize::try_from(length).map_or(0, |length| length.min(4096));
    // SAFETY: the firmware says that this program was loaded here, so its headers are readable memory that nobody
    // writes to.
    let headers = unsafe { slice::from_raw_parts(base.cast::<u8>(), headers) };
    let range = PhysicalRange::new(base.addr() as u64, length.next_multiple_of(4096));
    let sections = image::sections(headers, range).map_err(failed)?;
    Ok((range, sections))
}

/// The screen, when the firmware has one with a frame buffer in memory.
pub fn screen() -> Option<Screen> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    let mut output = memory::peek::<GraphicsOutput>(handle)?;
    let mode = output.current_mode_info();
    let (channels, bytes_per_pixel) = pixel(&mode)?;
    let (width, height) = mode.resolution();
    let mut buffer = output.frame_buffer();
    Some(Screen {
        memory: PhysicalRange::new(buffer.as_mut_ptr().addr() as u64, buffer.size() as u64),
        width: width.try_into().ok()?,
        height: height.try_into().ok()?,
        stride: (mode.stride() * bytes_per_pixel).try_into().ok()?,
        channels,
    })
}

/// Where the colours lie in a pixel, and how long one is.
fn pixel(mode: &ModeInfo) -> Option<([Channel; 4], usize)> {
    let masks = match mode.pixel_format() {
        PixelFormat::Rgb => [0xff, 0xff00, 0xff_0000, 0xff00_0000],
        PixelFormat::Bgr => [0xff_0000, 0xff00, 0xff, 0xff00_0000],
        PixelFormat::Bitmask => {
            let masks = mode.pixel_bitmask()?;
            [masks.red, masks.green, masks.blue, masks.reserved]
        }
        PixelFormat::BltOnly => return None,
    };
    let bits: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
    Some((masks.map(Channel::from_mask), bits.div_ceil(8) as usize))
}
