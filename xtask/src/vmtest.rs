//! `cargo xtask vmtest`: runs the tests that are about a kernel on other kernels, Debian's, in an emulated machine.
//!
//! What is to run lies in the guest's first file system, with this program as its first process; results come back
//! over a serial port. Nothing needs hardware support, and nothing of the host's kernel is used but its processes.
//! The guest's clock counts its instructions, so a test that waits too long there has waited for what never comes.

mod cpio;
mod event;
pub(crate) mod guest;
mod image;
mod machine;
mod modules;
mod report;
mod suites;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::setup::{self, KernelPackage};
use crate::ui::{self, Reported, Step, dim, green, red};
use crate::{build, run, test, workspace};

use event::{Event, Finished, Outcome, Plan};
use image::Programs;
use machine::Boot;
use report::Record;
use suites::Built;

/// What is booted when nothing else is asked for.
const SERIES: [&str; 2] = ["6.1", "6.12"];
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
    /// How long one kernel may take, in minutes; most of an hour is what an idle core needs.
    #[arg(long, default_value_t = 90)]
    minutes: u64,
    /// How long one test may take, in seconds of the emulated machine.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Write the report to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// No test whose name, `suite::test`, contains this; may be given several times.
    #[arg(long)]
    skip: Vec<String>,
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

/// Builds what the guests run, and has it lie there where it lies here: tests know by path what they start.
fn prepare(args: &Args, dir: &Path) -> anyhow::Result<(Plan, Programs)> {
    let binaries = build::release_or_given()?;
    let built = {
        let _step = Step::begin("tests for the guests");
        built()?
    };
    let mut suites = BTreeMap::new();
    let mut files = BTreeMap::new();
    for each in built {
        let path = match each {
            Built::Suite(name, path) => {
                suites.insert(name, path.clone());
                path
            }
            Built::Program(path) => path,
        };
        files.insert(path.clone(), path);
    }
    // Whatever else a test starts it looks for beside itself.
    let beside = workspace::target_dir().join("debug");
    for name in MESH {
        files
            .entry(beside.join(name))
            .or_insert_with(|| binaries.join(name));
    }
    let plan = Plan {
        modules: Vec::new(),
        agent: beside.join(MESH[0]),
        suites: suites.into_iter().collect(),
        filters: args.filters.clone(),
        skip: suites::skipped(&args.skip),
        patience: Duration::from_secs(args.patience),
    };
    let files: Vec<(PathBuf, PathBuf)> = files.into_iter().collect();
    Ok((plan, Programs::gather(&files, dir)?))
}

/// The programs of a mesh.
const MESH: [&str; 3] = ["millrace-agent", "millrace-proxy", "millrace-pilot"];

/// The tests that are about a kernel and the programs of their packages, as cargo built them.
fn built() -> anyhow::Result<Vec<Built>> {
    let mut built = Vec::new();
    for targets in suites::TARGETS {
        let mut cargo = run::cargo();
        cargo.args(["test", "--no-run"]).args(targets).args([
            "--bins",
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
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages = messages
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        built.extend(messages.filter_map(|message| suites::built(&message)));
    }
    Ok(built)
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
            if let Outcome::Failed { output } | Outcome::TimedOut { output } = &finished.outcome {
                ui::say(output);
            }
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
