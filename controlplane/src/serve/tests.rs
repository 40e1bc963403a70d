//! The cache: nothing is made twice, and nothing old is served.

use std::sync::Arc;

use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use millrace_xds::server::ConfigView as _;
use millrace_xds::subscription::Selection;
use millrace_xds::{EncodedResource, TypeUrl};

use super::MeshSource;
use crate::index::Index;
use crate::kube::document;
use crate::metrics::PilotMetrics;
use crate::model::mesh::MeshConfig;
use crate::model::node::Features;
use crate::translate::ProxyView;

struct Mesh {
    index: Index,
    source: MeshSource,
}

impl Mesh {
    fn new() -> Self {
        let metrics = Metrics::new(&BuildInfo::of("pilot"));
        Self {
            index: Index::new(MeshConfig::default()),
            source: MeshSource::new(PilotMetrics::new(&metrics)),
        }
    }

    fn apply(&mut self, yaml: &str) {
        for sourced in document::read("a.yaml", yaml, "cluster.local").objects {
            self.index.apply(sourced.object);
        }
        let changes = self.index.take_changes();
        self.source
            .publish(Arc::new(self.index.snapshot()), &changes);
    }

    fn endpoints(&self, node: &str, service: &str) -> Arc<EncodedResource> {
        let view = ProxyView::Node {
            name: node.to_owned(),
            zone: String::new(),
            netns: None,
            features: Features::default(),
        };
        let name = format!("outbound|80||{service}.default.svc.cluster.local");
        let selection = Selection::from_iter([name]);
        let view = self.source.view_of(Arc::new(view));
        view.resources(&TypeUrl::ENDPOINT, &selection).remove(0)
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.0.0.1\n  \
         selector: {{app: {name}}}\n  ports: [{{name: http, port: 80}}]\n---\n"
    )
}

fn pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         spec: {{containers: [{{name: c}}]}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

#[test]
fn nodes_share_one_encoding() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &pod("a-1", "a", "10.1.0.1")));
    let (one, other) = (mesh.endpoints("node-a", "a"), mesh.endpoints("node-b", "a"));
    assert!(Arc::ptr_eq(&one, &other));
}

fn node(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n---\n"
    )
}

/// A slice with an endpoint on a node of each zone.
fn slice(service: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:\n\
         - {{addresses: [10.1.0.1], nodeName: a-1, zone: a, hints: {{forZones: [{{name: a}}]}}}}\n\
         - {{addresses: [10.1.0.2], nodeName: b-1, zone: b, hints: {{forZones: [{{name: b}}]}}}}\n---\n"
    )
}

#[test]
fn nodes_share_what_does_not_depend_on_where_they_are() {
    let mut mesh = Mesh::new();
    let nodes = node("a-1", "a") + &node("a-2", "a") + &node("b-1", "b");
    let plain = slice("plain").replace(", hints: {forZones: [{name: a}]}", "");
    let local = service("local").replace("spec:", "spec:\n  internalTrafficPolicy: Local");
    mesh.apply(&(nodes + &service("near") + &slice("near") + &service("plain") + &plain));
    mesh.apply(&(local + &slice("local")));
    let near = ["a-1", "a-2", "b-1"].map(|node| mesh.endpoints(node, "near"));
    assert!(Arc::ptr_eq(&near[0], &near[1]), "one zone");
    assert_ne!(near[0].version(), near[2].version(), "two zones");
    let local = ["a-1", "a-2"].map(|node| mesh.endpoints(node, "local"));
    assert_ne!(local[0].version(), local[1].version(), "two nodes");

    // A node that turns out to be elsewhere gets what is meant for there.
    let before = mesh.source.published().generation;
    mesh.apply(&node("a-2", "b"));
    let moved = mesh.endpoints("a-2", "near");
    assert!(Arc::ptr_eq(&moved, &near[2]));
    let revisions = mesh.source.published().history.revisions;
    let says = |zone: &str| ProxyView::Node {
        name: "a-2".to_owned(),
        zone: zone.to_owned(),
        netns: None,
        features: Features::default(),
    };
    assert!(revisions.moves(&says(""), before));
    assert!(
        !revisions.moves(&says("a"), before),
        "it says itself where it is"
    );
}

#[test]
fn a_pod_touches_its_own_services_endpoints_only() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &service("b") + &pod("a-1", "a", "10.1.0.1")));
    let before = (mesh.endpoints("node", "a"), mesh.endpoints("node", "b"));
    mesh.apply(&pod("a-2", "a", "10.1.0.2"));
    let after = (mesh.endpoints("node", "a"), mesh.endpoints("node", "b"));
    assert_ne!(before.0.version(), after.0.version());
    assert!(Arc::ptr_eq(&before.1, &after.1));
}

#[test]
fn what_comes_to_the_same_keeps_its_version() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &pod("a-1", "a", "10.1.0.1")));
    let before = mesh.endpoints("node", "a");
    mesh.apply(&pod("a-2", "a", "10.1.0.2"));
    // Another service changes what endpoints are made from, not what they are.
    mesh.apply(&(service("z") + &pod("a-2", "other", "10.1.0.2")));
    let after = mesh.endpoints("node", "a");
    assert_eq!(before.version(), after.version());
}
