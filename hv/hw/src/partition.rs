//! The root partition: its processors and its special pages; and with that the value of core that runs everything from
//! then on.

use parterre_core::machine::Access;
use parterre_core::{Config, Hypervisor, LogicalProcessor, ProcessorConfig, Slot, SynicPages};
use spin::Mutex;

use crate::machine::Pc;
use crate::ownership::{self, special_page};
use crate::processor;
use crate::start::{Ready, Unit, Work, distribute};
use crate::timer::Clock;
use crate::vcpu::Vcpu;
use crate::vendor::{ParentStart, Vendor};

/// How many children there can be at a time.
const CHILDREN: usize = 1024;
/// Interrupts of devices that can be mapped: no processor has more vectors for them.
const DEVICE_INTERRUPTS_PER_PROCESSOR: usize = 224;
/// Doorbells that the parent can have.
const PORTS: usize = 1024;
/// Special pages of the parent, and of each of its processors.
const SPECIAL_PAGES: usize = 2;
const SPECIAL_PAGES_PER_PROCESSOR: usize = 4;

/// Builds the root partition on the machine that `ready` describes, and runs it on all processors.
pub fn run(ready: Ready) -> ! {
    let Ready { info, mut heap, clock, units } = ready;
    let special = SPECIAL_PAGES + units.len() * SPECIAL_PAGES_PER_PROCESSOR;
    let vendor = Vendor::new(&mut heap);
    let (table, mut space) = ownership::build(&vendor, &mut heap, info.memory, special);
    let shared = heap.slice(units.len(), |index| units[index].shared);
    let machine = Pc { vendor, processors: shared, clock, power: info.power };
    let mut page = |access| special_page(&machine, &table, &mut space, access);
    let hypercall_page = page(Access::READ | Access::EXECUTE);
    let reference_tsc_page = page(Access::READ);
    let processors = heap.slice(units.len(), |index| {
        let mut page = || page(Access::READ | Access::WRITE);
        let synic = SynicPages { messages: page(), events: page(), rings: page() };
        LogicalProcessor::new(ProcessorConfig { index, synic, assist: page() })
    });
    let vcpus = heap.slice(units.len(), |_| Mutex::new(None));
    for (index, vcpu) in vcpus.iter().enumerate() {
        let start = if index == 0 { ParentStart::Kernel(info.parent) } else { ParentStart::WaitForSipi };
        *vcpu.lock() = Some(machine.vendor.new_parent_vcpu(&mut heap, space.slat(), start));
    }
    let slots = heap.slice(CHILDREN, |_| Slot::new());
    let config = Config {
        machine,
        table,
        parent_space: space,
        hypercall_page,
        reference_tsc_page,
        processors,
        slots,
        device_interrupts: heap.slice(DEVICE_INTERRUPTS_PER_PROCESSOR * units.len(), |_| None),
        ports: heap.slice(PORTS, |_| None),
        stats: heap.slice(2 + 2 * units.len(), |_| None),
    };
    let hypervisor = heap.place(Hypervisor::new(config));
    log::info!("starting the parent; {} KiB of the region are left", heap.remaining() >> 10);
    distribute(units, heap.place(RootPartition { hypervisor, vcpus, clock }))
}

/// What all processors run.
struct RootPartition {
    hypervisor: &'static Hypervisor<Pc>,
    vcpus: &'static [Mutex<Option<Vcpu>>],
    clock: Clock,
}

impl Work for RootPartition {
    fn run(&'static self, index: usize, unit: &'static Unit) -> ! {
        let mut processor =
            processor::LogicalProcessor::new(index, self.clock, unit.shared, unit.vendor_area);
        let vcpu = self.vcpus[index].lock().take().expect("each processor takes its own, once");
        self.hypervisor.machine.vendor.enable(&mut processor);
        self.hypervisor.run_parent(&mut processor, vcpu)
    }
}
