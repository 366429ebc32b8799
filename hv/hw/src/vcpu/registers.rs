//! Registers of a virtual processor: where each of them lives, and its state at the beginning.

use parterre_core::machine::{Reg, Segment, SegmentName, Table, TableName, gpr};

use super::features::SpecCtrl;
use super::{Vcpu, extended};
use crate::launch;
use crate::svm::vmcb::{Clean, Save, V_TPR, VmcbSegment};

/// EFER bits.
const SVME: u64 = 1 << 12;
const LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// CR0: PE, ET, NE, WP, PG.
const CR0_LONG_MODE: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// CR0 after INIT: CD, NW, ET.
const CR0_RESET: u64 = 0x6000_0010;
const CR4_PAE: u64 = 1 << 5;
/// PAT after power-on (APM 2, 7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
const RFLAGS_RESET: u64 = 2;

/// Reads a register.
#[inline(always)]
pub fn get(vcpu: &Vcpu, register: Reg) -> u64 {
    let save = &vcpu.vmcb().save;
    match register {
        Reg::Rip => save.rip,
        Reg::Rflags => save.rflags,
        Reg::Cr0 | Reg::Cr3 | Reg::Cr4 | Reg::Cr8 | Reg::Efer if vcpu.resident => vcpu.resident(register),
        Reg::Cr0 => save.cr0,
        Reg::Cr3 => save.cr3,
        Reg::Cr4 => save.cr4,
        Reg::Cr8 => vcpu.vmcb().control.interrupt_control & V_TPR,
        Reg::Efer => save.efer & !SVME,
        Reg::TscOffset => vcpu.vmcb().control.tsc_offset,
        Reg::SpecCtrl if vcpu.features.spec_ctrl == SpecCtrl::Virtual => save.spec_ctrl,
        // It exits on every write.
        Reg::Xcr0 => vcpu.registers.xcr0,
        Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::TscAux | Reg::Xss | Reg::SpecCtrl => {
            get_switched(vcpu, register)
        }
        _ => get_saved(vcpu, register),
    }
}

/// Reads a register that core seldom looks at.
#[inline]
fn get_saved(vcpu: &Vcpu, register: Reg) -> u64 {
    if let Some(value) = vcpu.kept(register) {
        return value;
    }
    let save = &vcpu.vmcb().save;
    match register {
        Reg::Cr2 => save.cr2,
        Reg::Dr6 => save.dr6,
        Reg::Dr7 => save.dr7,
        Reg::Pat => save.guest_pat,
        Reg::KernelGsBase => save.kernel_gs_base,
        Reg::Star => save.star,
        Reg::Lstar => save.lstar,
        Reg::Cstar => save.cstar,
        Reg::Sfmask => save.sfmask,
        Reg::SysenterCs => save.sysenter_cs,
        Reg::SysenterEip => save.sysenter_eip,
        Reg::SysenterEsp => save.sysenter_esp,
        _ => save.debug_control,
    }
}

/// Reads a register that stays in the machine between exits.
#[inline(never)]
fn get_switched(vcpu: &Vcpu, register: Reg) -> u64 {
    let mut registers = vcpu.registers;
    if vcpu.loaded {
        registers.debug = extended::debug();
        if vcpu.is_parent() {
            // SAFETY: `features` are this machine's.
            unsafe { registers.unload_msrs(&vcpu.features) };
        }
    }
    match register {
        Reg::Dr0 => registers.debug[0],
        Reg::Dr1 => registers.debug[1],
        Reg::Dr2 => registers.debug[2],
        Reg::Dr3 => registers.debug[3],
        Reg::TscAux => registers.tsc_aux,
        Reg::Xss => registers.xss,
        _ => registers.spec_ctrl,
    }
}

