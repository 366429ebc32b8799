//! A booted box in which commands can be run, one after the other.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parterre_lab_agent::Frame;

use crate::boxes::serial::Serial;
use crate::boxes::{self, BoxSpec, End, Machine};
use crate::cache::RunDir;
use crate::media::{self, Media, Wish};
use crate::{progress, tool};

/// How often a waiting lab looks for a panic and for the machine's end.
const LOOK: Duration = Duration::from_millis(50);
/// How long a panic's own report may take to reach the serial port.
const PANIC_GRACE: Duration = Duration::from_millis(700);
/// The signal that ends a command that took too long.
const SIGKILL: i32 = 9;

/// How a command, or the box under it, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status.
    Exit(i32),
    /// The command could not be started.
    NotStarted(String),
    /// The time was over first.
    TimedOut,
    /// The parent switched the machine off.
    PoweredOff,
    /// The parent reset the machine.
    Reset,
    /// The hypervisor or the parent's kernel panicked; the line that said so.
    Panicked(String),
    /// The emulator broke down.
    Broken(String),
}

/// Which of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a command wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// How it ended.
    pub outcome: Outcome,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A booted box.
pub struct Session {
    machine: Box<dyn Machine>,
    frames: Receiver<Frame>,
    to_agent: UnixStream,
    last_id: u32,
    media: Media,
    booted_in: Duration,
    system: String,
    _dir: RunDir,
}

impl Session {
    /// Builds what the box needs, switches it on and waits until the parent takes commands.
    ///
    /// # Errors
    /// When something does not build, or the parent does not come up in `limit`; then with the end of the serial log.
    pub fn start(spec: &BoxSpec, wish: &Wish, limit: Duration) -> Result<Session> {
        spec.check()?;
        let emulator = boxes::emulator(spec.vendor)?;
        let dir = RunDir::create()?;
        let media = media::prepare(wish, dir.path())?;
        if let Some(log) = &wish.serial_log {
            // The emulator writes through the link, so the log is complete however the box ends.
            let log = std::path::absolute(log).context("The serial log's path makes no sense.")?;
            symlink(log, dir.path().join("serial.log"))?;
        }
        progress::step("Booting the box", |_| {
            let begun = Instant::now();
            let mut machine = emulator.power_on(spec, &media.boot, &dir)?;
            let to_agent = machine.agent()?;
            let frames = read_frames(to_agent.try_clone()?);
            let mut session = Session {
                machine,
                frames,
                to_agent,
                last_id: 0,
                media,
                booted_in: Duration::ZERO,
                system: String::new(),
                _dir: dir,
            };
            session.wait_for_agent(begun + limit)?;
            session.booted_in = begun.elapsed();
            Ok(session)
        })
    }

    fn wait_for_agent(&mut self, deadline: Instant) -> Result<()> {
        let outcome = loop {
            match self.next(deadline) {
                Ok(Frame::Hello { system }) => {
                    self.system = system;
                    return Ok(());
                }
                Ok(_) => {}
                Err(outcome) => break outcome,
            }
        };
        let log = self.serial().text();
        let what = match outcome {
            Outcome::TimedOut => "The parent did not come up in time".to_owned(),
            Outcome::Panicked(line) => format!("The box panicked while booting ({line})"),
            Outcome::PoweredOff => "The box switched itself off while booting".to_owned(),
            Outcome::Reset => "The box reset while booting (a triple fault, or a reboot)".to_owned(),
            Outcome::Broken(said) => {
                format!("The emulator broke down while booting. It said:\n{said}\nThe box")
            }
            Outcome::Exit(_) | Outcome::NotStarted(_) => "The box is confused".to_owned(),
        };
        bail!(
            "{what}. The end of its serial log (all of it: lab exec --serial-log FILE):\n{}",
            tool::tail(&log, 40)
        )
    }

    /// The next frame from the agent, or what happened instead of one.
    fn next(&mut self, deadline: Instant) -> Result<Frame, Outcome> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left.min(LOOK)) {
                Ok(frame) => return Ok(frame),
                Err(RecvTimeoutError::Disconnected) => {
                    // The agent's stream goes with the machine; give its monitor the time to say why.
                    let end = self.machine.ended(PANIC_GRACE);
                    return Err(self.ended(end.unwrap_or(End::Broken("The agent's stream closed.".into()))));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(end) = self.machine.ended(Duration::ZERO) {
                return Err(self.ended(end));
            }
            if let Some(line) = self.serial().panic() {
                thread::sleep(PANIC_GRACE);
                return Err(Outcome::Panicked(line));
            }
            if left.is_zero() {
                return Err(Outcome::TimedOut);
            }
        }
    }

    /// A machine that panicked may reset itself right after; the panic is what counts.
    fn ended(&mut self, end: End) -> Outcome {
        thread::sleep(LOOK);
        match (self.serial().panic(), end) {
            (Some(line), _) => Outcome::Panicked(line),
            (None, End::PoweredOff) => Outcome::PoweredOff,
            (None, End::Reset) => Outcome::Reset,
            (None, End::Broken(said)) => Outcome::Broken(said),
        }
    }

    /// Runs a command and hands on its output as it comes.
    ///
    /// # Errors
    /// When the stream to the box fails; what happens inside the box is in the outcome.
    pub fn run(
        &mut self,
        argv: &[String],
        limit: Duration,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Outcome> {
        self.last_id += 1;
        let id = self.last_id;
        let deadline = Instant::now() + limit;
        if Frame::write(&Frame::Run { id, argv: argv.to_vec() }, &mut self.to_agent).is_err() {
            let end = self.machine.ended(PANIC_GRACE);
            return Ok(self.ended(end.unwrap_or(End::Broken("The agent's stream closed.".into()))));
        }
        loop {
            match self.next(deadline) {
                Ok(Frame::Stdout { id: of, data }) if of == id => output(Stream::Stdout, &data),
                Ok(Frame::Stderr { id: of, data }) if of == id => output(Stream::Stderr, &data),
                Ok(Frame::Exit { id: of, status }) if of == id => return Ok(Outcome::Exit(status)),
                Ok(Frame::Failed { id: of, reason }) if of == id => return Ok(Outcome::NotStarted(reason)),
                Ok(_) => {}
                Err(outcome) => {
                    if outcome == Outcome::TimedOut {
                        let _ = Frame::Kill { id, signal: SIGKILL }.write(&mut self.to_agent);
                    }
                    return Ok(outcome);
                }
            }
        }
    }

    /// Runs a shell command and collects what it writes.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<Run> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let argv = ["sh", "-c", command].map(str::to_owned);
        let outcome = self.run(&argv, limit, &mut |stream, data| match stream {
            Stream::Stdout => stdout.extend_from_slice(data),
            Stream::Stderr => stderr.extend_from_slice(data),
        })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Run { outcome, stdout: text(stdout), stderr: text(stderr) })
    }

    /// The box's serial port.
    pub fn serial(&self) -> &Serial {
        self.machine.serial()
    }

    /// What was booted.
    pub fn media(&self) -> &Media {
        &self.media
    }

    /// From power-on until the parent took commands.
    pub fn booted_in(&self) -> Duration {
        self.booted_in
    }

    /// The release of the parent's kernel.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// The machine itself, for its consoles.
    pub fn machine(&mut self) -> &mut dyn Machine {
        self.machine.as_mut()
    }
}

fn read_frames(mut from: UnixStream) -> Receiver<Frame> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        while let Ok(Some(frame)) = Frame::read(&mut from) {
            if sender.send(frame).is_err() {
                break;
            }
        }
    });
    receiver
}
