//! Translation of guest-virtual addresses by the guest's own page tables, as its processor would do it (Intel SDM 3A
//! chapter 5, AMD APM 2 chapter 5): for `HvCallTranslateVirtualAddress` and for fetching an instruction that exited.
//!
//! All paging modes are here: none, 32-bit, PAE, 4-level and 5-level. Rights are checked with SMEP, SMAP, write
//! protection and execute-disable; protection keys and shadow stacks are not, as no partition is offered them.
//!
//! Guests change their tables while we look: every entry is read once, and entries are updated only if they are still
//! what was read.

mod fetch;
mod format;
#[cfg(test)]
mod tests;
mod translate;

pub use fetch::{Instruction, fetch};

use crate::machine::{Access, GpaFault, Reg, Slat, Vcpu};
use arrayvec::ArrayVec;
use format::{Entry, Format, LEVELS};

/// Memory of a partition by guest-physical address.
pub trait GuestMemory {
    /// Copies bytes out; every page must allow reading.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault>;
    /// Atomically replaces the 64-bit word at `gpa` (a multiple of 8) if it equals `current`; gives what was there.
    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault>;
}

impl<S: Slat> GuestMemory for S {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        Slat::read(self, gpa, bytes)
    }

    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        Slat::compare_exchange(self, gpa, current, new)
    }
}

/// The registers that say how addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Bits of a guest-physical address that the partition's CPUID tells; entries with higher ones are malformed.
    pub physical_bits: u8,
}

impl Paging {
    /// As a virtual processor has them now.
    pub fn of<V: Vcpu>(vcpu: &V, physical_bits: u8) -> Self {
        Self {
            cr0: vcpu.get(Reg::Cr0),
            cr3: vcpu.get(Reg::Cr3),
            cr4: vcpu.get(Reg::Cr4),
            efer: vcpu.get(Reg::Efer),
            rflags: vcpu.get(Reg::Rflags),
            physical_bits,
        }
    }

    fn write_protect(&self) -> bool {
        self.cr0 & 1 << 16 != 0
    }

    fn smep(&self) -> bool {
        self.cr4 & 1 << 20 != 0
    }

    fn smap(&self) -> bool {
        self.cr4 & 1 << 21 != 0
    }

    fn execute_disable(&self) -> bool {
        self.efer & 1 << 11 != 0
    }
}

/// As whom an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// By user code.
    User,
    /// By supervisor code.
    Supervisor,
    /// User and supervisor are not told apart.
    Exempt,
}

impl Privilege {
    /// The privilege of code at `cpl`.
    pub fn of_cpl(cpl: u8) -> Self {
        if cpl == 3 { Self::User } else { Self::Supervisor }
    }
}

/// An access to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it does; several at once have to be allowed all. Nothing asks for the translation only.
    pub access: Access,
    /// As whom.
    pub privilege: Privilege,
    /// For supervisors: whether user pages may be touched in spite of SMAP; normally RFLAGS.AC.
    pub smap_override: bool,
    /// Whether accessed and dirty bits are set, as the access itself would do.
    pub update: bool,
}

