//! What the hypervisor and one worker take, besides the guest's own memory.

use std::time::Duration;

use anyhow::{Context, Result};

use super::start::add_guest;
use super::{Row, bare, side};
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::progress;
use crate::session::Session;

const BOOT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(90);
const GUEST: &str = "--kernel /lab/guest-kernel --initrd /lab/guest-initrd";

const OURS: &str = "vmwp --memory 256M --processors 2 $GUEST";
const PEER: &str =
    "qemu -m 256M -smp 2 -kernel /lab/guest-kernel -initrd /lab/guest-initrd -append console=ttyS0";

/// QEMU is started by its loader, which is what the process is called.
const PEERS_NAME: &str = "ld-linux-x86-64.so.2";

/// Looks at a running guest's worker on both, and at what Parterre said when it started.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let mut ours = wish.clone();
    add_guest(&mut ours.extras)?;
    let mut peer = bare(wish)?;
    add_guest(&mut peer.extras)?;
    let ours = side("Parterre", start(&ours).and_then(|mut session| look(&mut session)));
    let (hypervisor, worker) = ours.unwrap_or_default();
    let peer =
        side("The peer", start(&peer).and_then(|mut session| worker_of(&mut session, PEER, PEERS_NAME)));
    let row = |name: &str, ours, peer, aim| Row { name: name.into(), unit: "KiB", ours, peer, aim };
    Ok(vec![
        row("hypervisor's memory (box of 3 GiB)", hypervisor, None, ""),
        row("worker besides the guest's memory", worker, peer, "under 8192"),
    ])
}

fn start(wish: &Wish) -> Result<Session> {
    Session::start(&BoxSpec { memory: 3072, ..BoxSpec::default() }, wish, BOOT)
}

/// The hypervisor's memory and the worker's, in KiB.
fn look(session: &mut Session) -> Result<(Option<f64>, Option<f64>)> {
    let hypervisor = region(&session.serial().text());
    let worker = side("The worker", worker_of(session, &OURS.replace("$GUEST", GUEST), "vmwp"));
    Ok((hypervisor, worker))
}

/// KiB of a worker's memory that is not the guest's: all its mappings but the largest.
fn worker_of(session: &mut Session, command: &str, process: &str) -> Result<f64> {
    let script = format!(
        "({command} </dev/null >/tmp/console 2>&1 &) ; for i in $(seq 200); do grep -q 'lab guest: userland' \
         /tmp/console && break; sleep 0.3; done; cat /proc/$(pidof {process} | cut -d' ' -f1)/smaps; \
         killall -q -9 {process}"
    );
    let run = progress::step("Looking at a running guest's worker", |_| session.shell(&script, LIMIT))?;
    besides_the_largest(&run.stdout)
        .with_context(|| format!("The worker is not there ({:?}): {}", run.outcome, run.stderr))
}

/// The sum of `Pss` over all mappings of an `smaps` file but the one with the largest `Size`.
fn besides_the_largest(smaps: &str) -> Option<f64> {
    let number =
        |line: &str, name: &str| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok();
    let mut mappings: Vec<(u64, u64)> = Vec::new();
    for line in smaps.lines() {
        if let Some(size) = number(line, "Size:") {
            mappings.push((size, 0));
        } else if let (Some(pss), Some(last)) = (number(line, "Pss:"), mappings.last_mut()) {
            last.1 = pss;
        }
    }
    mappings.sort_unstable();
    mappings.pop()?;
    let kib: u64 = mappings.iter().map(|(_, pss)| pss).sum();
    Some(f64::from(u32::try_from(kib).ok()?))
}

/// KiB of memory that the hypervisor says it took: `hypervisor: N KiB program, N MiB of memory at ...`.
fn region(serial: &str) -> Option<f64> {
    let line = serial.lines().find(|line| line.contains("parterre: hypervisor:"))?;
    let (before, _) = line.split_once(" MiB of memory")?;
    Some(before.rsplit(' ').next()?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_does_not_count() {
        let smaps = "00-01 r-xp\nSize:      100 kB\nPss:        40 kB\nPss_Dirty:  1 kB\n\
                     02-03 rw-p\nSize:   262144 kB\nPss:     90000 kB\n04-05 rw-p\nSize: 20 kB\nPss: 2 kB\n";
        assert_eq!(besides_the_largest(smaps), Some(42.0));
        assert_eq!(besides_the_largest(""), None);
    }

    #[test]
    fn the_hypervisors_own_words_are_read() {
        let serial =
            "x\nparterre: hypervisor: 164 KiB program, 14 MiB of memory at 0x7aa00000, 2 processors\n";
        assert_eq!(region(serial), Some(14.0 * 1024.0));
        assert_eq!(region("parterre: hypervisor: nothing"), None);
    }
}
