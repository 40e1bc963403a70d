//! Goldens: what a node's proxy and a sidecar get of a directory's YAML.
//!
//! `testdata/translate/<case>/in.yaml` holds the objects, `mesh.yaml` the settings if there are any, and
//! `node.golden.json` and `sidecar.golden.json` everything that Millrace's proxy of the node `node-a` and stock Envoy as
//! the sidecar of the pod `client` get; of some, `node-envoy.golden.json` what stock Envoy as the node's proxy gets, and
//! `grpc.golden.json` what gRPC's own client gets for each service; where there are gateways, `router.golden.json`
//! what stock Envoy gets as a pod that runs them.
//! Rewritten only when `MILLRACE_BLESS` is 1.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_xds::json;
use millrace_xds::node::Node;
use serde_json::{Map, Value};

use super::{ProxyView, ResourceKind, Scope, Translator};
use crate::index::Index;
use crate::kube::{document, mesh_config};
use crate::model::mesh::MeshConfig;
use crate::model::near::Place;
use crate::model::node::Features;
use crate::model::problem::{Problem, Reason};
use crate::snapshot::MeshSnapshot;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    let mut cases: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    cases
}

fn snapshot_of(case: &Path) -> MeshSnapshot {
    let mesh = match fs::read_to_string(case.join("mesh.yaml")) {
        Ok(text) => mesh_config::read("mesh.yaml", &text, "cluster.local")
            .0
            .unwrap(),
        Err(_) => MeshConfig::default(),
    };
    let mut index = Index::new(mesh);
    let text = fs::read_to_string(case.join("in.yaml")).unwrap();
    let contents = document::read("in.yaml", &text, "cluster.local");
    let executed = |problem: &&Problem| problem.reason != Reason::NotExecuted;
    let errors = contents.problems.iter().filter(executed);
    let errors: Vec<_> = errors.map(ToString::to_string).collect();
    assert_eq!(errors, Vec::<String>::new(), "{}", case.display());
    for sourced in contents.objects {
        index.apply(sourced.object);
    }
    index.snapshot()
}

fn node() -> ProxyView {
    ProxyView::Node {
        name: "node-a".to_owned(),
        zone: String::new(),
        netns: None,
        features: Features::default(),
    }
}

fn sidecar() -> ProxyView {
    ProxyView::Sidecar {
        namespace: "default".to_owned(),
        pod: "client".to_owned(),
        addresses: vec!["10.244.1.9".parse().unwrap()],
        place: Place::default(),
        is_envoy: true,
        features: Features::all(),
    }
}

