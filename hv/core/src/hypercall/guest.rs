//! Hypercalls of children. They have few privileges: what they ask of others goes through the parent.

mod connection;
mod flush;
mod ipi;
mod processors;
mod startup;

use super::{Call, Done, Memory, xmm};
use crate::{
    child::{Child, Vp},
    hypervisor::Hypervisor,
    instruction::Mode,
    machine::{GpaFault, Machine, Vcpu, gpr},
};
use parterre_abi::{
    cpuid::PrivilegeMask,
    hypercall::{HypercallCode as Code, InterceptType},
    property::SyntheticProcessorFeatures,
    status::{HvResult, HvStatus},
};

/// A child's memory, for its hypercalls.
struct ChildMemory<'a, M: Machine>(&'a Child<M>);

impl<M: Machine> Memory for ChildMemory<'_, M> {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        self.0.read_space(|space| space.read(gpa, bytes)).unwrap_or(Err(GpaFault(gpa)))
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        self.0.read_space(|space| space.write(gpa, bytes)).unwrap_or(Err(GpaFault(gpa)))
    }
}

/// Who answers a call of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answer {
    /// The hypervisor did: the result is in the registers.
    Done,
    /// The same, and the caller has nothing better to do than to let others run.
    Waiting,
    /// Nobody: it comes in a form that the caller was not told of, and raises #UD.
    Undefined,
    /// The parent does, which has asked for calls of this kind. Nothing has changed.
    OfParent,
}

/// Answers a hypercall of virtual processor `caller` of a child. RIP is still at the instruction.
pub(crate) fn from_child<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    caller: &Vp<M>,
    vcpu: &mut M::Vcpu,
) -> Answer {
    let memory = ChildMemory(child);
    let long = Mode::of(vcpu) == Mode::Bits64;
    let mut block = None;
    let mut call =
        if long { Call::from_registers(vcpu, &memory) } else { Call::from_register_pairs(vcpu, &memory) };
    if let Ok(call) = &mut call
        && call.control.fast()
        && xmm::takes(call.code())
    {
        let may_answer = long && child.may(PrivilegeMask::FAST_HYPERCALL_OUTPUT);
        if xmm::has_output(call.code()) && !may_answer {
            return Answer::Undefined;
        }
        call.take_block(&mut block, vcpu);
    }
    let waits = matches!(&call, Ok(call) if call.code() == Code::NOTIFY_LONG_SPIN_WAIT);
    let done = match call.and_then(|call| answer(hv, child, caller, &call)) {
        Ok(Some(done)) => done,
        Ok(None) => return Answer::OfParent,
        Err(status) => Done::simple(Err(status)),
    };
    if let Some(block) = block {
        block.give_back(vcpu);
    }
    let output = done.output();
    let r = vcpu.gprs_mut();
    if long {
        r[gpr::RAX] = output;
    } else {
        (r[gpr::RAX], r[gpr::RDX]) = (output & 0xFFFF_FFFF, output >> 32);
    }
    if waits && done.status.is_success() { Answer::Waiting } else { Answer::Done }
}

/// `None`: the parent answers.
fn answer<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    caller: &Vp<M>,
    call: &Call<'_>,
) -> HvResult<Option<Done>> {
    let code = call.code();
    if !may_call(child, code) {
        return Err(HvStatus::ACCESS_DENIED);
    }
    let simple = |()| Some(Done::simple(Ok(())));
    match code {
        Code::FLUSH_VIRTUAL_ADDRESS_SPACE
        | Code::FLUSH_VIRTUAL_ADDRESS_LIST
        | Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX
        | Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX => flush::answer(hv, child, call).map(Some),
        Code::SEND_SYNTHETIC_CLUSTER_IPI | Code::SEND_SYNTHETIC_CLUSTER_IPI_EX => {
            ipi::answer(hv, child, caller, call).map(simple)
        }
        // A hint that the caller waits for another processor of its own, which the parent may not be running.
        Code::NOTIFY_LONG_SPIN_WAIT => {
            call.expect_simple()?;
            call.header::<u64>().map(|_| ()).map(simple)
        }
        Code::GET_VP_INDEX_FROM_APIC_ID => startup::index_of_apic_id(child, call).map(Some),
        Code::START_VIRTUAL_PROCESSOR => startup::start(hv, child, call).map(simple),
        Code::POST_MESSAGE => connection::post_message(child, call).map(|()| None),
        Code::SIGNAL_EVENT => connection::signal_event(child, call).map(|()| None),
        Code::RETARGET_DEVICE_INTERRUPT if intercepts(child, RETARGET) => Ok(None),
        _ if intercepts(child, InterceptType::HYPERCALL) => Ok(None),
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    }
}

