//! Seed-era discovery of a running pilot: what a polling Envoy gets, and when.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_xds::client::{ClientConfig, Event, Update, client};
use millrace_xds::node::Node;
use millrace_xds::{TypeUrl, proto};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than anything here takes on a busy machine; a failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(20);
const NODE: &str = "sidecar~10.244.1.10~productpage-v1.default~default.svc.cluster.local";

async fn start(directory: &Path) -> Pilot {
    let flags = [
        "pilot",
        "--xds-addr=127.0.0.1:0",
        "--http-addr=127.0.0.1:0",
        "--legacy-addr=127.0.0.1:0",
        "--config-dir",
    ];
    let flags = flags
        .into_iter()
        .map(Into::into)
        .chain([directory.as_os_str().to_owned()]);
    Pilot::start(Config::parse_from(flags), None).await.unwrap()
}

/// Asks as the era's Envoy did, whose paths have `|`, `=` and `~` in them as they are.
async fn get(pilot: &Pilot, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(pilot.addresses().legacy.unwrap())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: rds\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("etag"), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Polls until a document is as wanted; before the registry is read the answer is 503.
async fn until(pilot: &Pilot, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let polling = async {
        loop {
            let (status, body) = get(pilot, path).await;
            if status == 200 {
                let document: Value = serde_json::from_str(&body).unwrap();
                if wanted(&document) {
                    return document;
                }
            } else {
                assert_eq!(status, 503, "{body}");
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, polling)
        .await
        .unwrap_or_else(|_| panic!("{path} is not as wanted"))
}

fn bookinfo(case: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy");
    fs::read_to_string(root.join(case).join("in.yaml")).unwrap()
}

/// The routes for reviews.
fn reviews(routes: &Value) -> &Value {
    let hosts = routes["virtual_hosts"].as_array().unwrap();
    let host = hosts
        .iter()
        .find(|host| host["name"] == "reviews.default.svc.cluster.local|http");
    &host.unwrap()["routes"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_rule_is_in_the_next_answer() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bookinfo.yaml");
    fs::write(&file, bookinfo("bookinfo-v1")).unwrap();
    let pilot = start(directory.path()).await;
    let rds = format!("/v1/routes/9080/productpage/{NODE}");
    let v1 = "out.reviews.default.svc.cluster.local|http|version=v1";
    let all = until(&pilot, &rds, |routes| reviews(routes)[0]["cluster"] == v1).await;
    assert_eq!(reviews(&all)[0]["timeout_ms"], 0);
    assert_eq!(
        reviews(&all)[0]["decorator"]["operation"],
        "reviews-default"
    );

    let beside = directory.path().join(".bookinfo.new");
    fs::write(&beside, bookinfo("bookinfo-split")).unwrap();
    fs::rename(&beside, &file).unwrap();
    let is_split = |routes: &Value| reviews(routes)[0]["weighted_clusters"].is_object();
    let split = until(&pilot, &rds, is_split).await;
    let weights = &reviews(&split)[0]["weighted_clusters"]["clusters"];
    assert_eq!(
        (&weights[0]["weight"], &weights[1]["weight"]),
        (&json!(50), &json!(50))
    );
    // All of one snapshot: what routes name is there at once.
    let cds = until(&pilot, &format!("/v1/clusters/productpage/{NODE}"), |_| {
        true
    })
    .await;
    let listed = cds["clusters"].as_array().unwrap();
    for weighted in weights.as_array().unwrap() {
        let cluster = listed
            .iter()
            .find(|it| it["name"] == weighted["name"])
            .unwrap();
        let sds = format!(
            "/v1/registration/{}",
            cluster["service_name"].as_str().unwrap()
        );
        let hosts = until(&pilot, &sds, |_| true).await;
        assert_eq!(hosts["hosts"].as_array().unwrap().len(), 1, "{hosts}");
        let escaped = sds.replace('|', "%7C").replace('=', "%3D");
        assert_eq!(until(&pilot, &escaped, |_| true).await, hosts);
    }
    let lds = until(&pilot, &format!("/v1/listeners/productpage/{NODE}"), |_| {
        true
    })
    .await;
    assert_eq!(lds["listeners"].as_array().unwrap().len(), 3);
    let services = until(&pilot, "/v1/registration", |_| true).await;
    assert_eq!(services.as_array().unwrap().len(), 4);
    pilot.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_means_nothing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("bookinfo.yaml"),
        bookinfo("bookinfo-v1"),
    )
    .unwrap();
    let pilot = start(directory.path()).await;
    until(&pilot, "/v1/registration", |_| true).await;
    let unknown = "/v1/registration/gone.default.svc.cluster.local|http";
    assert_eq!(
        until(&pilot, unknown, |_| true).await,
        json!({ "hosts": [] })
    );
    for (path, wrong) in [
        (
            "/v1/listeners/a/productpage".to_owned(),
            "service-node: node id productpage",
        ),
        (
            "/v1/clusters/a/ingress~10.0.0.1~a.b~c".to_owned(),
            "unknown role ingress",
        ),
        (
            "/v1/clusters/a/node~10.0.0.1~a~c".to_owned(),
            "service-node: node node~10.0.0.1~a~c is a node",
        ),
        (
            format!("/v1/routes/http/a/{NODE}"),
            "route-config-name: \"http\" is not a port",
        ),
        (
            "/v1/registration/a|b|c".to_owned(),
            "service-key: \"a|b|c\"",
        ),
        (
            format!("/v1/az/a/{NODE}"),
            "service-node: default/productpage-v1 is in no known zone",
        ),
        ("/v1/nothing".to_owned(), "/v1/routes/{route-config-name}"),
    ] {
        let (status, body) = get(&pilot, &path).await;
        assert_eq!(status, 404, "{path}: {body}");
        assert!(body.contains(wrong), "{path}: {body}");
    }
    pilot.stop().await;
}

/// Whether route configurations of an update name something.
fn routes_name(update: &Update, text: &str) -> bool {
    update.resources.iter().any(|resource| {
        let routes = proto::unpack::<proto::RouteConfiguration>(&resource.body);
        routes.is_ok_and(|routes| format!("{routes:?}").contains(text))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_asks_for_the_names_of_the_era_gets_them_over_xds() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bookinfo.yaml");
    fs::write(&file, bookinfo("bookinfo-split")).unwrap();
    let pilot = start(directory.path()).await;
    let node = Node::new(&NODE.parse().unwrap()).with_metadata("GENERATOR", "legacy");
    let server = format!("http://{}", pilot.addresses().xds);
    let (handle, mut events, driver) = client(ClientConfig::new(server, node)).unwrap();
    let driver = tokio::spawn(driver.run());
    let v3 = "out.reviews.default.svc.cluster.local|http|version=v3";
    let v1 = "out.reviews.default.svc.cluster.local|http|version=v1";
    handle.subscribe(&TypeUrl::CLUSTER, ["*"]);
    handle.subscribe(&TypeUrl::ENDPOINT, [v1, v3]);
    handle.subscribe(&TypeUrl::ROUTE, ["9080"]);
    let following = async {
        let mut changed = false;
        loop {
            let Event::Update(update) = events.next().await.unwrap() else {
                continue;
            };
            let decorated = routes_name(&update, "|http|version=v2");
            update.commit();
            let held = |kind: &TypeUrl| handle.known(kind).into_iter().map(|(name, _)| name);
            let clusters: Vec<String> = held(&TypeUrl::CLUSTER).collect();
            let all = [v1, v3]
                .iter()
                .all(|name| clusters.iter().any(|it| it == name));
            if !changed
                && all
                && held(&TypeUrl::ENDPOINT).count() == 2
                && held(&TypeUrl::ROUTE).count() == 1
            {
                assert!(
                    clusters.iter().all(|name| !name.contains("outbound|")),
                    "{clusters:?}"
                );
                let beside = directory.path().join(".bookinfo.new");
                let other = bookinfo("bookinfo-split").replace(
                    "labels: {version: v3}\n    weight",
                    "labels: {version: v2}\n    weight",
                );
                fs::write(&beside, other).unwrap();
                fs::rename(&beside, &file).unwrap();
                changed = true;
            }
            if changed && decorated {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, following).await.unwrap();
    driver.abort();
    pilot.stop().await;
}
