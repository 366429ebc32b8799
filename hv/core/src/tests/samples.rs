//! One good example of each call that the parent has, in a form that tests can spoil.

use super::{Rig, steps::*};
use parterre_abi::{
    device_interrupt::{DeviceInterruptDescriptor, InterruptEntry},
    hypercall::*,
    message::{Message, MessageType},
    property::{PartitionPropertyCode, SleepState, SystemPropertyCode},
    registers::{RegisterAssoc, RegisterName},
    stats::StatsObjectType,
    types::{PartitionId, VpIndex},
};
use std::{vec, vec::Vec};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// How a call takes its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A header.
    Simple,
    /// A header and one element.
    Rep,
    /// A header and a variable part of this many words.
    Variable(u16),
}

/// Whose id the first word of the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// A child's.
    Child,
    /// A child's or the parent's own.
    Any,
    /// The parent's own.
    Own,
    /// It is none.
    None,
}

/// A call that succeeds.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub code: HypercallCode,
    pub form: Form,
    pub input: Vec<u8>,
    pub whose: Whose,
    /// Where the input names a virtual processor of the partition.
    pub vp_at: Option<usize>,
    /// How many bytes it answers.
    pub output: usize,
}

impl Sample {
    fn new<I: IntoBytes + Immutable + ?Sized>(code: HypercallCode, whose: Whose, input: &I) -> Self {
        let input = input.as_bytes().to_vec();
        Self { code, form: Form::Simple, input, whose, vp_at: None, output: 0 }
    }

    fn vp(self) -> Self {
        Self { vp_at: Some(8), ..self }
    }

    fn output(self, output: usize) -> Self {
        Self { output, ..self }
    }

    fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Its control word.
    pub fn control(&self) -> HypercallInput {
        let control = HypercallInput::new().with_call_code(self.code.0);
        match self.form {
            Form::Simple => control,
            Form::Rep => control.with_rep_count(1),
            Form::Variable(words) => control.with_variable_header_size(words),
        }
    }
}

/// `value` with its fields set by `fill`.
fn with<T: FromZeros>(fill: impl FnOnce(&mut T)) -> T {
    let mut value = T::new_zeroed();
    fill(&mut value);
    value
}

fn bytes<H: IntoBytes + Immutable, E: IntoBytes + Immutable>(header: &H, element: &E) -> Vec<u8> {
    [header.as_bytes(), element.as_bytes()].concat()
}

/// All calls, about the active partition `id` with virtual processor 0. Each is good by itself; some are good only once.
pub(super) fn all(rig: &mut Rig, id: PartitionId) -> Vec<Sample> {
    let mut samples = about_partitions(id);
    samples.extend(about_memory(rig, id));
    samples.extend(about_processors(rig, id));
    samples.extend(about_the_machine(id));
    samples.extend(about_interrupts(id));
    samples.extend(about_the_synic(rig, id));
    samples
}

fn about_partitions(id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::{Any, Child, None};
    let property: GetPartitionPropertyInput = with(|i: &mut GetPartitionPropertyInput| {
        (i.partition_id, i.property_code) = (id, PartitionPropertyCode::REFERENCE_TIME);
    });
    let set: SetPartitionPropertyInput = with(|i: &mut SetPartitionPropertyInput| {
        (i.partition_id, i.property_code) = (id, PartitionPropertyCode::REFERENCE_TIME);
    });
    let ex: GetPartitionPropertyExInput = with(|i: &mut GetPartitionPropertyExInput| {
        (i.partition_id, i.property_code) = (id, PartitionPropertyCode::REFERENCE_TIME);
    });
    let intercept: InstallInterceptInput = with(|i: &mut InstallInterceptInput| {
        i.partition_id = id;
        (i.access_type, i.intercept_type) = (InterceptAccessTypeMask::EXECUTE, InterceptType::HYPERCALL);
    });
    let result: RegisterInterceptResultInput = with(|i: &mut RegisterInterceptResultInput| {
        (i.partition_id, i.vp_index, i.intercept_type) = (id, VpIndex::ANY, InterceptType::X64_CPUID);
    });
    vec![
        Sample::new(C::CREATE_PARTITION, None, &creation(FLAGS)).output(8),
        Sample::new(C::GET_NEXT_CHILD_PARTITION, Whose::Own, &[PartitionId::SELF, PartitionId::INVALID])
            .output(8),
        Sample::new(C::GET_PARTITION_PROPERTY, Any, &property).output(8),
        Sample::new(C::SET_PARTITION_PROPERTY, Child, &set),
        Sample::new(C::GET_PARTITION_PROPERTY_EX, Any, &ex).output(8),
        Sample::new(C::INSTALL_INTERCEPT, Child, &intercept),
        Sample::new(C::REGISTER_INTERCEPT_RESULT, Child, &result),
    ]
}

