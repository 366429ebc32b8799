//! What can go wrong below the worker, said so that a person can act on it.

/// An error of the partition layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/mshv` is not there.
    #[error(
        "/dev/mshv does not exist: this system is not the parent partition of a hypervisor, or its kernel has no \
         CONFIG_MSHV_ROOT; start the machine through parterre.efi (see `parterre host check`)"
    )]
    NoHypervisor,
    /// `/dev/mshv` is there but may not be opened.
    #[error("cannot open /dev/mshv: {0}; run as root or as a member of the group that owns the device")]
    Open(std::io::Error),
    /// The hypervisor or the kernel refused something.
    #[error("{what}: {source}")]
    Call {
        /// What was being done, to which object.
        what: String,
        /// The kernel's or the hypervisor's answer.
        source: mshv_ioctls::MshvError,
    },
    /// The host could not give memory for the guest.
    #[error("cannot reserve {bytes} bytes of memory for the guest: {source}; use less memory or add swap")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The memory layout asked for is not possible.
    #[error("guest memory of {0} bytes is not possible: give a multiple of 2 MiB, at least 16 MiB")]
    MemorySize(u64),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A signal took the thread out of the guest.
    #[error("interrupted by a signal")]
    Interrupted,
    /// A message from the hypervisor that is shorter than its type says.
    #[error(
        "the hypervisor sent a message of type {kind:#x} with {size} bytes of payload, {expected} are needed"
    )]
    ShortMessage {
        /// `HV_MESSAGE_TYPE`.
        kind: u32,
        /// Bytes that came.
        size: usize,
        /// Bytes that the type needs.
        expected: usize,
    },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an answer of the mshv crates with what was being done.
    pub(crate) fn call(what: impl Into<String>) -> impl FnOnce(mshv_ioctls::MshvError) -> Error {
        let what = what.into();
        move |source| Error::Call { what, source }
    }
}
