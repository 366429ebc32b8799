//! The loop in which a processor runs the parent, and what it does at each exit.

use super::{Due, LogicalProcessor, Message, Watched, cpuid, startup};
use crate::{
    apic::{self, LocalApic},
    events, hypercall,
    hypervisor::Hypervisor,
    instruction::{Exiting, Lengths, Mode, Place},
    machine::{Event, Exit, Machine, Processor, Reg, TimerInterrupt, Vcpu, gpr},
    power_on,
    time::{Expiration, SyntheticTimers},
    xstate,
};
use core::sync::atomic::Ordering::SeqCst;

/// Bits of a physical address that page-table entries of the parent may have.
const PHYSICAL_BITS: u8 = 52;

/// The parent's virtual processor on the processor that runs this.
pub(crate) struct ParentVp<M: Machine> {
    /// The hypervisor.
    pub hv: &'static Hypervisor<M>,
    /// What others see of this processor.
    pub lp: &'static LogicalProcessor<M>,
    /// Its registers.
    pub vcpu: M::Vcpu,
    /// Its synthetic timers.
    pub stimers: SyntheticTimers,
    /// Stands in for the local APIC's timer, which the hypervisor keeps for itself; nothing else of it is used.
    pub apic: LocalApic,
    /// The value of the VP assist register.
    pub assist_enabled: bool,
    /// The timer's deadline has to be looked at before the next entry.
    pub timer_changed: bool,
    /// What the processor's timer is armed with, if that is known.
    armed: Option<(Option<u64>, TimerInterrupt)>,
    /// When its own timers are due, until one of them changes.
    deadlines: Option<Deadlines>,
    nmi_noted: bool,
    machine_check_noted: bool,
    translations_seen: u64,
    lengths: Lengths,
    /// Where the processor refused an instruction last, and how often in succession it was there.
    refused: (u64, u32),
}

/// When the parent's own timers are due (TSC).
#[derive(Clone, Copy)]
struct Deadlines {
    /// The first of all; `u64::MAX` if there is none.
    first: u64,
    /// The first that the processor's timer can deliver by itself, with the vector that the parent expects then.
    own: Option<(u64, u8)>,
}

impl<M: Machine> Hypervisor<M> {
    /// Runs the parent's virtual processor `vcpu` on this processor for ever. The boot processor begins at once, the others
    /// when the parent starts them.
    pub fn run_parent(&'static self, processor: &mut M::Processor, vcpu: M::Vcpu) -> ! {
        let mut vp = ParentVp::new(self, processor, vcpu);
        if processor.index() != 0 {
            vp.wait_for_startup(processor);
        }
        vp.vcpu.load(processor);
        loop {
            vp.step(processor);
        }
    }
}

impl<M: Machine> ParentVp<M> {
    /// The parent's virtual processor before its first instruction; its state is in `vcpu`.
    pub(crate) fn new(hv: &'static Hypervisor<M>, processor: &M::Processor, vcpu: M::Vcpu) -> Self {
        let lp = &hv.processors[processor.index()];
        let configuration = timer_configuration(&hv.machine, lp.index);
        Self {
            hv,
            lp,
            vcpu,
            stimers: SyntheticTimers::new(),
            apic: LocalApic::timer_only(configuration, &lp.timer_apic),
            assist_enabled: false,
            timer_changed: true,
            armed: None,
            deadlines: None,
            nmi_noted: false,
            machine_check_noted: false,
            translations_seen: 0,
            lengths: Lengths::default(),
            refused: (0, 0),
        }
    }

    /// The parent is about to run here again: its timer has to be looked at, and it gets what came meanwhile.
    pub(crate) fn returned(&mut self) {
        self.timer_changed = true;
        if core::mem::take(&mut self.machine_check_noted) {
            events::raise(&mut self.vcpu, events::vector::MACHINE_CHECK, None);
        } else if core::mem::take(&mut self.nmi_noted) {
            self.nmi();
        }
    }

