//! Running a virtual processor: from the parent's `HvCallDispatchVp` until the parent is needed, for whatever reason.

mod messages;

use super::{
    Activity, Child, Inner, Stage, Vp,
    cpuid::{self, Cr4},
    cr4,
    intercept::{self, MemoryAccess, Reporter},
    msr::Outcome,
    pages, startup,
    vp::NO_NOTIFICATION,
};
use crate::{
    apic::{Delivery, Destination, Effect, Ipi},
    events,
    hypercall::{self, Call},
    hypervisor::Hypervisor,
    instruction::{self, ControlWrite, Exiting, Mode, Place},
    machine::{
        Access, Event, Exit, Interrupts, IoExit, Machine, Mapping, Processor, Reg, TimerInterrupt, Vcpu, gpr,
    },
    parent::{ParentVp, Watched},
    power_on, xstate,
};
use core::sync::atomic::Ordering::Relaxed;
use parterre_abi::{
    hypercall::{DispatchVpFlags, DispatchVpInput, DispatchVpOutput, VpDispatchEvent, VpDispatchState},
    message::{Message, MessageType},
    msr,
    registers::DeliverabilityNotificationsRegister,
    status::{HvResult, HvStatus},
};

/// Why the parent gets its processor back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The parent has something to do; the virtual processor could go on.
    Ready,
    /// A message lies in the intercept page.
    Intercept,
    /// There is nothing to do until something wakes it.
    Blocked,
    /// The parent has suspended it.
    Suspended,
}

impl End {
    fn output(self) -> DispatchVpOutput {
        let (dispatch_state, dispatch_event) = match self {
            Self::Ready => (VpDispatchState::READY, VpDispatchEvent(0)),
            Self::Intercept => (VpDispatchState::READY, VpDispatchEvent::INTERCEPT),
            Self::Blocked => (VpDispatchState::BLOCKED, VpDispatchEvent(0)),
            Self::Suspended => (VpDispatchState::BLOCKED, VpDispatchEvent::SUSPEND),
        };
        DispatchVpOutput { dispatch_state, dispatch_event }
    }
}

impl<M: Machine> ParentVp<M> {
    /// `HvCallDispatchVp`.
    pub(crate) fn dispatch(&mut self, processor: &mut M::Processor, call: &Call<'_>) -> HvResult<()> {
        call.expect_simple()?;
        let input: DispatchVpInput = call.header()?;
        if !DispatchVpFlags::all().contains(input.flags) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let hv = self.hv;
        let child = hv.child(input.partition_id)?;
        let vp = child.vp(input.vp_index.0)?;
        // Someone who looks at its state will be done soon, but one that runs elsewhere cannot run here.
        let mut inner = loop {
            match vp.try_lock() {
                Some(inner) => break inner,
                None if vp.schedule.is_running() => return Err(HvStatus::INVALID_VP_STATE),
                None => hv.machine.relax(),
            }
        };
        let watched = Watched { slot: child.slot, vp: vp.index as u16 };
        self.lp.unwatch(watched);
        vp.schedule.begin(self.lp.index);
        // Who finalizes the partition sets the stage first and looks for running processors then.
        if child.stage() != Stage::Active {
            vp.schedule.end();
            return Err(HvStatus::INVALID_PARTITION_STATE);
        }
        let mut run = Run {
            hv,
            child: &child,
            vp: &vp,
            inner: &mut inner,
            lp: self.lp.index,
            watched,
            timers_due: true,
            waiting: None,
            messages_due: true,
            deadlines_changed: true,
        };
        let end = run.dispatched(input.flags, self, processor);
        call.reply(&end.output())
    }
}

/// Whether a deadline of a timer that this processor watches may be another one after this exit. Where a register of a timer
/// was written, timers are looked at anyway.
fn may_change_deadlines(exit: Exit) -> bool {
    let changes_none = matches!(
        exit,
        Exit::Cpuid { .. }
            | Exit::ReadMsr { .. }
            | Exit::WriteMsr { .. }
            | Exit::Hypercall { .. }
            | Exit::Xsetbv { .. }
            | Exit::Hlt { .. }
            | Exit::InterruptWindow
    );
    !changes_none
}

