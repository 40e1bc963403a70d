//! `cargo xtask bench acceleration`: the workloads in which `sk_msg` wins and those in which it loses against plain
//! TCP, by size and kind of what is sent, with acceleration off, `auto` and on.
//!
//! The settings are measured one after the other within a round, in turning order; what is judged is
//! the ratio to `off` of the same round. CPU time is that of client, server and mesh together: what
//! acceleration saves is not the proxy's alone.

use std::fmt::Write as _;

use anyhow::Context as _;
use millrace_testkit::Cluster;
use serde_json::{Value, json};

use super::report::{self, Figure, Row};
use super::setting::Setting;
use super::workload::{Kind, Workload};
use super::{Args, Path, one, set_up};
use crate::ui::{self, Step};

const PLAIN: Path = Path::NodeEbpfPlain;
const SETTINGS: [Path; 3] = [PLAIN, Path::NodeEbpf, Path::NodeEbpfOn];
const ROUNDS: usize = 5;

const fn echo(bytes: usize) -> Kind {
    Kind::Echo { writes: 1, bytes }
}

const WORKLOADS: [Workload; 32] = [
    Kind::Get(64).on(32),
    Kind::Get(1 << 10).on(1),
    Kind::Get(1 << 10).on(32),
    Kind::Get(4 << 10).on(32),
    Kind::Get(16 << 10).on(1),
    Kind::Get(16 << 10).on(32),
    Kind::Get(64 << 10).on(32),
    Kind::Get(1 << 20).on(4),
    Kind::Post(1 << 10).on(32),
    Kind::Post(16 << 10).on(32),
    Kind::Post(64 << 10).on(32),
    Kind::Post(1 << 20).on(4),
    Kind::Http2.on(1),
    Kind::Http2.on(32),
    echo(64).on(1),
    echo(1 << 10).on(1),
    echo(16 << 10).on(1),
    echo(64 << 10).on(1),
    echo(64).on(32),
    echo(1 << 10).on(32),
    echo(4 << 10).on(32),
    echo(16 << 10).on(32),
    echo(64 << 10).on(32),
    MANY_SMALL.on(32),
    Kind::Upload(64).on(4),
    Kind::Upload(1 << 10).on(4),
    Kind::Upload(16 << 10).on(4),
    Kind::Upload(64 << 10).on(4),
    Kind::Download(64).on(4),
    Kind::Download(1 << 10).on(4),
    Kind::Download(16 << 10).on(4),
    Kind::Download(64 << 10).on(4),
];

const MANY_SMALL: Kind = Kind::Echo {
    writes: 16,
    bytes: 64,
};

/// A ratio nearer to one than that is no difference.
const NOTHING: f64 = 0.03;

/// What a setting does to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wins,
    Same,
    Loses,
}

impl Verdict {
    /// It wins or loses where every round says so and the median is far enough from one.
    fn of(ratio: Figure) -> Self {
        if ratio.min > 1.0 && ratio.median > 1.0 + NOTHING {
            Self::Wins
        } else if ratio.max < 1.0 && ratio.median < 1.0 - NOTHING {
            Self::Loses
        } else {
            Self::Same
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wins => "wins",
            Self::Same => "same",
            Self::Loses => "LOSES",
        }
    }
}

