//! The page walk in the terms of `HvCallTranslateVirtualAddress`.

use super::{Paging, Privilege, Request, WalkFault};
use crate::machine::Access;
use parterre_abi::hypercall::{TranslateGvaControlFlags as Flags, TranslateGvaResultCode as ResultCode};

impl Request {
    /// The access that `flags` mean for a processor at `cpl`; `None` if they contradict each other or name what there
    /// is not (shadow stacks). The bits that name a VTL are the caller's.
    pub fn of_flags(flags: Flags, cpl: u8, paging: &Paging) -> Option<Self> {
        let both = |one: Flags, other: Flags| flags.contains(one | other);
        if both(Flags::USER_ACCESS, Flags::SUPERVISOR_ACCESS)
            || both(Flags::ENFORCE_SMAP, Flags::OVERRIDE_SMAP)
            || flags.contains(Flags::SHADOW_STACK)
        {
            return None;
        }
        let mut request = Self::new(Access::empty(), cpl, paging);
        for (flag, access) in [
            (Flags::VALIDATE_READ, Access::READ),
            (Flags::VALIDATE_WRITE, Access::WRITE),
            (Flags::VALIDATE_EXECUTE, Access::EXECUTE),
        ] {
            request.access.set(access, flags.contains(flag));
        }
        if flags.contains(Flags::PRIVILEGE_EXEMPT) {
            request.privilege = Privilege::Exempt;
        } else if flags.contains(Flags::USER_ACCESS) {
            request.privilege = Privilege::User;
        } else if flags.contains(Flags::SUPERVISOR_ACCESS) {
            request.privilege = Privilege::Supervisor;
        }
        if flags.intersects(Flags::ENFORCE_SMAP | Flags::OVERRIDE_SMAP) {
            request.smap_override = flags.contains(Flags::OVERRIDE_SMAP);
        }
        request.update = flags.contains(Flags::SET_PAGE_TABLE_BITS);
        Some(request)
    }
}

impl WalkFault {
    /// The result code of a translation that failed so. Addresses that are not canonical, and tables that never hold
    /// still, count as not present: the guest's own access would tell.
    pub fn result_code(self) -> ResultCode {
        match self {
            Self::NotCanonical | Self::NotPresent { .. } | Self::Busy => ResultCode::PAGE_NOT_PRESENT,
            Self::Protection { .. } => ResultCode::PRIVILEGE_VIOLATION,
            Self::Reserved { .. } => ResultCode::INVALID_PAGE_TABLE_FLAGS,
            Self::Table { write: true, .. } => ResultCode::GPA_NO_WRITE_ACCESS,
            Self::Table { write: false, .. } => ResultCode::GPA_UNMAPPED,
        }
    }
}
