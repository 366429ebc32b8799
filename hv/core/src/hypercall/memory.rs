//! Calls about memory: deposits, mappings, page states (TLFS "Partition Management", "Guest Physical Address Spaces").

use super::{Call, Done, stats};
use crate::{
    child::{Child, ChildRef},
    hypervisor::Hypervisor,
    machine::{Access, Machine, PageStateChange},
    memory::{self, AddressSpace, DepositError, PageSize, Progress, SpaceError, Tables},
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{
        DepositMemoryInput, GetGpaPagesAccessStatesInput, GetMemoryBalanceInput, GetMemoryBalanceOutput,
        GpaPageAccessState, GpaPageAccessStateFlags, MapGpaFlags, MapGpaPagesInput, UnmapGpaFlags,
        UnmapGpaPagesInput, WithdrawMemoryInput,
    },
    status::{HvResult, HvStatus},
};

/// Page numbers that fit an input or output page.
const LIST: usize = 512;

/// `HvCallDepositMemory`: all pages of the list or none.
pub(super) fn deposit<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    let result = try_deposit(hv, lp, call);
    if let Ok(input) = call.header::<DepositMemoryInput>() {
        stats::tell_deposits(hv, input.partition_id);
    }
    let reps = if result.is_ok() { call.control.rep_count() } else { call.control.rep_start() };
    Done { status: result.err().unwrap_or(HvStatus::SUCCESS), reps }
}

fn try_deposit<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> HvResult<()> {
    call.expect_rep()?;
    let input: DepositMemoryInput = call.header()?;
    let mut list = [0; LIST];
    let pages = read_list(call, size_of::<DepositMemoryInput>(), &mut list)?;
    hv.with_pool(input.partition_id, |pool| {
        let mut parent = hv.parent.space.write();
        let mut tables = Tables { table: &hv.table, pool, machine: &hv.machine };
        memory::deposit(&mut tables, &mut parent, pages, || hv.flush_everyone(lp)).map_err(
            |error| match error {
                DepositError::NotParent(_) | DepositError::Lent(_) => HvStatus::INVALID_PARAMETER,
                DepositError::OutOfTables => HvStatus::INSUFFICIENT_ROOT_MEMORY,
            },
        )
    })
}

/// Reads the page numbers that are still to do from an input list behind a header of `offset` bytes.
fn read_list<'a>(call: &Call<'_>, offset: usize, list: &'a mut [u64; LIST]) -> HvResult<&'a [u64]> {
    let reps = call.reps();
    let list = list.get_mut(..reps.len()).ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?;
    let start = offset + 8 * usize::from(reps.start);
    call.copy_input(start, zerocopy::IntoBytes::as_mut_bytes(list))?;
    Ok(list)
}

/// `HvCallWithdrawMemory`: gives back what is free, as many pages as asked for.
pub(super) fn withdraw<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    let mut reps = call.control.rep_start();
    let result = (|| {
        call.expect_rep()?;
        let input: WithdrawMemoryInput = call.header()?;
        if usize::from(call.control.rep_count()) > LIST {
            return Err(HvStatus::INVALID_HYPERCALL_INPUT);
        }
        hv.settle(lp, input.partition_id)?;
        while reps < call.control.rep_count() {
            // The place for the page's number must be writable before the page is given away.
            call.copy_output(8 * usize::from(reps), &[0; 8])?;
            let page = hv.with_pool(input.partition_id, |pool| {
                let mut parent = hv.parent.space.write();
                let mut tables = Tables { table: &hv.table, pool, machine: &hv.machine };
                memory::withdraw(&mut tables, &mut parent).ok_or(HvStatus::NO_RESOURCES)
            })?;
            call.copy_output(8 * usize::from(reps), &page.to_le_bytes())?;
            reps += 1;
        }
        Ok(())
    })();
    if let Ok(input) = call.header::<WithdrawMemoryInput>() {
        stats::tell_deposits(hv, input.partition_id);
    }
    Done { status: result.err().unwrap_or(HvStatus::SUCCESS), reps }
}

/// `HvCallGetMemoryBalance`: how much of what was deposited is free, and how much in use.
pub(super) fn balance<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: GetMemoryBalanceInput = call.header()?;
    let output = hv.with_pool(input.partition_id, |pool| {
        let pages_available = pool.available();
        Ok(GetMemoryBalanceOutput { pages_available, pages_in_use: pool.deposited() - pages_available })
    })?;
    call.reply(&output)
}

/// `HvCallMapGpaPages`.
pub(super) fn map<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    change(hv, lp, call, |call, child, space, tables| {
        let input: MapGpaPagesInput = call.header()?;
        let flags = input.map_flags;
        let size = page_size(flags.contains(MapGpaFlags::LARGE_PAGE));
        let start = u64::from(call.control.rep_start());
        let page = input.target_gpa_base.saturating_add(start * size.pages());
        if flags.contains(MapGpaFlags::NO_ACCESS) {
            if flags.intersects(MapGpaFlags::PERMISSIONS) {
                return Err(HvStatus::INVALID_PARAMETER);
            }
            return Ok(space.no_access(tables, page, call.reps().len() as u64, size));
        }
        let access = rights(flags)?;
        if size == PageSize::Large && !child.allows_large_pages() {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let mut list = [0; LIST];
        let frames = read_list(call, size_of::<MapGpaPagesInput>(), &mut list)?;
        Ok(space.map(tables, page, frames, access, size))
    })
}

