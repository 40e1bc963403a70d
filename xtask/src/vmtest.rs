//! `cargo xtask vmtest`: runs the tests of the kernel programs on other kernels, Debian's, in an emulated machine.
//!
//! What is to run lies in the guest's first file system, with this program as its first process; results come back
//! over a serial port. Nothing needs hardware support, and nothing of the host's kernel is used but its processes.

mod cpio;
mod event;
pub(crate) mod guest;
mod image;
mod machine;
mod modules;
mod report;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::setup::{self, KernelPackage};
use crate::ui::{self, Reported, Step, dim, green, red};
use crate::{build, run, test, workspace};

use event::{Event, Finished, Outcome, Plan};
use image::Programs;
use machine::Boot;
use report::Record;

/// What is booted when nothing else is asked for.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// Which of the agent's tests are about the kernel.
const SUITES: &str = "bpf_";
/// What the kernel writes when something is wrong with it, or with what it was told to do.
const WARNINGS: [&str; 6] = [
    "BUG:",
    "WARNING:",
    "Oops:",
    "Kernel panic",
    "general protection fault",
    "Out of memory",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these series, as `6.1`; by default 6.1 and 6.12.
    #[arg(long = "kernel")]
    kernels: Vec<String>,
    /// Go on with the next kernel when one fails.
    #[arg(long)]
    keep_going: bool,
    /// How long one kernel may take, in minutes.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// How long one test may take, in seconds; an emulated machine is many times slower.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Write the report to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only tests whose name, `suite::test`, contains one of these.
    filters: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure_for_machine()?;
    build::kernel_programs()?;
    let dir = workspace::target_dir().join("vmtest");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let (plan, programs) = prepare(args, &dir)?;
    let series: Vec<&str> = if args.kernels.is_empty() {
        SERIES.to_vec()
    } else {
        args.kernels.iter().map(String::as_str).collect()
    };
    let mut records = Vec::new();
    for series in series {
        let record = one(args, series, &dir, plan.clone(), &programs);
        let go_on = args.keep_going || is_good(args, &record);
        records.push(record);
        if !go_on {
            break;
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&records).context("the report as JSON")?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    ui::result(report::table(&records));
    if records.iter().all(|record| is_good(args, record)) {
        Ok(())
    } else {
        Err(Reported.into())
    }
}

/// A kernel that the package sources do not have is a failure only if it was asked for.
fn is_good(args: &Args, record: &Record) -> bool {
    match record.not_available {
        Some(_) => args.kernels.is_empty(),
        None => record.is_good(test::requires_all()),
    }
}

/// Builds what the guests run.
fn prepare(args: &Args, dir: &Path) -> anyhow::Result<(Plan, Programs)> {
    let built = {
        let _step = Step::begin("tests for the guests");
        built()?
    };
    let place = |name: &str| image::place(name);
    let suites = built.iter().filter(|(name, _)| name.starts_with(SUITES));
    let plan = Plan {
        modules: Vec::new(),
        agent: place(AGENT),
        suites: suites
            .map(|(name, _)| (name.clone(), place(name)))
            .collect(),
        filters: args.filters.clone(),
        patience: Duration::from_secs(args.patience),
    };
    let files: Vec<(PathBuf, PathBuf)> = built
        .into_iter()
        .map(|(name, path)| (place(&name), path))
        .collect();
    Ok((plan, Programs::gather(&files, dir)?))
}

/// The package, and the name of its program.
const AGENT: &str = "millrace-agent";

/// The agent and its tests of the kernel, by name, as cargo built them.
fn built() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut cargo = run::cargo();
    cargo.args(["test", "--no-run", "--package", AGENT]);
    cargo.args([
        "--bins",
        "--tests",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "building the tests: {}",
        output.status
    );
    let mut found: Vec<(String, PathBuf)> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| executable(&serde_json::from_str(line).ok()?))
        .collect();
    found.sort();
    ensure!(
        found.iter().any(|(name, _)| name == AGENT),
        "cargo built no {AGENT}"
    );
    Ok(found)
}

/// What a message of cargo says to have been built, if it is wanted here.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let path = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    let is_test = message["profile"]["test"] == true;
    let wanted = if is_test {
        name.starts_with(SUITES)
    } else {
        name == AGENT
    };
    wanted.then(|| (name.to_owned(), PathBuf::from(path)))
}

fn one(args: &Args, series: &str, dir: &Path, plan: Plan, programs: &Programs) -> Record {
    let _step = Step::begin(format!("Linux {series}"));
    let mut record = Record {
        series: series.to_owned(),
        ..Record::default()
    };
    let package = match setup::kernel_package(series, dir) {
        Ok(package) => package,
        Err(error) => {
            let reason = format!("{error:#}");
            ui::say(format_args!("N/A: Linux {series}: {reason}"));
            record.not_available = Some(reason);
            return record;
        }
    };
    record.package = Some(package.name.clone());
    let started = Instant::now();
    if let Err(error) = boot(args, &package, dir, plan, programs, &mut record) {
        ui::say(format_args!("{} {error:#}", red("error:")));
        record.trouble = Some(format!("{error:#}"));
    }
    record.seconds = started.elapsed().as_secs_f64();
    record
}

fn boot(
    args: &Args,
    package: &KernelPackage,
    dir: &Path,
    mut plan: Plan,
    programs: &Programs,
    record: &mut Record,
) -> anyhow::Result<()> {
    let image = dir.join(format!("{}.cpio", package.release));
    let console = dir.join(format!("{}.log", package.release));
    programs.write(&image, &package.modules(), &mut plan)?;
    ui::say(format_args!(
        "booting {}; its console: {}",
        package.name,
        console.display()
    ));
    let boot = Boot {
        kernel: &package.image(),
        image: &image,
        console: &console,
        deadline: Duration::from_secs(60 * args.minutes),
    };
    let outcome = boot.run(|event| hear(event, record));
    fs::remove_file(&image).with_context(|| format!("removing {}", image.display()))?;
    record.kernel_warnings = warnings(&fs::read(&console).unwrap_or_default());
    outcome
}

/// Shows an event and keeps what it says.
fn hear(event: Event, record: &mut Record) {
    match event {
        Event::Booted { release, troubles } => {
            ui::say(format_args!("up: {release}"));
            for trouble in troubles {
                ui::say(format_args!("without a module: {trouble}"));
            }
            record.release = Some(release);
        }
        Event::Probed { report } => {
            let summary = report["summary"].as_str().unwrap_or_default();
            ui::say(format_args!("probe: {summary}"));
            record.probe = report;
        }
        Event::Listed { tests } => record.listed = tests,
        Event::Started { test } => {
            // Without a line's end: the outcome follows.
            eprint!("  {test} ");
            std::io::stderr().flush().ok();
        }
        Event::Finished(finished) => {
            ui::say(shown(&finished));
            record.tests.push(finished);
        }
        Event::Trouble { .. } | Event::Done => {}
    }
}

fn shown(finished: &Finished) -> String {
    let outcome = match &finished.outcome {
        Outcome::Passed => green("ok"),
        Outcome::NotApplicable { .. } => dim("N/A"),
        Outcome::Skipped { .. } => dim("SKIP"),
        Outcome::Failed { .. } => red("FAILED"),
        Outcome::TimedOut { .. } => red("TIMED OUT"),
    };
    format!("{outcome} ({:.1} s)", finished.seconds)
}

/// Lines of the kernel's log that tell of a fault.
fn warnings(log: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(log)
        .lines()
        .filter(|line| WARNINGS.iter().any(|warning| line.contains(warning)))
        .map(|line| line.trim().to_owned())
        .collect()
}
