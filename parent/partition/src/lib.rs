//! Safe access to a child partition: `/dev/mshv`, guest memory, virtual processors, intercept messages.
//!
//! This is the only crate of the virtualization stack that contains `unsafe`. Above it stands the worker process,
//! which sees two small traits ([`Partition`] and [`VirtualProcessor`]) and guest memory; below it stands the parent
//! kernel's mshv driver. The traits let the worker's logic run against [`fake::FakePartition`] on any machine.
//!
//! What it is not: it holds no device model, decides no policy and starts no threads.

mod create;
pub mod device_memory;
mod error;
pub mod fake;
pub mod hypercall;
pub mod io;
pub mod memory;
pub mod message;
mod mshv;
mod page;
pub mod registers;
pub mod signal;
pub mod tap;
pub mod thread;
mod vp;

pub use create::{Hypervisor, PartitionConfig};
pub use error::{Error, Result};
pub use hypercall::Hypercall;
pub use message::Intercept;
pub use mshv::MshvPartition;
pub use parterre_abi::status::HvStatus;
pub use vp::MshvVp;

use std::sync::Arc;

use device_memory::DeviceMemory;
use registers::{ArchState, Register, Segments};

/// How an interrupt reaches its target (APIC delivery modes; `HV_INTERRUPT_TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To every processor of the destination, with the vector given.
    Fixed,
    /// To the processor of the destination with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT.
    Init,
    /// As if from an 8259; the vector is the one given.
    ExtInt,
}

/// An interrupt for the local APICs of a partition (hypercall `HvCallAssertVirtualInterrupt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptRequest {
    /// How it is delivered.
    pub mode: DeliveryMode,
    /// The APIC id, or the logical destination when `logical` is set.
    pub destination: u64,
    /// Interrupt vector, 16 to 255.
    pub vector: u8,
    /// Level-triggered: the guest's end of interrupt is reported as [`Intercept::ApicEoi`].
    pub level: bool,
    /// The destination is logical, not an APIC id.
    pub logical: bool,
}

/// What a partition does for the worker, apart from its virtual processors.
pub trait Partition: Send + Sync {
    /// Asserts an interrupt at the local APICs.
    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<()>;

    /// Puts a message in the slot of a SINT: `kind` is the `HV_MESSAGE_TYPE`, the payload has at most 240 bytes.
    fn post_message(&self, vp: u32, sint: u8, kind: u32, payload: &[u8]) -> Result<Posted>;

    /// Sets an event flag (0 to 2047) of a SINT; the guest is interrupted unless it was set already. A guest that does not
    /// listen misses it.
    fn signal_event(&self, vp: u32, sint: u8, flag: u16) -> Result<()>;

    /// Has a VP report [`Intercept::SintDeliverable`] when one of these SINTs (bit N: SINT N) has a free slot.
    fn notify_deliverable(&self, vp: u32, sints: u16) -> Result<()>;

    /// The guest's reference time in units of 100 ns.
    fn reference_time(&self) -> Result<u64>;

    /// Maps memory of a device's, readable and writable, at a guest physical address where nothing is. It stays mapped until
    /// it is unmapped or the partition goes.
    fn map_device_memory(&self, gpa: u64, memory: &Arc<DeviceMemory>) -> Result<()>;

    /// Takes back what is mapped at this address by [`map_device_memory`](Self::map_device_memory).
    fn unmap_device_memory(&self, gpa: u64) -> Result<()>;

    /// Stops the guest's reference time, or has it go on. Meant for times in which no processor runs.
    fn freeze_time(&self, frozen: bool) -> Result<()>;
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It is in the slot.
    Done,
    /// The slot is full.
    Full,
    /// The guest has not switched its SynIC on: nobody listens.
    NobodyListens,
}

/// What an access is for, when a guest virtual address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// One virtual processor. Its registers may be touched only while it does not run, hence `&mut self`.
pub trait VirtualProcessor: Send {
    /// The VP index within its partition; equal to the APIC id.
    fn index(&self) -> u32;

    /// Runs the guest until something happens that the worker has to handle.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when a signal came; anything else ends the VM.
    fn run(&mut self) -> Result<Intercept>;

    /// Reads registers. `values` must be as long as `names`.
    fn get(&mut self, names: &[Register], values: &mut [u64]) -> Result<()>;

    /// Writes registers; all of them take effect before the next [`run`](Self::run).
    fn set(&mut self, values: &[(Register, u64)]) -> Result<()>;

    /// The segment registers and the control registers that say how addresses are formed.
    fn segments(&mut self) -> Result<Segments>;

    /// Loads the whole architectural state with which a VP starts.
    fn set_arch_state(&mut self, state: &ArchState) -> Result<()>;

    /// Translates a guest virtual address with the guest's page tables and the current privilege level.
    fn translate(&mut self, gva: u64, access: Access) -> Result<Translation>;

    /// The parameters that the guest left for its crash (`HvRegisterGuestCrashP0` to `P4`).
    fn crash_parameters(&mut self) -> Result<[u64; 5]>;

    /// Makes the guest see an exception before its next instruction.
    fn inject(&mut self, exception: Exception) -> Result<()>;
}

/// What the guest's page tables say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// The guest physical address.
    Mapped(u64),
    /// The access would fault; `present` says that a page is there but its rights do not allow it.
    Fault {
        /// Bit 0 of the page fault's error code.
        present: bool,
    },
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0 to 31.
    pub vector: u8,
    /// For the exceptions that push one.
    pub error_code: Option<u32>,
    /// CR2 for a page fault, else 0.
    pub parameter: u64,
}
