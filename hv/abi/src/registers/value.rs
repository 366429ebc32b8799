//! A register's value, and the layouts of those that are more than a number.

use crate::registers::RegisterName;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

/// The value of any register, 128 bits (`HV_REGISTER_VALUE`). Smaller registers use the low bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterValue {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}
const _: () = assert!(size_of::<RegisterValue>() == 16);

impl RegisterValue {
    /// All of it.
    pub const fn as_u128(self) -> u128 {
        self.low as u128 | (self.high as u128) << 64
    }

    /// The low 64 bits.
    pub const fn as_u64(self) -> u64 {
        self.low
    }

    /// The low 32 bits.
    pub const fn as_u32(self) -> u32 {
        self.low as u32
    }

    /// As a segment register.
    pub fn as_segment(self) -> SegmentRegister {
        transmute!(self)
    }

    /// As a descriptor table register.
    pub fn as_table(self) -> TableRegister {
        transmute!(self)
    }

    /// As the x87 control and status register.
    pub fn as_fp_control_status(self) -> FpControlStatusRegister {
        transmute!(self)
    }

    /// As the SSE control and status register.
    pub fn as_xmm_control_status(self) -> XmmControlStatusRegister {
        transmute!(self)
    }
}

impl From<u64> for RegisterValue {
    fn from(low: u64) -> Self {
        Self { low, high: 0 }
    }
}

impl From<u128> for RegisterValue {
    fn from(value: u128) -> Self {
        Self { low: value as u64, high: (value >> 64) as u64 }
    }
}

impl From<SegmentRegister> for RegisterValue {
    fn from(segment: SegmentRegister) -> Self {
        transmute!(segment)
    }
}

impl From<TableRegister> for RegisterValue {
    fn from(table: TableRegister) -> Self {
        transmute!(table)
    }
}

impl From<FpControlStatusRegister> for RegisterValue {
    fn from(register: FpControlStatusRegister) -> Self {
        transmute!(register)
    }
}

impl From<XmmControlStatusRegister> for RegisterValue {
    fn from(register: XmmControlStatusRegister) -> Self {
        transmute!(register)
    }
}

/// A register with its value, as `HvCallSetVpRegisters` takes them (`HV_REGISTER_ASSOC`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterAssoc {
    /// Which register.
    pub name: RegisterName,
    /// Must be zero.
    pub reserved1: u32,
    /// Must be zero.
    pub reserved2: u64,
    /// Its value.
    pub value: RegisterValue,
}
const _: () = assert!(size_of::<RegisterAssoc>() == 32);

/// A segment register with its hidden part (`HV_X64_SEGMENT_REGISTER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Descriptor attributes.
    pub attributes: SegmentAttributes,
}
const _: () = assert!(size_of::<SegmentRegister>() == 16);

/// A descriptor's attributes, bits 8..=23 of its upper half with the limit cut out.
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentAttributes {
    /// Type.
    #[bits(4)]
    pub segment_type: u8,
    /// Code or data, not system.
    pub non_system_segment: bool,
    /// Descriptor privilege level.
    #[bits(2)]
    pub descriptor_privilege_level: u8,
    /// Present.
    pub present: bool,
    /// Reserved. The VMX "unusable" bit is not carried: an unusable segment is not present.
    #[bits(4)]
    pub reserved: u8,
    /// For software.
    pub available: bool,
    /// 64-bit code.
    pub long: bool,
    /// Default operation size.
    pub default: bool,
    /// Limit counted in pages.
    pub granularity: bool,
}

/// GDTR or IDTR (`HV_X64_TABLE_REGISTER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TableRegister {
    /// Padding.
    pub pad: [u16; 3],
    /// Limit in bytes.
    pub limit: u16,
    /// Linear base address.
    pub base: u64,
}
const _: () = assert!(size_of::<TableRegister>() == 16);

/// The x87 environment (`HV_X64_FP_CONTROL_STATUS_REGISTER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FpControlStatusRegister {
    /// FCW.
    pub fp_control: u16,
    /// FSW.
    pub fp_status: u16,
    /// Abridged tag word, one bit per register, as FXSAVE stores it.
    pub fp_tag: u8,
    /// Reserved.
    pub reserved: u8,
    /// FOP.
    pub last_fp_op: u16,
    /// FIP; outside of long mode the selector is in bits 47:32.
    pub last_fp_rip: u64,
}
const _: () = assert!(size_of::<FpControlStatusRegister>() == 16);

/// The SSE control register and the x87 data pointer (`HV_X64_XMM_CONTROL_STATUS_REGISTER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct XmmControlStatusRegister {
    /// FDP; outside of long mode the selector is in bits 47:32.
    pub last_fp_rdp: u64,
    /// MXCSR.
    pub xmm_status_control: u32,
    /// Which bits of MXCSR the processor has.
    pub xmm_status_control_mask: u32,
}
const _: () = assert!(size_of::<XmmControlStatusRegister>() == 16);
