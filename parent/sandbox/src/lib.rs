//! Giving up rights: what a process of the stack does once it has opened everything it needs.
//!
//! From then on it opens no file, starts no program and touches no other process, so whoever took it over holds what it
//! held before and nothing more. Which system calls are left is each program's own to say.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
};
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// The user that workers run as, on machines that have it.
const USER: &str = "vmwp";

/// What of the sandbox could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A limit or a privilege.
    #[error("cannot give up privileges: {0}")]
    Privileges(#[from] rustix::io::Errno),
    /// Landlock.
    #[error("cannot close off the file system: {0}")]
    Landlock(#[from] RulesetError),
    /// Seccomp.
    #[error("cannot restrict system calls: {0}")]
    Seccomp(String),
}

/// Gives up root, all capabilities and the file system, for this thread and all that it starts; at most `files` are open.
///
/// # Errors
/// The kernel refuses a step.
pub fn give_up_rights(files: u64) -> Result<(), SandboxError> {
    set_limit(Resource::Nofile, files)?;
    set_limit(Resource::Core, 0)?;
    become_user()?;
    set_no_new_privs(true)?;
    close_file_system()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// Lets system calls through that match a rule, or have an entry without rules; everything else fails with "operation not
/// permitted". The instructions in `before` are run first. Needs [`give_up_rights`] before it.
///
/// # Errors
/// The filter is not one, or the kernel refuses it.
pub fn allow_only(rules: BTreeMap<i64, Vec<SeccompRule>>, before: BpfProgram) -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let refused = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(|e| failed(&e))?;
    let rest: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| failed(&e))?;
    seccompiler::apply_filter(&[before, rest].concat()).map_err(|e| failed(&e))
}

/// Becomes [`USER`], in its group alone, if root is what it was and the machine has that user.
fn become_user() -> rustix::io::Result<()> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some((uid, gid)) = user(&users).filter(|_| geteuid().is_root()) else { return Ok(()) };
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// The ids of [`USER`] in the text of `/etc/passwd`, never root's.
fn user(passwd: &str) -> Option<(Uid, Gid)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(USER))?;
    let mut ids = line.split(':').skip(2).map(str::parse::<u32>);
    let (uid, gid) = (ids.next()?.ok()?, ids.next()?.ok()?);
    (uid != 0 && gid != 0).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn set_limit(resource: Resource, value: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}

/// Forbids every access to files by path, and every TCP bind and connect where the kernel can.
fn close_file_system() -> Result<(), RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_ids_are_read() {
        let ids = |text| user(text).map(|(uid, gid)| (uid.as_raw(), gid.as_raw()));
        assert_eq!(ids("root:x:0:0:::\nvmwp:x:901:902::/:/bin/false\n"), Some((901, 902)));
        for none in ["", "vmwp:x:0:0::/:/bin/false", "vmwp", "vmwp:x:a:b", "vmwp2:x:901:901::", ":::"] {
            assert_eq!(ids(none), None, "{none}");
        }
    }
}
