//! What the parent wants to see, or to answer itself: installed intercepts and registered results (TLFS "Intercepts").

use super::Call;
use crate::{child::CpuidOverride, hypervisor::Hypervisor, machine::Machine};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{InstallInterceptInput, InterceptType, RegisterInterceptResultInput},
    status::{HvResult, HvStatus},
    types::VpIndex,
};

/// The intercepts that can be installed for a partition as a whole. Ports are all the parent's from the start.
const KINDS: [InterceptType; 8] = [
    InterceptType::X64_IO_PORT,
    InterceptType::X64_IO_PORT_RANGE,
    InterceptType::X64_MSR,
    InterceptType::HYPERCALL,
    InterceptType::UNKNOWN_SYNIC_CONNECTION,
    InterceptType::X64_APIC_EOI,
    InterceptType::RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID,
    InterceptType::MMIO,
];

/// `HvCallInstallIntercept`.
pub(super) fn install_intercept<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: InstallInterceptInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    if input.access_type.0 & !7 != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    if input.intercept_type == InterceptType::X64_MSR_INDEX {
        let msr = input.intercept_parameter.msr_index();
        let installed = child.intercept_msr(msr, input.access_type);
        return installed.then_some(()).ok_or(HvStatus::NO_RESOURCES);
    }
    if !KINDS.contains(&input.intercept_type) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let bit = 1 << input.intercept_type.0;
    let mut policy = child.policy.write();
    if input.access_type.0 == 0 {
        policy.intercepts &= !bit;
    } else {
        policy.intercepts |= bit;
    }
    Ok(())
}

/// `HvCallRegisterInterceptResult`: a CPUID leaf that the parent answers, for all virtual processors.
pub(super) fn register_result<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: RegisterInterceptResultInput = call.header()?;
    let child = hv.child(input.partition_id)?;
    if input.intercept_type != InterceptType::X64_CPUID || input.vp_index != VpIndex::ANY {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let p = input.parameters.cpuid();
    let new = CpuidOverride {
        leaf: p.leaf,
        subleaf: (p.subleaf_specific != 0).then_some(p.subleaf),
        values: [p.eax, p.ebx, p.ecx, p.edx],
        masks: [p.eax_mask, p.ebx_mask, p.ecx_mask, p.edx_mask],
    };
    let mut policy = child.policy.write();
    policy.cpuid.retain(|old| (old.leaf, old.subleaf) != (new.leaf, new.subleaf));
    policy.cpuid.try_push(new).map_err(|_| HvStatus::NO_RESOURCES)?;
    child.policy_changes.fetch_add(1, SeqCst);
    Ok(())
}
