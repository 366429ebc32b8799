//! Hypercalls: the calling convention, and which function answers which call.
//!
//! [`Call`] is one call: its control word, where its input comes from and where its output goes. The modules below answer
//! calls by the chapter of the TLFS; they see a `Call`, never registers. Everything that a call brings is data of
//! somebody else: it is copied, checked, and answered with the status that the specification names.

mod access;
mod device_interrupt;
mod frame;
mod guest;
mod interrupt;
mod memory;
mod partition;
mod port;
mod property;
mod state_page;
mod stats;
mod synic;
mod system;
mod vp;
mod xmm;

pub use device_interrupt::DeviceInterrupt;
pub(crate) use device_interrupt::DeviceInterrupts;
pub(crate) use frame::{Call, Done, Memory};
pub(crate) use guest::{Answer, from_child};
pub use port::Port;
pub(crate) use port::{Ports, ring};

use crate::{
    hypervisor::Hypervisor,
    machine::{GpaFault, Machine, Vcpu, gpr},
    parent::ParentVp,
};
use parterre_abi::{
    hypercall::HypercallCode as Code,
    status::{HvResult, HvStatus},
};

/// The parent's memory, for its hypercalls.
struct ParentMemory<'a, M: Machine>(&'a Hypervisor<M>);

impl<M: Machine> Memory for ParentMemory<'_, M> {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        self.0.parent.space.read().read(&self.0.table, gpa, bytes)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        self.0.parent.space.read().write(&self.0.table, gpa, bytes)
    }
}

/// Answers a hypercall of the parent, whose RIP is behind it already.
pub(crate) fn from_parent<M: Machine>(vp: &mut ParentVp<M>, processor: &mut M::Processor) {
    let memory = ParentMemory(vp.hv);
    let done = match Call::from_registers(&vp.vcpu, &memory) {
        Ok(call) if call.code() == Code::DISPATCH_VP => Done::simple(vp.dispatch(processor, &call)),
        Ok(call) => answer(vp.hv, vp.lp.index, &call),
        Err(status) => Done::simple(Err(status)),
    };
    vp.vcpu.gprs_mut()[gpr::RAX] = done.output();
}

/// Answers a hypercall of the parent that needs nothing of the processor it came from but its index.
fn answer<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    match call.code() {
        Code::DEPOSIT_MEMORY => memory::deposit(hv, lp, call),
        Code::WITHDRAW_MEMORY => memory::withdraw(hv, lp, call),
        Code::MAP_GPA_PAGES => memory::map(hv, lp, call),
        Code::UNMAP_GPA_PAGES => memory::unmap(hv, lp, call),
        Code::GET_GPA_PAGES_ACCESS_STATES => memory::access_states(hv, lp, call),
        Code::GET_VP_REGISTERS => vp::get_registers(hv, call),
        Code::SET_VP_REGISTERS => vp::set_registers(hv, call),
        Code::GET_VP_CPUID_VALUES => vp::cpuid_values(hv, call),
        Code::MAP_DEVICE_INTERRUPT => Done::simple(device_interrupt::map(hv, call)),
        Code::GET_VP_STATE => Done::simple(state_page::get_state(hv, call)),
        Code::SET_VP_STATE => Done::simple(state_page::set_state(hv, call)),
        _ => Done::simple(call.expect_simple().and_then(|()| answer_simple(hv, lp, call))),
    }
}

/// Answers a call without elements.
fn answer_simple<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    match call.code() {
        Code::GET_LOGICAL_PROCESSOR_RUN_TIME => system::run_time(hv, call),
        Code::ADD_LOGICAL_PROCESSOR => system::add_processor(hv, call),
        Code::NOTIFY_PARTITION_EVENT => system::notify_event(hv, lp, call),
        Code::GET_SYSTEM_PROPERTY => system::get_property(call),
        Code::SET_SYSTEM_PROPERTY => system::set_property(hv, call),
        Code::ENTER_SLEEP_STATE => system::enter_sleep(hv, call),
        Code::GET_PARTITION_ID => system::partition_id(call),
        Code::GET_MEMORY_BALANCE => memory::balance(hv, call),
        Code::CREATE_PARTITION => partition::create(hv, call),
        Code::INITIALIZE_PARTITION => partition::initialize(hv, call),
        Code::FINALIZE_PARTITION => partition::finalize(hv, lp, call),
        Code::DELETE_PARTITION => partition::delete(hv, lp, call),
        Code::GET_NEXT_CHILD_PARTITION => partition::next_child(hv, call),
        Code::GET_PARTITION_PROPERTY => property::get(hv, call),
        Code::SET_PARTITION_PROPERTY => property::set(hv, lp, call),
        Code::GET_PARTITION_PROPERTY_EX => property::get_ex(hv, call),
        Code::CREATE_VP => vp::create(hv, call),
        Code::DELETE_VP => vp::delete(hv, call),
        Code::TRANSLATE_VIRTUAL_ADDRESS => vp::translate(hv, call),
        Code::MAP_VP_STATE_PAGE => state_page::map(hv, call),
        Code::UNMAP_VP_STATE_PAGE => state_page::unmap(hv, call),
        Code::INSTALL_INTERCEPT => access::install_intercept(hv, call),
        Code::REGISTER_INTERCEPT_RESULT => access::register_result(hv, call),
        Code::ASSERT_VIRTUAL_INTERRUPT => interrupt::assert(hv, call),
        Code::CLEAR_VIRTUAL_INTERRUPT => interrupt::clear(hv, call),
        Code::SIGNAL_EVENT_DIRECT => synic::signal_event(hv, call),
        Code::POST_MESSAGE_DIRECT => synic::post_message(hv, call),
        Code::UNMAP_DEVICE_INTERRUPT => device_interrupt::unmap(hv, call),
        Code::MAP_STATS_PAGE => stats::map(hv, call),
        Code::UNMAP_STATS_PAGE => stats::unmap(hv, call),
        Code::CREATE_PORT => port::create(hv, call),
        Code::DELETE_PORT => port::delete(hv, call),
        Code::CONNECT_PORT => port::connect(hv, call),
        Code::DISCONNECT_PORT => port::disconnect(hv, call),
        Code::NOTIFY_PORT_RING_EMPTY => port::ring_empty(hv, lp, call),
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    }
}
