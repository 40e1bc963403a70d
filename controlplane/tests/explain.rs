//! Goldens of `/simulate`: a pilot that reads a directory, a node's proxy that is pushed its configuration, and what the
//! proxy's admin port then says would become of calls, with where pilot says that the objects behind it stand.
//!
//! `testdata/explain/<case>/rules.yaml` is read beside `bookinfo.yaml`; `calls.txt` holds a query in each line, and
//! `golden.json` the answers. Rewritten only when `MILLRACE_BLESS` is 1. millctl's tests make text of the same file.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::BodyExt as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_proxy::acceleration::Accelerator;
use millrace_proxy::admin::{self, Admin};
use millrace_proxy::cluster::Manager;
use millrace_proxy::cluster::dns::SystemLookup;
use millrace_proxy::handover::Handover;
use millrace_proxy::listener::stats::ListenerStats;
use millrace_proxy::pods::{LocalPod, LocalPods};
use millrace_proxy::snapshot::Store;
use millrace_proxy::xds::{self, Interest};
use millrace_runtime::admin::Routes;
use millrace_runtime::admin::client::{Target, call};
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::handoff::{CaptureMode, Families, PodSpec};
use millrace_runtime::metrics::Metrics;
use millrace_runtime::ready::Ready;
use millrace_xds::client::ClientConfig;
use millrace_xds::node::{Node, NodeId};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; a failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/explain");
    let entries = fs::read_dir(root).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    cases
}

/// The pods of node `node-a`.
fn pods() -> LocalPods {
    let pods = LocalPods::default();
    let (wants, _) = mpsc::unbounded_channel();
    for (name, ip) in [
        ("productpage-v1", "10.244.1.1"),
        ("reviews-v1", "10.244.1.3"),
    ] {
        let spec = PodSpec {
            uid: name.into(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ips: vec![ip.parse().unwrap()],
            ..PodSpec::default()
        };
        let families = Families {
            v4: true,
            v6: false,
        };
        let pod = LocalPod::new(spec, families, CaptureMode::Ebpf, &wants);
        pods.insert(&Arc::new(pod));
    }
    pods
}

/// A node's proxy without sockets: the stream to pilot, the configuration, the admin port's table.
struct Proxy {
    admin: Routes,
    store: Arc<Store>,
    stop: CancellationToken,
    control: tokio::task::JoinHandle<()>,
}

impl Proxy {
    fn start(pilot: &Pilot) -> Self {
        let id: NodeId = "node~10.0.0.1~node-a~cluster.local".parse().unwrap();
        let server = format!("http://{}", pilot.addresses().xds);
        let (store, pods, interest) = (Arc::new(Store::new()), Arc::new(pods()), Interest::new());
        let (control, configuration) = xds::Config {
            mode: xds::Mode::Node,
            fixed: millrace_proxy::snapshot::Resources::default(),
            server: Some(ClientConfig::new(server, Node::new(&id))),
            state_file: None,
            interest: interest.clone(),
            lookup: Arc::new(SystemLookup::default()),
            store: store.clone(),
            manager: Arc::new(Manager::new()),
            ready: None,
        }
        .start()
        .unwrap();
        let local = pods.all();
        let names = local.iter().map(|pod| &pod.spec);
        interest.pods(names.map(|pod| (pod.namespace.clone(), pod.name.clone())));
        let build = BuildInfo::of("millrace-proxy");
        let admin = admin::routes(Admin {
            store: store.clone(),
            configuration,
            pods,
            domain: "cluster.local".to_owned(),
            bootstrap: None,
            node_id: "node-a".to_owned(),
            ready: Ready::new(),
            level: None,
            metrics: Metrics::new(&build),
            listener_stats: ListenerStats::default(),
            accelerator: Accelerator::none(),
            handover: Handover::none(),
            build,
            drain_listeners: CancellationToken::new(),
            quit: CancellationToken::new(),
        });
        let stop = CancellationToken::new();
        Self {
            admin,
            store,
            control: tokio::spawn(control.run(stop.clone())),
            stop,
        }
    }

    async fn simulate(&self, query: &str) -> Value {
        let query = query.replace(' ', "%20");
        let uri = format!("/simulate?{query}").parse().unwrap();
        let answer = self.admin.dispatch(&http::Method::GET, &uri, Bytes::new());
        let body = answer.await.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.control.await.unwrap();
    }
}

/// What pilot says of every object that an answer names.
async fn places(pilot: &Pilot, answer: &Value) -> Value {
    let mut named = Vec::new();
    objects(answer, &mut named);
    let wanted: Vec<_> = named
        .iter()
        .map(|of| format!("of={}", of.replace('#', "%23")))
        .collect();
    let target = Target::Tcp(pilot.addresses().http);
    let path = format!("/debug/places?{}", wanted.join("&"));
    let told = call(&target, http::Method::GET, &path, Bytes::new(), PATIENCE).await;
    let told: Value = serde_json::from_str(&told.unwrap().text()).unwrap();
    told["places"].clone()
}

fn objects(value: &Value, named: &mut Vec<String>) {
    let mut name = |of: String| {
        if !named.contains(&of) {
            named.push(of);
        }
    };
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    match (text("config"), text("field"), text("object")) {
        (Some(config), Some(field), _) => name(format!("{config}#{field}")),
        (Some(config), None, _) => name(config.to_owned()),
        (None, _, Some(object)) => name(object.to_owned()),
        (None, _, None) => {
            if let (Some(service), Some(namespace), Some(_)) =
                (text("name"), text("namespace"), text("host"))
            {
                name(format!("/api/v1/namespaces/{namespace}/service/{service}"));
            }
        }
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| objects(value, named)),
        Value::Array(items) => items.iter().for_each(|value| objects(value, named)),
        _ => {}
    }
}

