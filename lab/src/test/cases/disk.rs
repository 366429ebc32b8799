//! Disks of virtual machines: SCSI over VMBus, by the guest's own driver.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{journaled_disk, succeed, succeed_in};
use crate::boxes::BoxSpec;
use crate::cache::RunDir;
use crate::guest;
use crate::media::Wish;
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting, USUAL};

const OLDEST: Setting = Setting { guest: "oldest", ..USUAL };
pub(super) const BOOT: Duration = Duration::from_secs(180);
const PROMPT: &str = "guest:~# ";

pub const CASES: &[Case] = &[
    Case { name: "vm::disk-written-and-verified", setting: USUAL, check: Check::Shared(verified) },
    Case { name: "vm::disk-of-the-oldest-guest", setting: OLDEST, check: Check::Shared(verified) },
    Case { name: "vm::disk-of-a-qcow2-image", setting: USUAL, check: Check::Free(qcow2) },
    Case { name: "vm::disk-many-on-two-controllers", setting: USUAL, check: Check::Shared(many) },
    Case { name: "vm::disk-comes-and-goes", setting: USUAL, check: Check::Shared(comes_and_goes) },
    Case { name: "vm::disk-read-only-and-dvd", setting: USUAL, check: Check::Shared(read_only) },
    Case { name: "vm::disk-discs-are-changed", setting: USUAL, check: Check::Shared(changed_disc) },
    Case { name: "vm::disk-grows", setting: USUAL, check: Check::Shared(grows) },
    Case { name: "vm::disk-of-a-block-device", setting: USUAL, check: Check::Shared(block_device) },
    Case { name: "vm::disk-full-parent", setting: USUAL, check: Check::Shared(full_parent) },
    Case { name: "vm::disk-bad-sectors", setting: USUAL, check: Check::Free(bad_sectors) },
    Case { name: "vm::disk-survives-a-power-cut", setting: PLAIN, check: Check::Free(power_cut) },
];

/// Waits in the guest until a command succeeds.
pub(super) fn until(command: &str) -> String {
    format!("for i in $(seq 100); do {command} && break; sleep 0.2; done")
}

/// Defines a VM with these options of `vm disk add`, one for each disk, and starts it.
pub(super) fn start(session: &mut Session, name: &str, disks: &[&str]) -> Result<()> {
    session.shell(&format!("parterre vm stop {name} --force; parterre vm delete {name}"), BOOT)?;
    let create = format!(
        "parterre vm create {name} --memory 256M --processors 2 --kernel /lab/guest-kernel \
         --initrd /lab/guest-initrd --cmdline 'console=ttyS0 quiet'"
    );
    succeed(session, &create)?;
    for disk in disks {
        succeed(session, &format!("parterre vm disk add {name} {disk}"))?;
    }
    succeed(session, &format!("parterre vm start {name}")).map(drop)
}

pub(super) fn remove(session: &mut Session, name: &str) -> Result<()> {
    succeed(session, &format!("parterre vm stop {name} --force; parterre vm delete {name}")).map(drop)
}

/// Runs a line in the guest; returns what it printed between two marks. The marks are new each time: a console shows
/// what was said before.
pub(super) fn in_guest(session: &mut Session, name: &str, line: &str) -> Result<String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // The echo of the line holds the marks in two parts, its output in one.
    let whole = format!("echo; echo be''gin-{number}-; {line}; echo fin''ish-{number}-\n");
    let (begin, finish) = (format!("begin-{number}-"), format!("finish-{number}-"));
    let steps = [("", "\n"), (PROMPT, whole.as_str()), (finish.as_str(), "")];
    let run = session.converse(&format!("parterre vm console {name}"), &steps, BOOT)?;
    ensure!(
        run.steps == steps.len(),
        "The guest did not come to the end of `{line}` ({:?}). It said:\n{}{}",
        run.outcome,
        run.stdout,
        run.stderr
    );
    let said = run.stdout.rsplit_once(&begin).context("The console lost the beginning of an answer.")?.1;
    Ok(said.split(&finish).next().unwrap_or_default().trim().replace('\r', ""))
}

