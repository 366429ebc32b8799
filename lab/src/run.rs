//! `cargo lab run`: a box with Parterre, the parent and a running virtual machine, ready to be used.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::RunArgs;
use crate::session::{Outcome, Session};
use crate::{console, progress};

/// The virtual machine's name.
const VM: &str = "demo";
/// What the lab's guest prints first.
const USERLAND: &str = "lab guest: userland";
/// For one answer of the stack, in a box of usual speed.
const ANSWER: Duration = Duration::from_secs(30);
/// For the virtual machine's userland, likewise.
const GUEST: Duration = Duration::from_secs(120);

/// What a summary tells.
struct Summary {
    kernel: String,
    image_bytes: Option<u64>,
    boot: Duration,
    host: String,
    requirements: String,
    vms: String,
}

/// Boots the box, creates and starts the virtual machine, and hands over to the person, or checks and leaves.
///
/// # Errors
/// When a step fails; the sentence says which and what was said.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let interactive = !(args.check || args.json);
    if interactive && !std::io::stdin().is_terminal() {
        bail!("Standard input is no terminal. Use --check to try everything without a person.");
    }
    let spec = args.machine.spec()?;
    let mut parent = args.parent.clone();
    parent.guest_kernel.get_or_insert_with(|| "newest".into());
    parent.guest_initrd.get_or_insert_with(|| "lab".into());
    let session = Session::start(&spec, &parent.wish()?, spec.boot_limit())?;
    let mut demo = Demo { session, answer: ANSWER * spec.patience() };
    progress::step("Starting the management service", |_| demo.wait_for_stack())?;
    progress::step("Creating and starting a virtual machine", |_| demo.start_vm(args))?;
    if !interactive {
        let limit = GUEST * spec.patience();
        progress::step("Waiting for the virtual machine's userland", |_| demo.wait_for_guest(limit))?;
    }
    let summary = demo.summary(args.json)?;
    if args.json {
        println!("{:#}", summary.json());
    } else {
        summary.print();
    }
    if interactive {
        hand_over(&mut demo.session)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A box with the stack, and how long one answer of that may take.
struct Demo {
    session: Session,
    answer: Duration,
}

impl Demo {
    /// Runs a command of the stack and returns what it said; its failure is an error.
    fn ask(&mut self, command: &str) -> Result<String> {
        let run = self.session.shell(command, self.answer)?;
        match run.outcome {
            Outcome::Exit(0) => Ok(run.stdout.trim_end().to_owned()),
            outcome => {
                bail!(
                    "`{command}` failed in the parent ({outcome:?}). It said:\n{}{}",
                    run.stdout,
                    run.stderr
                )
            }
        }
    }

    fn wait_for_stack(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.answer;
        loop {
            match self.ask("parterre vm list") {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > deadline => {
                    let log = self.session.shell("tail -n 20 /var/log/vmms.log", self.answer)?.stdout;
                    return Err(
                        e.context(format!("The management service does not answer. Its log ends:\n{log}"))
                    );
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn start_vm(&mut self, args: &RunArgs) -> Result<()> {
        self.ask(&format!(
            "parterre vm create {VM} --memory {} --processors {} --kernel /lab/guest-kernel \
             --initrd /lab/guest-initrd --cmdline console=ttyS0",
            args.vm_memory, args.vm_processors
        ))?;
        self.ask(&format!("parterre vm start {VM}")).map(drop)
    }

    fn wait_for_guest(&mut self, limit: Duration) -> Result<()> {
        let run = self.session.converse(&format!("parterre vm console {VM}"), &[(USERLAND, "")], limit)?;
        if run.steps == 1 {
            return Ok(());
        }
        bail!(
            "The virtual machine did not reach its userland ({:?}). Its console said:\n{}{}",
            run.outcome,
            run.stdout,
            run.stderr
        )
    }

    fn summary(&mut self, as_json: bool) -> Result<Summary> {
        let option = if as_json { " --json" } else { "" };
        Ok(Summary {
            kernel: self.session.system().to_owned(),
            image_bytes: self.session.media().image_size,
            boot: self.session.booted_in(),
            host: self.ask(&format!("parterre host info{option}"))?,
            // A requirement that is not met is a finding, not a failure of the question.
            requirements: self.session.shell(&format!("parterre host check{option}"), self.answer)?.stdout,
            vms: self.ask(&format!("parterre vm list{option}"))?,
        })
    }
}

/// Joins the terminal to the parent's console, with the virtual machine's console open in it.
fn hand_over(session: &mut Session) -> Result<()> {
    println!(
        "\nThis is the console of the virtual machine '{VM}'. Ctrl-] leaves it and leads to the parent's shell; there\n\
         `parterre vm console {VM}` leads back, `parterre --help` tells the rest, and `poweroff` ends the box.\n\
         Ctrl-\\ switches the box off at once.\n"
    );
    let mut stream = session.machine().console()?;
    stream
        .write_all(format!("clear; parterre vm console {VM}\n").as_bytes())
        .context("The parent's console does not answer.")?;
    console::attach(&stream)
}

impl Summary {
    fn print(&self) {
        println!("Parent kernel   Linux {}", self.kernel);
        if let Some(bytes) = self.image_bytes {
            println!("parterre.efi    {} KiB", bytes.div_ceil(1024));
        }
        println!("Boot            {}", progress::human(self.boot));
        for (title, text) in
            [("Host", &self.host), ("Requirements", &self.requirements), ("Virtual machines", &self.vms)]
        {
            println!("\n{title}\n{}", text.trim_end());
        }
    }

    fn json(&self) -> Value {
        let embedded =
            |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
        json!({
            "parent_kernel": self.kernel,
            "image_bytes": self.image_bytes,
            "boot_seconds": self.boot.as_secs_f64(),
            "host": embedded(&self.host),
            "requirements": embedded(&self.requirements),
            "vms": embedded(&self.vms),
        })
    }
}