fn about_memory(rig: &mut Rig, id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::{Any, Child};
    let pages = rig.pages(2);
    let map = MapGpaPagesInput { target_partition_id: id, target_gpa_base: 7, map_flags: RWX, padding: 0 };
    let unmap: UnmapGpaPagesInput = with(|i: &mut UnmapGpaPagesInput| i.target_partition_id = id);
    let states: GetGpaPagesAccessStatesInput =
        with(|i: &mut GetGpaPagesAccessStatesInput| i.partition_id = id);
    vec![
        Sample::new(C::DEPOSIT_MEMORY, Any, &[id.0, pages[0]]).form(Form::Rep),
        Sample::new(C::WITHDRAW_MEMORY, Any, &withdrawal(id)).form(Form::Rep).output(8),
        Sample::new(C::GET_MEMORY_BALANCE, Any, &withdrawal(id)).output(16),
        Sample::new(C::MAP_GPA_PAGES, Child, &*bytes(&map, &pages[1])).form(Form::Rep),
        Sample::new(C::UNMAP_GPA_PAGES, Child, &unmap).form(Form::Rep),
        Sample::new(C::GET_GPA_PAGES_ACCESS_STATES, Child, &states).form(Form::Rep).output(1),
    ]
}

fn about_processors(rig: &mut Rig, id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::Child;
    let list = rig.pages(1)[0];
    let assoc: RegisterAssoc = with(|a: &mut RegisterAssoc| a.name = RegisterName::RAX);
    let create: CreateVpInput = with(|i: &mut CreateVpInput| (i.partition_id, i.vp_index) = (id, VpIndex(1)));
    let translate: TranslateVirtualAddressInput =
        with(|i: &mut TranslateVirtualAddressInput| i.partition_id = id);
    let cpuid: GetVpCpuidValuesInput = with(|i: &mut GetVpCpuidValuesInput| i.partition_id = id);
    let page: MapVpStatePageInput = with(|i: &mut MapVpStatePageInput| i.partition_id = id);
    let unmap: UnmapVpStatePageInput = with(|i: &mut UnmapVpStatePageInput| {
        (i.partition_id, i.page_type) = (id, VpStatePageType::INTERCEPT_MESSAGE);
    });
    let state: GetVpStateInput = with(|i: &mut GetVpStateInput| {
        (i.partition_id, i.state_type) = (id, VpStateType::LAPIC_STATE);
    });
    let dispatch: DispatchVpInput = with(|i: &mut DispatchVpInput| i.partition_id = id);
    vec![
        Sample::new(C::CREATE_VP, Whose::Any, &create),
        Sample::new(C::GET_VP_REGISTERS, Child, &*bytes(&registers_of(id, 0), &RegisterName::RAX))
            .vp()
            .form(Form::Rep)
            .output(16),
        Sample::new(C::SET_VP_REGISTERS, Child, &*bytes(&registers_of(id, 0), &assoc)).vp().form(Form::Rep),
        Sample::new(C::TRANSLATE_VIRTUAL_ADDRESS, Child, &translate).vp().output(16),
        Sample::new(C::GET_VP_CPUID_VALUES, Child, &*bytes(&cpuid, &CpuidLeafInfo::default()))
            .vp()
            .form(Form::Rep)
            .output(16),
        Sample::new(C::MAP_VP_STATE_PAGE, Child, &page).vp().output(8),
        Sample::new(C::GET_VP_STATE, Child, &*bytes(&state, &list)).vp().form(Form::Variable(1)),
        Sample::new(C::SET_VP_STATE, Child, &*bytes(&state, &list)).vp().form(Form::Variable(1)),
        Sample::new(C::DISPATCH_VP, Child, &dispatch).vp().output(8),
        Sample::new(C::UNMAP_VP_STATE_PAGE, Child, &unmap).vp(),
    ]
}

fn about_the_machine(id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::None;
    let scheduler: GetSystemPropertyInput =
        with(|i: &mut GetSystemPropertyInput| i.property_id = SystemPropertyCode::SCHEDULER_TYPE);
    let sleep: SetSystemPropertyInput = with(|i: &mut SetSystemPropertyInput| {
        i.property_id = SystemPropertyCode::SLEEP_STATE;
        i.sleep_state_info.sleep_state = SleepState::S5;
    });
    let event = NotifyPartitionEventInput {
        event: PartitionEvent::ALL_LOGICAL_PROCESSORS_STARTED,
        crashdump_action: CrashdumpAction::NONE,
    };
    vec![
        Sample::new(C::GET_LOGICAL_PROCESSOR_RUN_TIME, None, &0u32).output(32),
        Sample::new(C::ADD_LOGICAL_PROCESSOR, None, &[1u32, 2, 0, 0]).output(56),
        Sample::new(C::NOTIFY_PARTITION_EVENT, None, &event),
        Sample::new(C::GET_SYSTEM_PROPERTY, None, &scheduler).output(8),
        Sample::new(C::SET_SYSTEM_PROPERTY, None, &sleep),
        Sample::new(C::MAP_STATS_PAGE, None, &stats(StatsObjectType::PARTITION, id.0, 0)).output(8),
        Sample::new(C::UNMAP_STATS_PAGE, None, &stats(StatsObjectType::PARTITION, id.0, 0)),
    ]
}

