//! Where a virtual processor's registers are, and reaching them there. Most stay in its structure from the first time that
//! it is loaded, whether it is loaded or not, and are read and written when core asks for them: few exits need more than
//! one or two. The structure of one that is not loaded is borrowed for that ([`Own::borrow_structure`]). CR2, DR6 and the
//! system-call registers ([`super::msrs`]) are in the machine while it is loaded, and in its block while it is not.
//!
//! [`Own::borrow_structure`]: super::run::Own::borrow_structure

use core::arch::asm;

use parterre_core::machine::{Reg, Segment, SegmentName, TableName};

use super::field::{Current, Field, Source};
use super::msrs::{self, Msrs};
use super::run::{CR0_OWNED, EFER_SVME, TASK_PRIORITY};
use crate::cpu::{msr, registers};
use crate::svm::vmcb::{Save, V_TPR, VmcbSegment};
use crate::vcpu::{Engine, Vcpu};

/// Selector, base, limit and rights of the segment registers, in the order of `SegmentName`.
const SEGMENTS: [[Field; 4]; 8] = {
    use Field::*;
    [
        [GuestEsSelector, GuestEsBase, GuestEsLimit, GuestEsRights],
        [GuestCsSelector, GuestCsBase, GuestCsLimit, GuestCsRights],
        [GuestSsSelector, GuestSsBase, GuestSsLimit, GuestSsRights],
        [GuestDsSelector, GuestDsBase, GuestDsLimit, GuestDsRights],
        [GuestFsSelector, GuestFsBase, GuestFsLimit, GuestFsRights],
        [GuestGsSelector, GuestGsBase, GuestGsLimit, GuestGsRights],
        [GuestLdtrSelector, GuestLdtrBase, GuestLdtrLimit, GuestLdtrRights],
        [GuestTrSelector, GuestTrBase, GuestTrLimit, GuestTrRights],
    ]
};
/// Base and limit.
fn table_fields(name: TableName) -> [Field; 2] {
    match name {
        TableName::Gdtr => [Field::GuestGdtrBase, Field::GuestGdtrLimit],
        TableName::Idtr => [Field::GuestIdtrBase, Field::GuestIdtrLimit],
    }
}

/// Rights: the segment register is not usable.
pub const UNUSABLE: u64 = 1 << 16;
/// Rights: the segment is present.
pub const PRESENT: u64 = 1 << 7;
const CODE_OR_DATA: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 0;
const GRANULARITY: u64 = 1 << 15;

/// Limit and rights as an entry takes them (SDM volume 3C, 27.3.1.2): what is not present is unusable, code and data are
/// accessed, and the granularity fits the limit.
pub fn encode(segment: VmcbSegment) -> (u64, u64) {
    let attributes = u64::from(segment.attributes);
    let mut limit = u64::from(segment.limit);
    let mut rights = attributes & 0xff | (attributes & 0xf00) << 4;
    if rights & PRESENT == 0 {
        return (limit, rights | UNUSABLE);
    }
    if rights & CODE_OR_DATA != 0 {
        rights |= ACCESSED;
    }
    if limit > 0xf_ffff {
        rights |= GRANULARITY;
        limit |= 0xfff;
    } else if limit & 0xfff != 0xfff {
        rights &= !GRANULARITY;
    }
    (limit, rights)
}

/// The inverse of [`encode`]: what is unusable is not present.
#[inline(always)]
fn visible(selector: u64, base: u64, limit: u64, rights: u64) -> Segment {
    // Bit 16 becomes bit 7.
    let unusable = (rights & UNUSABLE) >> 9;
    Segment {
        selector: selector as u16,
        attributes: (rights & 0xf0ff & !unusable) as u16,
        limit: limit as u32,
        base,
    }
}

/// Writes segment register `index`, in the order of `SegmentName`.
pub fn write_segment(vmcs: Current, index: usize, segment: VmcbSegment) {
    let [selector, base, limit_field, rights_field] = SEGMENTS[index];
    let (limit, rights) = encode(segment);
    vmcs.write(selector, segment.selector.into());
    vmcs.write(base, segment.base);
    vmcs.write(limit_field, limit);
    vmcs.write(rights_field, rights);
}

/// Reads a segment register. What is unusable is not present.
#[inline(always)]
fn read_visible(vmcs: Current, name: SegmentName) -> Segment {
    let [selector, base, limit, rights] = SEGMENTS[name as usize].map(|field| vmcs.read(field));
    visible(selector, base, limit, rights)
}

