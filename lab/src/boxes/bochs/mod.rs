//! Intel boxes: Bochs, emulating processors with VMX and EPT.
//!
//! Bochs interprets one instruction at a time, so a box is slow (a minute to Linux) and, except for what comes in over its
//! cables, the same every time: its clock counts instructions. Bochs and the firmware come from the newest packages, unpacked in
//! the cache: it is since version 3.1 that Bochs tells firmware of processors and ACPI tables.

mod configuration;
mod mend;
mod wires;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parterre_lab_agent::PORT_NAME;
use rustix::process::{Pid, Signal, kill_process};

use super::serial::Serial;
use super::{Boot, BoxSpec, Emulator, End, Machine, spawn};
use crate::bundle::{self, Bundle};
use crate::cache::RunDir;
use crate::{cleanup, tool};
use configuration::Parts;
use wires::Wire;

const PROGRAM: &str = "usr/bin/bochs-bin";
const PLUGINS: &str = "usr/lib/x86_64-linux-gnu/bochs/plugins";
const FIRMWARE: &str = "usr/share/ovmf/OVMF.fd";
const VIDEO: &str = "usr/share/bochs/VGABIOS-lgpl-latest";
/// The first line that the parent's shell says on its cable.
const CONSOLE_HELLO: &str = "parterre.lab.console";
/// How long Bochs may take to connect its cables.
const START: Duration = Duration::from_secs(20);
/// How long Bochs may take to write down what its processors hold.
const DUMP: Duration = Duration::from_secs(5);
/// Lines of Bochs's log that are kept for a report.
const KEPT: usize = 400;

/// Bochs, ready to emulate.
#[derive(Debug)]
pub struct Bochs {
    bundle: Bundle,
    program: String,
}

impl Bochs {
    /// Takes Bochs from the cache, or fetches it.
    ///
    /// # Errors
    /// When the packages cannot be had.
    pub fn new() -> Result<Bochs> {
        let packages = ["bochs", "bochs-term", "bochsbios", "ovmf"];
        let bundle = bundle::get("bochs", bundle::From::Newest, &packages, true)?;
        let program = mend::program(&bundle)?;
        Ok(Bochs { bundle, program })
    }
}

impl Emulator for Bochs {
    fn power_on(&self, spec: &BoxSpec, boot: &Boot, dir: &RunDir) -> Result<Box<dyn Machine>> {
        spec.check()?;
        let Boot::Disks(disks) = boot else {
            bail!("An Intel box boots from a disk (Bochs starts no kernel by itself).");
        };
        let dir = dir.path();
        let wires = [Wire::new()?, Wire::new()?, Wire::new()?];
        let cables = wires.iter().map(Wire::address).collect::<Result<Vec<_>>>()?;
        let (firmware, video) = (self.bundle.file(FIRMWARE)?, self.bundle.file(VIDEO)?);
        let parts = Parts { firmware: &firmware, video: &video, boot: disks, cables: &cables };
        configuration::write(spec, &parts, dir)?;
        let locked = if spec.vmx_locked { Some(mend::program_without_vmx(&self.bundle)?) } else { None };
        let mut command = self.bundle.command(locked.as_deref().unwrap_or(&self.program))?;
        command.env("LTDL_LIBRARY_PATH", self.bundle.root().join(PLUGINS));
        command.env("BXSHARE", self.bundle.root().join("usr/share/bochs"));
        // Its picture of a text screen goes to a terminal that it makes for itself, where nobody looks.
        command.env("TERM", "vt100").args(["-q", "-unlock", "-f"]).arg(dir.join("bochsrc"));
        let (mut child, guard) = spawn(command, dir, "Bochs", "bochs.err")?;
        let log = Log::default();
        let output = child.stdout.take().context("Bochs's output cannot be read.")?;
        let reader = log.follow(output, File::create(dir.join("bochs.log"))?);
        let mut machine = BochsMachine {
            child,
            serial: Serial::default(),
            log,
            readers: vec![reader],
            dir: dir.to_owned(),
            agent: None,
            console: None,
            _guard: guard,
        };
        machine.connect(wires)?;
        Ok(Box::new(machine))
    }
}

/// What Bochs says of itself and of the machine.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Reads it on a thread of its own to its end, copying everything to `file`.
    fn follow(&self, from: ChildStdout, mut file: File) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while let Ok(1..) = from.read_until(b'\n', &mut line) {
                let _ = file.write_all(&line);
                log.add(String::from_utf8_lossy(&line).trim_end());
                line.clear();
            }
        })
    }

    fn add(&self, line: &str) {
        let Ok(mut lines) = self.0.lock() else { return };
        // What says how the machine ended is never forgotten; there is little of it.
        if lines.len() > 2 * KEPT {
            let surplus = lines.len() - KEPT;
            let old: Vec<String> = lines.drain(..surplus).filter(|line| tells_end(line)).collect();
            lines.splice(..0, old);
        }
        lines.push(line.to_owned());
    }

    fn text(&self) -> String {
        self.0.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// How the machine ended, as far as the log tells.
    fn end(&self) -> Option<End> {
        let lines = self.0.lock().ok()?;
        end(lines.iter().map(String::as_str))
    }
}

