//! The VP register page: registers shared with the hypervisor, so that an exit costs no system call for them.
//!
//! Layout: `struct hv_vp_register_page` (Linux `include/hyperv/hvhdk.h`). The page is valid while the VP does not
//! run. The hypervisor loads the classes marked dirty at the next run.

use std::ptr::{NonNull, addr_of, addr_of_mut};

use mshv_bindings::{HV_PAGE_SIZE, hv_vp_register_page};

use crate::registers::Register;

/// Dirty bits of the page (`enum hv_x64_register_class_type`).
const DIRTY_GENERAL: u32 = 1 << 0;
const DIRTY_IP: u32 = 1 << 1;
const DIRTY_FLAGS: u32 = 1 << 4;

/// One mapped register page; unmapped on drop.
pub struct RegisterPage(NonNull<hv_vp_register_page>);

// SAFETY: the page is plain shared memory without thread affinity; `&mut self` guards all writes.
unsafe impl Send for RegisterPage {}

impl RegisterPage {
    /// Takes over a mapping.
    ///
    /// # Safety
    /// `page` must be a shared mapping of a VP's register page of one page length that nobody else unmaps and that
    /// the caller does not touch afterwards.
    pub unsafe fn from_mapping(page: *mut hv_vp_register_page) -> Option<RegisterPage> {
        NonNull::new(page).map(RegisterPage)
    }

    /// Whether the hypervisor filled the page at the last exit.
    pub fn is_valid(&self) -> bool {
        // SAFETY: the mapping is live as long as `self`, and the field is one aligned byte.
        unsafe { addr_of!((*self.0.as_ptr()).isvalid).read_volatile() != 0 }
    }

    /// Reads one register.
    pub fn get(&self, register: Register) -> u64 {
        // SAFETY: the mapping is live; `register as usize` is below 18, the length of the array.
        unsafe { self.slot(register).read_volatile() }
    }

    /// Writes one register and marks its class dirty.
    pub fn set(&mut self, register: Register, value: u64) {
        let class = match register {
            Register::Rip => DIRTY_IP,
            Register::Rflags => DIRTY_FLAGS,
            _ => DIRTY_GENERAL,
        };
        // SAFETY: the mapping is live and writable, the VP does not run (`&mut self`), the offsets are the page's.
        unsafe {
            self.slot(register).write_volatile(value);
            let dirty = addr_of_mut!((*self.0.as_ptr()).dirty);
            dirty.write_volatile(dirty.read_volatile() | class);
        }
    }

    /// Address of one register in the page.
    fn slot(&self, register: Register) -> *mut u64 {
        // SAFETY: only an address within the mapping is formed; the index is below 18.
        unsafe {
            let first = addr_of_mut!((*self.0.as_ptr()).__bindgen_anon_1.registers).cast::<u64>();
            first.add(register as usize)
        }
    }
}

impl Drop for RegisterPage {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to `self`, is one page long, and no reference into it is ever handed out.
        // A failure would only leave the mapping in place.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), HV_PAGE_SIZE) };
    }
}
