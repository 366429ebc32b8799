//! parterre: the command line tool.
//!
//! It asks `vmms` over its socket and prints the answer: a table for people, JSON with `--json`. It decides nothing.

#![forbid(unsafe_code)]

mod arguments;
mod client;
mod console;
mod disk;
mod error;
mod guest;
mod host;
mod network;
mod progress;
mod table;
mod vm;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use error::Error;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("parterre: {error}");
            error.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let json = arguments.json;
    match arguments.command {
        Command::Host(command) => host::run(command, json),
        Command::Vm(command) => vm::run(command, json),
        Command::Switch(command) => network::run_switch(command, json).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "parterre", &mut bytes);
            table::print_bytes(&bytes)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
