//! Interrupts of physical devices, and of devices a child gets through VMBus (Linux `hvhdk_mini.h`, TLFS
//! `HV_INTERRUPT_ENTRY`, `HV_DEVICE_INTERRUPT_TARGET`).

use crate::types::{VpIndex, VpSet};
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where an interrupt comes from (`HV_INTERRUPT_SOURCE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterruptSource {
    /// MSI or MSI-X.
    MSI = 1,
    /// An IO-APIC's pin.
    IOAPIC = 2,
}

/// An interrupt as the device or the IO-APIC holds it (`HV_INTERRUPT_ENTRY`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptEntry {
    /// Where it comes from.
    pub source: InterruptSource,
    /// Must be zero.
    pub reserved: u32,
    /// An [`MsiEntry`] or an [`IoapicRte`].
    pub data: u64,
}
const _: () = assert!(size_of::<InterruptEntry>() == 16);

/// Address and data of an MSI (`HV_MSI_ENTRY`, x64); the address is 32 bits wide.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsiEntry {
    /// The address, see [`MsiAddress`].
    pub address: u32,
    /// The data, see [`MsiData`].
    pub data: u32,
}

/// An MSI's address (`HV_MSI_ADDRESS`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsiAddress {
    /// Must be zero.
    #[bits(2)]
    pub reserved1: u8,
    /// Logical destination.
    pub destination_mode: bool,
    /// Redirection hint.
    pub redirection_hint: bool,
    /// Reserved; with extended destinations, bits 11:5 are bits 14:8 of the id.
    pub reserved2: u8,
    /// To which APIC.
    pub destination_id: u8,
    /// 0xFEE.
    #[bits(12)]
    pub msi_base: u16,
}

/// An MSI's data (`HV_MSI_ENTRY.Data`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsiData {
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    #[bits(3)]
    pub delivery_mode: u8,
    /// Reserved.
    #[bits(3)]
    pub reserved1: u8,
    /// Assert.
    pub level_assert: bool,
    /// Level-triggered.
    pub trigger_mode: bool,
    /// Reserved.
    pub reserved2: u16,
}

/// An IO-APIC's redirection table entry (`hv_ioapic_rte`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoapicRte {
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    #[bits(3)]
    pub delivery_mode: u8,
    /// Logical destination.
    pub destination_mode: bool,
    /// Being sent.
    pub delivery_status: bool,
    /// Active low.
    pub interrupt_polarity: bool,
    /// Level interrupt accepted, EOI awaited.
    pub remote_irr: bool,
    /// Level-triggered.
    pub trigger_mode: bool,
    /// Masked.
    pub interrupt_mask: bool,
    /// Reserved.
    #[bits(15)]
    pub reserved1: u32,
    /// Reserved; bits 63:49 of the remappable format's index lie in here and in the destination.
    #[bits(24)]
    pub reserved2: u32,
    /// To which APIC.
    pub destination_id: u8,
}

/// The kind of a device (`HV_DEVICE_TYPE`).
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// A logical device.
    LOGICAL = 0,
    /// A PCI function.
    PCI = 1,
    /// An IO-APIC.
    IOAPIC = 2,
    /// An ACPI device.
    ACPI = 3,
}

/// Which device (`HV_DEVICE_ID`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceId {
    /// What the type lays out.
    #[bits(62)]
    pub id: u64,
    /// See [`DeviceType`].
    #[bits(2)]
    pub device_type: u8,
}

impl DeviceId {
    /// The type.
    pub const fn kind(self) -> DeviceType {
        DeviceType(self.device_type())
    }

    /// As a PCI function; what it means for another type is undefined.
    pub const fn as_pci(self) -> PciDeviceId {
        PciDeviceId::from_bits(self.into_bits())
    }

    /// The id that the MADT gives an IO-APIC.
    pub const fn ioapic_id(self) -> u8 {
        self.into_bits() as u8
    }
}

/// A PCI function (`HV_DEVICE_ID.Pci`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciDeviceId {
    /// Function.
    #[bits(3)]
    pub function: u8,
    /// Device.
    #[bits(5)]
    pub device: u8,
    /// Bus.
    pub bus: u8,
    /// Segment.
    pub segment: u16,
    /// The last bus behind the bridge that the interrupts seem to come from.
    pub shadow_subordinate_bus: u8,
    /// The first bus behind it.
    pub shadow_secondary_bus: u8,
    /// How many bits of the function number may be anything.
    #[bits(2)]
    pub phantom_function_bits: u8,
    /// 1 if the shadow buses count.
    pub source_shadow: bool,
    /// Must be zero.
    #[bits(11)]
    pub reserved: u16,
    /// [`DeviceType::PCI`].
    #[bits(2)]
    pub device_type: u8,
}

/// The way a device's interrupt is triggered (`HV_INTERRUPT_TRIGGER_MODE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterruptTriggerMode {
    /// By an edge.
    EDGE = 0,
    /// By a level.
    LEVEL = 1,
}

/// How a device's interrupt is to be delivered (`HV_DEVICE_INTERRUPT_DESCRIPTOR`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInterruptDescriptor {
    /// See [`InterruptType`](crate::hypercall::InterruptType).
    pub interrupt_type: u32,
    /// How it is triggered.
    pub trigger_mode: InterruptTriggerMode,
    /// How many vectors.
    pub vector_count: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Where to.
    pub target: DeviceInterruptTarget,
}
const _: () = assert!(size_of::<DeviceInterruptDescriptor>() == 40);

/// Where a device's interrupt goes (`HV_DEVICE_INTERRUPT_TARGET`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInterruptTarget {
    /// With which vector.
    pub vector: u32,
    /// [`Self::MULTICAST`], [`Self::PROCESSOR_SET`].
    pub flags: u32,
    /// Which VPs. Without [`Self::PROCESSOR_SET`], the first eight bytes are a mask of VPs 0..=63 and the rest is not there.
    pub vp_set: VpSet,
}
const _: () = assert!(size_of::<DeviceInterruptTarget>() == 24);

impl DeviceInterruptTarget {
    /// To all of the VPs instead of one.
    pub const MULTICAST: u32 = 1;
    /// The target is a set instead of a mask.
    pub const PROCESSOR_SET: u32 = 2;

    /// The first VP of the target, given the banks that follow.
    pub fn first_vp(&self, banks: &[u64]) -> Option<VpIndex> {
        if self.flags & Self::PROCESSOR_SET != 0 {
            self.vp_set.vps(banks).next()
        } else {
            crate::types::set_bits(self.vp_set.format.0).map(VpIndex).next()
        }
    }
}
