//! Canaries through the real proxy: answered on every way, counted apart, seen by nobody else.

use anyhow::ensure;
use millrace_e2e::{CAPTURE, CAPTURES};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::{Cluster, PodOptions, require, until};
use serde_json::Value;

const SOON: std::time::Duration = std::time::Duration::from_secs(20);
const WAYS: [&str; 6] = [
    "dns4",
    "dns6",
    "inbound4",
    "inbound6",
    "outbound4",
    "outbound6",
];

#[test]
fn canaries_are_answered_by_the_proxy_and_are_nobodys_traffic() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node_with("n1", &["--canary-interval-s", "1"])?;
    let mut pods = Vec::new();
    for mode in CAPTURES {
        pods.push(node.pod(PodOptions::named(mode).annotation(CAPTURE, mode))?);
    }
    for pod in &pods {
        until(SOON, || {
            let status = node.pod_status(pod)?;
            let ways = &status["integrity"]["canary"]["ways"];
            let answered = |way: &&str| ways[*way]["ok"] == true && ways[*way]["failures"] == 0;
            ensure!(
                status["healthy"] == true && WAYS.iter().all(answered),
                "{status}"
            );
            Ok(())
        })?;
    }
    let stats = node.admin("/stats")?.text();
    let value = |name: &str| {
        let line = stats.lines().find(|line| line.contains(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    ensure!(value("downstream_cx_canary") >= Some(8), "{stats}");
    ensure!(value("downstream_cx_loop_refused") == Some(0), "{stats}");

    // Neither the access log nor any metric of traffic knows of them.
    let log = node.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let entries: Vec<Value> = lines
        .filter(|line| line.get("response_flags").is_some())
        .collect();
    ensure!(entries.is_empty(), "{entries:?}");
    let counters: Value = serde_json::from_str(&node.agent("/counters")?.text())?;
    for traffic in counters["traffic"].as_array().into_iter().flatten() {
        ensure!(traffic["opened"] == 0, "{traffic}");
    }
    Ok(())
}
