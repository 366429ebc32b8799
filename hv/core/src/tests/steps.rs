//! What kernels do again and again: the parent's makes children, gives them memory and runs them; a child's begins.

use super::{Cpu, Rig};
use crate::fake::{FakeVcpu, Flow, Script};
use crate::machine::{Exit, Reg, Segment, SegmentName, Vcpu};
use parterre_abi::{
    hypercall::{
        CreatePartitionInput, CreatePartitionOutput, CreateVpInput, DispatchVpFlags, DispatchVpInput,
        DispatchVpOutput, GetMemoryBalanceInput, GetMemoryBalanceOutput, GetVpRegistersInput,
        HypercallCode as Code, MapGpaFlags, MapGpaPagesInput, MapStatsPageInput, MapStatsPageOutput,
        MapVpStatePageInput, MapVpStatePageOutput, PartitionCreationFlags, PartitionInput, VpDispatchEvent,
        VpDispatchState, VpStatePageType, WithdrawMemoryInput,
    },
    message::{MESSAGE_SIZE, Message, VpSignalPairSchedulerMessage},
    msr,
    registers::{RegisterAssoc, RegisterName, RegisterValue},
    stats::{StatsAreaType, StatsObjectIdentity, StatsObjectType},
    status::{HvResult, HvStatus},
    types::{PartitionId, VpIndex},
};
use std::{vec, vec::Vec};
use zerocopy::{FromBytes, FromZeros};

/// How Linux creates partitions.
pub(super) const FLAGS: PartitionCreationFlags = PartitionCreationFlags::EXO_PARTITION
    .union(PartitionCreationFlags::LAPIC_ENABLED)
    .union(PartitionCreationFlags::X2APIC_CAPABLE)
    .union(PartitionCreationFlags::GPA_SUPER_PAGES_ENABLED)
    .union(PartitionCreationFlags::INTERCEPT_MESSAGE_PAGE_ENABLED);
/// Reading, writing and executing.
pub(super) const RWX: MapGpaFlags = MapGpaFlags::PERMISSIONS;
/// Where a child is in the results of a dispatch.
pub(super) const BLOCKED: (VpDispatchState, VpDispatchEvent) =
    (VpDispatchState::BLOCKED, VpDispatchEvent::INVALID);
pub(super) const SUSPENDED: (VpDispatchState, VpDispatchEvent) =
    (VpDispatchState::BLOCKED, VpDispatchEvent::SUSPEND);
pub(super) const INTERCEPTED: (VpDispatchState, VpDispatchEvent) =
    (VpDispatchState::READY, VpDispatchEvent::INTERCEPT);
pub(super) const READY: (VpDispatchState, VpDispatchEvent) =
    (VpDispatchState::READY, VpDispatchEvent::INVALID);

/// Has a processor run 64-bit code, with interrupts on.
pub(super) fn long_mode(vcpu: &mut FakeVcpu) {
    vcpu.set(Reg::Cr0, 0x8000_0011);
    vcpu.set(Reg::Efer, 0x500);
    vcpu.set(Reg::Rflags, 0x202);
    let code = Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xA09B };
    vcpu.set_segment(SegmentName::Cs, code);
}

/// The guest writes a register.
pub(super) fn write(script: &Script, msr: u32, value: u64) {
    script.exit(Exit::WriteMsr { msr, value, length: Some(2) });
}

/// The guest is a 64-bit kernel that says who it is and enables its local APIC (x2APIC); the run ends then.
pub(super) fn begin_kernel(script: &Script, bootstrap: bool) {
    const BASE: u64 = 0xFEE0_0C00;
    const BOOTSTRAP: u64 = 1 << 8;
    const APIC_BASE: u32 = 0x1B;
    const X2APIC_SPURIOUS: u32 = 0x80F;
    script.code(|vcpu| {
        long_mode(vcpu);
        Flow::Next
    });
    write(script, msr::GUEST_OS_ID, 0x8100 << 48);
    write(script, APIC_BASE, BASE | if bootstrap { BOOTSTRAP } else { 0 });
    write(script, X2APIC_SPURIOUS, 0x1FF);
    script.exit(Exit::Pause);
}