/// One dispatch.
struct Run<'a, M: Machine> {
    hv: &'a Hypervisor<M>,
    child: &'a Child<M>,
    vp: &'a Vp<M>,
    inner: &'a mut Inner<M>,
    lp: usize,
    watched: Watched,
    /// Timers have to be looked at.
    timers_due: bool,
    /// An interrupt that is requested and cannot be taken yet.
    waiting: Option<u8>,
    /// Messages that wait may find their slots free.
    messages_due: bool,
    /// The processor's timer has to be armed: a deadline may have changed since it was.
    deadlines_changed: bool,
}

impl<M: Machine> Run<'_, M> {
    fn dispatched(
        &mut self,
        flags: DispatchVpFlags,
        parent: &mut ParentVp<M>,
        processor: &mut M::Processor,
    ) -> End {
        self.inner.counts.dispatches += 1;
        if flags.contains(DispatchVpFlags::CLEAR_INTERCEPT_SUSPEND) && self.inner.intercept_suspend {
            self.inner.intercept_suspend = false;
            pages::adopt_registers(&self.hv.machine, &self.vp.pages.lock(), self.inner);
        }
        if flags.contains(DispatchVpFlags::SCAN_INTERRUPT_INJECTION) {
            self.take_posted_vectors();
        }
        let changes = self.child.policy_changes.load(Relaxed);
        if self.inner.policy_seen != changes {
            self.inner.policy_seen = changes;
            self.follow_policy();
        }
        let end = match () {
            () if self.inner.explicit_suspend => {
                self.vp.schedule.suspend();
                return End::Suspended;
            }
            () if self.inner.intercept_suspend => End::Intercept,
            () => self.in_place_of(parent, processor),
        };
        self.vp.pages.lock().write_counts(self.hv, &self.inner.counts);
        if end != End::Blocked {
            self.vp.schedule.end();
        }
        end
    }

    /// Has exit what the guest may not do by what it is told of its processor.
    #[cold]
    fn follow_policy(&mut self) {
        let Cr4 { existing, allowed } = cpuid::cr4(&self.hv.machine, &self.child.policy.read());
        self.inner.vcpu.refuse_cr4(existing & !allowed);
    }

    /// Runs with this virtual processor's state in the machine instead of the parent's.
    fn in_place_of(&mut self, parent: &mut ParentVp<M>, processor: &mut M::Processor) -> End {
        let begin = self.hv.machine.tsc();
        self.inner.counts.since = Some(begin);
        parent.vcpu.unload(processor);
        self.inner.vcpu.load(processor);
        let end = loop {
            if let Some(end) = self.prepare() {
                break end;
            }
            if core::mem::take(&mut self.deadlines_changed) {
                self.arm_timer(parent, processor);
            }
            if let Some(end) = self.enter(parent, processor) {
                break end;
            }
        };
        self.inner.vcpu.unload(processor);
        parent.vcpu.load(processor);
        parent.expire_timers();
        parent.returned();
        self.inner.counts.since = None;
        self.inner.counts.run_time += self.hv.machine.tsc().wrapping_sub(begin);
        end
    }

    /// Sees to what has happened since the last exit. Says why the processor cannot enter, if it cannot.
    #[inline]
    fn prepare(&mut self) -> Option<End> {
        self.look_at_timers();
        if self.is_undisturbed() { None } else { self.see_to_events() }
    }

    #[inline]
    fn look_at_timers(&mut self) {
        let noted = self.vp.schedule.has_timer() && self.vp.schedule.take_timer();
        if noted || self.timers_due {
            self.expire_timers();
        }
    }

    /// Whether nothing has happened that anything follows from, besides timers.
    #[inline]
    fn is_undisturbed(&self) -> bool {
        let messages = self.messages_due && self.inner.timers.has_undelivered();
        !messages
            && self.inner.activity == Activity::Active
            && self.vp.incoming.is_quiet()
            && self.inner.notify_deliverable == NO_NOTIFICATION
            && !self.vp.schedule.is_awaited()
            && self.child.stage() == Stage::Active
    }

    fn see_to_events(&mut self) -> Option<End> {
        loop {
            if self.vp.schedule.is_awaited() || self.child.stage() != Stage::Active {
                return Some(End::Ready);
            }
            self.look_at_timers();
            self.deliver_messages();
            self.take_startup();
            if self.inner.activity != Activity::WaitForStartup {
                self.deliver_interrupts();
                if let Some(end) = self.notify_deliverable().or_else(|| self.notify_free_slots()) {
                    return Some(end);
                }
            }
            if self.inner.activity == Activity::Idle && self.is_requested() {
                self.inner.activity = Activity::Active;
            }
            if self.inner.activity == Activity::Active {
                return None;
            }
            if self.block() {
                return Some(End::Blocked);
            }
        }
    }

    /// Blocks, unless something has come meanwhile.
    fn block(&mut self) -> bool {
        self.vp.pages.lock().set_blocked(&self.hv.machine);
        self.vp.schedule.block();
        if self.has_work() && self.vp.schedule.unblock(self.lp) {
            self.vp.pages.lock().clear_blocked(&self.hv.machine);
            return false;
        }
        if let Some(deadline) = self.deadline() {
            self.hv.processors[self.lp].watch(deadline, self.watched);
        }
        true
    }

    fn has_work(&self) -> bool {
        let incoming = &self.vp.incoming;
        let startup = incoming.startup_pending();
        let interrupted = match self.inner.activity {
            Activity::Halted => self.interrupts_enabled() && self.interrupt().is_some(),
            Activity::Idle => self.is_requested(),
            _ => false,
        };
        let waits = matches!(self.inner.activity, Activity::Halted | Activity::Idle);
        let schedule = &self.vp.schedule;
        startup
            || schedule.has_timer()
            || schedule.is_awaited()
            || waits && incoming.nmi_pending()
            || interrupted
    }

    /// Whether an interrupt has come, whatever holds it up: that ends the guest's idling (TLFS "Virtual Processor Idle Sleep
    /// State"), which a handler of the same or a higher priority may have begun.
    fn is_requested(&self) -> bool {
        self.ext_int().is_some() || self.vp.incoming.highest_request().is_some()
    }

    fn interrupts_enabled(&self) -> bool {
        self.inner.vcpu.get(Reg::Rflags) & events::RFLAGS_IF != 0
    }

    /// The interrupt that is next, of a legacy controller or of the local APIC.
    fn interrupt(&self) -> Option<u8> {
        self.ext_int().or_else(|| self.pending_vector())
    }

    fn pending_vector(&self) -> Option<u8> {
        self.inner.apic.highest_pending(&self.vp.incoming, self.inner.vcpu.get(Reg::Cr8) as u8)
    }

    /// INIT, start-up messages, and starts by hypercall.
    fn take_startup(&mut self) {
        let incoming = &self.vp.incoming;
        if !incoming.startup_pending() {
            return;
        }
        if incoming.take_init() {
            let signature = self.hv.machine.cpuid(1, 0)[0];
            power_on::init(&mut self.inner.vcpu, signature);
            self.inner.require_eoi(&self.hv.machine);
            self.inner.apic.init(incoming);
            let bootstrap = self.inner.apic.base().is_bootstrap();
            self.inner.activity = if bootstrap { Activity::Active } else { Activity::WaitForStartup };
            self.vp.follow(self.inner.activity);
        }
        if let Some(page) = incoming.take_sipi()
            && self.inner.activity == Activity::WaitForStartup
        {
            power_on::start_up(&mut self.inner.vcpu, page);
            self.inner.activity = Activity::Active;
            self.vp.follow(self.inner.activity);
        }
        if let Some(context) = self.vp.startup.take(incoming)
            && self.inner.activity == Activity::WaitForStartup
        {
            let signature = self.hv.machine.cpuid(1, 0)[0];
            startup::begin(&mut self.inner.vcpu, signature, &context);
            self.inner.activity = Activity::Active;
        }
    }

    /// Injects what can be taken now, and asks for an exit when the rest can be.
    fn deliver_interrupts(&mut self) {
        let incoming = &self.vp.incoming;
        if self.inner.assist.is_offered() && incoming.highest_request().is_some() {
            self.inner.require_eoi(&self.hv.machine);
        }
        let free = self.inner.vcpu.pending_event().is_none() && !self.inner.vcpu.interrupt_shadow();
        if incoming.nmi_pending() {
            if free && !self.inner.vcpu.nmi_masked() && incoming.take_nmi() {
                self.inner.activity = Activity::Active;
                self.inner.vcpu.inject(Some(Event::Nmi));
                self.inner.vcpu.request_nmi_window(incoming.nmi_pending());
                return;
            }
            self.inner.vcpu.request_nmi_window(true);
        }
        let enabled = self.interrupts_enabled();
        if free && enabled {
            self.inject_interrupt();
        }
        // What is left waits for RFLAGS.IF, for the shadow to end, for a lower task priority, or for an EOI (which exits).
        self.waiting = self.inner.apic.highest_pending(&self.vp.incoming, 0);
        if self.waiting.is_none() {
            self.inner.vcpu.request_interrupt_window(self.ext_int());
        }
    }

    /// Has the interrupt that waits delivered as soon as the guest can take it. Meanwhile it is not requested, so that another
    /// one of its vector is news.
    fn offer_interrupt(&mut self) -> Option<u8> {
        let vector = self.waiting.take().filter(|vector| self.vp.incoming.take_request(*vector))?;
        self.inner.vcpu.offer_interrupt(vector);
        if !self.vp.synic.is_auto_eoi(vector) {
            self.inner.offer_no_eoi(&self.hv.machine, self.vp, vector);
        }
        Some(vector)
    }

    /// What has become of the interrupt that was offered.
    fn end_offer(&mut self, vector: u8) {
        if !self.inner.vcpu.end_offer() {
            self.inner.require_eoi(&self.hv.machine);
            self.vp.incoming.give_back(vector);
        } else if !self.vp.synic.is_auto_eoi(vector) {
            self.inner.apic.begin_service(vector);
        }
    }

    fn inject_interrupt(&mut self) {
        let incoming = &self.vp.incoming;
        let vector = if let Some(vector) = self.ext_int() {
            incoming.take_ext_int();
            vector
        } else if let Some(vector) = self.pending_vector() {
            let auto_eoi = self.vp.synic.is_auto_eoi(vector);
            self.inner.apic.acknowledge(incoming, vector, auto_eoi);
            if !auto_eoi {
                self.inner.offer_no_eoi(&self.hv.machine, self.vp, vector);
            }
            vector
        } else {
            return;
        };
        self.inner.activity = Activity::Active;
        self.inner.vcpu.inject(Some(Event::Interrupt(vector)));
    }

    /// An interrupt of a legacy controller, which goes past the local APIC.
    fn ext_int(&self) -> Option<u8> {
        self.vp.incoming.ext_int()
    }

    /// Tells the parent that an interrupt can be taken now, if it wants to know.
    fn notify_deliverable(&mut self) -> Option<End> {
        let wanted = self.inner.notification()?;
        let vcpu = &self.inner.vcpu;
        let free = vcpu.pending_event().is_none() && !vcpu.interrupt_shadow();
        let interrupt = wanted.interrupt_notification()
            && self.interrupts_enabled()
            && (wanted.interrupt_priority() == 0 || wanted.interrupt_priority() > vcpu.get(Reg::Cr8) as u8);
        let nmi = wanted.nmi_notification() && !vcpu.nmi_masked();
        if !free || !(interrupt || nmi) {
            if wanted.interrupt_notification() {
                // Priority 0 is an interrupt of a legacy controller, which task priority does not hold up. What the local APIC
                // has waiting may be more urgent.
                let class = if wanted.interrupt_priority() == 0 { 0xF } else { wanted.interrupt_priority() };
                let waiting = self.inner.apic.highest_pending(&self.vp.incoming, 0).unwrap_or(0);
                self.waiting = None;
                self.inner.vcpu.request_interrupt_window(Some(waiting.max(class << 4 | 0xF)));
            }
            return None;
        }
        const INTERRUPT: u32 = 0;
        const NMI: u32 = 2;
        let sints = DeliverabilityNotificationsRegister::new().with_sints(wanted.sints());
        self.inner.notify_deliverable = sints.into();
        Some(self.report(|reporter| reporter.deliverable(if nmi { NMI } else { INTERRUPT })))
    }

    fn take_posted_vectors(&mut self) {
        let [count, vectors @ ..] = self.vp.pages.lock().take_vectors(&self.hv.machine);
        for vector in vectors.into_iter().take(usize::from(count)) {
            self.vp.incoming.post_fixed(vector, false);
        }
    }

    fn now(&self) -> u64 {
        self.child.clock.read().effective(self.hv.machine.tsc())
    }

    /// When a timer of it is due next (TSC).
    fn deadline(&self) -> Option<u64> {
        let local = if self.inner.apic.timer_runs() {
            self.inner.apic.timer_deadline(&self.inner.context(self.vp, self.now()))
        } else {
            None
        };
        let synthetic = self.inner.timers.deadline().and_then(|time| self.child.clock.read().tsc_at(time));
        [local, synthetic].into_iter().flatten().min()
    }

    /// Arms the processor's timer for whatever is first: a timer of this virtual processor, of one that is blocked here, or
    /// of the parent.
    fn arm_timer(&self, parent: &mut ParentVp<M>, processor: &mut M::Processor) {
        let own = self.deadline();
        let others = parent.lp.next_watched();
        let hypervisor = [own, others].into_iter().flatten().min();
        let wanted = match (parent.own_deadline(), hypervisor) {
            (Some((deadline, vector)), hypervisor) if hypervisor.is_none_or(|other| deadline <= other) => {
                (Some(deadline), TimerInterrupt::Parent(vector))
            }
            (_, hypervisor) => (hypervisor, TimerInterrupt::Hypervisor),
        };
        parent.arm(processor, wanted, self.hv.machine.tsc());
    }

    /// Enters guest mode once.
    fn enter(&mut self, parent: &mut ParentVp<M>, processor: &mut M::Processor) -> Option<End> {
        let offered = if self.waiting.is_some() { self.offer_interrupt() } else { None };
        let Inner { vcpu, translations_seen, .. } = &mut *self.inner;
        let generation = || self.child.generation_of(self.vp);
        self.vp.presence.enter(generation, translations_seen, || vcpu.flush_tlb());
        let exit = vcpu.run(processor);
        self.vp.presence.leave();
        if let Some(vector) = offered {
            self.end_offer(vector);
        }
        self.inner.look_for_eoi(&self.hv.machine, self.vp);
        self.handle(exit, parent, processor)
    }

    fn handle(&mut self, exit: Exit, parent: &mut ParentVp<M>, processor: &mut M::Processor) -> Option<End> {
        self.deadlines_changed = may_change_deadlines(exit);
        let counts = &mut self.inner.counts;
        match exit {
            Exit::Interrupt => return self.interrupted(parent, processor.take_interrupts()),
            Exit::Cpuid { length } => self.cpuid(length),
            Exit::Hlt { length } => self.halt(length),
            Exit::ReadMsr { msr, length } => return self.read_msr(msr, length),
            Exit::WriteMsr { msr, value, length } => return self.write_msr(msr, value, length),
            Exit::Hypercall { length } => return self.hypercall(length),
            Exit::Io(io) => return Some(self.io(&io)),
            Exit::SlatFault { gpa, gva, access, .. } => return self.slat_fault(gpa, gva, access),
            Exit::Kick => {}
            Exit::InterruptWindow => counts.windows += 1,
            Exit::NmiWindow => {
                counts.windows += 1;
                self.inner.vcpu.request_nmi_window(false);
            }
            rare => {
                counts.others += 1;
                return self.handle_rare(rare, parent);
            }
        }
        None
    }

    /// What seldom ends a run.
    fn handle_rare(&mut self, exit: Exit, parent: &mut ParentVp<M>) -> Option<End> {
        match exit {
            Exit::Xsetbv { value, length } => self.xsetbv(value, length),
            Exit::WriteCr4 { register, length } => self.write_cr4(register, length),
            Exit::CacheInvalidate { length } => self.skip(length, Exiting::CacheInvalidate),
            Exit::ReadPerformanceCounter => events::general_protection(&mut self.inner.vcpu),
            Exit::InvalidInstruction | Exit::Monitor { .. } | Exit::Mwait { .. } => {
                events::invalid_opcode(&mut self.inner.vcpu);
            }
            Exit::Exception { vector: events::vector::MACHINE_CHECK, .. } => {
                parent.note_machine_check();
                return Some(End::Ready);
            }
            Exit::Exception { vector, error, .. } => events::raise(&mut self.inner.vcpu, vector, error),
            Exit::Nmi => {
                parent.note_nmi();
                return Some(End::Ready);
            }
            // The parent's interrupts come first: were it something else, the virtual processor would fail again and again.
            Exit::Failed(_) if self.refused_control_register() => return Some(End::Ready),
            Exit::Shutdown | Exit::Failed(_) => return Some(self.unrecoverable()),
            // A pause, and what is handled above.
            _ => {}
        }
        None
    }

    fn interrupted(&mut self, parent: &mut ParentVp<M>, interrupts: Interrupts) -> Option<End> {
        self.inner.counts.interrupts += 1;
        // The timer may have fired a little before its deadline, by another clock: it is armed again in any case.
        parent.armed_elsewhere();
        if interrupts.timer {
            self.timers_due = true;
            parent.expire_timers();
        }
        // The kick may have been the parent's. It is repeated for it, since this one has ended the child's run.
        let message = interrupts.kick && parent.lp.has_message();
        if message {
            self.hv.machine.kick(self.lp);
        }
        (interrupts.parent || message).then_some(End::Ready)
    }

    #[inline]
    fn skip(&mut self, length: Option<u8>, what: Exiting) {
        let length = match length {
            Some(length) => length,
            None => self.length_of(what),
        };
        events::skip(&mut self.inner.vcpu, length);
    }

    #[inline(never)]
    fn length_of(&mut self, what: Exiting) -> u8 {
        let vcpu = &self.inner.vcpu;
        if Mode::of(vcpu) != Mode::Bits64 {
            return self.decoded_length(what);
        }
        let place = Place::new(vcpu.get(Reg::Rip), vcpu.get(Reg::Cr3), what);
        if let Some(length) = self.inner.lengths.find(&place) {
            return length;
        }
        let length = self.decoded_length(what);
        self.inner.lengths.insert(place, length);
        length
    }

    fn decoded_length(&self, what: Exiting) -> u8 {
        let bits = self.child.policy.read().physical_bits;
        let vcpu = &self.inner.vcpu;
        self.child.read_space(|space| events::length_of(vcpu, space.slat(), bits, what)).unwrap_or(1)
    }

    fn refused_control_register(&mut self) -> bool {
        let bits = self.child.policy.read().physical_bits;
        let vcpu = &mut self.inner.vcpu;
        self.child
            .read_space(|space| events::refuse_control_register(vcpu, space.slat(), bits))
            .unwrap_or(false)
    }

    fn instruction_bytes(&self) -> Option<crate::walk::Instruction> {
        let bits = self.child.policy.read().physical_bits;
        let vcpu = &self.inner.vcpu;
        self.child.read_space(|space| intercept::instruction_bytes(vcpu, space.slat(), bits)).flatten()
    }

    fn cpuid(&mut self, length: Option<u8>) {
        self.inner.counts.cpuids += 1;
        let r = self.inner.vcpu.gprs();
        let (eax, ecx) = (r[gpr::RAX] as u32, r[gpr::RCX] as u32);
        let answer = cpuid::answer(self.hv, self.child, self.vp.index, &self.inner.vcpu, eax, ecx);
        crate::parent::set_cpuid_result(&mut self.inner.vcpu, answer);
        self.skip(length, Exiting::Cpuid);
    }

    fn halt(&mut self, length: Option<u8>) {
        self.inner.counts.halts += 1;
        self.skip(length, Exiting::Halt);
        self.inner.activity = Activity::Halted;
    }

    fn read_msr(&mut self, number: u32, length: Option<u8>) -> Option<End> {
        self.inner.counts.msrs += 1;
        if (msr::STIMER0_CONFIG..=msr::STIMER3_COUNT).contains(&number) {
            self.expire_timers();
        }
        match self.child.read_msr(self.hv, self.vp, self.inner, number) {
            Outcome::Done(value) => {
                let r = self.inner.vcpu.gprs_mut();
                r[gpr::RAX] = value & 0xFFFF_FFFF;
                r[gpr::RDX] = value >> 32;
                self.skip(length, Exiting::ReadMsr);
                if number == msr::GUEST_IDLE {
                    self.inner.activity = Activity::Idle;
                }
            }
            Outcome::Fault => events::general_protection(&mut self.inner.vcpu),
            Outcome::Intercept => return Some(self.msr_intercept(number, false, length)),
        }
        None
    }

    fn write_msr(&mut self, number: u32, value: u64, length: Option<u8>) -> Option<End> {
        self.inner.counts.msrs += 1;
        match self.child.write_msr(self.hv, self.vp, self.inner, number, value) {
            Outcome::Done(effect) => {
                self.skip(length, Exiting::WriteMsr);
                // TSC-deadline and synthetic timers tell no effect, nor does the SynIC.
                self.timers_due |= super::msr::sets_time(number);
                self.messages_due = true;
                return self.carry_out(effect);
            }
            Outcome::Fault => events::general_protection(&mut self.inner.vcpu),
            Outcome::Intercept => return Some(self.msr_intercept(number, true, length)),
        }
        None
    }

    fn msr_intercept(&mut self, number: u32, write: bool, length: Option<u8>) -> End {
        let what = if write { Exiting::WriteMsr } else { Exiting::ReadMsr };
        let length = length.unwrap_or_else(|| self.length_of(what));
        self.report(|reporter| reporter.msr(number, write, length))
    }

    /// Does what an access to the local APIC leads to.
    fn carry_out(&mut self, effect: Effect) -> Option<End> {
        if matches!(effect, Effect::EndOfInterrupt { .. }) {
            self.inner.require_eoi(&self.hv.machine);
            self.messages_due = true;
        }
        match effect {
            Effect::None => {}
            Effect::TimerChanged => self.timers_due = true,
            Effect::SetCr8(cr8) => self.inner.vcpu.set(Reg::Cr8, u64::from(cr8)),
            Effect::SendIpi(ipi) => self.child.send_ipi(self.hv, Some(self.vp.index), ipi),
            Effect::EndOfInterrupt { vector: Some(vector), level: true } => {
                if self.child.policy.read().reports_eoi() {
                    return Some(self.report(|reporter| reporter.end_of_interrupt(vector)));
                }
            }
            Effect::EndOfInterrupt { .. } => {}
        }
        None
    }

    fn io(&mut self, io: &IoExit) -> End {
        self.inner.counts.io += 1;
        let length = io.length.unwrap_or(0);
        // The parent needs the instruction only where the message does not say everything.
        let bytes = if io.string || length == 0 { self.instruction_bytes() } else { None };
        self.report(|reporter| reporter.io(io, length, bytes))
    }

    fn xsetbv(&mut self, value: u64, length: Option<u8>) {
        let index = self.inner.vcpu.gprs()[gpr::RCX] as u32;
        let supported = self.child.policy.read().xsave;
        let valid = index == 0 && xstate::is_valid_xcr0(&self.hv.machine, value) && value & !supported == 0;
        if !valid || self.inner.vcpu.cpl() != 0 {
            return events::general_protection(&mut self.inner.vcpu);
        }
        self.inner.vcpu.set(Reg::Xcr0, value);
        self.skip(length, Exiting::Xsetbv);
    }

    /// MOV to CR4, which only code at privilege level 0 comes to.
    #[cold]
    fn write_cr4(&mut self, register: Option<u8>, length: Option<u8>) {
        let vcpu = &self.inner.vcpu;
        let mode = Mode::of(vcpu);
        let decoded = || {
            let write = ControlWrite::decode(&self.instruction_bytes()?, mode)?;
            (write.control == 4).then_some((write.register, write.length))
        };
        // If there is another instruction now, it is executed.
        let Some((register, length)) = register.zip(length).or_else(decoded) else { return };
        let wide = vcpu.gprs()[usize::from(register & 0xF)];
        let value = if mode == Mode::Bits64 { wide } else { wide & u64::from(u32::MAX) };
        let [old, cr3, efer] = [Reg::Cr4, Reg::Cr3, Reg::Efer].map(|register| vcpu.get(register));
        let allowed = cpuid::cr4(&self.hv.machine, &self.child.policy.read()).allowed;
        if !cr4::can_write(value, &cr4::Context { old, cr3, efer, allowed }) {
            return events::general_protection(&mut self.inner.vcpu);
        }
        self.inner.vcpu.set(Reg::Cr4, value);
        if cr4::flushes(old, value) {
            self.inner.vcpu.flush_tlb();
        }
        events::skip(&mut self.inner.vcpu, length);
    }

    /// An access that the address space does not allow.
    fn slat_fault(&mut self, gpa: u64, gva: Option<u64>, access: Access) -> Option<End> {
        self.inner.counts.memory += 1;
        let bytes = self.instruction_bytes();
        if self.inner.apic.base().page() == Some(gpa & !0xFFF) {
            return self.apic_page(gpa, bytes);
        }
        if access.contains(Access::WRITE) && self.doorbell(gpa, bytes.as_ref()) {
            return None;
        }
        let known = match self.child.read_space(|space| space.get(gpa >> 12)) {
            // Someone has mapped it meanwhile.
            Some(Mapping::Memory { access: allowed, .. }) if allowed.contains(access) => return None,
            Some(Mapping::Memory { .. } | Mapping::NoAccess) => true,
            _ => false,
        };
        let access = MemoryAccess { gpa, gva, access, known };
        Some(self.report(|reporter| reporter.memory(&access, bytes)))
    }

    /// An access to the local APIC's page.
    fn apic_page(&mut self, gpa: u64, bytes: Option<crate::walk::Instruction>) -> Option<End> {
        let mode = Mode::of(&self.inner.vcpu);
        let decoded = bytes.as_ref().and_then(|bytes| instruction::MemoryAccess::decode(bytes, mode));
        let Some(decoded) = decoded else {
            let access = MemoryAccess { gpa, gva: None, access: Access::READ, known: false };
            return Some(self.report(|reporter| reporter.memory(&access, bytes)));
        };
        let offset = (gpa & 0xFFF) as u16;
        let context = self.inner.context(self.vp, self.now());
        let mut rflags = self.inner.vcpu.get(Reg::Rflags);
        let mut gprs = *self.inner.vcpu.gprs();
        let effect = self.inner.apic.access_page(offset, &decoded, &mut gprs, &mut rflags, &context);
        *self.inner.vcpu.gprs_mut() = gprs;
        self.inner.vcpu.set(Reg::Rflags, rflags);
        events::skip(&mut self.inner.vcpu, decoded.length());
        self.timers_due = true;
        self.carry_out(effect)
    }

    /// A write to a doorbell's address; `true` if it was one and is done.
    fn doorbell(&mut self, gpa: u64, bytes: Option<&crate::walk::Instruction>) -> bool {
        let Some(bytes) = bytes.filter(|_| self.hv.ports.lock().has_doorbell(self.child.id, gpa)) else {
            return false;
        };
        let Some(decoded) = instruction::MemoryAccess::decode(bytes, Mode::of(&self.inner.vcpu)) else {
            return false;
        };
        if decoded.reads() {
            return false;
        }
        let mut rflags = self.inner.vcpu.get(Reg::Rflags);
        let mut gprs = *self.inner.vcpu.gprs();
        let Some(value) = decoded.complete(0, &mut gprs, &mut rflags) else { return false };
        let Some(doorbell) = self.hv.ports.lock().ring(self.child.id, gpa, decoded.size(), value) else {
            return false;
        };
        hypercall::ring(self.hv, self.lp, doorbell);
        events::skip(&mut self.inner.vcpu, decoded.length());
        true
    }

    fn unrecoverable(&mut self) -> End {
        self.report(|reporter| reporter.plain(MessageType::UNRECOVERABLE_EXCEPTION))
    }

    /// Hands an intercept to the parent.
    fn report(&mut self, message: impl FnOnce(&mut Reporter<'_, M>) -> Message) -> End {
        let machine = &self.hv.machine;
        let mut reporter = Reporter::new(self.child.id, self.vp, self.inner);
        let message = message(&mut reporter);
        if reporter.send(machine, &message) {
            return End::Intercept;
        }
        // The parent cannot learn what is needed: the virtual processor stays where it is until it can.
        self.inner.explicit_suspend = true;
        End::Ready
    }
}

