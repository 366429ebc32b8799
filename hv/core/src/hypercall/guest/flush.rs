//! `HvCallFlushVirtualAddressSpace`, `HvCallFlushVirtualAddressList` and their Ex forms (TLFS "Virtual MMU").
//!
//! A flush is of everything that a virtual processor has cached: less would have to be done by the processor that runs it,
//! and would have to be kept for one that does not run. Those that are not in guest mode flush when they enter it; the
//! others are made to leave it, all at once.

use super::{Call, Child, Done, processors::Processors};
use crate::{hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    hypercall::{FlushFlags, FlushVirtualAddressSpaceExInput, FlushVirtualAddressSpaceInput, HypercallCode},
    status::{HvResult, HvStatus},
};

/// The flags that any of these calls may have, and those of calls with a list of addresses.
const COMMON: FlushFlags = FlushFlags::ALL_PROCESSORS.union(FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES);
const OF_SPACE: FlushFlags = COMMON.union(FlushFlags::NON_GLOBAL_MAPPINGS_ONLY);
const OF_LIST: FlushFlags = COMMON.union(FlushFlags::USE_EXTENDED_RANGE_FORMAT);

/// Answers one of the four calls.
pub(super) fn answer<M: Machine>(hv: &Hypervisor<M>, child: &Child<M>, call: &Call<'_>) -> HvResult<Done> {
    let is_list = matches!(
        call.code(),
        HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX
    );
    let is_ex = matches!(
        call.code(),
        HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX
    );
    match (is_list, is_ex) {
        (false, false) => call.expect_simple()?,
        (false, true) => call.expect_variable()?,
        (true, false) => call.expect_rep()?,
        (true, true) => call.expect_variable_rep()?,
    }
    let (flags, processors) = if is_ex { sparse(call) } else { masked(call) }?;
    let allowed = if is_list { OF_LIST } else { OF_SPACE };
    if !allowed.contains(flags) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    if is_list {
        // Nothing depends on the addresses, but they must be there.
        let header = if is_ex { size_of::<FlushVirtualAddressSpaceExInput>() } else { 24 };
        let last =
            usize::from(call.control.variable_header_size()) + usize::from(call.control.rep_count()) - 1;
        call.input_at::<u64>(header + 8 * last)?;
    }
    let all = flags.contains(FlushFlags::ALL_PROCESSORS);
    flush(hv, child, if all { Processors::All } else { processors });
    Ok(Done { status: HvStatus::SUCCESS, reps: call.control.rep_count() })
}

const _: () = assert!(size_of::<FlushVirtualAddressSpaceInput>() == 24);

fn masked(call: &Call<'_>) -> HvResult<(FlushFlags, Processors)> {
    let input: FlushVirtualAddressSpaceInput = call.header()?;
    Ok((input.flags, Processors::First(input.processor_mask)))
}

fn sparse(call: &Call<'_>) -> HvResult<(FlushFlags, Processors)> {
    let input: FlushVirtualAddressSpaceExInput = call.header()?;
    let set = core::mem::offset_of!(FlushVirtualAddressSpaceExInput, processor_set);
    // A set that is not used may be anything.
    let all = input.flags.contains(FlushFlags::ALL_PROCESSORS);
    let processors = if all { Processors::All } else { Processors::read(call, set)? };
    Ok((input.flags, processors))
}

/// Makes these virtual processors forget what they have cached; none of them uses it any more afterwards. Two that do this to
/// each other at once do not wait for ever: neither is in guest mode.
fn flush<M: Machine>(hv: &Hypervisor<M>, child: &Child<M>, processors: Processors) {
    processors.for_each(child, |vp| {
        vp.translations.advance();
        if vp.presence.is_older(child.generation_of(&vp)) {
            vp.schedule.interrupt(&hv.machine);
        }
    });
    processors.for_each(child, |vp| {
        let generation = child.generation_of(&vp);
        while vp.presence.is_older(generation) {
            hv.machine.relax();
        }
    });
}
