//! A worker without a hypervisor, for the tests of the service: it talks as `vmwp --service` does. The command line of
//! its virtual machine says how it behaves.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use parterre_api::guest::GuestAnswer;
use parterre_api::hotplug::{DeviceAnswer, DeviceRequest};
use parterre_api::worker::{EjectedDisc, WorkerPhase, WorkerRequest, WorkerSpec, WorkerStatus};
use parterre_api::{OffReason, WorkerPaths};

fn line(spec: &WorkerSpec, phase: WorkerPhase) -> String {
    let status = WorkerStatus::new(spec.id, std::process::id(), phase);
    serde_json::to_string(&status).unwrap() + "\n"
}

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let spec: WorkerSpec = serde_json::from_str(&text).unwrap();
    let behaviour = spec.settings.command_line.clone();
    let starting = WorkerPhase::Starting { step: "preparing".into() };
    match behaviour.as_str() {
        "die" => std::process::exit(3),
        "nonsense" => println!("hello"),
        "fail" => {
            let message = "no hypervisor here".into();
            print!("{}", line(&spec, WorkerPhase::Ended(OffReason::Failed { message })));
            return;
        }
        _ => {}
    }
    let paths = WorkerPaths::new(spec.directory.clone());
    let control = UnixListener::bind(paths.control()).unwrap();
    let _console = UnixListener::bind(paths.console()).unwrap();
    let devices = UnixListener::bind(paths.devices()).unwrap();
    std::thread::spawn(move || devices.incoming().flatten().for_each(plug));
    let guest = UnixListener::bind(paths.guest()).unwrap();
    let told = spec.directory.join("told");
    std::thread::spawn(move || guest.incoming().flatten().for_each(|stream| hear(stream, &told)));
    print!("{}", line(&spec, starting));
    std::io::stdout().flush().unwrap();
    serve(&spec, &control, &behaviour);
}

/// Does what is asked of the guest, and writes it down.
fn hear(mut stream: UnixStream, told: &Path) {
    let mut request = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
    let mut told = OpenOptions::new().create(true).append(true).open(told).unwrap();
    told.write_all(request.as_bytes()).unwrap();
    let _ = stream.write_all((serde_json::to_string(&GuestAnswer::Done).unwrap() + "\n").as_bytes());
}

/// Answers a request about devices. A drive at place 9 is locked, and a disk has the size that is wanted.
fn plug(mut stream: UnixStream) {
    let mut request = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
    let answer = match serde_json::from_str(&request).unwrap() {
        DeviceRequest::ChangeMedium { disk, force: false } if disk.lun == 9 => {
            DeviceAnswer::Failed { message: "the guest has locked the drive".into() }
        }
        DeviceRequest::ResizeDisk { size, .. } => DeviceAnswer::Resized { size: size.unwrap_or(4096) },
        _ => DeviceAnswer::Done,
    };
    let _ = stream.write_all((serde_json::to_string(&answer).unwrap() + "\n").as_bytes());
}

/// Serves one connection after the other; a service may come back.
fn serve(spec: &WorkerSpec, control: &UnixListener, behaviour: &str) {
    let running = line(spec, WorkerPhase::Running { resets: 0 });
    for stream in control.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.write_all(running.as_bytes());
        match behaviour {
            // The guest has taken the first disc out of its drive.
            "eject" => {
                let mut status =
                    WorkerStatus::new(spec.id, std::process::id(), WorkerPhase::Running { resets: 0 });
                let disk = &spec.settings.disks[0];
                status
                    .ejected
                    .push(EjectedDisc { drive: disk.id, file: disk.file.clone().unwrap_or_default() });
                let _ = stream.write_all((serde_json::to_string(&status).unwrap() + "\n").as_bytes());
            }
            "crash" => std::process::abort(),
            "off" => {
                std::thread::sleep(Duration::from_millis(100));
                let _ = stream.write_all(line(spec, WorkerPhase::Ended(OffReason::PoweredOff)).as_bytes());
                return;
            }
            _ => {}
        }
        for request in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
            let phase = match serde_json::from_str::<WorkerRequest>(&request).unwrap() {
                WorkerRequest::Pause => Some(WorkerPhase::Paused { resets: 0 }),
                WorkerRequest::Resume => Some(WorkerPhase::Running { resets: 0 }),
                _ => None,
            };
            if let Some(phase) = phase {
                let _ = stream.write_all(line(spec, phase).as_bytes());
                continue;
            }
            let reason = match serde_json::from_str::<WorkerRequest>(&request).unwrap() {
                WorkerRequest::PowerButton if behaviour != "deaf" => OffReason::PoweredOff,
                WorkerRequest::PowerOff if behaviour != "stuck" => OffReason::Stopped,
                _ => continue,
            };
            let _ = stream.write_all(line(spec, WorkerPhase::Ended(reason)).as_bytes());
            return;
        }
    }
}
