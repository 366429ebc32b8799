//! What a processor must have for Parterre, and what this one has.
//!
//! The judgement only; reading CPUID and MSRs is behind [`Processor`], so the boot program, the command
//! `parterre host check` and tests judge alike. A finding is a fact with advice; nobody needs to look up a manual.
//!
//! Sources: AMD APM volume 2 (24593), 15.4 "Enabling SVM" and 15.30.1 "VM_CR MSR"; volume 3 (24594), appendix E.
//! Intel SDM volume 3, 24.6 "Discovering support for VMX", 24.7 "Enabling and entering VMX operation", appendix A.

use alloc::vec::Vec;

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the registers' names say all")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A way to ask a processor about itself.
pub trait Processor {
    /// Executes CPUID with `leaf` in EAX and `subleaf` in ECX.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf;

    /// Reads a model-specific register that CPUID says exists; `None` when there is no way to read it here.
    fn msr(&self, index: u32) -> Option<u64>;
}

/// Who made the processor, as far as it decides which virtualization extension it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, and Hygon, whose processors are AMD's design: SVM.
    Amd,
    /// Intel: VMX.
    Intel,
    /// Anyone else, with the name that CPUID gives.
    Other([u8; 12]),
}

/// Something that Parterre cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// A processor family that Parterre has a machine layer for.
    SupportedVendor,
    /// 64-bit long mode.
    LongMode,
    /// The virtualization extension: AMD SVM or Intel VMX.
    Virtualization,
    /// The extension is not switched off by firmware.
    VirtualizationEnabled,
    /// Second level address translation: AMD nested paging or Intel EPT, with what is used of it.
    Slat,
    /// Partitions may be in real mode: always so with AMD SVM, with Intel VMX where guests can be "unrestricted".
    RealMode,
    /// Pages that cannot be executed.
    NoExecute,
    /// The local APIC's x2APIC mode.
    X2Apic,
}

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Met.
    Met,
    /// Not met; holds what is wrong and what to do, as a sentence.
    Missing(&'static str),
    /// It cannot be told, because what it depends on is missing or cannot be read; holds which.
    Unknown(&'static str),
}

/// One requirement and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which requirement.
    pub requirement: Requirement,
    /// What it is called, for people.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
}

/// The judgement on a processor.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who made it.
    pub vendor: Vendor,
    /// All requirements, in a fixed order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether every requirement is met.
    pub fn is_satisfied(&self) -> bool {
        self.findings.iter().all(|finding| finding.state == State::Met)
    }

    /// The requirements that are not met, with what to do.
    pub fn missing(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.findings.iter().filter_map(|finding| match finding.state {
            State::Missing(advice) => Some((finding.name, advice)),
            _ => None,
        })
    }
}

/// CPUID leaf 1, ECX: x2APIC mode.
const X2APIC: u32 = 1 << 21;
/// CPUID leaf 1, ECX: VMX.
const VMX: u32 = 1 << 5;
/// CPUID leaf 1, ECX: some hypervisor runs below.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 8000_0001, ECX: SVM.
const SVM: u32 = 1 << 2;
/// CPUID leaf 8000_0001, EDX: no-execute pages.
const NX: u32 = 1 << 20;
/// CPUID leaf 8000_0001, EDX: long mode.
const LONG_MODE: u32 = 1 << 29;
/// CPUID leaf 8000_000A, EDX: nested paging.
const NESTED_PAGING: u32 = 1 << 0;
/// CPUID leaf 8000_000A, EDX: SVM lock, so a disabled SVM may be unlocked with a key.
const SVM_LOCK: u32 = 1 << 2;

/// AMD: virtual machine control.
const MSR_VM_CR: u32 = 0xc001_0114;
/// VM_CR: EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// Intel: what firmware lets software do.
const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// FEATURE_CONTROL: the register cannot be written until reset.
const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
/// FEATURE_CONTROL: VMXON works outside SMX operation.
const FEATURE_CONTROL_VMX: u64 = 1 << 2;
/// Intel: allowed settings of the primary processor-based controls.
const MSR_VMX_PROCBASED_CTLS: u32 = 0x482;
/// Intel: allowed settings of the secondary processor-based controls.
const MSR_VMX_PROCBASED_CTLS2: u32 = 0x48b;
/// In the high half of PROCBASED_CTLS: secondary controls may be activated.
const SECONDARY_CONTROLS: u64 = 1 << 63;
/// In the high half of PROCBASED_CTLS2: EPT may be enabled.
const ENABLE_EPT: u64 = 1 << 33;
/// In the high half of PROCBASED_CTLS2: a guest may run without protection and paging.
const UNRESTRICTED_GUEST: u64 = 1 << 39;
/// Intel: what EPT and VPID can do.
const MSR_VMX_EPT_VPID_CAP: u32 = 0x48c;
/// EPT_VPID_CAP: tables of four levels, write-back memory for them, pages of 2 MiB, INVEPT.
const EPT_PARTS: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20;
/// EPT_VPID_CAP: INVEPT for one context, or for all.
const INVEPT_FORMS: u64 = 1 << 25 | 1 << 26;

