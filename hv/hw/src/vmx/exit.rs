//! Reading an exit out of the current structure (Intel SDM volume 3C, 28.2, and volume 3D, appendix C).

use parterre_core::machine::{Access, Exit, IoExit, gpr};

use super::field::{Field, Source};

/// Basic exit reasons.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod reason {
    pub const EXCEPTION_OR_NMI: u32 = 0;
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const SIPI: u32 = 4;
    pub const IO_SMI: u32 = 5;
    pub const OTHER_SMI: u32 = 6;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const HLT: u32 = 12;
    pub const INVD: u32 = 13;
    pub const RDPMC: u32 = 15;
    pub const RSM: u32 = 17;
    pub const VMCALL: u32 = 18;
    pub const VMCLEAR: u32 = 19;
    pub const VMXON: u32 = 27;
    pub const CONTROL_REGISTER: u32 = 28;
    pub const IO: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const PAUSE: u32 = 40;
    pub const TPR_BELOW_THRESHOLD: u32 = 43;
    pub const EPT_VIOLATION: u32 = 48;
    pub const INVEPT: u32 = 50;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const INVVPID: u32 = 53;
    pub const WBINVD: u32 = 54;
    pub const XSETBV: u32 = 55;
    pub const VMFUNC: u32 = 59;
    pub const ENCLS: u32 = 60;
    pub const UMWAIT: u32 = 67;
    pub const TPAUSE: u32 = 68;
    /// Not a reason: the entry failed.
    pub const ENTRY_FAILED: u32 = 1 << 31;
}

/// Whether an exit came of the execution of one of the instructions that exit often, so of nothing that cuts short the delivery
/// of an event (SDM volume 3C, 28.2.4).
#[inline]
pub fn is_of_instruction(reason: u32) -> bool {
    use reason::*;
    const INSTRUCTIONS: u64 =
        1 << CPUID | 1 << HLT | 1 << VMCALL | 1 << IO | 1 << RDMSR | 1 << WRMSR | 1 << XSETBV;
    reason < u64::BITS && INSTRUCTIONS >> reason & 1 != 0
}

/// The exit for `reason`, as core knows it. Those that are the processor's own business are not asked for here.
pub fn decode(source: &impl Source, reason: u32, gprs: &[u64; 16]) -> Exit {
    let edx_eax = gprs[gpr::RDX] << 32 | u64::from(gprs[gpr::RAX] as u32);
    let length = || length(source);
    match reason {
        reason::EXTERNAL_INTERRUPT | reason::IO_SMI | reason::OTHER_SMI | reason::INIT | reason::SIPI => {
            Exit::Interrupt
        }
        reason::INTERRUPT_WINDOW | reason::TPR_BELOW_THRESHOLD => Exit::InterruptWindow,
        reason::NMI_WINDOW => Exit::NmiWindow,
        reason::CPUID => Exit::Cpuid { length: length() },
        reason::HLT => Exit::Hlt { length: length() },
        reason::RDMSR => Exit::ReadMsr { msr: gprs[gpr::RCX] as u32, length: length() },
        reason::WRMSR => Exit::WriteMsr { msr: gprs[gpr::RCX] as u32, value: edx_eax, length: length() },
        reason::VMCALL => Exit::Hypercall { length: length() },
        reason::IO => Exit::Io(io(source)),
        reason::EPT_VIOLATION => slat_fault(source),
        reason::XSETBV => Exit::Xsetbv { value: edx_eax, length: length() },
        reason::INVD | reason::WBINVD => Exit::CacheInvalidate { length: length() },
        reason::MONITOR => Exit::Monitor { length: length() },
        reason::MWAIT => Exit::Mwait { length: length() },
        reason::PAUSE => Exit::Pause,
        reason::TRIPLE_FAULT | reason::TASK_SWITCH => Exit::Shutdown,
        reason::RDPMC => Exit::ReadPerformanceCounter,
        reason::GETSEC
        | reason::RSM
        | reason::VMCLEAR..=reason::VMXON
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::ENCLS
        | reason::UMWAIT
        | reason::TPAUSE => Exit::InvalidInstruction,
        reason::EXCEPTION_OR_NMI => exception(source),
        other => Exit::Failed(other.into()),
    }
}

/// The length of the exiting instruction.
pub fn length(source: &impl Source) -> Option<u8> {
    let length = source.read(Field::ExitInstructionLength);
    (1..=15).contains(&length).then_some(length as u8)
}

/// SDM table 28-5.
fn io(source: &impl Source) -> IoExit {
    let info = source.read(Field::ExitQualification);
    IoExit {
        port: (info >> 16) as u16,
        size: (info & 7) as u8 + 1,
        input: info & 1 << 3 != 0,
        string: info & 1 << 4 != 0,
        repeat: info & 1 << 5 != 0,
        length: length(source),
    }
}

/// SDM table 28-7.
fn slat_fault(source: &impl Source) -> Exit {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 2;
    const LINEAR_VALID: u64 = 1 << 7;
    const OF_LINEAR: u64 = 1 << 8;
    let info = source.read(Field::ExitQualification);
    let access = if info & FETCH != 0 {
        Access::EXECUTE
    } else if info & WRITE != 0 {
        Access::WRITE
    } else {
        Access::READ
    };
    let page_table_walk = info & (LINEAR_VALID | OF_LINEAR) == LINEAR_VALID;
    let gva = (info & LINEAR_VALID != 0 && !page_table_walk).then(|| source.read(Field::GuestLinearAddress));
    Exit::SlatFault { gpa: source.read(Field::GuestPhysicalAddress), gva, access, page_table_walk }
}

