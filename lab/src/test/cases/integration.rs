//! Integration components and hv_sock with stock guests: the lab's small one, whose kernel does heartbeat, time and shutdown
//! by itself, and whole Debian systems with the Hyper-V daemons ([`super::systems`]).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::systems::in_system;
use super::vm::{PROMPT, console, create, remove};
use super::{succeed, succeed_in};
use crate::session::Session;
use crate::test::{Case, Check, USUAL};

/// For a whole system's daemons to start, emulated.
const LONG: Duration = Duration::from_secs(120);

pub const CASES: &[Case] = &[
    Case {
        name: "integration::heart-beats-and-time-is-kept",
        setting: USUAL,
        check: Check::Shared(heart_and_time),
    },
    Case { name: "integration::services-go-and-come", setting: USUAL, check: Check::Shared(go_and_come) },
    Case {
        name: "integration::restart-and-shutdown",
        setting: USUAL,
        check: Check::Shared(restart_and_shutdown),
    },
    Case { name: "integration::keyboard-types", setting: USUAL, check: Check::Shared(keyboard) },
];

/// Waits until a shell command succeeds.
pub(super) fn until(session: &mut Session, command: &str, limit: Duration) -> Result<()> {
    let seconds = limit.as_secs();
    let wait = format!(
        "end=$(($(date +%s) + {seconds})); until {command}; do \
         [ $(date +%s) -lt $end ] || {{ echo 'in vain: {}'; exit 1; }}; sleep 1; done",
        command.replace('\'', "")
    );
    succeed_in(session, &wait, limit + Duration::from_secs(30)).map(drop)
}

/// A guest that has come up to its shell.
fn start(session: &mut Session, name: &str) -> Result<()> {
    create(session, name, 2)?;
    succeed(session, &format!("parterre vm start {name}"))?;
    console(session, name, &[(PROMPT, "")]).map(drop)
}

fn shows(session: &mut Session, name: &str, line: &str) -> Result<()> {
    until(session, &format!("parterre vm show {name} | grep -qE '{line}'"), Duration::from_secs(60))
}

fn heart_and_time(session: &mut Session) -> Result<()> {
    start(session, "heart")?;
    for line in [
        "^VMBus: +[0-9]+\\.[0-9]+",
        "^Heartbeat: +running 3\\.0, OK$",
        "^Time Synchronization: +running 4\\.0$",
        "^Shutdown: +running 3\\.2$",
        "^Key-Value Pair Exchange: +waiting",
        "^Guest Service Interface: +disabled$",
    ] {
        shows(session, "heart", line)?;
    }
    console(
        session,
        "heart",
        &[
            ("", "\n"),
            (PROMPT, "date -s '2001-01-01 00:00:00' >/dev/null; date +year-%Y\n"),
            ("year-2001", ""),
        ],
    )?;
    succeed(session, "parterre vm sync-time heart; sleep 3")?;
    let year = succeed(session, "date +year-%Y")?;
    console(session, "heart", &[("", "\n"), (PROMPT, "date +year-%Y\n"), (year.trim(), "")])?;
    remove(session, "heart")
}

fn go_and_come(session: &mut Session) -> Result<()> {
    start(session, "switched")?;
    shows(session, "switched", "^Heartbeat: +running")?;
    succeed(session, "parterre vm integration disable switched heartbeat")?;
    shows(session, "switched", "^Heartbeat: +disabled$")?;
    console(
        session,
        "switched",
        &[
            ("", "\n"),
            (PROMPT, "ls /sys/bus/vmbus/devices | grep -c fd149e91; echo looked\n"),
            ("0", ""),
            ("looked", ""),
        ],
    )?;
    succeed(session, "parterre vm integration enable switched heartbeat")?;
    shows(session, "switched", "^Heartbeat: +running 3\\.0, OK$")?;
    // Faster than the guest can follow.
    let turns = "for i in $(seq 4); do for to in disable enable; do for service in heartbeat time-sync shutdown data-exchange; do \
                 parterre vm integration $to switched $service >/dev/null || exit 1; done; done; done";
    succeed_in(session, turns, LONG)?;
    for line in ["^Heartbeat: +running 3\\.0, OK$", "^Time Synchronization: +running", "^Shutdown: +running"]
    {
        shows(session, "switched", line)?;
    }
    let asked = "dmesg | grep -cE 'cut here|BUG|Oops'; echo ask''ed\n";
    let said = console(session, "switched", &[("", "\n"), (PROMPT, asked), ("asked", "")])?;
    let complaints =
        said.rsplit("asked").nth(1).and_then(|said| said.trim().lines().last()).unwrap_or_default();
    ensure!(complaints.trim() == "0", "The guest's kernel complains: {said}");
    remove(session, "switched")
}

