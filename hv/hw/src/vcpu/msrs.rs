//! Model-specific registers whose accesses exit, or do not, on either vendor's processors. What only one of them has is beside its
//! maps ([`crate::svm`], [`crate::vmx`]); what an exit comes to is core's business.

use core::ops::RangeInclusive;

/// Registers of which both reads and writes exit for the parent.
pub const PARENT_READ_WRITE: [u32; 6] = [
    0x6e0,       // TSC deadline: the hypervisor owns the timer
    0x832,       // x2APIC LVT timer, likewise
    0x838,       // x2APIC initial count
    0x839,       // x2APIC current count
    0x83e,       // x2APIC divide configuration
    0xc000_0080, // EFER: SVME must stay set and unseen; under VMX its changes change the entry controls
];

/// Registers of which writes exit for the parent, and reads do not.
pub const PARENT_WRITE: [u32; 4] = [
    0x10,  // TSC: it is the hypervisor's clock
    0x1b,  // APIC base: the APIC stays in x2APIC mode
    0x3b,  // TSC adjust
    0x830, // x2APIC interrupt command: INIT and SIPI must not reach a processor
];

/// Registers that a child has to itself without an exit.
pub const CHILD_OWN: [u32; 6] = [
    0x174,       // SYSENTER CS
    0x175,       // SYSENTER ESP
    0x176,       // SYSENTER EIP
    0xc000_0100, // FS base
    0xc000_0101, // GS base
    0xc000_0102, // kernel GS base
];

/// STAR, LSTAR, CSTAR, SFMASK: a child reads them without an exit. Its writes exit under VMX, where what they hold is to be known
/// when another virtual processor is loaded ([`crate::vmx`]).
pub const SYSTEM_CALL: RangeInclusive<u32> = 0xc000_0081..=0xc000_0084;
