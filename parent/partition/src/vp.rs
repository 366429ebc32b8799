//! A virtual processor of the real hypervisor.

use mshv_bindings::{
    HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS, HV_TRANSLATE_GVA_VALIDATE_EXECUTE, HV_TRANSLATE_GVA_VALIDATE_READ,
    HV_TRANSLATE_GVA_VALIDATE_WRITE, HVCALL_TRANSLATE_VIRTUAL_ADDRESS, hv_input_translate_virtual_address,
    hv_message, hv_output_translate_virtual_address, hv_register_assoc, hv_register_value, hv_u128,
    make_args, mshv_root_hvcall,
};
use mshv_ioctls::VcpuFd;

use crate::message::MESSAGE_SIZE;
use crate::page::RegisterPage;
use crate::registers::{ArchState, Register, Segment, Segments, Table};
use crate::{Access, Error, Exception, Intercept, Result, Translation, VirtualProcessor};

/// Register names (`enum hv_register_name`).
mod name {
    pub const PENDING_EVENT0: u32 = 0x0001_0004;
    pub const RAX: u32 = 0x0002_0000;
    pub const CR0: u32 = 0x0004_0000;
    pub const CR2: u32 = 0x0004_0001;
    pub const CR3: u32 = 0x0004_0002;
    pub const CR4: u32 = 0x0004_0003;
    pub const ES: u32 = 0x0006_0000;
    pub const LDTR: u32 = 0x0006_0006;
    pub const TR: u32 = 0x0006_0007;
    pub const IDTR: u32 = 0x0007_0000;
    pub const GDTR: u32 = 0x0007_0001;
    pub const EFER: u32 = 0x0008_0001;
    pub const MTRR_DEF_TYPE: u32 = 0x0008_000E;
}

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
}

impl MshvVp {
    pub(crate) fn new(index: u32, vcpu: VcpuFd) -> MshvVp {
        // SAFETY: `create_vcpu` mapped the register page for this descriptor and nobody unmaps it: the crate keeps
        // the pointer for helpers that this module does not call.
        let page = vcpu.get_vp_reg_page().and_then(|page| unsafe { RegisterPage::from_mapping(page.0) });
        MshvVp { index, page, vcpu }
    }

    /// The register page, when it holds this VP's registers.
    fn valid_page(&mut self) -> Option<&mut RegisterPage> {
        self.page.as_mut().filter(|page| page.is_valid())
    }

    fn get_registers(&self, names: &[u32]) -> Result<Vec<u128>> {
        let mut assocs: Vec<_> = names.iter().map(|&name| assoc(name, 0)).collect();
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

    fn set_registers(&self, values: &[(u32, u128)]) -> Result<()> {
        let assocs: Vec<_> = values.iter().map(|&(name, value)| assoc(name, value)).collect();
        self.vcpu
            .set_reg(&assocs)
            .map_err(Error::call(format!("cannot write registers of virtual processor {}", self.index)))
    }
}

fn assoc(name: u32, value: u128) -> hv_register_assoc {
    let reg128 = hv_u128 { low_part: value as u64, high_part: (value >> 64) as u64 };
    hv_register_assoc { name, value: hv_register_value { reg128 }, ..Default::default() }
}

fn value_of(assoc: &hv_register_assoc) -> u128 {
    // SAFETY: every member of the union is plain data; `reg128` covers all of it, and the hypervisor wrote all of it.
    let value = unsafe { assoc.value.reg128 };
    u128::from(value.low_part) | (u128::from(value.high_part) << 64)
}

/// `HV_X64_SEGMENT_REGISTER`: base, limit, selector, attributes.
fn segment_value(segment: &Segment) -> u128 {
    u128::from(segment.base)
        | u128::from(segment.limit) << 64
        | u128::from(segment.selector) << 96
        | u128::from(segment.attributes) << 112
}

fn segment_of(value: u128) -> Segment {
    Segment {
        base: value as u64,
        limit: (value >> 64) as u32,
        selector: (value >> 96) as u16,
        attributes: (value >> 112) as u16,
    }
}

/// `HV_X64_TABLE_REGISTER`: six bytes of padding, limit, base.
fn table_value(table: &Table) -> u128 {
    u128::from(table.limit) << 48 | u128::from(table.base) << 64
}

impl VirtualProcessor for MshvVp {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self) -> Result<Intercept> {
        let message = self.vcpu.run().map_err(|e| match e.errno() {
            libc::EINTR | libc::EAGAIN => Error::Interrupted,
            _ => Error::Call { what: format!("cannot run virtual processor {}", self.index), source: e },
        })?;
        const { assert!(size_of::<hv_message>() == MESSAGE_SIZE) };
        // SAFETY: the message is `repr(C, packed)` plain data of exactly this size, zeroed before the kernel filled it.
        let bytes: [u8; MESSAGE_SIZE] = unsafe { std::mem::transmute(message) };
        Intercept::decode(&bytes)
    }

    fn get(&mut self, names: &[Register], values: &mut [u64]) -> Result<()> {
        if let Some(page) = self.valid_page() {
            for (name, value) in names.iter().zip(values) {
                *value = page.get(*name);
            }
            return Ok(());
        }
        let numbers: Vec<u32> = names.iter().map(|name| name::RAX + *name as u32).collect();
        for (value, read) in values.iter_mut().zip(self.get_registers(&numbers)?) {
            *value = read as u64;
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
        let values: Vec<_> = values.iter().map(|(n, v)| (name::RAX + *n as u32, u128::from(*v))).collect();
        self.set_registers(&values)
    }

    fn segments(&mut self) -> Result<Segments> {
        let mut names: Vec<u32> = (name::ES..name::ES + 6).collect();
        names.extend([name::CR0, name::EFER]);
        let values = self.get_registers(&names)?;
        let mut segments = Segments { cr0: values[6] as u64, efer: values[7] as u64, ..Default::default() };
        for (segment, value) in segments.registers.iter_mut().zip(values) {
            *segment = segment_of(value);
        }
        Ok(segments)
    }

    fn set_arch_state(&mut self, state: &ArchState) -> Result<()> {
        let mut values = vec![
            (name::EFER, u128::from(state.efer)),
            (name::CR4, u128::from(state.cr4)),
            (name::CR3, u128::from(state.cr3)),
            (name::CR0, u128::from(state.cr0)),
            (name::GDTR, table_value(&state.gdtr)),
            (name::IDTR, table_value(&state.idtr)),
            (name::LDTR, segment_value(&state.ldtr)),
            (name::TR, segment_value(&state.tr)),
        ];
        let segments = state.segments.iter().map(segment_value);
        values.extend((name::ES..).zip(segments));
        values.extend((name::RAX..).zip(state.general.iter().map(|value| u128::from(*value))));
        self.set_registers(&values)?;
        self.set_registers(&[(name::MTRR_DEF_TYPE, u128::from(MTRR_ENABLED_WRITE_BACK))])
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

    fn inject(&mut self, exception: Exception) -> Result<()> {
        // `hv_x64_pending_exception_event`: pending 0, type 3:1 (0 exception), deliver error code 8, vector 31:16,
        // error code 63:32, parameter 127:64.
        let event = 1u128
            | u128::from(exception.error_code.is_some()) << 8
            | u128::from(exception.vector) << 16
            | u128::from(exception.error_code.unwrap_or(0)) << 32
            | u128::from(exception.parameter) << 64;
        if exception.vector == PAGE_FAULT {
            // Not every hypervisor loads it from the parameter.
            self.set_registers(&[(name::CR2, u128::from(exception.parameter))])?;
        }
        self.set_registers(&[(name::PENDING_EVENT0, event)])
    }
}
