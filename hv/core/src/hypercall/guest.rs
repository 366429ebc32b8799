//! Hypercalls of children. They have few privileges: what they ask of others goes through the parent.

use super::{Call, Done, Memory};
use crate::{
    child::Child,
    instruction::Mode,
    machine::{GpaFault, Machine, Vcpu, gpr},
};
use parterre_abi::{
    hypercall::HypercallCode as Code,
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

/// Answers a hypercall of a child, whose RIP is behind it already.
pub(crate) fn from_child<M: Machine>(child: &Child<M>, vcpu: &mut M::Vcpu) {
    let memory = ChildMemory(child);
    let long = Mode::of(vcpu) == Mode::Bits64;
    let call =
        if long { Call::from_registers(vcpu, &memory) } else { Call::from_register_pairs(vcpu, &memory) };
    let output = Done::simple(call.and_then(|call| answer(&call))).output();
    let r = vcpu.gprs_mut();
    if long {
        r[gpr::RAX] = output;
    } else {
        (r[gpr::RAX], r[gpr::RDX]) = (output & 0xFFFF_FFFF, output >> 32);
    }
}

fn answer(call: &Call<'_>) -> HvResult<()> {
    match call.code() {
        // A hint that the caller waits for another processor of its own. Running on is all that can be done about it here.
        Code::NOTIFY_LONG_SPIN_WAIT => {
            call.expect_simple()?;
            call.header::<u64>().map(|_| ())
        }
        code if is_privileged(code) => Err(HvStatus::ACCESS_DENIED),
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    }
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
            | Code::GET_GPA_PAGES_ACCESS_STATES
            | Code::MAP_VP_STATE_PAGE
            | Code::UNMAP_VP_STATE_PAGE
            | Code::GET_VP_STATE
            | Code::SET_VP_STATE
            | Code::GET_VP_CPUID_VALUES
            | Code::GET_PARTITION_PROPERTY_EX
    )
}
