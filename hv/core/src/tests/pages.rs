//! Calls about memory: whose pages can be deposited, mapped and withdrawn, and what is left when a call stops in the middle.

use super::{Rig, Sizes, steps::*};
use crate::machine::{Access, Exit, Vcpu};
use crate::memory::PageOwner;
use parterre_abi::{
    hypercall::{
        GetGpaPagesAccessStatesInput, GpaPageAccessStateFlags, HypercallCode as Code, MapGpaFlags,
        MapGpaPagesInput, SetPartitionPropertyInput, UnmapGpaFlags, UnmapGpaPagesInput,
    },
    property::PartitionPropertyCode,
    status::HvStatus,
    types::PartitionId,
};
use std::{vec, vec::Vec};
use zerocopy::FromZeros;

const PARENT: PageOwner = PageOwner::Parent { lends: 0 };
const LARGE: MapGpaFlags = RWX.union(MapGpaFlags::LARGE_PAGE);

impl Rig {
    pub(super) fn unmap(
        &mut self,
        id: PartitionId,
        page: u64,
        count: u16,
        flags: UnmapGpaFlags,
    ) -> (HvStatus, u16) {
        let header = UnmapGpaPagesInput {
            target_partition_id: id,
            target_gpa_base: page,
            unmap_flags: flags,
            padding: 0,
        };
        self.cpu().rep(Code::UNMAP_GPA_PAGES, &header, &[0u8; 0], [0, count])
    }

    fn no_access(&mut self, id: PartitionId, page: u64, count: u16, flags: MapGpaFlags) -> (HvStatus, u16) {
        let map_flags = MapGpaFlags::NO_ACCESS | flags;
        let header =
            MapGpaPagesInput { target_partition_id: id, target_gpa_base: page, map_flags, padding: 0 };
        self.cpu().rep(Code::MAP_GPA_PAGES, &header, &[0u8; 0], [0, count])
    }

    fn states(
        &mut self,
        id: PartitionId,
        page: u64,
        count: u16,
        flags: GpaPageAccessStateFlags,
    ) -> (HvStatus, Vec<u8>) {
        let header = GetGpaPagesAccessStatesInput { partition_id: id, flags, gpa_page_number: page };
        let (status, done) =
            self.cpu().rep(Code::GET_GPA_PAGES_ACCESS_STATES, &header, &[0u8; 0], [0, count]);
        (status, self.cpu().read_output(done.into()))
    }

    fn track(&mut self, id: PartitionId, value: u64) -> Result<(), HvStatus> {
        let mut input = SetPartitionPropertyInput::new_zeroed();
        (input.partition_id, input.property_code) = (id, PartitionPropertyCode::GPA_PAGE_ACCESS_TRACKING);
        input.property_value = value;
        self.cpu().simple(Code::SET_PARTITION_PROPERTY, &input)
    }

    /// 512 pages of the parent's that a large entry can map.
    fn aligned(&self) -> u64 {
        1024
    }
}

#[test]
fn a_deposit_is_taken_as_a_whole_or_not_at_all() {
    let mut rig = Rig::new();
    let id = rig.create();
    let pages = rig.pages(8);
    let lent = rig.pages(1)[0];
    let other = rig.guest_with(64);
    assert_eq!(rig.cpu().map(other, 0, RWX, &[lent]).0, HvStatus::SUCCESS);
    let before = rig.missing();
    for wrong in [0, 3, rig.ram(), rig.ram() + 20, pages[0], lent, 1 << 40, u64::MAX, u64::MAX >> 12] {
        for place in [1, 4, 7] {
            let mut list = pages.clone();
            list[place] = wrong;
            assert_eq!(rig.cpu().deposit(id, &list), HvStatus::INVALID_PARAMETER, "with page {wrong:#x}");
            assert_eq!(rig.missing(), before);
            assert_eq!(rig.cpu().balance(id), (0, 0));
        }
    }
    assert_eq!(rig.cpu().deposit(id, &pages), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().deposit(id, &pages[..1]), HvStatus::INVALID_PARAMETER, "deposited already");
    assert_eq!(rig.cpu().balance(id), (8, 0));
}

