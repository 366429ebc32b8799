//! Commands about virtual machines.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use parterre_api::{
    IntegrationStatus, MemoryRequest, MemoryStatus, StopRequest, Vm, VmSettings, VmState, format_size,
};

use crate::arguments::{Create, VmCommand};
use crate::client::{Client, vm_path};
use crate::console;
use crate::error::Error;
use crate::guest;
use crate::progress::Progress;
use crate::table::{print_bytes, print_json, print_pairs, print_table};

/// Runs a command.
pub fn run(command: VmCommand, json: bool) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new();
    if let VmCommand::Console { name } = &command {
        let vm: Vm = runtime.block_on(client.get(&vm_path(name)))?;
        let Some(socket) = vm.console else { return Err(Error::NoConsole(vm.settings.name)) };
        return console::attach(&vm.settings.name, &socket);
    }
    if let VmCommand::Guest(command) = command {
        return guest::run(&runtime, &client, command, json);
    }
    runtime.block_on(ask(&client, command, json))?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(client: &Client, command: VmCommand, json: bool) -> Result<(), Error> {
    match command {
        VmCommand::Create(create) => {
            let vm: Vm = client.post("/v1/vms", &settings(create)?).await?;
            print_done(json, &vm, "created")
        }
        VmCommand::List => {
            let vms: Vec<Vm> = client.get("/v1/vms").await?;
            if json { print_json(&vms) } else { print_list(&vms) }
        }
        VmCommand::Show { name } => {
            let vm: Vm = client.get(&vm_path(&name)).await?;
            if json {
                return print_json(&vm);
            }
            let integration = match vm.status {
                VmState::Running { .. } => Some(client.get(&(vm_path(&name) + "/integration")).await?),
                _ => None,
            };
            print_vm(&vm, integration.as_ref())
        }
        VmCommand::Start { name } => {
            let progress = Progress::start(&format!("starting {name}"));
            let path = vm_path(&name) + "/start";
            let vm = with_progress(client, &name, &progress, client.post(&path, &())).await;
            drop(progress);
            print_done(json, &vm?, "running")
        }
        VmCommand::Stop { name, force, timeout } => {
            let progress = Progress::start(&format!("stopping {name}"));
            let path = vm_path(&name) + "/stop";
            let request = StopRequest { force, timeout: Some(timeout) };
            let vm = with_progress(client, &name, &progress, client.post(&path, &request)).await;
            drop(progress);
            print_done(json, &vm?, "off")
        }
        VmCommand::Pause { name } => {
            let vm: Vm = client.post(&(vm_path(&name) + "/pause"), &()).await?;
            print_done(json, &vm, "paused")
        }
        VmCommand::Resume { name } => {
            let vm: Vm = client.post(&(vm_path(&name) + "/resume"), &()).await?;
            print_done(json, &vm, "running")
        }
        VmCommand::Delete { name } => {
            client.delete(&vm_path(&name)).await?;
            if json {
                print_json(&serde_json::json!({ "deleted": name }))
            } else {
                print_bytes(format!("{name}: deleted\n").as_bytes())
            }
        }
        VmCommand::Memory { name, size, timeout } => memory(client, &name, size, timeout, json).await,
        VmCommand::Screenshot { name, file } => {
            let picture = client.get_file(&(vm_path(&name) + "/screenshot")).await?;
            std::fs::write(&file, &picture).map_err(|source| Error::File { path: file.clone(), source })?;
            if json {
                print_json(&serde_json::json!({ "file": file, "bytes": picture.len() }))
            } else {
                print_bytes(format!("{name}: screen kept in {}\n", file.display()).as_bytes())
            }
        }
        VmCommand::Disk(command) => crate::disk::run(client, command, json).await,
        VmCommand::Network(command) => crate::network::run_network(client, command, json).await,
        // Handled by `run`.
        VmCommand::Console { .. } | VmCommand::Guest(_) => Ok(()),
    }
}