/// A command that prints a hash of the first MiB of what another prints.
fn hash(of: &str) -> String {
    format!("{of} | head -c 1048576 | sha256sum | cut -c1-64")
}

fn verified(session: &mut Session) -> Result<()> {
    succeed(session, "truncate -s 64M /tmp/verified.img")?;
    start(session, "disk", &["/tmp/verified.img --serial LAB-4711"])?;
    let wait = until("[ -b /dev/sda ]");
    let told = in_guest(
        session,
        "disk",
        &format!("{wait}; cat /sys/block/sda/size /sys/block/sda/device/vpd_pg80"),
    )?;
    ensure!(told.starts_with("131072") && told.contains("LAB-4711"), "The guest says of the disk: {told}");
    let wrote = in_guest(
        session,
        "disk",
        &format!(
            "dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null; dd if=/tmp/data of=/dev/sda bs=4k seek=256 conv=fsync \
             2>/dev/null; blkdiscard -o 8388608 -l 1048576 /dev/sda 2>/dev/null; {}",
            hash("cat /tmp/data")
        ),
    )?;
    let found = succeed(session, &hash("tail -c +1048577 /tmp/verified.img"))?;
    ensure!(wrote.len() == 64 && wrote == found.trim(), "The guest wrote {wrote}, the file holds {found}");
    let again = in_guest(
        session,
        "disk",
        &format!(
            "echo 3 >/proc/sys/vm/drop_caches; {}",
            hash("dd if=/dev/sda bs=1M skip=1 count=1 2>/dev/null")
        ),
    )?;
    ensure!(again == wrote, "The guest reads {again} after it wrote {wrote}.");
    // The same name after a restart.
    let name = in_guest(session, "disk", "cat /sys/block/sda/device/wwid")?;
    succeed(session, "parterre vm stop disk --force && parterre vm start disk")?;
    let same = in_guest(session, "disk", &format!("{wait}; cat /sys/block/sda/device/wwid"))?;
    ensure!(name.ends_with("LAB-4711") && name == same, "The disk was {name} and is {same}.");
    remove(session, "disk")
}

/// A qcow2 image in a guest: written, flushed, discarded, and whole for QEMU's own tool, also in a copy that is taken right after the
/// guest's flush, while the image is open.
fn qcow2(mut wish: Wish) -> Result<()> {
    wish.extras.packages.push("qemu-utils".into());
    let mut session = Session::start(&BoxSpec { memory: 3072, ..BoxSpec::default() }, &wish, BOOT)?;
    let session = &mut session;
    succeed(session, "qemu-img create -q -f qcow2 /tmp/image.qcow2 64M")?;
    start(session, "image", &["/tmp/image.qcow2 --format qcow2"])?;
    let line = format!(
        "{}; cat /sys/block/sda/size; dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null; \
         dd if=/tmp/data of=/dev/sda bs=64k seek=256 2>/dev/null; dd if=/tmp/data of=/dev/sda bs=64k conv=fsync 2>/dev/null; \
         blkdiscard -o 16777216 -l 1048576 /dev/sda; echo 3 >/proc/sys/vm/drop_caches; \
         {}; {}; {}",
        until("[ -b /dev/sda ]"),
        hash("cat /tmp/data"),
        hash("cat /dev/sda"),
        hash("dd if=/dev/sda bs=1M skip=16 count=1 2>/dev/null"),
    );
    let said = in_guest(session, "image", &line)?;
    let [size, wrote, read, discarded] = said.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("The guest says of its image: {said}")
    };
    let zeroes = succeed(session, &hash("cat /dev/zero"))?;
    ensure!(
        size == "131072" && wrote == read && discarded == zeroes.trim(),
        "The guest wrote {wrote}, read {read}, and has {discarded} where it discarded; {size} sectors."
    );
    // What was flushed is in the image while the guest still has it open.
    succeed(session, "cp /tmp/image.qcow2 /tmp/copy.qcow2")?;
    remove(session, "image")?;
    for file in ["copy", "image"] {
        let kept = succeed(
            session,
            &format!(
                "qemu-img check -q /tmp/{file}.qcow2; [ $? = 0 -o $? = 3 ] && qemu-img convert -O raw /tmp/{file}.qcow2 /tmp/{file}.raw && {}",
                hash(&format!("cat /tmp/{file}.raw"))
            ),
        )?;
        ensure!(kept.trim() == wrote, "The guest wrote {wrote}; QEMU finds {kept} in the {file}.");
    }
    Ok(())
}