/// A partition's creation, with these flags.
pub(super) fn creation(flags: PartitionCreationFlags) -> CreatePartitionInput {
    let mut input = CreatePartitionInput::new_zeroed();
    input.flags = flags;
    input.compatibility_version = 0x609;
    input
}

/// What identifies a statistics page.
pub(super) fn stats(stats_type: StatsObjectType, id: u64, vp: u32) -> MapStatsPageInput {
    let identity = StatsObjectIdentity {
        id,
        vp_index: VpIndex(vp),
        flags: 0,
        reserved: 0,
        area_type: StatsAreaType::SELF,
    };
    MapStatsPageInput { stats_type, padding: 0, identity }
}

/// The header of a call about registers.
pub(super) fn registers_of(partition_id: PartitionId, vp: u32) -> GetVpRegistersInput {
    GetVpRegistersInput {
        partition_id,
        vp_index: VpIndex(vp),
        input_vtl: parterre_abi::types::InputVtl::new(),
        reserved: [0; 3],
    }
}

/// The header of a withdrawal.
pub(super) fn withdrawal(partition_id: PartitionId) -> WithdrawMemoryInput {
    let mut input = WithdrawMemoryInput::new_zeroed();
    input.partition_id = partition_id;
    input
}

/// The pages that a virtual processor shares with the parent, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    pub message: u64,
    pub registers: u64,
    pub stats: u64,
}

impl Cpu {
    /// A call about a partition as a whole, in registers.
    pub(super) fn about(&mut self, code: Code, partition_id: PartitionId) -> HvResult<()> {
        self.fast(code, &PartitionInput { partition_id })
    }

    /// `HvCallDispatchVp`, with whatever waited for the parent taken before.
    pub(super) fn dispatch_with(
        &mut self,
        id: PartitionId,
        vp: u32,
        flags: DispatchVpFlags,
    ) -> HvResult<(VpDispatchState, VpDispatchEvent)> {
        self.take_interrupts();
        let input =
            DispatchVpInput { partition_id: id, vp_index: VpIndex(vp), flags, time_slice: 0, spec_ctrl: 0 };
        let output: DispatchVpOutput = self.query(Code::DISPATCH_VP, &input)?;
        Ok((output.dispatch_state, output.dispatch_event))
    }

    /// The same without flags, of a virtual processor that is there.
    pub(super) fn dispatch(&mut self, id: PartitionId, vp: u32) -> (VpDispatchState, VpDispatchEvent) {
        self.dispatch_with(id, vp, DispatchVpFlags::empty()).expect("the virtual processor is there")
    }

    /// The same after an intercept that has been handled.
    pub(super) fn resume_dispatch(&mut self, id: PartitionId, vp: u32) -> (VpDispatchState, VpDispatchEvent) {
        let flags = DispatchVpFlags::CLEAR_INTERCEPT_SUSPEND;
        self.dispatch_with(id, vp, flags).expect("the virtual processor is there")
    }

    /// Writes a register.
    pub(super) fn set(
        &mut self,
        id: PartitionId,
        vp: u32,
        name: RegisterName,
        value: impl Into<RegisterValue>,
    ) -> HvResult<()> {
        let mut assoc = RegisterAssoc::new_zeroed();
        (assoc.name, assoc.value) = (name, value.into());
        self.rep(Code::SET_VP_REGISTERS, &registers_of(id, vp), &[assoc], [0, 1]).0.ok()
    }

    /// Reads a register.
    pub(super) fn get(&mut self, id: PartitionId, vp: u32, name: RegisterName) -> HvResult<RegisterValue> {
        self.rep(Code::GET_VP_REGISTERS, &registers_of(id, vp), &[name], [0, 1]).0.ok()?;
        Ok(RegisterValue::read_from_bytes(&self.read_output(16)).expect("it has this size"))
    }