/// Judges the processor.
pub fn check(processor: &impl Processor) -> Report {
    let facts = Facts::read(processor);
    let extension = match facts.vendor {
        Vendor::Amd => facts.svm(processor),
        Vendor::Intel => facts.vmx(processor),
        Vendor::Other(_) => Extension::unknown("the processor is neither AMD's nor Intel's"),
    };
    let states = [
        (Requirement::SupportedVendor, "supported processor", facts.supported()),
        (Requirement::LongMode, "64-bit long mode", facts.long_mode()),
        (Requirement::Virtualization, "hardware virtualization", extension.present),
        (Requirement::VirtualizationEnabled, "virtualization enabled by firmware", extension.enabled),
        (Requirement::Slat, "second level address translation", extension.slat),
        (Requirement::RealMode, "partitions in real mode", extension.real_mode),
        (Requirement::NoExecute, "no-execute pages", facts.no_execute()),
        (Requirement::X2Apic, "x2APIC", facts.x2apic()),
    ];
    let findings = states.map(|(requirement, name, state)| Finding { requirement, name, state });
    Report { vendor: facts.vendor, findings: findings.into() }
}

/// How the requirements on the virtualization extension stand.
struct Extension {
    present: State,
    enabled: State,
    slat: State,
    real_mode: State,
}

impl Extension {
    fn unknown(why: &'static str) -> Self {
        let unknown = State::Unknown(why);
        Self { present: unknown, enabled: unknown, slat: unknown, real_mode: unknown }
    }

    /// It is not there; the rest cannot be told.
    fn missing(advice: &'static str, why: &'static str) -> Self {
        Self { present: State::Missing(advice), ..Self::unknown(why) }
    }
}

struct Facts {
    vendor: Vendor,
    /// CPUID leaf 1.
    basic: Leaf,
    /// CPUID leaf 8000_0001; zero when the processor has no extended leaves.
    extended: Leaf,
    /// The highest extended leaf.
    max_extended: u32,
}

impl Facts {
    fn read(processor: &impl Processor) -> Self {
        let first = processor.cpuid(0, 0);
        let highest = processor.cpuid(0x8000_0000, 0).eax;
        // A processor without extended leaves answers with something else entirely.
        let max_extended = if highest & 0xffff_0000 == 0x8000_0000 { highest } else { 0 };
        let extended =
            if max_extended >= 0x8000_0001 { processor.cpuid(0x8000_0001, 0) } else { Leaf::default() };
        let basic = if first.eax >= 1 { processor.cpuid(1, 0) } else { Leaf::default() };
        Self { vendor: vendor(first), basic, extended, max_extended }
    }

    fn is_virtual(&self) -> bool {
        self.basic.ecx & HYPERVISOR != 0
    }

    fn supported(&self) -> State {
        match self.vendor {
            Vendor::Amd | Vendor::Intel => State::Met,
            Vendor::Other(_) => State::Missing(
                "this processor is neither AMD's nor Intel's, and Parterre runs on no other; use a machine with a \
                 processor of one of them",
            ),
        }
    }

    fn long_mode(&self) -> State {
        met_or(
            self.extended.edx & LONG_MODE != 0,
            "the processor has no 64-bit mode; use a machine with a 64-bit processor",
        )
    }

    fn no_execute(&self) -> State {
        met_or(
            self.extended.edx & NX != 0,
            "the processor shows no NX (no-execute) feature; enable \"NX\", \"XD\" or \"Execute Disable\" in the \
             firmware setup",
        )
    }

    fn x2apic(&self) -> State {
        met_or(
            self.basic.ecx & X2APIC != 0,
            if self.is_virtual() {
                "the virtual processor has no x2APIC; enable x2APIC in the virtual machine's settings"
            } else {
                "the processor shows no x2APIC; enable \"x2APIC\" in the firmware setup, or use a newer machine"
            },
        )
    }

