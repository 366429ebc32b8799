//! Partition properties (TLFS "Partition Properties"; root-only ones as the Linux and VMM sources use them).

use super::Call;
use crate::{
    child::{ASSIGNABLE, Child, Stage},
    features,
    hypervisor::Hypervisor,
    machine::Machine,
    parent, xstate,
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{
        GetPartitionPropertyExInput, GetPartitionPropertyInput, GetPartitionPropertyOutput,
        SetPartitionPropertyInput,
    },
    property::{PartitionPropertyCode as Code, ProcessorVendor, SyntheticProcessorFeatures, VmmCapabilities},
    status::{HvResult, HvStatus},
};
use zerocopy::{FromZeros, IntoBytes};

/// Values of `UNIMPLEMENTED_MSR_ACTION`.
const MSR_ACTION_FAULT: u64 = 0;
const MSR_ACTION_IGNORE: u64 = 1;

/// `HvCallGetPartitionProperty`.
pub(super) fn get<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: GetPartitionPropertyInput = call.header()?;
    let property_value = if Hypervisor::<M>::is_parent(input.partition_id) {
        of_parent(hv, input.property_code)?
    } else {
        let child = hv.child(input.partition_id)?;
        of_child(hv, &child, input.property_code)?
    };
    call.reply(&GetPartitionPropertyOutput { property_value })
}

/// Properties of the machine, which are the same for everyone.
fn of_machine<M: Machine>(hv: &Hypervisor<M>, code: Code) -> HvResult<u64> {
    let machine = &hv.machine;
    Ok(match code {
        Code::PROCESSOR_VENDOR => vendor(machine)?.0,
        Code::PROCESSOR_FEATURES0 => features::of_machine(machine).0.0,
        Code::PROCESSOR_FEATURES1 => features::of_machine(machine).1.0,
        Code::PROCESSOR_CL_FLUSH_SIZE => u64::from(machine.cpuid(1, 0)[1] >> 8 & 0xFF) * 8,
        Code::PHYSICAL_ADDRESS_WIDTH => u64::from(machine.cpuid(0x8000_0008, 0)[0] & 0xFF),
        Code::PROCESSOR_CLOCK_FREQUENCY => machine.tsc_frequency(),
        Code::XSAVE_STATES => xstate::supported(machine),
        Code::MAX_XSAVE_DATA_SIZE => u64::from(xstate::size(machine, xstate::supported(machine))),
        Code::PROCESSOR_XSAVE_FEATURES => xstate::features(machine).0,
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    })
}

fn vendor<M: Machine>(machine: &M) -> HvResult<ProcessorVendor> {
    const AUTH: u32 = u32::from_le_bytes(*b"Auth");
    const GENU: u32 = u32::from_le_bytes(*b"Genu");
    const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
    match machine.cpuid(0, 0)[1] {
        AUTH => Ok(ProcessorVendor::AMD),
        GENU => Ok(ProcessorVendor::INTEL),
        HYGO => Ok(ProcessorVendor::HYGON),
        _ => Err(HvStatus::OPERATION_FAILED),
    }
}

fn of_parent<M: Machine>(hv: &Hypervisor<M>, code: Code) -> HvResult<u64> {
    Ok(match code {
        Code::PRIVILEGE_FLAGS => parent::PRIVILEGES.bits(),
        Code::REFERENCE_TIME => hv.parent.clock.reference_time(hv.machine.tsc()),
        Code::GUEST_OS_ID => hv.parent.guest_os_id(),
        _ => return of_machine(hv, code),
    })
}

fn of_child<M: Machine>(hv: &Hypervisor<M>, child: &Child<M>, code: Code) -> HvResult<u64> {
    let policy = child.policy.read();
    Ok(match code {
        Code::SYNTHETIC_PROC_FEATURES => policy.features.0,
        Code::TIME_FREEZE => u64::from(child.clock.read().is_frozen()),
        Code::REFERENCE_TIME => child.clock.read().reference_time(hv.machine.tsc()),
        Code::PROCESSORS_PER_SOCKET => u64::from(policy.processors_per_socket),
        Code::GPA_PAGE_ACCESS_TRACKING => child.read_space(|space| u64::from(space.tracking())).unwrap_or(0),
        Code::UNIMPLEMENTED_MSR_ACTION if policy.ignore_unknown_msrs => MSR_ACTION_IGNORE,
        Code::UNIMPLEMENTED_MSR_ACTION => MSR_ACTION_FAULT,
        Code::PHYSICAL_ADDRESS_WIDTH => u64::from(policy.physical_bits),
        Code::PROCESSOR_FEATURES0 => (features::of_machine(&hv.machine).0 - policy.disabled.0).0,
        Code::PROCESSOR_FEATURES1 => (features::of_machine(&hv.machine).1 - policy.disabled.1).0,
        Code::GUEST_OS_ID => child.guest_os_id.load(SeqCst),
        _ => return of_machine(hv, code),
    })
}

/// `HvCallSetPartitionProperty`.
pub(super) fn set<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    let input: SetPartitionPropertyInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    let value = input.property_value;
    match input.property_code {
        Code::SYNTHETIC_PROC_FEATURES => {
            child.expect(Stage::Created)?;
            // What cannot be given is left out; the parent reads back what was.
            child.set_features(SyntheticProcessorFeatures(value));
        }
        Code::TIME_FREEZE => match value {
            0 => child.thaw(hv),
            1 => child.freeze(hv),
            _ => return Err(HvStatus::INVALID_PARAMETER),
        },
        Code::REFERENCE_TIME => child.set_reference_time(hv, value),
        Code::PROCESSORS_PER_SOCKET => {
            let count = u32::try_from(value).ok().filter(|count| *count <= crate::child::MAX_VPS);
            child.policy.write().processors_per_socket = count.ok_or(HvStatus::INVALID_PARAMETER)?;
        }
        Code::GPA_PAGE_ACCESS_TRACKING => {
            if value > 1 {
                return Err(HvStatus::INVALID_PARAMETER);
            }
            child.with_space(hv, |space, tables| {
                space.set_tracking(tables, value == 1).map_err(|_| HvStatus::INSUFFICIENT_MEMORY)
            })?;
            child.flush(hv, lp);
        }
        Code::UNIMPLEMENTED_MSR_ACTION => {
            child.policy.write().ignore_unknown_msrs = match value {
                MSR_ACTION_FAULT => false,
                MSR_ACTION_IGNORE => true,
                _ => return Err(HvStatus::INVALID_PARAMETER),
            };
        }
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    }
    Ok(())
}

/// `HvCallGetPartitionPropertyEx`.
pub(super) fn get_ex<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: GetPartitionPropertyExInput = call.header()?;
    if !Hypervisor::<M>::is_parent(input.partition_id) {
        let child = hv.child(input.partition_id)?;
        return call.reply(&of_child(hv, &child, input.property_code)?);
    }
    match input.property_code {
        Code::VMM_CAPABILITIES => {
            let mut capabilities = VmmCapabilities::new_zeroed();
            capabilities.bank_count = 1;
            call.copy_output(0, capabilities.as_bytes())
        }
        // A count of banks, then the banks.
        Code::ASSIGNABLE_SYNTHETIC_PROC_FEATURES => call.copy_output(0, [1u64, ASSIGNABLE.0].as_bytes()),
        code => call.reply(&of_parent(hv, code)?),
    }
}