    /// Reads a register of 64 bits.
    pub(super) fn get_u64(&mut self, id: PartitionId, vp: u32, name: RegisterName) -> u64 {
        self.get(id, vp, name).expect("the register is there").as_u64()
    }

    /// Deposits pages.
    pub(super) fn deposit(&mut self, id: PartitionId, pages: &[u64]) -> HvStatus {
        for chunk in pages.chunks(511) {
            let reps = [0, chunk.len() as u16];
            let (status, done) = self.rep(Code::DEPOSIT_MEMORY, &id, chunk, reps);
            if status != HvStatus::SUCCESS {
                assert_eq!(done, 0, "all pages of a call, or none");
                return status;
            }
        }
        HvStatus::SUCCESS
    }

    /// Withdraws until nothing is left, as Linux does.
    pub(super) fn withdraw_all(&mut self, id: PartitionId) -> Vec<u64> {
        let mut pages = vec![];
        loop {
            let (status, done) = self.rep(Code::WITHDRAW_MEMORY, &withdrawal(id), &[0u8; 0], [0, 512]);
            let list = self.read_output(8 * usize::from(done));
            pages.extend(list.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))));
            match status {
                HvStatus::SUCCESS => {}
                HvStatus::NO_RESOURCES => return pages,
                other => panic!("withdrawing ends with {other:?}"),
            }
        }
    }

    /// How much of a partition's memory is free, and how much in use.
    pub(super) fn balance(&mut self, id: PartitionId) -> (u64, u64) {
        let input: GetMemoryBalanceInput = withdrawal(id);
        let output: GetMemoryBalanceOutput =
            self.query(Code::GET_MEMORY_BALANCE, &input).expect("the partition is there");
        (output.pages_available, output.pages_in_use)
    }

    /// Maps pages of the parent's into a child.
    pub(super) fn map(
        &mut self,
        id: PartitionId,
        page: u64,
        flags: MapGpaFlags,
        frames: &[u64],
    ) -> (HvStatus, u16) {
        let header =
            MapGpaPagesInput { target_partition_id: id, target_gpa_base: page, map_flags: flags, padding: 0 };
        self.rep(Code::MAP_GPA_PAGES, &header, frames, [0, frames.len() as u16])
    }

    /// Takes the scheduler's signals in message slot 0.
    pub(super) fn take_signals(&mut self) -> Vec<(PartitionId, u32)> {
        let mut signals = vec![];
        while let Some(message) = self.take_message() {
            let kind = message.header.message_type;
            assert_eq!(kind, parterre_abi::message::MessageType::SCHEDULER_VP_SIGNAL_PAIR);
            let payload: VpSignalPairSchedulerMessage = message.payload_as();
            let pairs = payload.partition_ids.into_iter().zip(payload.vp_indexes);
            signals.extend(pairs.take(payload.vp_count.into()).map(|(id, vp)| (id, vp.0)));
        }
        signals
    }
}

