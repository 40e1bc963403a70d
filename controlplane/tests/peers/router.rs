//! Stock Envoy as a router: what comes from outside is routed by Istio's `Gateway` with `VirtualServices`, by the Gateway
//! API's with `HTTPRoutes`, and by an Ingress, to the versions of a service inside.
//!
//! Needs `MILLRACE_ENVOY`, or an `envoy` on the path.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use millrace_testkit::envoy::bootstrap;
use millrace_testkit::http::{Request, Server};
use millrace_testkit::{echo, skip::skip};
use serde_json::json;

use crate::envoy::envoy;
use crate::namespace::{Namespace, Process};
use crate::{PATIENCE, pilot};

const NODE: &str = "router~10.244.1.9~edge.default~default.svc.cluster.local";
const XDS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15010);
/// The ports of the Istio gateway, the Gateway API's and the Ingress.
const ISTIO: u16 = 8080;
const API: u16 = 8081;
const INGRESS: u16 = 8082;
const VERSIONS: [(&str, &str); 2] = [("v1", "10.244.1.1"), ("v2", "10.244.1.2")];

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: v1, labels: {app: reviews, version: v1}}
spec: {nodeName: a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: v2, labels: {app: reviews, version: v2}}
spec: {nodeName: a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.1.2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge}
spec: {clusterIP: 10.96.0.2, selector: {istio: ingressgateway}, ports: [{name: http, port: 80, targetPort: 8082}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*.example.com']}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: millrace
  listeners: [{name: http, port: 8081, protocol: HTTP, hostname: api.example.com}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{name: edge, sectionName: http}]
  rules:
  - matches: [{path: {value: /reviews}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-by, value: route}]}}]
    backendRefs: [{name: reviews, port: 9080}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: reviews}
spec:
  ingressClassName: istio
  rules:
  - host: old.example.com
    http: {paths: [{path: /reviews, pathType: Prefix, backend: {service: {name: reviews, port: {name: http}}}}]}
";

fn routes(one: u32, two: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - route:
    - {{destination: {{host: reviews, subset: v1}}, weight: {one}}}
    - {{destination: {{host: reviews, subset: v2}}, weight: {two}}}
"
    )
}

struct Edge<'a> {
    namespace: &'a Namespace,
}

impl Edge<'_> {
    /// The status, and which version answered.
    fn call(&self, port: u16, request: &Request) -> Option<(u16, String)> {
        let response = self.namespace.ask(port, request).ok()?;
        let by = response.headers.first("x-server").unwrap_or_default();
        Some((response.status, by.to_owned()))
    }

    fn get(&self, port: u16, host: &str, path: &str) -> Option<(u16, String)> {
        self.call(port, &Request::get(host, path))
    }

    /// Waits for an answer of this status.
    fn until(&self, port: u16, host: &str, path: &str, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.get(port, host, path);
            if got.as_ref().is_some_and(|(code, _)| *code == status) {
                return;
            }
            let sync = self.namespace.page("/debug/syncz").unwrap_or_default();
            assert!(Instant::now() < deadline, "{host}{path}: {got:?}\n{sync:#}");
            // Another program's progress has no event to wait for.
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
    }

    /// How often which version answered.
    fn shares(&self, calls: u32) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..calls {
            let (status, by) = self.get(ISTIO, "shop.example.com", "/").unwrap();
            assert_eq!(status, 200);
            *shares.entry(by).or_default() += 1;
        }
        shares
    }
}

fn start_envoy(namespace: &Namespace, envoy: &Path, directory: &Path) -> Process {
    let mut config = bootstrap(NODE, "DELTA_GRPC", XDS);
    let labels = json!({
        "istio": "ingressgateway",
        "gateway.networking.k8s.io/gateway-name": "edge",
    });
    config["node"]["metadata"] = json!({ "NAMESPACE": "default", "LABELS": labels });
    let file = directory.join("bootstrap.json");
    fs::write(&file, config.to_string()).unwrap();
    let base_id = (std::process::id() + 0x10_0000).to_string();
    let mut command = namespace.run(envoy);
    command.args(["--log-level", "critical", "--concurrency", "1"]);
    command.args(["--base-id", &base_id, "-c"]).arg(&file);
    Process::start(&mut command)
}

#[test]
fn stock_envoy_lets_in_what_gateways_and_ingresses_say() {
    let Some(envoy) = envoy() else {
        return skip("no stock Envoy: MILLRACE_ENVOY is unset and no envoy is on the path");
    };
    if !Namespace::possible() {
        return skip("no network namespace can be made here");
    }
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("mesh.yaml"), MESH).unwrap();
    fs::write(config.join("routes.yaml"), routes(75, 25)).unwrap();
    let addresses = VERSIONS.map(|(_, address)| address);
    let namespace = Namespace::with(&addresses);
    let servers: Vec<Server> = VERSIONS
        .iter()
        .map(|(version, address)| {
            let address = SocketAddr::new(address.parse().unwrap(), 9080);
            echo::http(namespace.listen(address), version).unwrap()
        })
        .collect();
    let _pilot = pilot(&namespace, &config);
    let _envoy = start_envoy(&namespace, &envoy, directory.path());
    let edge = Edge {
        namespace: &namespace,
    };

    // Istio's: hosts of its rules alone, with header match and split.
    edge.until(ISTIO, "shop.example.com", "/", 200);
    assert_eq!(edge.get(ISTIO, "other.example.com", "/").unwrap().0, 404);
    let with_port = edge.get(ISTIO, "shop.example.com:8080", "/").unwrap();
    assert_eq!(with_port.0, 200);
    let jason = Request::get("shop.example.com", "/").header("end-user", "jason");
    for _ in 0..8 {
        assert_eq!(edge.call(ISTIO, &jason).unwrap(), (200, "v2".to_owned()));
    }
    let shares = edge.shares(400);
    assert!((60..=140).contains(&shares["v2"]), "{shares:?}");

    // The Gateway API's: its listener's host, the route's path and filter.
    edge.until(API, "api.example.com", "/reviews/1", 200);
    assert_eq!(edge.get(API, "api.example.com", "/else").unwrap().0, 404);
    let request = Request::get("api.example.com", "/reviews").header("x-forwarded-for", "1.2.3.4");
    let seen = echo::Seen::of(&namespace.ask(API, &request).unwrap()).unwrap();
    assert_eq!(seen.header("x-by"), Some("route"));
    // To what a client says of its address Envoy adds where it really is, for one on the same machine its own.
    assert_eq!(seen.header("x-forwarded-for"), Some("1.2.3.4,10.244.1.1"));

    // The Ingress: port 80 of the service before the router is this one of its pod's.
    edge.until(INGRESS, "old.example.com", "/reviews/1", 200);
    assert_eq!(
        edge.get(INGRESS, "old.example.com", "/reviewsx").unwrap().0,
        404
    );
    assert_eq!(
        edge.get(INGRESS, "shop.example.com", "/reviews").unwrap().0,
        404
    );

    // Changes reach it: another split, and a gateway that goes.
    fs::write(config.join("routes.yaml"), routes(0, 100)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while edge.shares(20) != BTreeMap::from([("v2".to_owned(), 20)]) {
        assert!(Instant::now() < deadline, "the old split holds");
    }
    fs::remove_file(config.join("routes.yaml")).unwrap();
    edge.until(ISTIO, "shop.example.com", "/", 404);
    drop(servers);
}
