use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use vm_memory::Bytes;

use super::*;

/// A file in the directory of the test's own, already without a name.
fn file(flags: i32) -> Option<(Arc<File>, Arc<File>)> {
    let path = std::env::temp_dir().join(format!(
        "parterre-io-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let plain = options.open(&path).unwrap();
    let other = options.custom_flags(flags).open(&path);
    std::fs::remove_file(&path).unwrap();
    Some((Arc::new(plain), Arc::new(other.ok()?)))
}

fn rig() -> Option<(GuestMemory, IoRing)> {
    let memory = GuestMemory::new(16 << 20).unwrap();
    // A machine may forbid io_uring; then there is nothing to test.
    let ring = IoRing::new(&memory, 8).ok()?;
    Some((memory, ring))
}

fn request<'a>(file: &'a Arc<File>, tag: u32, operation: IoOperation, offset: u64) -> IoRequest<'a> {
    IoRequest { tag, file, spare: None, operation, offset }
}

/// Runs what was pushed to its end.
fn run(ring: &mut IoRing, count: usize) -> Vec<IoCompletion> {
    let mut done = Vec::new();
    ring.submit();
    while done.len() < count {
        let source = ring.source();
        let mut fds = [rustix::event::PollFd::new(&source, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&second)), Ok(1), "no end of a request came");
        ring.completions(|completion| done.push(completion));
    }
    done.sort_by_key(|completion| completion.tag);
    done
}

const WRITE: IoOperation = IoOperation::Write { durable: false };

#[test]
fn data_goes_from_and_to_scattered_memory() {
    let Some((memory, mut ring)) = rig() else { return };
    let (plain, file) = file(0).unwrap();
    let ram = memory.regions();
    ram.write_slice(b"one piece, ", GuestAddress(0x1FF8)).unwrap();
    ram.write_slice(b"another", GuestAddress(0x9000)).unwrap();
    assert!(ring.push(request(&file, 1, WRITE, 100), [(0x1FF8, 11), (0x9000, 7)].into_iter()));
    assert!(run(&mut ring, 1)[0].result.is_ok());
    let mut found = [0; 18];
    plain.read_exact_at(&mut found, 100).unwrap();
    assert_eq!(&found, b"one piece, another");
    assert!(ring.push(request(&file, 2, IoOperation::Read, 104), [(0x20, 5), (0x40, 9)].into_iter()));
    assert!(ring.push(request(&file, 3, IoOperation::Sync, 0), std::iter::empty()));
    let done = run(&mut ring, 2);
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    let mut bytes = [0; 9];
    ram.read_slice(&mut bytes, GuestAddress(0x40)).unwrap();
    assert_eq!(&bytes, b", another");
}

#[test]
fn more_requests_than_the_queue_has_places() {
    let Some((memory, mut ring)) = rig() else { return };
    let (plain, file) = file(0).unwrap();
    for tag in 0..200u32 {
        memory.regions().write_obj(tag, GuestAddress(u64::from(tag) * 8)).unwrap();
        let operation = IoOperation::Write { durable: tag % 50 == 0 };
        assert!(
            ring.push(
                request(&file, tag, operation, u64::from(tag) * 4),
                [(u64::from(tag) * 8, 4)].into_iter()
            )
        );
    }
    let done = run(&mut ring, 200);
    assert!(done.iter().zip(0..).all(|(done, tag)| done.tag == tag && done.result.is_ok()));
    let mut found = vec![0; 800];
    plain.read_exact_at(&mut found, 0).unwrap();
    let numbers: Vec<u32> =
        found.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(numbers, (0..200).collect::<Vec<u32>>());
}

#[test]
fn errors_are_told_and_the_ring_goes_on() {
    let Some((_memory, mut ring)) = rig() else { return };
    let (_, file) = file(0).unwrap();
    let readable = Arc::new(File::open("/proc/self/exe").unwrap());
    // Behind the end; a file that is not open for writing; a directory.
    let directory = Arc::new(File::open("/").unwrap());
    assert!(ring.push(request(&file, 0, IoOperation::Read, 0), [(0, 512)].into_iter()));
    assert!(ring.push(request(&readable, 1, WRITE, 0), [(0, 512)].into_iter()));
    assert!(ring.push(request(&directory, 2, IoOperation::Read, 0), [(0, 512)].into_iter()));
    assert!(ring.push(request(&file, 3, WRITE, 0), [(0, 512)].into_iter()));
    let done = run(&mut ring, 4);
    let codes: Vec<_> =
        done.iter().map(|done| done.result.as_ref().map_err(io::Error::raw_os_error)).collect();
    assert_eq!(codes, [Err(None), Err(Some(libc::EBADF)), Err(Some(libc::EISDIR)), Ok(&())]);
    // Memory that the guest does not have is refused at once, in whatever place.
    for bad in [(16 << 20, 1), (u64::MAX, 2), (0, 17 << 20), ((16 << 20) - 1, 2)] {
        assert!(!ring.push(request(&file, 9, WRITE, 0), [(0, 8), bad].into_iter()));
    }
    ring.submit();
    ring.completions(|completion| panic!("{completion:?}"));
}