    /// SVM there, SVM enabled, nested paging (APM volume 2, 15.4).
    fn svm(&self, processor: &impl Processor) -> Extension {
        if self.extended.ecx & SVM == 0 {
            let advice = if self.is_virtual() {
                "the virtual processor has no AMD SVM; enable nested virtualization (+svm) in the hypervisor below"
            } else {
                "the processor shows no AMD SVM; enable \"SVM Mode\" or \"AMD-V\" in the firmware setup, or use a \
                 machine whose processor has it"
            };
            return Extension::missing(advice, "the processor shows no SVM");
        }
        let features =
            if self.max_extended >= 0x8000_000a { processor.cpuid(0x8000_000a, 0) } else { Leaf::default() };
        let enabled = match processor.msr(MSR_VM_CR) {
            None => State::Unknown("the register VM_CR cannot be read here"),
            Some(vm_cr) if vm_cr & VM_CR_SVMDIS == 0 => State::Met,
            Some(_) if features.edx & SVM_LOCK == 0 => State::Missing(
                "the firmware switched AMD SVM off; enable \"SVM Mode\" or \"AMD-V\" in the firmware setup",
            ),
            Some(_) => State::Missing(
                "the firmware switched AMD SVM off and locked it with a key; enable \"SVM Mode\" or \"AMD-V\" in \
                 the firmware setup",
            ),
        };
        let slat = met_or(
            features.edx & NESTED_PAGING != 0,
            if self.is_virtual() {
                "the virtual processor has SVM without nested paging; enable it (+npt) in the hypervisor below"
            } else {
                "the processor has SVM without nested paging (RVI); use a machine with a newer processor"
            },
        );
        Extension { present: State::Met, enabled, slat, real_mode: State::Met }
    }

    /// VMX there, VMX enabled, EPT, unrestricted guests (SDM volume 3, 24.6, 24.7, A.3 and A.10).
    fn vmx(&self, processor: &impl Processor) -> Extension {
        if self.basic.ecx & VMX == 0 {
            let advice = if self.is_virtual() {
                "the virtual processor has no Intel VMX; enable nested virtualization (+vmx) in the hypervisor below"
            } else {
                "the processor shows no Intel VMX; enable \"Intel Virtualization Technology\" or \"VT-x\" in the \
                 firmware setup, or use a machine whose processor has it"
            };
            return Extension::missing(advice, "the processor shows no VMX");
        }
        let enabled = match processor.msr(MSR_FEATURE_CONTROL) {
            None => State::Unknown("the register IA32_FEATURE_CONTROL cannot be read here"),
            // Not locked: software may enable VMX by itself.
            Some(control) if control & FEATURE_CONTROL_LOCK == 0 => State::Met,
            Some(control) => met_or(
                control & FEATURE_CONTROL_VMX != 0,
                "the firmware switched Intel VMX off and locked it; enable \"Intel Virtualization Technology\" or \
                 \"VT-x\" in the firmware setup",
            ),
        };
        let (slat, real_mode) = self.ept(processor);
        Extension { present: State::Met, enabled, slat, real_mode }
    }

    /// EPT and unrestricted guests, of a processor with VMX.
    fn ept(&self, processor: &impl Processor) -> (State, State) {
        let Some(primary) = processor.msr(MSR_VMX_PROCBASED_CTLS) else {
            let unknown = State::Unknown("the VMX capability registers cannot be read here");
            return (unknown, unknown);
        };
        let secondary = if primary & SECONDARY_CONTROLS != 0 {
            processor.msr(MSR_VMX_PROCBASED_CTLS2).unwrap_or(0)
        } else {
            0
        };
        if secondary & ENABLE_EPT == 0 {
            let advice = if self.is_virtual() {
                "the virtual processor has VMX without EPT; enable it (+vmx-ept) in the hypervisor below"
            } else {
                "the processor has VMX without EPT; use a machine with a newer processor"
            };
            return (State::Missing(advice), State::Unknown("the processor has no EPT"));
        }
        let parts = processor.msr(MSR_VMX_EPT_VPID_CAP).unwrap_or(0);
        let slat = met_or(
            parts & EPT_PARTS == EPT_PARTS && parts & INVEPT_FORMS != 0,
            "the processor has EPT without a part that Parterre needs (four levels, write-back tables, pages of 2 MiB, \
             INVEPT); use a machine with a newer processor",
        );
        let real_mode = met_or(
            secondary & UNRESTRICTED_GUEST != 0,
            if self.is_virtual() {
                "the virtual processor has VMX without unrestricted guests; enable them (+vmx-unrestricted-guest) in the \
                 hypervisor below"
            } else {
                "the processor has VMX without unrestricted guests, so a partition could not be in real mode; use a \
                 machine with a newer processor"
            },
        );
        (slat, real_mode)
    }
}

fn met_or(met: bool, advice: &'static str) -> State {
    if met { State::Met } else { State::Missing(advice) }
}

fn vendor(leaf: Leaf) -> Vendor {
    let mut name = [0; 12];
    name[0..4].copy_from_slice(&leaf.ebx.to_le_bytes());
    name[4..8].copy_from_slice(&leaf.edx.to_le_bytes());
    name[8..12].copy_from_slice(&leaf.ecx.to_le_bytes());
    match &name {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        b"GenuineIntel" => Vendor::Intel,
        _ => Vendor::Other(name),
    }
}

#[cfg(test)]
mod tests;
