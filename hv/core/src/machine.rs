//! The seam between the hypervisor's logic and the machine: what core needs of processors, of second-level address
//! translation and of platform services.
//!
//! `hv/hw` implements these traits twice for the vendor part (SVM, VMX) and once for the rest; [`crate::fake`]
//! implements them for tests. The traits are the whole of what core knows of a machine: adding a method here means
//! that both vendors can provide it with the same meaning.
//!
//! Conventions: page numbers count 4 KiB pages; a *GPA page* belongs to a partition, a *frame* is a physical page.
//! The parent's GPAs are identical to physical addresses.

use crate::memory::{Frame, Lent};
use zerocopy::{Immutable, IntoBytes};

/// A whole machine: the types that make it up, and what concerns all of its processors.
pub trait Machine: Sized + Send + Sync + 'static {
    /// A virtual processor's register state and its vendor control block.
    type Vcpu: Vcpu<Slat = Self::Slat, Processor = Self::Processor>;
    /// A partition's second-level address translation.
    type Slat: Slat;
    /// The logical processor that code runs on.
    type Processor: Processor;
    /// An owned page that holds a value of type `T`.
    type Page<T: Send + Sync + 'static>: core::ops::Deref<Target = T> + core::ops::DerefMut + Send + Sync;

    /// Moves `value` into `frame`. `T` must fit a page (checked when compiling).
    fn emplace<T: Send + Sync + 'static>(&self, frame: Frame, value: T) -> Self::Page<T>;
    /// Moves the value out of `page`; gives it and the frame, zeroed.
    fn take<T: Send + Sync + 'static>(&self, page: Self::Page<T>) -> (T, Frame);
    /// Ends the value in `page` and gives back its frame, zeroed.
    fn dissolve<T: Send + Sync + 'static>(&self, page: Self::Page<T>) -> Frame {
        self.take(page).1
    }
    /// Fills `frame` with zeros.
    fn zero(&self, frame: &mut Frame);
    /// Copies bytes out of a frame that the hypervisor owns, from byte `offset`. The end must lie in the page.
    fn read_frame(&self, frame: &Frame, offset: usize, bytes: &mut [u8]);
    /// Copies bytes into a frame that the hypervisor owns. Partitions may see the page at the same time.
    fn write_frame(&self, frame: &Frame, offset: usize, bytes: &[u8]);
    /// Atomically replaces the 32-bit word at `offset` (a multiple of 4) if it equals `current`; gives what was there.
    fn compare_exchange_frame(&self, frame: &Frame, offset: usize, current: u32, new: u32) -> u32;

    /// Makes an empty address space. `root` becomes its top table.
    fn new_slat(&self, root: Frame) -> Self::Slat;
    /// Ends an address space that maps nothing any more (see [`Slat::clear_all`]) and gives back its top table.
    fn end_slat(&self, slat: Self::Slat) -> Frame;
    /// How many frames [`Machine::new_vcpu`] takes: at most 8.
    fn vcpu_frames(&self) -> usize;
    /// Makes a virtual processor of a child in its power-on state (Intel SDM 3A table 10-1, AMD APM 2 table 14-1).
    fn new_vcpu(&self, frames: [Option<Frame>; 8], slat: &Self::Slat) -> Self::Vcpu;
    /// Ends a virtual processor; gives back its frames.
    fn end_vcpu(&self, vcpu: Self::Vcpu) -> [Option<Frame>; 8];

    /// The instruction of this vendor that calls the hypervisor (VMMCALL, VMCALL), for the hypercall page.
    fn hypercall_instruction(&self) -> [u8; 3];
    /// The time stamp counter, the same on all processors.
    fn tsc(&self) -> u64;
    /// Ticks of the time stamp counter per second.
    fn tsc_frequency(&self) -> u64;
    /// Ticks of the local APIC timer's input clock per second, undivided.
    fn apic_frequency(&self) -> u64;
    /// How many processors the hypervisor runs on.
    fn processor_count(&self) -> usize;
    /// The local APIC id of processor `lp`.
    fn apic_id(&self, lp: usize) -> u32;
    /// Has processor `lp` leave guest mode. If the parent runs there it sees [`Exit::Kick`], if a child, [`Exit::Interrupt`]
    /// with [`Interrupts::kick`]; a kick that comes between the caller's last look and the entry is not lost. Cheap; never
    /// waits.
    fn kick(&self, lp: usize);
    /// A hint that the caller waits in a loop.
    fn relax(&self) {
        core::hint::spin_loop();
    }
    /// Delivers `vector` to the parent on processor `lp`, as a physical interrupt.
    fn interrupt_parent(&self, lp: usize, vector: u8);
    /// Writes the physical interrupt command register on behalf of the parent (never INIT or SIPI).
    fn write_icr(&self, value: u64);
    /// CPUID of the physical processor this runs on.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// Reads a physical model-specific register for the parent; `None` if it raises #GP.
    fn read_msr(&self, msr: u32) -> Option<u64>;
    /// Writes a physical model-specific register for the parent; `false` if it raises #GP. Only for registers that core's
    /// MSR policy lists as harmless to the hypervisor.
    fn write_msr(&self, msr: u32, value: u64) -> bool;
    /// Writes the ACPI PM1 control registers with `sleep_type_a`, `sleep_type_b` and SLP_EN; returns if the machine
    /// goes on.
    fn enter_sleep(&self, sleep_type_a: u8, sleep_type_b: u8);
    /// Restarts the machine, after saying why.
    fn reset(&self, why: core::fmt::Arguments<'_>) -> !;
    /// Sets whether the parent's writes of the x2APIC ICR are intercepted (on every processor, from the next entry).
    fn intercept_icr(&self, intercept: bool);
}

