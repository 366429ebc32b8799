//! Registers on their way between a control block and the current structure: those that core seldom looks at. They stay
//! in the structure or in the machine while a virtual processor is loaded, and are in its block while it is not.

use core::arch::asm;

use parterre_core::machine::Reg;

use super::field::{Current, Field, Source};
use crate::cpu::msr;
use crate::svm::vmcb::{Save, VmcbSegment};

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
/// Base and limit of GDTR and IDTR.
const GDTR: [Field; 2] = [Field::GuestGdtrBase, Field::GuestGdtrLimit];
const IDTR: [Field; 2] = [Field::GuestIdtrBase, Field::GuestIdtrLimit];

/// Rights: the segment register is not usable.
const UNUSABLE: u64 = 1 << 16;
const PRESENT: u64 = 1 << 7;
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
pub fn decode(selector: u64, base: u64, limit: u64, rights: u64) -> VmcbSegment {
    let rights = if rights & UNUSABLE != 0 { rights & !PRESENT } else { rights };
    VmcbSegment {
        selector: selector as u16,
        attributes: (rights & 0xff | rights >> 4 & 0xf00) as u16,
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

/// Reads segment register `index`.
pub fn read_segment(vmcs: &impl Source, index: usize) -> VmcbSegment {
    let [selector, base, limit, rights] = SEGMENTS[index].map(|field| vmcs.read(field));
    decode(selector, base, limit, rights)
}

/// The current privilege level: that of SS.
pub fn privilege_level(vmcs: &impl Source) -> u8 {
    (vmcs.read(Field::GuestSsRights) >> 5 & 3) as u8
}

fn write_table(vmcs: Current, [base, limit]: [Field; 2], table: VmcbSegment) {
    vmcs.write(base, table.base);
    vmcs.write(limit, u64::from(table.limit & 0xffff));
}

fn read_table(vmcs: &impl Source, [base, limit]: [Field; 2]) -> VmcbSegment {
    VmcbSegment { base: vmcs.read(base), limit: vmcs.read(limit) as u32, ..VmcbSegment::default() }
}

/// Reads IDTR and GDTR.
pub fn read_tables(vmcs: &impl Source) -> (VmcbSegment, VmcbSegment) {
    (read_table(vmcs, IDTR), read_table(vmcs, GDTR))
}

/// Writes IDTR and GDTR.
pub fn write_tables(vmcs: Current, save: &Save) {
    write_table(vmcs, IDTR, save.idtr);
    write_table(vmcs, GDTR, save.gdtr);
}

/// Where a register is that core seldom looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Vmcs(Field),
    Msr(u32),
    Cr2,
    Dr6,
}

/// The registers of [`Place`]s.
const COLD: [Reg; 13] = [
    Reg::Cr2,
    Reg::Dr6,
    Reg::Dr7,
    Reg::Pat,
    Reg::KernelGsBase,
    Reg::Star,
    Reg::Lstar,
    Reg::Cstar,
    Reg::Sfmask,
    Reg::SysenterCs,
    Reg::SysenterEip,
    Reg::SysenterEsp,
    Reg::DebugCtl,
];

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
        Reg::Star => Place::Msr(0xc000_0081),
        Reg::Lstar => Place::Msr(0xc000_0082),
        Reg::Cstar => Place::Msr(0xc000_0083),
        Reg::Sfmask => Place::Msr(0xc000_0084),
        Reg::KernelGsBase => Place::Msr(0xc000_0102),
        _ => return None,
    })
}

/// Reads a register of a loaded virtual processor; `None` for those that the control block has.
pub fn read(vmcs: Current, register: Reg) -> Option<u64> {
    let value: u64;
    Some(match place(register)? {
        Place::Vmcs(field) => vmcs.read(field),
        Place::Msr(number) => msr::try_read(number).unwrap_or(0),
        Place::Cr2 => {
            // SAFETY: reading it changes nothing.
            unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        Place::Dr6 => {
            // SAFETY: reading it changes nothing; DR7.GD is clear in host mode.
            unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    })
}

/// Writes a register of a loaded virtual processor; without effect on those that the control block has.
pub fn write(vmcs: Current, register: Reg, value: u64) {
    match place(register) {
        None => {}
        Some(Place::Vmcs(field)) => vmcs.write(field, value),
        Some(Place::Msr(number)) => {
            // SAFETY: the hypervisor uses neither system calls nor SWAPGS, so what these hold is the guest's alone.
            let _ = unsafe { msr::try_write(number, value) };
        }
        Some(Place::Cr2) => {
            // SAFETY: the hypervisor's own page faults are its end, so nothing but the guest reads it.
            unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
        }
        Some(Place::Dr6) => {
            let value = value & u64::from(u32::MAX);
            // SAFETY: it holds flags only; no debug exception is handled in host mode. The upper half is 0.
            unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
        }
    }
}

fn saved(save: &mut Save, register: Reg) -> Option<&mut u64> {
    Some(match register {
        Reg::Cr2 => &mut save.cr2,
        Reg::Dr6 => &mut save.dr6,
        Reg::Dr7 => &mut save.dr7,
        Reg::Pat => &mut save.guest_pat,
        Reg::KernelGsBase => &mut save.kernel_gs_base,
        Reg::Star => &mut save.star,
        Reg::Lstar => &mut save.lstar,
        Reg::Cstar => &mut save.cstar,
        Reg::Sfmask => &mut save.sfmask,
        Reg::SysenterCs => &mut save.sysenter_cs,
        Reg::SysenterEip => &mut save.sysenter_eip,
        Reg::SysenterEsp => &mut save.sysenter_esp,
        Reg::DebugCtl => &mut save.debug_control,
        _ => return None,
    })
}

fn segments(save: &mut Save) -> [&mut VmcbSegment; 8] {
    let Save { es, cs, ss, ds, fs, gs, ldtr, tr, .. } = save;
    [es, cs, ss, ds, fs, gs, ldtr, tr]
}

/// Carries all of them from the block into the structure and the machine.
pub fn load(vmcs: Current, save: &mut Save) {
    for register in COLD {
        if let Some(value) = saved(save, register) {
            write(vmcs, register, *value);
        }
    }
    for (index, segment) in segments(save).into_iter().enumerate() {
        write_segment(vmcs, index, *segment);
    }
    write_tables(vmcs, save);
}

/// Carries all of them back into the block.
pub fn unload(vmcs: Current, save: &mut Save) {
    for register in COLD {
        if let (Some(place), Some(value)) = (saved(save, register), read(vmcs, register)) {
            *place = value;
        }
    }
    for (index, segment) in segments(save).into_iter().enumerate() {
        *segment = read_segment(&vmcs, index);
    }
    (save.idtr, save.gdtr) = read_tables(&vmcs);
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
            assert_eq!(decode(8, 0, limit, rights), segment);
        }
        assert_eq!(
            decode(0, 0, 0, UNUSABLE | 0xc0f3).attributes,
            0xc73,
            "unusable: the privilege level stays"
        );
    }

    #[test]
    fn every_cold_register_has_two_places() {
        let vmcb = crate::svm::vmcb::zeroed();
        let mut save = vmcb.save;
        for register in COLD {
            assert!(place(register).is_some() && saved(&mut save, register).is_some());
        }
        assert_eq!(place(Reg::Rip), None);
    }
}
