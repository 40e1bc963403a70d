//! Running other programs.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};

use crate::workspace;

/// Variables that cargo and rustup set for this process and that would steer another toolchain.
const INHERITED: [&str; 8] = [
    "CARGO",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
];

/// The workspace's own cargo, started in the workspace.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace::root());
    command
}

/// A program that must not inherit the toolchain this process was started with.
pub(crate) fn foreign(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in INHERITED {
        command.env_remove(name);
    }
    command.current_dir(workspace::root());
    command
}

/// Runs a command with its output on stderr; fails unless it succeeds.
pub(crate) fn check(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    let stderr = std::io::stderr();
    let output = std::os::fd::AsFd::as_fd(&stderr)
        .try_clone_to_owned()
        .context("stderr")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output)
        .status()
        .with_context(|| format!("running {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command silently and returns its output; fails unless it succeeds.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let output = quiet(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command silently, whatever comes of it.
pub(crate) fn quiet(command: &mut Command) -> anyhow::Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", shown(command)))
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    let arguments = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(name)
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}