/// Disks at the edges of two controllers, each with its name.
fn many(session: &mut Session) -> Result<()> {
    let places = [(0, 0), (0, 1), (0, 2), (0, 31), (0, 63), (1, 0), (1, 7), (1, 63)];
    let mut disks = Vec::new();
    for (controller, lun) in places {
        let file = format!("/tmp/many-{controller}-{lun}.img");
        succeed(
            session,
            &format!("truncate -s 2M {file} && echo disk-{controller}-{lun}- | dd of={file} conv=notrunc"),
        )?;
        disks.push(format!("{file} --controller {controller} --lun {lun} --serial N-{controller}-{lun}"));
    }
    start(session, "many", &disks.iter().map(String::as_str).collect::<Vec<_>>())?;
    let wait = until(&format!("[ $(ls -d /sys/block/sd* | wc -l) = {} ]", places.len()));
    let each =
        "for d in /sys/block/sd*; do n=${d##*/}; echo $(head -c 9 /dev/$n) $(cat $d/device/wwid); done";
    let said = in_guest(session, "many", &format!("{wait}; {each}"))?;
    for (controller, lun) in places {
        let line = said.lines().find(|line| line.starts_with(&format!("disk-{controller}-{lun}")));
        let named = line.is_some_and(|line| line.ends_with(&format!("N-{controller}-{lun}")));
        ensure!(
            named,
            "The guest has no disk of place {lun} of controller {controller}, or with another name:\n{said}"
        );
    }
    remove(session, "many")?;
    succeed(session, "rm /tmp/many-*").map(drop)
}

fn comes_and_goes(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "truncate -s 8M /tmp/first.img /tmp/second.img; echo here | dd of=/tmp/second.img conv=notrunc",
    )?;
    start(session, "plug", &["/tmp/first.img"])?;
    in_guest(session, "plug", &until("[ -b /dev/sda ]"))?;
    succeed(session, "parterre vm disk add plug /tmp/second.img --lun 7")?;
    let read = in_guest(session, "plug", &format!("{}; head -c 4 /dev/sdb", until("[ -b /dev/sdb ]")))?;
    ensure!(read == "here", "The guest reads '{read}' from the disk that was added.");
    let twice = session.shell("parterre vm disk add plug /tmp/second.img", BOOT)?;
    ensure!(twice.outcome != Outcome::Exit(0), "A disk was added twice.");
    succeed(session, "parterre vm disk remove plug --lun 7")?;
    let gone = in_guest(session, "plug", &format!("{}; ls /sys/block", until("[ ! -e /sys/block/sdb ]")))?;
    ensure!(!gone.contains("sdb"), "The disk that was removed is still there: {gone}");
    // Nobody holds its file any more.
    succeed(session, "! ls -l /proc/$(pidof vmwp)/fd | grep second.img")?;
    remove(session, "plug")
}

fn read_only(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "for i in $(seq 4096); do printf '%07d\\n' $i; done >/tmp/disc.iso; cp /tmp/disc.iso /tmp/plate.img",
    )?;
    start(session, "media", &["/tmp/disc.iso --dvd", "/tmp/plate.img --read-only"])?;
    let said = in_guest(
        session,
        "media",
        &format!(
            "{}; {}; cat /sys/block/sda/ro; echo x 2>/dev/null >/dev/sda || echo refused; dd if=/dev/sr0 bs=2048 skip=1 count=1 \
             2>/dev/null | head -c 7",
            until("[ -b /dev/sda ]"),
            until("[ -b /dev/sr0 ]")
        ),
    )?;
    ensure!(said == "1\nrefused\n0000257", "The guest says of its read-only media: {said}");
    remove(session, "media")
}