impl Request {
    /// `access` by code at `cpl`, without touching accessed and dirty bits.
    pub fn new(access: Access, cpl: u8, paging: &Paging) -> Self {
        Self {
            access,
            privilege: Privilege::of_cpl(cpl),
            smap_override: paging.rflags & 1 << 18 != 0,
            update: false,
        }
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: u64,
    /// The index into the PAT MSR that says how the page is cached.
    pub pat_index: u8,
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// The address is not canonical (#GP, or #SS for stack accesses).
    NotCanonical,
    /// A page fault, because an entry is not present.
    NotPresent {
        /// The exception's error code.
        code: u32,
    },
    /// A page fault, because a right is missing.
    Protection {
        /// The exception's error code.
        code: u32,
    },
    /// A page fault, because an entry is malformed.
    Reserved {
        /// The exception's error code.
        code: u32,
    },
    /// A table lies where the partition has no memory that allows this.
    Table {
        /// The address in the table.
        gpa: u64,
        /// The entry was to be updated; else it was to be read.
        write: bool,
    },
    /// The guest changed its tables again and again under our hands. Let it run on and try anew.
    Busy,
}

impl WalkFault {
    /// The error code, if this is a page fault.
    pub fn page_fault(self) -> Option<u32> {
        match self {
            Self::NotPresent { code } | Self::Protection { code } | Self::Reserved { code } => Some(code),
            _ => None,
        }
    }
}

/// Page fault error code bits (SDM 3A 5.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// How often a walk starts anew because entries changed before they could be updated.
const ATTEMPTS: usize = 8;

/// Translates `gva` for `request`.
pub fn walk<G: GuestMemory + ?Sized>(
    memory: &G,
    paging: &Paging,
    gva: u64,
    request: Request,
) -> Result<Translation, WalkFault> {
    let Some(format) = Format::of(paging, gva)? else {
        // Without paging the linear address is the physical one, and has 32 bits.
        return Ok(Translation { gpa: gva & 0xFFFF_FFFF, pat_index: 0 });
    };
    for _ in 0..ATTEMPTS {
        let path = descend(memory, &format, gva, paging, request)?;
        if !request.update || update(memory, &format, &path.entries, request)? {
            return Ok(path.translation);
        }
    }
    Err(WalkFault::Busy)
}

/// The entries that were followed, and where they lead.
struct Path {
    entries: ArrayVec<Entry, LEVELS>,
    translation: Translation,
}

fn descend<G: GuestMemory + ?Sized>(
    memory: &G,
    format: &Format,
    gva: u64,
    paging: &Paging,
    request: Request,
) -> Result<Path, WalkFault> {
    let code = error_code(paging, format, request);
    let mut entries = ArrayVec::new();
    let mut table = format.root;
    let (mut writable, mut user, mut executable) = (true, true, true);
    for level in (0..format.levels).rev() {
        let entry = format.read(memory, table, level, gva)?;
        if !entry.is_present() {
            return Err(WalkFault::NotPresent { code });
        }
        if format.is_malformed(entry, level) {
            return Err(WalkFault::Reserved { code: code | code::PRESENT | code::RESERVED });
        }
        if format.has_rights(level) {
            writable &= entry.is_writable();
            user &= entry.is_user();
            executable &= !format.is_no_execute(entry);
            // There are as many entries as levels at most.
            let _ = entries.try_push(entry);
        }
        if format.is_leaf(entry, level) {
            let rights = Rights { writable, user, executable };
            if !rights.allow(paging, request) {
                return Err(WalkFault::Protection { code: code | code::PRESENT });
            }
            return Ok(Path { entries, translation: format.translation(entry, level, gva) });
        }
        table = format.table(entry);
    }
    // The last level is always a leaf.
    Err(WalkFault::NotPresent { code })
}

/// The error code of a fault, without the bits that depend on what was found.
fn error_code(paging: &Paging, format: &Format, request: Request) -> u32 {
    let mut code = 0;
    if request.access.contains(Access::WRITE) {
        code |= code::WRITE;
    }
    if request.privilege == Privilege::User {
        code |= code::USER;
    }
    // Fetches are told apart only where they can be forbidden (SDM 3A 5.7).
    let told = paging.smep() || (format.has_execute_disable() && paging.execute_disable());
    if request.access.contains(Access::EXECUTE) && told {
        code |= code::FETCH;
    }
    code
}

/// What all entries on the way together allow.
struct Rights {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Rights {
    /// Whether `request` is allowed (SDM 3A 5.6.1).
    fn allow(&self, paging: &Paging, request: Request) -> bool {
        let Request { access, privilege, smap_override, .. } = request;
        let supervisor = privilege == Privilege::Supervisor;
        let data = access.intersects(Access::READ | Access::WRITE);
        let fetch = access.contains(Access::EXECUTE);
        if privilege == Privilege::User && !self.user && !access.is_empty() {
            return false;
        }
        if supervisor && self.user && data && paging.smap() && !smap_override {
            return false;
        }
        if supervisor && self.user && fetch && paging.smep() {
            return false;
        }
        if fetch && !self.executable {
            return false;
        }
        let ignores_write_protection = privilege != Privilege::User && !paging.write_protect();
        !access.contains(Access::WRITE) || self.writable || ignores_write_protection
    }
}

/// Sets the accessed bits on the way, and the dirty bit at its end for a write. `false` if an entry has changed.
fn update<G: GuestMemory + ?Sized>(
    memory: &G,
    format: &Format,
    entries: &[Entry],
    request: Request,
) -> Result<bool, WalkFault> {
    let last = entries.len().wrapping_sub(1);
    for (index, entry) in entries.iter().enumerate() {
        let dirty = index == last && request.access.contains(Access::WRITE);
        if !format.mark(memory, *entry, dirty)? {
            return Ok(false);
        }
    }
    Ok(true)
}
