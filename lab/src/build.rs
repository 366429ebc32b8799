//! Building the project's own programs with cargo: `parterre.efi`, and what runs in the parent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{progress, prune, tool};

/// The target of the hypervisor's image.
const UEFI: &str = "x86_64-unknown-uefi";
/// The target of the test programs that are guests by themselves.
const BARE: &str = "x86_64-unknown-none";
/// What runs in the parent besides the lab's agent: package, program.
const STACK: [(&str, &str); 4] = [
    ("parterre-cli", "parterre"),
    ("parterre-vmms", "vmms"),
    ("parterre-worker", "vmwp"),
    ("parterre-dhcp", "vdhcp"),
];
const AGENT: (&str, &str) = ("parterre-lab-agent", "lab-agent");
const LOAD: (&str, &str) = ("parterre-lab-agent", "lab-load");
/// The target of programs for the parent and for guests that are Linux.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Programs for the parent, without debugging information.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Their files, each named as it is called.
    pub files: Vec<PathBuf>,
}

/// The hypervisor's image and what goes beside it.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    /// `parterre.efi`.
    pub image: PathBuf,
}

/// The project's folder: the one that holds the workspace's `Cargo.toml`.
///
/// # Errors
/// When neither the current directory nor the place where this program was built is in the project.
pub fn workspace() -> Result<PathBuf> {
    let here = std::env::current_dir().context("There is no current directory.")?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
    let candidates = here.ancestors().map(Path::to_owned).chain(built.parent().map(Path::to_owned));
    candidates
        .into_iter()
        .find(|dir| dir.join("hv/boot/Cargo.toml").exists())
        .context("Run this in Parterre's folder (the one with hv/ and lab/ in it).")
}

/// Builds the programs that run in the parent, once in the lab's life; without the stack only the lab's agent.
///
/// # Errors
/// When they do not build.
pub fn programs(with_stack: bool) -> Result<Programs> {
    static BUILT: [OnceLock<Result<Programs, String>>; 2] = [const { OnceLock::new() }; 2];
    once(&BUILT[usize::from(with_stack)], || build_programs(with_stack))
}

fn build_programs(with_stack: bool) -> Result<Programs> {
    let mut wanted = vec![AGENT];
    if with_stack {
        wanted.extend(STACK);
    }
    progress::step("Building the programs of the parent", |_| {
        let mut arguments = vec!["--release".to_owned()];
        for (package, program) in &wanted {
            arguments.extend(["--package", package, "--bin", program].map(str::to_owned));
        }
        let built = cargo(&arguments)?;
        let names: Vec<&str> = wanted.iter().map(|(_, program)| *program).collect();
        strip(
            built
                .into_iter()
                .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| names.contains(&n))),
        )
    })
}

/// Builds the hypervisor's image, once in the lab's life.
///
/// # Errors
/// When it does not build, or the toolchain lacks its target and rustup cannot bring it.
pub fn hypervisor() -> Result<Hypervisor> {
    static BUILT: OnceLock<Result<Hypervisor, String>> = OnceLock::new();
    once(&BUILT, build_hypervisor)
}

/// The first outcome of building something, good or bad.
fn once<T: Clone>(built: &OnceLock<Result<T, String>>, build: impl FnOnce() -> Result<T>) -> Result<T> {
    built.get_or_init(|| build().map_err(|e| tool::sentences(&e))).clone().map_err(anyhow::Error::msg)
}

fn build_hypervisor() -> Result<Hypervisor> {
    progress::step("Building the hypervisor", |step| {
        ensure_target(UEFI, step)?;
        let arguments =
            ["--package", "parterre-boot", "--target", UEFI, "--profile", "hypervisor"].map(str::to_owned);
        let built = cargo(&arguments)?;
        let image = built
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "efi"))
            .context("The package parterre-boot built no .efi program.")?;
        Ok(Hypervisor { image })
    })
}

/// Builds the test programs that are guests by themselves (`lab/tmk`), once in the lab's life. Each is a bzImage.
///
/// # Errors
/// When they do not build, or the toolchain lacks their target and rustup cannot bring it.
pub fn test_kernels() -> Result<Vec<PathBuf>> {
    static BUILT: OnceLock<Result<Vec<PathBuf>, String>> = OnceLock::new();
    once(&BUILT, || {
        progress::step("Building the test kernels", |step| {
            ensure_target(BARE, step)?;
            let arguments =
                ["--release", "--package", "parterre-tmk", "--features", "guest", "--target", BARE];
            cargo(&arguments.map(str::to_owned))
        })
    })
}

/// Builds the load for guests (`lab-load`), which needs no C library beside it, once in the lab's life.
///
/// # Errors
/// When it does not build.
pub fn load() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || {
        progress::step("Building the load for guests", |_| {
            let (package, program) = LOAD;
            let alone = format!("target.{HOST}.rustflags=['-Ctarget-feature=+crt-static']");
            let arguments =
                ["--release", "--package", package, "--bin", program, "--target", HOST, "--config", &alone];
            let built = strip(cargo(&arguments.map(str::to_owned))?.into_iter())?;
            built.files.into_iter().next().context("The package parterre-lab-agent built no lab-load.")
        })
    })
}

fn ensure_target(target: &str, step: &progress::Step) -> Result<()> {
    let workspace = workspace()?;
    let libraries = tool::output(Command::new("rustc").current_dir(&workspace).args([
        "--print",
        "target-libdir",
        "--target",
        target,
    ]))?;
    if Path::new(libraries.trim()).exists() {
        return Ok(());
    }
    step.at(&format!("fetching the toolchain's target {target}"));
    tool::output(Command::new("rustup").current_dir(&workspace).args(["target", "add", target]))
        .map(drop)
        .with_context(|| {
            format!(
                "The Rust toolchain lacks the target {target}, and rustup could not add it. Add it by hand: \
                 `rustup target add {target}`."
            )
        })
}

/// Runs `cargo build` and returns the programs that it says it built (or found up to date).
fn cargo(arguments: &[String]) -> Result<Vec<PathBuf>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace()?)
        .args(["build", "--quiet", "--message-format", "json-render-diagnostics"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("'cargo' cannot be run.")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("'cargo build {}' failed. It said:\n{}", arguments.join(" "), tool::tail(&said, 40));
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .collect()
}

/// Copies programs into the cache without their debugging information (it stays with the originals).
fn strip(programs: impl Iterator<Item = PathBuf>) -> Result<Programs> {
    let mut files = Vec::new();
    for program in programs {
        let contents =
            fs::read(&program).with_context(|| format!("{} cannot be read.", program.display()))?;
        let name = program.file_name().context("A program without a name.")?;
        let place = prune::place("programs", &contents, |part| {
            tool::output(
                Command::new("strip").arg("--strip-all").arg("-o").arg(part.join(name)).arg(&program),
            )?;
            Ok(())
        })?;
        files.push(place.join(name));
    }
    Ok(Programs { files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_messages_name_the_programs() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/vmms\"}\nnot json\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":null}\n{\"reason\":\"build-finished\"}";
        assert_eq!(executables(messages), [PathBuf::from("/t/release/vmms")]);
        assert_eq!(executables(""), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_workspace_is_found() {
        assert!(workspace().unwrap().join("lab/Cargo.toml").exists());
    }
}
