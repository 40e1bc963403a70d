//! Runs `ip -batch`: one process per namespace and set-up step, whatever the number of commands.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Runs the commands, one per line, in `netns`; the first that fails ends the batch.
pub(crate) fn batch(netns: &str, commands: &str) -> anyhow::Result<()> {
    run(netns, commands, &[])
}

/// As [`batch`], for commands that may find their object gone.
pub(crate) fn batch_lenient(netns: &str, commands: &str) -> anyhow::Result<()> {
    run(netns, commands, &["-force"])
}

fn run(netns: &str, commands: &str, extra: &[&str]) -> anyhow::Result<()> {
    let lenient = !extra.is_empty();
    let mut child = Command::new("ip")
        .args(["-netns", netns])
        .args(extra)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running `ip` (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(commands.as_bytes())
            .context("writing to `ip -batch`")?;
    }
    let output = child
        .wait_with_output()
        .context("waiting for `ip -batch`")?;
    if !output.status.success() && !lenient {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("ip -netns {} -batch: {}\n{commands}", netns, stderr.trim());
    }
    Ok(())
}
