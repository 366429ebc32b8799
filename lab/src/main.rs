//! `cargo lab`: runs Parterre on emulated machines.
//!
//! From the bottom up: `apt`, `bundle` and `install` get packages; `kernel`, `build`, `rootfs`, `guest` and `esp` make what a
//! box boots; `boxes` emulates machines; `session` runs commands in a booted one; `exec`, `run`, `test` and `bench`
//! are what people call. Nothing here is part of what runs on a real machine.

#![forbid(unsafe_code)]

mod apt;
mod bench;
mod boxes;
mod build;
mod bundle;
mod cache;
mod cleanup;
mod cli;
mod console;
mod cpio;
mod disk;
mod esp;
mod exec;
mod guest;
mod install;
mod kernel;
mod media;
mod progress;
mod prune;
mod rootfs;
mod run;
mod session;
mod symbols;
mod test;
mod tool;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};

/// The exit status when the lab could not do its part.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("lab: {}", tool::sentences(&e));
            ExitCode::from(FAILED)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    cleanup::on_signals()?;
    install::ensure(cli.no_install)?;
    match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Test(args) => test::run(args),
        Command::Exec(exec) => exec::run(exec),
        Command::Bench(args) => bench::run(args),
        Command::Image(args) => disk::run(args),
        Command::Setup(setup) => set_up(setup.refresh),
    }
}

fn set_up(refresh: bool) -> Result<ExitCode> {
    if refresh {
        bundle::refresh()?;
        kernel::refresh()?;
    }
    for vendor in [boxes::Vendor::Amd, boxes::Vendor::Intel] {
        boxes::emulator(vendor)?;
    }
    let kernel = kernel::parent()?;
    rootfs::base()?;
    for kernel in ["oldest", "newest"] {
        guest::kernel(kernel)?;
        guest::initrd("lab", kernel)?;
    }
    println!("Ready. The parent's kernel is Linux {} ({}).", kernel.version, kernel.image.display());
    Ok(ExitCode::SUCCESS)
}
