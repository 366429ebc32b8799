//! A booted box in which commands can be run, one after the other.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parterre_lab_agent::Frame;

use crate::boxes::serial::{self, Serial};
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
/// The signal that ends a command that was watched long enough.
const SIGTERM: i32 = 15;

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

/// What a command can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing: the end of its input comes at once.
    Empty,
    /// These bytes, and what is sent in reply to its output.
    Open(Vec<u8>),
}

/// What to do about a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Wait,
    /// Send it these bytes.
    Send(Vec<u8>),
    /// End it.
    Stop,
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
    /// How many steps of the conversation were reached.
    pub steps: usize,
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
    /// Builds what the box needs, switches it on and waits until its serial port said all these texts, in whatever
    /// order; for boxes whose parent shall not come up. Returns the log.
    ///
    /// # Errors
    /// When something does not build, or a text does not come in `limit`; then with the end of the log.
    pub fn watch(spec: &BoxSpec, wish: &Wish, texts: &[&str], limit: Duration) -> Result<String> {
        let emulator = boxes::emulator(spec.vendor)?;
        let dir = RunDir::create()?;
        let media = media::prepare(wish, spec.vendor, dir.path())?;
        let mut machine = emulator.power_on(spec, &media.boot, &dir)?;
        let deadline = Instant::now() + limit;
        loop {
            let ended = machine.ended(LOOK).is_some();
            let log = machine.serial().text();
            let missing: Vec<_> = texts.iter().filter(|text| !log.contains(**text)).collect();
            if missing.is_empty() {
                return Ok(log);
            }
            if ended || Instant::now() > deadline {
                bail!(
                    "The serial port did not say {missing:?}. The end of its log:\n{}",
                    tool::tail(&log, 30)
                );
            }
        }
    }

    /// Builds what the box needs, switches it on and waits until the parent takes commands.
    ///
    /// # Errors
    /// When something does not build, or the parent does not come up in `limit`; then with the end of the serial log.
    pub fn start(spec: &BoxSpec, wish: &Wish, limit: Duration) -> Result<Session> {
        spec.check()?;
        let emulator = boxes::emulator(spec.vendor)?;
        let dir = RunDir::create()?;
        let media = media::prepare(wish, spec.vendor, dir.path())?;
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

    /// Runs a command; `watch` sees its output as it comes, and says what to do about it. Unless `input` is asked
    /// for, the command's standard input is empty.
    ///
    /// # Errors
    /// When the stream to the box fails; what happens inside the box is in the outcome.
    pub fn run(
        &mut self,
        argv: &[String],
        limit: Duration,
        input: Input,
        watch: &mut dyn FnMut(Stream, &[u8]) -> Reply,
    ) -> Result<Outcome> {
        self.last_id += 1;
        let id = self.last_id;
        let deadline = Instant::now() + limit;
        self.tell(&Frame::Run { id, argv: argv.to_vec() });
        match input {
            Input::Empty => self.tell(&Frame::Stdin { id, data: Vec::new() }),
            // No bytes would mean the end of the input.
            Input::Open(data) if data.is_empty() => {}
            Input::Open(data) => self.tell(&Frame::Stdin { id, data }),
        }
        loop {
            let reply = match self.next(deadline) {
                Ok(Frame::Stdout { id: of, data }) if of == id => watch(Stream::Stdout, &data),
                Ok(Frame::Stderr { id: of, data }) if of == id => watch(Stream::Stderr, &data),
                Ok(Frame::Exit { id: of, status }) if of == id => return Ok(Outcome::Exit(status)),
                Ok(Frame::Failed { id: of, reason }) if of == id => return Ok(Outcome::NotStarted(reason)),
                Ok(_) => Reply::Wait,
                Err(outcome) => {
                    if outcome == Outcome::TimedOut {
                        self.tell(&Frame::Kill { id, signal: SIGKILL });
                    }
                    return Ok(outcome);
                }
            };
            match reply {
                Reply::Wait => {}
                Reply::Send(data) => self.tell(&Frame::Stdin { id, data }),
                Reply::Stop => self.tell(&Frame::Kill { id, signal: SIGTERM }),
            }
        }
    }

    /// Tells the agent something. If its stream is gone, so is the machine, which the next wait notices.
    fn tell(&mut self, frame: &Frame) {
        let _ = frame.write(&mut self.to_agent);
    }

    /// Runs a shell command and collects what it writes.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<Run> {
        self.converse(command, &[], limit)
    }

    /// Runs a shell command and talks with it: each step waits for a text in its standard output, then sends its
    /// answer. After the last step the command is ended, if there was any step; how it went is in the output.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn converse(&mut self, command: &str, steps: &[(&str, &str)], limit: Duration) -> Result<Run> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let argv = ["sh", "-c", command].map(str::to_owned);
        let mut script = Script { steps, next: 0, read: 0 };
        let input = if steps.is_empty() { Input::Empty } else { Input::Open(script.advance(&[])) };
        let outcome = self.run(&argv, limit, input, &mut |stream, data| {
            match stream {
                Stream::Stdout => stdout.extend_from_slice(data),
                Stream::Stderr => stderr.extend_from_slice(data),
            }
            let answer = script.advance(&stdout);
            match (script.done(), answer.is_empty()) {
                (true, _) => Reply::Stop,
                (false, true) => Reply::Wait,
                (false, false) => Reply::Send(answer),
            }
        })?;
        let text = |bytes: Vec<u8>| serial::plain(&String::from_utf8_lossy(&bytes));
        Ok(Run { outcome, stdout: text(stdout), stderr: text(stderr), steps: script.next })
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

    /// Whether the box can still be used.
    pub fn alive(&mut self) -> bool {
        self.machine.ended(Duration::ZERO).is_none() && self.serial().panic().is_none()
    }

    /// The machine itself, for its consoles.
    pub fn machine(&mut self) -> &mut dyn Machine {
        self.machine.as_mut()
    }
}

