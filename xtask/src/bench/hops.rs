//! `cargo xtask bench hops`: packets per request on the loopback and the link of both pods: the hops that a
//! path takes, and those that acceleration leaves out.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes are far below 2^52"
)]

use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use millrace_testkit::{Cluster, Pod};
use serde_json::{Value, json};

use super::lane::Lane;
use super::report::{self, Figure};
use super::setting::Setting;
use super::workload::{Kind, Workload};
use super::{Args, Path, observed, set_up};
use crate::ui::{self, Step};

const WORKLOADS: [Workload; 8] = [
    Kind::Http1.on(1),
    Kind::Http1.on(32),
    Kind::Post(1 << 10).on(32),
    Kind::Http2.on(32),
    Kind::Connect.on(8),
    Kind::Mebibyte.on(4),
    Kind::PingPong.on(1),
    Kind::PingPong.on(32),
];
const ROUNDS: usize = 3;

/// Packets that went over a pod's interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Packets {
    /// Each is sent and received there; it counts once.
    loopback: u64,
    /// Both ways.
    link: u64,
}

/// A workload on a path, a value per round: client's loopback and link, server's loopback and link.
#[derive(Clone, Debug)]
struct Row {
    path: Path,
    workload: Workload,
    per_request: [Vec<f64>; 4],
}

pub(super) fn run(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let workloads = args.chosen_of(&WORKLOADS)?;
    let lanes = set_up(cluster, setting, &args.chosen_paths())?;
    let mut rows: Vec<Row> = workloads
        .iter()
        .flat_map(|workload| lanes.iter().map(|lane| Row::new(lane.path, *workload)))
        .collect();
    for round in 1..=args.rounds.unwrap_or(ROUNDS) {
        let _step = Step::begin(format!("round {round}"));
        for row in &mut rows {
            if let Some(lane) = lanes.iter().find(|lane| lane.path == row.path) {
                row.measure(lane, args.seconds)?;
            }
        }
    }
    drop(lanes);
    args.write(&rows.iter().map(Row::json).collect::<Vec<_>>())?;
    ui::result(report::machine()?);
    ui::result(setting);
    ui::result(table(&rows));
    Ok(())
}

impl Row {
    fn new(path: Path, workload: Workload) -> Self {
        Self {
            path,
            workload,
            per_request: Default::default(),
        }
    }

    fn measure(&mut self, lane: &Lane, seconds: f64) -> anyhow::Result<()> {
        let (before, measured, after) = observed(lane, self.workload, seconds, |lane| {
            let [client, server] = lane.pods();
            Ok([Packets::read(client)?, Packets::read(server)?])
        })?;
        let requests = measured.requests.max(1) as f64;
        let mut put = |at: usize, before: u64, after: u64| {
            self.per_request[at].push(after.saturating_sub(before) as f64 / requests);
        };
        for (pod, (before, after)) in before.iter().zip(&after).enumerate() {
            put(2 * pod, before.loopback, after.loopback);
            put(2 * pod + 1, before.link, after.link);
        }
        Ok(())
    }

    fn medians(&self) -> [f64; 4] {
        [0, 1, 2, 3].map(|at| Figure::of(self.per_request[at].clone()).median)
    }

    fn json(&self) -> Value {
        let [client_loopback, client_link, server_loopback, server_link] = self.medians();
        json!({
            "report": "hops",
            "path": self.path.name(),
            "workload": self.workload.kind.name(),
            "connections": self.workload.connections,
            "client_loopback_packets_per_request": client_loopback,
            "client_link_packets_per_request": client_link,
            "server_loopback_packets_per_request": server_loopback,
            "server_link_packets_per_request": server_link,
        })
    }
}

impl Packets {
    fn read(pod: &Pod) -> anyhow::Result<Self> {
        let text = pod.run(|| {
            fs::read_to_string("/proc/thread-self/net/dev").context("reading the pod's interfaces")
        })?;
        Self::parse(&text).with_context(|| format!("the interfaces of {}: {text}", pod.name()))
    }

    /// Lines `name: bytes packets errs drop fifo frame compressed multicast bytes packets …`, the
    /// first half for what was received.
    fn parse(text: &str) -> Option<Self> {
        let of = |interface: &str| {
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
            let fields: Vec<u64> = line
                .split_whitespace()
                .filter_map(|f| f.parse().ok())
                .collect();
            Some((*fields.get(1)?, *fields.get(9)?))
        };
        let ((_, loopback), (received, sent)) = (of("lo")?, of("eth0")?);
        Some(Self {
            loopback,
            link: received + sent,
        })
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut seen = Vec::new();
    for row in rows {
        if !seen.contains(&row.workload) {
            seen.push(row.workload);
            let (name, connections) = (row.workload.kind.name(), row.workload.connections);
            // Writing to a String cannot fail.
            writeln!(out, "{name} x{connections}, packets per request").ok();
            writeln!(
                out,
                "  {:<23} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "path", "client lo", "client eth", "server lo", "server eth", "all lo"
            )
            .ok();
            for row in rows.iter().filter(|other| other.workload == row.workload) {
                let [client_lo, client_eth, server_lo, server_eth] = row.medians();
                writeln!(
                    out,
                    "  {:<23} {client_lo:>10.2} {client_eth:>10.2} {server_lo:>10.2} {server_eth:>10.2} {:>10.2}",
                    row.path.name(),
                    client_lo + server_lo
                )
                .ok();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_a_link_count_both_ways() {
        let text = "Inter-|   Receive   |  Transmit\n face |bytes packets\n\
                    lo: 1000 10 0 0 0 0 0 0 1000 10 0 0 0 0 0 0\n\
                    eth0:70 7 0 0 0 0 0 0 30 3 0 0 0 0 0 0\n";
        let expected = Packets {
            loopback: 10,
            link: 10,
        };
        assert_eq!(Packets::parse(text), Some(expected));
        assert_eq!(Packets::parse("lo: 1 2\n"), None);
    }
}
