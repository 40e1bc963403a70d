//! `cargo xtask bench pilot`: how far pilot carries. A mesh of simulated nodes (`xtask/nodes`) in front
//! of a real pilot with the file registry, in three sizes, so that what a push costs is seen as the mesh grows.
//!
//! The mesh has all its nodes, pods and rules in proportion; a namespace stays on as many nodes in each
//! size, so that one change always interests as many.

mod plot;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Args, report};
use crate::ui::{self, Step};
use crate::{build, run, workspace};

const PACKAGES: [&str; 3] = ["millrace-controlplane", "millrace-nodes", "millrace-proxy"];
/// The mesh of each run, as parts of the whole one.
const PARTS: [usize; 3] = [10, 3, 1];
/// What `--quick` makes of the whole mesh, which is then the only one.
const QUICK: usize = 10;
/// Where a rule has to be in force in time.
const RULE: Goal = Goal {
    what: "a rule written is in force at a proxy, p99",
    path: "/rule_in_force/p99_ms",
    most: 50.0,
    unit: Unit::Millis,
};
/// What the whole mesh has to reach.
const GOALS: [Goal; 6] = [
    Goal {
        what: "an endpoint change is at every interested node, p99",
        path: "/endpoint_change/at_every_node/p99_ms",
        most: 100.0,
        unit: Unit::Millis,
    },
    Goal {
        what: "a route change is at every interested node, p99",
        path: "/route_change/at_every_node/p99_ms",
        most: 200.0,
        unit: Unit::Millis,
    },
    Goal {
        what: "a new node is fully served, p99",
        path: "/new_node/served/p99_ms",
        most: 1000.0,
        unit: Unit::Millis,
    },
    Goal {
        what: "a rolling restart sends no resource that did not change",
        path: "/rolling_restart/bytes_sent_again",
        most: 0.0,
        unit: Unit::Bytes,
    },
    Goal {
        what: "pilot's peak memory",
        path: "/peak_rss_bytes",
        most: 1_073_741_824.0,
        unit: Unit::Bytes,
    },
    Goal {
        what: "a node that uses 50 services on demand, of a full push",
        path: "/on_demand/percent",
        most: 2.0,
        unit: Unit::Percent,
    },
];
/// What Istio publishes of its own control plane.
const ISTIOD: &str = "istiod, as Istio publishes it (no run of ours): 1 vCPU and 1.5 GB for 1,000 services and 2,000 pods";

#[derive(Clone, Copy)]
struct Goal {
    what: &'static str,
    path: &'static str,
    most: f64,
    unit: Unit,
}

#[derive(Clone, Copy)]
enum Unit {
    Millis,
    Bytes,
    Percent,
}

impl Goal {
    fn write(self, text: &mut String, stage: &Value) {
        let Self {
            what,
            path,
            most,
            unit,
        } = self;
        let value = number(stage, path);
        let met = if value <= most {
            "met     "
        } else {
            "NOT MET "
        };
        let (value, most) = (unit.text(value), unit.text(most));
        writeln!(text, "  {met}{what}: {value} (at most {most})").ok();
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Millis => format!("{value:.1} ms"),
            Self::Bytes if value.abs() < 1e5 => format!("{value:.0} bytes"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
            Self::Percent => format!("{value:.2} %"),
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let binaries = binaries(args.debug)?;
    let scratch = tempfile_in_target()?;
    let mut stages = Vec::new();
    let parts = if args.quick { &[QUICK][..] } else { &PARTS };
    for part in parts.iter().copied() {
        let stage = stage(args, part, &binaries, &scratch)?;
        ui::say(format_args!("    {}", line(&stage)));
        stages.push(stage);
    }
    args.write(&stages)?;
    ui::result(report::machine()?);
    ui::result(setting());
    ui::result("");
    ui::result(table(&stages));
    let whole = stages.last().unwrap_or(&Value::Null);
    ui::result(goals(stages.first().unwrap_or(whole), whole));
    ui::result(ISTIOD);
    let picture = picture(args)?;
    std::fs::write(&picture, plot::draw(&stages))
        .with_context(|| format!("writing {}", picture.display()))?;
    ui::result(format_args!("drawn in {}", picture.display()));
    Ok(())
}

fn picture(args: &Args) -> anyhow::Result<std::path::PathBuf> {
    match &args.svg {
        Some(path) => Ok(path.clone()),
        None => Ok(tempfile_in_target()?.with_extension("svg")),
    }
}

fn setting() -> &'static str {
    "pilot with the file registry; each node is a delta xDS client with a connection of its own on loopback, on the same \
     cores as pilot; bytes are names, versions and bodies of resources; times begin before the file is written; a \
     node has pods of ten namespaces, which a Sidecar lets call their own and one that all share"
}

/// The directory of pilot and nodes: the given one, else freshly built.
fn binaries(debug: bool) -> anyhow::Result<std::path::PathBuf> {
    if let Some(given) = std::env::var_os("MILLRACE_BIN_DIR") {
        return Ok(given.into());
    }
    let _step = Step::begin("build");
    let mut cargo = run::cargo();
    cargo.arg("build");
    if !debug {
        cargo.arg("--release");
    }
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    run::check(&mut cargo)?;
    Ok(build::directory(!debug))
}

fn tempfile_in_target() -> anyhow::Result<std::path::PathBuf> {
    let directory = workspace::target_dir().join("bench");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory.join("pilot.json"))
}