fn restart_and_shutdown(session: &mut Session) -> Result<()> {
    start(session, "power")?;
    shows(session, "power", "^Shutdown: +running")?;
    succeed_in(session, "parterre vm restart power --timeout 100", Duration::from_secs(120))?;
    console(session, "power", &[(PROMPT, "")])?;
    shows(session, "power", "^State: +Running .*once")?;
    shows(session, "power", "^Shutdown: +running")?;
    succeed_in(session, "parterre vm shutdown power --timeout 100", Duration::from_secs(120))?;
    succeed(session, "parterre vm show power | grep -q 'powered off by the guest'")?;
    remove(session, "power")
}

/// What is typed is read from the guest's first virtual terminal.
fn keyboard(session: &mut Session) -> Result<()> {
    start(session, "typed")?;
    let read = "modprobe hyperv_keyboard; (cat </dev/tty1 >/tmp/typed &); echo re''ady\n";
    console(session, "typed", &[("", "\n"), (PROMPT, read), ("ready", "")])?;
    until(session, "parterre vm type typed 'Some Text, [42]' --enter", Duration::from_secs(30))?;
    succeed(session, "parterre vm type typed abc && parterre vm press typed backspace shift-d enter")?;
    let shown = "sleep 1; tr '\\n' '|' </tmp/typed; echo sh''own\n";
    console(session, "typed", &[("", "\n"), (PROMPT, shown), ("Some Text, [42]|abD|shown", "")])?;
    remove(session, "typed")
}

/// Starts the daemon for file copies that newer systems have, unless it runs. The package starts it only if the driver of its
/// device was there early, which an emulated machine may be too slow for.
const NEW_COPY_DAEMON: &str = "[ -e /usr/sbin/hv_fcopy_uio_daemon ] || exit 0
    until [ -d /sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4/uio ]; do sleep 1; done
    systemctl start hv-fcopy-uio-daemon";

/// A system's daemons: their services run, and each does its work.
pub fn daemons(session: &mut Session) -> Result<()> {
    for line in [
        "^Key-Value Pair Exchange: +running 4\\.0, guest",
        "^VSS: +running 5\\.0",
        "^Guest.s system: +.*Debian",
        "^Guest.s name: +guest",
        "^IPv4 addresses: +10\\.9\\.0\\.",
    ] {
        until(session, &format!("parterre vm show system | grep -qE \"{line}\""), LONG)?;
    }
    items(session)?;
    // Since Linux 6.10 this takes another daemon, which not every release of the package has.
    if in_system(session, "ls /usr/sbin | grep -c hv_fcopy || true")? == "0" {
        shows(session, "system", "^Guest Service Interface: +(waiting|not supported)")?;
    } else {
        in_system(session, NEW_COPY_DAEMON)?;
        copies(session)?;
    }
    freezes(session)?;
    streams(session)
}

fn items(session: &mut Session) -> Result<()> {
    succeed(session, "parterre vm kvp get system OSName --pool auto | grep -q Debian")?;
    succeed(
        session,
        "mac=$(parterre vm network list system --json | grep -o '..:..:..:..:..:..') && \
         parterre vm kvp addresses system $mac | grep -q '^Addresses: *10\\.9\\.0\\.'",
    )?;
    // A program of the guest's tells the parent something.
    let tell = "print pack(\"a512 a2048\", \"GuestSays\", \"hello from inside\")";
    in_system(session, &format!("perl -e '{tell}' >>/var/lib/hyperv/.kvp_pool_1"))?;
    let heard = succeed(session, "parterre vm kvp get system GuestSays --pool guest")?;
    ensure!(heard.trim() == "hello from inside", "The guest told the parent '{heard}'.");
    succeed(session, "parterre vm kvp get system VirtualMachineName --pool auto-external | grep -x system")?;
    succeed(session, "parterre vm kvp get system --pool auto-internal")?;
    succeed(session, "parterre vm kvp set system answer 42")?;
    for (pool, item) in [(0, "role=front"), (0, "answer=42"), (3, "VirtualMachineName=system")] {
        let items = pool_items(session, pool)?;
        ensure!(items.lines().any(|line| line == item), "Pool {pool} lacks {item}; it holds:\n{items}");
    }
    Ok(())
}

/// What the daemon keeps of a pool: records of a name and a value that end with a zero, and then with anything.
fn pool_items(session: &mut Session, pool: u32) -> Result<String> {
    let read = "undef $/; $_ = <>; printf \"%s=%s\\n\", unpack(\"Z512 Z2048\", substr($_, 0, 2560, \"\")) while length";
    in_system(session, &format!("perl -e '{read}' /var/lib/hyperv/.kvp_pool_{pool}"))
}

