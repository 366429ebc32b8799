//! Takes away from the worker's process what running a guest does not need.
//!
//! Applied once everything is open: the hypervisor, guest memory, kernel, initrd, sockets. From then on no file can be
//! opened, no program started, no other process touched; a guest that took over the worker would hold its own memory
//! and its own partition, which it had before.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
};
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Most open files: processors, console and control connections, VMBus channels with what their devices wait for.
const MAX_FILES: u64 = 4096;

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

/// System calls that a running worker makes.
const SYSTEM_CALLS: &[libc::c_long] = &[
    // Guest memory. The run loop's ioctl has rules of its own.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    // Threads.
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Files that are open, sockets, waiting.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fstatfs,
    // Of rings that are there already, which take only file I/O.
    libc::SYS_io_uring_enter,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

/// The magic number of `/dev/mshv`'s requests, where it stands in a request.
const MSHV_MAGIC: u64 = 0xB8 << 8;
const MAGIC_MASK: u64 = 0xFF << 8;
/// Size of a block device's logical block (`BLKSSZGET`), and of its physical one (`BLKPBSZGET`).
const BLOCK_SIZE: [libc::Ioctl; 2] = [0x1268, 0x127B];
/// Other requests that a worker makes: non-blocking mode, the attributes of the terminal that it gives back, blocks of disks,
/// and what network adapters tell their TAP devices.
const REQUESTS: [libc::Ioctl; 13] = [
    libc::TUNSETOFFLOAD,
    libc::TUNSETQUEUE,
    BLOCK_SIZE[0],
    BLOCK_SIZE[1],
    libc::FIONBIO,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
];

/// Puts the sandbox up, for this thread and all that it starts.
pub fn enter() -> Result<(), SandboxError> {
    set_limit(Resource::Nofile, MAX_FILES)?;
    set_limit(Resource::Core, 0)?;
    become_user()?;
    set_no_new_privs(true)?;
    close_file_system()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    restrict_system_calls()
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

/// Everything that is not in the list fails with "operation not permitted".
fn restrict_system_calls() -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let mut rules: BTreeMap<i64, Vec<_>> = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, ioctl_rules().map_err(|e| failed(&e))?);
    rules.insert(libc::SYS_tgkill, own_threads().map_err(|e| failed(&e))?);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(|e| failed(&e))?;
    let rest: seccompiler::BpfProgram =
        filter.try_into().map_err(|e: seccompiler::BackendError| failed(&e))?;
    let program = [running_first(), rest].concat();
    seccompiler::apply_filter(&program).map_err(|e| failed(&e))
}

/// Lets the request pass at once with which a virtual processor runs, and leaves everything else to the program that follows.
/// That allows it, too, but looks through all system calls first; this is part of every exit that the worker handles.
fn running_first() -> seccompiler::BpfProgram {
    // `struct seccomp_data`: the call, the processor's architecture, the lower half of the second argument.
    const CALL: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const REQUEST: u32 = 24;
    const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
    // `MSHV_RUN_VP` of `<linux/mshv.h>`: it reads 256 bytes.
    const MSHV_RUN_VP: u32 = 2 << 30 | 256 << 16 | MSHV_MAGIC as u32;
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0);
    let unless = |value, skip| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    vec![
        load(CALL),
        unless(libc::SYS_ioctl as u32, 5),
        load(REQUEST),
        unless(MSHV_RUN_VP, 3),
        load(ARCHITECTURE),
        unless(AUDIT_ARCH_X86_64, 1),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ]
}

/// An instruction of a filter; `skip` is how many are passed over if a comparison does not hold.
fn instruction(code: u32, k: u32, skip: u8) -> seccompiler::sock_filter {
    seccompiler::sock_filter { code: code as u16, jt: 0, jf: skip, k }
}

/// Signals, to threads of this process only: another worker may be the same user's.
fn own_threads() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let process = std::process::id().into();
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, process)?;
    Ok(vec![SeccompRule::new(vec![own])?])
}

/// Requests of the hypervisor's driver, and those of [`REQUESTS`].
fn ioctl_rules() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, operator, value)?])
    };
    let mut rules = vec![rule(SeccompCmpOp::MaskedEq(MAGIC_MASK), MSHV_MAGIC)?];
    for request in REQUESTS {
        rules.push(rule(SeccompCmpOp::Eq, request)?);
    }
    Ok(rules)
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
