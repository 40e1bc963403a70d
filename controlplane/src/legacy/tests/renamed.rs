//! The era's names over xDS.

use std::sync::Arc;

use millrace_xds::node::Node;
use millrace_xds::server::Generation;
use millrace_xds::subscription::Selection;
use millrace_xds::{EncodedResource, json};
use serde_json::{Value, json};

use super::{NODE, root, snapshot_of};
use crate::serve::renaming::{Names, Renamed, is_asked_for};
use crate::snapshot::MeshSnapshot;
use crate::translate::{ProxyView, ResourceKind, Translator};

const V1: &str = "out.reviews.default.svc.cluster.local|http|version=v1";
const V3: &str = "out.reviews.default.svc.cluster.local|http|version=v3";

fn view() -> ProxyView {
    ProxyView::of_node(&Node::new(&NODE.parse().unwrap())).unwrap()
}

fn names(snapshot: &MeshSnapshot) -> Names<'_> {
    Names {
        snapshot,
        namespace: "default",
    }
}

/// Everything of a kind, under the era's names.
fn all(snapshot: &MeshSnapshot, kind: ResourceKind) -> Vec<Arc<EncodedResource>> {
    let view = view();
    let translator = Translator::new(snapshot, &view);
    let modern = translator.names(kind);
    let made = modern
        .iter()
        .filter_map(|name| translator.resource(kind, name))
        .map(Arc::new)
        .collect();
    Renamed::default().all(names(snapshot), Generation(1), (kind, made))
}

fn value(resource: &EncodedResource) -> Value {
    json::any_to_value(&resource.to_any()).unwrap()
}

#[test]
fn routes_are_the_seeds_rendering() {
    for (case, action) in [
        ("bookinfo-v1", json!({ "cluster": V1 })),
        (
            "bookinfo-split",
            json!({ "weighted_clusters": { "clusters": [
            { "name": V1, "weight": 50 }, { "name": V3, "weight": 50 },
        ] } }),
        ),
    ] {
        let snapshot = snapshot_of(&root().join(case));
        let routes = all(&snapshot, ResourceKind::Route);
        let routes = routes.iter().find(|it| it.name() == "9080").unwrap();
        let routes = value(routes);
        let hosts = routes["virtual_hosts"].as_array().unwrap();
        let name = "reviews.default.svc.cluster.local|http";
        let host = hosts.iter().find(|host| host["name"] == name).unwrap();
        assert_eq!(host["domains"].as_array().unwrap().len(), 12);
        assert_eq!(host["domains"][10], "10.104.14.93:9080");
        let route = &host["routes"][0];
        assert_eq!(route["match"], json!({ "prefix": "/" }));
        assert_eq!(route["decorator"]["operation"], "reviews-default");
        assert_eq!(route["route"]["timeout"], "0s");
        for (field, expected) in action.as_object().unwrap() {
            assert_eq!(route["route"][field], *expected, "{case}");
        }
    }
}

#[test]
fn every_cluster_and_its_endpoints_are_found_by_the_name_they_are_given() {
    for case in ["bookinfo-split", "bookinfo-virtual-service", "words"] {
        let snapshot = snapshot_of(&root().join(case));
        for kind in [ResourceKind::Cluster, ResourceKind::Endpoints] {
            let view = view();
            let translator = Translator::new(&snapshot, &view);
            for resource in all(&snapshot, kind) {
                let asked: Selection = [resource.name()].into_iter().collect();
                let modern = names(&snapshot).modern(kind, &asked);
                let modern = modern.names().next().unwrap().to_owned();
                let found = translator.resource(kind, &modern);
                assert!(found.is_some(), "{case}: {} is {modern}", resource.name());
                let text = value(&resource).to_string();
                assert!(!text.contains("outbound|"), "{text}");
            }
        }
    }
}

#[test]
fn clusters_name_their_endpoints_and_listeners_their_clusters() {
    let snapshot = snapshot_of(&root().join("bookinfo-split"));
    let clusters = all(&snapshot, ResourceKind::Cluster);
    let v1 = clusters.iter().find(|it| it.name() == V1).unwrap();
    assert_eq!(value(v1)["eds_cluster_config"]["service_name"], V1);
    assert!(clusters.iter().any(|it| it.name() == "in.9080"));
    let listeners = all(&snapshot, ResourceKind::Listener);
    let inbound = listeners.iter().find(|it| it.name() == "virtualInbound");
    let inbound = value(inbound.unwrap()).to_string();
    assert!(
        inbound.contains("\"in.9080\"") && inbound.contains("inbound|9080\""),
        "{inbound}"
    );
    assert!(!inbound.contains("inbound|9080||"), "{inbound}");
}

#[test]
fn equal_resources_are_renamed_to_equal_bytes() {
    let snapshot = snapshot_of(&root().join("bookinfo-virtual-service"));
    for kind in ResourceKind::ALL {
        assert_eq!(all(&snapshot, kind), all(&snapshot, kind), "{kind:?}");
    }
}

#[test]
fn the_names_are_for_sidecars_that_ask_for_them() {
    let asks = |id: &str, generator: Option<&str>| {
        let mut node = Node::new(&id.parse().unwrap());
        if let Some(generator) = generator {
            node = node.with_metadata("GENERATOR", generator);
        }
        is_asked_for(&node, &ProxyView::of_node(&node).unwrap())
    };
    assert!(asks(NODE, Some("legacy")));
    assert!(!asks(NODE, None));
    assert!(!asks(NODE, Some("grpc")));
    assert!(!asks("node~10.0.0.1~node-a~cluster.local", Some("legacy")));
}
