//! What a guest gets of a disk and of a network: Parterre's VMBus devices beside virtio ones of KVM and QEMU. The disk is a
//! file in the parent's memory on both sides, the network a bridge in the parent, so that what is measured is what lies
//! between. `lab-load` is the load. Exits are counted while it runs, by the hypervisor's counters and by KVM's.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Row, bare, guests, side};
use crate::boxes::BoxSpec;
use crate::cpio::Archive;
use crate::media::Wish;
use crate::progress;
use crate::rootfs::Extras;
use crate::session::Session;
use crate::{build, guest, prune};

const BOOT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(90);
/// The peer's guest loses a timer interrupt now and then, below the emulator's SVM, and stands still: then in a fresh box. What it
/// has measured until then counts.
const TRIES: u32 = 4;
/// Lines that are shown of a load that did not end.
const LAST_WORDS: usize = 6;

const DISK: &str = "dd if=/dev/zero of=/tmp/disk.img bs=1M count=256 2>/dev/null";
const COUNTERS: &str = "mount -t debugfs none /sys/kernel/debug 2>/dev/null";
/// The peer's parent gets what `vmms` sees to on Parterre's, so that it makes no difference.
const SPARE_TIMERS: &str =
    "for f in HRTICK HRTICK_DL; do echo NO_$f >/sys/kernel/debug/sched/features; done 2>/dev/null";
/// Exits of the children so far; partition 1 is the parent.
const OUR_EXITS: &str = "for p in /sys/kernel/debug/mshv/partition/*; do [ ${p##*/} = 1 ] || cat $p/vp/*/stats; done | \
                         awk '/^Vp(Hypercalls|IoInstructions|HltInstructions|CpuidInstructions|MsrAccesses|\
                         ExternalInterrupts|PageFaultIntercepts|PendingInterrupts|OtherIntercepts)Count / { n += $NF } END { print n + 0 }'";
const PEERS_EXITS: &str = "cat /sys/kernel/debug/kvm/exits";
const SERVER: &str = "(lab-load network-server &)";

const OURS: &str = "parterre vm create load --memory 512M --processors 2 --kernel /lab/guest-kernel --initrd \
                    /lab/guest-initrd --cmdline 'console=ttyS0 quiet lab.run=RUN' && DEVICE && parterre vm start load";
const OUR_CONSOLE: &str = "parterre vm console load </dev/null";
const OUR_END: &str = "parterre vm stop load --force; parterre vm delete load";
const OUR_DISK: &str = "parterre vm disk add load /tmp/disk.img";
const OUR_SWITCH: &str = "parterre switch create lan --type internal --address 10.9.0.1/24";
const OUR_NETWORK: &str = "parterre vm network add load --switch lan";

const PEER: &str = "qemu -m 512M -smp 2 -kernel /lab/guest-kernel -initrd /lab/guest-initrd \
                    -append 'console=ttyS0 quiet lab.run=RUN' DEVICE </dev/null";
const PEERS_END: &str = "killall -q -9 ld-linux-x86-64.so.2";
const PEERS_DISK: &str = "-drive file=/tmp/disk.img,format=raw,if=none,id=disk,cache=none,aio=io_uring \
                          -device virtio-blk-pci,drive=disk,num-queues=2";
const PEERS_SWITCH: &str = "ip link add lan type bridge && ip address add 10.9.0.1/24 dev lan && ip link set lan up && \
                            printf '#!/bin/sh\\nip link set $1 master lan up\\n' >/tmp/up && chmod +x /tmp/up";
const PEERS_NETWORK: &str = "-netdev tap,id=net,ifname=port,script=/tmp/up,downscript=no,vhost=on \
                             -device virtio-net-pci,netdev=net,romfile=";

/// Both together, in the parent of either side.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub name: &'static str,
    /// In the guest, with plus signs for blanks.
    pub run: &'static str,
    pub unit: fn(&str) -> &'static str,
    pub ours: Side,
    pub peer: Side,
}

/// What one side needs.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub prepare: &'static str,
    pub device: &'static str,
}

const DISKS: Load = Load {
    name: "disk",
    run: "lab-load+disk",
    unit: |_| "operations/s",
    ours: Side { prepare: DISK, device: OUR_DISK },
    peer: Side { prepare: DISK, device: PEERS_DISK },
};

const NETWORK: Load = Load {
    name: "network to the parent",
    run: "ip+link+set+eth0+up;ip+address+add+10.9.0.2/24+dev+eth0;lab-load+network+10.9.0.1",
    unit: network_unit,
    ours: Side { prepare: OUR_SWITCH, device: OUR_NETWORK },
    peer: Side { prepare: PEERS_SWITCH, device: PEERS_NETWORK },
};

/// What the rows of a network count.
pub(super) fn network_unit(row: &str) -> &'static str {
    if row.starts_with("stream") { "MiB/s" } else { "answers/s" }
}

/// Measures a disk.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn disks(wish: &Wish) -> Result<Vec<Row>> {
    measure(wish, &[DISKS])
}

/// Measures the network, to the parent and to another guest.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn network(wish: &Wish) -> Result<Vec<Row>> {
    measure(wish, &[NETWORK, guests::LOAD])
}

