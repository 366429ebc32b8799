//! Pages that a virtual processor shares with the parent, and its state in bulk (Linux `mshv_root_hv_call.c`).

use super::{Call, stats};
use crate::{
    child::{Page, Stage},
    hypervisor::Hypervisor,
    machine::{Machine, Vcpu},
    memory::Visible,
    xstate,
};
use parterre_abi::{
    hypercall::{
        GetVpStateInput, MapVpStatePageInput, MapVpStatePageOutput, UnmapVpStatePageInput, VpStatePageType,
        VpStateType,
    },
    status::{HvResult, HvStatus},
    types::InputVtl,
};
use zerocopy::{FromZeros, IntoBytes};

fn page(kind: VpStatePageType, vtl: InputVtl) -> HvResult<Page> {
    if !vtl.is_vtl0() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    match kind {
        VpStatePageType::REGISTERS => Ok(Page::Registers),
        VpStatePageType::INTERCEPT_MESSAGE => Ok(Page::Message),
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

/// `HvCallMapVpStatePage`.
pub(super) fn map<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: MapVpStatePageInput = call.header()?;
    if input.flags != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let page = page(input.page_type, input.input_vtl)?;
    let child = hv.child(input.partition_id)?;
    child.expect(Stage::Active)?;
    let vp = child.vp(input.vp_index.0)?;
    let map_location = stats::place(hv, input.partition_id, vp.pages.lock().place(page))?;
    call.reply(&MapVpStatePageOutput { map_location })
}

/// `HvCallUnmapVpStatePage`.
pub(super) fn unmap<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: UnmapVpStatePageInput = call.header()?;
    let page = page(input.page_type, input.input_vtl)?;
    let child = hv.child(input.partition_id)?;
    let vp = child.vp(input.vp_index.0)?;
    let frame = vp.pages.lock().place(page).take();
    stats::remove(hv, input.partition_id, frame.ok_or(HvStatus::INVALID_PARAMETER)?);
    Ok(())
}

/// The one page of the parent that a list names, as an address.
fn listed_page(call: &Call<'_>, input: &GetVpStateInput) -> HvResult<u64> {
    if !input.state_type.is_by_page_list() || call.control.variable_header_size() != 1 {
        return Err(HvStatus::INVALID_HYPERCALL_INPUT);
    }
    let page: u64 = call.input_at(size_of::<GetVpStateInput>())?;
    page.checked_mul(4096).ok_or(HvStatus::INVALID_PARAMETER)
}

/// What a page of a virtual processor that its guest sees holds.
fn contents<M: Machine>(hv: &Hypervisor<M>, page: &Visible) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    hv.machine.read_frame(page.frame(), 0, &mut bytes);
    bytes
}

/// `HvCallGetVpState`.
pub(super) fn get_state<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_variable()?;
    let input: GetVpStateInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    let vp = child.vp(input.vp_index.0)?;
    let mut inner = vp.lock(&hv.machine);
    let write = |bytes: &[u8]| {
        let address = listed_page(call, &input)?;
        let parent = hv.parent.space.read();
        parent.write(&hv.table, address, bytes).map_err(|_| HvStatus::INVALID_PARAMETER)
    };
    match input.state_type {
        VpStateType::LAPIC_STATE => {
            // What is told here is the whole state.
            inner.require_eoi(&hv.machine);
            let context = inner.context(&vp, child.now(hv));
            write(inner.apic.export(&context).as_bytes())
        }
        VpStateType::XSAVE => write(inner.vcpu.xsave()),
        VpStateType::SIM_PAGE => write(&contents(hv, &vp.synic.messages)),
        VpStateType::SIEF_PAGE => write(&contents(hv, &vp.synic.events)),
        VpStateType::SYNTHETIC_TIMERS => call.reply(&inner.timers.export(child.reference_time(hv))),
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

/// `HvCallSetVpState`.
pub(super) fn set_state<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_variable()?;
    let input: GetVpStateInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    let vp = child.vp(input.vp_index.0)?;
    let mut inner = vp.lock(&hv.machine);
    let read = |bytes: &mut [u8]| {
        let address = listed_page(call, &input)?;
        let parent = hv.parent.space.read();
        parent.read(&hv.table, address, bytes).map_err(|_| HvStatus::INVALID_PARAMETER)
    };
    match input.state_type {
        VpStateType::LAPIC_STATE => {
            let mut state = parterre_abi::lapic::LapicState::new_zeroed();
            read(state.as_mut_bytes())?;
            inner.require_eoi(&hv.machine);
            let context = inner.context(&vp, child.now(hv));
            inner.apic.import(&state, &context);
            Ok(())
        }
        VpStateType::XSAVE => {
            let mut area = [0; 4096];
            read(&mut area)?;
            let imported = xstate::import(&hv.machine, inner.vcpu.xsave_mut(), &area);
            imported.then_some(()).ok_or(HvStatus::INVALID_REGISTER_VALUE)
        }
        VpStateType::SIM_PAGE | VpStateType::SIEF_PAGE => {
            let mut bytes = [0; 4096];
            read(&mut bytes)?;
            let is_messages = input.state_type == VpStateType::SIM_PAGE;
            let page = if is_messages { &vp.synic.messages } else { &vp.synic.events };
            hv.machine.write_frame(page.frame(), 0, &bytes);
            Ok(())
        }
        VpStateType::SYNTHETIC_TIMERS => {
            let bytes: parterre_abi::hypercall::SyntheticTimersState =
                call.input_at(size_of::<GetVpStateInput>())?;
            inner.timers.import(&bytes, child.reference_time(hv));
            Ok(())
        }
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}