async fn explained(pilot: &Pilot, proxy: &Proxy, calls: &str) -> Value {
    let mut all = Vec::new();
    for query in calls.lines() {
        let answer = proxy.simulate(query).await;
        let places = places(pilot, &answer).await;
        all.push(json!({ "query": query, "answer": answer, "places": places }));
    }
    all.into()
}

/// Explains a case's calls, again at every change of the configuration until they are as wanted.
async fn run(case: &Path) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let bookinfo = case.parent().unwrap().join("bookinfo.yaml");
    fs::copy(bookinfo, directory.path().join("bookinfo.yaml")).unwrap();
    fs::copy(case.join("rules.yaml"), directory.path().join("rules.yaml")).unwrap();
    let flags = [
        "pilot",
        "--xds-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
    ];
    let place = [
        "--config-dir".into(),
        directory.path().as_os_str().to_owned(),
    ];
    let flags = flags.into_iter().map(Into::into).chain(place);
    let pilot = Pilot::start(Config::parse_from(flags), None).await.unwrap();
    let proxy = Proxy::start(&pilot);
    let calls = fs::read_to_string(case.join("calls.txt")).unwrap();
    let golden = fs::read_to_string(case.join("golden.json")).unwrap_or_default();
    let golden: Value = serde_json::from_str(&golden).unwrap_or_default();
    let mut generations = proxy.store.subscribe();
    let mut made = explained(&pilot, &proxy, &calls).await;
    while made != golden {
        let changed = tokio::time::timeout(quiet(), generations.changed()).await;
        if changed.is_err() {
            break;
        }
        made = explained(&pilot, &proxy, &calls).await;
    }
    proxy.end().await;
    pilot.stop().await;
    made
}

fn blesses() -> bool {
    std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1")
}

/// How long nothing may change before what is there is taken for all there will be.
fn quiet() -> Duration {
    if blesses() {
        Duration::from_secs(3)
    } else {
        PATIENCE
    }
}

#[tokio::test]
async fn calls_are_explained_as_the_proxy_would_serve_them() {
    for case in cases() {
        let made = run(&case).await;
        let path = case.join("golden.json");
        if blesses() {
            let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
            fs::write(&path, text).unwrap();
        } else {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let golden: Value = serde_json::from_str(&text).unwrap_or_default();
            similar_asserts::assert_eq!(made, golden, "{}", case.display());
        }
    }
}