fn stage(args: &Args, part: usize, binaries: &Path, json: &Path) -> anyhow::Result<Value> {
    let of = |all: usize| (all / part).max(1).to_string();
    let (services, endpoints) = (of(args.services), of(args.endpoints));
    let nodes = of(args.nodes);
    let _step = Step::begin(format!(
        "{services} services, {endpoints} endpoints, {nodes} nodes"
    ));
    let mut command = run::foreign(binaries.join("millrace-nodes"));
    command
        .arg("--pilot")
        .arg(binaries.join("millrace-pilot"))
        .arg("--proxy")
        .arg(binaries.join("millrace-proxy"))
        .arg("--json")
        .arg(json)
        .args(["--services", &services, "--endpoints", &endpoints])
        .args(["--nodes", &nodes, "--restarts", &of(args.restarts)])
        .args(["--changes", &args.changes.to_string()]);
    run::check(&mut command)?;
    let text =
        std::fs::read_to_string(json).with_context(|| format!("reading {}", json.display()))?;
    let mut stage: Value = serde_json::from_str(&text)?;
    let demand = &mut stage["on_demand"];
    let (few, full) = (number(demand, "/bytes"), number(demand, "/full_bytes"));
    let unscoped = number(demand, "/unscoped_bytes");
    demand["percent"] = json!(few / full.max(1.0) * 100.0);
    demand["unscoped_percent"] = json!(unscoped / full.max(1.0) * 100.0);
    Ok(stage)
}

fn number(value: &Value, path: &str) -> f64 {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN)
}

fn line(stage: &Value) -> String {
    format!(
        "endpoint change at every node p99 {:.1} ms, route change {:.1} ms, rule in force {:.1} ms, new node {:.1} ms, peak {:.0} MB",
        number(stage, "/endpoint_change/at_every_node/p99_ms"),
        number(stage, "/route_change/at_every_node/p99_ms"),
        number(stage, "/rule_in_force/p99_ms"),
        number(stage, "/new_node/served/p99_ms"),
        number(stage, "/peak_rss_bytes") / 1e6,
    )
}

