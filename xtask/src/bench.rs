//! `cargo xtask bench [REPORT]`: what Millrace costs. `paths`, the usual one, measures the same workloads
//! over every path, interleaved in rounds, so that whatever else the machine does falls on all of
//! them; the other reports look at one thing each.

mod acceleration;
mod connections;
mod envoy;
mod hops;
mod lane;
mod memory;
mod picture;
mod pilot;
mod pods;
mod ports;
mod programs;
mod report;
mod setting;
mod usage;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use millrace_testkit::{Cluster, ClusterOptions};

use crate::client::Measured;
use crate::ui::{self, Step};
use crate::{build, interrupt, run, setup, workspace};

use lane::Lane;
use report::{Row, Sample};
use setting::Setting;
use usage::Usage;
use workload::{WORKLOADS, Workload};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum, default_value_t = Report::Paths)]
    report: Report,
    /// Write an array with an object per measurement to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the results into this file; by default into the target directory.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// How often everything is measured; the medians are reported. Three or five times by default.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long one measurement takes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Measure only these paths.
    #[arg(long = "path")]
    paths: Vec<Path>,
    /// Measure only these workloads, as `http1` or `http1:32`.
    #[arg(long = "workload")]
    workloads: Vec<String>,
    /// With how many idle pods the report `pods` measures.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 500])]
    pods: Vec<usize>,
    /// For how many seconds the report `pods` watches what idle pods cost, once they have settled.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// How many connections at once the report `connections` asks for.
    #[arg(long, default_value_t = 100_000)]
    connections: usize,
    /// Services of the mesh of the report `pilot`.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Its endpoints.
    #[arg(long, default_value_t = 100_000)]
    endpoints: usize,
    /// Its nodes.
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// How many changes of each kind the report `pilot` times.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// How many pods the report `pilot` restarts.
    #[arg(long, default_value_t = 1_000)]
    restarts: usize,
    /// Let the report `pilot` run a tenth of that mesh alone: minutes in place of a quarter of an hour.
    #[arg(long)]
    quick: bool,
    /// Let the report `pilot` build without optimisation: for its shape, not for its figures.
    #[arg(long)]
    debug: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Report {
    /// The workloads over every path, against no mesh and stock Envoy.
    Paths,
    /// Acceleration off, `auto` and on, by size and kind of what is sent.
    Acceleration,
    /// Many connections at once, and what becomes of those that are too many.
    Connections,
    /// Packets per request on the pods' interfaces, by path.
    Hops,
    /// What each kernel program costs, and how often it runs per request.
    Programs,
    /// Memory and CPU with many idle pods, and how fast they are enrolled.
    Pods,
    /// Pilot in a large mesh of simulated nodes.
    Pilot,
}

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Path {
    /// Nothing.
    Direct,
    /// Millrace's proxy beside each, captured by iptables.
    SidecarIptables,
    /// Stock Envoy beside each, captured by iptables.
    EnvoySidecarIptables,
    /// The node's proxy, captured by iptables.
    NodeIptables,
    /// The node's proxy, captured by eBPF, every byte by TCP.
    NodeEbpfPlain,
    /// The node's proxy, captured by eBPF, small HTTP/1.1 messages past TCP (`acceleration: auto`).
    NodeEbpf,
    /// As before, with raw TCP and HTTP/2 past TCP too (`acceleration: on`).
    NodeEbpfOn,
}

impl Path {
    const ALL: [Self; 7] = [
        Self::Direct,
        Self::SidecarIptables,
        Self::EnvoySidecarIptables,
        Self::NodeIptables,
        Self::NodeEbpfPlain,
        Self::NodeEbpf,
        Self::NodeEbpfOn,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::SidecarIptables => "sidecar-iptables",
            Self::EnvoySidecarIptables => "envoy-sidecar-iptables",
            Self::NodeIptables => "node-iptables",
            Self::NodeEbpfPlain => "node-ebpf-plain",
            Self::NodeEbpf => "node-ebpf",
            Self::NodeEbpfOn => "node-ebpf-on",
        }
    }

    /// How the pods of a node's proxy are captured and accelerated; `None` where there is none.
    fn annotations(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Direct | Self::SidecarIptables | Self::EnvoySidecarIptables => None,
            Self::NodeIptables => Some(("iptables", "off")),
            Self::NodeEbpfPlain => Some(("ebpf", "off")),
            Self::NodeEbpf => Some(("ebpf", "auto")),
            Self::NodeEbpfOn => Some(("ebpf", "on")),
        }
    }
}

/// How often the paths are compared.
const ROUNDS: usize = 5;
/// Before a measurement, so that its connections and pools are warm.
const WARM_UP: f64 = 1.0;
/// Between two measurements, for what the first left to be closed.
const REST: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.report == Report::Pilot {
        return pilot::run(args);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench makes network namespaces: run it as root"
    );
    interrupt::clean_up_on_signal()?;
    setup::ensure_all()?;
    let binaries = build::release_or_given()?;
    prepare_generator()?;
    let setting = Setting::new();
    let cluster = Cluster::with(ClusterOptions {
        binaries: Some(binaries),
        ..ClusterOptions::default()
    })?;
    match args.report {
        Report::Paths => compare(&cluster, &setting, args),
        Report::Acceleration => acceleration::run(&cluster, &setting, args),
        Report::Connections => connections::run(&cluster, &setting, args),
        Report::Hops => hops::run(&cluster, &setting, args),
        Report::Programs => programs::run(&cluster, &setting, args),
        Report::Pods => pods::run(&cluster, &setting, args),
        Report::Pilot => Ok(()),
    }
}

