//! Runs `ip -batch`: one process per namespace and set-up step, whatever the number of commands.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// A hardware address made from the IPv4 address, as bridge CNIs make theirs: it stays right in
/// neighbours' caches when another pod gets the address. A bridge needs one as well: without, it has
/// the lowest of its ports', and neighbours who know it by that lose it for seconds when a pod comes.
pub(crate) fn hardware_address(v4: Ipv4Addr) -> String {
    let [a, b, c, d] = v4.octets();
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

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