/// The current privilege level: that of SS.
pub fn privilege_level(vmcs: &impl Source) -> u8 {
    (vmcs.read(Field::GuestSsRights) >> 5 & 3) as u8
}

/// Writes IDTR or GDTR.
pub fn write_table(vmcs: Current, name: TableName, table: VmcbSegment) {
    let [base, limit] = table_fields(name);
    vmcs.write(base, table.base);
    vmcs.write(limit, u64::from(table.limit & 0xffff));
}

/// Reads IDTR or GDTR.
pub fn read_table(vmcs: &impl Source, name: TableName) -> VmcbSegment {
    let [base, limit] = table_fields(name);
    VmcbSegment { base: vmcs.read(base), limit: vmcs.read(limit) as u32, ..VmcbSegment::default() }
}

/// Where a register is, besides its place in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the structure, and only there.
    Vmcs(Field),
    /// In the machine while its virtual processor is loaded. The block's is as new where its writes exit.
    Msr(u32),
    Cr2,
    Dr6,
}

#[inline]
fn place(register: Reg) -> Option<Place> {
    Some(match register {
        Reg::Cr2 => Place::Cr2,
        Reg::Dr6 => Place::Dr6,
        Reg::Dr7 => Place::Vmcs(Field::GuestDr7),
        Reg::Pat => Place::Vmcs(Field::GuestPat),
        Reg::DebugCtl => Place::Vmcs(Field::GuestDebugCtl),
        Reg::SysenterCs => Place::Vmcs(Field::GuestSysenterCs),
        Reg::SysenterEip => Place::Vmcs(Field::GuestSysenterEip),
        Reg::SysenterEsp => Place::Vmcs(Field::GuestSysenterEsp),
        Reg::Star => Place::Msr(msrs::STAR),
        Reg::Lstar => Place::Msr(msrs::LSTAR),
        Reg::Cstar => Place::Msr(msrs::CSTAR),
        Reg::Sfmask => Place::Msr(msrs::SFMASK),
        Reg::KernelGsBase => Place::Msr(msrs::KERNEL_GS_BASE),
        _ => return None,
    })
}

impl Place {
    /// Reads the register of a loaded virtual processor where it is in the machine.
    fn read(self) -> Option<u64> {
        let value: u64;
        match self {
            Self::Vmcs(_) => return None,
            Self::Msr(number) => value = msr::try_read(number).unwrap_or(0),
            Self::Cr2 => value = registers::cr2(),
            Self::Dr6 => {
                // SAFETY: reading it changes nothing; DR7.GD is clear in host mode.
                unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
            }
        }
        Some(value)
    }

    /// Writes it there.
    fn write(self, value: u64) {
        match self {
            Self::Vmcs(_) => {}
            Self::Msr(number) => {
                // SAFETY: the hypervisor uses neither system calls nor SWAPGS, so what these hold is the guest's alone.
                let _ = unsafe { msr::try_write(number, value) };
            }
            Self::Cr2 => {
                // SAFETY: the hypervisor's own page faults are its end, so nothing but the guest reads it.
                unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
            }
            Self::Dr6 => {
                let value = value & u64::from(u32::MAX);
                // SAFETY: it holds flags only; no debug exception is handled in host mode. The upper half is 0.
                unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
            }
        }
    }
}

fn segments(save: &mut Save) -> [&mut VmcbSegment; 8] {
    let Save { es, cs, ss, ds, fs, gs, ldtr, tr, .. } = save;
    [es, cs, ss, ds, fs, gs, ldtr, tr]
}

/// Fills a new structure from the block.
#[cold]
pub fn fill(vmcs: Current, save: &mut Save) {
    for (index, segment) in segments(save).into_iter().enumerate() {
        write_segment(vmcs, index, *segment);
    }
    write_table(vmcs, TableName::Idtr, save.idtr);
    write_table(vmcs, TableName::Gdtr, save.gdtr);
    for (field, value) in [
        (Field::GuestDr7, save.dr7),
        (Field::GuestPat, save.guest_pat),
        (Field::GuestDebugCtl, save.debug_control),
        (Field::GuestSysenterCs, save.sysenter_cs),
        (Field::GuestSysenterEip, save.sysenter_eip),
        (Field::GuestSysenterEsp, save.sysenter_esp),
    ] {
        vmcs.write(field, value);
    }
}