/// `HvCallUnmapGpaPages`.
pub(super) fn unmap<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    change(hv, lp, call, |call, _, space, tables| {
        let input: UnmapGpaPagesInput = call.header()?;
        let size = page_size(input.unmap_flags.contains(UnmapGpaFlags::LARGE_PAGE));
        let start = u64::from(call.control.rep_start());
        let page = input.target_gpa_base.saturating_add(start * size.pages());
        Ok(space.unmap(tables, page, call.reps().len() as u64, size))
    })
}

fn page_size(large: bool) -> PageSize {
    if large { PageSize::Large } else { PageSize::Small }
}

/// The rights that map flags give. Kernel and user mode cannot be told apart when executing.
fn rights(flags: MapGpaFlags) -> HvResult<Access> {
    const KNOWN: MapGpaFlags = MapGpaFlags::PERMISSIONS
        .union(MapGpaFlags::ADJUSTABLE)
        .union(MapGpaFlags::NO_OVERLAY)
        .union(MapGpaFlags::LARGE_PAGE);
    let execute = flags.intersection(MapGpaFlags::EXECUTABLE);
    if !KNOWN.contains(flags) || !(execute.is_empty() || execute == MapGpaFlags::EXECUTABLE) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let mut access = Access::empty();
    access.set(Access::READ, flags.contains(MapGpaFlags::READABLE));
    access.set(Access::WRITE, flags.contains(MapGpaFlags::WRITABLE));
    access.set(Access::EXECUTE, !execute.is_empty());
    Ok(access)
}

/// Changes the address space of the child that the input's first word names, and has its processors forget cached
/// translations if rights shrank. The result counts the elements done since element 0, also when memory ran out.
fn change<M: Machine>(
    hv: &Hypervisor<M>,
    lp: usize,
    call: &Call<'_>,
    action: impl FnOnce(&Call<'_>, &Child<M>, &mut AddressSpace<M>, &mut Tables<'_, M>) -> HvResult<Progress>,
) -> Done {
    let start = call.control.rep_start();
    let result = (|| {
        call.expect_rep()?;
        let child = hv.child(call.header()?)?;
        let progress = child.with_space(hv, |space, tables| {
            let before = space.generation.load(SeqCst);
            let progress = action(call, &child, space, tables)?;
            Ok((progress, space.generation.load(SeqCst) != before))
        });
        flush_if_shrunk(hv, lp, &child, progress)
    })();
    match result {
        Ok(progress) => Done { status: space_status(progress.result), reps: start + progress.done as u16 },
        Err(status) => Done { status, reps: start },
    }
}

fn flush_if_shrunk<M: Machine>(
    hv: &Hypervisor<M>,
    lp: usize,
    child: &ChildRef<'_, M>,
    progress: HvResult<(Progress, bool)>,
) -> HvResult<Progress> {
    let (progress, shrunk) = progress?;
    if shrunk {
        child.flush(hv, lp);
    }
    Ok(progress)
}

fn space_status(result: Result<(), SpaceError>) -> HvStatus {
    match result {
        Ok(()) => HvStatus::SUCCESS,
        Err(SpaceError::OutOfTables) => HvStatus::INSUFFICIENT_MEMORY,
        Err(SpaceError::Unaligned(_)) => HvStatus::INVALID_ALIGNMENT,
        Err(_) => HvStatus::INVALID_PARAMETER,
    }
}

/// `HvCallGetGpaPagesAccessStates`.
pub(super) fn access_states<M: Machine>(hv: &Hypervisor<M>, lp: usize, call: &Call<'_>) -> Done {
    let mut output = call.control.rep_start();
    change(hv, lp, call, |call, _, space, _| {
        let input: GetGpaPagesAccessStatesInput = call.header()?;
        let change = state_change(input.flags)?;
        let count = call.reps().len() as u64;
        let page = input.gpa_page_number.saturating_add(u64::from(output));
        // The output must be writable before states are cleared.
        call.copy_output(0, &[0])?;
        call.copy_output(usize::from(call.control.rep_count()) - 1, &[0])?;
        let mut failed = None;
        let progress = space.page_states(page, count, change, |state| {
            let state = GpaPageAccessState::new().with_accessed(state.accessed).with_dirty(state.dirty);
            let written = call.copy_output(usize::from(output), &[state.into_bits()]);
            failed = failed.or(written.err());
            output += 1;
        });
        failed.map_or(Ok(progress), Err)
    })
}

/// Clearing accessed clears dirty as well, setting dirty sets accessed (Linux `hv_call_get_gpa_access_states`).
fn state_change(flags: GpaPageAccessStateFlags) -> HvResult<PageStateChange> {
    use GpaPageAccessStateFlags as F;
    let pair = |clear: F, set: F| match (flags.contains(clear), flags.contains(set)) {
        (true, true) => Err(HvStatus::INVALID_PARAMETER),
        (true, false) => Ok(Some(false)),
        (false, true) => Ok(Some(true)),
        (false, false) => Ok(None),
    };
    if !F::all().contains(flags) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    Ok(PageStateChange {
        accessed: pair(F::CLEAR_ACCESSED, F::SET_ACCESSED)?,
        dirty: pair(F::CLEAR_DIRTY, F::SET_DIRTY)?,
    })
}
