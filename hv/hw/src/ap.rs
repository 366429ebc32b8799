//! Starting the other processors (Intel SDM 3A, 9.4.4; AMD APM 2, 16.9).
//!
//! A processor that gets INIT and SIPI begins in real mode at a page below 1 MiB. The code there (the *trampoline*) is
//! copied from this file; it takes the processor to 64-bit mode on the hypervisor's page tables and stack and calls a
//! function of Rust. The processors start one after the other, so one trampoline is enough.

use core::arch::global_asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::apic;
use crate::heap::BootHeap;
use crate::physical::{self, PAGE_SIZE};
use crate::timer::{Clock, tsc};

// At the start CS is the page's segment and IP is 0. `Parameters` lies behind the code. All code is position-independent
// but for the two far jumps, whose targets `Trampoline::new` fills in.
global_asm!(
    ".text",
    ".globl parterre_trampoline, parterre_trampoline_32, parterre_trampoline_64",
    ".globl parterre_trampoline_parameters, parterre_trampoline_gdt, parterre_trampoline_end",
    ".balign 16",
    ".code16",
    "parterre_trampoline:",
    "cli",
    "xorl %ebx, %ebx",
    "movw %cs, %bx",
    "movw %bx, %ds",
    "shll $4, %ebx",
    "lgdtl parterre_trampoline_parameters - parterre_trampoline",
    "movl %cr0, %eax",
    "orl $1, %eax",
    "movl %eax, %cr0",
    "ljmpl *(parterre_trampoline_parameters - parterre_trampoline + 8)",
    ".code32",
    "parterre_trampoline_32:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "movl $0x20, %eax", // CR4.PAE
    "movl %eax, %cr4",
    "movl (parterre_trampoline_parameters - parterre_trampoline + 24)(%ebx), %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x900, %eax", // EFER.LME, EFER.NXE
    "wrmsr",
    "movl $0x80010031, %eax", // CR0.PG, WP, NE, ET, PE; the caches on
    "movl %eax, %cr0",
    "ljmpl *(parterre_trampoline_parameters - parterre_trampoline + 16)(%ebx)",
    ".code64",
    "parterre_trampoline_64:",
    "movq (parterre_trampoline_parameters - parterre_trampoline + 32)(%rbx), %rax",
    "xorl %ecx, %ecx",
    "xchgq (%rax), %rcx", // a stack is taken once
    "testq %rcx, %rcx",
    "jz 2f",
    "movq %rcx, %rsp",
    "movq 8(%rax), %rdi",
    "xorl %ebp, %ebp",
    "callq *(parterre_trampoline_parameters - parterre_trampoline + 40)(%rbx)",
    "2: hlt",
    "jmp 2b",
    ".balign 8",
    "parterre_trampoline_gdt:",
    ".quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff",
    "parterre_trampoline_parameters:",
    ".skip 48",
    "parterre_trampoline_end:",
    options(att_syntax)
);

unsafe extern "C" {
    static parterre_trampoline: u8;
    static parterre_trampoline_32: u8;
    static parterre_trampoline_64: u8;
    static parterre_trampoline_gdt: u8;
    static parterre_trampoline_parameters: u8;
    static parterre_trampoline_end: u8;
}

const CODE_32: u32 = 0x08;
const CODE_64: u32 = 0x18;

/// What the trampoline's code finds behind itself. The offsets stand in the code, too.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Parameters {
    gdt_limit: u16,
    gdt_base: [u16; 2],
    padding: u16,
    far_32: [u32; 2],
    far_64: [u32; 2],
    cr3: u64,
    /// Address of [`Next`].
    next: u64,
    entry: u64,
}

const _: () = assert!(size_of::<Parameters>() == 48 && core::mem::offset_of!(Parameters, entry) == 40);

/// What the next processor to start takes with it.
#[derive(Debug)]
#[repr(C)]
struct Next {
    stack: AtomicU64,
    argument: AtomicU64,
}

/// The copied code, which takes processors to a function with an argument of type `T`.
#[derive(Debug)]
pub struct Trampoline<T: 'static> {
    page: u64,
    next: &'static Next,
    argument: PhantomData<&'static T>,
}

impl<T: Sync> Trampoline<T> {
    /// Copies the code to `page`, for processors to come from there to `entry` with the page tables at `cr3`.
    ///
    /// # Safety
    /// `page` is the address of a page below 1 MiB that is the hypervisor's alone, and mapped writable. The tables at `cr3`
    /// map the hypervisor, and this page executable.
    pub unsafe fn new(
        page: u64,
        cr3: u64,
        entry: extern "sysv64" fn(&'static T) -> !,
        heap: &mut BootHeap,
    ) -> Self {
        assert!(
            cr3 < 1 << 32,
            "the root of the page tables lies above 4 GiB, where starting processors cannot find it"
        );
        let start = &raw const parterre_trampoline;
        let offset = |label: *const u8| label.addr() - start.addr();
        assert!(offset(&raw const parterre_trampoline_end) <= PAGE_SIZE);
        let target = |label: *const u8| page as u32 + offset(label) as u32;
        let gdt = target(&raw const parterre_trampoline_gdt);
        let next = heap.place(Next { stack: AtomicU64::new(0), argument: AtomicU64::new(0) });
        let parameters = Parameters {
            gdt_limit: 4 * 8 - 1,
            gdt_base: [gdt as u16, (gdt >> 16) as u16],
            padding: 0,
            far_32: [target(&raw const parterre_trampoline_32), CODE_32],
            far_64: [target(&raw const parterre_trampoline_64), CODE_64],
            cr3,
            next: physical::address(next),
            entry: entry as usize as u64,
        };
        // SAFETY: the page is the caller's to give, and the code with its parameters fits it.
        unsafe {
            physical::pointer(page)
                .copy_from_nonoverlapping(start, offset(&raw const parterre_trampoline_end));
            let place = page + offset(&raw const parterre_trampoline_parameters) as u64;
            physical::pointer(place).cast::<Parameters>().write_unaligned(parameters);
        }
        Self { page, next, argument: PhantomData }
    }

    /// Starts processor `apic_id` with `argument`, on the stack that ends at `stack`, and waits until it has set `arrived`.
    /// `false` if it does not within a second. One that comes later may take the stack and the argument of the next.
    pub fn start(
        &mut self,
        apic_id: u32,
        stack: u64,
        argument: &'static T,
        arrived: &AtomicBool,
        clock: &Clock,
    ) -> bool {
        self.next.stack.store(stack, SeqCst);
        self.next.argument.store(physical::address(argument), SeqCst);
        for patience in [clock.tsc_frequency / 20, clock.tsc_frequency] {
            apic::send_startup(apic_id, (self.page >> 12) as u8);
            if wait_until(patience, || arrived.load(SeqCst)) {
                return true;
            }
        }
        false
    }
}

/// Resets the processors, which takes 10 ms (Intel MultiProcessor Specification 1.4, B.4).
pub fn send_init(apic_ids: impl Iterator<Item = u32>, clock: &Clock) {
    apic_ids.for_each(apic::send_init);
    wait_until(clock.tsc_frequency / 100, || false);
}

/// Waits for `condition`, at most `ticks` of the time stamp counter; says whether it came true.
fn wait_until(ticks: u64, condition: impl Fn() -> bool) -> bool {
    let start = tsc();
    while !condition() {
        if tsc().wrapping_sub(start) > ticks {
            return condition();
        }
        core::hint::spin_loop();
    }
    true
}