/// What is shown of each size: a name, where it is, and its unit.
const ROWS: [(&str, &str, f64); 32] = [
    ("services", "/services", 1.0),
    ("endpoints", "/endpoints", 1.0),
    ("nodes", "/nodes", 1.0),
    (
        "pilot started, first node served, ms",
        "/first_node_served_ms",
        1.0,
    ),
    ("all nodes served, ms", "/all_nodes_served_ms", 1.0),
    ("bytes to all nodes, MB", "/initial_bytes", 1e6),
    (
        "endpoint change, nodes interested",
        "/endpoint_change/nodes",
        1.0,
    ),
    (
        "  at every one of them, p50 ms",
        "/endpoint_change/at_every_node/p50_ms",
        1.0,
    ),
    (
        "  at every one of them, p99 ms",
        "/endpoint_change/at_every_node/p99_ms",
        1.0,
    ),
    (
        "  pilot's CPU per push, ms",
        "/endpoint_change/pilot_cpu_ms_per_change",
        1.0,
    ),
    (
        "  bytes per push, KB",
        "/endpoint_change/bytes_per_change",
        1e3,
    ),
    (
        "  at all nodes of the mesh, p99 ms",
        "/endpoint_change_to_all_nodes/at_every_node/p99_ms",
        1.0,
    ),
    (
        "  pilot's CPU per push, ms",
        "/endpoint_change_to_all_nodes/pilot_cpu_ms_per_change",
        1.0,
    ),
    (
        "route change, at every node, p50 ms",
        "/route_change/at_every_node/p50_ms",
        1.0,
    ),
    ("  p99 ms", "/route_change/at_every_node/p99_ms", 1.0),
    (
        "  pilot's CPU per push, ms",
        "/route_change/pilot_cpu_ms_per_change",
        1.0,
    ),
    (
        "  bytes per push, KB",
        "/route_change/bytes_per_change",
        1e3,
    ),
    (
        "  of a service that all call, p99 ms",
        "/route_change_to_all_nodes/at_every_node/p99_ms",
        1.0,
    ),
    (
        "  bytes per push, KB",
        "/route_change_to_all_nodes/bytes_per_change",
        1e3,
    ),
    (
        "rule in force at a proxy, p50 ms",
        "/rule_in_force/p50_ms",
        1.0,
    ),
    ("  p99 ms", "/rule_in_force/p99_ms", 1.0),
    (
        "  in a mesh of one node, p99 ms",
        "/rule_in_force_with_one_node/p99_ms",
        1.0,
    ),
    (
        "new node fully served, p50 ms",
        "/new_node/served/p50_ms",
        1.0,
    ),
    ("  p99 ms", "/new_node/served/p99_ms", 1.0),
    ("rolling restart, pods", "/rolling_restart/pods", 1.0),
    ("  bytes, KB", "/rolling_restart/bytes", 1e3),
    (
        "  of changed resources, KB",
        "/rolling_restart/bytes_of_changed_resources",
        1e3,
    ),
    (
        "  pilot's CPU per pod, ms",
        "/rolling_restart/pilot_cpu_ms_per_pod",
        1.0,
    ),
    ("50 services on demand, % of all", "/on_demand/percent", 1.0),
    (
        "  with routes to all services, %",
        "/on_demand/unscoped_percent",
        1.0,
    ),
    ("pilot's memory, MB", "/rss_bytes", 1e6),
    ("  at its peak, MB", "/peak_rss_bytes", 1e6),
];

/// The sizes beside each other.
fn table(stages: &[Value]) -> String {
    let mut text = String::new();
    for (name, path, unit) in ROWS {
        write!(text, "{name:<42}").ok();
        for stage in stages {
            let value = number(stage, path) / unit;
            let digits = usize::from(value < 1000.0 && value.fract() != 0.0);
            write!(text, "{value:>14.digits$}").ok();
        }
        text.push('\n');
    }
    text
}

/// Whether the goals are met: of the whole mesh, and the one of the smallest.
fn goals(smallest: &Value, whole: &Value) -> String {
    let mut text = "goals, of the whole mesh\n".to_owned();
    for goal in GOALS {
        goal.write(&mut text, whole);
    }
    let services = number(smallest, "/services");
    writeln!(text, "goal, with {services} services").ok();
    RULE.write(&mut text, smallest);
    let table = number(whole, "/on_demand/table_of_names_bytes") / 1e6;
    writeln!(
        text,
        "  beside these a node that answers DNS is sent the table of all names: {table:.1} MB"
    )
    .ok();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_without_its_figure_is_not_met() {
        let stage = json!({ "peak_rss_bytes": 5e8, "rolling_restart": { "bytes_sent_again": 1 } });
        let text = goals(&stage, &stage);
        assert_eq!(text.matches("NOT MET").count(), GOALS.len(), "{text}");
        assert!(
            text.contains("met     pilot's peak memory: 500.0 MB"),
            "{text}"
        );
    }
}
