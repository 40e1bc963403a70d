//! What is touched is at least what differs: a history beside the resources themselves.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::index::Index;
use crate::kube::document;
use crate::model::mesh::MeshConfig;
use crate::model::near::Place;
use crate::model::node::Features;
use crate::model::problem::{Problem, Reason};
use crate::model::{Object, ObjectId};
use crate::translate::Translator;

#[test]
fn endpoints_that_move_leave_routes_and_clusters_alone() {
    let mut revisions = Revisions::default();
    let mut changes = ChangeSet::default();
    changes
        .endpoints
        .insert(ObjectName::new("default", "reviews"));
    revisions.record(&changes, Generation(7));
    assert!(revisions.affect(&TypeUrl::ENDPOINT, Generation(6)));
    assert!(!revisions.affect(&TypeUrl::ENDPOINT, Generation(7)));
    assert!(!revisions.affect(&TypeUrl::ROUTE, Generation(6)));
    assert!(!revisions.affect(&TypeUrl::CLUSTER, Generation(6)));
}

#[test]
fn routes_reach_listeners_too_because_tcp_routes_live_there() {
    let mut revisions = Revisions::default();
    revisions.record(
        &ChangeSet {
            routes: true,
            ..ChangeSet::default()
        },
        Generation(1),
    );
    for url in [
        TypeUrl::LISTENER,
        TypeUrl::ROUTE,
        TypeUrl::CLUSTER,
        TypeUrl::ENDPOINT,
    ] {
        assert!(revisions.affect(&url, Generation(0)), "{url:?}");
    }
    assert!(!revisions.affect(&TypeUrl::NAME_TABLE, Generation(0)));
}

/// A small world in which everything names everything.
fn object((kind, name, namespace, number, flag): (u8, &str, &str, u8, bool)) -> Object {
    let head = |kind: &str, api: &str| {
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        )
    };
    let istio = |kind: &str| head(kind, "networking.istio.io/v1");
    let export = if flag { "['*']" } else { "['.']" };
    let yaml = match kind {
        0 | 1 => {
            let address = if flag {
                "None".to_owned()
            } else {
                format!("10.96.0.{number}")
            };
            let protocol = ["http", "tcp", "tls", "x"][usize::from(number % 4)];
            format!(
                "{}spec:\n  clusterIP: {address}\n  selector: {{app: {name}}}\n  \
                 ports: [{{name: {protocol}, port: 8{number}, targetPort: 80}}]\n",
                head("Service", "v1")
            )
        }
        2 | 3 => format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{number}, namespace: {namespace}, labels: {{app: {name}, v: v{number}}}}}\n\
             spec: {{nodeName: node, containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}\n\
             status: {{podIP: 10.0.{}.{number}, phase: {}}}\n",
            name.len(),
            if flag { "Running" } else { "Pending" }
        ),
        4 => format!(
            "{}spec:\n  exportTo: {export}\n  hosts: [{name}]\n  http: [{{route: [{{destination: {{host: b.other.svc.cluster.local, subset: v{number}}}}}]}}]\n",
            istio("VirtualService")
        ),
        5 => format!(
            "{}spec:\n  exportTo: {export}\n  hosts: [{name}]\n  tcp: [{{route: [{{destination: {{host: a}}}}]}}]\n",
            istio("VirtualService")
        ),
        6 => format!(
            "{}spec:\n  exportTo: {export}\n  host: {}\n  subsets: [{{name: v{number}, labels: {{v: v{number}}}}}]\n  \
             trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: h{number}}}}}}}\n",
            istio("DestinationRule"),
            if number == 1 {
                "\"*.cluster.local\""
            } else {
                name
            }
        ),
        7 => format!(
            "{}spec: {{egress: [{{hosts: [\"./*\", \"{}/*\"]}}]}}\n",
            istio("Sidecar"),
            if flag { "default" } else { "other" }
        ),
        8 => format!(
            "{}spec:\n  exportTo: {export}\n  hosts: [{name}.com]\n  ports: [{{number: 8{number}, name: tcp}}]\n  resolution: DNS\n",
            istio("ServiceEntry")
        ),
        _ => format!(
            "{}spec:\n  parentRefs: [{{group: '', kind: Service, name: {name}}}]\n  rules: [{{backendRefs: [{{name: b, port: 81}}]}}]\n",
            head("HTTPRoute", "gateway.networking.k8s.io/v1")
        ),
    };
    let contents = document::read("test.yaml", &yaml, "cluster.local");
    let executed = |problem: &Problem| problem.reason != Reason::NotExecuted;
    assert!(!contents.problems.iter().any(executed), "{yaml}");
    let mut objects = contents.objects.into_iter();
    objects.next().expect("an object").object
}

