//! `cargo xtask build`: the kernel programs first, because the agent embeds them, then the binaries.

use std::path::PathBuf;

use crate::ui::Step;
use crate::{bpf, run, setup, ui, workspace};

/// The binaries that make up Millrace, and the sample that the demo runs.
pub(crate) const PACKAGES: [&str; 5] = [
    "millrace-agent",
    "millrace-proxy",
    "millrace-controlplane",
    "millctl",
    "millrace-bookinfo",
];

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisation.
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure_for_build()?;
    let dir = build(!args.debug)?;
    ui::result(dir.display());
    Ok(())
}

/// Builds everything that runs on a node and returns the directory of the binaries.
pub(crate) fn build(release: bool) -> anyhow::Result<PathBuf> {
    kernel_programs()?;
    let _step = Step::begin(if release { "build (release)" } else { "build" });
    let mut cargo = run::cargo();
    cargo.arg("build");
    if release {
        cargo.arg("--release");
    }
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    run::check(&mut cargo)?;
    Ok(directory(release))
}

/// Where cargo puts binaries.
pub(crate) fn directory(release: bool) -> PathBuf {
    workspace::target_dir().join(if release { "release" } else { "debug" })
}

/// Optimised binaries: those in `MILLRACE_BIN_DIR` where it is set, else freshly built ones.
pub(crate) fn release_or_given() -> anyhow::Result<PathBuf> {
    match std::env::var_os("MILLRACE_BIN_DIR") {
        Some(dir) => Ok(dir.into()),
        None => build(true),
    }
}

pub(crate) fn kernel_programs() -> anyhow::Result<()> {
    let _step = Step::begin("kernel programs");
    bpf::build(&workspace::root()).map(drop)
}
