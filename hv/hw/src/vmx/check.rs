//! The checks of a VM entry (Intel SDM volume 3C, 27.2 and 27.3.1), as a debugging aid: when a processor refuses to enter it
//! says only that the controls, the host's state or the guest's are wrong. [`controls`], [`host`] and [`guest`] follow the manual's
//! sections. Pure. Not here: what no field of Parterre's structures can have (controls that it never sets).

mod controls;
mod guest;
mod host;

use super::capability::{Capabilities, ENTRY_LONG_MODE};
use super::field::{Field, Source};

/// A field that an entry does not take, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The field.
    pub field: Field,
    /// Its value.
    pub value: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Writes to the log why the entry of `source` failed with `code`.
#[cold]
pub fn report(source: &dyn Source, capabilities: &Capabilities, code: u32) {
    log::warn!("VMX: an entry failed with code {code:#x} at RIP {:#x}", source.read(Field::GuestRip));
    find(source, capabilities, &mut |finding| {
        log::warn!("VMX: {:?} is {:#x}: {}", finding.field, finding.value, finding.why);
    });
}

/// Calls `found` for everything that is wrong, in the order in which a processor looks at it.
pub fn find(source: &dyn Source, capabilities: &Capabilities, found: &mut dyn FnMut(Finding)) {
    let mut check = Check { source, capabilities, found };
    check.controls();
    check.host();
    check.guest();
}

struct Check<'a> {
    source: &'a dyn Source,
    capabilities: &'a Capabilities,
    found: &'a mut dyn FnMut(Finding),
}

impl Check<'_> {
    #[inline(never)]
    fn read(&self, field: Field) -> u64 {
        self.source.read(field)
    }

    #[inline(never)]
    fn expect(&mut self, field: Field, right: bool, why: &'static str) {
        if !right {
            let value = self.read(field);
            (self.found)(Finding { field, value, why });
        }
    }

    #[inline(never)]
    fn expect_zero(&mut self, field: Field, bits: u64) {
        self.expect(field, self.read(field) & bits == 0, "reserved bits");
    }

    #[inline(never)]
    fn expect_canonical(&mut self, field: Field) {
        let address = self.read(field);
        self.expect(field, (address as i64) << 16 >> 16 == address as i64, "not canonical");
    }

    #[inline(never)]
    fn expect_memory_types(&mut self, field: Field) {
        let types = self.read(field).to_le_bytes();
        self.expect(field, types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)), "no memory type");
    }

    /// A control register has what must be 1, and nothing that must be 0.
    #[inline(never)]
    fn expect_fixed(&mut self, field: Field, (ones, may): (u64, u64)) {
        let value = self.read(field);
        self.expect(field, value & ones == ones, "a bit is 0 that VMX operation wants to be 1");
        self.expect(field, value & !may == 0, "a bit is 1 that VMX operation wants to be 0");
    }

    fn is_long(&self) -> bool {
        self.read(Field::EntryControls) & u64::from(ENTRY_LONG_MODE) != 0
    }

    /// The event that the entry injects: its type and vector.
    fn injected(&self) -> Option<(u64, u64)> {
        let event = self.read(Field::EntryInterruptionInfo);
        (event >> 31 & 1 != 0).then_some((event >> 8 & 7, event & 0xff))
    }
}

#[cfg(test)]
mod tests;