    /// Runs the parent until its next exit, and does what that asks for.
    pub(crate) fn step(&mut self, processor: &mut M::Processor) {
        if self.timer_changed {
            self.arm_timer(processor);
        }
        let Self { hv, lp, vcpu, translations_seen, .. } = self;
        lp.guest.enter(|| hv.parent.translations.generation(), translations_seen, || vcpu.flush_tlb());
        let exit = vcpu.run(processor);
        lp.guest.leave();
        self.handle(exit, processor);
    }

    fn handle(&mut self, exit: Exit, processor: &mut M::Processor) {
        match exit {
            Exit::Cpuid { length } => self.cpuid(length),
            Exit::ReadMsr { msr, length } => self.read_msr(msr, length),
            Exit::WriteMsr { msr, value, length } => self.write_msr(msr, value, length),
            Exit::Hypercall { length } => self.hypercall(processor, length),
            Exit::Kick => self.take_messages(processor),
            Exit::Interrupt | Exit::Pause | Exit::InterruptWindow => {}
            Exit::Nmi | Exit::NmiWindow => self.nmi(),
            Exit::Hlt { length } => self.idle(processor, length),
            Exit::Xsetbv { value, length } => self.xsetbv(value, length),
            Exit::CacheInvalidate { length } => self.skip(length, Exiting::CacheInvalidate),
            Exit::SlatFault { .. } => events::general_protection(&mut self.vcpu),
            Exit::ReadPerformanceCounter => events::general_protection(&mut self.vcpu),
            Exit::InvalidInstruction | Exit::Monitor { .. } | Exit::Mwait { .. } => {
                events::invalid_opcode(&mut self.vcpu);
            }
            Exit::Io(_) | Exit::Exception { .. } | Exit::WriteCr4 { .. } => {}
            Exit::Shutdown => self.shut_down(),
            Exit::Failed(code) => self.failed(code),
        }
    }

    /// The processor will not run the parent on: the instruction is refused, or the hypervisor is at fault.
    fn failed(&mut self, code: u64) {
        /// An instruction that is refused is not the next one at the same place so often, unless nothing runs at all.
        const ENOUGH: u32 = 10_000;
        let rip = self.vcpu.get(Reg::Rip);
        let (place, times) = self.refused;
        self.refused = (rip, if place == rip { times + 1 } else { 0 });
        let space = self.hv.parent.space.read();
        let refused = events::refuse_control_register(&mut self.vcpu, space.slat(), PHYSICAL_BITS);
        if !refused || self.refused.1 > ENOUGH {
            panic!(
                "processor {} cannot run the parent: entry refused with code {code:#x} at RIP {rip:#x}",
                self.lp.index,
            );
        }
    }

    /// A fault while a double fault was being delivered: a processor without a hypervisor would reset the machine.
    fn shut_down(&self) -> ! {
        let [rip, cr2, cr3] = [Reg::Rip, Reg::Cr2, Reg::Cr3].map(|register| self.vcpu.get(register));
        let rsp = self.vcpu.gprs()[gpr::RSP];
        self.hv.machine.reset(format_args!(
            "a triple fault of the parent on processor {} at RIP {rip:#x}, RSP {rsp:#x}, CR2 {cr2:#x}, CR3 {cr3:#x}",
            self.lp.index,
        ))
    }

    /// Passes over the exiting instruction.
    #[inline]
    pub(super) fn skip(&mut self, length: Option<u8>, what: Exiting) {
        let length = match length {
            Some(length) => length,
            None => self.length_of(what),
        };
        events::skip(&mut self.vcpu, length);
    }

    #[inline(never)]
    fn length_of(&mut self, what: Exiting) -> u8 {
        let place = Place::new(self.vcpu.get(Reg::Rip), self.vcpu.get(Reg::Cr3), what);
        let known = if Mode::of(&self.vcpu) == Mode::Bits64 { self.lengths.find(&place) } else { None };
        known.unwrap_or_else(|| {
            let space = self.hv.parent.space.read();
            let length = events::length_of(&self.vcpu, space.slat(), PHYSICAL_BITS, what);
            if Mode::of(&self.vcpu) == Mode::Bits64 {
                self.lengths.insert(place, length);
            }
            length
        })
    }

