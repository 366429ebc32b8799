//! `parterre host check`: requirements and features, each present or not, as the processor and the hypervisor tell.
//!
//! Sources: AMD APM volume 3 appendix E and Intel SDM volume 2 (CPUID); TLFS, "Feature and Interface Discovery". In the
//! parent partition the hypervisor keeps the virtualization extensions to itself; that it runs proves them.

use std::fmt;
use std::process::ExitCode;

use raw_cpuid::{CpuId, cpuid};
use serde::Serialize;

use crate::error::Error;
use crate::table::{print_bytes, print_json, print_table};

/// Range of CPUID leaves of hypervisors.
const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Partition privilege "create partitions" (0x40000003 EBX bit 0), which the parent alone has.
const CREATE_PARTITIONS: u32 = 1 << 0;
/// Hardware features in use (0x40000006 EAX bit 3): second-level address translation.
const USES_SLAT: u32 = 1 << 3;

/// The hypervisor below this system.
#[derive(Clone, Debug, Serialize)]
pub struct Hypervisor {
    vendor: String,
    version: Option<String>,
    parent: bool,
    slat: bool,
}

impl Hypervisor {
    /// The hypervisor that CPUID names, if any.
    pub fn detect() -> Option<Hypervisor> {
        let present = CpuId::new().get_feature_info().is_some_and(|features| features.has_hypervisor());
        present.then(|| {
            let base = cpuid!(HYPERVISOR_BASE);
            let bytes: Vec<u8> =
                [base.ebx, base.ecx, base.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
            let vendor = String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
            let microsoft = vendor == "Microsoft Hv";
            let leaf = |number: u32| (microsoft && base.eax >= number).then(|| cpuid!(number));
            let version = leaf(HYPERVISOR_BASE + 2)
                .map(|v| format!("{}.{} build {}", v.ebx >> 16, v.ebx & 0xFFFF, v.eax));
            let parent = leaf(HYPERVISOR_BASE + 3).is_some_and(|v| v.ebx & CREATE_PARTITIONS != 0);
            let slat = leaf(HYPERVISOR_BASE + 6).is_some_and(|v| v.eax & USES_SLAT != 0);
            Hypervisor { vendor, version, parent, slat }
        })
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vendor)?;
        if let Some(version) = &self.version {
            write!(f, " {version}")?;
        }
        write!(
            f,
            "{}",
            if self.parent { ", this is the parent partition" } else { ", this is a guest of it" }
        )
    }
}

/// The processor's name.
pub fn processor_name() -> String {
    let brand = CpuId::new().get_processor_brand_string();
    brand.map_or_else(|| "unknown".into(), |brand| brand.as_str().trim().to_owned())
}

/// One line of the check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    present: bool,
    required: bool,
    /// What it is for; or, if it is missing and required, what to do.
    note: &'static str,
}

fn finding(name: &'static str, present: bool, required: bool, note: &'static str) -> Finding {
    Finding { name, present, required, note }
}

/// What the processor says, in the form that the findings need.
#[derive(Clone, Copy, Default)]
struct Processor {
    long_mode: bool,
    nx: bool,
    svm: bool,
    npt: bool,
    vmx: bool,
    ept: bool,
    unrestricted_guest: bool,
    vpid: bool,
    ept_ad: bool,
    preemption_timer: bool,
    nrip: bool,
    decode_assists: bool,
    flush_by_asid: bool,
    avic: bool,
    x2apic: bool,
    invariant_tsc: bool,
    tsc_deadline: bool,
    huge_pages: bool,
    smep: bool,
    smap: bool,
}

