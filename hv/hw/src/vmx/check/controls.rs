//! Controls (SDM volume 3C, 27.2.1).

use super::Check;
use crate::vcpu::event::{HAS_ERROR, TYPE_EXCEPTION, TYPE_NMI};
use crate::vmx::capability::{CR0_PE, Controls, pin, primary, secondary};
use crate::vmx::field::Field;

/// Types of events that software raises: interrupts, privileged and other exceptions.
const TYPES_OF_SOFTWARE: core::ops::RangeInclusive<u64> = 4..=6;
/// Vectors of exceptions with an error code.
const WITH_ERROR: u64 = 1 << 8 | 0x1f << 10 | 1 << 17;
const EPT_ACCESSED_DIRTY: u64 = 1 << 6;

impl Check<'_> {
    pub(super) fn controls(&mut self) {
        self.settings();
        self.execution();
        self.second_level();
        self.transitions();
        self.event();
    }

    /// What the capability registers allow: the fields are one of the two sets that were made of them, and windows.
    fn settings(&mut self) {
        use Field::*;
        let Controls { pin, primary, secondary, exit, entry } =
            if self.read(PinControls) & u64::from(pin::INTERRUPTS) != 0 {
                self.capabilities.child
            } else {
                self.capabilities.parent
            };
        let windows = primary::INTERRUPT_WINDOW | primary::NMI_WINDOW | primary::HLT;
        let long = super::ENTRY_LONG_MODE;
        for (field, wanted, free) in [
            (PinControls, pin, 0),
            (PrimaryControls, primary, windows),
            (SecondaryControls, secondary, 0),
            (ExitControls, exit, 0),
            (EntryControls, entry, long),
        ] {
            let differs = (self.read(field) ^ u64::from(wanted)) & !u64::from(free);
            self.expect(field, differs == 0, "not what the capability registers made of it");
        }
    }

    fn execution(&mut self) {
        use Field::*;
        let [pin, primary] = [PinControls, PrimaryControls].map(|field| self.read(field) as u32);
        self.expect(Cr3TargetCount, self.read(Cr3TargetCount) <= 4, "more than 4");
        let virtual_nmis = pin & pin::VIRTUAL_NMIS != 0;
        self.expect(PinControls, !virtual_nmis || pin & pin::NMIS != 0, "virtual NMIs, and NMIs do not exit");
        let window = primary & primary::NMI_WINDOW != 0;
        self.expect(PrimaryControls, !window || virtual_nmis, "an NMI window without virtual NMIs");
        if primary & primary::MSR_BITMAPS != 0 {
            self.page(MsrBitmap);
        }
        if primary & primary::TPR_SHADOW != 0 {
            self.page(VirtualApicPage);
            self.expect_zero(TprThreshold, !0xf);
        }
        let identified = self.read(SecondaryControls) as u32 & secondary::VPID != 0;
        self.expect(Vpid, !identified || self.read(Vpid) != 0, "0 is the hypervisor's");
    }

    fn second_level(&mut self) {
        use Field::*;
        let secondary = self.read(SecondaryControls) as u32;
        let ept = secondary & secondary::EPT != 0;
        let unrestricted = secondary & secondary::UNRESTRICTED_GUEST != 0;
        self.expect(SecondaryControls, ept || !unrestricted, "an unrestricted guest without EPT");
        if !ept {
            return;
        }
        let pointer = self.read(EptPointer);
        self.expect(EptPointer, matches!(pointer & 7, 0 | 6), "no memory type for tables");
        self.expect(EptPointer, pointer >> 3 & 7 == 3, "not four levels");
        let allowed = pointer & EPT_ACCESSED_DIRTY == 0 || self.capabilities.accessed_dirty;
        self.expect(EptPointer, allowed, "accessed and dirty bits that the processor does not have");
        self.expect_zero(EptPointer, 0x1f << 7 | 0xfff << 52);
    }

    fn transitions(&mut self) {
        for count in [Field::ExitMsrStoreCount, Field::ExitMsrLoadCount, Field::EntryMsrLoadCount] {
            self.expect(count, self.read(count) == 0, "a list of registers that is not there");
        }
    }

    /// The event that is injected (27.2.1.3).
    fn event(&mut self) {
        use Field::*;
        let Some((kind, vector)) = self.injected() else { return };
        let info = self.read(EntryInterruptionInfo);
        self.expect_zero(EntryInterruptionInfo, 0x7fff_f000);
        self.expect(EntryInterruptionInfo, kind != 1, "no type of an event");
        self.expect(EntryInterruptionInfo, kind != TYPE_NMI || vector == 2, "an NMI with another vector");
        self.expect(EntryInterruptionInfo, kind != TYPE_EXCEPTION || vector < 32, "an exception beyond 31");
        let protected = self.read(GuestCr0) & CR0_PE != 0;
        let wanted = kind == TYPE_EXCEPTION && protected && vector < 32 && WITH_ERROR >> vector & 1 != 0;
        let has_error = info & HAS_ERROR != 0;
        self.expect(EntryInterruptionInfo, wanted == has_error, "an error code too many or too few");
        if has_error {
            self.expect_zero(EntryExceptionError, !0x7fff);
        }
        let length = self.read(EntryInstructionLength);
        let by_software = TYPES_OF_SOFTWARE.contains(&kind);
        self.expect(EntryInstructionLength, !by_software || (1..=15).contains(&length), "no instruction's");
    }

    fn page(&mut self, field: Field) {
        self.expect_zero(field, 0xfff | 0xfff << 52);
    }
}
