//! How long a child takes from the start of its worker to its first userland line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Row, bare, side};
use crate::boxes::BoxSpec;
use crate::guest;
use crate::media::Wish;
use crate::progress;
use crate::rootfs::Extras;
use crate::session::Session;

const BOOT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(240);
/// The best of so many.
const TIMES: usize = 3;

const OURS: &str = "vmwp --kernel /lab/guest-kernel --initrd /lab/guest-initrd --memory 512M --processors 2 \
                    --cmdline 'console=ttyS0 quiet'";
const PEER: &str = "qemu -m 512M -smp 2 -kernel /lab/guest-kernel -initrd /lab/guest-initrd \
                    -append 'console=ttyS0 quiet' </dev/null";

/// Boots the newest guest on both.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let mut ours = wish.clone();
    add_guest(&mut ours.extras)?;
    let mut peer = bare(wish)?;
    add_guest(&mut peer.extras)?;
    Ok(vec![Row {
        name: "child boot to userland".into(),
        unit: "ms",
        ours: side("Parterre", best(&ours, OURS)),
        peer: side("The peer", best(&peer, PEER)),
        aim: "faster",
    }])
}

/// Puts the newest guest into a parent.
///
/// # Errors
/// When it cannot be had.
pub fn add_guest(extras: &mut Extras) -> Result<()> {
    let files: [(&str, PathBuf); 2] = [
        ("lab/guest-kernel", guest::kernel("newest")?),
        ("lab/guest-initrd", guest::initrd("lab", "newest")?),
    ];
    extras.files.extend(files.map(|(path, file)| (path.to_owned(), file)));
    Ok(())
}

fn best(wish: &Wish, command: &str) -> Result<f64> {
    let spec = BoxSpec { memory: 3072, ..BoxSpec::default() };
    let mut session = Session::start(&spec, wish, BOOT)?;
    let times = progress::step(&format!("Starting a guest {TIMES} times"), |step| {
        let mut times = Vec::new();
        for time in 1..=TIMES {
            step.at(&format!("{time} of {TIMES}"));
            times.push(once(&mut session, command)?);
        }
        Ok(times)
    })?;
    times.into_iter().reduce(f64::min).context("Nothing was measured.")
}

/// The time is taken in the parent, so that the way of the output to this machine does not count.
fn once(session: &mut Session, command: &str) -> Result<f64> {
    // A pipe by name, because a shell waits for all members of a pipeline, and the guest does not end by itself.
    let script = format!(
        "mkfifo -m 600 /tmp/pipe 2>/dev/null; begun=$(lab-agent --clock); ({command}) >/tmp/pipe 2>&1 & \
         while read -r line; do echo \"$line\" >&2; case $line in *'lab guest: userland'*) \
         echo took $(($(lab-agent --clock) - begun)); break;; esac; done </tmp/pipe; \
         killall -q -9 vmwp ld-linux-x86-64.so.2; wait"
    );
    let run = session.shell(&script, LIMIT)?;
    let took = run.stdout.lines().find_map(|line| line.strip_prefix("took ")?.trim().parse::<f64>().ok());
    ensure!(
        took.is_some(),
        "The guest did not reach its userland ({:?}): {}{}",
        run.outcome,
        run.stdout,
        run.stderr
    );
    Ok(took.unwrap_or_default() / 1e6)
}