impl<M: Machine> Child<M> {
    /// Delivers an interrupt to the processors that it is for. `sender` is the APIC id of the processor that sent it.
    pub(crate) fn send_ipi(&self, hv: &Hypervisor<M>, sender: Option<u32>, ipi: Ipi) {
        if let Destination::Physical(id) = ipi.destination {
            // Its APIC id is its index.
            if let Ok(vp) = self.vp(id) {
                self.deliver(hv, sender, ipi, &vp);
            }
            return;
        }
        for vp in self.vps().filter(|vp| vp.incoming.matches(ipi.destination, sender)) {
            self.deliver(hv, sender, ipi, &vp);
            if ipi.delivery == Delivery::LowestPriority && vp.incoming.accepts_fixed() {
                return;
            }
        }
    }

    fn deliver(&self, hv: &Hypervisor<M>, sender: Option<u32>, ipi: Ipi, vp: &Vp<M>) {
        let news = match ipi.delivery {
            Delivery::Fixed | Delivery::LowestPriority => vp.incoming.post_fixed(ipi.vector, ipi.level),
            Delivery::Nmi => vp.incoming.post_nmi(),
            Delivery::Init => vp.incoming.post_init(),
            Delivery::StartUp => vp.incoming.post_sipi(ipi.vector),
        };
        if news && sender != Some(vp.index) {
            self.wake(hv, vp);
        }
    }
}
