//! Synthetic MSRs: numbers and layouts (TLFS chapters "Virtual Processors", "Virtual Interrupt Control", "Timers").
//!
//! Pages that these registers enable are laid out in [`crate::timer`], [`crate::synic`] and [`crate::vp_page`].

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first MSR number reserved for the hypervisor.
pub const SYNTHETIC_FIRST: u32 = 0x4000_0000;
/// The last MSR number reserved for the hypervisor.
pub const SYNTHETIC_LAST: u32 = 0x4000_FFFF;

/// The guest says who it is; a non-zero value is the condition for hypercalls. Layout: [`GuestOsId`].
pub const GUEST_OS_ID: u32 = 0x4000_0000;
/// Enables the hypercall page. Layout: [`HypercallMsr`].
pub const HYPERCALL: u32 = 0x4000_0001;
/// Read-only: the VP's index.
pub const VP_INDEX: u32 = 0x4000_0002;
/// Writing bit 0 resets the partition.
pub const RESET: u32 = 0x4000_0003;
/// Read-only: the time the VP has run, in 100 ns.
pub const VP_RUNTIME: u32 = 0x4000_0010;
/// Read-only: the partition's reference time, in 100 ns.
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
/// Enables the reference TSC page. Layout: [`OverlayPageMsr`].
pub const REFERENCE_TSC: u32 = 0x4000_0021;
/// Read-only: the TSC's frequency in Hz.
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
/// Read-only: the local APIC timer's frequency in Hz.
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
/// Controls the non-privileged instruction execution prevention.
pub const NPIEP_CONFIG: u32 = 0x4000_0040;
/// Write-only: end of interrupt.
pub const EOI: u32 = 0x4000_0070;
/// The APIC's interrupt command register: high half is the destination as in xAPIC's ICR-high.
pub const ICR: u32 = 0x4000_0071;
/// The APIC's task priority register.
pub const TPR: u32 = 0x4000_0072;
/// Enables the VP assist page. Layout: [`OverlayPageMsr`].
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
/// SynIC control. Layout: [`Scontrol`].
pub const SCONTROL: u32 = 0x4000_0080;
/// Read-only: the SynIC's version, [`SYNIC_VERSION_1`].
pub const SVERSION: u32 = 0x4000_0081;
/// Enables the event flags page. Layout: [`OverlayPageMsr`].
pub const SIEFP: u32 = 0x4000_0082;
/// Enables the message page. Layout: [`OverlayPageMsr`].
pub const SIMP: u32 = 0x4000_0083;
/// Write-only: end of message.
pub const EOM: u32 = 0x4000_0084;
/// Enables the event ring page (root partition). Layout: [`OverlayPageMsr`].
pub const SIRBP: u32 = 0x4000_0085;
/// The first synthetic interrupt source. Layout: [`Sint`].
pub const SINT0: u32 = 0x4000_0090;
/// The last synthetic interrupt source.
pub const SINT15: u32 = 0x4000_009F;
/// The first synthetic timer's configuration; configurations and counts alternate. Layout: [`StimerConfig`].
pub const STIMER0_CONFIG: u32 = 0x4000_00B0;
/// The first synthetic timer's count.
pub const STIMER0_COUNT: u32 = 0x4000_00B1;
/// The last synthetic timer's count.
pub const STIMER3_COUNT: u32 = 0x4000_00B7;
/// Reading it halts the VP until an interrupt comes, even with interrupts off.
pub const GUEST_IDLE: u32 = 0x4000_00F0;
/// Synthetic debugger control.
pub const SYNDBG_CONTROL: u32 = 0x4000_00F1;
/// Synthetic debugger status.
pub const SYNDBG_STATUS: u32 = 0x4000_00F2;
/// Synthetic debugger send buffer.
pub const SYNDBG_SEND_BUFFER: u32 = 0x4000_00F3;
/// Synthetic debugger receive buffer.
pub const SYNDBG_RECEIVE_BUFFER: u32 = 0x4000_00F4;
/// Synthetic debugger pending buffer.
pub const SYNDBG_PENDING_BUFFER: u32 = 0x4000_00F5;
/// Debug device options.
pub const DEBUG_DEVICE_OPTIONS: u32 = 0x4000_00FF;
/// The first of five crash parameters.
pub const CRASH_P0: u32 = 0x4000_0100;
/// The last of five crash parameters.
pub const CRASH_P4: u32 = 0x4000_0104;
/// Crash control. Layout: [`CrashCtl`].
pub const CRASH_CTL: u32 = 0x4000_0105;
/// Reenlightenment after migration: control.
pub const REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
/// TSC emulation after migration: control.
pub const TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
/// TSC emulation after migration: status.
pub const TSC_EMULATION_STATUS: u32 = 0x4000_0108;
/// Says that the guest can use the invariant TSC. Bit 0 exposes it in CPUID 0x8000_0007.
pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
/// The SynIC control of a nested hypervisor; its other SynIC registers lie 0x1000 above the plain ones too.
pub const NESTED_SCONTROL: u32 = 0x4000_1080;