pub(super) fn run(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let workloads = args.chosen_of(&WORKLOADS)?;
    let lanes = set_up(cluster, setting, &SETTINGS)?;
    let mut rows: Vec<Row> = workloads
        .iter()
        .flat_map(|workload| SETTINGS.map(|path| Row::new(path, *workload)))
        .collect();
    for round in 0..args.rounds.unwrap_or(ROUNDS) {
        let _step = Step::begin(format!("round {}", round + 1));
        for rows in rows.chunks_mut(SETTINGS.len()) {
            for turn in 0..SETTINGS.len() {
                let row = &mut rows[(round + turn) % SETTINGS.len()];
                let lane = lanes.iter().find(|lane| lane.path == row.path);
                let lane = lane.context("a path without a lane")?;
                let sample = one(lane, row.workload, args.seconds)?;
                ui::say(format_args!("    {}", row.describe(&sample)));
                row.samples.push(sample);
            }
        }
    }
    drop(lanes);
    let objects: Vec<Value> = rows.chunks(SETTINGS.len()).flat_map(json).collect();
    args.write(&objects)?;
    ui::result(report::machine()?);
    ui::result(setting);
    ui::result(table(&rows));
    let failed: u64 = rows.iter().map(Row::errors).sum();
    anyhow::ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

/// Ratios of a figure to that of plain TCP, round by round.
fn ratio(plain: &[f64], own: &[f64]) -> Figure {
    let ratios = own.iter().zip(plain).map(|(own, plain)| own / plain);
    Figure::of(ratios.filter(|ratio| ratio.is_finite()).collect())
}

fn rates(plain: &Row, row: &Row) -> Figure {
    ratio(&plain.rates(), &row.rates())
}

fn costs(plain: &Row, row: &Row) -> Figure {
    ratio(&plain.costs(), &row.costs())
}

fn json(rows: &[Row]) -> Vec<Value> {
    let plain = &rows[0];
    let object = |row: &Row| {
        let (rate, cost) = (rates(plain, row), costs(plain, row));
        let mut object = row.json();
        object["report"] = json!("acceleration");
        object["rps_ratio_to_plain"] = json!(rate.median);
        object["rps_ratio_spread"] = json!([rate.min, rate.max]);
        object["cpu_path_ratio_to_plain"] = json!(cost.median);
        object["verdict"] = json!(Verdict::of(rate).name().to_lowercase());
        object
    };
    rows.iter().map(object).collect()
}

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    writeln!(
        out,
        "{:<20} {:>3}  {:>9} | {:>5} {:>13} {:>8} {:<5} | {:>5} {:>13} {:>8} {:<5}",
        "workload", "x", "off: 1/s", "auto", "(spread)", "cpu", "", "on", "(spread)", "cpu", ""
    )
    .ok();
    let mut lost = [Vec::new(), Vec::new()];
    for rows in rows.chunks(SETTINGS.len()) {
        let plain = &rows[0];
        let name = plain.workload.kind.name();
        write!(
            out,
            "{name:<20} {:>3}  {:>9.0}",
            plain.workload.connections,
            plain.rps().median
        )
        .ok();
        for (row, lost) in rows[1..].iter().zip(&mut lost) {
            let (rate, cost) = (rates(plain, row), costs(plain, row));
            let verdict = Verdict::of(rate);
            if verdict == Verdict::Loses {
                lost.push(format!("{name} x{}", plain.workload.connections));
            }
            write!(
                out,
                " | x{:.2} ({:.2} - {:.2}) {:>8.2} {:<5}",
                rate.median,
                rate.min,
                rate.max,
                cost.median,
                verdict.name()
            )
            .ok();
        }
        writeln!(out).ok();
    }
    for (path, lost) in SETTINGS[1..].iter().zip(&lost) {
        let lost = if lost.is_empty() {
            "nowhere".to_owned()
        } else {
            lost.join(", ")
        };
        writeln!(out, "{} loses against plain TCP: {lost}", path.name()).ok();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_wins_or_loses_only_where_all_rounds_say_so() {
        let verdict = |own: &[f64]| Verdict::of(ratio(&[100.0, 100.0, 100.0], own));
        assert_eq!(verdict(&[110.0, 105.0, 130.0]), Verdict::Wins);
        assert_eq!(verdict(&[99.0, 105.0, 130.0]), Verdict::Same);
        assert_eq!(verdict(&[101.0, 102.0, 101.0]), Verdict::Same);
        assert_eq!(verdict(&[90.0, 95.0, 80.0]), Verdict::Loses);
        assert_eq!(verdict(&[90.0, 101.0, 80.0]), Verdict::Same);
    }

    #[test]
    fn every_workload_is_there_once() {
        for (at, workload) in WORKLOADS.iter().enumerate() {
            assert!(!WORKLOADS[..at].contains(workload), "{workload:?}");
        }
    }
}
