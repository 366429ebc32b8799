//! A virtual processor of the real hypervisor.

use mshv_bindings::{
    HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS, HV_TRANSLATE_GVA_VALIDATE_EXECUTE, HV_TRANSLATE_GVA_VALIDATE_READ,
    HV_TRANSLATE_GVA_VALIDATE_WRITE, HVCALL_TRANSLATE_VIRTUAL_ADDRESS, hv_input_translate_virtual_address,
    hv_output_translate_virtual_address, hv_register_assoc, hv_register_value, hv_u128, make_args,
    mshv_root_hvcall,
};
use mshv_ioctls::{MSHV_RUN_VP, MshvError, VcpuFd};
use parterre_abi::message::{MESSAGE_SIZE, Message};
use parterre_abi::registers::{
    PendingExceptionEvent, RegisterName, RegisterValue, SegmentRegister, TableRegister,
};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::page::RegisterPage;
use crate::registers::{ArchState, Register, Segments, Table};
use crate::{Access, Error, Exception, Intercept, Result, Translation, VirtualProcessor};

/// MTRRs on, everything write-back: what firmware leaves for RAM.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Vector of #PF.
const PAGE_FAULT: u8 = 14;

/// A VP. Its registers are in a page shared with the hypervisor whenever that offers one.
pub struct MshvVp {
    index: u32,
    // Declared before the descriptor: the mapping holds a reference to it.
    page: Option<RegisterPage>,
    vcpu: VcpuFd,
    /// The last intercept, where the driver puts it.
    message: Message,
}

impl MshvVp {
    pub(crate) fn new(index: u32, vcpu: VcpuFd) -> MshvVp {
        // SAFETY: `create_vcpu` mapped the register page for this descriptor and nobody unmaps it: the crate keeps
        // the pointer for helpers that this module does not call.
        let page = vcpu.get_vp_reg_page().and_then(|page| unsafe { RegisterPage::from_mapping(page.0) });
        MshvVp { index, page, vcpu, message: Message::NONE }
    }

    /// The register page, when it holds this VP's registers.
    fn valid_page(&mut self) -> Option<&mut RegisterPage> {
        self.page.as_mut().filter(|page| page.is_valid())
    }

    fn get_registers(&self, names: &[RegisterName]) -> Result<Vec<RegisterValue>> {
        let mut assocs: Vec<_> = names.iter().map(|&name| assoc(name, RegisterValue::default())).collect();
        self.vcpu
            .get_reg(&mut assocs)
            .map_err(Error::call(format!("cannot read registers of virtual processor {}", self.index)))?;
        Ok(assocs.iter().map(value_of).collect())
    }

    /// `HvCallTranslateVirtualAddress`. Not by the crate's own helper: that tries an `ioctl` first which upstream's
    /// driver does not have and complains about in the kernel's log. Returns the GPA and the result code.
    fn translate_by_hypercall(&self, gva: u64, control_flags: u64) -> Result<(u64, u32)> {
        const PAGE_SHIFT: u32 = 12;
        let input = hv_input_translate_virtual_address {
            vp_index: self.index,
            control_flags,
            gva_page: gva >> PAGE_SHIFT,
            ..Default::default() // the driver fills in the partition
        };
        let mut output = hv_output_translate_virtual_address::default();
        let mut call = make_args!(HVCALL_TRANSLATE_VIRTUAL_ADDRESS, input, output);
        self.vcpu
            .hvcall(&mut call)
            .map_err(Error::call(format!("cannot translate guest virtual address {gva:#x}")))?;
        // SAFETY: both members of the union are plain 64-bit data; the low half is the code.
        let code = unsafe { output.translation_result.as_uint64 } as u32;
        Ok(((output.gpa_page << PAGE_SHIFT) | (gva & 0xFFF), code))
    }

    fn set_registers(&self, values: &[(RegisterName, RegisterValue)]) -> Result<()> {
        let assocs: Vec<_> = values.iter().map(|&(name, value)| assoc(name, value)).collect();
        self.vcpu
            .set_reg(&assocs)
            .map_err(Error::call(format!("cannot write registers of virtual processor {}", self.index)))
    }
}

fn assoc(name: RegisterName, value: RegisterValue) -> hv_register_assoc {
    let reg128 = hv_u128 { low_part: value.low, high_part: value.high };
    hv_register_assoc { name: name.0, value: hv_register_value { reg128 }, ..Default::default() }
}

fn value_of(assoc: &hv_register_assoc) -> RegisterValue {
    // SAFETY: every member of the union is plain data; `reg128` covers all of it, and the hypervisor wrote all of it.
    let value = unsafe { assoc.value.reg128 };
    RegisterValue { low: value.low_part, high: value.high_part }
}

/// The TLFS name of a register.
fn name(register: Register) -> RegisterName {
    // Both number the general registers as instructions do, RIP and RFLAGS behind them.
    RegisterName(RegisterName::RAX.0 + register as u32)
}

/// The names from `first` on.
fn names_from(first: RegisterName) -> impl Iterator<Item = RegisterName> {
    (first.0..).map(RegisterName)
}

fn table_value(table: &Table) -> RegisterValue {
    TableRegister { pad: [0; 3], limit: table.limit, base: table.base }.into()
}

