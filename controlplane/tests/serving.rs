//! The whole pilot in process: a directory in, a delta client out.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_xds::client::{self, Client, ClientConfig, Event, Events};
use millrace_xds::node::{Node, NodeId};
use millrace_xds::proto::envoy::service::status::v3::client_config::GenericXdsConfig;
use millrace_xds::proto::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use millrace_xds::proto::envoy::service::status::v3::{ClientStatusRequest, ConfigStatus};
use millrace_xds::proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use millrace_xds::proto::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use millrace_xds::{ResourceError, TypeUrl, proto};

/// Longer than anything here takes on a busy machine; a failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "outbound|9080|v1|reviews.default.svc.cluster.local";

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  clusterIP: 10.96.0.1\n  \
                       selector: {app: reviews}\n  ports: [{name: http, port: 9080}]\n";

fn pod(name: &str, version: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: reviews, version: {version}}}}}\n\
         spec: {{nodeName: node-a, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    )
}

fn split(one: u32, three: u32) -> String {
    format!(
        "apiVersion: config.istio.io/v1alpha2\nkind: RouteRule\nmetadata: {{name: reviews}}\nspec:\n  \
         destination: {{name: reviews}}\n  route:\n  - {{labels: {{version: v1}}, weight: {one}}}\n  \
         - {{labels: {{version: v3}}, weight: {three}}}\n"
    )
}

async fn start(directory: &Path) -> Pilot {
    let flags = [
        "pilot",
        "--xds-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
        "--config-dir",
    ];
    let flags = flags
        .into_iter()
        .map(Into::into)
        .chain([directory.as_os_str().to_owned()]);
    Pilot::start(Config::parse_from(flags), None).await.unwrap()
}

/// A node's proxy that keeps what it is told.
struct Proxy {
    client: Client,
    events: Events,
    resources: BTreeMap<(String, String), proto::Any>,
    updates: usize,
}

impl Proxy {
    fn connect(pilot: &Pilot) -> Self {
        let id: NodeId = "node~10.0.0.1~node-a~cluster.local".parse().unwrap();
        let server = format!("http://{}", pilot.addresses().xds);
        let (client, events, driver) =
            client::client(ClientConfig::new(server, Node::new(&id))).unwrap();
        tokio::spawn(driver.run());
        Self {
            client,
            events,
            resources: BTreeMap::new(),
            updates: 0,
        }
    }

    /// Takes updates until something holds.
    async fn until(&mut self, wanted: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                let Some(Event::Update(update)) = self.events.next().await else {
                    continue;
                };
                for resource in &update.resources {
                    let key = (
                        update.type_url.short_name().to_owned(),
                        resource.name.clone(),
                    );
                    self.resources.insert(key, resource.body.clone());
                }
                for name in &update.removed {
                    self.resources
                        .remove(&(update.type_url.short_name().to_owned(), name.clone()));
                }
                self.updates += 1;
                update.commit();
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(
            in_time.is_ok(),
            "{wanted}: there are {:?}",
            self.resources.keys()
        );
    }

    fn get(&self, kind: &str, name: &str) -> Option<&proto::Any> {
        self.resources.get(&(kind.to_owned(), name.to_owned()))
    }

    fn weights(&self) -> Vec<(String, u32)> {
        use proto::envoy::config::route::v3::{route::Action, route_action::ClusterSpecifier};
        let Some(any) = self.get("RDS", "default/9080") else {
            return Vec::new();
        };
        let routes: proto::RouteConfiguration = proto::unpack(any).unwrap();
        let host = routes
            .virtual_hosts
            .into_iter()
            .find(|host| host.name.starts_with("reviews."))
            .unwrap();
        let Some(Action::Route(action)) = host.routes.into_iter().next().unwrap().action else {
            return Vec::new();
        };
        let Some(ClusterSpecifier::WeightedClusters(weighted)) = action.cluster_specifier else {
            return Vec::new();
        };
        weighted
            .clusters
            .into_iter()
            .map(|cluster| (cluster.name, cluster.weight.unwrap().value))
            .collect()
    }

    fn addresses(&self, cluster: &str) -> Option<usize> {
        let assignment: proto::ClusterLoadAssignment =
            proto::unpack(self.get("EDS", cluster)?).unwrap();
        Some(
            assignment
                .endpoints
                .iter()
                .map(|locality| locality.lb_endpoints.len())
                .sum(),
        )
    }
}