/// Whether a child has the privilege, or the feature, for a call. For one that there is not it needs none.
fn may_call<M: Machine>(child: &Child<M>, code: Code) -> bool {
    use SyntheticProcessorFeatures as Feature;
    let feature = match code {
        Code::POST_MESSAGE => return child.may(PrivilegeMask::POST_MESSAGES),
        Code::SIGNAL_EVENT => return child.may(PrivilegeMask::SIGNAL_EVENTS),
        Code::START_VIRTUAL_PROCESSOR => return child.may(PrivilegeMask::START_VIRTUAL_PROCESSOR),
        Code::FLUSH_VIRTUAL_ADDRESS_SPACE | Code::FLUSH_VIRTUAL_ADDRESS_LIST => Feature::TB_FLUSH_HYPERCALLS,
        Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX | Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX => {
            Feature::TB_FLUSH_HYPERCALLS | Feature::EXTENDED_PROCESSOR_MASKS
        }
        Code::SEND_SYNTHETIC_CLUSTER_IPI => Feature::SYNTHETIC_CLUSTER_IPI,
        Code::SEND_SYNTHETIC_CLUSTER_IPI_EX => {
            Feature::SYNTHETIC_CLUSTER_IPI | Feature::EXTENDED_PROCESSOR_MASKS
        }
        code => return !is_privileged(code),
    };
    child.has(feature)
}

const RETARGET: InterceptType = InterceptType::RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID;

fn intercepts<M: Machine>(child: &Child<M>, kind: InterceptType) -> bool {
    child.policy.read().intercepts(kind)
}

/// Calls that exist, but for which a child lacks the privilege.
fn is_privileged(code: Code) -> bool {
    matches!(
        code,
        Code::GET_LOGICAL_PROCESSOR_RUN_TIME
            | Code::CREATE_PARTITION
            | Code::INITIALIZE_PARTITION
            | Code::FINALIZE_PARTITION
            | Code::DELETE_PARTITION
            | Code::GET_PARTITION_PROPERTY
            | Code::SET_PARTITION_PROPERTY
            | Code::GET_PARTITION_ID
            | Code::GET_NEXT_CHILD_PARTITION
            | Code::DEPOSIT_MEMORY
            | Code::WITHDRAW_MEMORY
            | Code::GET_MEMORY_BALANCE
            | Code::MAP_GPA_PAGES
            | Code::UNMAP_GPA_PAGES
            | Code::INSTALL_INTERCEPT
            | Code::CREATE_VP
            | Code::DELETE_VP
            | Code::GET_VP_REGISTERS
            | Code::SET_VP_REGISTERS
            | Code::TRANSLATE_VIRTUAL_ADDRESS
            | Code::CLEAR_VIRTUAL_INTERRUPT
            | Code::CREATE_PORT
            | Code::DELETE_PORT
            | Code::CONNECT_PORT
            | Code::DISCONNECT_PORT
            | Code::MAP_STATS_PAGE
            | Code::UNMAP_STATS_PAGE
            | Code::GET_SYSTEM_PROPERTY
            | Code::SET_SYSTEM_PROPERTY
            | Code::ADD_LOGICAL_PROCESSOR
            | Code::MAP_DEVICE_INTERRUPT
            | Code::UNMAP_DEVICE_INTERRUPT
            | Code::ENTER_SLEEP_STATE
            | Code::NOTIFY_PARTITION_EVENT
            | Code::NOTIFY_PORT_RING_EMPTY
            | Code::REGISTER_INTERCEPT_RESULT
            | Code::ASSERT_VIRTUAL_INTERRUPT
            | Code::DISPATCH_VP
            | Code::SIGNAL_EVENT_DIRECT
            | Code::POST_MESSAGE_DIRECT
            | Code::GET_GPA_PAGES_ACCESS_STATES
            | Code::MAP_VP_STATE_PAGE
            | Code::UNMAP_VP_STATE_PAGE
            | Code::GET_VP_STATE
            | Code::SET_VP_STATE
            | Code::GET_VP_CPUID_VALUES
            | Code::GET_PARTITION_PROPERTY_EX
    )
}