fn views() -> [ProxyView; 5] {
    let node = |netns: Option<&str>| ProxyView::Node {
        name: "node".to_owned(),
        zone: String::new(),
        netns: netns.map(str::to_owned),
        features: if netns.is_some() {
            Features::all()
        } else {
            Features::default()
        },
    };
    let sidecar = |namespace: &str, pod: &str| ProxyView::Sidecar {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        addresses: vec!["10.0.1.1".parse().expect("an address")],
        place: Place::default(),
        is_envoy: namespace == "other",
        features: if namespace == "other" {
            Features::all()
        } else {
            Features::default()
        },
    };
    let grpc = ProxyView::Grpc {
        namespace: "other".to_owned(),
        place: Place::default(),
    };
    [
        node(None),
        node(Some("/run/netns")),
        sidecar("default", "a-1"),
        sidecar("other", "b-2"),
        grpc,
    ]
}

/// Everything that may be asked for, whether or not it is there.
fn all_names() -> Vec<(ResourceKind, String)> {
    let mut names = vec![(ResourceKind::NameTable, "nametable".to_owned())];
    let listener = |name: String| (ResourceKind::Listener, name);
    for namespace in ["default/", "other/", ""] {
        names.push(listener(format!("{namespace}virtualOutbound")));
        for number in 1..4 {
            for address in [
                "0.0.0.0".to_owned(),
                format!("10.96.0.{number}"),
                format!("10.0.1.{number}"),
            ] {
                names.push(listener(format!("{namespace}{address}_8{number}")));
            }
            names.push((ResourceKind::Route, format!("{namespace}8{number}")));
            for name in ["a", "b"] {
                for own in ["default", "other"] {
                    let host = format!("{name}.{own}.svc.cluster.local");
                    names.push((ResourceKind::Route, format!("{namespace}{host}:8{number}")));
                    for subset in ["", "v1", "v2"] {
                        let cluster = format!("{namespace}outbound|8{number}|{subset}|{host}");
                        names.push((ResourceKind::Cluster, cluster.clone()));
                        names.push((ResourceKind::Endpoints, cluster));
                    }
                }
                names.push((
                    ResourceKind::Cluster,
                    format!("{namespace}outbound|8{number}||{name}.com"),
                ));
            }
        }
    }
    for pod in ["default/a-1", "other/b-2"] {
        names.push(listener(format!("pod/{pod}")));
        names.push(listener(format!("outbound/{pod}")));
    }
    names.push(listener("virtualInbound".to_owned()));
    names.push(listener("a:81".to_owned()));
    names.push(listener("b.default:82".to_owned()));
    names.push((ResourceKind::Cluster, "PassthroughCluster".to_owned()));
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nothing_differs_that_was_not_touched(
        steps in prop::collection::vec(
            (
                (
                    0..10_u8,
                    prop::sample::select(vec!["a", "b"]),
                    prop::sample::select(vec!["default", "other", "istio-system"]),
                    1..4_u8,
                    any::<bool>(),
                ),
                0..4_u8,
            ),
            1..20,
        )
    ) {
        let (names, views) = (all_names(), views());
        let mut index = Index::new(MeshConfig::default());
        let mut history = History::default();
        let mut generation = Generation(0);
        let mut made = Vec::new();
        for (description, doing) in steps {
            let object = object(description);
            let id: ObjectId = object.id();
            if doing == 0 {
                index.delete(&id);
            } else {
                index.apply(object);
            }
            generation.0 += 1;
            let changes = index.take_changes();
            let snapshot = Arc::new(index.snapshot());
            history.record(&changes, &snapshot, generation);
            let before = made;
            made = Vec::new();
            for view in &views {
                let translator = Translator::new(&snapshot, view);
                made.extend(names.iter().map(|(kind, name)| translator.resource(*kind, name)));
            }
            let of = views.iter().flat_map(|view| names.iter().map(move |name| (view, name)));
            for ((view, (kind, name)), (old, new)) in of.zip(before.iter().zip(&made)) {
                let since = Generation(generation.0 - 1);
                let elsewhere = *kind == ResourceKind::Endpoints && history.revisions.moves(view, since);
                let touched = elsewhere || history.touched(&snapshot, view, (*kind, name), since);
                prop_assert!(touched || old == new, "{kind:?} {name} of {view:?} by {id}");
            }
        }
    }
}
