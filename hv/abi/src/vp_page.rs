//! Pages that a VP shares: the register page with the parent (Linux `hvhdk.h`), the VP assist page with the guest
//! (TLFS `HV_VP_ASSIST_PAGE`).

use crate::message::Message;
use crate::registers::{InterruptStateRegister, PendingInterruptionRegister, RegisterValue, SegmentRegister};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The parent's window to a VP's registers (`HV_VP_REGISTER_PAGE`). Valid while the VP does not run; classes that the
/// parent marks dirty are loaded when it next runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpRegisterPage {
    /// [`Self::VERSION_1`].
    pub version: u16,
    /// Non-zero: the contents are the VP's.
    pub is_valid: u8,
    /// Zero.
    pub reserved0: u8,
    /// Which classes the parent has changed.
    pub dirty: RegisterPageDirty,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gp_registers: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Zero.
    pub reserved1: u64,
    /// XMM0..=XMM5.
    pub xmm: [RegisterValue; 6],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentRegister; 6],
    /// CR0. This and what follows is for reading.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// DR7.
    pub dr7: u64,
    /// Event for the next entry.
    pub pending_interruption: PendingInterruptionRegister,
    /// What the VP cannot take now.
    pub interrupt_state: InterruptStateRegister,
    /// Hints for an instruction emulator.
    pub instruction_emulation_hints: u64,
    /// XCR0.
    pub xfem: u64,
    /// Zero.
    pub reserved2: [u64; 32],
    /// Interrupts for the VP, for [`SCAN_INTERRUPT_INJECTION`](crate::hypercall::DispatchVpFlags::SCAN_INTERRUPT_INJECTION):
    /// the number in byte 0, vectors in bytes 1 to 7. Parent and hypervisor exchange it atomically.
    pub interrupt_vectors: u64,
}
const _: () = assert!(size_of::<VpRegisterPage>() == 0x2B8);

impl VpRegisterPage {
    /// The layout's version.
    pub const VERSION_1: u16 = 1;
    /// Vectors that fit in `interrupt_vectors`.
    pub const MAX_VECTORS: usize = 7;
    /// The byte offset of `interrupt_vectors`.
    pub const INTERRUPT_VECTORS_OFFSET: usize = core::mem::offset_of!(Self, interrupt_vectors);

    /// The vectors in a value of `interrupt_vectors`; a count above 7 counts as 7.
    pub fn vectors(interrupt_vectors: u64) -> impl Iterator<Item = u8> {
        let [count, vectors @ ..] = interrupt_vectors.to_le_bytes();
        vectors.into_iter().take(count.into())
    }
}

/// Classes of registers in the register page.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterPageDirty(pub u32);

bitflags! {
    impl RegisterPageDirty: u32 {
        /// `gp_registers`.
        const GENERAL = 1 << 0;
        /// `rip`.
        const INSTRUCTION_POINTER = 1 << 1;
        /// `xmm`.
        const XMM = 1 << 2;
        /// `segments`.
        const SEGMENTS = 1 << 3;
        /// `rflags`.
        const FLAGS = 1 << 4;
    }
}

/// Assists of a VP (`HV_VP_ASSIST_PAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpAssistPage {
    /// Bit 0 ([`Self::NO_EOI_REQUIRED`]): the guest need not write EOI; it clears the bit instead.
    pub apic_assist: u32,
    /// Zero.
    pub reserved0: u32,
    /// Why a VTL was entered.
    pub vtl_entry_reason: u32,
    /// Virtual interrupt notification assist.
    pub vtl_vina_status: u32,
    /// RAX at the return to the lower VTL.
    pub vtl_return_rax: u64,
    /// RCX at the return to the lower VTL.
    pub vtl_return_rcx: u64,
    /// Nested enlightenments: features, then hypercall controls.
    pub nested_enlightenments_control: [u32; 2],
    /// The nested guest's entry is enlightened.
    pub enlighten_vm_entry: u8,
    /// Zero.
    pub reserved1: [u8; 7],
    /// The GPA of the nested guest's enlightened VMCS.
    pub current_nested_vmcs: u64,
    /// The unhalted timer expired.
    pub synthetic_time_unhalted_timer_expired: u8,
    /// Zero.
    pub reserved2: [u8; 7],
    /// Virtualization fault.
    pub virtualization_fault_information: [u64; 5],
    /// Zero.
    pub reserved3: u64,
    /// The intercept that a VTL was entered for.
    pub intercept_message: Message,
    /// What to do at the return to the lower VTL.
    pub vtl_return_actions: [u64; 32],
    /// Zero.
    pub reserved4: [u64; 434],
}
const _: () = assert!(size_of::<VpAssistPage>() == 4096);

impl VpAssistPage {
    /// The bit of `apic_assist`.
    pub const NO_EOI_REQUIRED: u32 = 1;
}