async fn page(pilot: &Pilot, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(pilot.addresses().http)
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_reaches_a_proxy_and_a_bad_one_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("service.yaml"), SERVICE).unwrap();
    fs::write(file("v1.yaml"), pod("reviews-v1", "v1", "10.0.1.1")).unwrap();
    fs::write(file("rule.yaml"), split(50, 50)).unwrap();
    let pilot = start(directory.path()).await;
    let mut proxy = Proxy::connect(&pilot);
    proxy
        .client
        .subscribe(&TypeUrl::LISTENER, ["default/*", "pod/default/reviews-v1"]);
    proxy.client.subscribe(&TypeUrl::ROUTE, ["default/9080"]);
    proxy.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
    proxy.client.subscribe(&TypeUrl::ENDPOINT, [CLUSTER]);
    proxy
        .until("the first state", |proxy| proxy.resources.len() == 6)
        .await;
    assert_eq!(
        proxy
            .weights()
            .iter()
            .map(|(_, weight)| *weight)
            .collect::<Vec<_>>(),
        [50, 50]
    );
    assert_eq!(proxy.weights()[0].0, CLUSTER);
    assert_eq!(proxy.addresses(CLUSTER), Some(1));

    fs::write(file("rule.yaml"), split(99, 1)).unwrap();
    proxy
        .until("the new weights", |proxy| {
            proxy
                .weights()
                .first()
                .is_some_and(|(_, weight)| *weight == 99)
        })
        .await;

    // A pod comes up, in a file that is put in place by a rename.
    fs::write(file(".hidden"), pod("reviews-v1b", "v1", "10.0.1.2")).unwrap();
    fs::rename(file(".hidden"), file("v1b.yaml")).unwrap();
    proxy
        .until("the second pod", |proxy| {
            proxy.addresses(CLUSTER) == Some(2)
        })
        .await;

    // A bad rule is told, and neither it nor anything else is taken away.
    fs::write(file("rule.yaml"), split(70, 70)).unwrap();
    fs::remove_file(file("v1b.yaml")).unwrap();
    proxy
        .until("one pod again", |proxy| proxy.addresses(CLUSTER) == Some(1))
        .await;
    assert_eq!(proxy.weights()[0].1, 99);
    let errors = eventually(&pilot, "/debug/config_errors", |page| {
        page.contains("add up to 140")
    })
    .await;
    assert!(errors.contains("\"file\": \"rule.yaml\""), "{errors}");
    assert!(errors.contains("\"line\": 6"), "{errors}");
    let metrics = page(&pilot, "/metrics").await.1;
    let line = "millrace_pilot_config_errors{severity=\"error\",reason=\"invalid\"} 1";
    assert!(metrics.contains(line), "{metrics}");

    // Not even when it is no YAML at all; and a repair is taken at once.
    fs::write(file("rule.yaml"), "{{{").unwrap();
    eventually(&pilot, "/debug/config_errors", |page| {
        page.contains("not YAML")
    })
    .await;
    fs::write(file("rule.yaml"), split(1, 99)).unwrap();
    proxy
        .until("the repaired rule", |proxy| {
            proxy
                .weights()
                .first()
                .is_some_and(|(_, weight)| *weight == 1)
        })
        .await;
    eventually(&pilot, "/debug/config_errors", |page| {
        page.contains("\"errors\": []")
    })
    .await;
    pilot.stop().await;
}