impl VirtualProcessor for MshvVp {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self) -> Result<Intercept> {
        const { assert!(size_of::<Message>() == MESSAGE_SIZE) };
        // Not by the crate's helper, which returns the message by value: this is part of every exit that comes here.
        // SAFETY: the request writes a message of this size to the address given, and does nothing else to this process.
        if unsafe { ioctl_with_mut_ref(&self.vcpu, MSHV_RUN_VP(), &mut self.message) } == 0 {
            return Intercept::decode(&self.message);
        }
        let error = errno::Error::last();
        Err(match error.errno() {
            libc::EINTR | libc::EAGAIN => Error::Interrupted,
            _ => Error::Call {
                what: format!("cannot run virtual processor {}", self.index),
                source: MshvError::from(error),
            },
        })
    }

    fn get(&mut self, names: &[Register], values: &mut [u64]) -> Result<()> {
        if let Some(page) = self.valid_page() {
            for (name, value) in names.iter().zip(values) {
                *value = page.get(*name);
            }
            return Ok(());
        }
        let names: Vec<_> = names.iter().map(|register| name(*register)).collect();
        for (value, read) in values.iter_mut().zip(self.get_registers(&names)?) {
            *value = read.low;
        }
        Ok(())
    }

    fn set(&mut self, values: &[(Register, u64)]) -> Result<()> {
        if let Some(page) = self.valid_page() {
            for (name, value) in values {
                page.set(*name, *value);
            }
            return Ok(());
        }
        let values: Vec<_> =
            values.iter().map(|(register, value)| (name(*register), (*value).into())).collect();
        self.set_registers(&values)
    }

    fn segments(&mut self) -> Result<Segments> {
        let mut names: Vec<_> = names_from(RegisterName::ES).take(6).collect();
        names.extend([RegisterName::CR0, RegisterName::EFER]);
        let values = self.get_registers(&names)?;
        let mut segments = Segments { cr0: values[6].low, efer: values[7].low, ..Default::default() };
        for (segment, value) in segments.registers.iter_mut().zip(values) {
            *segment = value.as_segment().into();
        }
        Ok(segments)
    }

    fn set_arch_state(&mut self, state: &ArchState) -> Result<()> {
        let mut values = vec![
            (RegisterName::EFER, state.efer.into()),
            (RegisterName::CR4, state.cr4.into()),
            (RegisterName::CR3, state.cr3.into()),
            (RegisterName::CR0, state.cr0.into()),
            (RegisterName::GDTR, table_value(&state.gdtr)),
            (RegisterName::IDTR, table_value(&state.idtr)),
            (RegisterName::LDTR, SegmentRegister::from(state.ldtr).into()),
            (RegisterName::TR, SegmentRegister::from(state.tr).into()),
            (RegisterName::MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK.into()),
        ];
        let segments = state.segments.iter().map(|segment| SegmentRegister::from(*segment).into());
        values.extend(names_from(RegisterName::ES).zip(segments));
        values.extend(names_from(RegisterName::RAX).zip(state.general.iter().map(|value| (*value).into())));
        self.set_registers(&values)
    }

    fn translate(&mut self, gva: u64, access: Access) -> Result<Translation> {
        let flags = HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS
            | match access {
                Access::Read => HV_TRANSLATE_GVA_VALIDATE_READ,
                Access::Write => HV_TRANSLATE_GVA_VALIDATE_READ | HV_TRANSLATE_GVA_VALIDATE_WRITE,
                Access::Execute => HV_TRANSLATE_GVA_VALIDATE_EXECUTE,
            };
        let (gpa, code) = self.translate_by_hypercall(gva, u64::from(flags))?;
        Ok(match code {
            // 1 page not present, 2 privilege violation, 3 reserved bits set.
            1 => Translation::Fault { present: false },
            2 | 3 => Translation::Fault { present: true },
            // 4 speaks of the GPA: a device's address is not mapped, which is no fault of the guest.
            0 | 4 => Translation::Mapped(gpa),
            // The guest's tables lie where no memory is.
            _ => Translation::Fault { present: false },
        })
    }

    fn crash_parameters(&mut self) -> Result<[u64; 5]> {
        let names: Vec<_> = names_from(RegisterName::GUEST_CRASH_P0).take(5).collect();
        let values = self.get_registers(&names)?;
        let mut parameters = [0; 5];
        parameters.iter_mut().zip(values).for_each(|(parameter, value)| *parameter = value.low);
        Ok(parameters)
    }

    fn inject(&mut self, exception: Exception) -> Result<()> {
        if exception.vector == PAGE_FAULT {
            // Not every hypervisor loads it from the parameter.
            self.set_registers(&[(RegisterName::CR2, exception.parameter.into())])?;
        }
        let event = PendingExceptionEvent::new()
            .with_event_pending(true)
            .with_vector(exception.vector.into())
            .with_deliver_error_code(exception.error_code.is_some())
            .with_error_code(exception.error_code.unwrap_or(0))
            .with_exception_parameter(exception.parameter);
        self.set_registers(&[(RegisterName::PENDING_EVENT0, u128::from(event).into())])
    }
}