/// A conversation with a command: texts to wait for, one after the other, and what is answered to each.
struct Script<'a> {
    steps: &'a [(&'a str, &'a str)],
    next: usize,
    /// How much of the output belongs to steps that were reached.
    read: usize,
}

impl Script<'_> {
    /// Goes as far as the output so far allows, and returns the answers that are due.
    fn advance(&mut self, output: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some((expected, answer)) = self.steps.get(self.next) {
            let Some(at) = find(&output[self.read..], expected.as_bytes()) else { break };
            self.read += at + expected.len();
            self.next += 1;
            answers.extend_from_slice(answer.as_bytes());
        }
        answers
    }

    /// Whether there was a conversation and it is over.
    fn done(&self) -> bool {
        !self.steps.is_empty() && self.next == self.steps.len()
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    if what.is_empty() {
        return Some(0);
    }
    text.windows(what.len()).position(|window| window == what)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_advances_with_the_output() {
        let steps = [("", "\n"), ("login:", "root\n"), ("# ", "")];
        let mut script = Script { steps: &steps, next: 0, read: 0 };
        assert_eq!(script.advance(b""), b"\n");
        assert_eq!(script.advance(b"log"), b"");
        assert_eq!(script.advance(b"login: "), b"root\n");
        assert!(!script.done());
        assert_eq!(script.advance(b"login: x# "), b"");
        assert!(script.done());
    }

    #[test]
    fn steps_reached_at_once_are_answered_at_once() {
        let steps = [("a", "1"), ("b", "2"), ("a", "3")];
        let mut script = Script { steps: &steps, next: 0, read: 0 };
        assert_eq!(script.advance(b"b a b"), b"12");
        assert_eq!(script.next, 2);
        assert!(!Script { steps: &[], next: 0, read: 0 }.done());
    }
}