/// A disc is put into a drive that was empty, another one after it, and taken out, also by force from a guest that keeps it.
fn changed_disc(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "for d in one two; do { echo disc-$d; head -c 1048571 /dev/zero; } >/tmp/$d.iso; done; head -c 524288 /dev/zero >>/tmp/two.iso",
    )?;
    start(session, "drive", &["--dvd"])?;
    let look = "head -c 8 /dev/sr0 2>&1; cat /sys/block/sr0/size";
    let said = in_guest(session, "drive", &format!("{}; {look}", until("[ -b /dev/sr0 ]")))?;
    ensure!(said.contains("No medium"), "The guest says of its empty drive: {said}");
    for (disc, size) in [("one", "2048"), ("two", "3072")] {
        succeed(session, &format!("parterre vm disk insert drive /tmp/{disc}.iso"))?;
        let said = in_guest(session, "drive", look)?;
        ensure!(said == format!("disc-{disc}{size}"), "The guest says of disc {disc}: {said}");
    }
    // A program of the guest's has the drive open, and so keeps it locked.
    in_guest(session, "drive", "exec 9</dev/sr0")?;
    let refused = session.shell("parterre vm disk eject drive 2>&1", BOOT)?;
    let words = &refused.stdout;
    ensure!(refused.outcome != Outcome::Exit(0) && words.contains("locked"), "Eject says: {words}");
    succeed(session, "parterre vm disk eject drive --force")?;
    let said = in_guest(session, "drive", &format!("exec 9<&-; {look}"))?;
    ensure!(said.contains("No medium"), "The guest says after the disc was taken out: {said}");
    succeed(session, "! ls -l /proc/$(pidof vmwp)/fd | grep iso")?;
    // The definition has what was last put in.
    succeed(
        session,
        "parterre vm disk insert drive /tmp/one.iso && parterre vm stop drive --force && parterre vm start drive",
    )?;
    let said = in_guest(session, "drive", &format!("{}; {look}", until("[ -b /dev/sr0 ]")))?;
    ensure!(said == "disc-one2048", "The guest says of its disc after it has started anew: {said}");
    // The guest opens the tray itself, when the last who reads lets go; and that holds for its next start too.
    let said = in_guest(
        session,
        "drive",
        "cd /proc/sys/dev/cdrom; echo 1 >autoeject; head -c 8 /dev/sr0; echo 0 >autoeject; cd /; head -c 8 /dev/sr0 2>&1",
    )?;
    ensure!(said.contains("No medium"), "The guest says after it has ejected its disc: {said}");
    let shown = "parterre vm disk list drive --json | tr -d ' \\n' | grep -v one.iso";
    succeed(session, &format!("for i in $(seq 20); do {shown} && break; sleep 0.5; done; {shown}"))?;
    succeed(session, "parterre vm stop drive --force && parterre vm start drive")?;
    let said = in_guest(session, "drive", &format!("{}; {look}", until("[ -b /dev/sr0 ]")))?;
    ensure!(said.contains("No medium"), "The guest says of its drive after it has started anew: {said}");
    remove(session, "drive")
}

/// Disks grow, of files and of images, while the guest runs and while it is off.
fn grows(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "truncate -s 8M /tmp/grow.img; echo kept | dd of=/tmp/grow.img conv=notrunc 2>/dev/null",
    )?;
    start(session, "grow", &["/tmp/grow.img"])?;
    in_guest(session, "grow", &until("[ -b /dev/sda ]"))?;
    let smaller = session.shell("parterre vm disk resize grow 4M --lun 0 2>&1", BOOT)?;
    ensure!(smaller.stdout.contains("only be grown"), "A smaller size gives: {}", smaller.stdout);
    succeed(session, "parterre vm disk resize grow 64M --lun 0")?;
    let told = until("[ $(cat /sys/block/sda/size) = 131072 ]");
    let line = format!(
        "{told}; cat /sys/block/sda/size; head -c 4 /dev/sda; echo end | dd of=/dev/sda bs=512 seek=131071 conv=fsync 2>/dev/null"
    );
    let said = in_guest(session, "grow", &line)?;
    ensure!(said == "131072\nkept", "The guest says of its disk that has grown: {said}");
    let end = succeed(session, "tail -c 512 /tmp/grow.img | head -c 3")?;
    ensure!(end == "end", "The file ends with {end:?}.");
    // Somebody else's growth, and growth while it is off.
    succeed(session, "truncate -s 72M /tmp/grow.img && parterre vm disk resize grow --lun 0")?;
    let said = in_guest(session, "grow", &until("[ $(cat /sys/block/sda/size) = 147456 ] && echo told"))?;
    ensure!(said == "told", "The guest was not told that its disk has grown: {said}");
    succeed(session, "parterre vm stop grow --force && parterre vm disk resize grow 80M --lun 0")?;
    succeed(session, "parterre vm start grow")?;
    let said = in_guest(session, "grow", &format!("{}; cat /sys/block/sda/size", until("[ -b /dev/sda ]")))?;
    ensure!(said == "163840", "The guest says of its disk that grew while it was off: {said}");
    remove(session, "grow")
}