fn router() -> ProxyView {
    let labels = [
        ("istio", "ingressgateway"),
        ("gateway.networking.k8s.io/gateway-name", "edge"),
    ];
    ProxyView::Router {
        namespace: "default".to_owned(),
        pod: "edge".to_owned(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        addresses: vec!["10.244.1.8".parse().unwrap()],
        place: Place::default(),
    }
}

fn node_envoy() -> ProxyView {
    ProxyView::Node {
        name: "node-a".to_owned(),
        zone: String::new(),
        netns: Some("/run/netns".to_owned()),
        features: Features::all(),
    }
}

fn grpc() -> ProxyView {
    ProxyView::Grpc {
        namespace: "default".to_owned(),
        place: Place::default(),
    }
}

/// The cases with a golden of stock Envoy as the proxy of the whole node.
const OF_NODE_ENVOY: [&str; 4] = ["dual-stack", "server-names", "service-entry", "tcp"];
/// The cases with a golden of gRPC's own client.
const OF_GRPC: [&str; 2] = ["failures", "grpc-route"];

/// What a proxy is meant to have; of gRPC's own client what it asks for, if it calls every service.
fn names(translator: &Translator<'_>, kind: ResourceKind) -> Vec<String> {
    if !matches!(translator.view, ProxyView::Grpc { .. }) {
        return translator.names(kind);
    }
    let mut names = Vec::new();
    for (service, port) in translator.snapshot.ports_for("default") {
        let (host, port) = (&service.hostname, port.port);
        match kind {
            ResourceKind::Listener | ResourceKind::Route => names.push(format!("{host}:{port}")),
            ResourceKind::Cluster | ResourceKind::Endpoints => {
                let policy = translator.snapshot.policy_of(service, Some("default"));
                let subsets = policy.subsets().into_keys();
                let all = std::iter::once(String::new()).chain(subsets);
                names.extend(all.map(|subset| format!("outbound|{port}|{subset}|{host}")));
            }
            ResourceKind::NameTable => {}
        }
    }
    names
}

fn rendered(snapshot: &MeshSnapshot, view: &ProxyView) -> String {
    let translator = Translator::new(snapshot, view);
    let mut types = Map::new();
    for kind in ResourceKind::ALL {
        let mut resources = Vec::new();
        for name in names(&translator, kind) {
            let resource = translator.resource(kind, &name);
            let resource =
                resource.unwrap_or_else(|| panic!("{kind:?} lists {name:?} and does not make it"));
            assert_eq!(resource.name(), name);
            resources.push(json::any_to_value(&resource.to_any()).unwrap());
        }
        types.insert(
            kind.type_url().short_name().to_owned(),
            Value::Array(resources),
        );
    }
    let mut text = serde_json::to_string_pretty(&types).unwrap();
    writeln!(text).unwrap();
    text
}

#[test]
fn goldens_are_what_is_made() {
    let bless = std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1");
    let mut different = Vec::new();
    for case in cases() {
        let snapshot = snapshot_of(&case);
        let mut goldens = vec![
            (node(), "node.golden.json"),
            (sidecar(), "sidecar.golden.json"),
        ];
        if OF_NODE_ENVOY.iter().any(|name| case.ends_with(name)) {
            goldens.push((node_envoy(), "node-envoy.golden.json"));
        }
        if OF_GRPC.iter().any(|name| case.ends_with(name)) {
            goldens.push((grpc(), "grpc.golden.json"));
        }
        if !snapshot.gateways.is_empty() {
            goldens.push((router(), "router.golden.json"));
        }
        for (view, name) in goldens {
            let path = case.join(name);
            let made = rendered(&snapshot, &view);
            if bless {
                fs::write(&path, made).unwrap();
            } else if fs::read_to_string(&path).unwrap_or_default() != made {
                different.push(path);
            }
        }
    }
    assert!(
        different.is_empty(),
        "not as made (MILLRACE_BLESS=1 rewrites): {different:#?}"
    );
}

#[test]
fn equal_snapshots_encode_to_equal_bytes() {
    for case in cases() {
        for view in [node(), node_envoy(), sidecar(), grpc(), router()] {
            let (one, other) = (snapshot_of(&case), snapshot_of(&case));
            let (one, other) = (Translator::new(&one, &view), Translator::new(&other, &view));
            for kind in ResourceKind::ALL {
                for name in names(&one, kind) {
                    let versions =
                        [&one, &other].map(|translator| translator.resource(kind, &name));
                    assert_eq!(
                        versions[0],
                        versions[1],
                        "{kind:?} {name} of {}",
                        case.display()
                    );
                }
            }
        }
    }
}

#[test]
fn the_seeds_twelve_domains_belong_to_the_services_own_namespace() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate/bookinfo-split");
    let (snapshot, view) = (snapshot_of(&case), node());
    let translator = Translator::new(&snapshot, &view);
    let domains = |name: &str| {
        let routes = super::route::configuration(&translator, name).unwrap();
        let host = routes
            .virtual_hosts
            .into_iter()
            .find(|host| host.name.starts_with("reviews."))
            .unwrap();
        host.domains
    };
    let own = domains("default/9080");
    assert_eq!(own.len(), 12);
    assert_eq!(own[..2], ["reviews:9080", "reviews"]);
    assert_eq!(own[10..], ["10.96.90.3:9080", "10.96.90.3"]);
    let other = domains("other/9080");
    assert_eq!(other, own[2..]);
}