/// What Bochs writes at each reset; the first is the power-on.
const RESET: &str = "bx_pc_system_c::Reset(";
/// What it writes when software switches the machine off.
const POWER_OFF: &str = "ACPI control: soft power off";
/// What it writes before it stops at a triple fault.
const TRIPLE_FAULT: &str = ">>PANIC<< exception(): 3rd (";

fn tells_end(line: &str) -> bool {
    [RESET, POWER_OFF, TRIPLE_FAULT].iter().any(|text| line.contains(text))
}

fn end<'a>(lines: impl Iterator<Item = &'a str>) -> Option<End> {
    let mut resets = 0;
    for line in lines.filter(|line| tells_end(line)) {
        if line.contains(POWER_OFF) {
            return Some(End::PoweredOff);
        }
        resets += 1;
        if resets > 1 || line.contains(TRIPLE_FAULT) {
            return Some(End::Reset);
        }
    }
    None
}

struct BochsMachine {
    child: Child,
    serial: Serial,
    log: Log,
    readers: Vec<JoinHandle<()>>,
    dir: PathBuf,
    agent: Option<UnixStream>,
    console: Option<UnixStream>,
    _guard: cleanup::Guard,
}

impl BochsMachine {
    fn connect(&mut self, wires: [Wire; 3]) -> Result<()> {
        let [serial, agent, console] = wires;
        let serial = self.take(serial)?;
        self.readers.push(self.serial.follow(serial, File::create(self.dir.join("serial.log"))?));
        self.agent = Some(wires::after(PORT_NAME, self.take(agent)?)?);
        self.console = Some(wires::after(CONSOLE_HELLO, self.take(console)?)?);
        Ok(())
    }

    fn take(&mut self, wire: Wire) -> Result<TcpStream> {
        let child = &mut self.child;
        wire.connect(START, || !matches!(child.try_wait(), Ok(None)))
            .with_context(|| format!("Bochs did not start. It said:\n{}", self.said()))
    }

    /// The end of what it said: why it stopped is on its standard error.
    fn said(&self) -> String {
        let reason = fs::read(self.dir.join("bochs.err")).unwrap_or_default();
        let reason = super::serial::plain(&String::from_utf8_lossy(&reason));
        let errors: Vec<String> =
            self.log.text().lines().filter(|line| line.contains(">>PANIC<<")).map(str::to_owned).collect();
        format!("{}\n{}", tool::tail(&reason, 5), tool::tail(&errors.join("\n"), 5))
    }

    /// Waits until Bochs has ended and all that it said is read.
    fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        true
    }
}

impl Machine for BochsMachine {
    fn serial(&self) -> &Serial {
        &self.serial
    }

    fn agent(&mut self) -> Result<UnixStream> {
        self.agent.take().context("The stream to the box's agent was taken already.")
    }

    fn console(&mut self) -> Result<UnixStream> {
        self.console.take().context("The stream of the box's console was taken already.")
    }

    /// Bochs writes down what its processor holds when it stops, and only then: this ends the box.
    fn processors(&mut self, _count: u32) -> String {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::HUP);
        }
        if !self.wait(DUMP) {
            return "Bochs does not stop.".to_owned();
        }
        self.log.text()
    }

    fn ended(&mut self, wait: Duration) -> Option<End> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(end) = self.log.end() {
                return Some(end);
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                self.wait(DUMP);
                return Some(self.log.end().unwrap_or_else(|| End::Broken(self.said())));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.wait(DUMP);
    }
}

impl Drop for BochsMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_how_a_machine_ended() {
        let on = "00000000000i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called";
        let off = "03993427144p[ACPI  ] >>PANIC<< ACPI control: soft power off";
        let fault = "01p[CPU0  ] >>PANIC<< exception(): 3rd (14) exception with no resolution";
        assert_eq!(end([on, "anything"].into_iter()), None);
        assert_eq!(end([on, "x", off].into_iter()), Some(End::PoweredOff));
        assert_eq!(end([on, on].into_iter()), Some(End::Reset));
        assert_eq!(end([on, fault].into_iter()), Some(End::Reset));
    }

    #[test]
    fn a_long_log_keeps_what_counts() {
        let log = Log::default();
        log.add("bx_pc_system_c::Reset(HARDWARE) called");
        (0..10 * KEPT).for_each(|n| log.add(&format!("line {n}")));
        assert!(log.text().lines().count() <= 2 * KEPT + 2);
        log.add("bx_pc_system_c::Reset(HARDWARE) called");
        assert_eq!(log.end(), Some(End::Reset));
    }
}