#[test]
fn deposits_and_withdrawals_go_on_from_where_they_start() {
    let mut rig = Rig::new();
    let id = rig.create();
    let pages = rig.pages(6);
    assert_eq!(rig.cpu().rep(Code::DEPOSIT_MEMORY, &id, &pages, [2, 6]), (HvStatus::SUCCESS, 6));
    assert_eq!(rig.cpu().balance(id), (4, 0));
    assert!(pages[..2].iter().all(|page| rig.owner(*page) == PARENT));
    let cpu = rig.cpu();
    assert_eq!(cpu.rep(Code::WITHDRAW_MEMORY, &withdrawal(id), &[0u8; 0], [1, 3]), (HvStatus::SUCCESS, 3));
    assert_eq!(
        cpu.rep(Code::WITHDRAW_MEMORY, &withdrawal(id), &[0u8; 0], [0, 5]),
        (HvStatus::NO_RESOURCES, 2)
    );
    assert_eq!(
        cpu.rep(Code::WITHDRAW_MEMORY, &withdrawal(id), &[0u8; 0], [0, 513]),
        (HvStatus::INVALID_HYPERCALL_INPUT, 0)
    );
    assert!(pages.iter().all(|page| rig.owner(*page) == PARENT));
}

#[test]
fn a_list_that_crosses_its_page_is_refused() {
    let mut rig = Rig::new();
    let id = rig.create();
    let pages = rig.pages(511);
    let too_long = rig.cpu().rep(Code::DEPOSIT_MEMORY, &id, &pages, [0, 512]);
    assert_eq!(too_long, (HvStatus::INVALID_ALIGNMENT, 0));
    let far_too_long = rig.cpu().rep(Code::DEPOSIT_MEMORY, &id, &pages, [0, 4095]);
    assert_eq!(far_too_long, (HvStatus::INVALID_HYPERCALL_INPUT, 0));
    assert_eq!(rig.cpu().deposit(id, &pages), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().balance(id), (511, 0));
}

#[test]
fn what_a_partition_had_is_zero_when_it_comes_back() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    rig.machine.memory().write(shared.message, 100, b"secret");
    for page in rig.end(id) {
        assert!(rig.machine.memory().is_zero(page), "page {page:#x}");
    }
}

#[test]
fn without_enough_memory_nothing_is_initialized_and_nothing_lost() {
    for count in 0..8 {
        let mut rig = Rig::new();
        let id = rig.create();
        let pages = rig.pages(count);
        assert_eq!(rig.cpu().deposit(id, &pages), HvStatus::SUCCESS);
        while rig.cpu().about(Code::INITIALIZE_PARTITION, id) == Err(HvStatus::INSUFFICIENT_MEMORY) {
            let free = rig.cpu().balance(id);
            assert_eq!(free.1, 0, "nothing is kept of what failed");
            let more = rig.pages(1);
            assert_eq!(rig.cpu().deposit(id, &more), HvStatus::SUCCESS);
        }
        let deposited = rig.missing() - 1;
        assert!(deposited <= 8, "{deposited} pages for an empty partition");
        assert_eq!(rig.cpu().withdraw_all(id).len() + rig.end(id).len(), deposited);
    }
}

#[test]
fn a_processor_is_made_whole_or_not_at_all() {
    let mut rig = Rig::new();
    let id = rig.guest_with(8);
    rig.cpu().withdraw_all(id);
    let used = rig.cpu().balance(id).1;
    let mut input = parterre_abi::hypercall::CreateVpInput::new_zeroed();
    input.partition_id = id;
    let mut given = 0;
    while rig.cpu().simple(Code::CREATE_VP, &input) == Err(HvStatus::INSUFFICIENT_MEMORY) {
        assert_eq!(rig.cpu().balance(id), (given, used));
        let more = rig.pages(1);
        assert_eq!(rig.cpu().deposit(id, &more), HvStatus::SUCCESS);
        given += 1;
    }
    assert_eq!(rig.cpu().simple(Code::CREATE_VP, &input), Err(HvStatus::INVALID_VP_INDEX), "it is there");
    let delete = parterre_abi::hypercall::DeleteVpInput::new_zeroed();
    let delete = parterre_abi::hypercall::DeleteVpInput { partition_id: id, ..delete };
    assert_eq!(rig.cpu().simple(Code::DELETE_VP, &delete), Ok(()));
    assert_eq!(rig.cpu().simple(Code::DELETE_VP, &delete), Err(HvStatus::INVALID_VP_INDEX));
    assert_eq!(rig.cpu().withdraw_all(id).len() as u64, given);
}

#[test]
fn only_memory_of_the_parent_can_be_mapped() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let good = rig.pages(3);
    let deposited = rig.pages(1);
    assert_eq!(rig.cpu().deposit(id, &deposited), HvStatus::SUCCESS);
    let wrong = [0, 3, rig.ram(), rig.ram() + 20, deposited[0], shared.message, 1 << 40, u64::MAX];
    for wrong in wrong {
        let list = [good[0], wrong, good[1]];
        assert_eq!(rig.cpu().map(id, 0x100, RWX, &list), (HvStatus::INVALID_PARAMETER, 1), "page {wrong:#x}");
        assert_eq!(rig.owner(good[1]), PARENT, "what comes behind the wrong page is not mapped");
        assert_eq!(rig.unmap(id, 0x100, 3, UnmapGpaFlags::empty()).0, HvStatus::SUCCESS);
        assert_eq!(rig.owner(good[0]), PARENT);
    }
    // 40 bits of guest-physical addresses.
    let end = 1 << 28;
    assert_eq!(rig.cpu().map(id, end - 1, RWX, &good), (HvStatus::INVALID_PARAMETER, 1));
    assert_eq!(rig.cpu().map(id, end, RWX, &good), (HvStatus::INVALID_PARAMETER, 0));
    assert_eq!(rig.cpu().map(id, u64::MAX, RWX, &good).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(rig.end(id).len(), 209);
}

