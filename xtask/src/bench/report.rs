//! Medians and spreads of what was measured, as a table of ratios, as JSON, and against the goals.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes are far below 2^52"
)]

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::Path;
use super::usage::Usage;
use super::workload::{Kind, Workload};
use crate::client::Measured;

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    cpu_path_us: f64,
    cpu_total_us: f64,
    rss_bytes: f64,
    errors: u64,
}

impl Sample {
    pub(super) fn new(measured: &Measured, before: &Usage, after: &Usage) -> Self {
        let requests = measured.requests.max(1) as f64;
        let each =
            |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e6 / requests;
        Self {
            rps: measured.requests as f64 / measured.seconds.max(f64::MIN_POSITIVE),
            p50_us: measured.latencies.p50_us,
            p99_us: measured.latencies.p99_us,
            cpu_us: each(before.processes, after.processes),
            cpu_path_us: each(before.cgroup, after.cgroup),
            cpu_total_us: each(before.machine, after.machine),
            rss_bytes: after.rss_bytes as f64,
            errors: measured.errors,
        }
    }
}

/// All measurements of one workload on one path.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) path: Path,
    pub(super) workload: Workload,
    pub(super) samples: Vec<Sample>,
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Figure {
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Self {
            median,
            min: *min,
            max: *max,
        }
    }
}

impl Row {
    pub(super) fn new(path: Path, workload: Workload) -> Self {
        Self {
            path,
            workload,
            samples: Vec::new(),
        }
    }

    fn figure(&self, of: impl Fn(&Sample) -> f64) -> Figure {
        Figure::of(self.samples.iter().map(of).collect())
    }

    pub(super) fn rps(&self) -> Figure {
        self.figure(|sample| sample.rps)
    }

    pub(super) fn p50(&self) -> Figure {
        self.figure(|sample| sample.p50_us)
    }

    pub(super) fn p99(&self) -> Figure {
        self.figure(|sample| sample.p99_us)
    }

    pub(super) fn cpu(&self) -> Figure {
        self.figure(|sample| sample.cpu_us)
    }

    fn cpu_path(&self) -> Figure {
        self.figure(|sample| sample.cpu_path_us)
    }

    fn cpu_total(&self) -> Figure {
        self.figure(|sample| sample.cpu_total_us)
    }

    fn rss(&self) -> Figure {
        self.figure(|sample| sample.rss_bytes)
    }