/// Writes a register.
pub fn set(vcpu: &mut Vcpu, register: Reg, value: u64) {
    if matches!(register, Reg::Cr0 | Reg::Cr3 | Reg::Cr4 | Reg::Cr8 | Reg::Efer) {
        vcpu.recall();
    }
    let changed = match register {
        Reg::Rip | Reg::Rflags => Clean::empty(),
        Reg::Cr0 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => Clean::CONTROL,
        Reg::Cr2 => Clean::CR2,
        Reg::Cr8 => Clean::INTERRUPT,
        Reg::Dr6 | Reg::Dr7 => Clean::DEBUG,
        Reg::Pat => Clean::NESTED,
        Reg::DebugCtl => Clean::LBR,
        Reg::TscOffset => Clean::INTERCEPTS,
        _ => Clean::empty(),
    };
    vcpu.touch(changed);
    let virtual_spec_ctrl = vcpu.features.spec_ctrl == SpecCtrl::Virtual;
    let vmcb = vcpu.vmcb_mut();
    let save = &mut vmcb.save;
    match register {
        Reg::Rip => save.rip = value,
        Reg::Rflags => save.rflags = value | RFLAGS_RESET,
        Reg::Cr0 => save.cr0 = value,
        Reg::Cr2 => save.cr2 = value,
        Reg::Cr3 => save.cr3 = value,
        Reg::Cr4 => save.cr4 = value,
        Reg::Cr8 => {
            let control = &mut vmcb.control.interrupt_control;
            *control = *control & !V_TPR | value & V_TPR;
        }
        Reg::Dr6 => save.dr6 = value,
        Reg::Dr7 => save.dr7 = value,
        Reg::Efer => save.efer = value | SVME,
        Reg::Pat => save.guest_pat = value,
        Reg::KernelGsBase => save.kernel_gs_base = value,
        Reg::Star => save.star = value,
        Reg::Lstar => save.lstar = value,
        Reg::Cstar => save.cstar = value,
        // Its upper half is reserved.
        Reg::Sfmask => save.sfmask = value & u64::from(u32::MAX),
        Reg::SysenterCs => save.sysenter_cs = value,
        Reg::SysenterEip => save.sysenter_eip = value,
        Reg::SysenterEsp => save.sysenter_esp = value,
        Reg::DebugCtl => save.debug_control = value,
        Reg::SpecCtrl if virtual_spec_ctrl => save.spec_ctrl = value,
        Reg::TscOffset => vmcb.control.tsc_offset = value,
        Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Xcr0 | Reg::TscAux | Reg::Xss | Reg::SpecCtrl => {
            set_switched(vcpu, register, value);
        }
    }
    vcpu.keep(register, value);
}

/// Writes a register that stays in the machine between exits, there too if the processor is loaded.
fn set_switched(vcpu: &mut Vcpu, register: Reg, value: u64) {
    let features = vcpu.features;
    if vcpu.loaded {
        vcpu.registers.debug = extended::debug();
        if vcpu.is_parent() {
            // SAFETY: `features` are this machine's.
            unsafe { vcpu.registers.unload_msrs(&features) };
        }
    }
    let registers = &mut vcpu.registers;
    match register {
        Reg::Dr0 => registers.debug[0] = value,
        Reg::Dr1 => registers.debug[1] = value,
        Reg::Dr2 => registers.debug[2] = value,
        Reg::Dr3 => registers.debug[3] = value,
        Reg::Xcr0 => registers.xcr0 = value & features.xcr0,
        Reg::TscAux => registers.tsc_aux = value & u64::from(u32::MAX),
        Reg::Xss => registers.xss = value,
        _ => registers.spec_ctrl = value,
    }
    if vcpu.loaded {
        // SAFETY: `features` are this machine's; core has checked the value, and XCR0 is cut to what the machine has.
        unsafe {
            vcpu.registers.load_debug();
            vcpu.registers.load_msrs(&features);
            if register == Reg::Xcr0 {
                extended::write_xcr0(vcpu.registers.xcr0, &features);
            }
        }
    }
}

fn segment_of(save: &mut Save, name: SegmentName) -> &mut VmcbSegment {
    match name {
        SegmentName::Es => &mut save.es,
        SegmentName::Cs => &mut save.cs,
        SegmentName::Ss => &mut save.ss,
        SegmentName::Ds => &mut save.ds,
        SegmentName::Fs => &mut save.fs,
        SegmentName::Gs => &mut save.gs,
        SegmentName::Ldtr => &mut save.ldtr,
        SegmentName::Tr => &mut save.tr,
    }
}

