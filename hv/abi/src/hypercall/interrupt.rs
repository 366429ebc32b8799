//! Calls about interrupts: of children, of physical devices, between processors.

use crate::device_interrupt::{DeviceId, DeviceInterruptDescriptor, DeviceInterruptTarget, InterruptEntry};
use crate::types::{InputVtl, PartitionId, VpSet};
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallAssertVirtualInterrupt`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AssertVirtualInterruptInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// What kind.
    pub control: InterruptControl,
    /// To which APIC id, or logical destination.
    pub destination_address: u64,
    /// Which vector.
    pub vector: u32,
    /// In which VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved0: u8,
    /// Must be zero.
    pub reserved1: u16,
}
const _: () = assert!(size_of::<AssertVirtualInterruptInput>() == 32);

/// What kind of interrupt (`HV_INTERRUPT_CONTROL`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptControl {
    /// See [`InterruptType`].
    pub interrupt_type: u32,
    /// Level-triggered.
    pub level_triggered: bool,
    /// The destination is a logical one.
    pub logical_destination_mode: bool,
    /// Must be zero.
    #[bits(30)]
    pub reserved: u32,
}

impl InterruptControl {
    /// The type.
    pub const fn kind(self) -> InterruptType {
        InterruptType(self.interrupt_type())
    }
}

/// The kind of an interrupt (`HV_INTERRUPT_TYPE`); 0..=7 are the APIC's delivery modes.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterruptType {
    /// With the given vector.
    FIXED = 0,
    /// To the processor of lowest priority.
    LOWEST_PRIORITY = 1,
    /// System management interrupt.
    SMI = 2,
    /// Remote read.
    REMOTE_READ = 3,
    /// Non-maskable interrupt.
    NMI = 4,
    /// INIT.
    INIT = 5,
    /// Start-up IPI.
    SIPI = 6,
    /// Of a PIC.
    EXT_INT = 7,
    /// At the pin LINT0.
    LOCAL_INT0 = 8,
    /// At the pin LINT1.
    LOCAL_INT1 = 9,
}

/// The fixed header of `HvCallMapDeviceInterrupt`. It ends with a VP set, of which the bank mask already belongs to
/// the variable header; see [`DeviceInterruptTarget`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapDeviceInterruptInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which device.
    pub device_id: DeviceId,
    /// Must be zero.
    pub flags: u32,
    /// The first entry of the remapping table, or 0.
    pub base_irt_index: u32,
    /// What the partition calls the interrupt.
    pub logical_interrupt_entry: InterruptEntry,
    /// How it is to be delivered.
    pub interrupt_descriptor: DeviceInterruptDescriptor,
}
const _: () = assert!(size_of::<MapDeviceInterruptInput>() == 80);

/// Output of `HvCallMapDeviceInterrupt`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapDeviceInterruptOutput {
    /// What is to be programmed into the device or the IO-APIC.
    pub interrupt_entry: InterruptEntry,
    /// Not used any more.
    pub ext_status_deprecated: [u64; 5],
}
const _: () = assert!(size_of::<MapDeviceInterruptOutput>() == 56);

/// Input of `HvCallUnmapDeviceInterrupt`.
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDeviceInterruptInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which device.
    pub device_id: DeviceId,
    /// What the map call answered.
    pub interrupt_entry: InterruptEntry,
    /// Must be zero.
    pub flags: u32,
}
const _: () = assert!(size_of::<UnmapDeviceInterruptInput>() == 36);

/// The fixed header of `HvCallRetargetDeviceInterrupt`; the target's banks follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RetargetDeviceInterruptInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which device.
    pub device_id: u64,
    /// Which interrupt of it.
    pub interrupt_entry: InterruptEntry,
    /// Must be zero.
    pub reserved: u64,
    /// Where it is to go.
    pub interrupt_target: DeviceInterruptTarget,
}
const _: () = assert!(size_of::<RetargetDeviceInterruptInput>() == 64);

/// The lowest vector of an IPI by hypercall.
pub const IPI_LOW_VECTOR: u32 = 0x10;
/// The highest vector of an IPI by hypercall.
pub const IPI_HIGH_VECTOR: u32 = 0xFF;

/// Input of `HvCallSendSyntheticClusterIpi` (fast or not).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendSyntheticClusterIpiInput {
    /// Which vector.
    pub vector: u32,
    /// In which VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// To which VPs: bit N is VP N.
    pub processor_mask: u64,
}
const _: () = assert!(size_of::<SendSyntheticClusterIpiInput>() == 16);

/// The fixed header of `HvCallSendSyntheticClusterIpiEx`; the set's banks follow and are the variable header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendSyntheticClusterIpiExInput {
    /// Which vector.
    pub vector: u32,
    /// In which VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// To which VPs.
    pub processor_set: VpSet,
}
const _: () = assert!(size_of::<SendSyntheticClusterIpiExInput>() == 24);
