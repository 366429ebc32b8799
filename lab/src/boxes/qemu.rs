//! AMD boxes: QEMU, emulating processors with SVM and nested paging (TCG).
//!
//! QEMU and the firmware come from the newest packages, unpacked in the cache: Debian 12's own QEMU lacks x2APIC
//! under TCG and ignores the interrupt shadow at VMRUN.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use parterre_lab_agent::PORT_NAME;
use serde_json::Value;

use super::serial::Serial;
use super::spec::Nic;
use super::{Boot, BoxSpec, Emulator, End, Machine, mend, spawn};
use crate::bundle::{self, Bundle};
use crate::cache::RunDir;
use crate::{cleanup, tool};

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
const FIRMWARE: &str = "usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "usr/share/OVMF/OVMF_VARS_4M.fd";
/// Zen 3, with what TCG has besides and without what it lacks (QEMU would warn of each).
const PROCESSOR: &str = "EPYC-v4,+svm,+npt,+x2apic,-fxsr-opt,-misalignsse,-osvw,-topoext,-perfctr-core,-clzero,\
                         -ibpb,-nrip-save,-xsavec,-xsaves";
/// How long QEMU may take to open its sockets.
const START: Duration = Duration::from_secs(20);

/// QEMU, ready to emulate.
#[derive(Debug)]
pub struct Qemu {
    bundle: Bundle,
    program: String,
}

impl Qemu {
    /// Takes QEMU from the cache, or fetches it.
    ///
    /// # Errors
    /// When the packages cannot be had.
    pub fn new() -> Result<Qemu> {
        let bundle =
            bundle::get("qemu", bundle::From::Newest, &["qemu-system-x86", "ovmf", "seabios"], true)?;
        let program = mend::program(&bundle, PROGRAM)?;
        Ok(Qemu { bundle, program })
    }

    fn arguments(&self, spec: &BoxSpec, boot: &Boot, dir: &Path) -> Result<Vec<String>> {
        let variables = dir.join("firmware-variables.fd");
        fs::copy(self.bundle.file(VARIABLES)?, &variables)
            .context("The firmware's variables cannot be copied.")?;
        let mut a = Arguments::default();
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            a.pair("-L", &self.bundle.file(data)?.display().to_string());
        }
        a.words("-nodefaults -no-user-config -display none -vga none -machine q35");
        let accelerator = if spec.icount { "tcg,thread=single" } else { "tcg,thread=multi" };
        a.pair("-accel", accelerator);
        if spec.icount {
            a.pair("-icount", "shift=0,sleep=off");
        }
        a.pair("-cpu", &processor(spec));
        a.memory_and_processors(spec);
        let firmware = self.bundle.file(FIRMWARE)?;
        a.pair("-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={}", comma(&firmware)));
        a.pair("-drive", &format!("if=pflash,format=raw,unit=1,file={}", comma(&variables)));
        a.channels(dir);
        a.boot(spec, boot);
        a.devices(spec);
        a.words("-no-reboot -boot menu=off,splash-time=0 -device virtio-rng-pci");
        Ok(a.0)
    }
}

impl Emulator for Qemu {
    fn power_on(&self, spec: &BoxSpec, boot: &Boot, dir: &RunDir) -> Result<Box<dyn Machine>> {
        spec.check()?;
        ensure!(
            spec.model.is_none(),
            "An AMD box has one model of processor; take features with --cpu-flags instead."
        );
        let dir = dir.path();
        let mut command = self.bundle.command(&self.program)?;
        command.args(self.arguments(spec, boot, dir)?);
        let (mut child, guard) = spawn(command, dir, "QEMU", "qemu.log")?;
        let serial = Serial::default();
        let output = child.stdout.take().context("QEMU's output cannot be read.")?;
        let reader = serial.follow(output, File::create(dir.join("serial.log"))?);
        let mut machine = QemuMachine {
            child,
            serial,
            reader: Some(reader),
            dir: dir.to_owned(),
            reason: None,
            end: None,
            agent: None,
            console: None,
            _guard: guard,
        };
        machine.connect()?;
        Ok(Box::new(machine))
    }
}

fn processor(spec: &BoxSpec) -> String {
    let mut model = PROCESSOR.replace(char::is_whitespace, "");
    for flag in &spec.cpu_flags {
        model.push(',');
        model.push_str(flag);
    }
    model
}