/// Runs loads on both.
fn measure(wish: &Wish, loads: &[Load]) -> Result<Vec<Row>> {
    let mut ours = wish.clone();
    add_guest(&mut ours.extras)?;
    let mut peer = bare(wish)?;
    add_guest(&mut peer.extras)?;
    let mut rows = Vec::new();
    for load in loads.iter().copied() {
        let below = side("Parterre", tried(&ours, load, Whose::Ours)).unwrap_or_default();
        let beside = side("The peer", tried(&peer, load, Whose::Peers)).unwrap_or_default();
        let of = |numbers: &[(String, f64)], name: &str| {
            numbers.iter().find(|(other, _)| other == name).map(|(_, number)| *number)
        };
        let names = if below.is_empty() { &beside } else { &below };
        rows.extend(names.iter().map(|(name, _)| {
            let counts = name.starts_with(EXITS);
            Row {
                name: format!("{}: {name}", load.name),
                unit: if counts { "exits" } else { (load.unit)(name) },
                ours: of(&below, name),
                peer: of(&beside, name),
                aim: if counts { "fewer" } else { "more" },
            }
        }));
    }
    Ok(rows)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Peers,
}

/// The newest guest, with the load in it and in the parent.
fn add_guest(extras: &mut Extras) -> Result<()> {
    let load = build::load()?;
    let mut archive = Archive::new();
    archive.file("usr/bin/lab-load", 0o755, &fs::read(&load)?);
    let mut initrd = fs::read(guest::initrd("lab", "newest")?)?;
    initrd.extend(archive.finish());
    let place = prune::place("loads", &initrd, |part| Ok(fs::write(part.join("initrd"), &initrd)?))?;
    let files: [(&str, PathBuf); 2] =
        [("lab/guest-kernel", guest::kernel("newest")?), ("lab/guest-initrd", place.join("initrd"))];
    extras.files.extend(files.map(|(path, file)| (path.to_owned(), file)));
    extras.programs.push(("usr/bin/lab-load".into(), load));
    Ok(())
}

/// What a few tries bring together: a try goes on until its load ends or stands still.
fn tried(wish: &Wish, load: Load, whose: Whose) -> Result<Vec<(String, f64)>> {
    let mut numbers: Vec<(String, f64)> = Vec::new();
    for left in (0..TRIES).rev() {
        let tried = once(wish, load, whose)?;
        let news =
            tried.numbers.into_iter().filter(|(name, _)| numbers.iter().all(|(other, _)| other != name));
        let news: Vec<_> = news.collect();
        numbers.extend(news);
        match tried.stopped {
            None => break,
            Some(why) if left == 0 && numbers.is_empty() => bail!(why),
            Some(why) => eprintln!("  {why}"),
        }
    }
    Ok(numbers)
}

/// What one try brought.
struct Tried {
    numbers: Vec<(String, f64)>,
    /// Why it did not come to its end.
    stopped: Option<String>,
}

fn once(wish: &Wish, load: Load, whose: Whose) -> Result<Tried> {
    let spec = BoxSpec { memory: 3072, ..BoxSpec::default() };
    let mut session = Session::start(&spec, wish, BOOT)?;
    let (side, guest, end, exits) = match whose {
        Whose::Ours => (load.ours, format!("{{ {OURS} && {OUR_CONSOLE}; }}"), OUR_END, OUR_EXITS),
        Whose::Peers => (load.peer, PEER.to_owned(), PEERS_END, PEERS_EXITS),
    };
    let guest = guest.replace("RUN", load.run).replace("DEVICE", side.device);
    // A pipe by name, because a shell waits for all members of a pipeline, and the guest does not end by itself.
    let script = format!(
        "{COUNTERS}; {SPARE_TIMERS}; {} && {SERVER}; mkfifo /tmp/pipe; ({guest}) >/tmp/pipe 2>&1 & while read -r line; do echo \"$line\"; \
         case $line in count*) echo exits $({exits});; *'load done'*) break;; esac; done </tmp/pipe; {end}; true",
        side.prepare
    );
    let run = progress::step(&format!("Loading a guest: {}", load.name), |_| session.shell(&script, LIMIT))?;
    let said: Vec<&str> = run.stdout.lines().chain(run.stderr.lines()).collect();
    let last = &said[said.len().saturating_sub(LAST_WORDS)..];
    let stopped = (!run.stdout.contains("load done")).then(|| {
        format!("The load did not come to its end ({:?}); last it said: {}", run.outcome, last.join(" | "))
    });
    Ok(Tried { numbers: numbers(&run.stdout), stopped })
}

/// How the names of rows begin that count exits.
const EXITS: &str = "exits for each ";

/// The load's lines `load ROW NUMBER`, and for each line `count ROW NUMBER` the exits from one line `exits NUMBER` to the next.
fn numbers(output: &str) -> Vec<(String, f64)> {
    let named = |rest: &str| {
        let (name, number) = rest.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse::<f64>().ok()?))
    };
    let (mut numbers, mut count, mut before) = (Vec::new(), None, None);
    for line in output.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("load ") {
            numbers.extend(named(rest));
        } else if let Some(rest) = line.strip_prefix("count ") {
            count = named(rest);
        } else if let Some(exits) = line.strip_prefix("exits ").and_then(|rest| rest.parse::<f64>().ok()) {
            let since = before.replace(exits).map(|before: f64| exits - before);
            if let (Some((name, count)), Some(since)) = (count.take(), since)
                && count > 0.0
            {
                numbers.push((format!("{EXITS}{name}"), since / count));
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let output = "lab guest: userland\r\ncount begin 0\r\nexits 1000\nload read 4 KiB depth 1 1234.5\r\n\
                      count read 4 KiB depth 1 200.0\r\nexits 1500\nload write 7\ncount write 0.0\nexits 1600\nload done\r\n";
        let rows =
            [("read 4 KiB depth 1", 1234.5), ("exits for each read 4 KiB depth 1", 2.5), ("write", 7.0)];
        assert_eq!(numbers(output), rows.map(|(name, number)| (name.to_owned(), number)));
    }
}
