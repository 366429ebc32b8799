//! Calls about virtual processors (TLFS "Virtual Processors").

use super::{Call, Done};
use crate::{
    apic::{Configuration, Incoming, LocalApic, Rates},
    child::{Inner, RegisterAccess, Stage, Vp, VpSynic},
    hypervisor::Hypervisor,
    machine::{Machine, TableSource, Vcpu},
    memory::{AddressSpace, Visible},
    power_on,
    walk::{self, Paging, Request, WalkFault},
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{
        CpuidLeafInfo, CreateVpInput, DeleteVpInput, GetVpCpuidValuesInput, GetVpRegistersInput,
        HypercallCode, PartitionCreationFlags, SetVpRegistersInput, TranslateGvaAttributes,
        TranslateGvaResult, TranslateGvaResultCode as ResultCode, TranslateVirtualAddressInput,
        TranslateVirtualAddressOutput,
    },
    registers::{RegisterAssoc, RegisterName},
    status::{HvResult, HvStatus},
    types::CacheType,
};
use zerocopy::{FromZeros, IntoBytes};

/// `HvCallCreateVp`.
pub(super) fn create<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: CreateVpInput = call.header()?;
    if Hypervisor::<M>::is_parent(input.partition_id) {
        let lp = hv.processor_of_vp(input.vp_index.0).ok_or(HvStatus::INVALID_LP_INDEX)?;
        let new = !lp.has_vp.swap(true, SeqCst);
        return if new { Ok(()) } else { Err(HvStatus::INVALID_VP_INDEX) };
    }
    let child = hv.child(input.partition_id)?;
    child.expect(Stage::Active)?;
    let index = input.vp_index.0;
    if index >= crate::child::MAX_VPS || child.vp(index).is_ok() {
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    let frames = hv.machine.vcpu_frames();
    let needed = frames + 5;
    let (frames, pages) = child.with_tables(hv, |tables| {
        if tables.pool.available() < needed as u64 {
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        }
        let frames = tables.take_frames(frames).ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
        let pages = tables.take_frames(4).ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
        let [Some(place), Some(assist), Some(messages), Some(events), ..] = pages else {
            tables.give_frames(pages);
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        };
        Ok((frames, [place, assist, messages, events]))
    })?;
    let mut frames = Some(frames);
    let make = |frames, space: &AddressSpace<M>| hv.machine.new_vcpu(frames, space.slat());
    let vcpu = child.read_space(|space| frames.take().map(|frames| make(frames, space))).flatten();
    let Some(vcpu) = vcpu else {
        child.with_tables(hv, |tables| {
            tables.give_frames(frames.unwrap_or_default());
            pages.into_iter().for_each(|frame| tables.give(frame));
        });
        return Err(HvStatus::INVALID_PARTITION_STATE);
    };
    let [place, assist, messages, events] = pages;
    let incoming = Incoming::new(index);
    // Room for the overlays, so that the guest's own writes of their registers need no memory.
    let prepared = child.with_space(hv, |space, tables| Ok(space.prepare_overlays(tables, 3)));
    let inner = new_inner(hv, &child, index, vcpu, &incoming, Visible::new(assist));
    let synic = VpSynic::new(Visible::new(messages), Visible::new(events));
    let vp = hv.machine.emplace(place, Vp::new(index, incoming, synic, inner));
    if !matches!(prepared, Ok(Ok(()))) {
        crate::child::end_vp(hv, &child, vp);
        return Err(HvStatus::INSUFFICIENT_MEMORY);
    }
    if let Err(vp) = child.insert_vp(index, vp) {
        crate::child::end_vp(hv, &child, vp);
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    // Who finalizes the partition sets the stage first and takes out what is there then.
    if child.stage() != Stage::Active && child.remove_vp(hv, index) {
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    child.count_vps();
    Ok(())
}

fn new_inner<M: Machine>(
    hv: &Hypervisor<M>,
    child: &crate::child::Child<M>,
    index: u32,
    mut vcpu: M::Vcpu,
    incoming: &Incoming,
    assist: Visible,
) -> Inner<M> {
    let machine = &hv.machine;
    let policy = child.policy.read();
    let configuration = Configuration {
        id: index,
        bootstrap: index == 0,
        x2apic: policy.flags.contains(PartitionCreationFlags::X2APIC_CAPABLE),
        physical_bits: policy.physical_bits,
        rates: Rates { tsc: machine.tsc_frequency(), apic: machine.apic_frequency() },
    };
    power_on::reset(&mut vcpu, machine.cpuid(1, 0)[0]);
    vcpu.set(crate::machine::Reg::TscOffset, child.clock.read().tsc_offset());
    Inner::new(vcpu, LocalApic::new(configuration, incoming), assist, index != 0)
}

/// `HvCallDeleteVp`.
pub(super) fn delete<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: DeleteVpInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    {
        let vp = child.vp(input.vp_index.0)?;
        if vp.schedule.is_running() {
            return Err(HvStatus::INVALID_VP_STATE);
        }
    }
    if !child.remove_vp(hv, input.vp_index.0) {
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    child.count_vps();
    Ok(())
}

/// Runs `action` for each element still to do; counts those done.
fn repeat(call: &Call<'_>, mut action: impl FnMut(u16) -> HvResult<()>) -> Done {
    for rep in call.reps() {
        if let Err(status) = action(rep) {
            return Done { status, reps: rep };
        }
    }
    Done { status: HvStatus::SUCCESS, reps: call.control.rep_count() }
}

/// `HvCallGetVpRegisters`.
pub(super) fn get_registers<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> Done {
    with_registers(hv, call, |call, registers, rep| {
        let offset = size_of::<GetVpRegistersInput>() + size_of::<RegisterName>() * usize::from(rep);
        let name: RegisterName = call.input_at(offset)?;
        let value = registers.get(name)?;
        call.copy_output(size_of_val(&value) * usize::from(rep), value.as_bytes())
    })
}

/// `HvCallSetVpRegisters`.
pub(super) fn set_registers<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> Done {
    with_registers(hv, call, |call, registers, rep| {
        let offset = size_of::<SetVpRegistersInput>() + size_of::<RegisterAssoc>() * usize::from(rep);
        let assoc: RegisterAssoc = call.input_at(offset)?;
        registers.set(assoc.name, assoc.value)
    })
}

fn with_registers<M: Machine>(
    hv: &Hypervisor<M>,
    call: &Call<'_>,
    mut action: impl FnMut(&Call<'_>, &mut RegisterAccess<'_, M>, u16) -> HvResult<()>,
) -> Done {
    let result = (|| {
        call.expect_rep()?;
        let input: GetVpRegistersInput = call.header()?;
        if !input.input_vtl.is_vtl0() {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let child = hv.child(input.partition_id)?;
        let vp = child.vp(input.vp_index.0)?;
        let mut inner = vp.lock(&hv.machine);
        let mut registers = RegisterAccess { hv, child: &child, vp: &vp, inner: &mut inner };
        let done = repeat(call, |rep| action(call, &mut registers, rep));
        // A blocked virtual processor may have been given something to do.
        if call.code() == HypercallCode::SET_VP_REGISTERS {
            child.wake(hv, &vp);
        }
        Ok(done)
    })();
    result.unwrap_or_else(|status| Done { status, reps: call.control.rep_start() })
}

/// `HvCallGetVpCpuidValues`.
pub(super) fn cpuid_values<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> Done {
    let result = (|| {
        call.expect_rep()?;
        let input: GetVpCpuidValuesInput = call.header()?;
        let child = hv.child(input.partition_id)?;
        let vp = child.vp(input.vp_index.0)?;
        let inner = vp.lock(&hv.machine);
        Ok(repeat(call, |rep| {
            let offset = size_of::<GetVpCpuidValuesInput>() + size_of::<CpuidLeafInfo>() * usize::from(rep);
            let leaf: CpuidLeafInfo = call.input_at(offset)?;
            let values = child.cpuid(hv, vp.index, &inner.vcpu, leaf.eax, leaf.ecx);
            call.copy_output(16 * usize::from(rep), values.as_bytes())
        }))
    })();
    result.unwrap_or_else(|status| Done { status, reps: call.control.rep_start() })
}

/// `HvCallTranslateVirtualAddress`.
pub(super) fn translate<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: TranslateVirtualAddressInput = call.header()?;
    let flags = input.control_flags;
    let child = hv.child(input.partition_id)?;
    let vp = child.vp(input.vp_index.0)?;
    let inner = vp.lock(&hv.machine);
    let paging = Paging::of(&inner.vcpu, child.policy.read().physical_bits);
    let request = Request::of_flags(flags, inner.vcpu.cpl(), &paging).ok_or(HvStatus::INVALID_PARAMETER)?;
    let translated =
        child.read_space(|space| walk::walk(space.slat(), &paging, input.gva_page << 12, request));
    let translated = translated.ok_or(HvStatus::INVALID_PARTITION_STATE)?;
    let mut output = TranslateVirtualAddressOutput::new_zeroed();
    output.translation_result = TranslateGvaResult {
        result_code: translated.err().map_or(ResultCode::SUCCESS, WalkFault::result_code),
        attributes: TranslateGvaAttributes::new().with_cache_type(CacheType::WRITE_BACK.0 as u8),
    };
    output.gpa_page = translated.map_or(0, |translation| translation.gpa >> 12);
    call.reply(&output)
}
