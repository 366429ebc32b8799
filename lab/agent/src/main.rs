//! The program inside a box that runs the lab's commands. Started by init with the path of the virtio-serial port;
//! ends (and is started again) when the port does. With `--clock` it prints the monotonic clock's nanoseconds instead, with
//! `--unreadable` the ranges of RAM that the kernel cannot read, and with `--dirty-pages`, `--impossible-state` or `--processor-facts` it tries the
//! hypervisor with a guest of its own: what busybox cannot do.

#![forbid(unsafe_code)]

mod guest;
mod ram;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use parterre_lab_agent::Frame;
use rustix::process::{Pid, Signal, kill_process_group};

/// How long after a command's end its output is still waited for, should something it started hold it open.
const OUTPUT_GRACE: Duration = Duration::from_millis(300);

struct Running {
    group: Pid,
    stdin: Option<ChildStdin>,
}

/// What the threads of one agent share.
#[derive(Clone)]
struct Agent {
    port: Arc<Mutex<File>>,
    running: Arc<Mutex<HashMap<u32, Running>>>,
}

fn main() -> Result<()> {
    let path =
        std::env::args().nth(1).context("Name the virtio-serial port to serve as the only argument.")?;
    if path == "--clock" {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        println!("{}", i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec));
        return Ok(());
    }
    match path.as_str() {
        "--dirty-pages" => return guest::dirty_pages(),
        "--impossible-state" => return guest::impossible_state(),
        "--processor-facts" => return guest::processor_facts(),
        _ => {}
    }
    if path == "--unreadable" {
        for range in ram::unreadable()? {
            println!("{:#x}-{:#x}", range.start, range.end);
        }
        return Ok(());
    }
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let mut from = open().with_context(|| format!("The port {path} cannot be opened."))?;
    let to = from.try_clone().with_context(|| format!("The port {path} cannot be opened twice."))?;
    let agent = Agent { port: Arc::new(Mutex::new(to)), running: Arc::default() };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    agent.send(&Frame::Hello { system: release.trim().to_owned() });
    while let Some(frame) = Frame::read(&mut from).with_context(|| format!("Reading {path} failed."))? {
        agent.handle(frame);
    }
    Ok(())
}

/// An error and its causes, one after the other.
fn sentences(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Agent {
    fn send(&self, frame: &Frame) {
        // A port that cannot be written to is gone for the reader too, which then ends the program.
        if let Ok(mut port) = self.port.lock() {
            let _ = frame.write(&mut *port);
        }
    }

    fn handle(&self, frame: Frame) {
        match frame {
            Frame::Run { id, argv } => self.run(id, &argv),
            Frame::Stdin { id, data } => self.stdin(id, &data),
            Frame::Kill { id, signal } => self.kill(id, signal),
            _ => {}
        }
    }

    fn run(&self, id: u32, argv: &[String]) {
        match self.spawn(id, argv) {
            Ok(child) => {
                let agent = self.clone();
                thread::spawn(move || agent.attend(id, child));
            }
            Err(e) => self.send(&Frame::Failed { id, reason: sentences(&e) }),
        }
    }

    fn spawn(&self, id: u32, argv: &[String]) -> Result<Child> {
        let (program, arguments) = argv.split_first().context("There is no command.")?;
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir("/root")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("The command '{program}' cannot be started in the box."))?;
        let group = Pid::from_child(&child);
        let stdin = child.stdin.take();
        if let Ok(mut running) = self.running.lock() {
            running.insert(id, Running { group, stdin });
        }
        Ok(child)
    }

    /// Passes on a command's output, waits for its end and reports it.
    fn attend(&self, id: u32, mut child: Child) {
        let stdout = child.stdout.take().map(|pipe| self.copy(pipe, move |data| Frame::Stdout { id, data }));
        let stderr = child.stderr.take().map(|pipe| self.copy(pipe, move |data| Frame::Stderr { id, data }));
        let status = child.wait().map_or(127, |s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0)));
        for done in [stdout, stderr].into_iter().flatten() {
            let _ = done.recv_timeout(OUTPUT_GRACE);
        }
        if let Ok(mut running) = self.running.lock() {
            running.remove(&id);
        }
        self.send(&Frame::Exit { id, status });
    }

    /// Copies a pipe into frames on a thread of its own; the receiver hears of the pipe's end.
    fn copy(
        &self,
        mut pipe: impl Read + Send + 'static,
        frame: impl Fn(Vec<u8>) -> Frame + Send + 'static,
    ) -> Receiver<()> {
        let (ended, receiver) = channel();
        let agent = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                agent.send(&frame(buffer[..n].to_vec()));
            }
            let _ = ended.send(());
        });
        receiver
    }

    fn stdin(&self, id: u32, data: &[u8]) {
        let Ok(mut running) = self.running.lock() else { return };
        let Some(command) = running.get_mut(&id) else { return };
        let written = command.stdin.as_mut().map(|pipe| pipe.write_all(data).and_then(|()| pipe.flush()));
        if data.is_empty() || matches!(written, Some(Err(_))) {
            command.stdin = None;
        }
    }

    fn kill(&self, id: u32, signal: i32) {
        let Ok(running) = self.running.lock() else { return };
        if let (Some(command), Some(signal)) = (running.get(&id), Signal::from_named_raw(signal)) {
            let _ = kill_process_group(command.group, signal);
        }
    }
}
