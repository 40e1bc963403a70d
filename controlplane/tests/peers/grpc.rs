//! gRPC's own xDS client, without any proxy: it finds a service by its target and follows the rules for it, also when
//! they change while it calls.
//!
//! Needs `MILLRACE_GRPC_PYTHON`, a Python that has `grpcio`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use millrace_testkit::skip::skip;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::namespace::{Namespace, Process};
use crate::{PATIENCE, pilot};

const VERSIONS: [(&str, &str); 2] = [("v1", "10.244.1.1"), ("v2", "10.244.1.2")];
pub(crate) const TARGET: &str = "xds:///greeter.default.svc.cluster.local:9090";

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/peers")
        .join(name)
}

/// A running script, which says a line at its start or for each line that it is told.
pub(crate) struct Peer {
    _process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command, arguments: &[&str]) -> Self {
        command
            .arg(data("peer.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(command);
        Self {
            stdin: process.0.stdin.take().unwrap(),
            stdout: BufReader::new(process.0.stdout.take().unwrap()),
            _process: process,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn call(&mut self, wanted: &Value) -> Called {
        writeln!(self.stdin, "{wanted}").unwrap();
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{wanted}: {error}: {line:?}"))
    }
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) answers: BTreeMap<String, u32>,
    pub(crate) codes: BTreeMap<String, u32>,
}

impl Called {
    /// Every call was answered, by this version.
    pub(crate) fn only(version: &str, count: u32) -> Self {
        Self {
            answers: [(version.to_owned(), count)].into(),
            codes: [("OK".to_owned(), count)].into(),
        }
    }

    pub(crate) fn failed(code: &str) -> Self {
        Self {
            answers: BTreeMap::new(),
            codes: [(code.to_owned(), 1)].into(),
        }
    }
}

pub(crate) struct Scene {
    pub(crate) config: tempfile::TempDir,
    namespace: Namespace,
    python: PathBuf,
    _pilot: Process,
    _servers: Vec<Peer>,
}

impl Scene {
    /// Pilot with the service, and a server of each version.
    fn new(python: PathBuf) -> Self {
        let config = tempfile::tempdir().unwrap();
        let addresses = VERSIONS.map(|(_, address)| address);
        let namespace = Namespace::with(&addresses);
        let servers = VERSIONS.map(|(version, address)| {
            let mut command = namespace.run(&python);
            let mut server = Peer::start(
                &mut command,
                &["serve", &format!("{address}:9090"), version],
            );
            assert_eq!(server.line().trim(), "up");
            server
        });
        let scene = Self {
            _pilot: pilot(&namespace, config.path()),
            _servers: servers.into(),
            config,
            namespace,
            python,
        };
        scene.apply("greeter.yaml", "greeter.yaml");
        scene.apply("subsets.yaml", "rules.yaml");
        scene
    }

    /// Puts a file of the test's data into pilot's directory.
    pub(crate) fn apply(&self, file: &str, name: &str) {
        let nascent = self.config.path().join(format!(".{name}"));
        fs::copy(data(file), &nascent).unwrap();
        fs::rename(nascent, self.config.path().join(name)).unwrap();
    }

    pub(crate) fn caller(&self, target: &str) -> Peer {
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": "127.0.0.1:15010",
                "channel_creds": [{ "type": "insecure" }],
                "server_features": ["xds_v3"],
            }],
            "node": {
                "id": "sidecar~10.244.1.9~caller.default~default.svc.cluster.local",
                "metadata": { "GENERATOR": "grpc" },
            },
        });
        let mut command = self.namespace.run(&self.python);
        command
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
            .env("no_grpc_proxy", "*");
        Peer::start(&mut command, &["call", target])
    }

    /// Every client has taken all that it was sent.
    pub(crate) fn nothing_is_rejected(&self) {
        let sync = self.namespace.page("/debug/syncz").unwrap();
        for client in sync.as_array().unwrap() {
            for kind in client["types"].as_array().unwrap() {
                assert_eq!(kind["last_error"], Value::Null, "gRPC rejects {kind:#}");
            }
        }
    }
}

/// A caller for whom everything is as the rules say.
pub(crate) fn settled(scene: &Scene, target: &str, probe: &Value, wanted: &Called) -> Peer {
    let mut caller = scene.caller(target);
    until(&mut caller, probe, wanted);
    caller
}

/// Calls until the answer is the one that only the wanted rules give. All calls succeed meanwhile.
pub(crate) fn until(caller: &mut Peer, probe: &Value, wanted: &Called) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let got = caller.call(probe);
        if got == *wanted {
            return;
        }
        let only_ok: Vec<&str> = got.codes.keys().map(String::as_str).collect();
        assert_eq!(only_ok, ["OK"], "{got:?}");
        assert!(Instant::now() < deadline, "still {got:?}");
    }
}

pub(crate) fn scene() -> Option<Scene> {
    let Some(python) = std::env::var_os("MILLRACE_GRPC_PYTHON") else {
        skip::<()>("MILLRACE_GRPC_PYTHON is unset");
        return None;
    };
    if !Namespace::possible() {
        skip::<()>("no network namespace can be made here");
        return None;
    }
    Some(Scene::new(python.into()))
}

#[test]
fn grpcs_own_client_follows_the_rules_without_a_proxy() {
    let Some(scene) = scene() else { return };
    scene.apply("routes.yaml", "routes.yaml");
    let to_jason = json!({"method": "Hello", "metadata": {"end-user": "jason"}, "count": 20});
    let mut caller = settled(&scene, TARGET, &to_jason, &Called::only("v2", 20));

    let split = caller.call(&json!({"method": "Hello", "count": 1200}));
    assert_eq!(split.codes, [("OK".to_owned(), 1200)].into());
    // A quarter is 300; 60 is four standard deviations.
    let v1 = split.answers["v1"];
    assert!((240..=360).contains(&v1), "{split:?}");

    let slow = caller.call(&json!({"method": "Slow", "count": 1}));
    assert_eq!(
        slow,
        Called::failed("DEADLINE_EXCEEDED"),
        "the route's timeout"
    );
    let flaky = caller.call(&json!({"method": "Flaky", "count": 5}));
    assert_eq!(flaky, Called::only("v1", 5), "the route's retries");
    let unretried = caller.call(&json!({"method": "Unretried/Flaky", "count": 1}));
    assert_eq!(unretried, Called::failed("UNAVAILABLE"));

    // The rules change under a client that calls.
    scene.apply("routes-v1.yaml", "routes.yaml");
    let hello = json!({"method": "Hello", "count": 40});
    until(&mut caller, &hello, &Called::only("v1", 40));
    fs::remove_file(scene.config.path().join("routes.yaml")).unwrap();
    // Without a rule each endpoint has its turn.
    let both = Called {
        answers: [("v1".to_owned(), 20), ("v2".to_owned(), 20)].into(),
        codes: [("OK".to_owned(), 40)].into(),
    };
    until(&mut caller, &hello, &both);

    let mut short = scene.caller("xds:///greeter:9090");
    assert_eq!(short.call(&hello).codes, both.codes, "a short name");
    let mut direct = scene.caller("xds:///direct.default:9090");
    assert_eq!(
        direct.call(&hello),
        Called::only("v2", 40),
        "a headless service"
    );
    scene.nothing_is_rejected();
}
