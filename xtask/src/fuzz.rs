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
    /// How many inputs each target is given at most [default: 20000, without --seconds]
    #[arg(long)]
    runs: Option<u64>,
    /// How long each target runs at most, in seconds [default: for as long as that takes]
    #[arg(long)]
    seconds: Option<u64>,
}

impl Args {
    /// As libFuzzer has it: -1 inputs and 0 seconds are no limit.
    fn limits(&self) -> [String; 2] {
        let runs = match (self.runs, self.seconds) {
            (Some(runs), _) => runs.to_string(),
            (None, Some(_)) => "-1".to_owned(),
            (None, None) => RUNS.to_string(),
        };
        let seconds = self.seconds.unwrap_or_default();
        [
            format!("-runs={runs}"),
            format!("-max_total_time={seconds}"),
        ]
    }
}

/// Inputs for each target unless others are asked for: seconds, where a person lets it run for hours.
const RUNS: u64 = 20_000;

/// Packages with fuzz targets, by name and directory.
const PACKAGES: [(&str, &str); 4] = [
    ("millrace-agent-fuzz", "agent/fuzz"),
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
const LIMITS: [&str; 6] = [
    "-max_len=4096",
    "-timeout=60",
    "-rss_limit_mb=2048",
    "-verbosity=0",
    "-print_funcs=0",
    "-print_final_stats=1",
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
    let targets = chosen(&args.targets)?;
    let programs = build()?;
    let mut tally = Tally::default();
    for (name, seeds) in targets {
        let outcome = one(&programs, &name, &seeds, args);
        tally.add(&Tally::of(&outcome));
    }
    Ok(tally)
}

/// The targets asked for, with the directories of their seeds; all of them by default.
fn chosen(wanted: &[String]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let metadata =
        run::capture(run::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let mut found = Vec::new();
    for (package, dir) in PACKAGES {
        let package = packages.iter().find(|known| known["name"] == package);
        let targets = package.and_then(|package| package["targets"].as_array());
        for target in targets.into_iter().flatten() {
            let name = target["name"].as_str().unwrap_or_default();
            // `proxy_dns` has its seeds in `proxy/fuzz/seeds/dns`.
            let (_, short) = name.split_once('_').unwrap_or_default();
            let seeds = workspace::root().join(dir).join("seeds").join(short);
            found.push((name.to_owned(), seeds));
        }
    }
    let is = |wanted: &str| found.iter().any(|(name, _)| name == wanted);
    if let Some(unknown) = wanted.iter().find(|name| !is(name)) {
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        bail!("no fuzz target {unknown}; there are {}", names.join(", "));
    }
    found.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
    Ok(found)
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

/// Runs one target from its seeds. What it finds interesting is kept beside the build and tried first the
/// next time.
fn one(programs: &Path, name: &str, seeds: &Path, args: &Args) -> anyhow::Result<()> {
    let _step = Step::begin(format!("fuzz {name}"));
    let kept = workspace::target_dir().join("fuzz").join("kept").join(name);
    let (corpus, artifacts) = (kept.join("corpus"), kept.join("artifacts"));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let mut command = run::foreign(programs.join(name));
    command
        .arg(&corpus)
        .arg(seeds)
        .args(LIMITS)
        .args(args.limits())
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    run::check(&mut command).with_context(|| {
        ui::say(format_args!(
            "inputs that fail are in {}",
            artifacts.display()
        ));
        format!("fuzz target {name}")
    })
}