/// Reads a segment register.
#[inline(always)]
pub fn segment(save: &Save, name: SegmentName) -> Segment {
    match name {
        SegmentName::Es => save.es,
        SegmentName::Cs => save.cs,
        SegmentName::Ss => save.ss,
        SegmentName::Ds => save.ds,
        SegmentName::Fs => save.fs,
        SegmentName::Gs => save.gs,
        SegmentName::Ldtr => save.ldtr,
        SegmentName::Tr => save.tr,
    }
    .to_segment()
}

/// Reads ES, CS, SS, DS, FS and GS.
#[inline(always)]
pub fn segments(save: &Save, to: &mut [Segment; 6]) {
    let Save { es, cs, ss, ds, fs, gs, .. } = save;
    for (to, segment) in to.iter_mut().zip([es, cs, ss, ds, fs, gs]) {
        *to = segment.to_segment();
    }
}

/// Writes a segment register. The current privilege level follows SS.
pub fn set_segment(save: &mut Save, name: SegmentName, value: Segment) {
    *segment_of(save, name) = VmcbSegment::from_segment(value);
    if name == SegmentName::Ss {
        save.cpl = (value.attributes >> 5 & 3) as u8;
    }
}

/// Reads a descriptor table register.
pub fn table(save: &Save, name: TableName) -> Table {
    match name {
        TableName::Idtr => save.idtr.to_table(),
        TableName::Gdtr => save.gdtr.to_table(),
    }
}

/// Writes a descriptor table register.
pub fn set_table(save: &mut Save, name: TableName, value: Table) {
    match name {
        TableName::Idtr => save.idtr = VmcbSegment::from_table(value),
        TableName::Gdtr => save.gdtr = VmcbSegment::from_table(value),
    }
}

/// The state after power-on and INIT (APM 2 table 14-1), in 16-bit mode at the reset vector.
pub fn reset(save: &mut Save, gprs: &mut [u64; 16]) {
    const DATA: u16 = 0x93;
    let segment = |selector, base, attributes| VmcbSegment { selector, base, attributes, limit: 0xffff };
    save.cs = segment(0xf000, 0xffff_0000, 0x9b);
    for data in [&mut save.ds, &mut save.es, &mut save.fs, &mut save.gs, &mut save.ss] {
        *data = segment(0, 0, DATA);
    }
    save.gdtr = segment(0, 0, 0);
    save.idtr = segment(0, 0, 0);
    save.ldtr = segment(0, 0, 0x82);
    save.tr = segment(0, 0, 0x8b);
    save.cpl = 0;
    save.efer = SVME;
    (save.cr0, save.cr2, save.cr3, save.cr4) = (CR0_RESET, 0, 0, 0);
    (save.dr6, save.dr7) = (DR6_RESET, DR7_RESET);
    (save.rflags, save.rip, save.rsp, save.rax) = (RFLAGS_RESET, 0xfff0, 0, 0);
    save.guest_pat = PAT_RESET;
    *gprs = [0; 16];
    // Family, model and stepping, as at power-on.
    gprs[gpr::RDX] = core::arch::x86_64::__cpuid(1).eax.into();
}

/// The state in which the parent's kernel begins ([`launch::ParentStart`]).
pub fn start_kernel(save: &mut Save, gprs: &mut [u64; 16], start: &launch::ParentStart) {
    let flat = |selector, attributes| VmcbSegment { selector, attributes, limit: u32::MAX, base: 0 };
    reset(save, gprs);
    save.cs = flat(launch::PARENT_CODE_SELECTOR, 0xa9b);
    for data in [&mut save.ds, &mut save.es, &mut save.ss] {
        *data = flat(launch::PARENT_DATA_SELECTOR, 0xc93);
    }
    save.gdtr = VmcbSegment { base: start.gdt, limit: launch::PARENT_GDT_LIMIT.into(), ..save.gdtr };
    save.efer = SVME | LONG_MODE;
    (save.cr0, save.cr3, save.cr4) = (CR0_LONG_MODE, start.page_tables, CR4_PAE);
    save.rip = start.entry;
    gprs[gpr::RDX] = 0;
    gprs[gpr::RSI] = start.boot_params;
}