/// The logical processor that the code is running on. There is one value per processor; it never leaves it.
pub trait Processor {
    /// This processor's index; the boot processor is 0.
    fn index(&self) -> usize;
    /// Sets the one-shot timer: at `deadline` (in TSC ticks) `interrupt` is raised. `None` disarms it.
    fn arm_timer(&mut self, deadline: Option<u64>, interrupt: TimerInterrupt);
    /// After [`Exit::Interrupt`]: takes the hypervisor's own interrupts (timer, kick) and says what there was.
    fn take_interrupts(&mut self) -> Interrupts;
    /// Waits in host mode until [`Machine::kick`] (a kick since the last wait returns at once). Interrupts for the parent
    /// stay pending.
    fn wait_for_kick(&mut self);
    /// Waits in host mode, halted and with interrupts on, until an interrupt, a kick or an NMI comes; one that is pending
    /// returns at once. The hypervisor's own interrupts are taken; of the parent's, the one with the highest priority
    /// is accepted from the local APIC, which has it in service then, and returned to be injected.
    fn wait_for_interrupt(&mut self) -> Waited;
}

/// What ended [`Processor::wait_for_interrupt`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// The hypervisor's own.
    pub interrupts: Interrupts,
    /// An interrupt for the parent, accepted.
    pub vector: Option<u8>,
    /// An NMI that is not the hypervisor's.
    pub nmi: bool,
}

/// To whom the one-shot timer of a processor speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerInterrupt {
    /// To the parent, which finds this vector as a pending physical interrupt, without an exit.
    Parent(u8),
    /// To the hypervisor, which leaves guest mode and finds [`Interrupts::timer`].
    Hypervisor,
}

/// What [`Processor::take_interrupts`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// The hypervisor's timer fired.
    pub timer: bool,
    /// Someone kicked this processor.
    pub kick: bool,
    /// There are interrupts for the parent; they stay pending until it runs.
    pub parent: bool,
}

/// General-purpose registers by their encoding (Intel SDM 2A table 2-2).
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
}

