//! Registers for suspension, pending events and interruptibility.

use crate::registers::RegisterValue;
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Whether a VP is suspended; the layout of `EXPLICIT_SUSPEND`, `INTERCEPT_SUSPEND` and `DISPATCH_SUSPEND`.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SuspendRegister {
    /// The VP does not run.
    pub suspended: bool,
    /// Must be zero.
    #[bits(63)]
    pub reserved: u64,
}

/// Why a VP does not run by its own doing (`HV_INTERNAL_ACTIVITY_REGISTER`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InternalActivityRegister {
    /// The VP waits for a start-up IPI.
    pub startup_suspend: bool,
    /// The VP executed HLT.
    pub halt_suspend: bool,
    /// The VP read MSR GUEST_IDLE.
    pub idle_suspend: bool,
    /// Must be zero.
    #[bits(61)]
    pub reserved: u64,
}

/// The kind of a pending interruption (`HV_X64_PENDING_INTERRUPTION_TYPE`), as VMX and SVM encode it.
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterruptionType {
    /// External interrupt.
    INTERRUPT = 0,
    /// Non-maskable interrupt.
    NMI = 2,
    /// Hardware exception.
    EXCEPTION = 3,
    /// INT n.
    SOFTWARE_INTERRUPT = 4,
    /// INT1.
    PRIVILEGED_SOFTWARE_EXCEPTION = 5,
    /// INT3 or INTO.
    SOFTWARE_EXCEPTION = 6,
}

/// An event to be delivered at the next entry (`HV_X64_PENDING_INTERRUPTION_REGISTER`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PendingInterruptionRegister {
    /// There is one.
    pub interruption_pending: bool,
    /// Its kind, see [`InterruptionType`].
    #[bits(3)]
    pub interruption_type: u8,
    /// `error_code` is pushed.
    pub deliver_error_code: bool,
    /// Length of the instruction that caused a software event.
    #[bits(4)]
    pub instruction_length: u8,
    /// The event is for a nested guest.
    pub nested_event: bool,
    /// Reserved.
    #[bits(6)]
    pub reserved: u8,
    /// The vector.
    pub interruption_vector: u16,
    /// The error code.
    pub error_code: u32,
}

/// What the VP cannot take now (`HV_X64_INTERRUPT_STATE_REGISTER`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptStateRegister {
    /// The instruction after STI or MOV SS is still to come.
    pub interrupt_shadow: bool,
    /// An NMI handler runs.
    pub nmi_masked: bool,
    /// Reserved.
    #[bits(62)]
    pub reserved: u64,
}

/// The parent wants to know when the VP can take an interrupt (`HV_DELIVERABILITY_NOTIFICATIONS_REGISTER`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeliverabilityNotificationsRegister {
    /// When an NMI could be delivered.
    pub nmi_notification: bool,
    /// When an interrupt of `interrupt_priority` could be delivered.
    pub interrupt_notification: bool,
    /// Priority class, vector bits 7:4; 0 means any.
    #[bits(4)]
    pub interrupt_priority: u8,
    /// Must be zero.
    #[bits(42)]
    pub reserved: u64,
    /// SINTs that the parent wants to post a message to when their slot is free.
    pub sints: u16,
}

/// The kind of a pending event (`HV_X64_PENDING_EVENT_TYPE`).
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum PendingEventType {
    /// An exception, see [`PendingExceptionEvent`].
    EXCEPTION = 0,
    /// A memory intercept.
    MEMORY_INTERCEPT = 1,
    /// A nested memory intercept.
    NESTED_MEMORY_INTERCEPT = 2,
    /// A virtualization fault.
    VIRTUALIZATION_FAULT = 3,
    /// A hypercall's output is still to be written.
    HYPERCALL_OUTPUT = 4,
    /// An external interrupt from a PIC, see [`PendingExtIntEvent`].
    EXT_INT = 5,
    /// A shadow page table intercept.
    SHADOW_IPT = 6,
}

/// An exception in `PENDING_EVENT0` (`HV_X64_PENDING_EXCEPTION_EVENT`), 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PendingExceptionEvent {
    /// There is one.
    pub event_pending: bool,
    /// See [`PendingEventType`].
    #[bits(3)]
    pub event_type: u8,
    /// Reserved.
    #[bits(4)]
    pub reserved0: u8,
    /// `error_code` is pushed.
    pub deliver_error_code: bool,
    /// Reserved.
    #[bits(7)]
    pub reserved1: u8,
    /// The vector.
    pub vector: u16,
    /// The error code.
    pub error_code: u32,
    /// CR2 of a page fault, DR6 of a debug exception.
    pub exception_parameter: u64,
}

/// An interrupt of the virtual PIC in `PENDING_EVENT0` or `1` (`HV_X64_PENDING_EXT_INT_EVENT`), 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PendingExtIntEvent {
    /// There is one.
    pub event_pending: bool,
    /// See [`PendingEventType`].
    #[bits(3)]
    pub event_type: u8,
    /// Reserved.
    #[bits(4)]
    pub reserved0: u8,
    /// The vector.
    pub vector: u8,
    /// Reserved.
    #[bits(48)]
    pub reserved1: u64,
    /// Reserved.
    pub reserved2: u64,
}

macro_rules! register_layout {
    ($($layout:ty => $size:literal),* $(,)?) => { $(
        const _: () = assert!(size_of::<$layout>() == $size);
        impl From<$layout> for RegisterValue {
            fn from(layout: $layout) -> Self {
                layout.into_bits().into()
            }
        }
    )* };
}
register_layout! {
    SuspendRegister => 8,
    InternalActivityRegister => 8,
    PendingInterruptionRegister => 8,
    InterruptStateRegister => 8,
    DeliverabilityNotificationsRegister => 8,
    PendingExceptionEvent => 16,
    PendingExtIntEvent => 16,
}