/// Waits for an operation while its steps are shown.
async fn with_progress(
    client: &Client,
    name: &str,
    progress: &Progress,
    operation: impl Future<Output = Result<Vm, Error>>,
) -> Result<Vm, Error> {
    let watch = client.watch(name, |vm| {
        if let VmState::Starting { step } = &vm.status {
            progress.step(&format!("starting {name}: {step}"));
        }
    });
    tokio::pin!(operation);
    tokio::select! {
        done = &mut operation => done,
        // The operation itself tells what is wrong, if anything is.
        _ = watch => operation.await,
    }
}

/// Shows how a virtual machine stands with its memory, or has it come to an amount.
async fn memory(
    client: &Client,
    name: &str,
    size: Option<u64>,
    seconds: u32,
    json: bool,
) -> Result<(), Error> {
    let path = vm_path(name) + "/memory";
    let status: MemoryStatus = match size {
        None => client.get(&path).await?,
        Some(bytes) => {
            let progress = Progress::start(&format!("waiting for the guest of {name}"));
            let status = client.put(&path, &MemoryRequest { bytes, seconds }).await;
            drop(progress);
            status?
        }
    };
    if json { print_json(&status) } else { print_pairs(memory_pairs(&status)) }
}

/// What there is to say of memory.
fn memory_pairs(status: &MemoryStatus) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("Memory startup", format_size(status.startup))];
    if status.assigned > 0 {
        pairs.push(("Memory assigned", status.words()));
    }
    pairs.extend(status.demand_words().map(|words| ("Memory demand", words)));
    pairs.extend(status.version.as_ref().map(|version| ("Dynamic Memory", format!("running {version}"))));
    pairs
}

/// The settings that the command line describes.
fn settings(create: Create) -> Result<VmSettings, Error> {
    Ok(VmSettings {
        name: create.name,
        memory: create.memory,
        processors: create.processors,
        kernel: absolute(&create.kernel)?,
        initrd: create.initrd.as_deref().map(absolute).transpose()?,
        command_line: create.cmdline,
        ..VmSettings::default()
    })
}

/// The absolute path of a file that exists.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|source| Error::File { path: path.into(), source })
}

pub fn print_done(json: bool, vm: &Vm, what: &str) -> Result<(), Error> {
    if json {
        return print_json(vm);
    }
    print_bytes(format!("{}: {what}\n", vm.settings.name).as_bytes())
}

fn print_list(vms: &[Vm]) -> Result<(), Error> {
    let rows = vms.iter().map(|vm| {
        let settings = &vm.settings;
        let (memory, processors) = (format_size(settings.memory), settings.processors.to_string());
        [settings.name.clone(), vm.status.short(), processors, memory]
    });
    print_table(["name", "state", "processors", "memory"], rows.collect())
}

fn print_vm(vm: &Vm, integration: Option<&IntegrationStatus>) -> Result<(), Error> {
    let settings = &vm.settings;
    let mut pairs = vec![
        ("Name", settings.name.clone()),
        ("Id", vm.id.to_string()),
        ("State", vm.status.to_string()),
        ("Processors", settings.processors.to_string()),
        ("Memory", format_size(settings.memory)),
        ("Kernel", settings.kernel.display().to_string()),
    ];
    if let Some(memory) = &vm.memory {
        // The first pair is the setting, which is shown.
        pairs.extend(memory_pairs(memory).into_iter().skip(1));
    }
    if let Some(initrd) = &settings.initrd {
        pairs.push(("Initrd", initrd.display().to_string()));
    }
    pairs.push(("Command line", settings.command_line.clone()));
    for disk in &settings.disks {
        let what = format!(
            "{}, {}, place {}:{}",
            disk.file_name(),
            crate::disk::kind(disk),
            disk.controller,
            disk.lun
        );
        pairs.push(("Disk", what));
    }
    for adapter in &settings.network_adapters {
        let options = crate::network::words(&adapter.options);
        pairs.push(("Network adapter", format!("{} on switch '{}', {options}", adapter.mac, adapter.switch)));
    }
    if let Some(worker) = vm.worker {
        pairs.push(("Worker process", worker.to_string()));
    }
    if let Some(console) = &vm.console {
        pairs.push(("Console socket", console.display().to_string()));
    }
    if let Some(status) = integration {
        pairs.extend(guest::pairs(status));
    }
    print_pairs(pairs)
}
