//! Processors made up for the judgement.

use super::*;
use std::collections::HashMap;

/// A processor of listed leaves and registers; what is not listed reads as zero, or cannot be read.
#[derive(Clone, Default)]
struct Fake {
    leaves: HashMap<u32, Leaf>,
    msrs: HashMap<u32, u64>,
}

impl Processor for Fake {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Leaf {
        self.leaves.get(&leaf).copied().unwrap_or_default()
    }

    fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied()
    }
}

impl Fake {
    fn named(name: &[u8; 12]) -> Self {
        let part = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        let mut fake = Self::default();
        fake.leaves.insert(0, Leaf { eax: 0xd, ebx: part(0), edx: part(4), ecx: part(8) });
        fake.leaves.insert(1, Leaf { ecx: X2APIC, ..Leaf::default() });
        fake.leaves.insert(0x8000_0000, Leaf { eax: 0x8000_001f, ..Leaf::default() });
        fake.leaves.insert(0x8000_0001, Leaf { edx: NX | LONG_MODE, ..Leaf::default() });
        fake
    }

    fn amd() -> Self {
        let mut fake = Self::named(b"AuthenticAMD");
        fake.leaf(0x8000_0001).ecx |= SVM;
        fake.leaf(0x8000_000a).edx |= NESTED_PAGING | SVM_LOCK;
        fake.msrs.insert(MSR_VM_CR, 1 << 3);
        fake
    }

    fn intel() -> Self {
        let mut fake = Self::named(b"GenuineIntel");
        fake.leaf(1).ecx |= VMX;
        fake.msrs.insert(MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX);
        fake.msrs.insert(MSR_VMX_PROCBASED_CTLS, SECONDARY_CONTROLS);
        fake.msrs.insert(MSR_VMX_PROCBASED_CTLS2, ENABLE_EPT | UNRESTRICTED_GUEST);
        fake.msrs.insert(MSR_VMX_EPT_VPID_CAP, EPT_PARTS | INVEPT_FORMS);
        fake
    }

    fn leaf(&mut self, index: u32) -> &mut Leaf {
        self.leaves.entry(index).or_default()
    }

    fn state(&self, requirement: Requirement) -> State {
        check(self).findings.into_iter().find(|f| f.requirement == requirement).unwrap().state
    }

    fn lacks(&self, requirement: Requirement, advice: &str) {
        assert!(!check(self).is_satisfied());
        match self.state(requirement) {
            State::Missing(text) => assert!(text.contains(advice), "{text}"),
            other => panic!("{requirement:?} is {other:?}"),
        }
        assert_eq!(check(self).missing().count(), 1, "one finding for one cause");
    }
}

#[test]
fn a_whole_amd_processor_is_enough() {
    let report = check(&Fake::amd());
    assert!(report.is_satisfied(), "{report:?}");
    assert_eq!(report.vendor, Vendor::Amd);
    assert_eq!(report.missing().count(), 0);
    let mut hygon = Fake::amd();
    let name = Fake::named(b"HygonGenuine").cpuid(0, 0);
    *hygon.leaf(0) = name;
    assert!(check(&hygon).is_satisfied());
}

#[test]
fn each_lack_is_one_finding_with_advice() {
    let mut cpu = Fake::amd();
    cpu.leaf(0x8000_0001).ecx = 0;
    cpu.lacks(Requirement::Virtualization, "enable \"SVM Mode\"");
    cpu.leaf(1).ecx |= HYPERVISOR;
    cpu.lacks(Requirement::Virtualization, "nested virtualization");

    let mut cpu = Fake::amd();
    cpu.leaf(0x8000_0001).edx = LONG_MODE;
    cpu.lacks(Requirement::NoExecute, "Execute Disable");

    let mut cpu = Fake::amd();
    cpu.leaf(0x8000_0001).edx = NX;
    cpu.lacks(Requirement::LongMode, "64-bit processor");

    let mut cpu = Fake::amd();
    cpu.leaf(0x8000_000a).edx = SVM_LOCK;
    cpu.lacks(Requirement::Slat, "nested paging");

    let mut cpu = Fake::amd();
    cpu.leaf(1).ecx = 0;
    cpu.lacks(Requirement::X2Apic, "firmware setup");
    cpu.leaf(1).ecx = HYPERVISOR;
    cpu.lacks(Requirement::X2Apic, "virtual machine's settings");
}

#[test]
fn svm_switched_off_by_firmware_is_told_from_svm_absent() {
    let mut cpu = Fake::amd();
    cpu.msrs.insert(MSR_VM_CR, VM_CR_SVMDIS | 1 << 3);
    cpu.lacks(Requirement::VirtualizationEnabled, "locked it with a key");
    assert_eq!(cpu.state(Requirement::Virtualization), State::Met);
    cpu.leaf(0x8000_000a).edx = NESTED_PAGING;
    cpu.lacks(Requirement::VirtualizationEnabled, "switched AMD SVM off; enable");

    cpu.msrs.clear();
    assert!(matches!(cpu.state(Requirement::VirtualizationEnabled), State::Unknown(_)));
    assert!(!check(&cpu).is_satisfied(), "unknown is not met");
}