/// A register of a virtual processor that holds up to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reg {
    Rip,
    Rflags,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    /// Task priority, bits 7:4 of the local APIC's TPR.
    Cr8,
    Dr0,
    Dr1,
    Dr2,
    Dr3,
    Dr6,
    Dr7,
    Xcr0,
    Efer,
    Pat,
    KernelGsBase,
    Star,
    Lstar,
    Cstar,
    Sfmask,
    SysenterCs,
    SysenterEip,
    SysenterEsp,
    TscAux,
    Xss,
    SpecCtrl,
    DebugCtl,
    /// Added to the physical time stamp counter when the partition reads it.
    TscOffset,
}

/// A segment register, its hidden part included, laid out as `HV_X64_SEGMENT_REGISTER`. `attributes`: type 3:0,
/// S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub attributes: u16,
}

/// Names of segment registers, in the order of `HvX64RegisterEs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// Names of descriptor table registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TableName {
    Idtr,
    Gdtr,
}

/// An event on its way into a virtual processor, or one whose delivery an exit cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception with its error code, if that vector has one.
    Exception(u8, Option<u32>),
    /// A software interrupt (INT n), to be delivered again with the instruction's length.
    Software(u8, u8),
}

/// A virtual processor: its registers, and running it. Where nothing else is said a method is for a processor that is
/// not running.
pub trait Vcpu: Send {
    /// The address space type it runs in.
    type Slat;
    /// The logical processor type it runs on.
    type Processor;

    /// Puts the state that exits leave in the machine (FPU, debug and system-call registers) into `processor`.
    fn load(&mut self, processor: &mut Self::Processor);
    /// Takes that state back from `processor`, before another virtual processor is loaded there.
    fn unload(&mut self, processor: &mut Self::Processor);
    /// Runs the loaded processor until its next exit.
    fn run(&mut self, processor: &mut Self::Processor) -> Exit;
    /// Drops cached translations before the next run (of this processor's address space).
    fn flush_tlb(&mut self);

    /// General-purpose registers, by [`gpr`] number.
    fn gprs(&self) -> &[u64; 16];
    /// General-purpose registers, writable.
    fn gprs_mut(&mut self) -> &mut [u64; 16];
    /// Reads a register.
    fn get(&self, register: Reg) -> u64;
    /// Writes a register. The value must have been checked ([`crate::vp`] does): nothing here may fault.
    fn set(&mut self, register: Reg, value: u64);
    /// Reads a segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// Reads ES, CS, SS, DS, FS and GS at once.
    fn segments(&self, to: &mut [Segment; 6]) {
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        for (to, name) in to.iter_mut().zip([Es, Cs, Ss, Ds, Fs, Gs]) {
            *to = self.segment(name);
        }
    }
    /// The attributes of CS.
    fn code_attributes(&self) -> u16 {
        self.segment(SegmentName::Cs).attributes
    }
    /// Writes a segment register.
    fn set_segment(&mut self, name: SegmentName, value: Segment);
    /// Reads a descriptor table register.
    fn table(&self, name: TableName) -> Table;
    /// Writes a descriptor table register.
    fn set_table(&mut self, name: TableName, value: Table);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// The XSAVE area (standard format) of an unloaded processor.
    fn xsave(&self) -> &[u8; 4096];
    /// The XSAVE area, writable. Core has checked what it writes there (header, MXCSR).
    fn xsave_mut(&mut self) -> &mut [u8; 4096];
    /// Reads XMM register 0-15, whether loaded or not.
    fn xmm(&mut self, index: usize) -> u128;
    /// XMM registers 0 to 5 one after the other, whether loaded or not.
    fn first_xmm(&mut self) -> &[u8; 6 * 16];
    /// Writes XMM register 0-15, whether loaded or not.
    fn set_xmm(&mut self, index: usize, value: u128);

