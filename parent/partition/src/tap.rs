//! TAP devices: Ethernet interfaces of the parent whose other end is a descriptor.
//!
//! The management service makes a device with [`create`], which takes rights over the network; a worker uses its queues,
//! which takes none. Frames are written right from guest memory and read right into it, each behind a virtio-net header
//! (`IFF_VNET_HDR`), which tells of checksums that nobody computed and of segments that nobody made yet.
//!
//! Linux `drivers/net/tun.c`, `include/uapi/linux/if_tun.h`, `Documentation/networking/tuntap.rst`.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use vm_memory::VolatileSlice;

/// Bytes of the header before each frame (`struct virtio_net_hdr`).
pub const HEADER_SIZE: usize = 10;
/// Longest name of an interface.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;
/// Most pieces of a frame.
const MAX_PIECES: usize = 256;

/// What the parent's network stack may leave undone in frames that come up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums. Without them there are no large frames either.
    pub checksum: bool,
    /// Segments of TCP over IPv4.
    pub large_v4: bool,
    /// Segments of TCP over IPv6.
    pub large_v6: bool,
}

/// One queue of a TAP device. The device goes when its last queue is closed.
#[derive(Debug)]
pub struct Queue(OwnedFd);

impl From<OwnedFd> for Queue {
    /// A descriptor that [`create`] made, perhaps in another process. Another one gives errors.
    fn from(descriptor: OwnedFd) -> Queue {
        Queue(descriptor)
    }
}

impl From<Queue> for OwnedFd {
    fn from(queue: Queue) -> OwnedFd {
        queue.0
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a TAP device of a name that is free, with some queues.
///
/// # Errors
/// No rights, no `/dev/net/tun`, a name that is taken or too long.
pub fn create(name: &str, queues: usize) -> io::Result<Vec<Queue>> {
    let request = named_request(name)?;
    (0..queues)
        .map(|index| {
            let descriptor =
                open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
            let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
            if index == 0 {
                flags |= libc::IFF_TUN_EXCL;
            }
            let mut request = request;
            // The flags are 16 bits wide in the request.
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            set_request(&descriptor, libc::TUNSETIFF, &mut request)?;
            Ok(Queue(descriptor))
        })
        .collect()
}

/// A request about the interface of a name.
fn named_request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > MAX_NAME || name.bytes().any(|byte| byte == 0 || byte == b'/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("'{name}' is no name of an interface"),
        ));
    }
    let mut request = empty_request();
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

fn empty_request() -> libc::ifreq {
    // SAFETY: the structure holds numbers, a union of numbers and a pointer that is never followed unless the kernel is
    // asked to; all zeroes is a value of it.
    unsafe { std::mem::zeroed() }
}

fn set_request(descriptor: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: TUNSETIFF and TUNSETQUEUE read and write one `ifreq`, which lives during the call; on any other descriptor
    // than a TAP device's they are unknown and fail.
    let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), number, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn piece(base: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast_mut().cast::<c_void>(), iov_len: len }
}

/// Pieces of one frame.
struct Pieces {
    list: [libc::iovec; MAX_PIECES],
    count: usize,
}

impl Pieces {
    fn new() -> Pieces {
        Pieces { list: [piece(std::ptr::null(), 0); MAX_PIECES], count: 0 }
    }

    fn push(&mut self, entry: libc::iovec) -> io::Result<()> {
        let slot = self.list.get_mut(self.count).ok_or(io::ErrorKind::InvalidInput)?;
        *slot = entry;
        self.count += 1;
        Ok(())
    }
}

impl Queue {
    /// Sends a frame: `head`, which is ours, then `rest`, which may be guest memory.
    ///
    /// # Errors
    /// The frame is lost. [`io::ErrorKind::InvalidInput`] if the header contradicts it, or it has too many pieces.
    pub fn send(
        &self,
        header: &[u8; HEADER_SIZE],
        head: &[u8],
        rest: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        let mut pieces = Pieces::new();
        pieces.push(piece(header.as_ptr(), header.len()))?;
        pieces.push(piece(head.as_ptr(), head.len()))?;
        let guards: Vec<_> = rest.iter().map(|slice| (slice.ptr_guard(), slice.len())).collect();
        for (guard, len) in &guards {
            pieces.push(piece(guard.as_ptr(), *len))?;
        }
        // SAFETY: every piece is memory that lives during the call: ours by its borrow, the guest's by its slice. The kernel
        // only reads, and reads guest memory as it reads all memory that others may change.
        let sent =
            unsafe { libc::writev(self.0.as_raw_fd(), pieces.list.as_ptr(), pieces.count as libc::c_int) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes a frame into memory that may be the guest's. Returns its length, or a greater number than fits if it did not.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none, which is also so while the queue is not attached.
    pub fn receive(&self, header: &mut [u8; HEADER_SIZE], to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        // A frame that is longer than `to` reaches into this byte.
        let mut excess = 0u8;
        let mut pieces = Pieces::new();
        pieces.push(piece(header.as_mut_ptr(), header.len()))?;
        let guards: Vec<_> = to.iter().map(|slice| (slice.ptr_guard_mut(), slice.len())).collect();
        for (guard, len) in &guards {
            pieces.push(piece(guard.as_ptr(), *len))?;
        }
        pieces.push(piece(std::ptr::from_mut(&mut excess), 1))?;
        // SAFETY: every piece is memory that may be written and lives during the call: ours by its mutable borrow, the
        // guest's by its slice, which stands for memory that anybody may write at any time.
        let received =
            unsafe { libc::readv(self.0.as_raw_fd(), pieces.list.as_ptr(), pieces.count as libc::c_int) };
        match usize::try_from(received) {
            Ok(len) => Ok(len.saturating_sub(HEADER_SIZE)),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBADFD) => Err(io::ErrorKind::WouldBlock.into()),
                error => Err(error),
            },
        }
    }

    /// Says what frames that come up may leave undone, for all queues of the device.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.checksum && offloads.large_v4, libc::TUN_F_TSO4),
            (offloads.checksum && offloads.large_v6, libc::TUN_F_TSO6),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
        // SAFETY: the argument of TUNSETOFFLOAD is a number.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Opens or closes the queue for frames that come up. What waits in a queue that is closed is dropped. It is no error if it
    /// is so already.
    pub fn attach(&self, attached: bool) -> io::Result<()> {
        let mut request = empty_request();
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        match set_request(&self.0, libc::TUNSETQUEUE, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }
}