#[test]
fn map_flags_that_mean_nothing_are_refused() {
    let mut rig = Rig::new();
    let id = rig.guest_with(64);
    let page = rig.pages(1);
    let before = rig.missing();
    for flags in [
        MapGpaFlags::READABLE | MapGpaFlags::KERNEL_EXECUTABLE,
        MapGpaFlags::READABLE | MapGpaFlags::USER_EXECUTABLE,
        RWX | MapGpaFlags(1 << 5),
        RWX | MapGpaFlags(1 << 30),
        RWX | MapGpaFlags::NO_ACCESS,
        MapGpaFlags::READABLE | MapGpaFlags::NO_ACCESS,
    ] {
        assert_eq!(rig.cpu().map(id, 0, flags, &page), (HvStatus::INVALID_PARAMETER, 0), "{flags:?}");
        assert_eq!(rig.missing(), before);
    }
    let linux = RWX | MapGpaFlags::ADJUSTABLE;
    assert_eq!(rig.cpu().map(id, 0, linux, &page), (HvStatus::SUCCESS, 1));
}

#[test]
fn large_pages_are_aligned_on_both_sides_and_wanted() {
    let mut rig = Rig::new();
    let id = rig.guest_with(64);
    let frame = rig.aligned();
    assert_eq!(rig.cpu().map(id, 1, LARGE, &[frame]), (HvStatus::INVALID_ALIGNMENT, 0));
    assert_eq!(rig.cpu().map(id, 512, LARGE, &[frame + 1]), (HvStatus::INVALID_ALIGNMENT, 0));
    assert_eq!(rig.cpu().map(id, 512, LARGE, &[frame]), (HvStatus::SUCCESS, 1));
    assert_eq!(rig.owner(frame + 511), PageOwner::Parent { lends: 1 });
    assert_eq!(rig.unmap(id, 513, 1, UnmapGpaFlags::LARGE_PAGE).0, HvStatus::INVALID_ALIGNMENT);
    assert_eq!(rig.unmap(id, 513, 1, UnmapGpaFlags::empty()), (HvStatus::SUCCESS, 1), "out of the middle");
    assert_eq!((rig.owner(frame + 1), rig.owner(frame + 2)), (PARENT, PageOwner::Parent { lends: 1 }));
    assert_eq!(rig.end(id).len(), 64);
    assert_eq!(rig.owner(frame), PARENT);

    let page = rig.pages(1);
    assert_eq!(rig.cpu().deposit(PartitionId::SELF, &page), HvStatus::SUCCESS);
    let flags = FLAGS - parterre_abi::hypercall::PartitionCreationFlags::GPA_SUPER_PAGES_ENABLED;
    let small: PartitionId =
        rig.cpu().query(Code::CREATE_PARTITION, &creation(flags)).expect("there is room");
    let pages = rig.pages(64);
    assert_eq!(rig.cpu().deposit(small, &pages), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().about(Code::INITIALIZE_PARTITION, small), Ok(()));
    assert_eq!(rig.cpu().map(small, 512, LARGE, &[frame]), (HvStatus::INVALID_PARAMETER, 0));
}

#[test]
fn taking_access_away_needs_no_memory_and_reaches_running_processors() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let frame = rig.aligned();
    assert_eq!(rig.cpu().map(id, 512, LARGE, &[frame]), (HvStatus::SUCCESS, 1));
    rig.cpu().withdraw_all(id);
    let script = rig.machine.script(1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let flushes = script.flushes();
    for page in [512, 700, 1023] {
        assert_eq!(rig.no_access(id, page, 1, MapGpaFlags::empty()), (HvStatus::SUCCESS, 1));
        assert_eq!(rig.owner(frame + page - 512), PARENT);
    }
    assert_eq!(rig.no_access(id, 512, 1, MapGpaFlags::LARGE_PAGE), (HvStatus::SUCCESS, 1));
    assert_eq!(rig.owner(frame + 5), PARENT);
    script.exit(Exit::Pause);
    rig.cpu().dispatch(id, 0);
    assert!(script.flushes() > flushes, "cached translations are dropped before it runs again");
    rig.end(id);
    assert_eq!(rig.missing(), 1, "the parent's own deposit");
}

