//! `cargo xtask bench programs`: what each kernel program costs, and how often it runs per request.
//!
//! The kernel counts while `BPF_ENABLE_STATS` is held (kernel/bpf/syscall.c); two readings of its clock
//! are part of every run, some 20 ns on most machines.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes are far below 2^52"
)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path as FilePath;

use anyhow::Context as _;
use millrace_testkit::Cluster;
use millrace_testkit::mesh::MeshNode;
use serde_json::{Value, json};

use super::lane::Lane;
use super::report::{self, Figure};
use super::setting::Setting;
use super::workload::{Kind, Workload};
use super::{Args, Path, observed, set_up};
use crate::ui::{self, Step};

const WORKLOADS: [Workload; 11] = [
    Kind::Http1.on(1),
    Kind::Http1.on(32),
    Kind::Post(1 << 10).on(32),
    Kind::Http2.on(32),
    Kind::NewConnection.on(8),
    Kind::Connect.on(8),
    Kind::Mebibyte.on(4),
    Kind::PingPong.on(32),
    Kind::Upload(64 << 10).on(4),
    Kind::Upload(64).on(4),
    Kind::Dns.on(8),
];
const ROUNDS: usize = 3;

/// Runs of one program, and the time they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

type Reading = BTreeMap<String, Runs>;

/// A program during one workload on one path, a value per round.
#[derive(Clone, Debug)]
struct Row {
    path: Path,
    workload: Workload,
    program: String,
    runs_per_request: Vec<f64>,
    ns_per_run: Vec<f64>,
}

pub(super) fn run(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let workloads = args.chosen_of(&WORKLOADS)?;
    let paths = args.chosen_paths();
    let paths: Vec<Path> = paths
        .into_iter()
        .filter(|path| path.annotations().is_some())
        .collect();
    let lanes = set_up(cluster, setting, &paths)?;
    let counting = enable_statistics()?;
    let mut rows = Vec::new();
    for round in 1..=args.rounds.unwrap_or(ROUNDS) {
        let _step = Step::begin(format!("round {round}"));
        for workload in &workloads {
            for lane in &lanes {
                measure(lane, *workload, args.seconds, &mut rows)?;
            }
        }
    }
    drop(counting);
    drop(lanes);
    args.write(&rows.iter().map(Row::json).collect::<Vec<_>>())?;
    ui::result(report::machine()?);
    ui::result(setting);
    ui::result(table(&rows));
    Ok(())
}

fn measure(
    lane: &Lane,
    workload: Workload,
    seconds: f64,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let node = lane.node().context("no node on this path")?;
    let (before, measured, after) = observed(lane, workload, seconds, |_| read(node))?;
    let requests = measured.requests.max(1) as f64;
    for (program, after) in after {
        let before = before.get(&program).copied().unwrap_or_default();
        let count = after.count.saturating_sub(before.count);
        let nanoseconds = after.nanoseconds.saturating_sub(before.nanoseconds);
        let known = rows.iter().position(|row| {
            row.path == lane.path && row.workload == workload && row.program == program
        });
        let at = known.unwrap_or_else(|| {
            rows.push(Row {
                path: lane.path,
                workload,
                program,
                runs_per_request: Vec::new(),
                ns_per_run: Vec::new(),
            });
            rows.len() - 1
        });
        rows[at].runs_per_request.push(count as f64 / requests);
        if count > 0 {
            rows[at].ns_per_run.push(nanoseconds as f64 / count as f64);
        }
    }
    Ok(())
}

/// The counters of a node's programs, by name.
fn read(node: &MeshNode) -> anyhow::Result<Reading> {
    let mut reading = Reading::new();
    let versions = fs::read_dir(node.bpffs_dir()).context("listing the node's pins")?;
    for version in versions.filter_map(Result::ok) {
        let Ok(programs) = fs::read_dir(version.path().join("programs")) else {
            continue;
        };
        for program in programs.filter_map(Result::ok) {
            let name = program.file_name().to_string_lossy().into_owned();
            reading.insert(name, runs(&program.path())?);
        }
    }
    anyhow::ensure!(!reading.is_empty(), "the node has no programs");
    Ok(reading)
}