    /// The event to be delivered at the next run: set by [`Vcpu::inject`], or cut short by the last exit.
    fn pending_event(&self) -> Option<Event>;
    /// Sets or clears the event that the next run delivers first.
    fn inject(&mut self, event: Option<Event>);
    /// Whether the last instruction (STI, MOV SS) holds interrupts off for one more.
    fn interrupt_shadow(&self) -> bool;
    /// Sets or ends the interrupt shadow.
    fn set_interrupt_shadow(&mut self, shadow: bool);
    /// Whether NMIs are masked because one is being handled.
    fn nmi_masked(&self) -> bool;
    /// Sets whether NMIs are masked.
    fn set_nmi_masked(&mut self, masked: bool);
    /// Asks for [`Exit::InterruptWindow`] as soon as an interrupt of this vector could be taken (RFLAGS.IF, shadow, CR8).
    fn request_interrupt_window(&mut self, vector: Option<u8>);
    /// Has the next run deliver an interrupt as soon as it can be taken, which saves the exit. A machine that cannot asks for
    /// the window instead. Takes the place of a window that was asked for.
    fn offer_interrupt(&mut self, vector: u8);
    /// Ends the offer; says whether the run has delivered the interrupt.
    fn end_offer(&mut self) -> bool;
    /// Asks for [`Exit::NmiWindow`] as soon as an NMI could be taken.
    fn request_nmi_window(&mut self, request: bool);
    /// Sets whether HLT exits. A child's always does; the parent's does while the hypervisor has timers to watch.
    fn intercept_halt(&mut self, intercept: bool);
    /// Has a child's writes of CR4 exit that set one of these `bits`, which the processor has and the child may not use. Where a
    /// machine cannot tell them from others, and there are such bits, all of its writes exit.
    fn refuse_cr4(&mut self, bits: u64);
    /// Sets whether exceptions of the vectors in `mask` (bit n: vector n) exit.
    fn intercept_exceptions(&mut self, mask: u32);
}

/// Why a virtual processor stopped running. `length` is the exiting instruction's length where the machine tells it;
/// otherwise core decodes the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Exit {
    /// A physical interrupt is pending ([`Processor::take_interrupts`] says whose).
    Interrupt,
    /// [`Machine::kick`], in a processor that takes its interrupts itself (the parent's).
    Kick,
    /// A physical NMI that is not the hypervisor's; it has been consumed.
    Nmi,
    /// See [`Vcpu::request_interrupt_window`].
    InterruptWindow,
    /// See [`Vcpu::request_nmi_window`].
    NmiWindow,
    Cpuid {
        length: Option<u8>,
    },
    Hlt {
        length: Option<u8>,
    },
    ReadMsr {
        msr: u32,
        length: Option<u8>,
    },
    WriteMsr {
        msr: u32,
        value: u64,
        length: Option<u8>,
    },
    /// VMMCALL or VMCALL, whichever is this vendor's.
    Hypercall {
        length: Option<u8>,
    },
    Io(IoExit),
    /// An access that the SLAT does not allow. The guest-virtual address where the machine tells it.
    SlatFault {
        gpa: u64,
        gva: Option<u64>,
        access: Access,
        page_table_walk: bool,
    },
    /// An intercepted exception.
    Exception {
        vector: u8,
        error: Option<u32>,
        parameter: u64,
    },
    Xsetbv {
        value: u64,
        length: Option<u8>,
    },
    /// MOV to CR4 (see [`Vcpu::refuse_cr4`]) from a general-purpose register, where the machine tells which, by [`gpr`] number.
    WriteCr4 {
        register: Option<u8>,
        length: Option<u8>,
    },
    /// A virtualization instruction, or another one that does not exist for partitions: raise #UD.
    InvalidInstruction,
    /// RDPMC of a partition that has no performance counters: raise #GP.
    ReadPerformanceCounter,
    /// INVD or WBINVD; caches are kept coherent, so passing over it is enough.
    CacheInvalidate {
        length: Option<u8>,
    },
    Monitor {
        length: Option<u8>,
    },
    Mwait {
        length: Option<u8>,
    },
    Pause,
    /// Triple fault.
    Shutdown,
    /// Entry was refused or the machine reported something that should not happen; the code is the vendor's.
    Failed(u64),
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IoExit {
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    pub input: bool,
    pub string: bool,
    pub repeat: bool,
    pub length: Option<u8>,
}