impl Rig {
    /// The first processor.
    pub(super) fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpus[0]
    }

    /// A partition that has an id only. One page is deposited for it to the parent itself.
    pub(super) fn create(&mut self) -> PartitionId {
        let pages = self.pages(1);
        assert_eq!(self.cpu().deposit(PartitionId::SELF, &pages), HvStatus::SUCCESS);
        let output: CreatePartitionOutput =
            self.cpu().query(Code::CREATE_PARTITION, &creation(FLAGS)).expect("there is room");
        output.partition_id
    }

    /// A partition with `pages` pages of deposited memory, ready for virtual processors.
    pub(super) fn guest_with(&mut self, pages: usize) -> PartitionId {
        let id = self.create();
        let pages = self.pages(pages);
        assert_eq!(self.cpu().deposit(id, &pages), HvStatus::SUCCESS);
        assert_eq!(self.cpu().about(Code::INITIALIZE_PARTITION, id), Ok(()));
        id
    }

    /// The same with as many pages as Linux gives, and one virtual processor that may run.
    pub(super) fn guest(&mut self) -> (PartitionId, Shared) {
        let id = self.guest_with(208);
        let shared = self.vp(id, 0);
        self.release(id, 0);
        (id, shared)
    }

    /// A virtual processor, suspended, with the pages that Linux maps.
    pub(super) fn vp(&mut self, id: PartitionId, vp: u32) -> Shared {
        let mut input = CreateVpInput::new_zeroed();
        (input.partition_id, input.vp_index) = (id, VpIndex(vp));
        assert_eq!(self.cpu().simple(Code::CREATE_VP, &input), Ok(()));
        let message = self.state_page(id, vp, VpStatePageType::INTERCEPT_MESSAGE).expect("there is memory");
        let registers = self.state_page(id, vp, VpStatePageType::REGISTERS).expect("there is memory");
        let stats = self.stats_page(StatsObjectType::VP, id.0, vp).expect("there is memory");
        Shared { message, registers, stats }
    }

    /// `HvCallMapVpStatePage`.
    pub(super) fn state_page(&mut self, id: PartitionId, vp: u32, kind: VpStatePageType) -> HvResult<u64> {
        let mut input = MapVpStatePageInput::new_zeroed();
        (input.partition_id, input.vp_index, input.page_type) = (id, VpIndex(vp), kind);
        let output: MapVpStatePageOutput = self.cpu().query(Code::MAP_VP_STATE_PAGE, &input)?;
        Ok(output.map_location)
    }

    /// `HvCallMapStatsPage`.
    pub(super) fn stats_page(&mut self, kind: StatsObjectType, id: u64, vp: u32) -> HvResult<u64> {
        let output: MapStatsPageOutput = self.cpu().query(Code::MAP_STATS_PAGE, &stats(kind, id, vp))?;
        Ok(output.map_location)
    }

    /// Ends the suspension that a virtual processor begins with.
    pub(super) fn release(&mut self, id: PartitionId, vp: u32) {
        assert_eq!(self.cpu().set(id, vp, RegisterName::EXPLICIT_SUSPEND, 0u64), Ok(()));
    }

    /// Sets up a virtual processor's SynIC as its kernel would: messages at GPA page 0x30, event flags at 0x31, source 2 with
    /// vector 0x52, the timers' source 4 with vector 0x54.
    pub(super) fn enable_synic_of(&mut self, id: PartitionId, vp: u32) {
        use RegisterName as N;
        for (name, value) in
            [(N::SIMP, 0x30001u64), (N::SIEFP, 0x31001), (N::SINT2, 0x52), (N::SINT4, 0x54), (N::SCONTROL, 1)]
        {
            assert_eq!(self.cpu().set(id, vp, name, value), Ok(()));
        }
    }

    /// Gives a child fresh pages of memory from GPA page `page` on; says which.
    pub(super) fn give_memory(&mut self, id: PartitionId, page: u64, count: usize) -> Vec<u64> {
        let frames = self.pages(count);
        assert_eq!(self.cpu().map(id, page, RWX, &frames), (HvStatus::SUCCESS, count as u16));
        frames
    }

    /// The message in a virtual processor's intercept page.
    pub(super) fn intercept(&self, shared: Shared) -> Message {
        let mut bytes = [0; MESSAGE_SIZE];
        self.machine.memory().read(shared.message, 0, &mut bytes);
        Message::read_from_bytes(&bytes).expect("it has this size")
    }

    /// A counter of a statistics page.
    pub(super) fn counter(&self, page: u64, counter: u16) -> u64 {
        let mut bytes = [0; 8];
        self.machine.memory().read(page, 8 * usize::from(counter), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Ends a partition as Linux does; gives what could be withdrawn.
    pub(super) fn end(&mut self, id: PartitionId) -> Vec<u64> {
        assert_eq!(self.cpu().about(Code::FINALIZE_PARTITION, id), Ok(()));
        let pages = self.cpu().withdraw_all(id);
        assert_eq!(self.cpu().about(Code::DELETE_PARTITION, id), Ok(()));
        pages
    }
}
