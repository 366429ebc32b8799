//! The virtual machine control block (AMD APM volume 2, appendix B): plain data in a page of its own.
//!
//! The names are the manual's. The processor reads the block at VMRUN and VMLOAD and writes it at #VMEXIT and VMSAVE;
//! at no other time, so between runs it is ordinary memory.

use core::mem::offset_of;

use bitflags::bitflags;
use parterre_core::machine::{Segment, Table};

/// A segment or descriptor table register in the state save area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VmcbSegment {
    /// Selector.
    pub selector: u16,
    /// Bits 47:40 and 55:52 of the descriptor, packed into 12 bits.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl VmcbSegment {
    /// The register with its attributes spread as in `HV_X64_SEGMENT_REGISTER`: descriptor bits 47:40 in bits 7:0,
    /// descriptor bits 55:52 in bits 15:12.
    pub fn to_segment(self) -> Segment {
        let attributes = self.attributes & 0xff | (self.attributes & 0xf00) << 4;
        Segment { base: self.base, limit: self.limit, selector: self.selector, attributes }
    }

    /// The inverse of [`VmcbSegment::to_segment`]; bits 11:8 do not exist here and are dropped.
    pub fn from_segment(segment: Segment) -> Self {
        let attributes = segment.attributes & 0xff | segment.attributes >> 4 & 0xf00;
        Self { base: segment.base, limit: segment.limit, selector: segment.selector, attributes }
    }

    /// A descriptor table register.
    pub fn from_table(table: Table) -> Self {
        Self { base: table.base, limit: table.limit.into(), ..Self::default() }
    }

    /// As a descriptor table register. The processor keeps such a limit within 16 bits.
    pub fn to_table(self) -> Table {
        Table { base: self.base, limit: self.limit as u16 }
    }
}

/// The control area (APM table B-1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Control {
    pub intercept_cr_read: u16,
    pub intercept_cr_write: u16,
    pub intercept_dr_read: u16,
    pub intercept_dr_write: u16,
    pub intercept_exceptions: u32,
    /// Vectors 3, 4 and 5.
    pub intercepts: [u32; 3],
    reserved_018: [u32; 9],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub interrupt_control: u64,
    pub interrupt_state: u64,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    pub exit_interrupt_info: u64,
    pub nested_control: u64,
    reserved_098: [u64; 2],
    pub event_injection: u64,
    pub nested_cr3: u64,
    pub lbr_control: u64,
    pub clean: u32,
    reserved_0c4: u32,
    pub next_rip: u64,
    pub bytes_fetched: u8,
    pub instruction_bytes: [u8; 15],
    reserved_0e0: [u64; 100],
}

impl Control {
    /// What is intercepted by vectors 3 and 4.
    pub fn intercepts(&self) -> Intercepts {
        Intercepts::from_bits_retain(u64::from(self.intercepts[0]) | u64::from(self.intercepts[1]) << 32)
    }

    /// Sets what is intercepted by vectors 3 and 4.
    pub fn set_intercepts(&mut self, intercepts: Intercepts) {
        self.intercepts[0] = intercepts.bits() as u32;
        self.intercepts[1] = (intercepts.bits() >> 32) as u32;
    }
}

/// The state save area (APM table B-2).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Save {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_0a0: [u8; 43],
    pub cpl: u8,
    reserved_0cc: u32,
    pub efer: u64,
    reserved_0d8: [u64; 14],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u64; 11],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u64; 4],
    pub guest_pat: u64,
    pub debug_control: u64,
    reserved_278: [u64; 13],
    pub spec_ctrl: u64,
    reserved_2e8: [u64; 291],
}

/// A virtual machine control block.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// What is intercepted, injected and told about an exit.
    pub control: Control,
    /// The guest's registers.
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(size_of::<Control>() == 0x400);
    assert!(offset_of!(Control, intercepts) == 0x00c);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x03c);
    assert!(offset_of!(Control, asid) == 0x058);
    assert!(offset_of!(Control, interrupt_control) == 0x060);
    assert!(offset_of!(Control, exit_code) == 0x070);
    assert!(offset_of!(Control, nested_control) == 0x090);
    assert!(offset_of!(Control, event_injection) == 0x0a8);
    assert!(offset_of!(Control, clean) == 0x0c0);
    assert!(offset_of!(Control, instruction_bytes) == 0x0d1);
    assert!(offset_of!(Save, tr) == 0x090);
    assert!(offset_of!(Save, cpl) == 0x0cb);
    assert!(offset_of!(Save, efer) == 0x0d0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, guest_pat) == 0x268);
    assert!(offset_of!(Save, spec_ctrl) == 0x2e0);
};