bitflags::bitflags! {
    /// Rights to memory, or the kind of an access.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Access: u8 {
        /// Reading.
        const READ = 1;
        /// Writing.
        const WRITE = 2;
        /// Fetching instructions.
        const EXECUTE = 4;
    }
}

/// What a stretch of a partition's address space is to become.
pub enum Run {
    /// Nothing: an access finds no memory there.
    Empty,
    /// Memory whose contents the parent supplies on demand (`NO_ACCESS`); held as runs, not as 4 KiB entries.
    NoAccess,
    /// The parent's memory. 1 page, or 512 pages whose GPA and frame are both aligned (one large entry).
    Lent(Lent, Access),
    /// A page that the hypervisor owns (overlay pages, the parent's special pages).
    Owned(Frame, Access),
}

/// What a page of a partition's address space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing is there.
    Empty,
    /// See [`Run::NoAccess`].
    NoAccess,
    /// Memory, with its rights.
    Memory {
        /// The frame's number.
        frame: u64,
        /// The rights.
        access: Access,
        /// Whether one large entry maps it.
        large: bool,
    },
}

/// What a change of an address space gave back.
pub enum Released {
    /// The parent's memory, no longer mapped there.
    Lent(Lent),
    /// A page of the hypervisor.
    Owned(Frame),
}

/// Where an address space gets its tables from and gives them back to.
pub trait TableSource {
    /// A zeroed frame for a table.
    fn take(&mut self) -> Option<Frame>;
    /// A table that is no longer needed.
    fn give(&mut self, frame: Frame);
    /// Sets one frame aside for splitting a large entry later; `false` if there is none.
    fn reserve(&mut self) -> bool;
    /// Takes a frame that was set aside (there is one for each large entry).
    fn take_reserved(&mut self) -> Option<Frame>;
    /// Gives up one that was set aside.
    fn unreserve(&mut self);
}

/// There were no frames for tables; what was done before that stays done, and stays correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

/// An access that an address space does not allow, at this GPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaFault(pub u64);

/// Accessed and dirty state of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PageState {
    pub accessed: bool,
    pub dirty: bool,
}

/// What [`Slat::page_state`] does to the state of a page, `None` leaving it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PageStateChange {
    pub accessed: Option<bool>,
    pub dirty: Option<bool>,
}

/// A partition's guest-physical address space. Changes here do not reach a processor's cached translations by
/// themselves; core flushes.
pub trait Slat: Send + Sync {
    /// Turns `pages` GPA pages from `page` on into `run`, giving what was mapped there to `released`. With [`Run::Lent`]
    /// or [`Run::Owned`] `pages` is the run's own length. Taking access away (`Empty`, `NoAccess`) never runs out of
    /// tables: large entries have one set aside.
    fn set(
        &mut self,
        page: u64,
        pages: u64,
        run: Run,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables>;
    /// Unmaps everything and gives back all tables but the top one.
    fn clear_all(&mut self, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released));
    /// What page `page` is.
    fn get(&self, page: u64) -> Mapping;
    /// Copies bytes out of the address space; every page must allow reading.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault>;
    /// Copies bytes into the address space; every page must allow writing.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault>;
    /// Atomically replaces the 64-bit word at `gpa` (aligned), for page-table accessed bits. Gives what was there.
    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault>;
    /// The state of a page before `change`, which is then applied. A large entry answers for all of its pages.
    fn page_state(&mut self, page: u64, change: PageStateChange) -> PageState;
    /// Splits every large entry, so that page states are exact; may be called again after [`OutOfTables`].
    fn split_all(&mut self, tables: &mut dyn TableSource) -> Result<(), OutOfTables>;
}
