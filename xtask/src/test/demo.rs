//! The demo as a stage of `cargo xtask test`: it has to agree that all was well, in one object on one line; every
//! command that it prints for looking around has to answer; and `clean-host` has to leave nothing of it.

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::this;
use crate::{clean, ui};

/// How many splits the demo measures.
const SPLITS: usize = 5;

pub(super) fn run() -> anyhow::Result<()> {
    shown(&[])?;
    shown(&["--kubernetes"])
}

fn shown(more: &[&str]) -> anyhow::Result<()> {
    let (succeeded, printed) = output(this()?.args(["demo", "--json", "--keep"]).args(more))?;
    let report: Value = match serde_json::from_str(&printed) {
        Ok(report) => report,
        // It ended before it had anything to keep.
        Err(error) => bail!("the demo printed no report ({error}): {printed:?}"),
    };
    let run = report["run"].as_str().context("the demo names no run")?;
    let judged = judge(succeeded, &printed, &report).and_then(|()| look_around(&report));
    // Also after a demo that was not as it should be.
    let cleaned = clean(run);
    if let (Err(_), Err(error)) = (&judged, &cleaned) {
        ui::say(format_args!("besides: {error:#}"));
    }
    judged.and(cleaned)
}

fn judge(succeeded: bool, printed: &str, report: &Value) -> anyhow::Result<()> {
    ensure!(
        printed.lines().count() == 1 && printed.ends_with('\n'),
        "the demo printed something else than one line: {printed:?}"
    );
    let splits = report["splits"].as_array().map_or(0, Vec::len);
    let fine = succeeded && report["ok"] == true && splits == SPLITS;
    ensure!(fine, "the demo: {report}");
    Ok(())
}

/// Types what the demo says. Each command has something to tell, and together they name every pod.
fn look_around(report: &Value) -> anyhow::Result<()> {
    let ways = report["ways_in"].as_array().context("no ways in")?;
    ensure!(!ways.is_empty(), "no ways in");
    let mut seen = String::new();
    for way in ways {
        let command = way["command"]
            .as_str()
            .context("a way in without a command")?;
        let (succeeded, told) = output(Command::new("sh").args(["-c", command]))?;
        ensure!(succeeded && !told.trim().is_empty(), "{command}: {told:?}");
        seen.push_str(&told);
    }
    for pod in report["pods"].as_array().into_iter().flatten() {
        let name = pod["pod"].as_str().context("a pod without a name")?;
        ensure!(seen.contains(name), "pod {name} is nowhere in {seen}");
    }
    Ok(())
}

fn clean(run: &str) -> anyhow::Result<()> {
    ensure!(!clean::traces(run)?.is_empty(), "the demo kept nothing");
    let (succeeded, said) = output(this()?.args(["clean-host", run]))?;
    ensure!(succeeded, "clean-host: {said:?}");
    let mut left = clean::traces(run)?;
    left.extend(processes(run)?);
    ensure!(left.is_empty(), "clean-host left {}", left.join(", "));
    Ok(())
}

/// The processes that have a run's id in their command line, as all have that were told of its directories.
fn processes(run: &str) -> anyhow::Result<Vec<String>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // One that has ended meanwhile has no file, and what is no process neither.
        let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let belongs = line.contains(&format!("/{run}/")) || line.contains(&format!("-{run}-"));
        if belongs && name != own {
            found.push(format!("process {name}: {line}"));
        }
    }
    Ok(found)
}

/// Whether a program succeeds, and what it prints.
fn output(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let Output { status, stdout, .. } = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", crate::run::shown(command)))?;
    let printed = String::from_utf8(stdout).context("what it printed")?;
    Ok((status.success(), printed))
}