/// A block device, added while the guest runs: what the guest discards is given back, and the device's growth is told.
fn block_device(session: &mut Session) -> Result<()> {
    succeed(session, "truncate -s 32M /tmp/below.img && losetup /dev/loop7 /tmp/below.img")?;
    start(session, "block", &[])?;
    in_guest(session, "block", "true")?;
    succeed(session, "parterre vm disk add block /dev/loop7")?;
    let wrote = in_guest(
        session,
        "block",
        &format!(
            "{}; cat /sys/block/sda/queue/discard_max_bytes; dd if=/dev/urandom of=/dev/sda bs=1M count=32 conv=fsync 2>/dev/null; {}",
            until("[ -b /dev/sda ]"),
            hash("cat /dev/sda")
        ),
    )?;
    ensure!(!wrote.starts_with("0\n"), "The guest says that the device takes no discards: {wrote}");
    let used = "blockdev --flushbufs /dev/loop7; sync; du -k /tmp/below.img | cut -f1";
    let before: u64 = succeed(session, used)?.trim().parse()?;
    in_guest(session, "block", "blkdiscard -o 8388608 -l 16777216 /dev/sda; sync")?;
    let after: u64 = succeed(session, used)?.trim().parse()?;
    ensure!(
        before >= 32 << 10 && after <= 17 << 10,
        "Of the device's file, {before} KiB were used, and {after} KiB after the guest discarded half of it."
    );
    let kept = succeed(session, &hash("cat /dev/loop7"))?;
    ensure!(wrote.ends_with(kept.trim()), "What was not discarded was {wrote} and is {kept}.");
    let refused = session.shell("parterre vm disk resize block 64M --lun 0 2>&1", BOOT)?;
    ensure!(refused.stdout.contains("say no size"), "A size for a block device gives: {}", refused.stdout);
    succeed(session, "truncate -s 48M /tmp/below.img && losetup -c /dev/loop7")?;
    succeed(session, "parterre vm disk resize block --lun 0")?;
    let said = in_guest(session, "block", &until("[ $(cat /sys/block/sda/size) = 98304 ] && echo told"))?;
    ensure!(said == "told", "The guest was not told that its device has grown: {said}");
    remove(session, "block")?;
    succeed(session, "losetup -d /dev/loop7").map(drop)
}

/// The parent's file system runs full: the guest hears of it, and all goes on when there is room again.
fn full_parent(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "mkdir -p /tmp/small && mount -t tmpfs -o size=8m small /tmp/small && truncate -s 64M /tmp/small/disk.img",
    )?;
    start(session, "full", &["/tmp/small/disk.img"])?;
    let write = "dd if=/dev/zero of=/dev/sda bs=1M count=32 oflag=direct 2>&1 | tr '\\n' ' '";
    let said = in_guest(session, "full", &format!("{}; {write}", until("[ -b /dev/sda ]")))?;
    ensure!(said.contains("No space left"), "The guest says, while the parent has no room: {said}");
    succeed(session, "mount -o remount,size=80m /tmp/small")?;
    let said = in_guest(session, "full", write)?;
    ensure!(said.contains("32+0 records out"), "The guest says, when the parent has room again: {said}");
    remove(session, "full")?;
    succeed(session, "umount /tmp/small").map(drop)
}

/// A device of 16 MiB, of which 32 KiB from 4 MiB on cannot be read or written; and one of which all can.
const BAD: &str = "0 8192 linear /dev/loop6 0\\n8192 64 error\\n8256 24512 linear /dev/loop6 8256\\n";
const GOOD: &str = "0 32768 linear /dev/loop6 0\\n";

