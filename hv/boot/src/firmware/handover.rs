//! The end of boot services: the last look at the memory map, what the parent is told, and the jump.
//!
//! From the moment boot services are left nothing can be allocated, dropped or returned to.

use arrayvec::ArrayVec;
use parterre_boot::efi_map;
use parterre_boot::memory::{self as map, MemoryMap};
use parterre_boot::zero_page::{self, Contents, EfiInfo};
use parterre_boot::{acpi, image};
use parterre_hw::launch::{
    Image, ImageSection, LaunchInfo, MemoryDomain, ParentStart, PhysicalRange, Processor,
};
use spin::mutex::{Mutex, MutexGuard};
use uefi::mem::memory_map::{MemoryMap as _, MemoryMapOwned};
use uefi::table;

use super::bare;
use super::load::{Hypervisor, Parent};
use super::memory::{self, descriptor};
use super::output::say;
use super::platform::{MAX_DOMAINS, MAX_PROCESSORS, Platform};

// What the machine layer is told lies in the image: it stays the hypervisor's for ever.
static MEMORY: Mutex<MemoryMap> = Mutex::new(ArrayVec::new_const());
static PROCESSORS: Mutex<ArrayVec<Processor, MAX_PROCESSORS>> = Mutex::new(ArrayVec::new_const());
static DOMAINS: Mutex<ArrayVec<MemoryDomain, MAX_DOMAINS>> = Mutex::new(ArrayVec::new_const());
static SECTIONS: Mutex<ArrayVec<ImageSection, { image::CAPACITY }>> = Mutex::new(ArrayVec::new_const());

fn keep<T, const N: usize>(
    place: &'static Mutex<ArrayVec<T, N>>,
    values: impl IntoIterator<Item = T>,
) -> &'static [T] {
    let list = MutexGuard::leak(place.lock());
    // Whoever made the values has limited their number to the list's capacity.
    list.extend(values);
    list
}

/// Starts the hypervisor with `parent` as its parent partition.
pub fn start_parterre(mut parent: Parent, hypervisor: Hypervisor, platform: Platform) -> ! {
    let region = hypervisor.region.range();
    let owned = [platform.image, region, hypervisor.trampoline.range()];
    let processors = keep(&PROCESSORS, platform.processors.iter().copied());
    let memory_domains = keep(&DOMAINS, platform.domains.iter().copied());
    let sections = keep(&SECTIONS, platform.sections.iter().copied());
    let trampoline = hypervisor.trampoline.address();
    let free_from = (hypervisor.symbols as u64).next_multiple_of(parterre_hw::launch::PAGE_SIZE);
    let symbols = &hypervisor.region.leak()[..hypervisor.symbols];

    let firmware = leave_boot_services();
    let memory = keep(&MEMORY, final_map(&firmware, &owned));
    let start = tell_parent(&mut parent, &firmware, memory, &owned);
    for table in &platform.hidden {
        // SAFETY: `acpi::find` has read the header of each of these tables through `Mapped`; boot services are left.
        unsafe {
            let header = memory::table_header(table.address);
            memory::overwrite_table_header(table.address, acpi::hidden_header(&header));
        }
    }
    parterre_hw::start(LaunchInfo {
        memory,
        region,
        free: PhysicalRange::new(region.base + free_from, region.length - free_from),
        image: Image { range: platform.image, sections },
        processors,
        memory_domains,
        power: platform.power,
        symbols,
        serial: hypervisor.serial,
        trampoline,
        rsdp: parent.rsdp,
        parent: start,
    })
}

/// Starts the kernel on the bare machine.
pub fn start_bare(mut parent: Parent) -> ! {
    let firmware = leave_boot_services();
    let memory = final_map(&firmware, &[]);
    let start = tell_parent(&mut parent, &firmware, &memory, &[]);
    bare::enter(&start)
}

fn leave_boot_services() -> MemoryMapOwned {
    say!("leaving the firmware's boot services");
    // SAFETY: no protocol is open and nothing of the firmware's allocator is freed from here on: the callers never
    // return, and what they hold is never dropped.
    let map = unsafe { memory::leave_boot_services() };
    bare::disable_interrupts();
    map
}

fn final_map(firmware: &MemoryMapOwned, owned: &[PhysicalRange]) -> MemoryMap {
    match map::build(firmware.entries().map(descriptor), owned) {
        Ok(map) => map,
        Err(error) => stop(error),
    }
}

/// Writes what depends on the final memory map, and tells how the parent begins.
fn tell_parent(
    parent: &mut Parent,
    firmware: &MemoryMapOwned,
    memory: &[parterre_hw::launch::MemoryRange],
    owned: &[PhysicalRange],
) -> ParentStart {
    let layout = parent.block.layout;
    let base = parent.block.pages.address();
    let at = |offset: usize| base + offset as u64;
    let meta = firmware.meta();
    let bytes = parent.block.pages.bytes();

    let e820 = map::e820(memory);
    let extended = zero_page::write_e820_extension(&e820, &mut bytes[layout.e820..layout.efi_map]);
    let efi_map = &mut bytes[layout.efi_map..layout.page_tables];
    let descriptors = firmware.entries().map(descriptor);
    let efi_map_length = match efi_map::write_copy(descriptors, owned, meta.desc_size, efi_map) {
        Ok(length) => length as u64,
        Err(efi_map::NoRoom) => stop("the firmware's memory map grew beyond the room set aside for it"),
    };
    let efi = EfiInfo {
        system_table: table::system_table_raw().map_or(0, |table| table.addr().get() as u64),
        map: PhysicalRange::new(at(layout.efi_map), efi_map_length),
        descriptor_length: meta.desc_size as u32,
        descriptor_version: meta.desc_version,
    };
    let contents = Contents {
        kernel: &parent.kernel,
        cmdline: at(layout.cmdline),
        initrd: parent.initrd.as_ref().map(|(pages, length)| PhysicalRange::new(pages.address(), *length)),
        rsdp: parent.rsdp,
        efi,
        screen: parent.screen,
        e820: &e820,
        setup_data: if extended { at(layout.e820) } else { 0 },
    };
    if let Some(page) = bytes.first_chunk_mut() {
        zero_page::write(page, &contents);
    }
    ParentStart {
        entry: parent.kernel.entry(parent.code.address()),
        boot_params: base,
        page_tables: at(layout.page_tables),
        gdt: at(layout.gdt),
    }
}

/// Too late to return to the firmware, too early for anybody else.
fn stop(reason: impl core::fmt::Display) -> ! {
    say!("stopped: {reason}. Reset the machine.");
    loop {
        core::hint::spin_loop();
    }
}