    fn cpuid(&mut self, length: Option<u8>) {
        let r = self.vcpu.gprs();
        let answer = cpuid::answer(&self.hv.machine, &self.vcpu, r[gpr::RAX] as u32, r[gpr::RCX] as u32);
        set_cpuid_result(&mut self.vcpu, answer);
        self.skip(length, Exiting::Cpuid);
    }

    fn hypercall(&mut self, processor: &mut M::Processor, length: Option<u8>) {
        // Without the interface being set up, or from user mode, the instruction does not exist.
        if !self.hv.parent.may_call() || self.vcpu.cpl() != 0 {
            return events::invalid_opcode(&mut self.vcpu);
        }
        // Passed over first: the call may run a child for long, and the parent's state is complete then.
        self.skip(length, Exiting::Hypercall);
        hypercall::from_parent(self, processor);
    }

    fn nmi(&mut self) {
        if self.vcpu.pending_event().is_some() || self.vcpu.nmi_masked() {
            self.vcpu.request_nmi_window(true);
        } else {
            self.vcpu.request_nmi_window(false);
            self.vcpu.inject(Some(Event::Nmi));
        }
    }

    fn xsetbv(&mut self, value: u64, length: Option<u8>) {
        let index = self.vcpu.gprs()[gpr::RCX] as u32;
        if index != 0 || self.vcpu.cpl() != 0 || !xstate::is_valid_xcr0(&self.hv.machine, value) {
            return events::general_protection(&mut self.vcpu);
        }
        self.vcpu.set(Reg::Xcr0, value);
        self.skip(length, Exiting::Xsetbv);
    }

    /// Does what other processors asked for.
    fn take_messages(&mut self, processor: &mut M::Processor) {
        self.expire_timers();
        if let Some(Message::Init) = self.lp.mailbox.take() {
            self.vcpu.unload(processor);
            self.wait_for_startup(processor);
            self.vcpu.load(processor);
        }
    }

    /// Resets the virtual processor and waits for its start-up message.
    pub(crate) fn wait_for_startup(&mut self, processor: &mut M::Processor) {
        self.lp.started.store(false, SeqCst);
        let signature = self.hv.machine.cpuid(1, 0)[0];
        power_on::init(&mut self.vcpu, signature);
        self.lp.synic.lock().reset();
        self.stimers = SyntheticTimers::new();
        let configuration = timer_configuration(&self.hv.machine, self.lp.index);
        self.apic = LocalApic::timer_only(configuration, &self.lp.timer_apic);
        self.assist_enabled = false;
        self.deadlines_changed();
        self.armed = None;
        processor.arm_timer(None, TimerInterrupt::Hypervisor);
        loop {
            match self.lp.mailbox.take() {
                Some(Message::Startup(page)) => {
                    power_on::start_up(&mut self.vcpu, page);
                    return self.started();
                }
                Some(Message::Init) => {}
                None => processor.wait_for_kick(),
            }
        }
    }

    /// The parent has started its processor here. Once it has started all of them its interrupt commands need not be looked at.
    fn started(&self) {
        self.lp.started.store(true, SeqCst);
        if self.hv.processors.iter().all(|lp| lp.started.load(SeqCst)) {
            self.hv.machine.intercept_icr(false);
        }
    }

    /// One of the parent's own timers was set. It may have been set to the time that it had: if the processor's timer fired a
    /// little early, by another clock, it has to fire again.
    pub(super) fn deadlines_changed(&mut self) {
        self.timer_changed = true;
        self.deadlines = None;
        self.armed = None;
    }

    #[inline]
    fn deadlines(&mut self) -> Deadlines {
        match self.deadlines {
            Some(known) => known,
            None => self.find_deadlines(),
        }
    }

