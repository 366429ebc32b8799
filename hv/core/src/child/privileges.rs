//! What a child may do (`HV_PARTITION_PRIVILEGE_MASK`): all that there is for children, unless the parent has named the
//! synthetic features that a child shall have. CPUID says what is allowed, and what is not allowed is refused.

use parterre_abi::{
    cpuid::{Enlightenments, Features, PrivilegeMask as P},
    msr,
    property::SyntheticProcessorFeatures as F,
};

/// Synthetic features, and the privileges that come with each.
const FEATURES: [(F, P); 14] = [
    (F::ACCESS_VP_RUN_TIME_REG, P::ACCESS_VP_RUNTIME_REG),
    (F::ACCESS_PARTITION_REFERENCE_COUNTER, P::ACCESS_PARTITION_REFERENCE_COUNTER),
    (F::ACCESS_SYNIC_REGS, P::ACCESS_SYNIC_REGS.union(P::POST_MESSAGES)),
    (F::ACCESS_SYNTHETIC_TIMER_REGS, P::ACCESS_SYNTHETIC_TIMER_REGS),
    (F::ACCESS_INTR_CTRL_REGS, P::ACCESS_INTR_CTRL_REGS),
    (F::ACCESS_HYPERCALL_REGS, P::ACCESS_HYPERCALL_REGS),
    (F::ACCESS_VP_INDEX, P::ACCESS_VP_INDEX),
    (F::ACCESS_PARTITION_REFERENCE_TSC, P::ACCESS_PARTITION_REFERENCE_TSC),
    (F::ACCESS_GUEST_IDLE_REG, P::ACCESS_GUEST_IDLE_REG),
    (F::ACCESS_FREQUENCY_REGS, P::ACCESS_FREQUENCY_REGS),
    (F::SIGNAL_EVENTS, P::SIGNAL_EVENTS),
    (F::FAST_HYPERCALL_OUTPUT, P::FAST_HYPERCALL_OUTPUT),
    (F::START_VIRTUAL_PROCESSOR, P::START_VIRTUAL_PROCESSOR),
    (F::ENABLE_EXTENDED_GVA_RANGES_FOR_FLUSH_VIRTUAL_ADDRESS_LIST, P::EXTENDED_GVA_RANGES_FOR_FLUSH),
];

/// The synthetic features that a child can be given.
pub(crate) const ASSIGNABLE: F = F::HYPERVISOR_PRESENT
    .union(F::HV1)
    .union(F::ACCESS_VP_RUN_TIME_REG)
    .union(F::ACCESS_PARTITION_REFERENCE_COUNTER)
    .union(F::ACCESS_SYNIC_REGS)
    .union(F::ACCESS_SYNTHETIC_TIMER_REGS)
    .union(F::ACCESS_INTR_CTRL_REGS)
    .union(F::ACCESS_HYPERCALL_REGS)
    .union(F::ACCESS_VP_INDEX)
    .union(F::ACCESS_PARTITION_REFERENCE_TSC)
    .union(F::ACCESS_GUEST_IDLE_REG)
    .union(F::ACCESS_FREQUENCY_REGS)
    .union(F::ENABLE_EXTENDED_GVA_RANGES_FOR_FLUSH_VIRTUAL_ADDRESS_LIST)
    .union(F::FAST_HYPERCALL_OUTPUT)
    .union(F::START_VIRTUAL_PROCESSOR)
    .union(F::DIRECT_SYNTHETIC_TIMERS)
    .union(F::EXTENDED_PROCESSOR_MASKS)
    .union(F::TB_FLUSH_HYPERCALLS)
    .union(F::SYNTHETIC_CLUSTER_IPI)
    .union(F::NOTIFY_LONG_SPIN_WAIT)
    .union(F::SIGNAL_EVENTS);

/// What comes with these features.
pub(crate) fn privileges(features: F) -> P {
    let given = FEATURES.iter().filter(|(feature, _)| features.contains(*feature));
    given.fold(P::empty(), |all, (_, privilege)| all.union(*privilege))
}

