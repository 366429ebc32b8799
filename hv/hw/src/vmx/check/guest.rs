//! The guest's state (SDM volume 3C, 27.3.1).

use super::Check;
use crate::vcpu::event::{TYPE_INTERRUPT, TYPE_NMI};
use crate::vmx::capability::{CR0_PE, CR0_PG};
use crate::vmx::control::{CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME, has_pdptes};
use crate::vmx::entry::{EFER_EXISTING, is_valid_pdpte};
use crate::vmx::field::Field;
use crate::vmx::state::{PRESENT, UNUSABLE};

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_VM: u64 = 1 << 17;
const TABLE_INDICATOR: u64 = 1 << 2;
/// Activity state: halted.
const HALTED: u64 = 1;
/// DEBUGCTL: LBR, BTF, RTM, TR to FREEZE_IN_SMM.
const DEBUGCTL_EXISTING: u64 = 0xffc7;
/// Pending debug exceptions: breakpoints, an enabled one, a single step, RTM.
const PENDING_EXISTING: u64 = 0xf | 1 << 12 | 1 << 14 | 1 << 16;

/// Selector, base, limit and rights.
type Segment = [Field; 4];

impl Check<'_> {
    pub(super) fn guest(&mut self) {
        self.control_registers();
        self.debug_and_system();
        self.segments();
        self.tables();
        self.flags();
        self.activity();
        self.pointers();
    }

    /// 27.3.1.1. Protection and paging are an unrestricted guest's own.
    fn control_registers(&mut self) {
        use Field::*;
        let [cr0, cr4, efer] = [GuestCr0, GuestCr4, GuestEfer].map(|field| self.read(field));
        let (ones, may) = self.capabilities.cr0;
        self.expect_fixed(GuestCr0, (ones & !(CR0_PE | CR0_PG), may));
        self.expect_fixed(GuestCr4, self.capabilities.cr4);
        let long = self.is_long();
        self.expect(GuestCr0, cr0 & CR0_PG == 0 || cr0 & CR0_PE != 0, "paging without protection");
        self.expect(GuestCr0, !long || cr0 & CR0_PG != 0, "IA-32e mode without paging");
        self.expect(GuestCr4, !long || cr4 & CR4_PAE != 0, "IA-32e mode without PAE");
        self.expect(GuestCr4, long || cr4 & CR4_PCIDE == 0, "process identifiers outside of IA-32e mode");
        self.expect_zero(GuestCr3, 0xfff << 52);
        self.expect_zero(GuestEfer, !EFER_EXISTING);
        self.expect(GuestEfer, (efer & EFER_LMA != 0) == long, "LMA disagrees with the entry control");
        let enabled = efer & EFER_LME != 0;
        self.expect(GuestEfer, cr0 & CR0_PG == 0 || enabled == long, "LME disagrees with LMA");
    }

    fn debug_and_system(&mut self) {
        use Field::*;
        self.expect_zero(GuestDebugCtl, !DEBUGCTL_EXISTING);
        self.expect_zero(GuestDr7, !0xffff_ffff);
        self.expect_canonical(GuestSysenterEsp);
        self.expect_canonical(GuestSysenterEip);
        self.expect_memory_types(GuestPat);
    }

    /// 27.3.1.2.
    fn segments(&mut self) {
        use Field::*;
        const CODE: Segment = [GuestCsSelector, GuestCsBase, GuestCsLimit, GuestCsRights];
        const STACK: Segment = [GuestSsSelector, GuestSsBase, GuestSsLimit, GuestSsRights];
        let narrow = [
            CODE,
            STACK,
            [GuestDsSelector, GuestDsBase, GuestDsLimit, GuestDsRights],
            [GuestEsSelector, GuestEsBase, GuestEsLimit, GuestEsRights],
        ];
        let wide = [
            [GuestFsSelector, GuestFsBase, GuestFsLimit, GuestFsRights],
            [GuestGsSelector, GuestGsBase, GuestGsLimit, GuestGsRights],
        ];
        let v8086 = self.read(GuestRflags) & RFLAGS_VM != 0;
        for segment @ [_, base, _, rights] in narrow {
            self.segment(segment, v8086);
            // Only FS and GS have bases of 64 bits.
            let free = self.read(rights) & UNUSABLE != 0;
            self.expect(base, free || self.read(base) >> 32 == 0, "bits in the upper half");
        }
        for segment @ [_, base, ..] in wide {
            self.segment(segment, v8086);
            self.expect_canonical(base);
        }
        if !v8086 {
            self.code();
            self.stack();
        }
        self.system_segments();
    }

    fn segment(&mut self, [selector, base, limit, rights]: Segment, v8086: bool) {
        let (value, bytes) = (self.read(rights), self.read(limit));
        if v8086 {
            self.expect(base, self.read(base) == self.read(selector) << 4, "not the selector's");
            self.expect(rights, value == 0xf3, "not as virtual-8086 mode has it");
            self.expect(limit, bytes == 0xffff, "not as virtual-8086 mode has it");
        } else if value & UNUSABLE == 0 {
            self.expect(rights, value & 1 << 4 != 0, "the wrong kind of descriptor");
            self.expect(rights, value & 1 != 0, "not accessed");
            self.present(limit, rights);
        }
    }

    /// What usable segments of all kinds have.
    fn present(&mut self, limit: Field, rights: Field) {
        let (value, bytes) = (self.read(rights), self.read(limit));
        self.expect(rights, value & PRESENT != 0, "usable and not present");
        self.expect(rights, value & 0xfffe_0f00 == 0, "reserved bits");
        let coarse = value & 1 << 15 != 0;
        self.expect(rights, !coarse || bytes & 0xfff == 0xfff, "granularity does not fit the limit");
        self.expect(rights, coarse || bytes >> 20 == 0, "the limit is too large without granularity");
    }

    fn code(&mut self) {
        use Field::*;
        let (code, stack) = (self.read(GuestCsRights), self.read(GuestSsRights));
        let level = |rights: u64| rights >> 5 & 3;
        self.expect(GuestCsRights, code & UNUSABLE == 0, "unusable");
        self.expect(GuestCsRights, matches!(code & 0xf, 3 | 9 | 11 | 13 | 15), "not accessed code");
        self.expect(GuestCsRights, !self.is_long() || code >> 13 & 3 != 3, "both L and D");
        let fits = match code & 0xf {
            3 => level(code) == 0,
            9 | 11 => level(code) == level(stack),
            _ => level(code) <= level(stack),
        };
        self.expect(GuestCsRights, fits, "its privilege level does not fit that of the stack");
    }

    fn stack(&mut self) {
        use Field::*;
        let (stack, code) = (self.read(GuestSsRights), self.read(GuestCsRights));
        self.expect(GuestSsRights, stack & UNUSABLE != 0 || matches!(stack & 0xf, 3 | 7), "not a stack");
        let real = self.read(GuestCr0) & CR0_PE == 0 || code & 0xf == 3;
        self.expect(GuestSsRights, !real || stack >> 5 & 3 == 0, "a privilege level in real mode");
    }

    fn system_segments(&mut self) {
        use Field::*;
        self.expect_zero(GuestTrSelector, TABLE_INDICATOR);
        let task = self.read(GuestTrRights);
        let kind = task & 0xf;
        self.expect(GuestTrRights, kind == 11 || kind == 3 && !self.is_long(), "not a busy task");
        self.expect(GuestTrRights, task & UNUSABLE == 0, "unusable");
        self.expect(GuestTrRights, task & 1 << 4 == 0, "the wrong kind of descriptor");
        self.expect_canonical(GuestTrBase);
        self.present(GuestTrLimit, GuestTrRights);
        let local = self.read(GuestLdtrRights);
        if local & UNUSABLE == 0 {
            self.expect_zero(GuestLdtrSelector, TABLE_INDICATOR);
            self.expect(GuestLdtrRights, local & 0x1f == 2, "not a table");
            self.expect_canonical(GuestLdtrBase);
            self.present(GuestLdtrLimit, GuestLdtrRights);
        }
    }

    /// 27.3.1.3.
    fn tables(&mut self) {
        use Field::*;
        for (base, limit) in [(GuestGdtrBase, GuestGdtrLimit), (GuestIdtrBase, GuestIdtrLimit)] {
            self.expect_canonical(base);
            self.expect_zero(limit, !0xffff);
        }
    }

    /// 27.3.1.4.
    fn flags(&mut self) {
        use Field::*;
        let rflags = self.read(GuestRflags);
        self.expect(GuestRflags, rflags & 0xffff_ffff_ffc0_802a == 2, "reserved bits");
        let v8086 = rflags & RFLAGS_VM != 0;
        let can = !self.is_long() && self.read(GuestCr0) & CR0_PE != 0;
        self.expect(GuestRflags, !v8086 || can, "virtual-8086 mode outside of protected mode");
        if self.is_long() && self.read(GuestCsRights) & 1 << 13 != 0 {
            self.expect_canonical(GuestRip);
        } else {
            self.expect(GuestRip, self.read(GuestRip) >> 32 == 0, "bits beyond 32 outside of 64-bit code");
        }
        let interrupts = self.injected().is_some_and(|(kind, _)| kind == TYPE_INTERRUPT);
        let enabled = rflags & RFLAGS_IF != 0;
        self.expect(GuestRflags, !interrupts || enabled, "an interrupt with interrupts off");
    }

    /// 27.3.1.5.
    fn activity(&mut self) {
        use Field::*;
        let (state, activity) = (self.read(GuestInterruptibility), self.read(GuestActivity));
        let (sti, mov_ss, nmis_masked) = (state & 1 != 0, state & 2 != 0, state & 8 != 0);
        let enabled = self.read(GuestRflags) & RFLAGS_IF != 0;
        let kind = self.injected().map(|(kind, _)| kind);
        self.expect(GuestActivity, activity <= 3, "no activity state");
        let halted = activity == HALTED;
        let level = self.read(GuestSsRights) >> 5 & 3;
        self.expect(GuestActivity, !halted || level == 0, "halted at a privilege level other than 0");
        self.expect(GuestActivity, activity == 0 || !(sti || mov_ss), "not active in an interrupt shadow");
        self.expect_zero(GuestInterruptibility, !0x1f);
        self.expect(GuestInterruptibility, !(sti && mov_ss), "both STI and MOV SS");
        self.expect(GuestInterruptibility, !sti || enabled, "STI with interrupts off");
        let held = sti || mov_ss;
        self.expect(GuestInterruptibility, kind != Some(TYPE_INTERRUPT) || !held, "an interrupt in a shadow");
        let blocked = mov_ss || nmis_masked;
        self.expect(
            GuestInterruptibility,
            kind != Some(TYPE_NMI) || !blocked,
            "an NMI while NMIs are held off",
        );
        self.expect_zero(GuestPendingDebug, !PENDING_EXISTING);
        let single = self.read(GuestRflags) & RFLAGS_TF != 0 && self.read(GuestDebugCtl) & 2 == 0;
        let waits = held || halted;
        let pending = self.read(GuestPendingDebug) >> 14 & 1 != 0;
        self.expect(GuestPendingDebug, !waits || pending == single, "the single step and TF disagree");
    }

    /// 27.3.1.5 and 27.3.1.6.
    fn pointers(&mut self) {
        use Field::*;
        self.expect(VmcsLink, self.read(VmcsLink) == u64::MAX, "a shadow structure");
        let [cr0, cr4, efer] = [GuestCr0, GuestCr4, GuestEfer].map(|field| self.read(field));
        if has_pdptes(cr0, cr4, efer) {
            for entry in [GuestPdpte0, GuestPdpte1, GuestPdpte2, GuestPdpte3] {
                self.expect(entry, is_valid_pdpte(self.read(entry)), "reserved bits");
            }
        }
    }
}
