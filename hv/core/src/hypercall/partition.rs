//! Calls about the life of a partition (TLFS "Partition Management").

use super::Call;
use crate::{
    child::{Child, Policy, Stage},
    hypervisor::{Hypervisor, PARENT_ID},
    machine::{Machine, TableSource},
    memory::{self, Tables},
    time::Clock,
};
use parterre_abi::{
    hypercall::{
        CreatePartitionInput, CreatePartitionOutput, DeletePartitionInput, FinalizePartitionInput,
        GetNextChildPartitionInput, GetNextChildPartitionOutput, InitializePartitionInput,
        PartitionCreationFlags,
    },
    status::{HvResult, HvStatus},
    types::PartitionId,
};

/// What a child can be: without nested virtualization, isolation, SMT and performance counters, which are not there.
const FLAGS: PartitionCreationFlags = PartitionCreationFlags::EXO_PARTITION
    .union(PartitionCreationFlags::LAPIC_ENABLED)
    .union(PartitionCreationFlags::X2APIC_CAPABLE)
    .union(PartitionCreationFlags::GPA_SUPER_PAGES_ENABLED)
    .union(PartitionCreationFlags::INTERCEPT_MESSAGE_PAGE_ENABLED);

/// `HvCallCreatePartition`.
pub(super) fn create<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: CreatePartitionInput = call.header()?;
    if !FLAGS.contains(input.flags) || !input.flags.contains(PartitionCreationFlags::LAPIC_ENABLED) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    if input.isolation_properties != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // A partition whose id the parent cannot be told would be there for ever.
    call.reply(&CreatePartitionOutput { partition_id: PartitionId::INVALID })?;
    let mut pool = hv.parent.pool.lock();
    let frame = Tables { table: &hv.table, pool: &mut pool, machine: &hv.machine }.take();
    drop(pool);
    let frame = frame.ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
    let free = (0u16..).zip(hv.slots).find_map(|(slot, place)| {
        let place = place.0.try_write().filter(|child| child.is_none())?;
        Some((slot, place))
    });
    let Some((slot, mut place)) = free else {
        let mut pool = hv.parent.pool.lock();
        Tables { table: &hv.table, pool: &mut pool, machine: &hv.machine }.give(frame);
        return Err(HvStatus::NO_RESOURCES);
    };
    let id = hv.new_id(slot);
    let clock = Clock::new(hv.machine.tsc_frequency(), hv.machine.tsc());
    let child = Child::new(id, slot, Policy::new(&hv.machine, &input), clock);
    *place = Some(hv.machine.emplace(frame, child));
    drop(place);
    call.reply(&CreatePartitionOutput { partition_id: id })
}

/// `HvCallInitializePartition`.
pub(super) fn initialize<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: InitializePartitionInput = call.header()?;
    hv.child(input.partition_id)?.initialize(hv)
}

/// `HvCallFinalizePartition`.
pub(super) fn finalize<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    let input: FinalizePartitionInput = call.header()?;
    let slot = {
        let child = hv.child(input.partition_id)?;
        child.finalize(hv, lp)?;
        child.slot
    };
    // Nobody refers to a virtual processor any more once nobody refers to the partition.
    let mut place = hv.slots[usize::from(slot)].0.write();
    if let Some(child) = place.as_mut().filter(|child| child.id == input.partition_id) {
        child.end_tables(hv);
    }
    Ok(())
}

/// `HvCallDeletePartition`. What was deposited and not withdrawn goes back to the parent with it.
pub(super) fn delete<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    let input: DeletePartitionInput = call.header()?;
    let slot = {
        let child = hv.child(input.partition_id)?;
        if child.stage() == Stage::Active {
            return Err(HvStatus::INVALID_PARTITION_STATE);
        }
        child.slot
    };
    let mut place = hv.slots[usize::from(slot)].0.write();
    let ended =
        |child: &mut M::Page<Child<M>>| child.id == input.partition_id && child.stage() != Stage::Active;
    let page = place.take_if(ended).ok_or(HvStatus::INVALID_PARTITION_ID)?;
    let (child, frame) = hv.machine.take(page);
    drop(place);
    let mut parts = child.dismantle(hv);
    let mut pool = hv.parent.pool.lock();
    Tables { table: &hv.table, pool: &mut pool, machine: &hv.machine }.give(frame);
    let (mark, parents_mark) = (parts.mark(), pool.mark());
    drop(pool);
    // Nobody's cached translations know what was given back before this.
    hv.flush_everyone(lp);
    parts.settle(&hv.table, mark);
    hv.parent.pool.lock().settle(&hv.table, parents_mark);
    let mut parent = hv.parent.space.write();
    let mut tables = Tables { table: &hv.table, pool: &mut parts, machine: &hv.machine };
    while memory::withdraw(&mut tables, &mut parent).is_some() {}
    Ok(())
}

/// `HvCallGetNextChildPartition`: the child after a given one, in the order of their slots; 0 after the last.
pub(super) fn next_child<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: GetNextChildPartitionInput = call.header()?;
    if !(input.parent_id == PARENT_ID || input.parent_id == PartitionId::SELF) {
        return Err(HvStatus::INVALID_PARTITION_ID);
    }
    let first = match input.previous_child_id {
        PartitionId::INVALID => 0,
        previous => hv.child(previous)?.slot + 1,
    };
    let next = (first..hv.slots.len() as u16).find_map(|slot| hv.child_in(slot).map(|child| child.id));
    call.reply(&GetNextChildPartitionOutput { next_child_id: next.unwrap_or(PartitionId::INVALID) })
}
