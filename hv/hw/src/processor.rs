//! The logical processor that code runs on: its timer, its interrupts, and how others call it.
//!
//! How a processor is called out of a partition (a *kick*): the kicker raises [`Shared::kick`], then looks at the
//! processor's [`Mode`]. In a child, or waiting in the hypervisor, it gets an interrupt with [`HYPERVISOR_VECTOR`]; in the
//! parent, whose interrupts are its own, it gets an NMI; in hypervisor code it gets nothing, because it looks at the flag
//! before it enters a partition. At most one interrupt and one NMI of ours are on the way to a processor at any time
//! ([`Shared::interrupt_sent`], [`Shared::nmi_sent`]), so a foreign one can be told from them. A kicker that has seen a child
//! may be slow to send; the parent is not entered before it has ([`Shared::kickers`]): to the parent our vector would be an
//! interrupt that nobody acknowledges, and no other would come after it.
//!
//! Interrupts are taken in hypervisor code only inside [`LogicalProcessor::open_interrupts`]. While the hypervisor looks
//! for its own, the task priority is so high that only vectors from 0xf0 on come, and of those the highest, ours, first.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering::SeqCst};

use parterre_core::machine::{self, Exit, Interrupts, TimerInterrupt, Waited};

use crate::apic::{self, Timer};
use crate::timer::{self, Clock};
use crate::vmx::switch;

/// The hypervisor's own interrupt: its timer and its kicks. It is the highest vector, so it is taken before any other;
/// Linux gives it to nothing but the spurious interrupt, which never shows as in service.
pub const HYPERVISOR_VECTOR: u8 = 0xff;

/// Task priority in hypervisor code that takes interrupts: only vectors from 0xf0 on get through.
const OWN_PRIORITY: u8 = 0xe0;

/// What a processor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// It runs hypervisor code.
    Hypervisor = 0,
    /// It waits in hypervisor code, halted.
    Waiting = 1,
    /// It runs the parent.
    Parent = 2,
    /// It runs a child.
    Child = 3,
}

/// What other processors and interrupt handlers may touch of a processor.
#[derive(Debug)]
pub struct Shared {
    /// The local APIC's identifier.
    pub apic_id: u32,
    mode: AtomicU8,
    kick: AtomicBool,
    /// Processors that are in [`Shared::send_kick`].
    kickers: AtomicU32,
    interrupt_sent: AtomicBool,
    nmi_sent: AtomicBool,
    interrupt_seen: AtomicBool,
    nmi_seen: AtomicBool,
    /// Whether the next interrupt of the parent stays in service and goes to `accepted`.
    accept: AtomicBool,
    /// The vector that was accepted, 0 if none.
    accepted: AtomicU8,
    /// Interrupts of the parent that came although none was to be accepted: bit n stands for vector 0xf0 + n.
    foreign: AtomicU16,
}

impl Shared {
    /// A processor in hypervisor code.
    pub fn new(apic_id: u32) -> Self {
        Self {
            apic_id,
            mode: AtomicU8::new(Mode::Hypervisor as u8),
            kick: AtomicBool::new(false),
            kickers: AtomicU32::new(0),
            interrupt_sent: AtomicBool::new(false),
            nmi_sent: AtomicBool::new(false),
            interrupt_seen: AtomicBool::new(false),
            nmi_seen: AtomicBool::new(false),
            accept: AtomicBool::new(false),
            accepted: AtomicU8::new(0),
            foreign: AtomicU16::new(0),
        }
    }

    /// What a kicker has to send, if anything. Everything is recorded as if it had been sent.
    fn prepare_kick(&self) -> Call {
        self.kick.store(true, SeqCst);
        let mode = self.mode.load(SeqCst);
        let call = if mode == Mode::Parent as u8 {
            (&self.nmi_sent, Call::Nmi)
        } else if mode == Mode::Hypervisor as u8 {
            return Call::Nothing;
        } else {
            (&self.interrupt_sent, Call::Interrupt)
        };
        if call.0.swap(true, SeqCst) { Call::Nothing } else { call.1 }
    }

