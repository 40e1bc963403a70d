//! `cargo xtask clean-host`: removes what runs left behind, and runs that were kept on purpose.

use anyhow::ensure;
use millrace_testkit::clean;
pub(crate) use millrace_testkit::clean::traces;

use crate::ui;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the runs of these ids, as the demo and the names of namespaces have them.
    runs: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    for run in &args.runs {
        if clean::one(run)? {
            ui::result(format_args!("removed run {run}"));
            continue;
        }
        ensure!(traces(run)?.is_empty(), "run {run} has not ended");
        ui::result(format_args!("nothing is left of run {run}"));
    }
    if !args.runs.is_empty() {
        return Ok(());
    }
    let removed = clean::all()?;
    if removed.is_empty() {
        ui::result("nothing was left behind");
    }
    for line in removed {
        ui::result(line);
    }
    Ok(())
}
