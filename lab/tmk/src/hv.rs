//! The Hyper-V interface from the guest's side: discovery and hypercalls.

use crate::cpu::{self, cpuid, wrmsr};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use parterre_abi::cpuid::{self as leaf, PrivilegeMask};
use parterre_abi::hypercall::{HypercallCode, HypercallInput, HypercallOutput};
use parterre_abi::msr;

/// A page of memory that the hypervisor reads and writes by its physical address.
#[repr(C, align(4096))]
pub struct Page(pub UnsafeCell<[u64; 512]>);
// SAFETY: tests run on one processor at a time where they use pages.
unsafe impl Sync for Page {}

impl Page {
    /// A page of zeroes.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    /// Its physical address: memory is mapped as it is.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Reads a word.
    pub fn read(&self, index: usize) -> u64 {
        // SAFETY: inside of the page by the mask; volatile, since the hypervisor writes it.
        unsafe { core::ptr::read_volatile((self.0.get() as *const u64).add(index & 511)) }
    }

    /// Writes a word.
    pub fn write(&self, index: usize, value: u64) {
        // SAFETY: inside of the page by the mask; volatile, since the hypervisor reads it.
        unsafe { core::ptr::write_volatile((self.0.get() as *mut u64).add(index & 511), value) }
    }

    /// Fills it with one word.
    pub fn fill(&self, value: u64) {
        for index in 0..512 {
            self.write(index, value);
        }
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

static HYPERCALL_PAGE: Page = Page::new();
static ENTRY: AtomicU64 = AtomicU64::new(0);

/// Input of hypercalls.
pub static INPUT: Page = Page::new();
/// Output of hypercalls.
pub static OUTPUT: Page = Page::new();

/// The guest OS id the programs use: open source, of no known kind.
pub const GUEST_OS_ID: u64 = 0x8F00_0000_0000_0001;

/// Whether there is a hypervisor with the "Hv#1" interface.
pub fn present() -> bool {
    cpuid(1, 0).ecx & leaf::HYPERVISOR_PRESENT != 0
        && (leaf::INTERFACE..=leaf::LAST).contains(&cpuid(leaf::VENDOR_AND_MAX_FUNCTION, 0).eax)
        && cpuid(leaf::INTERFACE, 0).eax == leaf::INTERFACE_SIGNATURE
}

/// What the hypervisor says the partition may do.
pub fn privileges() -> PrivilegeMask {
    if !present() {
        return PrivilegeMask::empty();
    }
    let features = cpuid(leaf::FEATURES, 0);
    PrivilegeMask::from_bits_retain(u64::from(features.ebx) << 32 | u64::from(features.eax))
}

/// Sets up the hypercall page. Says whether hypercalls can be made.
pub fn enable_hypercalls() -> bool {
    if !privileges().contains(PrivilegeMask::ACCESS_HYPERCALL_REGS) {
        return false;
    }
    if ENTRY.load(Ordering::Relaxed) == 0 {
        wrmsr(msr::GUEST_OS_ID, GUEST_OS_ID);
        wrmsr(msr::HYPERCALL, HYPERCALL_PAGE.address() | 1);
        ENTRY.store(HYPERCALL_PAGE.address(), Ordering::Relaxed);
    }
    true
}

/// The address of the hypercall page, enabled or not.
pub fn hypercall_page() -> u64 {
    HYPERCALL_PAGE.address()
}

/// A hypercall with any words.
pub fn raw(control: u64, input: u64, output: u64) -> u64 {
    let result;
    // SAFETY: calls the hypercall page, which keeps all registers but those named; what the hypervisor writes goes to
    // `output`, which callers choose from pages set apart for it, or to bad addresses on purpose.
    unsafe {
        core::arch::asm!(
            "call {entry}",
            entry = in(reg) ENTRY.load(Ordering::Relaxed),
            inlateout("rcx") control => _, inlateout("rdx") input => _, inlateout("r8") output => _,
            lateout("rax") result, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    result
}

/// A simple hypercall with [`INPUT`] and [`OUTPUT`].
pub fn call(code: HypercallCode) -> HypercallOutput {
    call_with(HypercallInput::new().with_call_code(code.0))
}

/// A hypercall with [`INPUT`] and [`OUTPUT`].
pub fn call_with(control: HypercallInput) -> HypercallOutput {
    HypercallOutput::from_bits(raw(control.into_bits(), INPUT.address(), OUTPUT.address()))
}

/// A fast hypercall with two words.
pub fn call_fast(code: HypercallCode, first: u64, second: u64) -> HypercallOutput {
    let control = HypercallInput::new().with_call_code(code.0).with_fast(true);
    HypercallOutput::from_bits(raw(control.into_bits(), first, second))
}

/// The instruction that calls a hypervisor, without a page: VMMCALL or VMCALL.
pub fn vmcall(rax: u64, rcx: u64, rdx: u64, r8: u64) -> u64 {
    let result;
    // SAFETY: what a hypervisor does with the registers is what the tests are about; memory is named by bad addresses
    // or pages set apart only.
    unsafe {
        if cpu::is_amd() {
            core::arch::asm!("vmmcall", inlateout("rax") rax => result, in("rcx") rcx, in("rdx") rdx, in("r8") r8);
        } else {
            core::arch::asm!("vmcall", inlateout("rax") rax => result, in("rcx") rcx, in("rdx") rdx, in("r8") r8);
        }
    }
    result
}
