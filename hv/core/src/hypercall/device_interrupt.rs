//! Interrupts of the parent's devices (Linux `irqdomain.c`, `hv-irq-remap-x86.c`; the current TLFS has no page for them).
//!
//! The parent takes its devices' interrupts without the hypervisor: a mapping is the vector that it asked for, addressed to
//! the processor of the virtual processor that it named. What is kept is who mapped what, to refuse nonsense.

use super::Call;
use crate::{hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    device_interrupt::{
        DeviceId, DeviceInterruptTarget, DeviceType, InterruptEntry, InterruptSource, InterruptTriggerMode,
        IoapicRte, MsiAddress, MsiData, MsiEntry,
    },
    hypercall::{MapDeviceInterruptInput, MapDeviceInterruptOutput, UnmapDeviceInterruptInput},
    status::{HvResult, HvStatus},
    types::{GenericSetFormat, VpIndex, set_bits},
};

/// The base of MSI addresses, in bits 31:20.
const MSI_BASE: u16 = 0xFEE;
/// In the message of an MSI or the entry of an IO-APIC, fixed delivery of an edge.
const FIXED: u8 = 0;

/// A mapping: which device has which entry.
pub struct DeviceInterrupt {
    device: DeviceId,
    entry: InterruptEntry,
}

/// The mappings there are, in places that the machine layer supplies.
pub(crate) struct DeviceInterrupts(pub &'static mut [Option<DeviceInterrupt>]);

/// `HvCallMapDeviceInterrupt`.
pub(super) fn map<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_variable()?;
    let input: MapDeviceInterruptInput = call.header()?;
    if !Hypervisor::<M>::is_parent(input.partition_id) {
        return Err(HvStatus::INVALID_PARTITION_ID);
    }
    let descriptor = input.interrupt_descriptor;
    let vector = u8::try_from(descriptor.target.vector).ok().filter(|vector| *vector >= 16);
    let vector = vector.ok_or(HvStatus::INVALID_PARAMETER)?;
    let vp = target(call, &descriptor.target)?;
    let lp = hv.processor_of_vp(vp.0).ok_or(HvStatus::INVALID_VP_INDEX)?;
    // Neither an MSI nor an IO-APIC entry has room for more without interrupt remapping.
    let destination = u8::try_from(hv.machine.apic_id(lp.index)).ok().filter(|id| *id != 0xFF);
    let destination = destination.ok_or(HvStatus::INVALID_PARAMETER)?;
    let entry = match input.device_id.kind() {
        DeviceType::PCI => msi(vector, destination),
        DeviceType::IOAPIC => {
            io_apic(vector, destination, descriptor.trigger_mode == InterruptTriggerMode::LEVEL)
        }
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    let mut mapped = hv.interrupts.lock();
    let place = mapped.0.iter_mut().find(|place| place.is_none()).ok_or(HvStatus::INSUFFICIENT_BUFFERS)?;
    call.reply(&MapDeviceInterruptOutput { interrupt_entry: entry, ext_status_deprecated: [0; 5] })?;
    *place = Some(DeviceInterrupt { device: input.device_id, entry });
    Ok(())
}

/// The one virtual processor that a target names.
fn target(call: &Call<'_>, target: &DeviceInterruptTarget) -> HvResult<VpIndex> {
    if target.flags & DeviceInterruptTarget::PROCESSOR_SET == 0 {
        return only(set_bits(target.vp_set.format.0).map(VpIndex));
    }
    // The mask of banks counts as variable header as well.
    let banks = usize::from(call.control.variable_header_size()).saturating_sub(1);
    let set = target.vp_set;
    if set.format != GenericSetFormat::SPARSE_4K || set.bank_count() != banks || banks != 1 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let bank: u64 = call.input_at(size_of::<MapDeviceInterruptInput>())?;
    only(set.vps(&[bank]))
}

/// The only virtual processor of a set.
fn only(mut vps: impl Iterator<Item = VpIndex>) -> HvResult<VpIndex> {
    match (vps.next(), vps.next()) {
        (Some(vp), None) => Ok(vp),
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

fn msi(vector: u8, destination: u8) -> InterruptEntry {
    let address = MsiAddress::new().with_msi_base(MSI_BASE).with_destination_id(destination);
    let data = MsiData::new().with_vector(vector).with_delivery_mode(FIXED);
    let entry = MsiEntry::new().with_address(address.into()).with_data(data.into());
    InterruptEntry { source: InterruptSource::MSI, reserved: 0, data: entry.into() }
}

fn io_apic(vector: u8, destination: u8, level: bool) -> InterruptEntry {
    let entry = IoapicRte::new()
        .with_vector(vector)
        .with_delivery_mode(FIXED)
        .with_trigger_mode(level)
        .with_destination_id(destination);
    InterruptEntry { source: InterruptSource::IOAPIC, reserved: 0, data: entry.into() }
}

/// `HvCallUnmapDeviceInterrupt`.
pub(super) fn unmap<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: UnmapDeviceInterruptInput = call.header()?;
    if !Hypervisor::<M>::is_parent(input.partition_id) {
        return Err(HvStatus::INVALID_PARTITION_ID);
    }
    let (device, entry) = (input.device_id, input.interrupt_entry);
    let mut mapped = hv.interrupts.lock();
    // The parent fills in the entry's source and data as it got them, except for what it owns in an IO-APIC's.
    let known = |known: &DeviceInterrupt| known.device == device && same(known.entry, entry);
    let place = mapped.0.iter_mut().find(|place| place.as_ref().is_some_and(known));
    *place.ok_or(HvStatus::INVALID_PARAMETER)? = None;
    Ok(())
}

/// Whether two entries are of one mapping: vector and destination are what counts.
fn same(known: InterruptEntry, given: InterruptEntry) -> bool {
    if known.source != given.source {
        return false;
    }
    if known.source != InterruptSource::IOAPIC {
        return known.data == given.data;
    }
    let (known, given) = (IoapicRte::from(known.data), IoapicRte::from(given.data));
    (known.vector(), known.destination_id()) == (given.vector(), given.destination_id())
}
