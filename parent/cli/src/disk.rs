//! Commands about the disks of a virtual machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use parterre_api::{
    DiskCache, DiskFormat, DiskRequest, DiskSettings, DiskSize, MediumRequest, ResizeRequest, format_size,
    parse_size,
};

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
    /// Put a disc into a DVD drive, in place of what is in it; a guest that runs finds it.
    Insert(Insert),
    /// Take the disc out of a DVD drive; its file stays.
    Eject {
        /// Name or id of the virtual machine.
        name: String,
        #[command(flatten)]
        drive: Drive,
    },
    /// Grow a disk; a guest that runs is told, and grows its file systems itself.
    Resize {
        /// Name or id of the virtual machine.
        name: String,
        /// The new size, with a unit: 20G; absent if what is below the disk, such as a logical volume, has grown already.
        #[arg(value_parser = parse_size)]
        size: Option<u64>,
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

/// Which DVD drive.
#[derive(Args)]
pub struct Drive {
    /// Number of the controller.
    #[arg(long, value_name = "N", default_value_t = 0)]
    controller: u8,
    /// Place at the controller; needed if there is more than one DVD drive.
    #[arg(long, value_name = "N")]
    lun: Option<u8>,
    /// Even if the guest has locked the drive: it loses a disc that it has mounted.
    #[arg(long)]
    force: bool,
}

/// Which disc, and where.
#[derive(Args)]
pub struct Insert {
    /// Name or id of the virtual machine.
    name: String,
    /// The disc's file or block device.
    file: PathBuf,
    #[command(flatten)]
    drive: Drive,
    /// raw or qcow2; by the file's name if absent.
    #[arg(long)]
    format: Option<DiskFormat>,
}

/// What a disk is to be.
#[derive(Args)]
pub struct Add {
    /// Name or id of the virtual machine.
    name: String,
    /// The file or block device; only a DVD drive can be without.
    #[arg(required_unless_present = "dvd")]
    file: Option<PathBuf>,
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
    /// A DVD drive, with the file as its disc or empty.
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
            let (lun, controller) = (disk.lun, disk.controller);
            let what = if disk.file.is_some() { disk.file_name() } else { "an empty drive".into() };
            let text = format!("{name}: {what} added at place {lun} of controller {controller}\n");
            print_bytes(text.as_bytes())
        }
        DiskCommand::Remove { name, controller, lun } => {
            client.delete(&format!("{}/disks/{controller}/{lun}", vm_path(&name))).await?;
            if json {
                return print_json(&serde_json::json!({ "removed": [controller, lun] }));
            }
            print_bytes(format!("{name}: place {lun} of controller {controller} is empty\n").as_bytes())
        }
        DiskCommand::Insert(Insert { name, file, drive, format }) => {
            let file = Some(whole(file)?);
            let force = drive.force;
            let disk = change(client, &name, &drive, MediumRequest { file, format, force }).await?;
            if json {
                return print_json(&disk);
            }
            let (file, lun) = (disk.file_name(), disk.lun);
            print_bytes(format!("{name}: {file} is in the drive at place {lun}\n").as_bytes())
        }
        DiskCommand::Eject { name, drive } => {
            let request = MediumRequest { force: drive.force, ..MediumRequest::default() };
            let disk = change(client, &name, &drive, request).await?;
            if json {
                return print_json(&disk);
            }
            print_bytes(format!("{name}: the drive at place {} is empty\n", disk.lun).as_bytes())
        }
        DiskCommand::Resize { name, size, controller, lun } => {
            let path = format!("{}/disks/{controller}/{lun}/size", vm_path(&name));
            let grown: DiskSize = client.put(&path, &ResizeRequest { size }).await?;
            if json {
                return print_json(&grown);
            }
            let size = format_size(grown.size);
            let text = format!("{name}: the disk at place {lun} of controller {controller} has {size}\n");
            print_bytes(text.as_bytes())
        }
        DiskCommand::List { name } => {
            let disks: Vec<DiskSettings> = client.get(&(vm_path(&name) + "/disks")).await?;
            if json { print_json(&disks) } else { print(&disks) }
        }
    }
}

/// The whole path of a file: the service has another working directory.
fn whole(file: PathBuf) -> Result<PathBuf, Error> {
    file.canonicalize().map_err(|source| Error::File { path: file, source })
}

/// Changes what is in a drive.
async fn change(
    client: &Client,
    name: &str,
    drive: &Drive,
    request: MediumRequest,
) -> Result<DiskSettings, Error> {
    let path = vm_path(name) + "/disks";
    let lun = match drive.lun {
        Some(lun) => lun,
        None => only_drive(&client.get::<Vec<DiskSettings>>(&path).await?, drive.controller)?,
    };
    client.put(&format!("{path}/{}/{lun}/medium", drive.controller), &request).await
}

/// The place of the only DVD drive.
fn only_drive(disks: &[DiskSettings], controller: u8) -> Result<u8, Error> {
    let mut drives = disks.iter().filter(|disk| disk.dvd && disk.controller == controller);
    match (drives.next(), drives.next()) {
        (Some(drive), None) => Ok(drive.lun),
        (None, _) => Err(Error::NoDrive { controller }),
        (Some(_), Some(_)) => Err(Error::ManyDrives { controller }),
    }
}

fn request(add: Add) -> Result<DiskRequest, Error> {
    let Add { file, controller, lun, format, read_only, dvd, serial, cache, .. } = add;
    let file = file.map(whole).transpose()?;
    Ok(DiskRequest { file, controller, lun, format, read_only, dvd, serial, cache })
}

/// What kind of disk it is, for people.
pub fn kind(disk: &DiskSettings) -> &'static str {
    match (disk.dvd, disk.read_only) {
        (true, _) => "DVD",
        (false, true) => "disk, read-only",
        (false, false) => "disk",
    }
}

fn print(disks: &[DiskSettings]) -> Result<(), Error> {
    let rows = disks.iter().map(|disk| {
        [
            disk.controller.to_string(),
            disk.lun.to_string(),
            kind(disk).into(),
            disk.format.name().into(),
            disk.file_name(),
        ]
    });
    print_table(["controller", "lun", "kind", "format", "file"], rows.collect())
}