/// The SynIC version that [`SVERSION`] reports.
pub const SYNIC_VERSION_1: u64 = 1;
/// Synthetic interrupt sources of a VP.
pub const SINT_COUNT: usize = 16;
/// Synthetic timers of a VP.
pub const STIMER_COUNT: usize = 4;

/// Where a page of the guest address space that the hypervisor overlays lies, and whether it is enabled.
/// The common layout of [`REFERENCE_TSC`], [`VP_ASSIST_PAGE`], [`SIEFP`], [`SIMP`] and [`SIRBP`].
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OverlayPageMsr {
    /// Whether the page is there.
    pub enabled: bool,
    /// Kept as written.
    #[bits(11)]
    pub preserved: u64,
    /// The page's GPA page number.
    #[bits(52)]
    pub page_number: u64,
}

/// The hypercall page register ([`HYPERCALL`]).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallMsr {
    /// Whether the page is there; stays 0 while the guest OS id is 0.
    pub enabled: bool,
    /// Makes the register immutable until reset.
    pub locked: bool,
    /// Kept as written.
    #[bits(10)]
    pub preserved: u64,
    /// The page's GPA page number.
    #[bits(52)]
    pub page_number: u64,
}

/// Who the guest is ([`GUEST_OS_ID`]), in the encoding for open source systems; Microsoft's has bit 63 clear.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestOsId {
    /// Build number.
    pub build_number: u16,
    /// Version; Linux puts its version code here.
    pub version: u32,
    /// Distribution-specific.
    pub os_id: u8,
    /// OS type: Linux is 1.
    #[bits(7)]
    pub os_type: u8,
    /// The system is open source.
    pub open_source: bool,
}

/// SynIC control ([`SCONTROL`]).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Scontrol {
    /// Whether messages and events are delivered.
    pub enabled: bool,
    /// Kept as written.
    #[bits(63)]
    pub preserved: u64,
}

/// A synthetic interrupt source ([`SINT0`] and following; `HV_SYNIC_SINT`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sint {
    /// The vector, 16..=255.
    pub vector: u8,
    /// Kept as written.
    pub reserved1: u8,
    /// No interrupt is made.
    pub masked: bool,
    /// The interrupt is acknowledged implicitly when it is delivered.
    pub auto_eoi: bool,
    /// Messages and events are stored without an interrupt.
    pub polling: bool,
    /// Events are announced by a message on SINT 0 (root partition's doorbells).
    pub as_intercept: bool,
    /// The interrupt is a proxy for another partition's.
    pub proxy: bool,
    /// Kept as written.
    #[bits(43)]
    pub reserved2: u64,
}

impl Sint {
    /// The value after reset: masked.
    pub const RESET: Self = Self(1 << 16);
    /// The smallest vector that can be used.
    pub const FIRST_VALID_VECTOR: u8 = 16;

    /// Whether the vector can be written: a masked source may hold any, an open one needs 16 or more.
    pub const fn is_valid(self) -> bool {
        self.masked() || self.vector() >= Self::FIRST_VALID_VECTOR
    }
}

/// A synthetic timer's configuration ([`STIMER0_CONFIG`]; `HV_X64_MSR_STIMER_CONFIG_CONTENTS`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StimerConfig {
    /// The timer runs.
    pub enabled: bool,
    /// The count is a period instead of an absolute reference time.
    pub periodic: bool,
    /// The timer may be late while the VP is not running.
    pub lazy: bool,
    /// Writing a non-zero count enables the timer.
    pub auto_enable: bool,
    /// The vector in direct mode.
    pub apic_vector: u8,
    /// The timer asserts `apic_vector` instead of sending a message.
    pub direct_mode: bool,
    /// Must be zero.
    #[bits(3)]
    pub reserved_z0: u64,
    /// The SINT the message goes to; 0 is not allowed in message mode.
    #[bits(4)]
    pub sintx: u8,
    /// Must be zero.
    #[bits(44)]
    pub reserved_z1: u64,
}

/// Crash control ([`CRASH_CTL`]; `HV_CRASH_CTL_REG_CONTENTS`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CrashCtl {
    /// Reserved.
    #[bits(58)]
    pub reserved: u64,
    /// The crash happened before the operating system ran.
    #[bits(3)]
    pub pre_os_id: u8,
    /// No crash dump will be taken.
    pub no_crash_dump: bool,
    /// P3 is the GPA of a message and P4 its length in bytes.
    pub crash_message: bool,
    /// Log the parameters: the guest has crashed.
    pub crash_notify: bool,
}

/// Reenlightenment control ([`REENLIGHTENMENT_CONTROL`]).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReenlightenmentControl {
    /// The vector that announces a migration.
    pub vector: u8,
    /// Must be zero.
    pub reserved1: u8,
    /// Whether the guest is told.
    pub enabled: bool,
    /// Must be zero.
    #[bits(15)]
    pub reserved2: u64,
    /// The VP that is told.
    pub target_vp: u32,
}