#[test]
fn a_request_that_is_not_aligned_takes_the_other_way() {
    let Some((memory, mut ring)) = rig() else { return };
    // Not every file system has direct I/O.
    let Some((plain, direct)) = file(libc::O_DIRECT) else { return };
    memory.regions().write_slice(b"seven", GuestAddress(3)).unwrap();
    let request = IoRequest { tag: 1, file: &direct, spare: Some(&plain), operation: WRITE, offset: 1 };
    assert!(ring.push(request, [(3, 5)].into_iter()));
    assert!(run(&mut ring, 1)[0].result.is_ok());
    let mut found = [0; 5];
    plain.read_exact_at(&mut found, 1).unwrap();
    assert_eq!(&found, b"seven");
}

proptest::proptest! {
    #[test]
    fn a_request_that_is_done_in_parts_goes_on_where_it_stopped(
        lengths in proptest::collection::vec(1usize..5000, 1..20),
        parts in proptest::collection::vec(1i32..3000, 0..40),
    ) {
        let (_, file) = file(0).unwrap();
        let total: usize = lengths.iter().sum();
        // Memory that is only counted: piece N begins at N MiB.
        let vectors = lengths.iter().enumerate().map(|(number, len)| {
            libc::iovec { iov_base: std::ptr::without_provenance_mut(number << 20), iov_len: *len }
        });
        let vectors = vectors.collect();
        let operation = IoOperation::Read;
        let mut slot = Slot { tag: 0, file, spare: None, operation, offset: 7, vectors, left: total };
        let mut done = 0;
        for part in parts {
            let ended = slot.advance(part);
            done = (done + part as usize).min(total);
            proptest::prop_assert_eq!(ended.is_some(), done == total);
            if ended.is_some() {
                return Ok(());
            }
            let rest: usize = slot.vectors.iter().map(|vector| vector.iov_len).sum();
            proptest::prop_assert_eq!((slot.offset, rest, slot.left), (7 + done as u64, total - done, total - done));
            let (mut before, mut number) = (0, 0);
            while before + lengths[number] <= done {
                before += lengths[number];
                number += 1;
            }
            proptest::prop_assert_eq!(slot.vectors[0].iov_base.addr(), (number << 20) + done - before);
        }
        // Interrupted: the same once more; nothing at all: the file's end.
        proptest::prop_assert!(slot.advance(-libc::EINTR).is_none());
        proptest::prop_assert!(slot.advance(0).is_some_and(|result| result.is_err()));
    }
}

#[test]
fn what_is_there_is_moved_at_once() {
    let memory = GuestMemory::new(16 << 20).unwrap();
    let mut immediate = Immediate::new(memory.regions().clone());
    let (plain, _) = file(0).unwrap();
    let ram = memory.regions();
    ram.write_slice(b"one piece, ", GuestAddress(0x1FF8)).unwrap();
    ram.write_slice(b"another", GuestAddress(0x9000)).unwrap();
    let mut go = |operation, offset, pieces: &[(u64, u64)], patience| {
        immediate.transfer(&plain, operation, offset, pieces.iter().copied(), patience)
    };
    assert!(go(WRITE, 100, &[(0x1FF8, 11), (0x9000, 7)], Patience::File));
    assert!(go(IoOperation::Read, 104, &[(0x20, 5), (0x40, 9)], Patience::File));
    let mut bytes = [0; 9];
    ram.read_slice(&mut bytes, GuestAddress(0x40)).unwrap();
    assert_eq!(&bytes, b", another");
    // Not all file systems can tell whether they would wait; one that can has these bytes in its cache.
    if go(IoOperation::Read, 100, &[(0x60, 9)], Patience::None) {
        ram.read_slice(&mut bytes, GuestAddress(0x60)).unwrap();
        assert_eq!(&bytes, b"one piece");
    }
    // Behind the end, over it, not guest memory, more than a file may hold, and what is to be waited for.
    assert!(!go(IoOperation::Read, 500, &[(0, 1)], Patience::File));
    assert!(!go(IoOperation::Read, 117, &[(0, 2)], Patience::File));
    for bad in [(16 << 20, 1), (u64::MAX, 2), (0, 17 << 20)] {
        assert!(!go(WRITE, 0, &[(0, 1), bad], Patience::File));
    }
    assert!(!go(WRITE, u64::MAX, &[(0, 1)], Patience::File));
    assert!(!go(IoOperation::Sync, 0, &[], Patience::File));
    assert!(!go(IoOperation::Write { durable: true }, 0, &[(0, 1)], Patience::File));
    assert_eq!(plain.metadata().unwrap().len(), 118);
}

#[test]
fn what_the_ring_is_not_for_is_refused() {
    let Some((_memory, mut ring)) = rig() else { return };
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build();
    // SAFETY: the path is a constant.
    unsafe { ring.ring.submission().push(&entry) }.unwrap();
    ring.ring.submit_and_wait(1).unwrap();
    let answer = ring.ring.completion().next().unwrap();
    assert_eq!(answer.result(), -libc::EACCES);
}

#[test]
fn dropping_waits_for_the_kernel() {
    let Some((memory, mut ring)) = rig() else { return };
    let (plain, file) = file(0).unwrap();
    for tag in 0..64 {
        assert!(ring.push(request(&file, tag, WRITE, u64::from(tag) << 16), [(0, 1 << 16)].into_iter()));
    }
    drop(ring);
    let mut file = &*plain;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 64 << 16);
    drop(memory);
}