fn runs(pin: &FilePath) -> anyhow::Result<Runs> {
    let program = open(pin).with_context(|| format!("opening {}", pin.display()))?;
    let info = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let info = fs::read_to_string(&info).with_context(|| format!("reading {info}"))?;
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("the kernel tells no {name}"))
    };
    Ok(Runs {
        count: field("run_cnt:")?,
        nanoseconds: field("run_time_ns:")?,
    })
}

/// `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_ENABLE_STATS: libc::c_long = 32;

fn open(pin: &FilePath) -> anyhow::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // `union bpf_attr`: the path's address, no descriptor, no flags.
    bpf(BPF_OBJ_GET, [path.as_ptr().addr() as u64, 0])
}

/// Lets the kernel count until the descriptor is closed.
fn enable_statistics() -> anyhow::Result<OwnedFd> {
    // `BPF_STATS_RUN_TIME`, the only kind there is, is 0.
    bpf(BPF_ENABLE_STATS, [0, 0]).context("switching statistics of kernel programs on")
}

fn bpf(command: libc::c_long, mut attributes: [u64; 2]) -> anyhow::Result<OwnedFd> {
    // SAFETY: the attributes are as long as is said, and what they point to outlives the call; both
    // commands return a new descriptor that nothing else owns.
    unsafe {
        let made = libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        );
        anyhow::ensure!(made >= 0, std::io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(i32::try_from(made)?))
    }
}

impl Row {
    fn runs(&self) -> Figure {
        Figure::of(self.runs_per_request.clone())
    }

    fn ns(&self) -> Figure {
        Figure::of(self.ns_per_run.clone())
    }

    fn ns_per_request(&self) -> f64 {
        self.runs().median * self.ns().median
    }

    fn json(&self) -> Value {
        json!({
            "report": "programs",
            "path": self.path.name(),
            "workload": self.workload.kind.name(),
            "connections": self.workload.connections,
            "program": self.program,
            "runs_per_request": self.runs().median,
            "ns_per_run": self.ns().median,
            "ns_per_run_spread": [self.ns().min, self.ns().max],
            "ns_per_request": self.ns_per_request(),
        })
    }
}

/// Runs below this part of a request are connections' set-up in a workload that keeps them.
const SELDOM: f64 = 0.005;

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut last = None;
    for row in rows {
        if row.runs().median < SELDOM {
            continue;
        }
        let part = (row.path, row.workload);
        if last != Some(part) {
            last = Some(part);
            let all = rows
                .iter()
                .filter(|other| (other.path, other.workload) == part);
            let sum: f64 = all.map(Row::ns_per_request).sum();
            // Writing to a String cannot fail.
            writeln!(
                out,
                "{} x{} on {}: {sum:.0} ns per request in kernel programs",
                row.workload.kind.name(),
                row.workload.connections,
                row.path.name()
            )
            .ok();
        }
        writeln!(
            out,
            "  {:<20} {:>8.2} runs per request {:>8.0} ns per run {:>8.0} ns per request",
            row.program,
            row.runs().median,
            row.ns().median,
            row.ns_per_request()
        )
        .ok();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_runs_times_time() {
        let row = Row {
            path: Path::NodeEbpf,
            workload: Kind::Http1.on(32),
            program: "millrace_message".to_owned(),
            runs_per_request: vec![4.0, 2.0, 4.0],
            ns_per_run: vec![100.0, 50.0, 200.0],
        };
        assert_eq!(row.json()["ns_per_request"], 400.0);
        let seldom = Row {
            program: "millrace_connect4".to_owned(),
            runs_per_request: vec![0.001],
            ..row.clone()
        };
        let text = table(&[seldom, row]);
        assert!(text.contains("http1 x32 on node-ebpf: 400 ns"), "{text}");
        assert!(
            text.contains("millrace_message") && !text.contains("connect4"),
            "{text}"
        );
    }
}