/// Puts what is in the machine while a virtual processor is loaded into it.
pub fn load(save: &mut Save, machine: &Msrs) {
    Place::Cr2.write(save.cr2);
    Place::Dr6.write(save.dr6);
    machine.load(save);
}

/// Takes it back.
pub fn unload(save: &mut Save, machine: &mut Msrs) {
    save.cr2 = Place::Cr2.read().unwrap_or_default();
    save.dr6 = Place::Dr6.read().unwrap_or_default();
    machine.unload(save);
}

impl Vcpu {
    /// Runs `act` with this virtual processor's structure, if its registers are there.
    #[inline]
    pub(crate) fn in_structure<T>(&self, act: impl FnOnce(Current) -> T) -> Option<T> {
        let Engine::Vmx(own) = &self.engine else { return None };
        if !self.kept {
            return None;
        }
        let before = (!self.loaded).then(|| own.borrow_structure());
        // SAFETY: while a virtual processor is loaded its structure is current, and just now it has become so.
        let value = act(unsafe { Current::new() });
        if let Some(before) = before {
            own.return_structure(before, self.is_parent());
        }
        Some(value)
    }

    /// One of the registers that [`Vcpu::resident`] is about.
    #[inline(never)]
    pub(crate) fn resident(&self, register: Reg) -> u64 {
        let (save, cr4_owned) = (&self.vmcb.save, self.cr4_owned());
        let value = match register {
            Reg::Cr8 => return self.resident_priority(),
            Reg::Cr3 => self.in_structure(|vmcs| vmcs.read(Field::GuestCr3)),
            Reg::Efer => self.in_structure(|vmcs| vmcs.read(Field::GuestEfer)),
            // Bits that are not the guest's have the value that it was last let set.
            Reg::Cr0 => {
                let owned = save.cr0 & CR0_OWNED;
                self.in_structure(|vmcs| vmcs.read(Field::GuestCr0) & !CR0_OWNED | owned)
            }
            _ => {
                let owned = save.cr4 & cr4_owned;
                self.in_structure(|vmcs| vmcs.read(Field::GuestCr4) & !cr4_owned | owned)
            }
        };
        value.unwrap_or_default()
    }

    /// The task priority, which the processor has in the virtual APIC page.
    fn resident_priority(&self) -> u64 {
        match &self.engine {
            Engine::Vmx(own) => u64::from(own.apic_page[TASK_PRIORITY] >> 4),
            Engine::Svm => 0,
        }
    }

    /// Brings these registers up to date in the block, before one of them is changed there.
    pub(crate) fn recall(&mut self) {
        if !self.resident {
            return;
        }
        let Engine::Vmx(own) = &self.engine else { return };
        let before = (!self.loaded).then(|| own.borrow_structure());
        // SAFETY: as in `in_structure`.
        self.copy_resident(unsafe { Current::new() });
        if let (Engine::Vmx(own), Some(before)) = (&self.engine, before) {
            own.return_structure(before, self.is_parent());
        }
    }

    /// The same while the structure is current: all of them at once cost little more than one.
    #[inline]
    pub(super) fn copy_resident(&mut self, vmcs: Current) {
        let (cr4_owned, cr8) = (self.cr4_owned(), self.resident_priority());
        self.resident = false;
        let save = &mut self.vmcb.save;
        // Bits that are not the guest's have the value that it was last let set.
        save.cr0 = vmcs.read(Field::GuestCr0) & !CR0_OWNED | save.cr0 & CR0_OWNED;
        save.cr3 = vmcs.read(Field::GuestCr3);
        save.cr4 = vmcs.read(Field::GuestCr4) & !cr4_owned | save.cr4 & cr4_owned;
        save.efer = vmcs.read(Field::GuestEfer) | EFER_SVME;
        save.cpl = privilege_level(&vmcs);
        let rights = vmcs.read(Field::GuestCsRights);
        save.cs.attributes = (rights & 0xff | rights >> 4 & 0xf00) as u16;
        let control = &mut self.vmcb.control.interrupt_control;
        *control = *control & !V_TPR | cr8;
    }

    /// A register that is in the structure or in the machine rather than in the block.
    #[inline]
    pub(crate) fn kept(&self, register: Reg) -> Option<u64> {
        if !self.kept {
            return None;
        }
        match place(register)? {
            // SAFETY: while a virtual processor is loaded its structure is current.
            Place::Vmcs(field) if self.loaded => Some(unsafe { Current::new() }.read(field)),
            place => self.kept_elsewhere(place),
        }
    }

