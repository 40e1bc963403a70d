//! The static bootstraps of the seed era (R43 to R46), run for real: the proxy's binary, a
//! backend and, where the file asks for one, a control plane, all on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail the test where they fail"
)]

mod dns;
mod process;
mod restart;
mod workers;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use millrace_xds::push::{ConfigView, Generation};
use millrace_xds::server::{AdsService, ConfigSource, Connection, ServerConfig};
use millrace_xds::{EncodedResource, Selection, TypeUrl, json, proto};
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

use crate::process::Proxy;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The seed's static example with a kernel-chosen port in place of 10000 and 9901.
pub(crate) const STATIC: &str = r#"
admin:
  access_log_path: ADMIN_LOG
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
static_resources:
  listeners:
  - name: listener_0
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.http_connection_manager
        config:
          stat_prefix: ingress_http
          codec_type: AUTO
          route_config:
            name: local_route
            virtual_hosts:
            - name: local_service
              domains: ["*"]
              routes: [{match: {prefix: "/"}, route: {cluster: some_service}}]
          http_filters: [{name: envoy.router}]
  clusters:
  - name: some_service
    connect_timeout: 0.25s
    type: KIND
    lb_policy: ROUND_ROBIN
    hosts: [{socket_address: {address: HOST, port_value: PORT}}]
"#;

/// The seed's dynamic example.
const DYNAMIC: &str = r"
node: {id: sidecar~127.0.0.1~a.default~default.svc.cluster.local, cluster: c}
admin:
  access_log_path: ADMIN_LOG
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
dynamic_resources:
  lds_config: {api_config_source: {api_type: GRPC, cluster_names: [xds_cluster]}}
  cds_config: {api_config_source: {api_type: GRPC, cluster_names: [xds_cluster]}}
static_resources:
  clusters:
  - name: xds_cluster
    connect_timeout: 0.25s
    type: STATIC
    lb_policy: ROUND_ROBIN
    http2_protocol_options: {}
    hosts: [{socket_address: {address: 127.0.0.1, port_value: PORT}}]
";

/// Answers every connection once; the text tells who answered.
fn backend(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut buffer = [0; 4096];
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            if stream.read(&mut buffer).is_ok() {
                drop(stream.write_all(answer.as_bytes()));
            }
        }
    });
    address
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn static_file(kind: &str, host: &str, backend: SocketAddr) -> String {
    STATIC
        .replace("KIND", kind)
        .replace("HOST", host)
        .replace("PORT", &backend.port().to_string())
}

#[test]
fn the_static_example_forwards_and_shows_itself() {
    let proxy = Proxy::start(&static_file("STATIC", "127.0.0.1", backend("static")), 1);
    let admin = proxy.address("admin");
    let listener = proxy.address("listener_0");
    let answer = get(listener, "/");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("static"), "{answer}");
    let clusters = get(admin, "/clusters");
    assert!(
        clusters.contains("some_service::added_via_api::false"),
        "{clusters}"
    );
    assert!(clusters.contains("::rq_success::1"), "{clusters}");
    assert!(get(admin, "/ready").ends_with("LIVE\n"));
}

#[test]
fn the_dns_example_resolves_its_service() {
    let file = static_file(
        "LOGICAL_DNS\n    dns_lookup_family: V4_ONLY",
        "localhost",
        backend("dns"),
    );
    let proxy = Proxy::start(&file, 1);
    let listener = proxy.address("listener_0");
    // The name may resolve a moment after the listener is bound.
    let begin = std::time::Instant::now();
    loop {
        let answer = get(listener, "/");
        if answer.ends_with("dns") {
            break;
        }
        assert!(begin.elapsed() < LIMIT, "{answer}");
        std::thread::yield_now();
    }
}

#[test]
fn a_mistake_in_the_file_is_named_and_ends_the_start() {
    let file = static_file("STATIC", "127.0.0.1", backend("x"));
    let file = file.replace("codec_type: AUTO", "codec_type: FOO");
    let proxy = Proxy::start(&file, 1);
    let (status, text) = proxy.end();
    assert!(!status.success());
    assert!(text.contains("bootstrap.yaml:14: "), "{text}");
    assert!(text.contains("codec_type"), "{text}");
}

/// A control plane with one state.
struct Plane {
    resources: BTreeMap<TypeUrl, Arc<EncodedResource>>,
    generations: watch::Sender<Generation>,
}

struct View(BTreeMap<TypeUrl, Arc<EncodedResource>>);

impl ConfigView for View {
    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let found = self
            .0
            .get(type_url)
            .filter(|r| selection.contains(r.name()));
        found.cloned().into_iter().collect()
    }
}

impl ConfigSource for Plane {
    type Client = ();
    type View = View;

    fn connect(&self, _: &Connection) -> Result<(), tonic::Status> {
        Ok(())
    }

    fn generations(&self) -> watch::Receiver<Generation> {
        self.generations.subscribe()
    }

    fn view(&self, (): &()) -> View {
        View(self.resources.clone())
    }
}

fn plane(backend: SocketAddr) -> Plane {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let listener: proto::Listener = json::from_yaml(&format!(
        r#"
name: from_lds
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: h
    typed_config:
      "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: h
      rds: {{config_source: {{ads: {{}}}}, route_config_name: from_rds}}
      http_filters: [{{name: r, typed_config: {{"@type": {filters}.http.router.v3.Router}}}}]
"#
    ))
    .unwrap();
    let route: proto::RouteConfiguration = json::from_yaml(
        "{name: from_rds, virtual_hosts: [{name: v, domains: ['*'], routes: \
         [{match: {prefix: /}, route: {cluster: from_cds}}]}]}",
    )
    .unwrap();
    let cluster: proto::Cluster =
        json::from_yaml("{name: from_cds, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}")
            .unwrap();
    let endpoints: proto::ClusterLoadAssignment = json::from_yaml(&format!(
        "{{cluster_name: from_cds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}",
        backend.port()
    ))
    .unwrap();
    let resources = [
        EncodedResource::encode(&listener),
        EncodedResource::encode(&route),
        EncodedResource::encode(&cluster),
        EncodedResource::encode(&endpoints),
    ];
    let resources = resources.map(|r| (r.type_url().clone(), Arc::new(r)));
    Plane {
        resources: resources.into(),
        generations: watch::Sender::new(Generation(1)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dynamic_example_takes_everything_from_its_control_plane() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plane = Arc::new(plane(backend("dynamic")));
    let service = AdsService::new(plane, ServerConfig::default()).into_server();
    let server = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let checked = tokio::task::spawn_blocking(move || {
        let proxy = Proxy::start(&DYNAMIC.replace("PORT", &port.to_string()), 1);
        let admin = proxy.address("admin");
        let listener = proxy.address("from_lds");
        let answer = get(listener, "/");
        assert!(answer.ends_with("dynamic"), "{answer}");
        let clusters = get(admin, "/clusters");
        assert!(
            clusters.contains("from_cds::added_via_api::true"),
            "{clusters}"
        );
        assert!(
            clusters.contains("xds_cluster::added_via_api::false"),
            "{clusters}"
        );
        let dump = get(admin, "/config_dump");
        assert!(dump.contains("dynamic_active_clusters"), "{dump}");
    });
    checked.await.unwrap();
    server.abort();
}
