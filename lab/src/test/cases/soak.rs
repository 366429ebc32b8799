//! The parent under load for minutes, with children running meanwhile.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::parent::clean_log;
use super::tmk::verdict;
use super::vm::{PROMPT, USERLAND, console, create, create_another, remove};
use super::{succeed, succeed_in};
use crate::boxes::BoxSpec;
use crate::cache::RunDir;
use crate::guest;
use crate::media::Wish;
use crate::progress;
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, test_kernels};

pub const LONG: &[Case] =
    &[Case { name: "parent::minutes-of-load-stay-clean", setting: PLAIN, check: Check::Free(minutes) }];

const LOAD: &str = include_str!("load.sh");
/// How long the parent works.
const SECONDS: u64 = 300;
const BOOT: Duration = Duration::from_secs(240);
/// Guests that run meanwhile, with what they print at the end of each piece of work.
const GUESTS: [&str; 2] = ["busy0", "busy1"];

/// What a guest does all the time, one piece after the other, each with the same result.
const WORK: &str = "while true; do head -c 1000000 /dev/zero | sha256sum >/tmp/new && mv /tmp/new /tmp/sum; sleep 0.01; done";

/// Computing, memory, disks, network cards, timers and processes in the parent, two busy Linux guests, and test
/// kernels one after the other.
fn minutes(mut wish: Wish) -> Result<()> {
    let dir = RunDir::create()?;
    let disk = dir.path().join("load.img");
    File::create(&disk)?.set_len(256 << 20)?;
    let spec =
        BoxSpec { disks: vec![disk], ..("amd,cpus=2,memory=4G,net=e1000e,net=virtio".parse::<BoxSpec>()?) };
    wish.with_stack = true;
    wish.extras.texts.push(("lab/load".into(), LOAD.into()));
    wish.extras.files.push(("lab/guest-kernel".into(), guest::kernel("newest")?));
    wish.extras.files.push(("lab/guest-initrd".into(), guest::initrd("lab", "newest")?));
    wish.extras.files.extend(test_kernels()?);
    let mut session = Session::start(&spec, &wish, BOOT)?;
    start_guests(&mut session)?;
    let said = progress::step("Load of every kind", |_| work(&mut session))?;
    said.lines().filter(|line| line.contains(" rounds")).for_each(|line| println!("        {line}"));
    check_guests(&mut session)?;
    clean_log(&mut session)?;
    ensure!(session.alive(), "The box did not survive the load.");
    GUESTS.iter().try_for_each(|name| remove(&mut session, name))
}

fn start_guests(session: &mut Session) -> Result<()> {
    for (number, name) in GUESTS.iter().enumerate() {
        if number == 0 {
            create(session, name, 2)?
        } else {
            create_another(session, name, 2)?
        }
        succeed(session, &format!("parterre vm start {name}"))?;
        console(session, name, &[(USERLAND, ""), (PROMPT, &format!("({WORK}) &\n")), (PROMPT, "")])?;
    }
    Ok(())
}

/// The load, and beside it test kernels.
fn work(session: &mut Session) -> Result<String> {
    let command = format!(
        "(read -r now _ </proc/uptime; end=$((${{now%.*}} + {SECONDS} - 20)); \
          while read -r now _ </proc/uptime; [ ${{now%.*}} -lt $end ]; do \
          vmwp --kernel /lab/tmk/ipi --memory 64M --processors 4 </dev/null >/tmp/ipi 2>&1; done) & \
         sh /lab/load {SECONDS}; status=$?; wait; exit $status"
    );
    let run = session.shell(&command, Duration::from_secs(SECONDS + 900))?;
    ensure!(
        run.outcome == Outcome::Exit(0),
        "The load ended with {:?}:\n{}{}",
        run.outcome,
        run.stdout,
        run.stderr
    );
    verdict(&succeed(session, "cat /tmp/ipi")?).context("The last test kernel beside the load:")?;
    Ok(run.stdout)
}

/// The guests still compute, and compute rightly, and their kernels do not complain.
fn check_guests(session: &mut Session) -> Result<()> {
    let right = succeed_in(session, "head -c 1000000 /dev/zero | sha256sum", Duration::from_secs(60))?;
    let right = right.split_whitespace().next().context("No sum was printed.")?.to_owned();
    for name in GUESTS {
        let question = "rm /tmp/sum; sleep 5; cat /tmp/sum; dmesg | grep -cE 'BUG|WARNING|stall|lockup|Oops'; echo look''ed\n";
        let said = console(session, name, &[("", "\n"), (PROMPT, question), ("looked", "")])?;
        ensure!(said.contains(&right), "The guest '{name}' computes {right} as:\n{said}");
        ensure!(said.contains("\n0\n"), "The kernel of the guest '{name}' complains:\n{said}");
    }
    Ok(())
}
