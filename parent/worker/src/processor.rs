//! One virtual processor's thread: run, handle the intercept, run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parterre_chipset::PowerEvents;
use parterre_chipset::pc::Pc;
use parterre_partition::memory::GuestMemory;
use parterre_partition::message::Context;
use parterre_partition::{Error, Exception, Intercept, VirtualProcessor};

use crate::crash::Crashes;
use crate::emulate::{self, Devices};
use crate::event::{Event, Events};
use crate::gate::Gate;
use crate::vmbus::VmBus;

/// What a processor needs of its machine.
#[derive(Clone)]
pub struct Board {
    /// The devices.
    pub pc: Arc<Pc>,
    /// The RAM.
    pub ram: Arc<GuestMemory>,
    /// The synthetic devices.
    pub vmbus: VmBus,
    /// Hears of the guest's crashes.
    pub crashes: Arc<Crashes>,
    /// Where events go.
    pub events: Events,
    /// Set when all processors are to leave the guest.
    pub stop: Arc<AtomicBool>,
    /// Where they wait while the machine is paused.
    pub gate: Arc<Gate>,
    /// Every intercept is written to the log.
    pub trace: bool,
}

/// Passes the guest's power switches on: all processors stop, the main thread decides what follows.
pub struct PowerSwitch {
    events: Events,
    stop: Arc<AtomicBool>,
}

impl PowerSwitch {
    /// A switch for a machine with these events and this stop flag.
    pub fn new(events: Events, stop: Arc<AtomicBool>) -> PowerSwitch {
        PowerSwitch { events, stop }
    }

    fn flip(&self, event: Event) {
        // Only the first of several switches counts.
        if !self.stop.swap(true, Ordering::AcqRel) {
            self.events.send(event);
        }
    }
}

impl PowerEvents for PowerSwitch {
    fn power_off(&self) {
        self.flip(Event::PowerOff);
    }

    fn reset(&self) {
        self.flip(Event::Reset);
    }
}

/// `HV_X64_MSR_CRASH_CTL`.
const CRASH_CTL: u32 = 0x4000_0105;
/// Vector of #GP.
const GENERAL_PROTECTION: u8 = 13;

/// Runs a processor until the machine stops. A failure stops the whole machine.
pub fn run(vp: &mut dyn VirtualProcessor, board: &Board) {
    let power = PowerSwitch::new(board.events.clone(), board.stop.clone());
    while !board.stop.load(Ordering::Acquire) {
        if board.gate.is_closed() {
            board.gate.wait(&board.stop);
            continue;
        }
        let handled = match vp.run() {
            Ok(intercept) => {
                if board.trace {
                    log_line(format_args!("vp {}: {intercept:x?}", vp.index()));
                }
                handle(vp, board, &power, &intercept)
            }
            Err(Error::Interrupted) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = handled {
            let why = format!("virtual processor {} cannot go on: {error}", vp.index());
            power.flip(Event::Failed(why));
        }
    }
}

/// Does what an intercept asks for.
fn handle(
    vp: &mut dyn VirtualProcessor,
    board: &Board,
    power: &PowerSwitch,
    intercept: &Intercept,
) -> Result<(), Error> {
    let devices = Devices { ports: &board.pc.ports, memory: &board.pc.memory, ram: &board.ram };
    match intercept {
        Intercept::IoPort(io) => emulate::port(vp, devices, io),
        Intercept::Memory(access) => emulate::memory(vp, devices, access),
        Intercept::ApicEoi { vector, .. } => {
            board.pc.ioapic.end_of_interrupt(*vector as u8);
            Ok(())
        }
        Intercept::TripleFault(context) => {
            log_line(format_args!("triple fault at {:#x} on virtual processor {}", context.rip, vp.index()));
            power.reset();
            Ok(())
        }
        Intercept::Hypercall(call) => {
            let status = match call.synic_call(&board.ram) {
                Ok(synic) => board.vmbus.call(vp.index(), &synic),
                Err(status) => status,
            };
            call.answer(vp, status)
        }
        Intercept::SintDeliverable { .. } => {
            board.vmbus.deliverable();
            Ok(())
        }
        // The hypervisor waits for interrupts itself; a HLT that still comes here is passed like a NOP.
        Intercept::Halt(context) => skip(vp, context, 1),
        Intercept::Msr { context, msr: CRASH_CTL, write: Some(control) } => {
            board.crashes.tell(vp, &board.ram, *control)?;
            skip(vp, context, 2)
        }
        // An MSR that neither the hypervisor nor a device knows.
        Intercept::Msr { .. } => {
            vp.inject(Exception { vector: GENERAL_PROTECTION, error_code: Some(0), parameter: 0 })
        }
        Intercept::Cpuid { context, default } => answer_cpuid(vp, context, default),
        Intercept::Other { kind } => {
            log_line(format_args!(
                "message of type {kind:#x} is not handled; virtual processor {}",
                vp.index()
            ));
            Ok(())
        }
    }
}

/// Moves past an instruction whose length is `length` unless the hypervisor knows better.
fn skip(vp: &mut dyn VirtualProcessor, context: &Context, length: u64) -> Result<(), Error> {
    use parterre_partition::registers::Register;
    let length = if context.instruction_length == 0 { length } else { context.instruction_length.into() };
    vp.set(&[(Register::Rip, context.rip_after(length))])
}

/// CPUID is the hypervisor's business: its own answer is the answer.
fn answer_cpuid(vp: &mut dyn VirtualProcessor, context: &Context, default: &[u32; 4]) -> Result<(), Error> {
    use parterre_partition::registers::Register;
    let names = [Register::Rax, Register::Rbx, Register::Rcx, Register::Rdx];
    let values = default.map(u64::from);
    let pairs: Vec<_> = names.into_iter().zip(values).collect();
    vp.set(&pairs)?;
    skip(vp, context, 2)
}

/// How many lines the worker may still log: a guest that makes trouble without end must not fill the parent's disk.
static LINES_LEFT: AtomicU32 = AtomicU32::new(1 << 20);

/// A line for the worker's log (standard error).
pub fn log_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let one_less = |left: u32| left.checked_sub(1);
    if LINES_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        // A log that cannot be written must not stop a virtual machine.
        let _ = writeln!(std::io::stderr().lock(), "vmwp: {line}");
    }
}