async fn eventually(pilot: &Pilot, path: &str, holds: impl Fn(&str) -> bool) -> String {
    let mut last = String::new();
    let waiting = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            last = page(pilot, path).await.1;
            if holds(&last) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(in_time.is_ok(), "{path} says {last}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_by_name_and_is_not_there_is_said_to_be_gone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("service.yaml"), SERVICE).unwrap();
    let pilot = start(directory.path()).await;
    let mut proxy = Proxy::connect(&pilot);
    let missing = "outbound|9080|v9|reviews.default.svc.cluster.local";
    proxy.client.subscribe(
        &TypeUrl::CLUSTER,
        [missing, "outbound|9080||reviews.default.svc.cluster.local"],
    );
    proxy
        .until("the one there is", |proxy| proxy.resources.len() == 1)
        .await;
    // It is made when the rule that gives the service its subset comes.
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  \
                host: reviews\n  subsets: [{name: v9, labels: {version: v9}}]\n";
    fs::write(directory.path().join("rule.yaml"), rule).unwrap();
    proxy
        .until("the subset", |proxy| proxy.resources.len() == 2)
        .await;
    fs::remove_file(directory.path().join("rule.yaml")).unwrap();
    proxy
        .until("no subset", |proxy| proxy.resources.len() == 1)
        .await;
    pilot.stop().await;
}

/// What CSDS tells of the one resource of the one client.
async fn client_status(pilot: &Pilot, exclude_resource_contents: bool) -> GenericXdsConfig {
    let server = format!("http://{}", pilot.addresses().xds);
    let mut client = ClientStatusDiscoveryServiceClient::connect(server)
        .await
        .unwrap();
    let ask = |id: &str| ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Contains(id.to_owned())),
                ignore_case: false,
            }),
            node_metadatas: Vec::new(),
        }],
        node: None,
        exclude_resource_contents,
    };
    let others = client.fetch_client_status(ask("~node-b~")).await.unwrap();
    assert_eq!(others.into_inner().config, []);
    let asked = futures_util::stream::iter([ask("~node-a~"), ask("~node-b~")]);
    let answers = client
        .stream_client_status(asked)
        .await
        .unwrap()
        .into_inner();
    let mut answers: Vec<_> = futures_util::TryStreamExt::try_collect(answers)
        .await
        .unwrap();
    assert_eq!(answers.len(), 2, "an answer to each message");
    let mut config = answers.swap_remove(0).config;
    assert_eq!(config.len(), 1);
    let client = config.remove(0);
    assert_eq!(
        client.node.unwrap().id,
        "node~10.0.0.1~node-a~cluster.local"
    );
    assert_eq!(client.generic_xds_configs.len(), 1);
    client.generic_xds_configs.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_is_seen_in_the_debug_pages() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("service.yaml"), SERVICE).unwrap();
    let pilot = start(directory.path()).await;
    let mut proxy = Proxy::connect(&pilot);
    let name = "outbound|9080||reviews.default.svc.cluster.local";
    proxy.client.subscribe(&TypeUrl::CLUSTER, [name]);
    loop {
        if let Some(Event::Update(update)) = proxy.events.next().await {
            update.reject(vec![ResourceError {
                name: name.to_owned(),
                message: "cannot be built".to_owned(),
            }]);
            break;
        }
    }
    let sync = eventually(&pilot, "/debug/syncz", |page| {
        page.contains("cannot be built")
    })
    .await;
    assert!(sync.contains("\"ERROR\""), "{sync}");
    let resource = client_status(&pilot, false).await;
    assert_eq!(resource.config_status(), ConfigStatus::Error);
    assert_eq!(resource.name, name);
    let cluster: proto::Cluster = proto::unpack(&resource.xds_config.unwrap()).unwrap();
    assert_eq!(cluster.name, name);
    let error = resource.error_state.unwrap().details;
    assert!(error.contains("cannot be built"), "{error}");
    let without = client_status(&pilot, true).await;
    assert_eq!(without.xds_config, None);
    assert_eq!(without.version_info, resource.version_info);

    let metrics = page(&pilot, "/metrics").await.1;
    assert!(
        metrics.contains("millrace_pilot_xds_nacks_total{type=\"CDS\"} 1"),
        "{metrics}"
    );
    let (status, dump) = page(
        &pilot,
        "/debug/config_dump?node=node~10.0.0.1~node-a~cluster.local",
    )
    .await;
    assert_eq!(status, 200);
    assert!(
        dump.contains("\"connected\": true") && dump.contains(name),
        "{dump}"
    );
    let (_, registry) = page(&pilot, "/debug/registryz").await;
    assert!(
        registry.contains("reviews.default.svc.cluster.local"),
        "{registry}"
    );
    assert_eq!(page(&pilot, "/ready").await.0, 200);
    assert_eq!(page(&pilot, "/healthz").await.0, 200);
    assert_eq!(page(&pilot, "/debug/pushq").await.0, 200);
    pilot.stop().await;
}
