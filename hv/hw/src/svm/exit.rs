//! Reading an exit out of the control block (AMD APM volume 2, 15.7 to 15.14, appendix C).

use parterre_core::machine::{Access, Exit, IoExit, gpr};

use super::vmcb::{Vmcb, exit_code as code};

/// The exit that `vmcb` reports. `next_rip` says whether the processor stores the next instruction's address for
/// instruction intercepts (CPUID 8000_000A EDX bit 3).
pub fn decode(vmcb: &Vmcb, gprs: &[u64; 16], next_rip: bool) -> Exit {
    let control = &vmcb.control;
    let length = if next_rip { length_to(vmcb, control.next_rip) } else { None };
    let edx_eax = gprs[gpr::RDX] << 32 | u64::from(gprs[gpr::RAX] as u32);
    match control.exit_code {
        code::INTR | code::SMI => Exit::Interrupt,
        code::VINTR => Exit::InterruptWindow,
        code::CPUID => Exit::Cpuid { length },
        code::HLT => Exit::Hlt { length },
        code::MSR => {
            let msr = gprs[gpr::RCX] as u32;
            if control.exit_info_1 & 1 == 0 {
                Exit::ReadMsr { msr, length }
            } else {
                Exit::WriteMsr { msr, value: edx_eax, length }
            }
        }
        code::VMMCALL => Exit::Hypercall { length },
        code::IOIO => Exit::Io(io(vmcb)),
        code::NPF => slat_fault(control.exit_info_1, control.exit_info_2),
        code::XSETBV => Exit::Xsetbv { value: edx_eax, length },
        code::INVD | code::WBINVD => Exit::CacheInvalidate { length },
        code::CR4_WRITE => Exit::WriteCr4 { register: moved_from(control.exit_info_1), length },
        code::MONITOR => Exit::Monitor { length },
        code::MWAIT | code::MWAIT_ARMED => Exit::Mwait { length },
        code::PAUSE => Exit::Pause,
        code::SHUTDOWN => Exit::Shutdown,
        code::RDPMC => Exit::ReadPerformanceCounter,
        code::VMRUN
        | code::VMLOAD..=code::SKINIT
        | code::INVLPGA
        | code::RSM
        | code::RDPRU
        | code::INVLPGB..=code::INVLPGB_ILLEGAL
        | code::MCOMMIT..=code::TLBSYNC => Exit::InvalidInstruction,
        code::EXCEPTION_FIRST..=code::EXCEPTION_LAST => exception(vmcb),
        other => Exit::Failed(other),
    }
}

/// How long the exiting instruction is if the next one is at `next`. Outside of 64-bit code RIP may wrap at 4 GiB.
fn length_to(vmcb: &Vmcb, next: u64) -> Option<u8> {
    let length = (next as u32).wrapping_sub(vmcb.save.rip as u32);
    (1..=15).contains(&length).then_some(length as u8)
}

/// The register that MOV to a control register takes the value from, where the processor has decode assists (15.8.1).
fn moved_from(info: u64) -> Option<u8> {
    const IS_MOV: u64 = 1 << 63;
    (info & IS_MOV != 0).then_some(info as u8 & 0xf)
}

fn io(vmcb: &Vmcb) -> IoExit {
    let info = vmcb.control.exit_info_1;
    IoExit {
        port: (info >> 16) as u16,
        // One of bits 4 to 6 is set, for 1, 2 or 4 bytes.
        size: (info >> 4 & 7) as u8,
        input: info & 1 != 0,
        string: info & 1 << 2 != 0,
        repeat: info & 1 << 3 != 0,
        length: length_to(vmcb, vmcb.control.exit_info_2),
    }
}

fn slat_fault(error: u64, gpa: u64) -> Exit {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    const PAGE_TABLE_WALK: u64 = 1 << 33;
    let access = if error & FETCH != 0 {
        Access::EXECUTE
    } else if error & WRITE != 0 {
        Access::WRITE
    } else {
        Access::READ
    };
    Exit::SlatFault { gpa, gva: None, access, page_table_walk: error & PAGE_TABLE_WALK != 0 }
}

