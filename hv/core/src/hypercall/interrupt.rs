//! Interrupts that the parent sends to a child (TLFS "Virtual Interrupt Control").

use super::Call;
use crate::{
    apic::{Delivery, Destination, Ipi, LocalPin},
    child::Child,
    hypervisor::Hypervisor,
    machine::Machine,
};
use parterre_abi::{
    hypercall::{AssertVirtualInterruptInput, ClearVirtualInterruptInput, InterruptType},
    status::{HvResult, HvStatus},
};

/// `HvCallAssertVirtualInterrupt`.
pub(super) fn assert<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: AssertVirtualInterruptInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    let vector = u8::try_from(input.vector).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let address = u32::try_from(input.destination_address).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    if !input.target_vtl.is_vtl0() || input.control.reserved() != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let destination = match (input.control.logical_destination_mode(), address) {
        (false, u32::MAX | 0xFF) => Destination::All,
        (logical, address) => Destination::wide(address, logical),
    };
    let delivery = match input.control.kind() {
        InterruptType::FIXED => Delivery::Fixed,
        InterruptType::LOWEST_PRIORITY => Delivery::LowestPriority,
        InterruptType::NMI => Delivery::Nmi,
        InterruptType::INIT => Delivery::Init,
        InterruptType::SIPI => Delivery::StartUp,
        InterruptType::EXT_INT => return external(hv, &child, destination, vector),
        InterruptType::LOCAL_INT0 => return pin(hv, &child, destination, LocalPin::Lint0),
        InterruptType::LOCAL_INT1 => return pin(hv, &child, destination, LocalPin::Lint1),
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let level = input.control.level_triggered();
    child.send_ipi(hv, None, Ipi { delivery, vector, destination, level });
    Ok(())
}

/// An interrupt of a legacy controller, for the processors of `destination`.
fn external<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    destination: Destination,
    vector: u8,
) -> HvResult<()> {
    for vp in child.vps().filter(|vp| vp.incoming.matches(destination, None)) {
        if vp.incoming.post_ext_int(vector) {
            child.wake(hv, &vp);
        }
    }
    Ok(())
}

/// A pin of the local APICs of `destination`, which deliver what their local vector tables say.
fn pin<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    destination: Destination,
    pin: LocalPin,
) -> HvResult<()> {
    for vp in child.vps().filter(|vp| vp.incoming.matches(destination, None)) {
        let interrupt = vp.lock(&hv.machine).apic.local_interrupt(pin);
        if let Some(interrupt) = interrupt {
            child.send_ipi(hv, Some(vp.index), interrupt);
            child.wake(hv, &vp);
        }
    }
    Ok(())
}

/// `HvCallClearVirtualInterrupt`: the legacy controller's interrupt is no longer there.
pub(super) fn clear<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: ClearVirtualInterruptInput = call.header()?;
    for vp in hv.child(input.partition_id)?.vps() {
        vp.incoming.take_ext_int();
    }
    Ok(())
}
