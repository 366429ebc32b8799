//! Calls about the machine: processors, system properties, sleep (Linux `hv_proc.c`, `mshv_common.c`; the current TLFS
//! has no pages for most of them).

use super::Call;
use crate::{
    hypervisor::{Hypervisor, PARENT_ID},
    machine::Machine,
    parent::Message,
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{
        AddLogicalProcessorInput, AddLogicalProcessorOutput, CrashdumpAction, EnterSleepStateInput,
        GetLogicalProcessorRunTimeInput, GetLogicalProcessorRunTimeOutput, GetPartitionIdOutput,
        GetSystemPropertyInput, GetSystemPropertyOutput, NotifyPartitionEventInput, PartitionEvent,
        SetSystemPropertyInput,
    },
    property::{SchedulerType, SleepState, SystemPropertyCode},
    status::{HvResult, HvStatus},
};

/// How long processor `lp_index` has run. Linux asks to learn whether it has added the processor already.
pub(super) fn run_time<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: GetLogicalProcessorRunTimeInput = call.header()?;
    hv.processor_of_vp(input.lp_index).ok_or(HvStatus::INVALID_LP_INDEX)?;
    let time = hv.parent.clock.reference_time(hv.machine.tsc());
    call.reply(&GetLogicalProcessorRunTimeOutput {
        global_time: time,
        local_run_time: time,
        reserved: 0,
        hypervisor_time: 0,
    })
}

/// Adds a processor under the index that the parent gives it. The hypervisor runs on it since boot.
pub(super) fn add_processor<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: AddLogicalProcessorInput = call.header()?;
    if hv.processor_of_vp(input.lp_index).is_some() || input.lp_index as usize >= hv.processors.len() {
        return Err(HvStatus::INVALID_LP_INDEX);
    }
    let lp = hv.processors.iter().find(|lp| hv.machine.apic_id(lp.index) == input.apic_id);
    let lp = lp.ok_or(HvStatus::INVALID_PARAMETER)?;
    // The answer says nothing else. A call whose output cannot be written adds nothing.
    call.reply(&AddLogicalProcessorOutput::default())?;
    if lp.assign(input.lp_index) { Ok(()) } else { Err(HvStatus::INVALID_PARAMETER) }
}

/// The parent tells how far it is.
pub(super) fn notify_event<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    let input: NotifyPartitionEventInput = call.header()?;
    match (input.event, input.crashdump_action) {
        (PartitionEvent::ALL_LOGICAL_PROCESSORS_STARTED, _) => Ok(()),
        (PartitionEvent::ROOT_CRASHDUMP, CrashdumpAction::SUSPEND_ALL_VPS) => {
            for other in hv.processors.iter().filter(|other| other.index != lp) {
                other.post(&hv.machine, Message::Init);
            }
            Ok(())
        }
        (PartitionEvent::ROOT_CRASHDUMP, CrashdumpAction::ENTRY) => Ok(()),
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

/// A property of the system.
pub(super) fn get_property(call: &Call<'_>) -> HvResult<()> {
    let input: GetSystemPropertyInput = call.header()?;
    let value = match input.property_id {
        SystemPropertyCode::SCHEDULER_TYPE => u64::from(SchedulerType::ROOT.0),
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    };
    call.reply(&GetSystemPropertyOutput { value })
}

/// Sets a property of the system: what to write for sleep state S5.
pub(super) fn set_property<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: SetSystemPropertyInput = call.header()?;
    if input.property_id != SystemPropertyCode::SLEEP_STATE {
        return Err(HvStatus::UNKNOWN_PROPERTY);
    }
    let info = input.sleep_state_info;
    if info.sleep_state != SleepState::S5 || info.pm1a_slp_typ > 7 || info.pm1b_slp_typ > 7 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let types = u32::from(info.pm1a_slp_typ) | u32::from(info.pm1b_slp_typ) << 8 | SLEEP_TYPES_KNOWN;
    hv.parent.sleep_types.store(types, SeqCst);
    Ok(())
}

const SLEEP_TYPES_KNOWN: u32 = 1 << 31;

/// Turns the machine off.
pub(super) fn enter_sleep<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: EnterSleepStateInput = call.header()?;
    let types = hv.parent.sleep_types.load(SeqCst);
    if input.sleep_state != SleepState::S5 || types & SLEEP_TYPES_KNOWN == 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    hv.machine.enter_sleep(types as u8, (types >> 8) as u8);
    Err(HvStatus::OPERATION_FAILED)
}

/// The caller's partition id.
pub(super) fn partition_id(call: &Call<'_>) -> HvResult<()> {
    call.reply(&GetPartitionIdOutput { partition_id: PARENT_ID })
}
