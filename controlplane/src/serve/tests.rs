//! The cache: nothing is made twice, and nothing old is served.

use std::sync::Arc;

use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use millrace_xds::server::{ConfigView as _, Generation};
use millrace_xds::subscription::Selection;
use millrace_xds::{EncodedResource, TypeUrl};
use proptest::prelude::*;

use super::MeshSource;
use crate::index::Index;
use crate::kube::document;
use crate::metrics::PilotMetrics;
use crate::model::mesh::MeshConfig;
use crate::model::node::Features;
use crate::model::{Object, ObjectId};
use crate::push::scope::tests::{KINDS, all_names, object, views};
use crate::translate::{ProxyView, ResourceKind, Translator};

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

    fn take(&mut self, object: Option<Object>, id: &ObjectId) {
        match object {
            Some(object) => self.index.apply(object),
            None => self.index.delete(id),
        }
        let changes = self.index.take_changes();
        self.source
            .publish(Arc::new(self.index.snapshot()), &changes);
    }

    /// What a client asks for.
    fn asks(&self, view: &ProxyView, kind: ResourceKind, names: &[String]) -> Selection {
        let selection: Selection = names.iter().collect();
        self.source.interest.add(view, kind, &selection, names);
        selection
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

#[test]
fn a_change_is_looked_for_by_what_it_touches() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &service("b") + &pod("a-1", "a", "10.1.0.1")));
    let view = &views()[0];
    let cluster = |service: &str| format!("outbound|80||{service}.default.svc.cluster.local");
    let mut names: Vec<String> = (0..500).map(|at| cluster(&format!("other-{at}"))).collect();
    names.extend([cluster("a"), cluster("b")]);
    let endpoints = mesh.asks(view, ResourceKind::Endpoints, &names);
    let clusters = mesh.asks(view, ResourceKind::Cluster, &names);
    let mut pods: Vec<String> = (0..100).map(|at| format!("pod/default/p-{at}")).collect();
    pods.push("pod/default/a-2".to_owned());
    let listeners = mesh.asks(view, ResourceKind::Listener, &pods);
    let since = mesh.source.published().generation;
    mesh.apply(&pod("a-2", "a", "10.1.0.2"));
    let published = mesh.source.published();
    let looked_at = |kind, selection: &Selection| {
        let candidates = published.candidates(view, kind, since, selection);
        let names = candidates.expect("known by name").into_iter();
        names.map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        looked_at(ResourceKind::Endpoints, &endpoints),
        [cluster("a")]
    );
    assert!(looked_at(ResourceKind::Cluster, &clusters).is_empty());
    assert_eq!(
        looked_at(ResourceKind::Listener, &listeners),
        ["pod/default/a-2"]
    );
    mesh.apply(&service("b").replace("port: 80", "port: 81"));
    let published = mesh.source.published();
    let changed = published.changed(view, ResourceKind::Cluster, since, &clusters);
    assert_eq!(changed, Some(vec![cluster("b")]));
}

#[test]
fn a_node_is_told_of_pods_that_come_into_a_namespace_that_it_asks_for() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &pod("a-1", "a", "10.1.0.1")));
    let since = mesh.source.published().generation;
    let all = Selection::from_iter(["pod/default/*"]);
    mesh.apply(&pod("a-2", "a", "10.1.0.2"));
    let published = mesh.source.published();
    let changed = published.changed(&views()[0], ResourceKind::Listener, since, &all);
    assert_eq!(changed, None, "all of it is looked at");
}

#[test]
fn listeners_of_pods_are_not_kept() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &pod("a-1", "a", "10.1.0.1")));
    let view = mesh.source.view_of(Arc::new(views()[0].clone()));
    let selection = Selection::from_iter(["pod/default/a-1", "default/virtualOutbound"]);
    let made = view.resources(&TypeUrl::LISTENER, &selection);
    let holders = |name: &str| {
        let resource = made.iter().find(|resource| resource.name() == name);
        Arc::strong_count(resource.expect("made"))
    };
    assert_eq!(holders("pod/default/a-1"), 1, "nobody but who asked");
    assert_eq!(holders("default/virtualOutbound"), 2, "and the cache");
}

#[test]
fn a_router_looks_at_everything_when_gateways_change_and_at_nothing_when_other_pods_do() {
    let mut mesh = Mesh::new();
    mesh.apply(&(service("a") + &pod("a-1", "a", "10.1.0.1")));
    let router = views().into_iter().next_back().expect("a router");
    let all = Selection::everything();
    let changed = |mesh: &Mesh, since| {
        let published = mesh.source.published();
        [ResourceKind::Cluster, ResourceKind::Listener]
            .map(|kind| published.changed(&router, kind, since, &all))
    };
    let since = mesh.source.published().generation;
    mesh.apply(&pod("a-2", "a", "10.1.0.2"));
    assert_eq!(changed(&mesh, since), [Some(Vec::new()), Some(Vec::new())]);
    let since = mesh.source.published().generation;
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\n\
         spec: {selector: {app: a}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n",
    );
    assert_eq!(changed(&mesh, since), [None, None]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_differs_is_among_what_a_stream_looks_at(
        steps in prop::collection::vec(
            (
                (
                    0..KINDS,
                    prop::sample::select(vec!["a", "b"]),
                    prop::sample::select(vec!["default", "other", "istio-system"]),
                    1..4_u8,
                    any::<bool>(),
                ),
                0..4_u8,
            ),
            1..25,
        ),
        back in 1..4_u64,
    ) {
        let mut mesh = Mesh::new();
        let (all, views) = (all_names(), views());
        let of = |kind: ResourceKind| -> Vec<String> {
            let names = all.iter().filter(|(of, _)| *of == kind);
            names.map(|(_, name)| name.clone()).collect()
        };
        let asked: Vec<_> = views
            .iter()
            .flat_map(|view| ResourceKind::ALL.map(|kind| (view, kind)))
            .map(|(view, kind)| (view, kind, mesh.asks(view, kind, &of(kind)), of(kind)))
            .collect();
        let mut snapshots = vec![Arc::default()];
        for (description, doing) in steps {
            let object = object(description);
            let id = object.id();
            mesh.take((doing > 0).then_some(object), &id);
            let published = mesh.source.published();
            let since = Generation(published.generation.0.saturating_sub(back));
            snapshots.push(Arc::clone(&published.snapshot));
            if since == Generation::default() {
                continue;
            }
            let then = &snapshots[usize::try_from(since.0).expect("few")];
            for (view, kind, selection, names) in &asked {
                let before = Translator::new(then, view);
                let now = Translator::new(&published.snapshot, view);
                if published.history.leaves_alone(&published.snapshot, view, *kind, since) {
                    prop_assert_eq!(before.names(*kind), now.names(*kind));
                }
                let Some(changed) = published.changed(view, *kind, since, selection) else {
                    continue;
                };
                for name in names.iter().filter(|name| !changed.contains(name)) {
                    let same = before.resource(*kind, name) == now.resource(*kind, name);
                    prop_assert!(same, "{kind:?} {name} of {view:?} by {id}");
                }
            }
        }
    }
}
