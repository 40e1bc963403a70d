//! Stock Envoys serve Bookinfo by what our pilot tells them, captured by `millrace-agent init`: traffic is split as the
//! rules say, also when they change under load, and nothing that pilot serves is refused. As a sidecar in every pod and
//! as the proxy of every node, over both variants of xDS.
//!
//! Needs `MILLRACE_ENVOY`.

#[path = "stock_envoy/bookinfo.rs"]
mod bookinfo;
#[path = "stock_envoy/nodes.rs"]
mod nodes;
#[path = "stock_envoy/sidecars.rs"]
mod sidecars;

use std::path::Path;

use millrace_testkit::require;
use millrace_testkit::skip::skip;

/// Runs with a stock Envoy, if there is one.
fn with_envoy(run: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    require!(cluster);
    let Some(envoy) = std::env::var_os("MILLRACE_ENVOY") else {
        return skip("MILLRACE_ENVOY is unset");
    };
    run(Path::new(&envoy))
}

#[test]
fn bookinfo_runs_behind_sidecars_that_are_told_changes() -> anyhow::Result<()> {
    with_envoy(|envoy| sidecars::run(envoy, "DELTA_GRPC"))
}

#[test]
fn bookinfo_runs_behind_sidecars_that_are_told_whole_states() -> anyhow::Result<()> {
    with_envoy(|envoy| sidecars::run(envoy, "GRPC"))
}

#[test]
fn bookinfo_runs_behind_an_envoy_for_each_node_that_is_told_changes() -> anyhow::Result<()> {
    with_envoy(|envoy| nodes::run(envoy, "DELTA_GRPC"))
}

#[test]
fn bookinfo_runs_behind_an_envoy_for_each_node_that_is_told_whole_states() -> anyhow::Result<()> {
    with_envoy(|envoy| nodes::run(envoy, "GRPC"))
}