    /// Requests per second, round by round.
    pub(super) fn rates(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.rps).collect()
    }

    /// CPU time of client, server and mesh per request, round by round.
    pub(super) fn costs(&self) -> Vec<f64> {
        self.samples
            .iter()
            .map(|sample| sample.cpu_path_us)
            .collect()
    }

    pub(super) fn errors(&self) -> u64 {
        self.samples.iter().map(|sample| sample.errors).sum()
    }

    /// One measurement as a line of progress.
    pub(super) fn describe(&self, sample: &Sample) -> String {
        format!(
            "{:<21} x{:<2} {:<23} {:>8.0}/s  p50 {:>7.0} us  p99 {:>7.0} us  cpu {:>6.1} us",
            self.workload.kind.name(),
            self.workload.connections,
            self.path.name(),
            sample.rps,
            sample.p50_us,
            sample.p99_us,
            sample.cpu_us
        )
    }

    pub(super) fn json(&self) -> Value {
        let spread = |figure: Figure| json!([rounded(figure.min), rounded(figure.max)]);
        json!({
            "path": self.path.name(),
            "workload": self.workload.kind.name(),
            "connections": self.workload.connections,
            "rps": rounded(self.rps().median),
            "rps_spread": spread(self.rps()),
            "p50_us": rounded(self.p50().median),
            "p50_us_spread": spread(self.p50()),
            "p99_us": rounded(self.p99().median),
            "p99_us_spread": spread(self.p99()),
            "cpu_us_per_request": rounded(self.cpu().median),
            "cpu_us_per_request_spread": spread(self.cpu()),
            "cpu_path_us_per_request": rounded(self.cpu_path().median),
            "cpu_path_us_per_request_spread": spread(self.cpu_path()),
            "cpu_total_us_per_request": rounded(self.cpu_total().median),
            "cpu_total_us_per_request_spread": spread(self.cpu_total()),
            "rss_bytes": self.rss().median.round(),
            "errors": self.errors(),
            "rounds": self.samples.len(),
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The row that the others of its workload are compared with: the Envoy pair, as what is there today.
fn base(rows: &[Row], workload: Workload) -> Option<&Row> {
    let of = |path: Path| {
        rows.iter()
            .find(|row| row.path == path && row.workload == workload)
    };
    of(Path::EnvoySidecarIptables).or_else(|| of(Path::Direct))
}

/// A table per workload: figures with their spread, and the ratio to the Envoy pair.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut seen = Vec::new();
    for row in rows {
        if seen.contains(&row.workload) {
            continue;
        }
        seen.push(row.workload);
        let base = base(rows, row.workload);
        // Writing to a String cannot fail.
        writeln!(
            out,
            "{} on {} connection{}, ratios to {}",
            row.workload.kind.name(),
            row.workload.connections,
            if row.workload.connections == 1 {
                ""
            } else {
                "s"
            },
            base.map_or("nothing", |base| base.path.name())
        )
        .ok();
        writeln!(
            out,
            "  {:<23} {:>18} {:>6} {:>9} {:>6} {:>9} {:>6} {:>9} {:>6} {:>8} {:>8} {:>6}",
            "path",
            "requests/s",
            "",
            "p50 us",
            "",
            "p99 us",
            "",
            "cpu us",
            "",
            "all cpu",
            "rss MB",
            "errors"
        )
        .ok();
        for row in rows.iter().filter(|other| other.workload == row.workload) {
            writeln!(out, "  {}", line(row, base)).ok();
        }
        writeln!(out).ok();
    }
    out
}

fn line(row: &Row, base: Option<&Row>) -> String {
    let ratio = |of: fn(&Row) -> Figure| {
        let base = base.map_or(0.0, |base| of(base).median);
        let own = of(row).median;
        if base > 0.0 && own > 0.0 {
            format!("x{:.2}", own / base)
        } else {
            "-".to_owned()
        }
    };
    let rps = row.rps();
    let spread = if rps.median > 0.0 {
        (rps.max - rps.min) / rps.median * 50.0
    } else {
        0.0
    };
    format!(
        "{:<23} {:>10.0} ±{:>4.1} % {:>6} {:>9.0} {:>6} {:>9.0} {:>6} {:>9.1} {:>6} {:>8.1} {:>8.1} {:>6}",
        row.path.name(),
        rps.median,
        spread,
        ratio(Row::rps),
        row.p50().median,
        ratio(Row::p50),
        row.p99().median,
        ratio(Row::p99),
        row.cpu().median,
        ratio(Row::cpu),
        row.cpu_total().median,
        row.rss().median / 1e6,
        row.errors()
    )
}

/// What the project set out to reach, each with what was reached; nothing where it was not measured.
pub(super) fn goals(rows: &[Row]) -> String {
    let http1 = |path: Path, connections: usize| {
        rows.iter().find(|row| {
            row.path == path
                && row.workload.kind == Kind::Http1
                && row.workload.connections == connections
        })
    };
    let mut out = String::new();
    let mut goal = |met: bool, path: Path, text: String| {
        let met = if met { "met    " } else { "NOT MET" };
        writeln!(out, "  {met} {}, {text}", path.name()).ok();
    };
    for wanted in GOALS {
        let busy = http1(wanted.path, 32).zip(http1(Path::EnvoySidecarIptables, 32));
        if let Some((own, envoy)) = busy {
            let times = own.rps().median / envoy.rps().median;
            let least = wanted.rps;
            goal(
                times >= least,
                wanted.path,
                format!(
                    "32 connections: {times:.2} times the Envoy pair's requests/s (at least {least})"
                ),
            );
        }
        if let (Some((own, envoy)), Some(part)) = (busy, wanted.cpu) {
            let less = envoy.cpu().median / own.cpu().median;
            goal(
                less >= part,
                wanted.path,
                format!("32 connections: 1/{less:.1} of its CPU per request (at most 1/{part})"),
            );
        }
        let alone = http1(Path::Direct, 1)
            .zip(http1(wanted.path, 1))
            .zip(http1(Path::EnvoySidecarIptables, 1));
        if let (Some(((direct, own), envoy)), Some(part)) = (alone, wanted.latency) {
            let added = |row: &Row| row.p50().median - direct.p50().median;
            let (ours, theirs) = (added(own), added(envoy));
            goal(
                ours <= theirs / part,
                wanted.path,
                format!(
                    "1 connection: adds {ours:.0} us to no mesh's p50 where the pair adds {theirs:.0} us (at most 1/{part})"
                ),
            );
        }
    }
    if out.is_empty() {
        out
    } else {
        format!("goals\n{out}")
    }
}

/// What a path has to reach against the pair of stock Envoys, with small HTTP/1.1 messages.
struct Goal {
    path: Path,
    /// Times its requests per second.
    rps: f64,
    /// The part of its CPU per request, as a divisor.
    cpu: Option<f64>,
    /// The part of the latency that it adds to no mesh, as a divisor.
    latency: Option<f64>,
}

const GOALS: [Goal; 3] = [
    Goal {
        path: Path::NodeIptables,
        rps: 2.5,
        cpu: None,
        latency: None,
    },
    Goal {
        path: Path::NodeEbpfPlain,
        rps: 3.0,
        cpu: Some(5.0),
        latency: Some(4.0),
    },
    Goal {
        path: Path::NodeEbpf,
        rps: 5.0,
        cpu: Some(8.0),
        latency: Some(8.0),
    },
];

/// The machine that all this is about.
pub(super) fn machine() -> anyhow::Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{} x {}, Linux {}",
        cores,
        model.map_or("unknown CPU", |(_, name)| name),
        kernel.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_with_its_spread() {
        let figure = Figure::of(vec![3.0, 1.0, 10.0]);
        assert_eq!(
            figure,
            Figure {
                median: 3.0,
                min: 1.0,
                max: 10.0
            }
        );
        assert!((Figure::of(vec![1.0, 2.0]).median - 1.5).abs() < 1e-9);
        assert_eq!(Figure::of(Vec::new()), Figure::default());
    }

    #[test]
    fn goals_compare_with_the_envoy_pair() {
        let row = |path, connections, rps, p50_us, cpu_us| Row {
            path,
            workload: Workload {
                kind: Kind::Http1,
                connections,
            },
            samples: vec![Sample {
                rps,
                p50_us,
                cpu_us,
                ..Sample::default()
            }],
        };
        let rows = [
            row(Path::Direct, 1, 1.0, 60.0, 0.0),
            row(Path::NodeEbpfPlain, 1, 1.0, 90.0, 17.0),
            row(Path::EnvoySidecarIptables, 1, 1.0, 360.0, 116.0),
            row(Path::NodeEbpfPlain, 32, 56.0, 1.0, 17.0),
            row(Path::NodeEbpf, 32, 56.0, 1.0, 17.0),
            row(Path::EnvoySidecarIptables, 32, 14.0, 1.0, 116.0),
        ];
        let text = goals(&rows);
        assert_eq!(text.matches(" met ").count(), 3, "{text}");
        assert_eq!(text.matches("NOT MET").count(), 2, "{text}");
        assert!(
            text.contains("NOT MET node-ebpf, 32 connections: 4.00 times"),
            "{text}"
        );
    }
}
