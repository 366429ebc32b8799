//! `cargo lab exec`: one command in a fresh box.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::cli::{Exec, ParentArgs};
use crate::guest;
use crate::media::{Below, Wish};
use crate::rootfs::Extras;
use crate::session::{Input, Outcome, Reply, Session, Stream};

/// The exit statuses that are not the command's own.
mod status {
    pub const POWERED_OFF: u8 = 120;
    pub const RESET: u8 = 121;
    pub const PANICKED: u8 = 122;
    pub const TIMED_OUT: u8 = 124;
    pub const LAB: u8 = 125;
    pub const NOT_STARTED: u8 = 126;
}

/// Runs the command.
///
/// # Errors
/// When the box cannot be made or does not come up.
pub fn run(exec: &Exec) -> Result<ExitCode> {
    let mut spec = exec.machine.spec()?;
    let mut wish = exec.parent.wish()?;
    if let Some(release) = &exec.parent.guest_system {
        guest::system(release)?.give(&mut spec, &mut wish);
    }
    let mut session =
        Session::start(&spec, &wish, exec.boot_timeout.map_or(spec.boot_limit(), Duration::from_secs))?;
    let limit = Duration::from_secs(exec.timeout);
    let outcome = session.run(&command(&exec.argv), limit, Input::Empty, &mut |stream, data| {
        // Whoever closed our output does not want it; the command goes on.
        let _ = match stream {
            Stream::Stdout => std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush()),
            Stream::Stderr => std::io::stderr().write_all(data),
        };
        Reply::Wait
    })?;
    if matches!(outcome, Outcome::Exit(_)) && !spec.disks.is_empty() {
        session.shell("sync", Duration::from_secs(60))?;
    }
    if exec.show_serial || matches!(outcome, Outcome::Panicked(_)) {
        eprintln!("--- serial port\n{}", session.serial().text().trim_end());
    }
    Ok(ExitCode::from(explain(&outcome, exec.timeout)))
}

/// One word with blanks is a line for the shell, as with ssh; otherwise the words are program and arguments.
fn command(argv: &[String]) -> Vec<String> {
    match argv {
        [line] if line.contains(char::is_whitespace) => ["sh", "-c", line].map(str::to_owned).to_vec(),
        words => words.to_vec(),
    }
}

/// Says what happened when it was not simply the command's end, and returns the exit status.
fn explain(outcome: &Outcome, timeout: u64) -> u8 {
    let (status, what) = match outcome {
        Outcome::Exit(status) => return u8::try_from(*status).unwrap_or(status::LAB),
        Outcome::NotStarted(reason) => (status::NOT_STARTED, reason.clone()),
        Outcome::TimedOut => (status::TIMED_OUT, format!("The command took longer than {timeout} s.")),
        Outcome::PoweredOff => (status::POWERED_OFF, "The parent switched the box off.".to_owned()),
        Outcome::Reset => (status::RESET, "The box reset.".to_owned()),
        Outcome::Panicked(line) => (status::PANICKED, format!("The box panicked: {line}")),
        Outcome::Broken(said) => (status::LAB, format!("The emulator broke down. It said:\n{said}")),
    };
    eprintln!("lab: {what}");
    status
}

impl ParentArgs {
    /// What these options wish for.
    ///
    /// # Errors
    /// When a guest's kernel cannot be had.
    pub fn wish(&self) -> Result<Wish> {
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        if let Some(kernel) = &self.guest_kernel {
            files.push(("lab/guest-kernel".into(), guest::kernel(kernel)?));
        }
        if let Some(initrd) = &self.guest_initrd {
            files.push((
                "lab/guest-initrd".into(),
                guest::initrd(initrd, self.guest_kernel.as_deref().unwrap_or_default())?,
            ));
        }
        if self.test_kernels {
            files.extend(crate::test::test_kernels()?);
        }
        Ok(Wish {
            below: if self.bare { Below::Nothing } else { Below::Parterre },
            efi: self.efi.clone(),
            with_stack: !self.no_stack,
            extras: Extras {
                packages: self.with.clone(),
                overlay: self.overlay.clone(),
                files,
                ..Extras::default()
            },
            cmdline: self.cmdline.clone(),
            configuration: self.config.clone(),
            changes: Vec::new(),
            fallback: false,
            serial_log: self.serial_log.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_with_blanks_goes_to_the_shell() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&words(&["echo a | wc"])), words(&["sh", "-c", "echo a | wc"]));
        assert_eq!(command(&words(&["dmesg"])), words(&["dmesg"]));
        assert_eq!(command(&words(&["echo", "a b"])), words(&["echo", "a b"]));
    }

    #[test]
    fn exit_statuses_are_told_apart() {
        assert_eq!(explain(&Outcome::Exit(3), 1), 3);
        assert_eq!(explain(&Outcome::Exit(-1), 1), 125);
        assert_eq!(explain(&Outcome::TimedOut, 1), 124);
        assert_eq!(explain(&Outcome::Panicked("x".into()), 1), 122);
        assert_eq!(explain(&Outcome::Reset, 1), 121);
        assert_eq!(explain(&Outcome::PoweredOff, 1), 120);
        assert_eq!(explain(&Outcome::NotStarted("x".into()), 1), 126);
    }
}