/// QEMU reads a comma in a file's name when it is doubled.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// QEMU's command line, as it grows.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split_whitespace().map(str::to_owned));
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.0.extend([name.to_owned(), value.to_owned()]);
    }

    fn memory_and_processors(&mut self, spec: &BoxSpec) {
        // A socket lies in one node; Linux finds anything else insane.
        let sockets = match spec.numa {
            1 => 1,
            nodes if spec.cpus.is_multiple_of(nodes) => nodes,
            _ => spec.cpus,
        };
        self.pair(
            "-smp",
            &format!("{},sockets={sockets},cores={},threads=1", spec.cpus, spec.cpus / sockets),
        );
        self.pair("-m", &format!("{}M", spec.memory));
        if spec.numa < 2 {
            return;
        }
        let nodes = u64::from(spec.numa);
        for node in 0..nodes {
            // What does not divide evenly goes to the first node.
            let share = spec.memory / nodes + if node == 0 { spec.memory % nodes } else { 0 };
            self.pair("-object", &format!("memory-backend-ram,id=memory{node},size={share}M"));
            let (first, end) =
                (node * u64::from(spec.cpus) / nodes, (node + 1) * u64::from(spec.cpus) / nodes);
            self.pair("-numa", &format!("node,nodeid={node},memdev=memory{node},cpus={first}-{}", end - 1));
        }
    }

    fn channels(&mut self, dir: &Path) {
        self.words("-chardev stdio,id=serial,signal=off -serial chardev:serial");
        for name in ["agent", "console", "monitor", "debug"] {
            let path = comma(&dir.join(name));
            self.pair("-chardev", &format!("socket,id={name},server=on,wait=off,path={path}"));
        }
        // The second monitor is for people: `socat - UNIX-CONNECT:~/.cache/parterre/run/*/debug`.
        self.words(
            "-mon chardev=monitor,mode=control -mon chardev=debug,mode=readline -device virtio-serial-pci",
        );
        self.pair("-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}"));
        self.pair("-device", "virtconsole,chardev=console");
    }

    fn boot(&mut self, spec: &BoxSpec, boot: &Boot) {
        // Where the clock counts instructions it leaps while nothing is to be done, and the firmware's driver for NVMe gives
        // up a disk that takes longer; its driver for virtio waits.
        let device = if spec.icount { "virtio-blk-pci" } else { "nvme" };
        match boot {
            Boot::Disks(images) => {
                for (n, image) in images.iter().enumerate() {
                    self.pair("-drive", &format!("if=none,id=boot{n},format=raw,file={}", comma(image)));
                    self.pair("-device", &format!("{device},drive=boot{n},serial=lab-boot{n},bootindex={n}"));
                }
            }
            Boot::Kernel { kernel, initrd, cmdline } => {
                self.pair("-kernel", &kernel.display().to_string());
                self.pair("-initrd", &initrd.display().to_string());
                self.pair("-append", cmdline);
            }
        }
    }

    fn devices(&mut self, spec: &BoxSpec) {
        for (name, disks, snapshot) in [("disk", &spec.disks, "off"), ("scratch", &spec.scratch, "on")] {
            for (n, disk) in disks.iter().enumerate() {
                let file = comma(disk);
                self.pair(
                    "-drive",
                    &format!("if=none,id={name}{n},format=raw,snapshot={snapshot},file={file}"),
                );
                self.pair("-device", &format!("virtio-blk-pci,drive={name}{n},serial=lab-{name}{n}"));
            }
        }
        for (n, nic) in spec.nics.iter().enumerate() {
            let device = match nic {
                Nic::E1000e => "e1000e",
                Nic::E1000 => "e1000",
                Nic::Igb => "igb",
                Nic::Virtio => "virtio-net-pci",
            };
            self.pair("-netdev", &format!("user,id=net{n},restrict=on"));
            self.pair("-device", &format!("{device},netdev=net{n},romfile="));
        }
    }
}

struct QemuMachine {
    child: Child,
    serial: Serial,
    reader: Option<JoinHandle<()>>,
    dir: std::path::PathBuf,
    /// Why QEMU stopped the machine, from its monitor.
    reason: Option<Receiver<String>>,
    end: Option<End>,
    agent: Option<UnixStream>,
    console: Option<UnixStream>,
    _guard: cleanup::Guard,
}

