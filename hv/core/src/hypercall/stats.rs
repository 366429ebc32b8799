//! Statistics pages (Linux `mshv_debugfs.c`): pages of counters that the hypervisor keeps and the parent reads.

use super::Call;
use crate::{
    child::Page,
    hypervisor::Hypervisor,
    machine::{Access, Machine, TableSource},
    memory::{Frame, Tables, Visible},
};
use parterre_abi::{
    hypercall::{MapStatsPageInput, MapStatsPageOutput, UnmapStatsPageInput},
    stats::{HypervisorCounter, PartitionCounter, StatsAreaType, StatsObjectType},
    status::{HvResult, HvStatus},
    types::PartitionId,
};

/// `HvCallMapStatsPage`.
pub(super) fn map<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: MapStatsPageInput = call.header()?;
    // There is one set of counters; the parent's view of an object is the object's own.
    if input.identity.area_type != StatsAreaType::SELF {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let partition = input.identity.partition_id();
    let map_location = match input.stats_type {
        StatsObjectType::VP if !Hypervisor::<M>::is_parent(partition) => {
            let child = hv.child(partition)?;
            let vp = child.vp(input.identity.vp_index.0)?;
            let mut pages = vp.pages.lock();
            place(hv, partition, pages.place(Page::Stats))?
        }
        StatsObjectType::PARTITION if !Hypervisor::<M>::is_parent(partition) => {
            let child = hv.child(partition)?;
            place(hv, partition, &mut child.stats.lock())?
        }
        _ => of_parent(hv, &input)?,
    };
    call.reply(&MapStatsPageOutput { map_location })
}

/// Pages about the machine and the parent.
fn of_parent<M: Machine>(hv: &Hypervisor<M>, input: &MapStatsPageInput) -> HvResult<u64> {
    let key = key(hv, input)?;
    let mut stats = hv.parent.stats.lock();
    let frame = stats.place(key).ok_or(HvStatus::NO_RESOURCES)?;
    let location = place(hv, PartitionId::SELF, frame)?;
    if let Some(frame) = frame {
        fill(hv, input, frame.frame());
    }
    Ok(location)
}

/// What a page of the machine or the parent is about: its type and index.
fn key<M: Machine>(hv: &Hypervisor<M>, input: &MapStatsPageInput) -> HvResult<(StatsObjectType, u32)> {
    let index = match input.stats_type {
        StatsObjectType::HYPERVISOR | StatsObjectType::PARTITION => 0,
        StatsObjectType::LOGICAL_PROCESSOR => {
            let index = input.identity.lp_index();
            hv.processor_of_vp(index).map(|_| index).ok_or(HvStatus::INVALID_LP_INDEX)?
        }
        StatsObjectType::VP => {
            let index = input.identity.vp_index.0;
            hv.processor_of_vp(index).map(|_| index).ok_or(HvStatus::INVALID_VP_INDEX)?
        }
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    Ok((input.stats_type, index))
}

/// Counters that stay as they are.
fn fill<M: Machine>(hv: &Hypervisor<M>, input: &MapStatsPageInput, frame: &Frame) {
    let set = |counter: u16, value: u64| {
        hv.machine.write_frame(frame, 8 * usize::from(counter), &value.to_le_bytes())
    };
    match input.stats_type {
        StatsObjectType::HYPERVISOR => {
            let processors = hv.processors.iter().filter(|lp| lp.vp_index().is_some()).count() as u64;
            set(HypervisorCounter::LOGICAL_PROCESSORS.0, processors);
            set(HypervisorCounter::PARTITIONS.0, 1 + hv.children().count() as u64);
            set(HypervisorCounter::TOTAL_PAGES.0, hv.table.pages());
        }
        StatsObjectType::PARTITION => {
            set(PartitionCounter::VIRTUAL_PROCESSORS.0, hv.processors.len() as u64);
            set(PartitionCounter::DEPOSITED_PAGES.0, hv.parent.pool.lock().deposited());
            set(PartitionCounter::PARTITION_ID.0, crate::hypervisor::PARENT_ID.0);
        }
        _ => {}
    }
}

/// Tells in a partition's statistics how many pages are deposited to it, after that has changed.
pub(super) fn tell_deposits<M: Machine>(hv: &Hypervisor<M>, partition: PartitionId) {
    let Ok(deposited) = hv.with_pool(partition, |pool| Ok(pool.deposited())) else { return };
    let tell = |frame: &Frame| {
        let offset = 8 * usize::from(PartitionCounter::DEPOSITED_PAGES.0);
        hv.machine.write_frame(frame, offset, &deposited.to_le_bytes());
    };
    if Hypervisor::<M>::is_parent(partition) {
        hv.parent.stats.lock().get((StatsObjectType::PARTITION, 0)).map(Visible::frame).map(tell);
    } else if let Ok(child) = hv.child(partition) {
        child.stats.lock().as_ref().map(Visible::frame).map(tell);
    }
}

/// Makes a page of a partition's deposited memory, if it is not there yet, and shows it to the parent; gives its number.
pub(super) fn place<M: Machine>(
    hv: &Hypervisor<M>,
    owner: PartitionId,
    place: &mut Option<Visible>,
) -> HvResult<u64> {
    if let Some(frame) = place {
        return Ok(frame.number());
    }
    let frame = hv.with_pool(owner, |pool| {
        let mut tables = Tables { table: &hv.table, pool, machine: &hv.machine };
        tables.take().map(Visible::new).ok_or(HvStatus::INSUFFICIENT_MEMORY)
    })?;
    let shown = hv.parent.space.write().share(&hv.machine, &hv.table, &frame, Access::READ | Access::WRITE);
    if shown.is_err() {
        give_back(hv, owner, frame);
        return Err(HvStatus::INSUFFICIENT_ROOT_MEMORY);
    }
    let number = frame.number();
    *place = Some(frame);
    Ok(number)
}

/// Hides a page from the parent and gives it back to where it came from.
pub(super) fn remove<M: Machine>(hv: &Hypervisor<M>, owner: PartitionId, frame: Visible) {
    hv.parent.space.write().unshare(&hv.machine, &hv.table, &frame);
    give_back(hv, owner, frame);
}

fn give_back<M: Machine>(hv: &Hypervisor<M>, owner: PartitionId, frame: Visible) {
    let mut frame = Some(frame);
    let _ = hv.with_pool(owner, |pool| {
        if let Some(frame) = frame.take() {
            let given = Tables { table: &hv.table, pool, machine: &hv.machine }.give_visible(frame);
            debug_assert!(given.is_ok(), "a page that was hidden is still shown");
        }
        Ok(())
    });
}

/// `HvCallUnmapStatsPage`.
pub(super) fn unmap<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: UnmapStatsPageInput = call.header()?;
    if input.identity.area_type != StatsAreaType::SELF {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let partition = input.identity.partition_id();
    let child = !Hypervisor::<M>::is_parent(partition);
    let (owner, frame) = match input.stats_type {
        StatsObjectType::VP if child => {
            let child = hv.child(partition)?;
            let vp = child.vp(input.identity.vp_index.0)?;
            let frame = vp.pages.lock().place(Page::Stats).take();
            (partition, frame)
        }
        StatsObjectType::PARTITION if child => (partition, hv.child(partition)?.stats.lock().take()),
        _ => (PartitionId::SELF, hv.parent.stats.lock().take(key(hv, &input)?)),
    };
    remove(hv, owner, frame.ok_or(HvStatus::INVALID_PARAMETER)?);
    Ok(())
}
