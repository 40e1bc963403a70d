//! Clients of others against a running pilot: stock Envoy, gRPC's own xDS client, and tonic's.
//!
//! All of a test runs in a network namespace of its own, since pilot and sidecars listen on fixed ports. Needs root.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

#[path = "peers/namespace.rs"]
mod namespace;

#[path = "peers/envoy.rs"]
mod envoy;
#[path = "peers/failures.rs"]
mod failures;
#[path = "peers/grpc.rs"]
mod grpc;
#[path = "peers/router.rs"]
mod router;
#[path = "peers/tonic.rs"]
mod tonic;
#[path = "peers/vhds.rs"]
mod vhds;

use std::path::Path;
use std::time::Duration;

use namespace::{Namespace, Process};

const PATIENCE: Duration = Duration::from_secs(30);

/// Pilot, reading a directory of YAML.
fn pilot(namespace: &Namespace, config: &Path) -> Process {
    let mut pilot = namespace.run(Path::new(env!("CARGO_BIN_EXE_millrace-pilot")));
    pilot.args(["--log", "error", "--config-dir"]).arg(config);
    Process::start(&mut pilot)
}