impl QemuMachine {
    /// Opens the sockets, as soon as QEMU has made them.
    fn connect(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        let monitor = self.socket("monitor", deadline)?;
        self.agent = Some(self.socket("agent", deadline)?);
        self.console = Some(self.socket("console", deadline)?);
        let (sender, receiver) = channel();
        let mut to = monitor.try_clone()?;
        thread::spawn(move || {
            let _ = to.write_all(b"{\"execute\":\"qmp_capabilities\"}\n");
            let reasons =
                BufReader::new(monitor).lines().map_while(Result::ok).filter_map(|l| shutdown_reason(&l));
            for reason in reasons {
                let _ = sender.send(reason);
            }
        });
        self.reason = Some(receiver);
        Ok(())
    }

    fn socket(&mut self, name: &str, deadline: Instant) -> Result<UnixStream> {
        let path = self.dir.join(name);
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(e) if self.child.try_wait()?.is_some() || Instant::now() > deadline => {
                    let said = self.said();
                    return Err(
                        anyhow::Error::from(e).context(format!("QEMU did not start. It said:\n{said}"))
                    );
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn said(&self) -> String {
        let mut said = String::new();
        if let Ok(mut log) = File::open(self.dir.join("qemu.log")) {
            let _ = log.read_to_string(&mut said);
        }
        tool::tail(&said, 10)
    }
}

/// Gives commands to the monitor for people, and collects what it says until it has been silent for a while.
fn ask(mut monitor: UnixStream, commands: &[String]) -> std::io::Result<String> {
    monitor.set_read_timeout(Some(Duration::from_secs(1)))?;
    for command in commands {
        monitor.write_all(format!("{command}\n").as_bytes())?;
    }
    let mut text = Vec::new();
    let mut part = [0; 4096];
    while let Ok(length) = monitor.read(&mut part)
        && length > 0
    {
        text.extend_from_slice(&part[..length]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The reason in QEMU's SHUTDOWN event (QEMU QMP reference, "run-state").
fn shutdown_reason(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    (message.get("event")?.as_str()? == "SHUTDOWN").then_some(())?;
    Some(message.get("data")?.get("reason")?.as_str()?.to_owned())
}

impl Machine for QemuMachine {
    fn serial(&self) -> &Serial {
        &self.serial
    }

    fn agent(&mut self) -> Result<UnixStream> {
        self.agent.take().context("The stream to the box's agent was taken already.")
    }

    fn console(&mut self) -> Result<UnixStream> {
        self.console.take().context("The stream of the box's console was taken already.")
    }

    fn processors(&mut self, count: u32) -> String {
        let apics = (0..count).flat_map(|n| [format!("cpu {n}"), "info lapic".to_owned()]);
        let commands: Vec<String> = ["info registers -a".to_owned()].into_iter().chain(apics).collect();
        let text = UnixStream::connect(self.dir.join("debug")).and_then(|monitor| ask(monitor, &commands));
        text.unwrap_or_else(|e| format!("The emulator's monitor does not answer: {e}."))
    }

    fn ended(&mut self, wait: Duration) -> Option<End> {
        if self.end.is_some() {
            return self.end.clone();
        }
        let reason = match self.reason.as_ref()?.recv_timeout(wait) {
            Ok(reason) => reason,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => String::new(),
        };
        self.end = Some(match reason.as_str() {
            "guest-shutdown" => End::PoweredOff,
            "guest-reset" => End::Reset,
            _ => {
                let _ = self.child.wait();
                End::Broken(self.said())
            }
        });
        self.end.clone()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_spread_over_nodes_without_loss() {
        let mut arguments = Arguments::default();
        arguments.memory_and_processors(&BoxSpec { cpus: 5, memory: 1000, numa: 3, ..BoxSpec::default() });
        let text = arguments.0.join(" ");
        assert!(text.contains("memory0,size=334M") && text.contains("memory2,size=333M"), "{text}");
        assert!(
            text.contains("cpus=0-0") && text.contains("cpus=1-2") && text.contains("cpus=3-4"),
            "{text}"
        );
    }

    #[test]
    fn shutdown_events_are_told_from_others() {
        let event = r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}"#;
        assert_eq!(shutdown_reason(event).as_deref(), Some("guest-reset"));
        for other in [r#"{"event":"RESET","data":{}}"#, r#"{"return":{}}"#, "", "{"] {
            assert_eq!(shutdown_reason(other), None);
        }
    }

    #[test]
    fn processor_features_come_last() {
        let spec = BoxSpec { cpu_flags: vec!["-svm".into()], ..BoxSpec::default() };
        let text = processor(&spec);
        assert!(text.starts_with("EPYC") && text.ends_with(",-svm") && !text.contains(' '), "{text}");
    }
}
