//! What is touched is at least what differs: a history beside the resources themselves.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::index::Index;
use crate::kube::document;
use crate::model::gateway::{self, INGRESS_LABEL};
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

/// Two generations: the first objects, and then the second.
fn history(first: &str, second: &str) -> (History, MeshSnapshot) {
    let mut index = Index::new(MeshConfig::default());
    let mut history = History::default();
    let mut snapshot = MeshSnapshot::default();
    for (number, yaml) in [(1, first), (2, second)] {
        for sourced in document::read("a.yaml", yaml, "cluster.local").objects {
            index.apply(sourced.object);
        }
        snapshot = index.snapshot();
        history.record(&index.take_changes(), &snapshot, Generation(number));
    }
    (history, snapshot)
}

/// What a change of the second objects touches, where the first are there.
fn touched(first: &str, second: &str) -> impl Fn(ResourceKind, &str) -> bool + use<> {
    let (history, snapshot) = history(first, second);
    let [node, ..] = views();
    move |kind, name| history.touched(&snapshot, &node, (kind, name), Generation(1))
}

/// Services in two namespaces, of which one lets its pods call none but its own.
const SCOPED: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: other}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: own, namespace: other}
spec: {egress: [{hosts: ['./*']}]}
";

fn rule(host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: default}}\n\
         spec: {{host: '{host}', subsets: [{{name: v1, labels: {{v: v1}}}}]}}\n"
    )
}

#[test]
fn a_destination_rule_touches_routes_of_those_who_may_call_its_host() {
    let touched = touched(SCOPED, &rule("a"));
    assert!(touched(ResourceKind::Route, "default/80"));
    assert!(touched(ResourceKind::Listener, "third/virtualOutbound"));
    assert!(!touched(ResourceKind::Route, "other/80"));
    assert!(!touched(ResourceKind::Listener, "other/virtualOutbound"));
    assert!(touched(
        ResourceKind::Cluster,
        "outbound|80||a.default.svc.cluster.local"
    ));
    assert!(!touched(
        ResourceKind::Cluster,
        "outbound|80||b.other.svc.cluster.local"
    ));
}

#[test]
fn a_destination_rule_touches_routes_that_lead_to_its_host_though_nobody_may_call_it() {
    let route = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, namespace: other}
spec: {hosts: [b], http: [{route: [{destination: {host: a.default.svc.cluster.local}}]}]}
";
    let touched = touched(&format!("{SCOPED}{route}"), &rule("a"));
    assert!(touched(ResourceKind::Route, "other/80"));
}

#[test]
fn a_sidecar_touches_its_own_namespace_and_that_of_the_mesh_all() {
    let own = SCOPED.replace("'./*'", "'*/*'");
    let of_other = touched(SCOPED, &own);
    assert!(of_other(ResourceKind::Route, "other/80"));
    assert!(of_other(ResourceKind::Listener, "pod/other/x"));
    assert!(!of_other(ResourceKind::Route, "default/80"));
    assert!(!of_other(ResourceKind::Listener, "pod/default/x"));
    let root = own.replace(
        "name: own, namespace: other",
        "name: all, namespace: istio-system",
    );
    let of_all = touched(SCOPED, &root);
    assert!(of_all(ResourceKind::Route, "other/80"));
    assert!(of_all(ResourceKind::Route, "default/80"));
}

#[test]
fn what_gateways_let_in_touches_routers_alone() {
    let edge = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec: {selector: {app: a}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}
";
    let rule = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: in, namespace: default}
spec: {hosts: [a.test], gateways: [edge], http: [{route: [{destination: {host: a}}]}]}
";
    let api = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: a, namespace: default}
spec: {gatewayClassName: millrace, listeners: [{name: http, port: 8081, protocol: HTTP}]}
";
    let ingress = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, namespace: default}