    /// For the handler of NMIs.
    pub fn note_nmi(&self) {
        self.nmi_seen.store(true, SeqCst);
    }

    /// For the handler of interrupts: says whether the window in which it came is to be closed.
    pub fn note_interrupt(&self, vector: u8) -> bool {
        if vector == HYPERVISOR_VECTOR {
            // A spurious interrupt has the same vector, but is not in service.
            if apic::in_service(vector) {
                self.interrupt_seen.store(true, SeqCst);
                apic::end_of_own_interrupt(vector);
            }
            true
        } else if self.accept.load(SeqCst) {
            self.accepted.store(vector, SeqCst);
            true
        } else {
            // A lower one gets past the task priority only if it comes from an interrupt controller of before the
            // local APIC (ExtINT), and that has nobody to serve it here.
            if vector >= 0xf0 {
                self.foreign.fetch_or(1 << (vector & 15), SeqCst);
                apic::end_of_interrupt();
            }
            false
        }
    }

    /// Calls the processor; see the module's page.
    pub fn send_kick(&self) {
        self.kickers.fetch_add(1, SeqCst);
        match self.prepare_kick() {
            Call::Nothing => {}
            Call::Interrupt => apic::send(self.apic_id, HYPERVISOR_VECTOR),
            Call::Nmi => apic::send_nmi(self.apic_id),
        }
        self.kickers.fetch_sub(1, SeqCst);
    }

