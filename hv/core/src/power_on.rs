//! The register state of a processor after power-on, INIT and start-up (Intel SDM 3A, table 10-1; AMD APM 2, table 14-1).

use crate::machine::{Reg, Segment, SegmentName, Table, TableName, Vcpu, gpr};

/// Present, accessed data or code, as real mode has it.
const REAL_DATA: u16 = 0x93;
const REAL_CODE: u16 = 0x9B;
const LDT: u16 = 0x82;
const BUSY_TSS: u16 = 0x8B;
/// PAT after power-on: WB, WT, UC-, UC, twice.
pub(crate) const PAT: u64 = 0x0007_0406_0007_0406;
/// CR0 after power-on: CD, NW, ET.
const CR0: u64 = 0x6000_0010;

/// Puts `vcpu` into its power-on state. INIT differs in what it leaves alone: FPU state, PAT and time.
pub(crate) fn reset<V: Vcpu>(vcpu: &mut V, signature: u32) {
    init(vcpu, signature);
    vcpu.set(Reg::Cr0, CR0);
    vcpu.set(Reg::Pat, PAT);
    vcpu.set(Reg::Xcr0, 1);
    vcpu.set(Reg::TscAux, 0);
    vcpu.set(Reg::Xss, 0);
    vcpu.set(Reg::SpecCtrl, 0);
    for register in [Reg::Star, Reg::Lstar, Reg::Cstar, Reg::Sfmask, Reg::KernelGsBase] {
        vcpu.set(register, 0);
    }
    for register in [Reg::SysenterCs, Reg::SysenterEip, Reg::SysenterEsp] {
        vcpu.set(register, 0);
    }
    let area = vcpu.xsave_mut();
    area.fill(0);
    // FCW 0x37F and MXCSR 0x1F80, as after FNINIT and power-on.
    area[..2].copy_from_slice(&0x37Fu16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1F80u32.to_le_bytes());
}

/// What INIT does. `signature` is the processor's, left in EDX.
pub(crate) fn init<V: Vcpu>(vcpu: &mut V, signature: u32) {
    *vcpu.gprs_mut() = [0; 16];
    vcpu.gprs_mut()[gpr::RDX] = u64::from(signature);
    let caching = vcpu.get(Reg::Cr0) & 0x6000_0000;
    vcpu.set(Reg::Efer, 0);
    vcpu.set(Reg::Cr0, caching | 0x10);
    for register in [Reg::Cr2, Reg::Cr3, Reg::Cr4, Reg::Cr8, Reg::DebugCtl] {
        vcpu.set(register, 0);
    }
    for register in [Reg::Dr0, Reg::Dr1, Reg::Dr2, Reg::Dr3] {
        vcpu.set(register, 0);
    }
    vcpu.set(Reg::Dr6, 0xFFFF_0FF0);
    vcpu.set(Reg::Dr7, 0x400);
    vcpu.set(Reg::Rflags, 2);
    vcpu.set(Reg::Rip, 0xFFF0);
    let data = Segment { base: 0, limit: 0xFFFF, selector: 0, attributes: REAL_DATA };
    for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
        vcpu.set_segment(name, data);
    }
    let code = Segment { base: 0xFFFF_0000, selector: 0xF000, attributes: REAL_CODE, ..data };
    vcpu.set_segment(SegmentName::Cs, code);
    vcpu.set_segment(SegmentName::Ldtr, Segment { attributes: LDT, ..data });
    vcpu.set_segment(SegmentName::Tr, Segment { attributes: BUSY_TSS, ..data });
    for name in [TableName::Gdtr, TableName::Idtr] {
        vcpu.set_table(name, Table { base: 0, limit: 0xFFFF });
    }
    vcpu.inject(None);
    vcpu.set_interrupt_shadow(false);
    vcpu.set_nmi_masked(false);
    vcpu.request_interrupt_window(None);
    vcpu.request_nmi_window(false);
    vcpu.flush_tlb();
}

/// Has `vcpu`, in its state after [`init`], begin at the page that a start-up message names.
pub(crate) fn start_up<V: Vcpu>(vcpu: &mut V, page: u8) {
    let code = Segment {
        base: u64::from(page) << 12,
        limit: 0xFFFF,
        selector: u16::from(page) << 8,
        attributes: REAL_CODE,
    };
    vcpu.set_segment(SegmentName::Cs, code);
    vcpu.set(Reg::Rip, 0);
}
