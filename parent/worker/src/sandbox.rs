//! Takes away from the worker's process what running a guest does not need.
//!
//! Applied once everything is open: the hypervisor, guest memory, kernel, initrd, sockets. From then on no file can be
//! opened, no program started, no other process touched; a guest that took over the worker would hold its own memory
//! and its own partition, which it had before.

use std::collections::BTreeMap;

pub use parterre_sandbox::SandboxError;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Most open files: processors, console and control connections, VMBus channels with what their devices wait for.
const MAX_FILES: u64 = 4096;

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
    // Whoever takes part in a channel's turns: between SCHED_OTHER and SCHED_BATCH, for which no right is needed.
    libc::SYS_sched_setscheduler,
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
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
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
/// Giving back blocks of a block device.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// Other requests that a worker makes: non-blocking mode, the attributes of the terminal that it gives back, blocks of disks,
/// and what network adapters tell their TAP devices.
const REQUESTS: [libc::Ioctl; 14] = [
    BLKDISCARD,
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
    parterre_sandbox::give_up_rights(MAX_FILES)?;
    let failed = |error: seccompiler::BackendError| SandboxError::Seccomp(error.to_string());
    let mut rules: BTreeMap<i64, Vec<_>> = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, ioctl_rules().map_err(failed)?);
    rules.insert(libc::SYS_tgkill, own_threads().map_err(failed)?);
    parterre_sandbox::allow_only(rules, running_first())
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