    #[cold]
    fn kept_elsewhere(&self, place: Place) -> Option<u64> {
        match place {
            Place::Vmcs(field) => self.in_structure(|vmcs| vmcs.read(field)),
            other => {
                if self.loaded {
                    other.read()
                } else {
                    None
                }
            }
        }
    }

    /// Changes such a register there, too.
    pub(crate) fn keep(&mut self, register: Reg, value: u64) {
        match place(register) {
            Some(Place::Vmcs(field)) => {
                self.in_structure(|vmcs| vmcs.write(field, value));
            }
            Some(other) if self.loaded && self.kept => other.write(value),
            _ => {}
        }
    }

    /// A segment register in the structure.
    #[inline(always)]
    pub(crate) fn kept_segment(&self, name: SegmentName) -> Segment {
        if self.loaded {
            // SAFETY: while a virtual processor is loaded its structure is current.
            read_visible(unsafe { Current::new() }, name)
        } else {
            self.borrowed_segment(name)
        }
    }

    /// ES, CS, SS, DS, FS and GS in the structure.
    #[inline(always)]
    pub(crate) fn kept_segments(&self, to: &mut [Segment; 6]) {
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        if !self.loaded {
            *to = [Es, Cs, Ss, Ds, Fs, Gs].map(|name| self.borrowed_segment(name));
            return;
        }
        // SAFETY: while a virtual processor is loaded its structure is current.
        let vmcs = unsafe { Current::new() };
        let [es, cs, ss, ds, fs, gs] = to;
        // No loop: the fields' numbers are constants so.
        *es = read_visible(vmcs, Es);
        *cs = read_visible(vmcs, Cs);
        *ss = read_visible(vmcs, Ss);
        *ds = read_visible(vmcs, Ds);
        *fs = read_visible(vmcs, Fs);
        *gs = read_visible(vmcs, Gs);
    }

    #[cold]
    fn borrowed_segment(&self, name: SegmentName) -> Segment {
        self.in_structure(|vmcs| read_visible(vmcs, name)).unwrap_or_default()
    }

    #[inline(never)]
    pub(crate) fn resident_code_attributes(&self) -> u16 {
        self.in_structure(|vmcs| vmcs.read(Field::GuestCsRights) as u16 & 0xf0ff).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn resident_cpl(&self) -> u8 {
        if self.loaded {
            // SAFETY: while a virtual processor is loaded its structure is current.
            privilege_level(&unsafe { Current::new() })
        } else {
            self.borrowed_cpl()
        }
    }

    #[cold]
    fn borrowed_cpl(&self) -> u8 {
        self.in_structure(|vmcs| privilege_level(&vmcs)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(attributes: u16, limit: u32) -> VmcbSegment {
        VmcbSegment { selector: 8, attributes, limit, base: 0 }
    }

    #[test]
    fn segments_are_what_an_entry_takes() {
        assert_eq!(encode(segment(0xa9b, u32::MAX)), (0xffff_ffff, 0xa09b), "64-bit code");
        assert_eq!(encode(segment(0x092, 0xffff)), (0xffff, 0x93), "accessed");
        assert_eq!(encode(segment(0x893, 0x1234)), (0x1234, 0x93), "no granularity with such a limit");
        assert_eq!(encode(segment(0x093, 0x12_3456)), (0x12_3fff, 0x8093), "granularity with that one");
        assert_eq!(encode(segment(0x013, 0)).1 & UNUSABLE, UNUSABLE, "not present");
        assert_eq!(encode(segment(0x082, 0xffff)), (0xffff, 0x82), "a table is not accessed");
    }

    #[test]
    fn segments_come_back() {
        for attributes in [0xa9b, 0xc93, 0x093, 0x8b, 0x82, 0xaf3] {
            let segment = segment(attributes, u32::MAX >> if attributes < 0x800 { 16 } else { 0 });
            let (limit, rights) = encode(segment);
            assert_eq!(visible(8, 0, limit, rights), segment.to_segment());
        }
        let unusable = visible(0, 0, 0, UNUSABLE | 0xc0f3).attributes;
        assert_eq!(unusable, 0xc073, "unusable: the privilege level stays");
    }

    #[test]
    fn what_the_block_has_is_nowhere_else() {
        for register in [Reg::Rip, Reg::Cr0, Reg::Xcr0, Reg::TscOffset] {
            assert_eq!(place(register), None);
        }
        assert_eq!(place(Reg::Pat), Some(Place::Vmcs(Field::GuestPat)));
    }
}