#[test]
fn a_whole_region_without_access_costs_next_to_nothing() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let (free, _) = rig.cpu().balance(id);
    for page in (0..64 * 4095).step_by(4095) {
        assert_eq!(rig.no_access(id, page, 4095, MapGpaFlags::empty()), (HvStatus::SUCCESS, 4095));
    }
    let settled = rig.cpu().rep(Code::WITHDRAW_MEMORY, &withdrawal(id), &[0u8; 0], [0, 1]);
    assert_eq!(settled, (HvStatus::SUCCESS, 1));
    assert!(free - rig.cpu().balance(id).0 < 6, "runs are not entries");
    // An access there is another message than one to where nothing is.
    let kinds = [(0x1000, 0x8000_0001), (1 << 38, 0x8000_0000)];
    for (gpa, kind) in kinds {
        let fault = Exit::SlatFault { gpa, gva: Some(0x4000), access: Access::READ, page_table_walk: false };
        rig.machine.script(1).exit(fault);
        let flags = parterre_abi::hypercall::DispatchVpFlags::CLEAR_INTERCEPT_SUSPEND;
        assert_eq!(rig.cpu().dispatch_with(id, 0, flags), Ok(INTERCEPTED));
        let message = rig.intercept(shared);
        let payload: parterre_abi::message::MemoryInterceptMessage = message.payload_as();
        assert_eq!((message.header.message_type.0, payload.guest_physical_address), (kind, gpa));
        assert_eq!(payload.guest_virtual_address, 0x4000);
    }
}

#[test]
fn dirty_pages_are_those_that_were_written() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    rig.give_memory(id, 16, 8);
    let none = GpaPageAccessStateFlags::empty();
    let clear = GpaPageAccessStateFlags::CLEAR_DIRTY | GpaPageAccessStateFlags::CLEAR_ACCESSED;
    assert_eq!(rig.track(id, 2), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(rig.track(id, 1), Ok(()));
    assert_eq!(rig.states(id, 16, 8, clear).0, HvStatus::SUCCESS);
    assert_eq!(rig.states(id, 16, 8, none), (HvStatus::SUCCESS, vec![0; 8]));
    rig.machine.script(1).code(|vcpu| {
        vcpu.write_memory(0x11000, &[1]).expect("it is mapped");
        vcpu.read_memory(0x13000, &mut [0]).expect("it is mapped");
        vcpu.set_interrupt_shadow(false);
        crate::fake::Flow::Exit(Exit::Pause)
    });
    rig.cpu().dispatch(id, 0);
    let (status, states) = rig.states(id, 16, 8, none);
    assert_eq!(status, HvStatus::SUCCESS);
    let dirty: Vec<_> = states.iter().map(|state| state & 2).collect();
    assert_eq!(dirty, [0, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!((states[1] & 1, states[3] & 1, states[4] & 1), (1, 1, 0));
    // Around the range there is nothing: answered, with nothing.
    let (status, states) = rig.states(id, 8, 12, clear);
    assert_eq!((status, states[9], states[0]), (HvStatus::SUCCESS, 3, 0));
    assert_eq!(rig.states(id, 16, 8, none).1, [0; 8]);
    let both = GpaPageAccessStateFlags::CLEAR_DIRTY | GpaPageAccessStateFlags::SET_DIRTY;
    assert_eq!(rig.states(id, 16, 1, both).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(rig.states(id, 16, 1, GpaPageAccessStateFlags(1 << 4)).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(rig.states(id, u64::MAX, 1, none).0, HvStatus::INVALID_PARAMETER);
}

#[test]
fn when_the_parents_tables_run_out_a_deposit_leaves_all_as_it_was() {
    let mut rig = Rig::with(Sizes { reserve: Some(6), ..Sizes::default() });
    let id = rig.create();
    // Pages of different large entries, each of which takes a table to be split.
    let mut given = Vec::new();
    let refused = (0..7).map(|region| 600 + 512 * region).find(|page| {
        let status = rig.cpu().deposit(id, &[*page]);
        given.push(*page);
        assert!(matches!(status, HvStatus::SUCCESS | HvStatus::INSUFFICIENT_ROOT_MEMORY));
        status != HvStatus::SUCCESS
    });
    let refused = refused.expect("six tables are not enough");
    assert_eq!(rig.owner(refused), PARENT);
    let (free, _) = rig.cpu().balance(id);
    assert_eq!(free as usize, given.len() - 1);
    assert_eq!(rig.cpu().withdraw_all(id).len(), given.len() - 1);
}