fn copies(session: &mut Session) -> Result<()> {
    shows(session, "system", "^Guest Service Interface: +running 1\\.1")?;
    succeed(session, "head -c 300000 /dev/urandom >/tmp/file")?;
    succeed(session, "parterre vm copy system /tmp/file /root/new/ --create-path")?;
    let there = in_system(session, "sha256sum </root/new/file")?;
    let here = succeed(session, "sha256sum </tmp/file")?;
    ensure!(there == here.trim(), "The guest has {there}, the parent {here}.");
    let again = session.shell("parterre vm copy system /tmp/file /root/new/file", Duration::from_secs(60))?;
    ensure!(again.stderr.contains("exists"), "A file was overwritten: {}{}", again.stdout, again.stderr);
    // It is full between two pieces (6 KiB), not within one: the guest's daemon says something else then.
    in_system(session, "mkdir /small && mount -t tmpfs -o size=96k small /small")?;
    let full = session.shell("parterre vm copy system /tmp/file /small/file", Duration::from_secs(60))?;
    ensure!(full.stderr.contains("full"), "Without room in the guest: {}{}", full.stdout, full.stderr);
    succeed(session, "parterre vm copy system /tmp/file /root/new/file --overwrite").map(drop)
}

fn freezes(session: &mut Session) -> Result<()> {
    let inside = "parterre vm show system | grep -q 'file systems frozen' && echo was-frozen";
    let said = succeed(session, &format!("parterre vm freeze system -- sh -c \"{inside}\""))?;
    ensure!(said.contains("was-frozen"), "The file systems were not frozen: {said}");
    in_system(session, "echo still >/root/written; sync; cat /root/written")?;
    backup(session)
}

/// A copy of a disk has whole file systems, with what the guest has not written to the disk itself.
fn backup(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "truncate -s 24M /tmp/data.img && mke2fs -F -I 256 /tmp/data.img >/dev/null && parterre vm disk add system /tmp/data.img --lun 9",
    )?;
    let write = "set -e; until [ -b /dev/sdb ]; do sleep 1; done; mount -t ext4 /dev/sdb /mnt
        head -c 4000000 /dev/urandom >/mnt/file; sha256sum </mnt/file";
    let wrote = in_system(session, write)?;
    let said = succeed_in(session, "parterre vm backup system /tmp/copies --disk 0:9", LONG)?;
    ensure!(said.contains("file systems are whole"), "The backup says: {said}");
    let look = "mkdir /tmp/copy && mount -t ext4 -o loop,ro /tmp/copies/disk-0-9.raw /tmp/copy && sha256sum </tmp/copy/file";
    let copied = succeed(session, look)?;
    succeed(session, "umount /tmp/copy")?;
    ensure!(copied.trim() == wrote, "The guest wrote {wrote}, the copy has {copied}");
    in_system(session, "umount /mnt && echo 1 >/sys/block/sdb/device/delete")?;
    succeed(session, "parterre vm disk remove system --lun 9 && rm -r /tmp/copies /tmp/data.img").map(drop)
}

/// A stream between a program in the parent and one in the guest, both ways, begun by either.
fn streams(session: &mut Session) -> Result<()> {
    let perl = |body: &str| {
        format!("modprobe hv_sock; perl -e 'socket(S,40,1,0)||die; {body}' </dev/null >/dev/null 2>&1")
    };
    let listen = perl(
        "bind(S,pack(\"SSLLx4\",40,0,4711,~0&0xffffffff))||die; listen(S,1); \
         if(!fork){accept(C,S);select(C);$|=1;print \"hello\\n\";$l=<C>;print \"got $l\";exit}",
    );
    in_system(session, &listen)?;
    let said = succeed(session, "(sleep 1; echo question) | parterre vm connect system 4711")?;
    ensure!(said == "hello\ngot question\n", "The guest's program said '{said}'.");
    let nobody = session.shell("parterre vm connect system 4712 --timeout 3", Duration::from_secs(60))?;
    ensure!(nobody.stderr.contains("port 4712"), "Nobody listened, and {}{}", nobody.stdout, nobody.stderr);
    succeed(session, "(sleep 2 | parterre vm listen system 4713 >/tmp/heard) & sleep 1")?;
    in_system(session, &perl("connect(S,pack(\"SSLLx4\",40,0,4713,2))||die; print S \"from the guest\\n\""))?;
    until(session, "grep -q \"from the guest\" /tmp/heard", Duration::from_secs(30))
}
