//! Commands about the disks of a virtual machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use parterre_api::{DiskCache, DiskFormat, DiskRequest, DiskSettings};

use crate::client::{Client, vm_path};
use crate::error::Error;
use crate::table::{print_bytes, print_json, print_table};

/// Commands about disks.
#[derive(Subcommand)]
pub enum DiskCommand {
    /// Add a disk or a DVD drive; a guest that runs sees it at once.
    Add(Add),
    /// Remove a disk; its file stays.
    Remove {
        /// Name or id of the virtual machine.
        name: String,
        /// Number of the controller.
        #[arg(long, value_name = "N", default_value_t = 0)]
        controller: u8,
        /// Place at the controller.
        #[arg(long, value_name = "N")]
        lun: u8,
    },
    /// List the disks.
    List {
        /// Name or id of the virtual machine.
        name: String,
    },
}

/// What a disk is to be.
#[derive(Args)]
pub struct Add {
    /// Name or id of the virtual machine.
    name: String,
    /// The file or block device.
    file: PathBuf,
    /// Number of the SCSI controller, 0 to 3.
    #[arg(long, value_name = "N")]
    controller: Option<u8>,
    /// Place at the controller, 0 to 63; the first free one if absent.
    #[arg(long, value_name = "N")]
    lun: Option<u8>,
    /// raw or qcow2; by the file's name if absent.
    #[arg(long)]
    format: Option<DiskFormat>,
    /// The guest cannot write.
    #[arg(long)]
    read_only: bool,
    /// A DVD drive with the file as its disc.
    #[arg(long)]
    dvd: bool,
    /// Serial number that the guest sees.
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,
    /// none: past the parent's page cache where possible; host: through it.
    #[arg(long, default_value = "none")]
    cache: DiskCache,
}

/// Runs a command.
pub async fn run(client: &Client, command: DiskCommand, json: bool) -> Result<(), Error> {
    match command {
        DiskCommand::Add(add) => {
            let path = vm_path(&add.name) + "/disks";
            let name = add.name.clone();
            let disk: DiskSettings = client.post(&path, &request(add)?).await?;
            if json {
                return print_json(&disk);
            }
            let (file, lun, controller) = (disk.file.display(), disk.lun, disk.controller);
            let text = format!("{name}: {file} added at place {lun} of controller {controller}\n");
            print_bytes(text.as_bytes())
        }
        DiskCommand::Remove { name, controller, lun } => {
            client.delete(&format!("{}/disks/{controller}/{lun}", vm_path(&name))).await?;
            if json {
                return print_json(&serde_json::json!({ "removed": [controller, lun] }));
            }
            print_bytes(format!("{name}: place {lun} of controller {controller} is empty\n").as_bytes())
        }
        DiskCommand::List { name } => {
            let disks: Vec<DiskSettings> = client.get(&(vm_path(&name) + "/disks")).await?;
            if json { print_json(&disks) } else { print(&disks) }
        }
    }
}

fn request(add: Add) -> Result<DiskRequest, Error> {
    let Add { file, controller, lun, format, read_only, dvd, serial, cache, .. } = add;
    let file = file.canonicalize().map_err(|source| Error::File { path: file, source })?;
    Ok(DiskRequest { file, controller, lun, format, read_only, dvd, serial, cache })
}

fn print(disks: &[DiskSettings]) -> Result<(), Error> {
    let rows = disks.iter().map(|disk| {
        let kind = match (disk.dvd, disk.read_only) {
            (true, _) => "DVD",
            (false, true) => "disk, read-only",
            (false, false) => "disk",
        };
        [
            disk.controller.to_string(),
            disk.lun.to_string(),
            kind.into(),
            disk.format.name().into(),
            disk.file.display().to_string(),
        ]
    });
    print_table(["controller", "lun", "kind", "format", "file"], rows.collect())
}