fn compare(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let workloads = args.chosen_of(&WORKLOADS)?;
    let lanes = set_up(cluster, setting, &args.chosen_paths())?;
    let rows = measure(&lanes, &workloads, args)?;
    drop(lanes);
    finish(args, setting, &rows)
}

fn set_up(cluster: &Cluster, setting: &Setting, paths: &[Path]) -> anyhow::Result<Vec<Lane>> {
    let _step = Step::begin("set up");
    lane::build(cluster, paths, setting)
}

/// Builds load generator and backend, unless they are among the given binaries.
fn prepare_generator() -> anyhow::Result<()> {
    if given_generator().is_some() {
        return Ok(());
    }
    run::check(run::cargo().args(["build", "--release", "--package", "millrace-xtask"]))
}

fn given_generator() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("MILLRACE_BIN_DIR")?);
    Some(dir.join("millrace-xtask")).filter(|path| path.is_file())
}

/// The load generator and backend: this very program, optimised.
fn generator() -> anyhow::Result<PathBuf> {
    let path = match given_generator() {
        Some(path) => path,
        None => workspace::target_dir().join("release/millrace-xtask"),
    };
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}

fn measure(lanes: &[Lane], workloads: &[Workload], args: &Args) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = workloads
        .iter()
        .flat_map(|workload| lanes.iter().map(|lane| Row::new(lane.path, *workload)))
        .collect();
    let rounds = args.rounds.unwrap_or(ROUNDS);
    for round in 1..=rounds {
        let _step = Step::begin(format!("round {round} of {rounds}"));
        for row in &mut rows {
            let Some(lane) = lanes.iter().find(|lane| lane.path == row.path) else {
                continue;
            };
            let sample = one(lane, row.workload, args.seconds)?;
            ui::say(format_args!("    {}", row.describe(&sample)));
            row.samples.push(sample);
        }
    }
    Ok(rows)
}

fn one(lane: &Lane, workload: Workload, seconds: f64) -> anyhow::Result<Sample> {
    let (pids, cgroup) = (lane.mesh_pids(), lane.cgroup());
    let read = |_: &Lane| Usage::read(&pids, cgroup);
    let (before, measured, after) = observed(lane, workload, seconds, read)?;
    Ok(Sample::new(&measured, &before, &after))
}

/// A measurement between two readings, after a warm-up.
fn observed<T>(
    lane: &Lane,
    workload: Workload,
    seconds: f64,
    read: impl Fn(&Lane) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Measured, T)> {
    let measure = || {
        let target = lane.target();
        workload.measure(&target, WARM_UP, lane.scratch())?;
        let before = read(lane)?;
        let measured = workload.measure(&target, seconds, lane.scratch())?;
        let after = read(lane)?;
        std::thread::sleep(REST);
        anyhow::Ok((before, measured, after))
    };
    measure().with_context(|| format!("measuring {} on {}", workload.kind.name(), lane.path.name()))
}

fn finish(args: &Args, setting: &Setting, rows: &[Row]) -> anyhow::Result<()> {
    let picture = match &args.svg {
        Some(path) => path.clone(),
        None => workspace::target_dir().join("bench/bench.svg"),
    };
    if let Some(dir) = picture.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    std::fs::write(&picture, picture::draw(rows, setting))
        .with_context(|| format!("writing {}", picture.display()))?;
    args.write(&rows.iter().map(Row::json).collect::<Vec<_>>())?;
    ui::result(report::machine()?);
    ui::result(setting);
    ui::result("");
    ui::result(report::table(rows));
    ui::result(report::goals(rows));
    ui::result(format_args!("drawn in {}", picture.display()));
    let failed: u64 = rows.iter().map(Row::errors).sum();
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

impl Args {
    /// Writes the measurements to the file that was asked for.
    fn write(&self, objects: &[serde_json::Value]) -> anyhow::Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        std::fs::write(path, serde_json::to_string_pretty(objects)? + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }

    fn chosen_paths(&self) -> Vec<Path> {
        let chosen = |path: &Path| self.paths.is_empty() || self.paths.contains(path);
        Path::ALL.into_iter().filter(chosen).collect()
    }

    /// Those of a report's workloads that were asked for; all without being asked.
    fn chosen_of(&self, all: &[Workload]) -> anyhow::Result<Vec<Workload>> {
        let label =
            |workload: &Workload| format!("{}:{}", workload.kind.name(), workload.connections);
        for wanted in &self.workloads {
            let known = all
                .iter()
                .any(|w| w.kind.name() == *wanted || label(w) == *wanted);
            let names: Vec<_> = all.iter().map(label).collect();
            ensure!(
                known,
                "no workload {wanted}; there are {}",
                names.join(", ")
            );
        }
        let chosen = |workload: &&Workload| {
            let is =
                |wanted: &String| workload.kind.name() == *wanted || label(workload) == *wanted;
            self.workloads.is_empty() || self.workloads.iter().any(is)
        };
        Ok(all.iter().filter(chosen).copied().collect())
    }
}
