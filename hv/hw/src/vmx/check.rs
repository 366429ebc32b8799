//! The checks of a VM entry on the guest's state (Intel SDM volume 3C, 27.3.1), as a debugging aid: when a processor
//! refuses to enter it says only that something is wrong. Pure; not every check is here, but those that software trips over.

use super::capability::{CR0_PE, CR0_PG, ENTRY_LONG_MODE};
use super::control::{CR4_PAE, EFER_LMA, EFER_LME};
use super::field::{Field, Source};

const RFLAGS_VM: u64 = 1 << 17;
const RFLAGS_IF: u64 = 1 << 9;
const UNUSABLE: u64 = 1 << 16;
const PRESENT: u64 = 1 << 7;

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
pub fn report(source: &dyn Source, code: u32) {
    log::warn!("VMX: an entry failed with code {code:#x} at RIP {:#x}", source.read(Field::GuestRip));
    find(source, &mut |finding| {
        log::warn!("VMX: {:?} is {:#x}: {}", finding.field, finding.value, finding.why);
    });
}

/// Calls `found` for everything that is wrong.
pub fn find(source: &dyn Source, found: &mut dyn FnMut(Finding)) {
    let mut check = Check { source, found };
    check.control_registers();
    check.segments();
    check.flags();
    check.activity();
}

struct Check<'a> {
    source: &'a dyn Source,
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

    fn is_long(&self) -> bool {
        self.read(Field::EntryControls) & u64::from(ENTRY_LONG_MODE) != 0
    }

    fn control_registers(&mut self) {
        use Field::*;
        let [cr0, cr3, cr4, efer] = [GuestCr0, GuestCr3, GuestCr4, GuestEfer].map(|field| self.read(field));
        let long = self.is_long();
        self.expect(GuestCr0, cr0 & CR0_PG == 0 || cr0 & CR0_PE != 0, "paging without protection");
        self.expect(GuestCr0, !long || cr0 & CR0_PG != 0, "IA-32e mode without paging");
        self.expect(GuestCr4, !long || cr4 & CR4_PAE != 0, "IA-32e mode without PAE");
        self.expect(GuestCr3, cr3 >> 52 == 0, "bits beyond the physical address");
        self.expect(GuestEfer, (efer & EFER_LMA != 0) == long, "LMA disagrees with the entry control");
        let enabled = efer & EFER_LME != 0;
        self.expect(GuestEfer, cr0 & CR0_PG == 0 || enabled == long, "LME disagrees with LMA");
        let dr7 = self.read(GuestDr7);
        self.expect(GuestDr7, dr7 >> 32 == 0, "bits in the upper half");
        for field in [GuestSysenterEsp, GuestSysenterEip] {
            let address = self.read(field);
            self.expect(field, is_canonical(address), "not canonical");
        }
        let types = self.read(GuestPat).to_le_bytes();
        self.expect(GuestPat, types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)), "no memory type");
    }

    fn segments(&mut self) {
        use Field::*;
        let v8086 = self.read(GuestRflags) & RFLAGS_VM != 0;
        for (base, limit, rights) in [
            (GuestEsBase, GuestEsLimit, GuestEsRights),
            (GuestCsBase, GuestCsLimit, GuestCsRights),
            (GuestSsBase, GuestSsLimit, GuestSsRights),
            (GuestDsBase, GuestDsLimit, GuestDsRights),
            (GuestFsBase, GuestFsLimit, GuestFsRights),
            (GuestGsBase, GuestGsLimit, GuestGsRights),
            (GuestLdtrBase, GuestLdtrLimit, GuestLdtrRights),
            (GuestTrBase, GuestTrLimit, GuestTrRights),
        ] {
            self.segment(base, limit, rights, v8086);
        }
        let kind = self.read(GuestTrRights) & 0xf;
        self.expect(GuestTrRights, kind == 11 || kind == 3 && !self.is_long(), "not a busy task");
        self.expect(GuestTrRights, self.read(GuestTrRights) & UNUSABLE == 0, "unusable");
        let code = self.read(GuestCsRights);
        self.expect(GuestCsRights, matches!(code & 0xf, 3 | 9 | 11 | 13 | 15), "not accessed code");
        self.expect(GuestCsRights, !self.is_long() || code >> 13 & 3 != 3, "both L and D");
        let stack = self.read(GuestSsRights);
        self.expect(GuestSsRights, stack & UNUSABLE != 0 || matches!(stack & 0xf, 3 | 7), "not a stack");
    }

    fn segment(&mut self, base: Field, limit: Field, rights: Field, v8086: bool) {
        let (value, bytes) = (self.read(rights), self.read(limit));
        if value & UNUSABLE != 0 {
            return;
        }
        self.expect(base, is_canonical(self.read(base)), "not canonical");
        let system = matches!(rights, Field::GuestLdtrRights | Field::GuestTrRights);
        if v8086 && !system {
            self.expect(rights, value == 0xf3, "not as virtual-8086 mode has it");
            self.expect(limit, bytes == 0xffff, "not as virtual-8086 mode has it");
            return;
        }
        self.expect(rights, value & PRESENT != 0, "usable and not present");
        self.expect(rights, (value & 1 << 4 != 0) != system, "the wrong kind of descriptor");
        self.expect(rights, system || value & 1 != 0, "not accessed");
        self.expect(rights, value & 0xfffe_0f00 == 0, "reserved bits");
        let coarse = value & 1 << 15 != 0;
        self.expect(rights, !coarse || bytes & 0xfff == 0xfff, "granularity does not fit the limit");
        self.expect(rights, coarse || bytes >> 20 == 0, "the limit is too large without granularity");
    }

    fn flags(&mut self) {
        use Field::*;
        let rflags = self.read(GuestRflags);
        self.expect(GuestRflags, rflags & 0xffff_ffff_ffc0_802a == 2, "reserved bits");
        self.expect(GuestRflags, !self.is_long() || rflags & RFLAGS_VM == 0, "virtual-8086 in IA-32e mode");
        let code64 = self.is_long() && self.read(GuestCsRights) & 1 << 13 != 0;
        let rip = self.read(GuestRip);
        self.expect(GuestRip, code64 || rip >> 32 == 0, "bits beyond 32 outside of 64-bit code");
        self.expect(GuestRip, !code64 || is_canonical(rip), "not canonical");
        let interrupt = self.read(EntryInterruptionInfo);
        let injects = interrupt >> 31 != 0 && interrupt >> 8 & 7 == 0;
        self.expect(GuestRflags, !injects || rflags & RFLAGS_IF != 0, "an interrupt with interrupts off");
    }

    fn activity(&mut self) {
        use Field::*;
        let state = self.read(GuestInterruptibility);
        let (sti, mov_ss) = (state & 1 != 0, state & 2 != 0);
        self.expect(GuestInterruptibility, state & !0x1f == 0, "reserved bits");
        self.expect(GuestInterruptibility, !(sti && mov_ss), "both STI and MOV SS");
        let enabled = self.read(GuestRflags) & RFLAGS_IF != 0;
        self.expect(GuestInterruptibility, !sti || enabled, "STI with interrupts off");
        let injected = self.read(EntryInterruptionInfo);
        let nmi = injected >> 31 != 0 && injected >> 8 & 7 == 2;
        self.expect(GuestInterruptibility, !nmi || state & 0xa == 0, "an NMI while NMIs are masked");
        self.expect(GuestActivity, self.read(GuestActivity) <= 3, "no activity state");
        self.expect(VmcsLink, self.read(VmcsLink) == u64::MAX, "a shadow structure");
    }
}

fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A guest in 64-bit mode.
    fn sound() -> HashMap<Field, u64> {
        use Field::*;
        let mut fields = HashMap::from([
            (EntryControls, 1 << 9),
            (GuestCr0, 0x8005_0033),
            (GuestCr4, 0x2020),
            (GuestEfer, 0x500),
            (GuestPat, 0x0007_0406_0007_0406),
            (GuestRflags, 2),
            (GuestRip, 0xffff_ffff_8000_0000),
            (VmcsLink, u64::MAX),
            (GuestCsRights, 0xa09b),
            (GuestCsLimit, 0xffff_ffff),
            (GuestTrRights, 0x8b),
            (GuestTrLimit, 0x67),
            (GuestLdtrRights, UNUSABLE),
        ]);
        for (rights, limit) in [
            (GuestEsRights, GuestEsLimit),
            (GuestSsRights, GuestSsLimit),
            (GuestDsRights, GuestDsLimit),
            (GuestFsRights, GuestFsLimit),
            (GuestGsRights, GuestGsLimit),
        ] {
            fields.extend([(rights, 0xc093), (limit, 0xffff_ffff)]);
        }
        fields
    }

    fn findings(fields: &HashMap<Field, u64>) -> Vec<Field> {
        let mut all = Vec::new();
        find(fields, &mut |finding| all.push(finding.field));
        all
    }

    #[test]
    fn a_sound_state_has_no_findings() {
        assert_eq!(findings(&sound()), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        use Field::*;
        for (field, value) in [
            (GuestCr0, 0x5_0033),
            (GuestCr4, 0x2000),
            (GuestEfer, 0x100),
            (GuestPat, 2),
            (GuestRflags, 0x8002),
            (GuestRip, 1 << 60),
            (GuestCsRights, 0xe09b),
            (GuestSsRights, 0xc09b),
            (GuestDsRights, 0xc092),
            (GuestEsLimit, 0x1000),
            (GuestTrRights, 0x89),
            (GuestFsBase, 1 << 50),
            (GuestDr7, 1 << 33),
            (GuestInterruptibility, 3),
            (VmcsLink, 0),
        ] {
            let mut fields = sound();
            fields.insert(field, value);
            let found = findings(&fields);
            let wanted = if field == GuestEsLimit { GuestEsRights } else { field };
            assert!(found.contains(&wanted), "{field:?}: {found:?}");
        }
    }
}