impl Processor {
    fn detect() -> Processor {
        let cpu = CpuId::new();
        let features = cpu.get_feature_info();
        let extended = cpu.get_extended_processor_and_feature_identifiers();
        let structured = cpu.get_extended_feature_info();
        let svm = cpu.get_svm_info();
        let power = cpu.get_advanced_power_mgmt_info();
        let vmx = VmxFlags::of_this_machine();
        Processor {
            long_mode: extended.as_ref().is_some_and(|e| e.has_64bit_mode()),
            nx: extended.as_ref().is_some_and(|e| e.has_execute_disable()),
            svm: extended.as_ref().is_some_and(|e| e.has_svm()),
            huge_pages: extended.as_ref().is_some_and(|e| e.has_1gib_pages()),
            npt: svm.as_ref().is_some_and(|s| s.has_nested_paging()),
            nrip: svm.as_ref().is_some_and(|s| s.has_nrip()),
            decode_assists: svm.as_ref().is_some_and(|s| s.has_decode_assists()),
            flush_by_asid: svm.as_ref().is_some_and(|s| s.has_flush_by_asid()),
            avic: svm.as_ref().is_some_and(|s| s.has_avic()),
            vmx: features.as_ref().is_some_and(|f| f.has_vmx()),
            ept: vmx.has("ept"),
            unrestricted_guest: vmx.has("unrestricted_guest"),
            vpid: vmx.has("vpid"),
            ept_ad: vmx.has("ept_ad"),
            preemption_timer: vmx.has("preemption_timer"),
            x2apic: features.as_ref().is_some_and(|f| f.has_x2apic()),
            tsc_deadline: features.as_ref().is_some_and(|f| f.has_tsc_deadline()),
            invariant_tsc: power.is_some_and(|p| p.has_invariant_tsc()),
            smep: structured.as_ref().is_some_and(|s| s.has_smep()),
            smap: structured.as_ref().is_some_and(|s| s.has_smap()),
        }
    }
}

/// What VMX can do stands in registers that only the kernel can read; it tells of them in `/proc/cpuinfo`, unless the firmware
/// switched VMX off.
struct VmxFlags(String);