bitflags! {
    /// Intercept vectors 3 (bits 31:0) and 4 (bits 63:32).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(missing_docs)]
    pub struct Intercepts: u64 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        const RDPMC = 1 << 15;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INVD = 1 << 22;
        const PAUSE = 1 << 23;
        const HLT = 1 << 24;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const SHUTDOWN = 1 << 31;
        const VMRUN = 1 << 32;
        const VMMCALL = 1 << 33;
        const VMLOAD = 1 << 34;
        const VMSAVE = 1 << 35;
        const STGI = 1 << 36;
        const CLGI = 1 << 37;
        const SKINIT = 1 << 38;
        const WBINVD = 1 << 41;
        const MONITOR = 1 << 42;
        const MWAIT = 1 << 43;
        const MWAIT_ARMED = 1 << 44;
        const XSETBV = 1 << 45;
        const RDPRU = 1 << 46;
    }

    /// Groups of state that have not changed since the last VMRUN of the block on this processor (APM 2, 15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Clean: u32 {
        /// Intercept vectors, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the permission maps.
        const PERMISSIONS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// Virtual TPR and virtual interrupt.
        const INTERRUPT = 1 << 3;
        /// Nested paging: nCR3, guest PAT.
        const NESTED = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL = 1 << 5;
        /// DR6, DR7.
        const DEBUG = 1 << 6;
        /// GDTR, IDTR.
        const TABLES = 1 << 7;
        /// CS, DS, SS, ES and the CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last branch recording.
        const LBR = 1 << 10;
    }
}

/// `interrupt_control`: the virtual task priority.
pub const V_TPR: u64 = 0xf;
/// `interrupt_control`: a virtual interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// `interrupt_control`: shift of the virtual interrupt's priority.
pub const V_INTR_PRIO_SHIFT: u32 = 16;
/// `interrupt_control`: the virtual interrupt's priority.
pub const V_INTR_PRIO: u64 = 0xf << V_INTR_PRIO_SHIFT;
/// `interrupt_control`: the guest's RFLAGS.IF and CR8 concern virtual interrupts only.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// `interrupt_control`: shift of the virtual interrupt's vector.
pub const V_INTR_VECTOR_SHIFT: u32 = 32;
/// `interrupt_control`: the virtual interrupt's vector.
pub const V_INTR_VECTOR: u64 = 0xff << V_INTR_VECTOR_SHIFT;
/// `interrupt_state`: interrupts are held off for one instruction.
pub const INTERRUPT_SHADOW: u64 = 1 << 0;
/// `nested_control`: nested paging.
pub const NP_ENABLE: u64 = 1 << 0;
/// `tlb_control`: flush every translation.
pub const TLB_FLUSH_ALL: u32 = 1;
/// `tlb_control`: flush the translations of this ASID.
pub const TLB_FLUSH_ASID: u32 = 3;

/// Exit codes (APM 2, appendix C).
#[allow(missing_docs)]
pub mod exit_code {
    pub const CR4_WRITE: u64 = 0x14;
    pub const EXCEPTION_FIRST: u64 = 0x40;
    pub const EXCEPTION_DB: u64 = 0x41;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const INVLPGB: u64 = 0xa0;
    pub const INVLPGB_ILLEGAL: u64 = 0xa1;
    pub const MCOMMIT: u64 = 0xa3;
    pub const TLBSYNC: u64 = 0xa4;
    pub const NPF: u64 = 0x400;
}

/// A block of zeros, for tests.
#[cfg(test)]
pub fn zeroed() -> Box<Vmcb> {
    // SAFETY: the block is integers all through.
    unsafe { Box::<Vmcb>::new_zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_attributes_keep_every_bit() {
        // A 64-bit code segment: G, L, P, S, type 0xb.
        let segment =
            VmcbSegment { selector: 0x10, attributes: 0xa9b, limit: u32::MAX, base: 7 }.to_segment();
        assert_eq!(segment.attributes, 0xa09b);
        for bit in (0..8).chain(12..16) {
            let segment = Segment { base: 1, limit: 2, selector: 3, attributes: 1 << bit };
            assert_eq!(VmcbSegment::from_segment(segment).to_segment(), segment);
        }
        let segment = Segment { attributes: 0x0f00, ..Segment::default() };
        assert_eq!(VmcbSegment::from_segment(segment).attributes, 0);
    }

    #[test]
    fn tables_keep_their_limit() {
        let table = Table { base: 0xffff_8000_0000_0000, limit: 0xfff };
        assert_eq!(VmcbSegment::from_table(table).to_table(), table);
    }

    #[test]
    fn intercept_vectors_are_two_words() {
        let mut vmcb = zeroed();
        vmcb.control.set_intercepts(Intercepts::VMRUN | Intercepts::NMI);
        assert_eq!(vmcb.control.intercepts, [2, 1, 0]);
        assert_eq!(vmcb.control.intercepts(), Intercepts::VMRUN | Intercepts::NMI);
    }
}