fn exception(source: &impl Source) -> Exit {
    const HAS_ERROR: u64 = 1 << 11;
    let info = source.read(Field::ExitInterruptionInfo);
    let error = (info & HAS_ERROR != 0).then(|| source.read(Field::ExitInterruptionError) as u32);
    Exit::Exception { vector: info as u8, error, parameter: source.read(Field::ExitQualification) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    impl Source for HashMap<Field, u64> {
        fn read(&self, field: Field) -> u64 {
            self.get(&field).copied().unwrap_or(0)
        }
    }

    fn exit(reason: u32, fields: &[(Field, u64)]) -> Exit {
        let mut source = HashMap::from([(Field::ExitInstructionLength, 3)]);
        source.extend(fields.iter().copied());
        let mut gprs = [0; 16];
        gprs[gpr::RAX] = 0xffff_ffff_1111_2222;
        gprs[gpr::RCX] = 0xffff_ffff_c000_0080;
        gprs[gpr::RDX] = 0xffff_ffff_3333_4444;
        decode(&source, reason, &gprs)
    }

    #[test]
    fn instruction_exits_carry_their_length() {
        let length = Some(3);
        assert_eq!(exit(10, &[]), Exit::Cpuid { length });
        assert_eq!(exit(12, &[]), Exit::Hlt { length });
        assert_eq!(exit(18, &[]), Exit::Hypercall { length });
        assert_eq!(exit(31, &[]), Exit::ReadMsr { msr: 0xc000_0080, length });
        let value = 0x3333_4444_1111_2222;
        assert_eq!(exit(32, &[]), Exit::WriteMsr { msr: 0xc000_0080, value, length });
        assert_eq!(exit(55, &[]), Exit::Xsetbv { value, length });
        assert_eq!(exit(10, &[(Field::ExitInstructionLength, 0)]), Exit::Cpuid { length: None });
    }

    #[test]
    fn what_may_cut_short_an_event_is_no_instructions() {
        assert!([10, 12, 18, 30, 31, 32, 55].into_iter().all(is_of_instruction));
        let others = [0, 1, 2, 7, 8, 9, 28, 43, 48, 49, 52, 64 + 10, reason::ENTRY_FAILED | 33];
        assert!(!others.into_iter().any(is_of_instruction));
    }

    #[test]
    fn port_accesses_are_taken_apart() {
        let io = |info| exit(30, &[(Field::ExitQualification, info)]);
        let expected =
            IoExit { port: 0x3f8, size: 1, input: false, string: false, repeat: false, length: Some(3) };
        assert_eq!(io(0x03f8_0000), Exit::Io(expected));
        let expected =
            IoExit { port: 0xcfc, size: 4, input: true, string: true, repeat: true, length: Some(3) };
        assert_eq!(io(0x0cfc_003b), Exit::Io(expected));
    }

    #[test]
    fn slat_faults_say_what_was_tried() {
        let fault = |info| {
            exit(
                48,
                &[
                    (Field::ExitQualification, info),
                    (Field::GuestPhysicalAddress, 0xfee0_0020),
                    (Field::GuestLinearAddress, 0x5020),
                ],
            )
        };
        let expected =
            |access, gva, page_table_walk| Exit::SlatFault { gpa: 0xfee0_0020, gva, access, page_table_walk };
        assert_eq!(fault(0x181), expected(Access::READ, Some(0x5020), false));
        assert_eq!(fault(0x182), expected(Access::WRITE, Some(0x5020), false));
        assert_eq!(fault(0x184), expected(Access::EXECUTE, Some(0x5020), false));
        assert_eq!(fault(0x083), expected(Access::WRITE, None, true));
        assert_eq!(fault(0x001), expected(Access::READ, None, false));
    }

    #[test]
    fn exceptions_bring_error_and_address() {
        let info = |info| (Field::ExitInterruptionInfo, info);
        let page_fault =
            [info(0x8000_0b0e), (Field::ExitInterruptionError, 6), (Field::ExitQualification, 0x1234)];
        assert_eq!(exit(0, &page_fault), Exit::Exception { vector: 14, error: Some(6), parameter: 0x1234 });
        let undefined = Exit::Exception { vector: 6, error: None, parameter: 0 };
        assert_eq!(exit(0, &[info(0x8000_0306)]), undefined);
    }

    #[test]
    fn what_partitions_do_not_have_is_an_invalid_instruction() {
        for reason in [11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 59] {
            assert_eq!(exit(reason, &[]), Exit::InvalidInstruction);
        }
        assert_eq!(exit(15, &[]), Exit::ReadPerformanceCounter);
        assert_eq!(exit(9, &[]), Exit::Shutdown, "a task switch is not carried out");
        for reason in [33, 49, 0x8000_0021] {
            assert_eq!(exit(reason, &[]), Exit::Failed(reason.into()));
        }
    }
}
