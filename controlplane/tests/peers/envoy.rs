//! Stock Envoy as a sidecar, served by a running pilot over both variants of ADS: it accepts all of it,
//! also when the mesh changes.
//!
//! Both run in a network namespace of their own, since a sidecar listens on fixed ports. Needs root and
//! `MILLRACE_ENVOY`, or an `envoy` on the path.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_testkit::http::{Client, Request};
use millrace_testkit::in_netns;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const DEBUG_PORT: u16 = 15014;

fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MILLRACE_ENVOY") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|directory| directory.join("envoy"))
        .find(|path| path.is_file())
}

fn skip(reason: &str) {
    println!("SKIP: {reason}");
    let all = std::env::var("MILLRACE_REQUIRE_ALL");
    assert_ne!(all.as_deref(), Ok("1"), "nothing may be skipped");
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A network namespace, held open by a process that waits for the end of its input.
struct Namespace(Process);

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Process(holder);
        let mut line = String::new();
        let output = holder.0.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        assert_eq!(line.trim(), "up");
        Self(holder)
    }

    fn run(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--net=/proc/{}/ns/net", self.0.0.id());
        command.arg(namespace).arg("--").arg(program);
        command
    }

    fn page(&self, path: &str) -> Option<Value> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.0.id())).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, DEBUG_PORT));
        let stream = in_netns(namespace, || Ok(TcpStream::connect(address)?)).ok()?;
        let response = Client::over(stream).and_then(|mut client| {
            let host = address.to_string();
            client.send(&Request::get(&host, path))
        });
        response.ok()?.json().ok()
    }
}

fn bootstrap(api_type: &str) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({
        "node": { "id": "sidecar~10.244.1.9~client.default~default.svc.cluster.local", "cluster": "client" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": 15010 } },
            } }] }] },
        }] },
    })
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
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn stock_envoy_accepts_what_a_running_pilot_serves() {
    let Some(envoy) = envoy() else {
        return skip("no stock Envoy: MILLRACE_ENVOY is unset and no envoy is on the path");
    };
    let root = Command::new("unshare").args(["--net", "true"]).status();
    if !root.is_ok_and(|status| status.success()) {
        return skip("no network namespace can be made here");
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    for (variant, api_type) in ["GRPC", "DELTA_GRPC"].into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        fs::create_dir(&config).unwrap();
        fs::copy(data.join("virtual-service/in.yaml"), config.join("a.yaml")).unwrap();
        let bootstrap_file = directory.path().join("bootstrap.json");
        fs::write(&bootstrap_file, bootstrap(api_type).to_string()).unwrap();

        let namespace = Namespace::new();
        let pilot = namespace
            .run(Path::new(env!("CARGO_BIN_EXE_millrace-pilot")))
            .args(["--log", "error", "--config-dir"])
            .arg(&config)
            .spawn()
            .unwrap();
        let _pilot = Process(pilot);
        let base_id = (std::process::id() * 2 + u32::try_from(variant).unwrap()).to_string();
        let running = namespace
            .run(&envoy)
            .args([
                "--log-level",
                "critical",
                "--concurrency",
                "1",
                "--base-id",
                &base_id,
                "-c",
            ])
            .arg(&bootstrap_file)
            .spawn()
            .unwrap();
        let _envoy = Process(running);
        // Both virtual ones and one for each HTTP port.
        wait_for_sync(&namespace, 4);
        fs::copy(data.join("tcp/in.yaml"), config.join("b.yaml")).unwrap();
        // Two services of one port each, and one with two addresses.
        wait_for_sync(&namespace, 8);
        fs::remove_file(config.join("b.yaml")).unwrap();
        wait_for_sync(&namespace, 4);
    }
}
