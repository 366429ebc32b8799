//! Calls that ask for intercepts, and that set what intercepted instructions answer.

use crate::types::{PartitionId, VpIndex};
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

/// Input of `HvCallInstallIntercept`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InstallInterceptInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// For which accesses; none removes the intercept.
    pub access_type: InterceptAccessTypeMask,
    /// Of what.
    pub intercept_type: InterceptType,
    /// Which of them.
    pub intercept_parameter: InterceptParameters,
}
const _: () = assert!(size_of::<InstallInterceptInput>() == 24);

/// Kinds of access (`HV_INTERCEPT_ACCESS_TYPE_MASK`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptAccessTypeMask(pub u32);

bitflags! {
    impl InterceptAccessTypeMask: u32 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Execution.
        const EXECUTE = 1 << 2;
    }
}

/// What is intercepted (`HV_INTERCEPT_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterceptType {
    /// A port.
    X64_IO_PORT = 0x00,
    /// MSRs the hypervisor does not know.
    X64_MSR = 0x01,
    /// A CPUID leaf.
    X64_CPUID = 0x02,
    /// An exception vector.
    EXCEPTION = 0x03,
    /// Reserved; once a register.
    RESERVED0 = 0x04,
    /// Memory-mapped I/O.
    MMIO = 0x05,
    /// CPUID of every VP.
    X64_GLOBAL_CPUID = 0x06,
    /// SMI through the APIC.
    X64_APIC_SMI = 0x07,
    /// Hypercalls the hypervisor does not know.
    HYPERCALL = 0x08,
    /// INIT and SIPI through the APIC.
    X64_APIC_INIT_SIPI = 0x09,
    /// Reads of the microcode's patch level.
    MC_UPDATE_PATCH_LEVEL_MSR_READ = 0x0A,
    /// Writes to APIC registers.
    X64_APIC_WRITE = 0x0B,
    /// A single MSR.
    X64_MSR_INDEX = 0x0C,
    /// Messages and events to connections the hypervisor does not know.
    UNKNOWN_SYNIC_CONNECTION = 0x0D,
    /// Ends of level-triggered interrupts.
    X64_APIC_EOI = 0x0E,
    /// Retargeting of devices the hypervisor does not know.
    RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID = 0x0F,
    /// Exceptions, after their delivery.
    X64_EXCEPTION_TRAP = 0x10,
    /// A range of ports.
    X64_IO_PORT_RANGE = 0x11,
    /// Not a type.
    INVALID = 0xFFFF_FFFF,
}

/// Which port, leaf, vector or MSR (`HV_INTERCEPT_PARAMETERS`). What it means depends on the type.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptParameters(pub u64);

impl InterceptParameters {
    /// The port of [`InterceptType::X64_IO_PORT`].
    pub const fn io_port(self) -> u16 {
        self.0 as u16
    }

    /// The first and the last port of [`InterceptType::X64_IO_PORT_RANGE`].
    pub const fn io_port_range(self) -> (u16, u16) {
        (self.0 as u16, (self.0 >> 16) as u16)
    }

    /// The leaf of [`InterceptType::X64_CPUID`].
    pub const fn cpuid_index(self) -> u32 {
        self.0 as u32
    }

    /// The vector of [`InterceptType::EXCEPTION`].
    pub const fn exception_vector(self) -> u16 {
        self.0 as u16
    }

    /// The MSR of [`InterceptType::X64_MSR_INDEX`].
    pub const fn msr_index(self) -> u32 {
        self.0 as u32
    }

    /// The registers of [`InterceptType::X64_APIC_WRITE`].
    pub const fn apic_write_mask(self) -> u32 {
        self.0 as u32
    }
}

/// Input of `HvCallRegisterInterceptResult` and `HvCallUnregisterInterceptResult`.
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterInterceptResultInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// On which VP, or `ANY`.
    pub vp_index: VpIndex,
    /// What kind: `X64_CPUID` or `X64_MSR`.
    pub intercept_type: InterceptType,
    /// Which result.
    pub parameters: RegisterInterceptResultParameters,
}
const _: () = assert!(size_of::<RegisterInterceptResultInput>() == 60);

/// The result of an intercepted instruction (`HV_REGISTER_INTERCEPT_RESULT_PARAMETERS`); how to read it, the type says.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterInterceptResultParameters(pub [u32; 11]);

impl RegisterInterceptResultParameters {
    /// The result of a CPUID leaf.
    pub fn cpuid(self) -> CpuidResultParameters {
        transmute!(self)
    }

    /// The action for an MSR.
    pub fn msr(self) -> MsrResultParameters {
        let [msr_index, access_type, action, ..] = self.0;
        MsrResultParameters {
            msr_index,
            access_type: InterceptAccessTypeMask(access_type),
            action: UnimplementedMsrAction(action),
        }
    }
}

impl From<CpuidResultParameters> for RegisterInterceptResultParameters {
    fn from(cpuid: CpuidResultParameters) -> Self {
        transmute!(cpuid)
    }
}

impl From<MsrResultParameters> for RegisterInterceptResultParameters {
    fn from(msr: MsrResultParameters) -> Self {
        Self([msr.msr_index, msr.access_type.0, msr.action.0, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

/// What CPUID answers (`HV_REGISTER_X64_CPUID_RESULT_PARAMETERS`): where a mask's bit is set, the given bit replaces
/// the hypervisor's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuidResultParameters {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf.
    pub subleaf: u32,
    /// Non-zero: only this subleaf is meant.
    pub subleaf_specific: u8,
    /// Non-zero: replaces also what the hypervisor computes at run time.
    pub always_override: u8,
    /// Must be zero.
    pub padding: u16,
    /// EAX.
    pub eax: u32,
    /// Bits of EAX to be replaced.
    pub eax_mask: u32,
    /// EBX.
    pub ebx: u32,
    /// Bits of EBX to be replaced.
    pub ebx_mask: u32,
    /// ECX.
    pub ecx: u32,
    /// Bits of ECX to be replaced.
    pub ecx_mask: u32,
    /// EDX.
    pub edx: u32,
    /// Bits of EDX to be replaced.
    pub edx_mask: u32,
}
const _: () = assert!(size_of::<CpuidResultParameters>() == 44);

/// What an MSR does that the hypervisor does not know (`HV_REGISTER_X64_MSR_RESULT_PARAMETERS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsrResultParameters {
    /// The MSR.
    pub msr_index: u32,
    /// Reads, writes or both.
    pub access_type: InterceptAccessTypeMask,
    /// What happens.
    pub action: UnimplementedMsrAction,
}
const _: () = assert!(size_of::<MsrResultParameters>() == 12);

/// What happens at an MSR the hypervisor does not know (`HV_UNIMPLEMENTED_MSR_ACTION`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum UnimplementedMsrAction {
    /// A general protection fault.
    FAULT = 0,
    /// Writes are ignored, reads give zero.
    IGNORE_WRITE_READ_ZERO = 1,
}