spec: {ingressClassName: millrace, defaultBackend: {service: {name: a, port: {number: 80}}}}
";
    let all = [ResourceKind::Listener, ResourceKind::Route];
    let [node, .., router] = views();
    for (change, lets_in) in [(edge, true), (rule, false), (api, true), (ingress, true)] {
        let (history, snapshot) = history(SCOPED, change);
        let touches = |view: &ProxyView, of: (ResourceKind, &str)| {
            history.touched(&snapshot, view, of, Generation(1))
        };
        for kind in all {
            assert!(touches(&router, (kind, "http.8080")), "{change}");
            assert!(!history.leaves_alone(&snapshot, &router, kind, Generation(1)));
            assert!(history.revisions.affect(&kind.type_url(), Generation(1)));
        }
        let own = touches(&node, (ResourceKind::Route, "default/80"));
        assert!(!(lets_in && own), "{change}");
    }
}

/// How many kinds of objects the small world has.
pub(crate) const KINDS: u8 = 15;

/// A small world in which everything names everything.
pub(crate) fn object((kind, name, namespace, number, flag): (u8, &str, &str, u8, bool)) -> Object {
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
                 ports: [{{name: {protocol}, port: 8{number}, targetPort: {}}}]\n",
                head("Service", "v1"),
                if kind == 0 { "80" } else { "web" }
            )
        }
        2 | 3 => format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{number}, namespace: {namespace}, labels: {{app: {name}, v: v{number}}}}}\n\
             spec: {{nodeName: node, containers: [{{name: c, ports: [{{name: web, containerPort: 80}}]}}]}}\n\
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
        9 => format!(
            "{}spec:\n  selector: {{app: {name}}}\n  servers: [{{port: {{number: 8{number}, name: http, protocol: HTTP}}, hosts: ['*']}}]\n",
            istio("Gateway")
        ),
        10 => format!(
            "{}spec:\n  exportTo: {export}\n  hosts: [{name}.test]\n  gateways: [default/a]\n  \
             http: [{{route: [{{destination: {{host: b.other.svc.cluster.local, subset: v{number}}}}}]}}]\n",
            istio("VirtualService")
        ),
        11 => format!(
            "{}spec:\n  gatewayClassName: millrace\n  listeners: [{{name: l{number}, port: 8{number}, protocol: HTTP}}]\n",
            head("Gateway", "gateway.networking.k8s.io/v1")
        ),
        12 => format!(
            "{}spec:\n  parentRefs: [{{name: a}}]\n  hostnames: [{name}.api.test]\n  rules: [{{backendRefs: [{{name: b, port: 8{number}}}]}}]\n",
            head("HTTPRoute", "gateway.networking.k8s.io/v1")
        ),
        13 => format!(
            "{}spec:\n  ingressClassName: millrace\n  \
             rules: [{{host: {name}.old.test, http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: a, port: {{number: 8{number}}}}}}}}}]}}}}]\n",
            head("Ingress", "networking.k8s.io/v1")
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

pub(crate) fn views() -> [ProxyView; 6] {
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
    let labels = [("app", "a"), INGRESS_LABEL, (gateway::NAME_LABEL, "a")];
    let router = ProxyView::Router {
        namespace: "default".to_owned(),
        pod: "a-1".to_owned(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        addresses: vec!["10.0.1.1".parse().expect("an address")],
        place: Place::default(),
    };
    [
        node(None),
        node(Some("/run/netns")),
        sidecar("default", "a-1"),
        sidecar("other", "b-2"),
        grpc,
        router,
    ]
}

/// Everything that may be asked for, whether or not it is there.
pub(crate) fn all_names() -> Vec<(ResourceKind, String)> {
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
    for port in 80..84 {
        names.push((ResourceKind::Route, format!("http.{port}")));
    }
    names.push(listener("0.0.0.0_80".to_owned()));
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
                    0..KINDS,
                    prop::sample::select(vec!["a", "b"]),
                    prop::sample::select(vec!["default", "other", "istio-system"]),
                    1..4_u8,
                    any::<bool>(),
                ),
                0..4_u8,
            ),
            1..25,
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
