//! One pilot reads files, another has none and reads the first one over xDS: what they serve is the same.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_controlplane::model::near::Place;
use millrace_controlplane::model::node::Features;
use millrace_controlplane::translate::{ProxyView, ResourceKind};
use millrace_xds::server::Generation;
use millrace_xds::{EncodedResource, json};
use serde_json::Value;

/// Longer than anything here takes on a busy machine; a failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

const MESH: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1, labels: {app: reviews, version: v1}}
spec: {nodeName: node-a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v3, labels: {app: reviews, version: v3}}
spec: {nodeName: node-a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.3}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]
";

/// A split of these percentages, with a rule for one user before it.
fn split(one: u32, three: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    timeout: 0.500s
    route: [{{destination: {{host: reviews, subset: v3}}}}]
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {one}}}
    - {{destination: {{host: reviews, subset: v3}}, weight: {three}}}
"
    )
}

async fn pilot(flags: &[&str]) -> Pilot {
    let addresses = [
        "pilot",
        "--xds-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
    ];
    let flags = addresses.iter().chain(flags);
    Pilot::start(Config::parse_from(flags), None).await.unwrap()
}

async fn of_files(directory: &Path) -> Pilot {
    pilot(&["--config-dir", directory.to_str().unwrap()]).await
}

/// A pilot without registries that reads another one.
async fn of_pilot(source: &str) -> Pilot {
    pilot(&["--config-sources", &format!("xds://{source}")]).await
}

/// What a pilot gives to the sidecar of a pod of this namespace: names and bodies of routes, clusters and endpoints.
fn served(pilot: &Pilot) -> BTreeMap<String, Value> {
    let view = ProxyView::Sidecar {
        namespace: "default".to_owned(),
        pod: "caller".to_owned(),
        addresses: Vec::new(),
        place: Place::default(),
        is_envoy: true,
        features: Features::all(),
    };
    let view = pilot.source().view_of(Arc::new(view));
    let kinds = [
        ResourceKind::Route,
        ResourceKind::Cluster,
        ResourceKind::Endpoints,
    ];
    let all = kinds.into_iter().flat_map(|kind| view.all(kind));
    let shown = |it: Arc<EncodedResource>| {
        let mut body = json::any_to_value(&it.to_any()).unwrap();
        strip(&mut body);
        (format!("{:?} {}", it.type_url(), it.name()), body)
    };
    all.map(shown).collect()
}

/// Takes away what proxies only show to people: an entry's service is called otherwise, its pods are not known.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("metadata");
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// The weights of the route of everybody's calls.
fn weights(pilot: &Pilot) -> Vec<(String, u64)> {
    let all = served(pilot);
    let route = all.iter().find(|(name, _)| *name == "RDS 9080");
    let Some((_, route)) = route else {
        return Vec::new();
    };
    let hosts = route["virtual_hosts"].as_array().into_iter().flatten();
    let name = |host: &&Value| host["name"].as_str().unwrap_or_default().to_owned();
    let host = hosts
        .into_iter()
        .find(|host| name(host).starts_with("reviews."));
    let routes = host.and_then(|host| host["routes"].as_array()?.last());
    let weighted = routes.map(|route| &route["route"]["weighted_clusters"]["clusters"]);
    let clusters = weighted.and_then(Value::as_array).into_iter().flatten();
    let weight = |it: &Value| {
        let name = it["name"].as_str().unwrap_or_default();
        (name.to_owned(), it["weight"].as_u64().unwrap_or_default())
    };
    clusters.map(weight).collect()
}

fn of_versions(one: u64, three: u64) -> Vec<(String, u64)> {
    let cluster =
        |version: &str| format!("outbound|9080|{version}|reviews.default.svc.cluster.local");
    vec![(cluster("v1"), one), (cluster("v3"), three)]
}

/// Waits for a pilot's next snapshots until something holds of what it serves.
async fn until(pilot: &Pilot, wanted: &str, holds: impl Fn(&Pilot) -> bool) {
    use millrace_xds::server::ConfigSource as _;
    let mut generations = pilot.source().generations();
    let waiting = async {
        while !(*generations.borrow_and_update() > Generation::default() && holds(pilot)) {
            generations.changed().await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waiting).await;
    let problems = pilot.source().problems();
    assert!(
        in_time.is_ok(),
        "no {wanted}: {:?}\n{problems:?}",
        weights(pilot)
    );
}

#[tokio::test]
async fn a_pilot_without_files_serves_what_the_other_one_has() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file("mesh.yaml", MESH);
    file("routes.yaml", &split(75, 25));
    let first = of_files(directory.path()).await;
    until(&first, "split", |it| weights(it) == of_versions(75, 25)).await;
    let second = of_pilot(&first.addresses().xds.to_string()).await;
    until(&second, "split", |it| weights(it) == of_versions(75, 25)).await;
    assert_eq!(served(&second), served(&first));

    file("routes.yaml", &split(10, 90));
    until(&second, "new split", |it| {
        weights(it) == of_versions(10, 90)
    })
    .await;
    fs::remove_file(directory.path().join("routes.yaml")).unwrap();
    until(&second, "route without a split", |it| {
        weights(it).is_empty()
    })
    .await;
    until(&first, "route without a split", |it| weights(it).is_empty()).await;
    assert_eq!(served(&second), served(&first));

    // A third pilot reads the second one: what comes from a server goes on to the next.
    let third = of_pilot(&second.addresses().xds.to_string()).await;
    until(&third, "anything", |it| !served(it).is_empty()).await;
    assert_eq!(served(&third), served(&first));
    third.stop().await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_server_that_is_gone_takes_nothing_with_it_and_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file("mesh.yaml", MESH);
    file("routes.yaml", &split(75, 25));
    let first = of_files(directory.path()).await;
    let address = first.addresses().xds.to_string();
    let second = of_pilot(&address).await;
    until(&second, "split", |it| weights(it) == of_versions(75, 25)).await;
    let before = served(&second);

    first.stop().await;
    let gone = |it: &Pilot| {
        let problems = it.source().problems();
        problems
            .iter()
            .any(|it| it.message.contains("keeps serving"))
    };
    wait_for(|| gone(&second)).await;
    assert_eq!(served(&second), before);

    file("routes.yaml", &split(40, 60));
    let directory = directory.path().to_str().unwrap();
    let flags = [
        "pilot",
        "--http-addr",
        "127.0.0.1:0",
        "--config-dir",
        directory,
    ];
    let flags = flags.into_iter().chain(["--xds-addr", &address]);
    let again = Pilot::start(Config::parse_from(flags), None).await.unwrap();
    until(&second, "newer split", |it| {
        weights(it) == of_versions(40, 60)
    })
    .await;
    wait_for(|| !gone(&second)).await;
    second.stop().await;
    again.stop().await;
}

/// Waits for what no snapshot tells of.
async fn wait_for(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}