    /// Waits for those who looked at the mode before it was changed, and may still send what was right then. They are
    /// hypervisor code that nothing interrupts, so it is a matter of moments.
    fn wait_for_kickers(&self) {
        while self.kickers.load(SeqCst) != 0 {
            core::hint::spin_loop();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Nothing,
    Interrupt,
    Nmi,
}

/// The logical processor that code runs on.
#[derive(Debug)]
pub struct LogicalProcessor {
    index: usize,
    clock: Clock,
    shared: &'static Shared,
    vendor_area: u64,
    global_interrupt_flag: bool,
    /// When the timer is to call the hypervisor.
    deadline: Option<u64>,
    /// An interrupt of the hypervisor's timer may be pending or come.
    timer_called: bool,
    /// An NMI that is not ours has been taken and waits for the parent.
    foreign_nmi: bool,
}

/// Pages at [`LogicalProcessor::vendor_area`].
pub const VENDOR_PAGES: usize = 2;

impl LogicalProcessor {
    /// Processor `index`. `vendor_area` is the physical address of [`VENDOR_PAGES`] zeroed pages for it alone.
    pub fn new(index: usize, clock: Clock, shared: &'static Shared, vendor_area: u64) -> Self {
        Self {
            index,
            clock,
            shared,
            vendor_area,
            global_interrupt_flag: false,
            deadline: None,
            timer_called: false,
            foreign_nmi: false,
        }
    }

    /// The physical address of [`VENDOR_PAGES`] contiguous zeroed pages that the vendor's part uses as it likes: for SVM
    /// the host save area (`VM_HSAVE_PA`) and the hypervisor's own VMSAVE state.
    pub fn vendor_area(&self) -> u64 {
        self.vendor_area
    }

    /// Where it is noted that an NMI has come, for an entry that nothing holds NMIs back from.
    pub fn nmi_note(&self) -> *const AtomicBool {
        &raw const self.shared.nmi_seen
    }

    /// Says that this processor has a global interrupt flag (SVM), which is 0 whenever hypervisor code runs.
    pub fn has_global_interrupt_flag(&mut self) {
        self.global_interrupt_flag = true;
    }

    /// Before entering a partition (`mode` is [`Mode::Parent`] or [`Mode::Child`]), with interrupts and NMIs held back:
    /// an exit instead of entering, if there is a reason for one. After `None` the partition must be entered, and
    /// [`LogicalProcessor::leave`] called after it; after `Some` it is not called.
    #[inline]
    pub fn enter(&mut self, mode: Mode) -> Option<Exit> {
        self.shared.mode.store(mode as u8, SeqCst);
        let kicked = self.shared.kick.load(SeqCst);
        let exit = match mode {
            Mode::Parent => self.reason_not_to_enter_parent(kicked),
            _ => (kicked || self.foreign_nmi).then_some(Exit::Interrupt),
        };
        if exit.is_some() {
            self.leave();
        }
        exit
    }

    fn reason_not_to_enter_parent(&mut self, kicked: bool) -> Option<Exit> {
        if kicked {
            self.shared.kick.store(false, SeqCst);
            return Some(Exit::Kick);
        }
        if core::mem::take(&mut self.foreign_nmi) {
            return Some(Exit::Nmi);
        }
        self.shared.wait_for_kickers();
        if self.timer_called || self.shared.interrupt_sent.load(SeqCst) {
            self.drain_own_interrupt();
        }
        None
    }

    /// After leaving a partition.
    #[inline]
    pub fn leave(&mut self) {
        self.shared.mode.store(Mode::Hypervisor as u8, SeqCst);
    }

    /// After a partition was left because of an NMI that is still pending: takes it, and says which exit it makes; `None`
    /// if it was a late call of ours that means nothing any more.
    pub fn take_nmi(&mut self, mode: Mode) -> Option<Exit> {
        self.open_nmi();
        match mode {
            Mode::Parent if self.shared.kick.swap(false, SeqCst) => Some(Exit::Kick),
            Mode::Parent => core::mem::take(&mut self.foreign_nmi).then_some(Exit::Nmi),
            _ => Some(Exit::Interrupt),
        }
    }

    /// Lets a pending NMI come, and notes whether it was ours.
    fn open_nmi(&mut self) {
        if self.global_interrupt_flag {
            // SAFETY: the processor has SVM on (`has_global_interrupt_flag`); the handlers for what comes in this window
            // run on their own stacks and touch `Shared` only. RFLAGS.IF is 0, so interrupts stay out.
            unsafe { asm!("stgi", "nop", "clgi", options(nostack)) };
        }
        if self.shared.nmi_seen.swap(false, SeqCst) && !self.shared.nmi_sent.swap(false, SeqCst) {
            self.foreign_nmi = true;
        }
    }

    /// Takes interrupts until [`HYPERVISOR_VECTOR`] has come (its handler ends the window). With `wait` the processor
    /// halts until something comes.
    fn open_interrupts(&mut self, wait: bool) {
        // SAFETY: all vectors have handlers, which run on stacks of their own and touch `Shared` only. STI holds interrupts off
        // for one instruction, so that none comes between it and HLT. STGI and CLGI are used where the processor has SVM on.
        unsafe {
            match (self.global_interrupt_flag, wait) {
                (true, true) => asm!("stgi", "sti", "hlt", "cli", "clgi"),
                (true, false) => asm!("stgi", "sti", "nop", "nop", "cli", "clgi"),
                (false, true) => switch::halt(&raw const self.shared.nmi_seen),
                (false, false) => asm!("sti", "nop", "nop", "cli"),
            }
        }
        self.open_nmi();
    }

    /// Calls `act` with all interrupts held back that are not in the class of our own.
    fn with_own_priority(&mut self, act: impl FnOnce(&mut Self)) {
        let priority = apic::task_priority();
        apic::set_task_priority(OWN_PRIORITY);
        act(self);
        apic::set_task_priority(priority);
    }

    /// Takes [`HYPERVISOR_VECTOR`] if it waits. Says whether it was there.
    fn take_own_interrupt(&mut self) -> bool {
        if apic::requested(HYPERVISOR_VECTOR) {
            self.with_own_priority(|processor| processor.open_interrupts(false));
        }
        self.own_interrupt_seen()
    }

    fn own_interrupt_seen(&mut self) -> bool {
        let seen = self.shared.interrupt_seen.swap(false, SeqCst);
        if seen {
            self.shared.interrupt_sent.store(false, SeqCst);
        }
        seen
    }

    /// Makes sure that the parent, which is about to run, never sees an interrupt of ours: ends the hypervisor's timer,
    /// and takes what waits or has been sent and is on its way.
    fn drain_own_interrupt(&mut self) {
        if self.deadline.take().is_some() {
            apic::set_timer(Timer::Off);
        }
        self.take_own_interrupt();
        while self.shared.interrupt_sent.load(SeqCst) {
            core::hint::spin_loop();
            self.take_own_interrupt();
        }
        self.timer_called = false;
    }

    /// Whether the hypervisor's deadline has come. If the timer fired early, because the deadline was too far away for
    /// it, sets it again.
    fn deadline_passed(&mut self, interrupted: bool) -> bool {
        let Some(deadline) = self.deadline else { return false };
        let now = timer::tsc();
        if now >= deadline {
            self.deadline = None;
        } else if interrupted {
            apic::set_timer(self.clock.timer(now, deadline, HYPERVISOR_VECTOR));
        }
        now >= deadline
    }
}

impl machine::Processor for LogicalProcessor {
    fn index(&self) -> usize {
        self.index
    }

    fn arm_timer(&mut self, deadline: Option<u64>, interrupt: TimerInterrupt) {
        let setting = |vector| deadline.map_or(Timer::Off, |at| self.clock.timer(timer::tsc(), at, vector));
        match interrupt {
            TimerInterrupt::Parent(vector) => {
                apic::set_timer(setting(vector));
                self.deadline = None;
            }
            TimerInterrupt::Hypervisor => {
                apic::set_timer(setting(HYPERVISOR_VECTOR));
                self.deadline = deadline;
                self.timer_called |= deadline.is_some();
            }
        }
    }

    fn take_interrupts(&mut self) -> Interrupts {
        let own = self.take_own_interrupt();
        let kick = self.shared.kick.swap(false, SeqCst);
        let timer = self.deadline_passed(own);
        // Something ended the run: if it was nothing of ours, it is the parent's, without looking for it.
        let parent = self.foreign_nmi || !(own || kick || timer) || apic::other_requested(HYPERVISOR_VECTOR);
        Interrupts { timer, kick, parent }
    }

    fn wait_for_kick(&mut self) {
        self.shared.mode.store(Mode::Waiting as u8, SeqCst);
        self.with_own_priority(|processor| {
            while !processor.shared.kick.swap(false, SeqCst) {
                processor.open_interrupts(true);
                processor.own_interrupt_seen();
            }
        });
        self.leave();
        // Interrupts of the parent that got through meanwhile are raised again.
        let mut foreign = self.shared.foreign.swap(0, SeqCst);
        while foreign != 0 {
            apic::send_self(0xf0 + foreign.trailing_zeros() as u8);
            foreign &= foreign - 1;
        }
    }

    fn wait_for_interrupt(&mut self) -> Waited {
        let mut waited = Waited::default();
        self.shared.mode.store(Mode::Waiting as u8, SeqCst);
        self.shared.accept.store(true, SeqCst);
        while waited == Waited::default() {
            let own = self.own_interrupt_seen();
            waited.interrupts.kick = self.shared.kick.swap(false, SeqCst);
            waited.interrupts.timer = self.deadline_passed(own);
            waited.nmi = core::mem::take(&mut self.foreign_nmi);
            if waited == Waited::default() {
                self.open_interrupts(true);
            }
            let vector = self.shared.accepted.swap(0, SeqCst);
            waited.vector = (vector != 0).then_some(vector);
        }
        self.shared.accept.store(false, SeqCst);
        self.leave();
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(mode: Mode) -> Shared {
        let shared = Shared::new(7);
        shared.mode.store(mode as u8, SeqCst);
        shared
    }

    #[test]
    fn a_kick_is_sent_by_what_the_processor_does() {
        assert_eq!(shared(Mode::Hypervisor).prepare_kick(), Call::Nothing);
        assert_eq!(shared(Mode::Waiting).prepare_kick(), Call::Interrupt);
        assert_eq!(shared(Mode::Child).prepare_kick(), Call::Interrupt);
        assert_eq!(shared(Mode::Parent).prepare_kick(), Call::Nmi);
    }

    #[test]
    fn at_most_one_of_each_is_on_its_way() {
        let child = shared(Mode::Child);
        assert_eq!((child.prepare_kick(), child.prepare_kick()), (Call::Interrupt, Call::Nothing));
        child.mode.store(Mode::Parent as u8, SeqCst);
        assert_eq!((child.prepare_kick(), child.prepare_kick()), (Call::Nmi, Call::Nothing));
        child.interrupt_sent.store(false, SeqCst);
        child.mode.store(Mode::Child as u8, SeqCst);
        assert_eq!(child.prepare_kick(), Call::Interrupt);
    }

    #[test]
    fn the_parent_is_not_entered_before_a_slow_kicker_has_sent() {
        let shared = &shared(Mode::Child);
        let sent = &AtomicBool::new(false);
        shared.kickers.fetch_add(1, SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(shared.prepare_kick(), Call::Interrupt);
                std::thread::sleep(core::time::Duration::from_millis(20));
                sent.store(true, SeqCst);
                shared.kickers.fetch_sub(1, SeqCst);
            });
            shared.wait_for_kickers();
            assert!(sent.load(SeqCst));
        });
    }