fn exception(vmcb: &Vmcb) -> Exit {
    /// Vectors that push an error code (APM 2, 8.2): 8, 10 to 14, 17, 21, 29, 30.
    const WITH_ERROR: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
    const VECTOR_DB: u8 = 1;
    const VECTOR_PF: u8 = 14;
    let vector = (vmcb.control.exit_code - code::EXCEPTION_FIRST) as u8;
    let error = (WITH_ERROR >> vector & 1 != 0).then_some(vmcb.control.exit_info_1 as u32);
    let parameter = match vector {
        VECTOR_DB => vmcb.save.dr6,
        VECTOR_PF => vmcb.control.exit_info_2,
        _ => 0,
    };
    Exit::Exception { vector, error, parameter }
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::zeroed;
    use super::*;

    fn exit(exit_code: u64, info_1: u64, info_2: u64) -> Exit {
        let mut vmcb = zeroed();
        vmcb.save.rip = 0xffff_ffff_8000_0000;
        vmcb.control.exit_code = exit_code;
        vmcb.control.exit_info_1 = info_1;
        vmcb.control.exit_info_2 = info_2;
        vmcb.control.next_rip = vmcb.save.rip + 3;
        let mut gprs = [0; 16];
        gprs[gpr::RAX] = 0xffff_ffff_1111_2222;
        gprs[gpr::RCX] = 0xffff_ffff_c000_0080;
        gprs[gpr::RDX] = 0xffff_ffff_3333_4444;
        decode(&vmcb, &gprs, true)
    }

    #[test]
    fn instruction_exits_carry_their_length() {
        assert_eq!(exit(0x72, 0, 0), Exit::Cpuid { length: Some(3) });
        assert_eq!(exit(0x78, 0, 0), Exit::Hlt { length: Some(3) });
        assert_eq!(exit(0x81, 0, 0), Exit::Hypercall { length: Some(3) });
        let mut vmcb = zeroed();
        vmcb.control.exit_code = 0x72;
        vmcb.control.next_rip = 2;
        assert_eq!(decode(&vmcb, &[0; 16], false), Exit::Cpuid { length: None });
        vmcb.control.next_rip = 16;
        assert_eq!(decode(&vmcb, &[0; 16], true), Exit::Cpuid { length: None });
    }

    #[test]
    fn register_halves_are_put_together() {
        let (msr, length) = (0xc000_0080, Some(3));
        assert_eq!(exit(0x7c, 0, 0), Exit::ReadMsr { msr, length });
        assert_eq!(exit(0x7c, 1, 0), Exit::WriteMsr { msr, value: 0x3333_4444_1111_2222, length });
        assert_eq!(exit(0x8d, 0, 0), Exit::Xsetbv { value: 0x3333_4444_1111_2222, length });
    }

    #[test]
    fn writes_of_cr4_name_their_register_where_the_processor_does() {
        let length = Some(3);
        assert_eq!(exit(0x14, 1 << 63 | 9, 0), Exit::WriteCr4 { register: Some(9), length });
        assert_eq!(exit(0x14, 0, 0), Exit::WriteCr4 { register: None, length });
    }

    #[test]
    fn port_accesses_are_taken_apart() {
        let expected =
            IoExit { port: 0x3f8, size: 1, input: false, string: false, repeat: false, length: Some(1) };
        assert_eq!(exit(0x7b, 0x03f8_0010, 0xffff_ffff_8000_0001), Exit::Io(expected));
        let expected =
            IoExit { port: 0xcfc, size: 4, input: true, string: true, repeat: true, length: Some(2) };
        assert_eq!(exit(0x7b, 0x0cfc_004d, 0xffff_ffff_8000_0002), Exit::Io(expected));
    }

    #[test]
    fn slat_faults_say_what_was_tried() {
        let fault = |access, page_table_walk| Exit::SlatFault {
            gpa: 0xfee0_0020,
            gva: None,
            access,
            page_table_walk,
        };
        assert_eq!(exit(0x400, 1 << 32 | 0b100, 0xfee0_0020), fault(Access::READ, false));
        assert_eq!(exit(0x400, 1 << 32 | 0b111, 0xfee0_0020), fault(Access::WRITE, false));
        assert_eq!(exit(0x400, 1 << 32 | 0b10100, 0xfee0_0020), fault(Access::EXECUTE, false));
        assert_eq!(exit(0x400, 1 << 33 | 0b110, 0xfee0_0020), fault(Access::WRITE, true));
    }

    #[test]
    fn exceptions_bring_error_and_address() {
        let page_fault = Exit::Exception { vector: 14, error: Some(6), parameter: 0x1234 };
        assert_eq!(exit(0x4e, 6, 0x1234), page_fault);
        assert_eq!(exit(0x46, 6, 0x1234), Exit::Exception { vector: 6, error: None, parameter: 0 });
    }

    #[test]
    fn what_partitions_do_not_have_is_an_invalid_instruction() {
        assert_eq!(exit(0x6f, 0, 0), Exit::ReadPerformanceCounter);
        for code in [0x73, 0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8e, 0xa0, 0xa4] {
            assert_eq!(exit(code, 0, 0), Exit::InvalidInstruction);
        }
        assert_eq!(exit(u64::MAX, 0, 0), Exit::Failed(u64::MAX));
        assert_eq!(exit(0x63, 0, 0), Exit::Failed(0x63));
    }
}