    #[cold]
    fn find_deadlines(&mut self) -> Deadlines {
        let stimer = self.stimers.deadline().and_then(|time| self.hv.parent.clock.tsc_at(time));
        let tsc = self.hv.machine.tsc();
        let context = apic::Context { incoming: &self.lp.timer_apic, tsc, tsc_offset: 0, cr8: 0 };
        let local = self.apic.timer_deadline(&context);
        let direct = [stimer.zip(self.stimers.sole_direct()), local.zip(self.apic.timer_vector())];
        let first = [stimer, local].into_iter().flatten().min().unwrap_or(u64::MAX);
        *self.deadlines.insert(Deadlines { first, own: direct.into_iter().flatten().min() })
    }

    /// Lets the parent's own timers expire that are due, and delivers the interrupts of its synthetic timers and of its
    /// local APIC's, each unless the parent is about to set it anew. The processor's timer, armed for it, may have delivered
    /// one already: it is the same pending interrupt then, or one too many, for which a parent has to be prepared.
    pub(super) fn expire_own(&mut self, synthetic: bool, local: bool) {
        let now = self.hv.machine.tsc();
        self.deadlines = None;
        let expired = self.stimers.expire(self.hv.parent.clock.reference_time(now));
        let stimer = expired.iter().find_map(|expiration| match expiration {
            Expiration::Direct { vector } => Some(*vector),
            Expiration::Message { .. } => None,
        });
        let context = apic::Context { incoming: &self.lp.timer_apic, tsc: now, tsc_offset: 0, cr8: 0 };
        let expired = self.apic.timer_expired(&context);
        for vector in [stimer.filter(|_| synthetic), expired.filter(|_| local)].into_iter().flatten() {
            self.hv.machine.interrupt_parent(self.lp.index, vector);
        }
    }

    /// Arms the processor's timer for the parent. Its own deadline fires into it without an exit; one of the blocked virtual
    /// processors fires early into the same handler, which then sets its timer anew and so exits. A parent that
    /// expects no timer interrupt is asked to exit when it idles instead.
    pub(crate) fn arm_timer(&mut self, processor: &mut M::Processor) {
        self.timer_changed = false;
        let now = self.hv.machine.tsc();
        let mut deadlines = self.deadlines();
        if now >= deadlines.first {
            self.expire_own(true, true);
            deadlines = self.deadlines();
        }
        let own = deadlines.own;
        let others = self.lp.timers.lock().next();
        self.vcpu.intercept_halt(own.is_none() && others.is_some());
        let wanted = match own {
            Some((deadline, vector)) => {
                let earliest = others.map_or(deadline, |other| other.min(deadline));
                (Some(earliest), TimerInterrupt::Parent(vector))
            }
            None => (None, TimerInterrupt::Hypervisor),
        };
        self.arm(processor, wanted, now);
    }

    /// Arms the processor's timer, unless it is armed so and has not fired until `now` (TSC): what it does after that is pending.
    pub(crate) fn arm(
        &mut self,
        processor: &mut M::Processor,
        wanted: (Option<u64>, TimerInterrupt),
        now: u64,
    ) {
        let (deadline, interrupt) = wanted;
        let waits = deadline.is_none_or(|deadline| deadline > now);
        if waits && self.armed == Some(wanted) {
            return;
        }
        self.armed = Some(wanted);
        processor.arm_timer(deadline, interrupt);
    }

    /// The timer has fired for the hypervisor: what it was armed with counts no longer.
    pub(crate) fn armed_elsewhere(&mut self) {
        self.armed = None;
    }

    /// A physical NMI came while a child ran; the parent takes it when it runs again.
    pub(crate) fn note_nmi(&mut self) {
        self.nmi_noted = true;
    }

    /// A machine check came while a child ran. The machine is the parent's, and so is the report.
    pub(crate) fn note_machine_check(&mut self) {
        self.machine_check_noted = true;
    }