#[test]
fn leaves_that_the_processor_does_not_have_count_as_absent() {
    let mut cpu = Fake::amd();
    cpu.leaf(0x8000_0000).eax = 0x8000_0008;
    cpu.lacks(Requirement::Slat, "nested paging");
    cpu.leaf(0x8000_0000).eax = 0x1234;
    let lacking: Vec<_> = check(&cpu).missing().map(|(name, _)| name).collect();
    assert_eq!(lacking, ["64-bit long mode", "hardware virtualization", "no-execute pages"]);
}

#[test]
fn intel_facts_are_judged() {
    let cpu = Fake::intel();
    assert_eq!(cpu.state(Requirement::SupportedVendor), State::Met);
    assert_eq!(cpu.state(Requirement::VirtualizationEnabled), State::Met);
    assert_eq!(cpu.state(Requirement::Slat), State::Met);

    let mut cpu = Fake::intel();
    cpu.msrs.insert(MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCK);
    assert!(matches!(cpu.state(Requirement::VirtualizationEnabled), State::Missing(_)));
    cpu.msrs.insert(MSR_FEATURE_CONTROL, 0);
    assert_eq!(cpu.state(Requirement::VirtualizationEnabled), State::Met);
    cpu.msrs.insert(MSR_VMX_PROCBASED_CTLS, 0);
    assert!(matches!(cpu.state(Requirement::Slat), State::Missing(_)));
    cpu.leaf(1).ecx = X2APIC;
    assert!(matches!(cpu.state(Requirement::Virtualization), State::Missing(_)));
    assert!(matches!(cpu.state(Requirement::Slat), State::Unknown(_)));
}

#[test]
fn another_vendor_is_named() {
    let cpu = Fake::named(b"CentaurHauls");
    assert_eq!(check(&cpu).vendor, Vendor::Other(*b"CentaurHauls"));
    cpu.lacks(Requirement::SupportedVendor, "neither");
}

/// What is said of the one thing that an Intel processor lacks. Whether Intel processors are supported at all is another
/// requirement.
fn intel_advice(cpu: &Fake, requirement: Requirement) -> &'static str {
    let report = check(cpu);
    let lacking: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.requirement != Requirement::SupportedVendor)
        .filter(|finding| matches!(finding.state, State::Missing(_)))
        .collect();
    assert_eq!(lacking.len(), 1, "one finding for one cause: {lacking:?}");
    assert_eq!(lacking[0].requirement, requirement);
    let State::Missing(advice) = lacking[0].state else { unreachable!() };
    advice
}

#[test]
fn what_an_intel_processor_lacks_is_one_finding_with_advice() {
    let mut cpu = Fake::intel();
    cpu.leaf(1).ecx = X2APIC;
    assert!(
        intel_advice(&cpu, Requirement::Virtualization)
            .contains("enable \"Intel Virtualization Technology\"")
    );
    cpu.leaf(1).ecx |= HYPERVISOR;
    assert!(intel_advice(&cpu, Requirement::Virtualization).contains("nested virtualization"));

    let mut cpu = Fake::intel();
    cpu.msrs.insert(MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCK);
    assert!(intel_advice(&cpu, Requirement::VirtualizationEnabled).contains("locked it; enable"));
    assert_eq!(cpu.state(Requirement::Slat), State::Met, "the capability registers can be read all the same");
    // Enabled inside SMX operation only (bit 1) is not enabled.
    cpu.msrs.insert(MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCK | 1 << 1);
    assert!(intel_advice(&cpu, Requirement::VirtualizationEnabled).contains("locked it; enable"));

    let mut cpu = Fake::intel();
    cpu.leaf(0x8000_0001).edx = LONG_MODE;
    assert!(intel_advice(&cpu, Requirement::NoExecute).contains("Execute Disable"));
}

#[test]
fn ept_is_required_with_its_parts_and_with_unrestricted_guests() {
    let mut cpu = Fake::intel();
    cpu.msrs.insert(MSR_VMX_PROCBASED_CTLS2, ENABLE_EPT);
    assert!(intel_advice(&cpu, Requirement::RealMode).contains("newer processor"));
    cpu.leaf(1).ecx |= HYPERVISOR;
    assert!(intel_advice(&cpu, Requirement::RealMode).contains("+vmx-unrestricted-guest"));
    // Without EPT there are no unrestricted guests either: one cause.
    cpu.msrs.insert(MSR_VMX_PROCBASED_CTLS2, UNRESTRICTED_GUEST);
    assert!(intel_advice(&cpu, Requirement::Slat).contains("+vmx-ept"));
    cpu.leaf(1).ecx = VMX | X2APIC;
    assert!(intel_advice(&cpu, Requirement::Slat).contains("without EPT"));
    cpu.msrs.insert(MSR_VMX_PROCBASED_CTLS, 0);
    assert!(intel_advice(&cpu, Requirement::Slat).contains("without EPT"));

    for without in [1 << 6, 1 << 14, 1 << 16, 1 << 20, INVEPT_FORMS] {
        let mut cpu = Fake::intel();
        cpu.msrs.insert(MSR_VMX_EPT_VPID_CAP, (EPT_PARTS | INVEPT_FORMS) & !without);
        assert!(intel_advice(&cpu, Requirement::Slat).contains("without a part"));
    }
    let mut cpu = Fake::intel();
    cpu.msrs.remove(&MSR_VMX_PROCBASED_CTLS);
    assert!(matches!(cpu.state(Requirement::RealMode), State::Unknown(_)));
    assert_eq!(Fake::amd().state(Requirement::RealMode), State::Met);
}