fn about_interrupts(id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::{Child, None, Own};
    let assert: AssertVirtualInterruptInput = with(|i: &mut AssertVirtualInterruptInput| {
        (i.partition_id, i.vector) = (id, 0x40);
    });
    let map = device_interrupt(0x51, 1);
    let entry = InterruptEntry { source: map_source(), reserved: 0, data: 0x51 << 32 | 0xFEE0_0000 };
    let unmap: UnmapDeviceInterruptInput = with(|i: &mut UnmapDeviceInterruptInput| {
        (i.partition_id, i.device_id, i.interrupt_entry) = (PartitionId::SELF, map.device_id, entry);
    });
    vec![
        Sample::new(C::ASSERT_VIRTUAL_INTERRUPT, Child, &assert),
        Sample::new(C::CLEAR_VIRTUAL_INTERRUPT, Child, &id),
        Sample::new(C::MAP_DEVICE_INTERRUPT, Own, &*bytes(&map, &1u64)).form(Form::Variable(2)).output(56),
        Sample::new(C::UNMAP_DEVICE_INTERRUPT, Own, &unmap),
        Sample::new(C::CREATE_PORT, Own, &port(id, 9)),
        Sample::new(C::CONNECT_PORT, Child, &connection(id, 9)),
        Sample::new(C::NOTIFY_PORT_RING_EMPTY, None, &[5u32, 0]),
        Sample::new(
            C::DISCONNECT_PORT,
            Child,
            &DisconnectPortInput { connection_partition_id: id, connection_id: 9, flags: 1 },
        ),
        Sample::new(
            C::DELETE_PORT,
            Own,
            &DeletePortInput { port_partition_id: PartitionId::SELF, port_id: 9, reserved: 0 },
        ),
    ]
}

fn about_the_synic(rig: &mut Rig, id: PartitionId) -> Vec<Sample> {
    use HypercallCode as C;
    use Whose::Child;
    rig.enable_synic_of(id, 0);
    let signal: SignalEventDirectInput =
        with(|i: &mut SignalEventDirectInput| (i.target_partition, i.target_sint) = (id, 2));
    let message = Message::new(MessageType(1), 7, b"hello").expect("it fits");
    let post: PostMessageDirectInput = with(|i: &mut PostMessageDirectInput| {
        (i.partition_id, i.sint_index) = (id, 2);
        i.message = zerocopy::transmute!(message);
    });
    vec![
        Sample::new(C::SIGNAL_EVENT_DIRECT, Child, &signal).vp().output(8),
        Sample::new(C::POST_MESSAGE_DIRECT, Child, &post).vp(),
    ]
}

fn map_source() -> parterre_abi::device_interrupt::InterruptSource {
    parterre_abi::device_interrupt::InterruptSource::MSI
}

/// The mapping of an interrupt of the PCI function 0:3.0 to the processors in `mask`; a bank follows.
pub(super) fn device_interrupt(vector: u32, mask: u64) -> MapDeviceInterruptInput {
    with(|i: &mut MapDeviceInterruptInput| {
        i.partition_id = PartitionId::SELF;
        i.device_id = parterre_abi::device_interrupt::DeviceId::from(1 << 62 | 3 << 3);
        let d: &mut DeviceInterruptDescriptor = &mut i.interrupt_descriptor;
        d.vector_count = 1;
        d.target.vector = vector;
        d.target.flags = parterre_abi::device_interrupt::DeviceInterruptTarget::PROCESSOR_SET;
        d.target.vp_set.valid_bank_mask = mask;
    })
}

/// A doorbell port of the parent's at SINT 5.
pub(super) fn port(child: PartitionId, port_id: u32) -> CreatePortInput {
    with(|i: &mut CreatePortInput| {
        (i.port_partition_id, i.port_id, i.connection_partition_id) = (PartitionId::SELF, port_id, child);
        i.port_info.port_type = parterre_abi::synic::PortType::DOORBELL;
        (i.port_info.target_sint, i.port_info.target_vp) = (5, VpIndex::ANY);
    })
}

/// A connection to that port: any value, any size, written to GPA 0x9000.
pub(super) fn connection(child: PartitionId, port_id: u32) -> ConnectPortInput {
    with(|i: &mut ConnectPortInput| {
        (i.connection_partition_id, i.connection_id) = (child, port_id);
        (i.port_partition_id, i.port_id) = (PartitionId::SELF, port_id);
        i.connection_info.port_type = parterre_abi::synic::PortType::DOORBELL;
        (i.connection_info.gpa, i.connection_info.flags) = (0x9000, 1 << 31);
    })
}