    /// When the parent wants its processor back for a timer of its own (TSC).
    pub(crate) fn own_deadline(&mut self) -> Option<(u64, u8)> {
        self.deadlines().own
    }

    /// The parent has nothing to do, and the hypervisor has timers to watch: waits in its place.
    fn idle(&mut self, processor: &mut M::Processor, length: Option<u8>) {
        if self.vcpu.get(Reg::Rflags) & events::RFLAGS_IF == 0 {
            return self.retire(processor);
        }
        self.skip(length, Exiting::Halt);
        self.armed = None;
        loop {
            self.expire_timers();
            let next = self.lp.timers.lock().next();
            processor.arm_timer(next, TimerInterrupt::Hypervisor);
            let waited = processor.wait_for_interrupt();
            if waited.interrupts.kick {
                self.take_messages(processor);
                break;
            }
            if waited.nmi {
                self.nmi();
                break;
            }
            if let Some(vector) = waited.vector {
                self.vcpu.inject(Some(Event::Interrupt(vector)));
                break;
            }
        }
        self.returned();
    }

    /// The parent takes this processor out of use (HLT with interrupts off): the boot processor watches from now on.
    fn retire(&mut self, processor: &mut M::Processor) {
        self.vcpu.intercept_halt(false);
        let now = self.hv.machine.tsc();
        while let Some(due) = self.lp.timers.lock().take_due(u64::MAX) {
            if let Due::One(who) = due {
                self.hv.processors[0].watch(now, who);
            }
        }
        self.armed = None;
        processor.arm_timer(None, TimerInterrupt::Hypervisor);
        self.hv.machine.kick(0);
    }

    /// Wakes the virtual processors whose timers are due.
    #[inline]
    pub(crate) fn expire_timers(&mut self) {
        if !self.lp.timers.lock().is_empty() {
            self.expire_watched();
        }
    }

    #[inline(never)]
    fn expire_watched(&mut self) {
        let now = self.hv.machine.tsc();
        loop {
            let due = self.lp.timers.lock().take_due(now);
            match due {
                None => return,
                Some(Due::One(who)) => self.wake_watched(who),
                Some(Due::Anyone) => self.wake_all_blocked_here(),
            }
            self.timer_changed = true;
        }
    }

    fn wake_watched(&self, who: Watched) {
        if let Some(child) = self.hv.child_in(who.slot) {
            child.timer_due(self.hv, u32::from(who.vp));
        }
    }

    fn wake_all_blocked_here(&self) {
        for child in self.hv.children() {
            child.all_timers_due(self.hv, self.lp.index);
        }
    }

    /// Sends a start message that the parent wrote into its interrupt command register.
    pub(super) fn send_startup(&self, target: startup::Icr) {
        let machine = &self.hv.machine;
        for lp in self.hv.processors {
            let message = match target {
                startup::Icr::One(id, message) if machine.apic_id(lp.index) == id => message,
                startup::Icr::Others(message) if lp.index != self.lp.index => message,
                _ => continue,
            };
            startup::send(machine, &lp.mailbox, lp.index, message);
        }
    }
}

/// Writes CPUID's answer into RAX, RBX, RCX, RDX.
pub(crate) fn set_cpuid_result<V: Vcpu>(vcpu: &mut V, answer: [u32; 4]) {
    let r = vcpu.gprs_mut();
    r[gpr::RAX] = u64::from(answer[0]);
    r[gpr::RBX] = u64::from(answer[1]);
    r[gpr::RCX] = u64::from(answer[2]);
    r[gpr::RDX] = u64::from(answer[3]);
}

/// The local APIC whose timer stands in for the physical one.
fn timer_configuration<M: Machine>(machine: &M, lp: usize) -> apic::Configuration {
    apic::Configuration {
        id: machine.apic_id(lp),
        bootstrap: lp == 0,
        x2apic: true,
        physical_bits: 52,
        rates: apic::Rates { tsc: machine.tsc_frequency(), apic: machine.apic_frequency() },
    }
}
