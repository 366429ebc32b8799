//! `parterre host info`: versions, processors, memory, virtual machines.

use std::process::ExitCode;

use parterre_api::{HostInfo, format_size};
use serde::Serialize;

use super::check::{Hypervisor, processor_name};
use crate::client::Client;
use crate::error::Error;
use crate::table::{print_json, print_pairs};

/// What is known of the host.
#[derive(Serialize)]
struct Info {
    hypervisor: Option<Hypervisor>,
    kernel: String,
    processor: String,
    processors: usize,
    memory: u64,
    service: Option<HostInfo>,
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Prints what is known; a service that is not there is said, not an error.
pub fn run(json: bool) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let service = match runtime.block_on(Client::new().get::<HostInfo>("/v1/host")) {
        Ok(info) => Some(info),
        Err(Error::Unreachable { .. } | Error::NotAllowed { .. }) => None,
        Err(error) => return Err(error),
    };
    let info = Info {
        hypervisor: Hypervisor::detect(),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        processor: processor_name(),
        processors: std::thread::available_parallelism().map_or(1, |count| count.get()),
        memory: total_memory(),
        service,
    };
    if json {
        print_json(&info)?
    } else {
        print_pairs(pairs(&info))?
    }
    Ok(ExitCode::SUCCESS)
}

fn pairs(info: &Info) -> Vec<(&'static str, String)> {
    let hypervisor = match &info.hypervisor {
        Some(hypervisor) => hypervisor.to_string(),
        None => "none".into(),
    };
    let mut pairs = vec![
        ("Hypervisor", hypervisor),
        ("Parent kernel", info.kernel.clone()),
        ("Processor", info.processor.clone()),
        ("Processors", info.processors.to_string()),
        ("Memory", format_size(info.memory >> 20 << 20)),
    ];
    match &info.service {
        Some(service) => {
            pairs.push(("Service", format!("vmms {}", service.version)));
            let counts = format!("{}, {} running", service.virtual_machines, service.running);
            pairs.push(("Virtual machines", counts));
        }
        None => pairs.push(("Service", "vmms does not answer; start it to use virtual machines".into())),
    }
    pairs
}
