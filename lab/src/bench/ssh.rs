//! How long a whole Debian system takes from its start until it is reached by ssh: its root on a disk, its address by DHCP. The
//! peer boots the same image from a virtio disk, with a virtio network.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Row, bare, side};
use crate::boxes::BoxSpec;
use crate::guest;
use crate::media::Wish;
use crate::progress;
use crate::session::Session;

const BOOT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(180);
/// The peer's guest loses a timer interrupt now and then, below the emulator's SVM, and stands still for ever if it was the only
/// one it waits for. So both guests have a periodic tick ([`TICK`]), which comes again; and a few tries.
const TRIES: u32 = 3;
const TICK: &str = "nohz=off highres=off";
const SYSTEM: &str = "stable";

/// Makes the system ready to be started; starts it; says its address, once it has one.
struct Side {
    prepare: &'static str,
    start: &'static str,
    address: &'static str,
}

const OURS: Side = Side {
    prepare: "parterre switch create lan --type internal --address 10.9.0.1/24 --dhcp && \
              parterre vm create system --memory 1G --processors 2 --kernel /lab/guest-kernel --initrd /lab/guest-initrd \
              --cmdline 'console=ttyS0 quiet root=LABEL=guest-root rw TICK' && \
              parterre vm disk add system $(readlink -f /dev/disk/by-id/*scratch0) && \
              parterre vm network add system --switch lan",
    start: "parterre vm start system",
    address: "parterre switch show lan | awk '/Address given/ { print $3 }'",
};

const PEERS: Side = Side {
    prepare: "ip link add lan type bridge && ip address add 10.9.0.1/24 dev lan && ip link set lan up && \
              printf '#!/bin/sh\\nip link set $1 master lan up\\n' >/tmp/up && chmod +x /tmp/up && \
              printf 'interface lan\\nstart 10.9.0.50\\nend 10.9.0.50\\noption subnet 255.255.255.0\\nlease_file /tmp/leases\\npidfile /tmp/pid\\n' >/tmp/dhcp && \
              touch /tmp/leases && udhcpd /tmp/dhcp",
    start: "(qemu -m 1G -smp 2 -kernel /lab/guest-kernel -initrd /lab/guest-initrd \
            -append 'console=ttyS0 quiet root=LABEL=guest-root rw net.ifnames=0 TICK' \
            -drive file=$(readlink -f /dev/disk/by-id/*scratch0),format=raw,if=none,id=disk,cache=none,aio=io_uring \
            -device virtio-blk-pci,drive=disk,num-queues=2 \
            -netdev tap,id=net,ifname=port,script=/tmp/up,downscript=no,vhost=on \
            -device virtio-net-pci,netdev=net,romfile= </dev/null >/tmp/console 2>&1 &)",
    address: "echo 10.9.0.50",
};

/// Starts the system on both.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let bare = bare(wish)?;
    Ok(vec![Row {
        name: "Debian system, start to ssh".into(),
        unit: "ms",
        ours: side("Parterre", tried(wish, &OURS)),
        peer: side("The peer", tried(&bare, &PEERS)),
        aim: "faster",
    }])
}

/// The first of a few tries that comes to its end.
fn tried(wish: &Wish, side: &Side) -> Result<f64> {
    let mut tried = once(wish, side);
    for _ in 1..TRIES {
        if tried.is_ok() {
            break;
        }
        tried = once(wish, side);
    }
    tried
}

/// The time is taken in the parent. Asking more often than each second would take the system's time.
fn once(wish: &Wish, side: &Side) -> Result<f64> {
    let (mut wish, mut spec) = (wish.clone(), BoxSpec { memory: 3072, ..BoxSpec::default() });
    guest::system(SYSTEM)?.give(&mut spec, &mut wish);
    let mut session = Session::start(&spec, &wish, BOOT)?;
    let Side { address, .. } = side;
    let [prepare, start] = [side.prepare, side.start].map(|part| part.replace("TICK", TICK));
    let script = format!(
        "{prepare} >/dev/null && chmod 600 /lab/guest-key && begun=$(lab-agent --clock) && {start} >/dev/null && \
         until to=$({address}) && [ -n \"$to\" ] && ssh -i /lab/guest-key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout=5 root@$to true 2>/tmp/ssh; do sleep 1; done && \
         echo took $(($(lab-agent --clock) - begun))"
    );
    let run =
        progress::step("Starting a Debian system until ssh answers", |_| session.shell(&script, LIMIT))?;
    let took = run.stdout.lines().find_map(|line| line.strip_prefix("took ")?.trim().parse::<f64>().ok());
    let Some(nanoseconds) = took else {
        let said = session.shell("tail -n 5 /tmp/console /tmp/ssh", BOOT)?.stdout;
        bail!("ssh did not answer ({:?}): {}{}{said}", run.outcome, run.stdout, run.stderr);
    };
    Ok(nanoseconds / 1e6)
}