#[test]
fn a_sidecar_delivers_from_an_address_of_each_family_that_it_has() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate/dual-stack");
    let snapshot = snapshot_of(&case);
    for (addresses, sources) in [
        (vec!["10.244.1.9"], vec!["127.0.0.6"]),
        (vec!["10.244.1.9", "fd00::9"], vec!["127.0.0.6", "::6"]),
        (vec!["fd00::9"], vec!["::6"]),
    ] {
        let view = ProxyView::Sidecar {
            namespace: "default".to_owned(),
            pod: "client".to_owned(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            place: Place::default(),
            is_envoy: true,
            features: Features::all(),
        };
        let translator = Translator::new(&snapshot, &view);
        let name = "InboundPassthroughCluster";
        let cluster = translator
            .resource(ResourceKind::Cluster, name)
            .unwrap()
            .to_any();
        let cluster = json::any_to_value(&cluster).unwrap();
        let bind = &cluster["upstream_bind_config"];
        let extra = bind["extra_source_addresses"].as_array();
        let extra = extra.into_iter().flatten().map(|extra| &extra["address"]);
        let made: Vec<_> = std::iter::once(&bind["source_address"])
            .chain(extra)
            .map(|socket| socket["address"].as_str().unwrap())
            .collect();
        assert_eq!(made, sources, "{addresses:?}: {cluster}");
        // Sidecars of other families must not be given this one.
        let shared = view.scope(ResourceKind::Cluster, name);
        let (v4, v6) = (sources.contains(&"127.0.0.6"), sources.contains(&"::6"));
        assert_eq!(
            shared,
            Scope::Families("default".to_owned(), Features::all(), [v4, v6])
        );
    }
}

#[test]
fn a_proxy_is_told_what_it_says_that_it_executes() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate/failures");
    let snapshot = snapshot_of(&case);
    let words = ["filters.http.fault", "hash_policy", "outlier_detection"];
    let said = |features: Option<&[&str]>| {
        let id = "node~10.0.0.1~node-a~cluster.local".parse().unwrap();
        let node = Node::new(&id);
        let node = match features {
            Some(names) => node.with_features(names),
            None => node,
        };
        let text = rendered(&snapshot, &ProxyView::of_node(&node).unwrap());
        words.map(|word| text.contains(word))
    };
    // One of the first version, which names nothing, and one of this, which names what it may.
    assert_eq!(said(None), [false; 3]);
    assert_eq!(said(Some(&[])), [false; 3]);
    assert_eq!(said(Some(&["faults"])), [true, false, false]);
    assert_eq!(said(Some(&["hashing", "outliers"])), [false, true, true]);
    // One of a later version names what pilot never heard of.
    let later = ["faults", "hashing", "outliers", "of a later version"];
    assert_eq!(said(Some(&later)), [true; 3]);
}

#[test]
fn names_that_mean_nothing_make_nothing() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate/bookinfo-split");
    let (snapshot, view) = (snapshot_of(&case), node());
    let translator = Translator::new(&snapshot, &view);
    for (kind, name) in [
        (
            ResourceKind::Cluster,
            "outbound|9080|v9|reviews.default.svc.cluster.local",
        ),
        (
            ResourceKind::Cluster,
            "outbound|80||reviews.default.svc.cluster.local",
        ),
        (
            ResourceKind::Cluster,
            "outbound|9080||nowhere.default.svc.cluster.local",
        ),
        (ResourceKind::Cluster, "prometheus_stats"),
        (ResourceKind::Endpoints, "PassthroughCluster"),
        (
            ResourceKind::Endpoints,
            "outbound|9080|v9|reviews.default.svc.cluster.local",
        ),
        (ResourceKind::Listener, "default/0.0.0.0_1234"),
        (ResourceKind::Listener, "default/10.9.9.9_9080"),
        (ResourceKind::Listener, "virtualOutbound"),
        (ResourceKind::Listener, "pod/default/nobody"),
        (ResourceKind::Listener, "default/"),
        (ResourceKind::Route, "default/1234"),
        (ResourceKind::Route, "9080"),
        (
            ResourceKind::Route,
            "default/nowhere.default.svc.cluster.local:80",
        ),
        (ResourceKind::NameTable, "other"),
    ] {
        assert_eq!(translator.resource(kind, name), None, "{kind:?} {name}");
    }
}

#[test]
fn stock_envoy_for_a_node_says_where_its_pods_are() {
    let node = |agent: &str, netns: Option<&str>| {
        let id = "node~10.0.0.1~node-a~cluster.local";
        let node = Node {
            id: id.to_owned(),
            user_agent_name: agent.to_owned(),
            ..Default::default()
        };
        ProxyView::of_node(&match netns {
            Some(path) => node.with_metadata("NETNS_DIR", path),
            None => node,
        })
    };
    assert_eq!(node("envoy", Some("/run/netns/")), Ok(node_envoy()));
    assert_eq!(node("millrace-proxy", Some("/run/netns")), Ok(self::node()));
    for netns in [None, Some(""), Some("run/netns")] {
        let refused = node("envoy", netns).unwrap_err().to_string();
        assert!(
            refused.contains("its metadata needs NETNS_DIR"),
            "{refused}"
        );
    }
}
