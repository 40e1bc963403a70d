//! Stock Envoy as a sidecar, over both variants of ADS: it accepts all that pilot serves, also when the mesh changes.
//!
//! Needs `MILLRACE_ENVOY`, or an `envoy` on the path.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use millrace_testkit::envoy::bootstrap;
use millrace_testkit::skip::skip;
use serde_json::Value;

use crate::namespace::{Namespace, Process};
use crate::{PATIENCE, pilot};

pub(crate) const NODE: &str = "sidecar~10.244.1.9~client.default~default.svc.cluster.local";
pub(crate) const XDS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15010);

pub(crate) fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MILLRACE_ENVOY") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|directory| directory.join("envoy"))
        .find(|path| path.is_file())
}

/// Waits until the one client has everything of `listeners` listeners and all types are accepted.
fn wait_for_sync(namespace: &Namespace, listeners: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sync = namespace.page("/debug/syncz").unwrap_or_default();
        let types = sync[0]["types"].as_array().cloned().unwrap_or_default();
        for kind in &types {
            assert_eq!(kind["last_error"], Value::Null, "Envoy rejects {kind:#}");
        }
        let has =
            |kind: &Value, name: &str| kind["short_name"] == name && kind["state"] == "SYNCED";
        let listening = |kind: &Value| has(kind, "LDS") && kind["resources"] == listeners;
        if types.iter().any(listening)
            && ["CDS", "EDS", "RDS"]
                .iter()
                .all(|name| types.iter().any(|kind| has(kind, name)))
        {
            return;
        }
        assert!(Instant::now() < deadline, "not in sync: {sync:#}");
        // Another program's progress has no event to wait for.
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

#[test]
fn stock_envoy_accepts_what_a_running_pilot_serves() {
    let Some(envoy) = envoy() else {
        return skip("no stock Envoy: MILLRACE_ENVOY is unset and no envoy is on the path");
    };
    if !Namespace::possible() {
        return skip("no network namespace can be made here");
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    for (variant, api_type) in ["GRPC", "DELTA_GRPC"].into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        fs::create_dir(&config).unwrap();
        fs::copy(data.join("virtual-service/in.yaml"), config.join("a.yaml")).unwrap();
        let bootstrap_file = directory.path().join("bootstrap.json");
        fs::write(&bootstrap_file, bootstrap(NODE, api_type, XDS).to_string()).unwrap();

        let namespace = Namespace::with(&[]);
        let _pilot = pilot(&namespace, &config);
        let base_id = (std::process::id() * 2 + u32::try_from(variant).unwrap()).to_string();
        let mut command = namespace.run(&envoy);
        command.args(["--log-level", "critical", "--concurrency", "1"]);
        command
            .args(["--base-id", &base_id, "-c"])
            .arg(&bootstrap_file);
        let _envoy = Process::start(&mut command);
        // Both virtual ones and one for each HTTP port.
        wait_for_sync(&namespace, 4);
        fs::copy(data.join("tcp/in.yaml"), config.join("b.yaml")).unwrap();
        // Two services of one port each, and one with two addresses.
        wait_for_sync(&namespace, 8);
        fs::remove_file(config.join("b.yaml")).unwrap();
        wait_for_sync(&namespace, 4);
    }
}
