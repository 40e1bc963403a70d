//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, built with coverage by the workspace's own toolchain.
//!
//! What libFuzzer needs of the compiler are code generation options that a stable one has too; only
//! sanitizers would need a nightly, and the code under test has no `unsafe` for them to watch.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::tally::Tally;
use crate::ui::{self, Step};
use crate::{run, setup, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these targets, as `proxy_dns`.
    targets: Vec<String>,
    /// How many inputs each target is given.
    #[arg(long, default_value_t = RUNS)]
    runs: u64,
    /// How long each target runs at most, in seconds; 0 is without limit.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

/// Inputs for each target unless others are asked for: seconds, where a person lets it run for hours.
const RUNS: u64 = 20_000;

/// Packages with fuzz targets, by name and directory.
const PACKAGES: [(&str, &str); 3] = [
    ("millrace-controlplane-fuzz", "controlplane/fuzz"),
    ("millrace-proxy-fuzz", "proxy/fuzz"),
    ("millrace-xds-fuzz", "controlplane/xds/fuzz"),
];

/// Counters for each edge, which libFuzzer finds, and comparisons, which it solves.
const FLAGS: [&str; 14] = [
    "-D",
    "warnings",
    "--cfg",
    "fuzzing",
    "-C",
    "passes=sancov-module",
    "-C",
    "llvm-args=-sanitizer-coverage-level=4",
    "-C",
    "llvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-C",
    "llvm-args=-sanitizer-coverage-pc-table",
    "-C",
    "llvm-args=-sanitizer-coverage-trace-compares",
];

/// A finding needs no more; what is larger only takes longer.
const LIMITS: [&str; 5] = [
    "-max_len=4096",
    "-timeout=60",
    "-rss_limit_mb=2048",
    "-verbosity=0",
    "-print_funcs=0",
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure_for_build()?;
    let found = fuzz(args)?;
    ensure!(
        found.failed == 0,
        "{} fuzz targets found something",
        found.failed
    );
    Ok(())
}

fn fuzz(args: &Args) -> anyhow::Result<Tally> {
    let names = chosen(&args.targets)?;
    let programs = build()?;
    let mut tally = Tally::default();
    for name in names {
        let outcome = one(&programs.join(&name), &name, args);
        tally.add(&Tally::of(&outcome));
    }
    Ok(tally)
}

/// The targets asked for; all of them by default.
fn chosen(wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let metadata =
        run::capture(run::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let names: Vec<String> = packages
        .iter()
        .filter(|package| PACKAGES.iter().any(|(name, _)| package["name"] == *name))
        .flat_map(|package| package["targets"].as_array().cloned().unwrap_or_default())
        .filter_map(|target| Some(target["name"].as_str()?.to_owned()))
        .collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        bail!("no fuzz target {unknown}; there are {}", names.join(", "));
    }
    Ok(names
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.contains(name))
        .collect())
}

/// Builds the targets and returns their directory. Naming the platform keeps the flags away from what runs
/// while building, which is not linked with libFuzzer.
fn build() -> anyhow::Result<PathBuf> {
    let _step = Step::begin("build (fuzz targets)");
    let facts = run::capture(run::foreign("rustc").arg("-vV"))?;
    let host = facts.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc names no host")?;
    let directory = workspace::target_dir().join("fuzz");
    let mut cargo = run::cargo();
    cargo
        .args(["build", "--bins", "--target", host, "--target-dir"])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    for (package, _) in PACKAGES {
        cargo.args(["--package", package]);
    }
    run::check(&mut cargo)?;
    Ok(directory.join(host).join("debug"))
}

/// Runs one target. What it finds interesting is kept beside the build and tried first the next time.
fn one(program: &Path, name: &str, args: &Args) -> anyhow::Result<()> {
    let _step = Step::begin(format!("fuzz {name}"));
    let kept = workspace::target_dir().join("fuzz").join("kept").join(name);
    let (corpus, artifacts) = (kept.join("corpus"), kept.join("artifacts"));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let mut command = run::foreign(program);
    command
        .arg(&corpus)
        .args(LIMITS)
        .arg(format!("-runs={}", args.runs))
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    run::check(&mut command).with_context(|| {
        ui::say(format_args!(
            "inputs that fail are in {}",
            artifacts.display()
        ));
        format!("fuzz target {name}")
    })
}
