//! Accesses to the xAPIC page by whole instructions.

use crate::apic::{Context, Effect, LocalApic};
use crate::instruction::MemoryAccess;

impl LocalApic {
    /// Carries out `access` at byte `offset` of the xAPIC page. Registers have 32 bits: wider reads are filled up with
    /// zeros, wider writes lose their upper half. Parts of a register can be read, but writing less than a register,
    /// or anything across one's end, does nothing (the architecture leaves it undefined, SDM 3A 12.4.1).
    pub fn access_page(
        &mut self,
        offset: u16,
        access: &MemoryAccess,
        gprs: &mut [u64; 16],
        rflags: &mut u64,
        context: &Context<'_>,
    ) -> Effect {
        let within = offset & 3;
        let whole = within == 0 && access.size() >= 4;
        let inside = whole || within + u16::from(access.size()) <= 4;
        let read = if access.reads() && inside {
            u64::from(self.read_page(offset & !3, context)) >> (8 * within)
        } else {
            0
        };
        match access.complete(read, gprs, rflags) {
            Some(value) if whole => self.write_page(offset, value as u32, context),
            _ => Effect::None,
        }
    }
}