/// EDX of the features leaf.
pub(super) fn features(features: F) -> Features {
    let mut edx = Features::GUEST_CRASH_REGS;
    edx.set(Features::XMM_HYPERCALL_INPUT, features.contains(F::ACCESS_HYPERCALL_REGS));
    edx.set(Features::XMM_HYPERCALL_OUTPUT, features.contains(F::FAST_HYPERCALL_OUTPUT));
    edx.set(Features::GUEST_IDLE, features.contains(F::ACCESS_GUEST_IDLE_REG));
    edx.set(Features::FREQUENCY_REGS, features.contains(F::ACCESS_FREQUENCY_REGS));
    let extended = F::ENABLE_EXTENDED_GVA_RANGES_FOR_FLUSH_VIRTUAL_ADDRESS_LIST;
    edx.set(Features::EXTENDED_GVA_RANGES_FOR_FLUSH, features.contains(extended));
    edx.set(Features::DIRECT_SYNTHETIC_TIMERS, features.contains(F::DIRECT_SYNTHETIC_TIMERS));
    edx.set(Features::SINT_POLLING_MODE, features.contains(F::ACCESS_SYNIC_REGS));
    edx
}

/// What the guest had better do.
pub(super) fn enlightenments(features: F) -> Enlightenments {
    let hints = [
        (F::ACCESS_INTR_CTRL_REGS, Enlightenments::USE_APIC_MSRS),
        (F::TB_FLUSH_HYPERCALLS, Enlightenments::USE_HYPERCALL_FOR_REMOTE_FLUSH),
        (F::SYNTHETIC_CLUSTER_IPI, Enlightenments::USE_SYNTHETIC_CLUSTER_IPI),
        (F::EXTENDED_PROCESSOR_MASKS, Enlightenments::USE_EX_PROCESSOR_MASKS),
    ];
    let given = hints.into_iter().filter(|(feature, _)| features.contains(*feature));
    given.fold(Enlightenments::USE_RELAXED_TIMING, |all, (_, hint)| all.union(hint))
}

/// How often a guest tries to get a lock before it tells the hypervisor that it waits.
pub(super) fn spin_count(features: F) -> u32 {
    if features.contains(F::NOTIFY_LONG_SPIN_WAIT) { 0xFFF } else { u32::MAX }
}

/// The privilege for a synthetic register; none where everyone may.
pub(super) fn of_register(number: u32) -> P {
    match number {
        msr::GUEST_OS_ID | msr::HYPERCALL => P::ACCESS_HYPERCALL_REGS,
        msr::VP_INDEX => P::ACCESS_VP_INDEX,
        msr::VP_RUNTIME => P::ACCESS_VP_RUNTIME_REG,
        msr::TIME_REF_COUNT => P::ACCESS_PARTITION_REFERENCE_COUNTER,
        msr::REFERENCE_TSC => P::ACCESS_PARTITION_REFERENCE_TSC,
        msr::TSC_FREQUENCY | msr::APIC_FREQUENCY => P::ACCESS_FREQUENCY_REGS,
        msr::EOI | msr::ICR | msr::TPR | msr::VP_ASSIST_PAGE => P::ACCESS_INTR_CTRL_REGS,
        msr::SCONTROL..=msr::SIRBP | msr::SINT0..=msr::SINT15 => P::ACCESS_SYNIC_REGS,
        msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => P::ACCESS_SYNTHETIC_TIMER_REGS,
        msr::GUEST_IDLE => P::ACCESS_GUEST_IDLE_REG,
        _ => P::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_brings_its_own_privilege_and_no_other() {
        let all = privileges(F::all());
        for (feature, privilege) in FEATURES {
            assert_eq!(privileges(feature), privilege);
            assert!(!privileges(F::all() - feature).intersects(privilege));
            assert!(all.contains(privilege));
        }
        assert_eq!(privileges(F::empty()), P::empty());
        assert_eq!(enlightenments(F::empty()), Enlightenments::USE_RELAXED_TIMING);
    }
}
