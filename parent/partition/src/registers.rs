//! Register names and the architectural state of a virtual processor, as the worker sees them.

use parterre_abi::registers::SegmentRegister;

/// Registers that instruction emulation reads and writes. General registers are numbered as instructions number
/// them, so `Register::general(n)` fits any decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the processor's own
pub enum Register {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Rip,
    Rflags,
}

impl Register {
    /// All registers, in the order of the VP register page.
    pub const ALL: [Register; 18] = [
        Register::Rax,
        Register::Rcx,
        Register::Rdx,
        Register::Rbx,
        Register::Rsp,
        Register::Rbp,
        Register::Rsi,
        Register::Rdi,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
        Register::Rip,
        Register::Rflags,
    ];

    /// The general register with an instruction's number (0 = RAX ... 15 = R15).
    pub fn general(number: usize) -> Option<Register> {
        Self::ALL[..16].get(number).copied()
    }
}

/// A segment register with its hidden part (TLFS `HV_X64_SEGMENT_REGISTER`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, after granularity.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D 14, G 15.
    pub attributes: u16,
}

impl From<SegmentRegister> for Segment {
    fn from(register: SegmentRegister) -> Segment {
        let SegmentRegister { base, limit, selector, attributes } = register;
        Segment { base, limit, selector, attributes: attributes.into() }
    }
}

impl From<Segment> for SegmentRegister {
    fn from(segment: Segment) -> SegmentRegister {
        let Segment { base, limit, selector, attributes } = segment;
        SegmentRegister { base, limit, selector, attributes: attributes.into() }
    }
}

impl Segment {
    /// Whether this code segment is a 64-bit one (in long mode).
    pub fn is_long(&self) -> bool {
        self.attributes & (1 << 13) != 0
    }

    /// Whether operands and addresses default to 32 bits.
    pub fn is_default_32(&self) -> bool {
        self.attributes & (1 << 14) != 0
    }
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment registers in the order of instruction encodings, and what says how addresses are formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// ES, CS, SS, DS, FS, GS.
    pub registers: [Segment; 6],
    /// Control register 0.
    pub cr0: u64,
    /// Extended feature enables.
    pub efer: u64,
}

impl Segments {
    /// The width in bits of the code that runs: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        const LMA: u64 = 1 << 10;
        let cs = &self.registers[1];
        match (self.efer & LMA != 0 && cs.is_long(), cs.is_default_32() && self.cr0 & 1 != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }
}

/// The architectural state with which a VP starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchState {
    /// General registers, RIP, RFLAGS in the order of [`Register::ALL`].
    pub general: [u64; 18],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enables.
    pub efer: u64,
}