impl VmxFlags {
    fn of_this_machine() -> VmxFlags {
        VmxFlags::in_text(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// The flags of the first processor in the text.
    fn in_text(text: &str) -> VmxFlags {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        let flags = fields.into_iter().find(|(name, _)| name.trim() == "vmx flags");
        VmxFlags(flags.map(|(_, flags)| flags.to_owned()).unwrap_or_default())
    }

    fn has(&self, flag: &str) -> bool {
        self.0.split_whitespace().any(|word| word == flag)
    }
}

/// The findings for a processor, a hypervisor and whether `/dev/mshv` is there.
fn findings(cpu: &Processor, hypervisor: Option<&Hypervisor>, device: bool) -> Vec<Finding> {
    let parent = hypervisor.is_some_and(|h| h.parent);
    let slat = cpu.npt || cpu.ept || hypervisor.is_some_and(|h| h.slat);
    let virtualization =
        "virtualization extensions: switch on SVM (AMD) or VT-x (Intel) in the firmware's set-up";
    vec![
        finding("64-bit", cpu.long_mode, true, "64-bit processor"),
        finding("NX", cpu.nx, true, "no-execute pages: switch on NX or XD in the firmware's set-up"),
        finding("SVM or VMX", cpu.svm || cpu.vmx || parent, true, virtualization),
        finding(
            "SLAT",
            slat,
            true,
            "second-level address translation (nested paging, EPT): needs another processor, or VT-x switched on",
        ),
        finding(
            "real mode",
            !cpu.vmx || cpu.unrestricted_guest || parent,
            true,
            "partitions in real mode (Intel: unrestricted guests): needs another processor, or VT-x switched on",
        ),
        finding("hypervisor", parent, true, "start the machine through parterre.efi"),
        finding(
            "/dev/mshv",
            device,
            true,
            "the parent's kernel needs CONFIG_MSHV_ROOT (Linux 6.18 or newer)",
        ),
        finding("next RIP save", cpu.nrip, false, "AMD: exits need no instruction decoding"),
        finding("decode assists", cpu.decode_assists, false, "AMD: the processor delivers instruction bytes"),
        finding("flush by ASID", cpu.flush_by_asid, false, "AMD: cheaper address space switches"),
        finding("AVIC", cpu.avic, false, "AMD: interrupts without exits"),
        finding("VPID", cpu.vpid, false, "Intel: cheaper address space switches"),
        finding("EPT A/D bits", cpu.ept_ad, false, "Intel: written memory is tracked by the processor"),
        finding("preemption timer", cpu.preemption_timer, false, "Intel: a timer that ends a run"),
        finding("x2APIC", cpu.x2apic, false, "fewer exits of the parent for timers and interrupts"),
        finding("invariant TSC", cpu.invariant_tsc, false, "the time stamp counter runs at a constant rate"),
        finding("TSC deadline", cpu.tsc_deadline, false, "local APIC timer by deadline"),
        finding("1 GiB pages", cpu.huge_pages, false, "large mappings"),
        finding("SMEP", cpu.smep, false, "supervisor mode execution prevention"),
        finding("SMAP", cpu.smap, false, "supervisor mode access prevention"),
    ]
}

/// Checks and prints; exit code 1 if a requirement is missing.
pub fn run(json: bool) -> Result<ExitCode, Error> {
    let hypervisor = Hypervisor::detect();
    let device = std::path::Path::new("/dev/mshv").exists();
    let findings = findings(&Processor::detect(), hypervisor.as_ref(), device);
    let missing = findings.iter().filter(|f| f.required && !f.present).count();
    if json {
        let value = serde_json::json!({
            "processor": processor_name(),
            "hypervisor": hypervisor,
            "ok": missing == 0,
            "findings": findings,
        });
        print_json(&value)?;
    } else {
        print_findings(&findings, hypervisor.as_ref(), missing)?;
    }
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_findings(
    findings: &[Finding],
    hypervisor: Option<&Hypervisor>,
    missing: usize,
) -> Result<(), Error> {
    let below = hypervisor.map_or_else(|| "none".into(), ToString::to_string);
    print_bytes(format!("Processor:  {}\nHypervisor: {below}\n\n", processor_name()).as_bytes())?;
    let rows = findings.iter().map(|finding| {
        let mark = match (finding.present, finding.required) {
            (true, _) => "*",
            (false, true) => "MISSING",
            (false, false) => "-",
        };
        let kind = if finding.required { "required" } else { "optional" };
        [finding.name, mark, kind, finding.note].map(String::from)
    });
    print_table(["feature", "present", "need", "meaning"], rows.collect())?;
    let summary = match missing {
        0 => "\nAll requirements are met.\n".to_string(),
        1 => "\n1 requirement is missing.\n".to_string(),
        count => format!("\n{count} requirements are missing.\n"),
    };
    print_bytes(summary.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(cpu: &Processor, hypervisor: Option<&Hypervisor>, device: bool) -> Vec<&'static str> {
        let all = findings(cpu, hypervisor, device);
        all.into_iter().filter(|f| f.required && !f.present).map(|f| f.name).collect()
    }

    #[test]
    fn a_bare_machine_lacks_the_hypervisor_only() {
        let cpu = Processor { long_mode: true, nx: true, svm: true, npt: true, ..Processor::default() };
        assert_eq!(missing(&cpu, None, false), ["hypervisor", "/dev/mshv"]);
        let off = Processor { svm: false, npt: false, ..cpu };
        assert_eq!(missing(&off, None, false), ["SVM or VMX", "SLAT", "hypervisor", "/dev/mshv"]);
    }

    #[test]
    fn a_bare_intel_machine_needs_ept_and_unrestricted_guests() {
        let cpu = Processor { long_mode: true, nx: true, vmx: true, ..Processor::default() };
        assert_eq!(missing(&cpu, None, false), ["SLAT", "real mode", "hypervisor", "/dev/mshv"]);
        let whole = Processor { ept: true, unrestricted_guest: true, ..cpu };
        assert_eq!(missing(&whole, None, false), ["hypervisor", "/dev/mshv"]);
    }

    #[test]
    fn vmx_flags_are_whole_words_of_their_own_line() {
        let text =
            "processor\t: 0\nflags\t\t: fpu vmx ept\nvmx flags\t: vnmi ept_ad vpid\n\nprocessor\t: 1\n";
        let flags = VmxFlags::in_text(text);
        assert!(flags.has("ept_ad") && flags.has("vpid") && !flags.has("ept") && !flags.has("fpu"));
        assert!(!VmxFlags::in_text("nothing").has("ept"));
    }

    #[test]
    fn in_the_parent_the_hypervisor_answers_for_what_it_hides() {
        let cpu = Processor { long_mode: true, nx: true, ..Processor::default() };
        let parterre = Hypervisor { vendor: "Microsoft Hv".into(), version: None, parent: true, slat: true };
        assert!(missing(&cpu, Some(&parterre), true).is_empty());
        let guest = Hypervisor { parent: false, ..parterre };
        assert_eq!(missing(&cpu, Some(&guest), false), ["SVM or VMX", "hypervisor", "/dev/mshv"]);
    }
}