/// Errors of the device below reach the guest as sense data, where they are and as long as they are.
fn bad_sectors(mut wish: Wish) -> Result<()> {
    wish.extras.packages.push("dmsetup".into());
    let mut session = Session::start(&BoxSpec { memory: 3072, ..BoxSpec::default() }, &wish, BOOT)?;
    let session = &mut session;
    let device = |command: &str, table: &str| {
        format!("printf '{table}' | dmsetup {command} bad --noudevrules --noudevsync")
    };
    let file = "dd if=/dev/urandom of=/tmp/below.img bs=1M count=16 2>/dev/null && losetup /dev/loop6 /tmp/below.img";
    succeed(session, &format!("{file} && {}", device("create", BAD)))?;
    start(session, "bad", &["/dev/dm-0"])?;
    let read =
        |blocks: &str| format!("dd if=/dev/sda bs=4k {blocks} iflag=direct 2>&1 >/dev/null | tr '\\n' ' '");
    let good = format!("{}; {}; {}", until("[ -b /dev/sda ]"), read("count=1024"), read("skip=1032"));
    let said = in_guest(session, "bad", &good)?;
    ensure!(
        said.contains("1024+0 records out") && said.contains("3064+0 records out"),
        "The guest reads what can be read: {said}"
    );
    let write = "dd if=/dev/zero of=/dev/sda bs=4k seek=1028 count=1 oflag=direct 2>&1 | tr '\\n' ' '";
    for attempt in [&read("skip=1024 count=1"), &read("skip=1020 count=8"), write] {
        let said = in_guest(session, "bad", &format!("{attempt}; dmesg | tail -n 5"))?;
        ensure!(
            said.contains("dd: ") && said.contains("Medium Error"),
            "`{attempt}` where the medium is bad gives: {said}"
        );
    }
    succeed(session, &format!("{} && dmsetup resume bad --noudevsync", device("reload", GOOD)))?;
    let said =
        in_guest(session, "bad", &hash("dd if=/dev/sda bs=4k skip=1024 count=256 iflag=direct 2>/dev/null"))?;
    let expected = succeed(session, &hash("dd if=/tmp/below.img bs=4k skip=1024 count=256 2>/dev/null"))?;
    ensure!(said == expected.trim(), "Mended, the medium has {expected} and the guest reads {said}.");
    remove(session, "bad")
}

/// Mounts the box's disk where the test keeps its file.
const DATA_ON_DISK: &str = "#!/bin/sh
mkdir -p /data && mount -t ext4 /dev/disk/by-id/lab-disk0 /data
";

/// The box is switched off in the moment in which the guest's fsync has returned.
fn power_cut(mut wish: Wish) -> Result<()> {
    let dir = RunDir::create()?;
    let disk = dir.path().join("data.img");
    journaled_disk(&disk, 128)?;
    let spec = BoxSpec { disks: vec![disk], ..BoxSpec::default() };
    wish.with_stack = true;
    wish.extras.texts.push(("lab/start".into(), DATA_ON_DISK.into()));
    wish.extras.files.push(("lab/guest-kernel".into(), guest::kernel("newest")?));
    wish.extras.files.push(("lab/guest-initrd".into(), guest::initrd("lab", "newest")?));
    let mut session = Session::start(&spec, &wish, BOOT)?;
    succeed(&mut session, "mount | grep -q /data && truncate -s 32M /data/disk.img && sync")?;
    start(&mut session, "cut", &["/data/disk.img"])?;
    let line = format!(
        "{}; dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null; dd if=/tmp/data of=/dev/sda bs=64k conv=fsync 2>/dev/null; \
         {}",
        until("[ -b /dev/sda ]"),
        hash("cat /tmp/data")
    );
    let wrote = in_guest(&mut session, "cut", &line)?;
    session.machine().kill();
    let mut session = Session::start(&spec, &wish, BOOT)?;
    let found = succeed_in(&mut session, &hash("cat /data/disk.img"), BOOT)?;
    ensure!(wrote == found.trim(), "The guest flushed {wrote}; after the power cut there is {found}");
    Ok(())
}