    #[test]
    fn a_kicked_processor_does_not_enter() {
        let shared = Box::leak(Box::new(shared(Mode::Hypervisor)));
        let clock = Clock { tsc_frequency: 1, apic_frequency: 1, deadline_mode: false };
        let mut processor = LogicalProcessor::new(0, clock, shared, 0);
        assert_eq!(processor.enter(Mode::Child), None);
        processor.leave();
        shared.prepare_kick();
        assert_eq!(
            processor.enter(Mode::Child),
            Some(Exit::Interrupt),
            "core takes the kick by take_interrupts"
        );
        assert_eq!(processor.enter(Mode::Parent), Some(Exit::Kick));
        assert_eq!(processor.enter(Mode::Parent), None);
        processor.foreign_nmi = true;
        assert_eq!(processor.enter(Mode::Child), Some(Exit::Interrupt));
        assert_eq!(processor.enter(Mode::Parent), Some(Exit::Nmi));
    }

    #[test]
    fn an_nmi_of_ours_is_told_from_a_foreign_one() {
        let shared = Box::leak(Box::new(shared(Mode::Parent)));
        let clock = Clock { tsc_frequency: 1, apic_frequency: 1, deadline_mode: false };
        let mut processor = LogicalProcessor::new(0, clock, shared, 0);
        assert_eq!(shared.prepare_kick(), Call::Nmi);
        shared.note_nmi();
        assert_eq!(processor.take_nmi(Mode::Parent), Some(Exit::Kick));
        shared.note_nmi();
        assert_eq!(processor.take_nmi(Mode::Parent), Some(Exit::Nmi), "nobody of ours has sent it");
        shared.note_nmi();
        assert_eq!(processor.take_nmi(Mode::Child), Some(Exit::Interrupt));
        assert_eq!(
            processor.enter(Mode::Parent),
            Some(Exit::Nmi),
            "the parent gets what came while a child ran"
        );
        shared.mode.store(Mode::Parent as u8, SeqCst);
        assert_eq!(shared.prepare_kick(), Call::Nmi);
        assert_eq!(processor.enter(Mode::Parent), Some(Exit::Kick), "seen before the NMI arrives");
        shared.note_nmi();
        assert_eq!(processor.take_nmi(Mode::Parent), None, "late, and it means nothing any more");
    }
}
