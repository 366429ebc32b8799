//! The run loop of a processor against intercepts from a script.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parterre_chipset::pc::Pc;
use parterre_chipset::{ApicBus, ApicMessage, rtc};
use parterre_partition::fake::{FakePartition, FakeVp};
use parterre_partition::memory::GuestMemory;
use parterre_partition::message::{Context, IoPort};
use parterre_partition::registers::Register;
use parterre_partition::{Error, Exception, Intercept, VirtualProcessor};
use parterre_worker::event::{Event, Events};
use parterre_worker::processor::{Board, PowerSwitch, run};
use parterre_worker::vmbus::VmBus;

struct Nobody;

impl ApicBus for Nobody {
    fn send(&self, _: ApicMessage) {}
}

fn board() -> Board {
    let events = Events::new().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let power = Arc::new(PowerSwitch::new(events.clone(), stop.clone()));
    let output = Box::new(std::io::sink());
    let pc = Pc::new(Arc::new(Nobody), power, rtc::system_clock(), output, Box::new(|| ())).unwrap();
    let ram = Arc::new(GuestMemory::new(16 << 20).unwrap());
    let memory = Arc::new(ram.regions().clone());
    let vmbus = VmBus::new(Arc::new(FakePartition::default()), memory, 1, 4096, None);
    let (crashes, gate) = (Arc::default(), Arc::default());
    Board { pc: Arc::new(pc), ram, vmbus, crashes, events, stop, gate, trace: false }
}

fn context() -> Context {
    Context { instruction_length: 2, long_mode: true, rip: 0x1000, ..Context::default() }
}

fn out(port: u16, size: u8, rax: u64) -> Intercept {
    Intercept::IoPort(IoPort { context: context(), write: true, port, size, rax, ..IoPort::default() })
}

/// Runs a script that must end the machine; returns what it ended with.
fn end_of(script: Vec<Intercept>) -> (Vec<Event>, FakeVp) {
    let board = board();
    let mut vp = FakeVp { script: script.into(), ..FakeVp::default() };
    run(&mut vp, &board);
    assert!(board.stop.load(Ordering::Acquire));
    (board.events.take(), vp)
}

#[test]
fn every_switch_of_the_guest_ends_the_machine_once() {
    assert_eq!(end_of(vec![out(0x604, 2, 0x2000)]).0, [Event::PowerOff]);
    assert_eq!(end_of(vec![out(0xCF9, 1, 6)]).0, [Event::Reset]);
    assert_eq!(end_of(vec![out(0x64, 1, 0xFE)]).0, [Event::Reset]);
    assert_eq!(end_of(vec![Intercept::TripleFault(context())]).0, [Event::Reset]);
}

#[test]
fn what_nobody_knows_is_answered_and_the_guest_goes_on() {
    let script = vec![
        Intercept::Msr { context: context(), msr: 0xDEAD, write: Some(1) },
        Intercept::Cpuid { context: context(), default: [1, 2, 3, 4] },
        Intercept::Other { kind: 0x8000_0062 },
        Intercept::ApicEoi { vp: 0, vector: 0x1_0041 },
        out(0x604, 2, 0x2000),
    ];
    let (events, vp) = end_of(script);
    assert_eq!(events, [Event::PowerOff]);
    assert_eq!(vp.exceptions, [Exception { vector: 13, error_code: Some(0), parameter: 0 }]);
    let cpuid =
        [Register::Rax, Register::Rbx, Register::Rcx, Register::Rdx].map(|r| vp.registers[r as usize]);
    assert_eq!(cpuid, [1, 2, 3, 4]);
    assert_eq!(vp.registers[Register::Rip as usize], 0x1002);
}

#[test]
fn crashes_are_heard_of_and_the_guest_goes_on() {
    let board = board();
    let crash = |control| Intercept::Msr { context: context(), msr: 0x4000_0105, write: Some(control) };
    let script = vec![crash(0), crash(1 << 63), out(0x604, 2, 0x2000)];
    let mut vp = FakeVp { script: script.into(), crash_parameters: [1, 2, 3, 4, 5], ..FakeVp::default() };
    run(&mut vp, &board);
    assert_eq!(board.crashes.last().unwrap().parameters, [1, 2, 3, 4, 5]);
    assert_eq!((vp.exceptions.len(), vp.registers[Register::Rip as usize]), (0, 0x1002));
}

/// A processor that the hypervisor refuses to run.
struct Broken;

impl VirtualProcessor for Broken {
    fn index(&self) -> u32 {
        3
    }
    fn run(&mut self) -> Result<Intercept, Error> {
        Err(Error::ShortMessage { kind: 1, size: 2, expected: 3 })
    }
    fn get(&mut self, _: &[Register], _: &mut [u64]) -> Result<(), Error> {
        Ok(())
    }
    fn set(&mut self, _: &[(Register, u64)]) -> Result<(), Error> {
        Ok(())
    }
    fn segments(&mut self) -> Result<parterre_partition::registers::Segments, Error> {
        Ok(Default::default())
    }
    fn set_arch_state(&mut self, _: &parterre_partition::registers::ArchState) -> Result<(), Error> {
        Ok(())
    }
    fn translate(
        &mut self,
        gva: u64,
        _: parterre_partition::Access,
    ) -> Result<parterre_partition::Translation, Error> {
        Ok(parterre_partition::Translation::Mapped(gva))
    }
    fn crash_parameters(&mut self) -> Result<[u64; 5], Error> {
        Ok([0; 5])
    }
    fn inject(&mut self, _: Exception) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_processor_that_cannot_run_stops_the_machine_with_a_sentence() {
    let board = board();
    run(&mut Broken, &board);
    let events = board.events.take();
    assert!(
        matches!(&events[..], [Event::Failed(why)] if why.starts_with("virtual processor 3 cannot go on"))
    );
}
