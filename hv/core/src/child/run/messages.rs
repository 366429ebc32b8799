//! What a virtual processor does about messages that wait for it, and about its hypercalls.

use super::{End, Run};
use crate::{
    events,
    hypercall::{self, Answer},
    instruction::Exiting,
    machine::{Machine, Reg, Vcpu},
    time::Expiration,
};
use parterre_abi::registers::DeliverabilityNotificationsRegister;

impl<M: Machine> Run<'_, M> {
    /// Lets timers whose time has come assert their interrupts, or leave their messages to be delivered.
    pub(super) fn expire_timers(&mut self) {
        self.timers_due = false;
        self.deadlines_changed = true;
        if self.inner.apic.timer_runs() {
            let context = self.inner.context(self.vp, self.now());
            if let Some(vector) = self.inner.apic.timer_expired(&context) {
                self.vp.incoming.post_fixed(vector, false);
            }
        }
        if let Some(due) = self.inner.timers.deadline() {
            let time = self.child.reference_time(self.hv);
            if time >= due {
                self.expire_synthetic_timers(time);
            }
        }
    }

    fn expire_synthetic_timers(&mut self, time: u64) {
        for expiration in self.inner.timers.expire(time) {
            match expiration {
                Expiration::Direct { vector } => {
                    self.vp.incoming.post_fixed(vector, false);
                }
                Expiration::Message { .. } => self.messages_due = true,
            }
        }
    }

    /// Delivers messages of timers, after something has happened that may have made room for them.
    pub(super) fn deliver_messages(&mut self) {
        if core::mem::take(&mut self.messages_due) && self.inner.timers.has_undelivered() {
            let now = self.child.reference_time(self.hv);
            self.inner.deliver_timer_messages(&self.hv.machine, self.vp, now);
        }
    }

    /// Tells the parent which of the message slots are free that it waits for.
    pub(super) fn notify_free_slots(&mut self) -> Option<End> {
        let register = DeliverabilityNotificationsRegister::from(self.inner.notify_deliverable);
        let wanted = register.sints();
        if wanted == 0 {
            return None;
        }
        let free = self.vp.synic.free_slots(&self.hv.machine, wanted);
        if free == 0 {
            return None;
        }
        self.inner.notify_deliverable = register.with_sints(wanted & !free).into();
        Some(self.report(|reporter| reporter.slots_free(free)))
    }

    /// The guest calls the hypervisor.
    pub(super) fn hypercall(&mut self, length: Option<u8>) -> Option<End> {
        self.inner.counts.hypercalls += 1;
        // The instruction exists for protected-mode kernels that have said who they are (TLFS "Legal Hypercall Environments").
        let vcpu = &self.inner.vcpu;
        if !self.child.may_call() || vcpu.cpl() != 0 || vcpu.get(Reg::Cr0) & 1 == 0 {
            events::invalid_opcode(&mut self.inner.vcpu);
            return None;
        }
        match hypercall::from_child(self.hv, self.child, self.vp, &mut self.inner.vcpu) {
            Answer::Done => self.skip(length, Exiting::Hypercall),
            Answer::Undefined => events::invalid_opcode(&mut self.inner.vcpu),
            Answer::Waiting => {
                self.skip(length, Exiting::Hypercall);
                return Some(End::Ready);
            }
            // It passes over the instruction, as after other intercepts.
            Answer::OfParent => {
                let length = length.unwrap_or_else(|| self.length_of(Exiting::Hypercall));
                return Some(self.report(|reporter| reporter.hypercall(length)));
            }
        }
        None
    }
}
