//! The index against a rebuild from scratch, and the rules of endpoint derivation.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Index;
use crate::kube::document;
use crate::model::mesh::MeshConfig;
use crate::model::names::ObjectName;
use crate::model::{Object, ObjectId};

fn objects(yaml: &str) -> Vec<Object> {
    let contents = document::read("test.yaml", yaml, "cluster.local");
    assert_eq!(contents.problems, [], "the test's own YAML must be good");
    contents
        .objects
        .into_iter()
        .map(|sourced| sourced.object)
        .collect()
}

fn index_of(yaml: &str) -> Index {
    let mut index = Index::new(MeshConfig::default());
    for object in objects(yaml) {
        index.apply(object);
    }
    index
}

fn addresses(index: &Index, service: &str, port: u16) -> Vec<String> {
    let snapshot = index.snapshot();
    let endpoints = snapshot.endpoints_of(&ObjectName::new("default", service), port);
    endpoints
        .iter()
        .map(|endpoint| format!("{}:{}", endpoint.address, endpoint.port))
        .collect()
}

fn service(extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  clusterIP: 10.96.0.1\n  \
         selector: {{app: a}}\n{extra}  ports:\n  - {{name: http, port: 80, targetPort: web}}\n---\n"
    )
}

fn pod(name: &str, ip: &str, port: u16, ready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: a}}}}\nspec:\n  containers:\n  \
         - name: c\n    ports: [{{name: web, containerPort: {port}}}]\nstatus:\n  podIP: {ip}\n  phase: Running\n  \
         conditions: [{{type: Ready, status: \"{ready}\"}}]\n---\n"
    )
}

#[test]
fn a_named_target_port_is_looked_up_on_each_pod() {
    let yaml =
        service("") + &pod("a1", "10.0.0.1", 8080, "True") + &pod("a2", "10.0.0.2", 9090, "True");
    assert_eq!(
        addresses(&index_of(&yaml), "a", 80),
        ["10.0.0.1:8080", "10.0.0.2:9090"]
    );
}

#[test]
fn pods_that_are_not_ready_are_no_endpoints_unless_published() {
    let pods = pod("a1", "10.0.0.1", 8080, "True") + &pod("a2", "10.0.0.2", 8080, "False");
    assert_eq!(
        addresses(&index_of(&(service("") + &pods)), "a", 80),
        ["10.0.0.1:8080"]
    );
    let published = service("  publishNotReadyAddresses: true\n") + &pods;
    assert_eq!(
        addresses(&index_of(&published), "a", 80),
        ["10.0.0.1:8080", "10.0.0.2:8080"]
    );
}

#[test]
fn endpoint_slices_come_before_endpoints_before_selectors() {
    let base = service("") + &pod("a1", "10.0.0.1", 8080, "True");
    let endpoints = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets:\n\
                     - addresses: [{ip: 10.0.0.2}]\n  ports: [{name: http, port: 1}]\n---\n";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\n\
                 endpoints: [{addresses: [10.0.0.3]}]\nports: [{name: http, port: 2}]\n---\n";
    let mut index = index_of(&(base + endpoints + slice));
    assert_eq!(addresses(&index, "a", 80), ["10.0.0.3:2"]);
    index.delete(&objects(slice)[0].id());
    assert_eq!(addresses(&index, "a", 80), ["10.0.0.2:1"]);
    index.delete(&objects(endpoints)[0].id());
    assert_eq!(addresses(&index, "a", 80), ["10.0.0.1:8080"]);
}

#[test]
fn an_equal_object_changes_nothing() {
    let yaml = service("") + &pod("a1", "10.0.0.1", 8080, "True");
    let mut index = index_of(&yaml);
    assert!(!index.take_changes().is_empty());
    for object in objects(&yaml) {
        index.apply(object);
    }
    assert!(index.take_changes().is_empty());
}

#[test]
fn an_address_that_moves_to_another_pod_belongs_to_the_ready_one() {
    let yaml = pod("old", "10.0.0.1", 80, "False") + &pod("new", "10.0.0.1", 80, "True");
    let mut index = index_of(&yaml);
    let owner = |index: &Index| {
        index.snapshot().addresses[&"10.0.0.1".parse().unwrap()]
            .name
            .to_string()
    };
    assert_eq!(owner(&index), "new");
    index.delete(&objects(&pod("new", "10.0.0.1", 80, "True"))[0].id());
    assert_eq!(owner(&index), "old");
}

#[test]
fn a_workload_entry_is_an_endpoint_of_whatever_selects_it() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\n\
                 spec: {address: 10.9.0.1, labels: {app: a}, ports: {http: 81}, weight: 4}\n---\n";
    let yaml = service("") + &pod("a1", "10.0.0.1", 8080, "True") + entry;
    let mut index = index_of(&yaml);
    assert_eq!(addresses(&index, "a", 80), ["10.0.0.1:8080", "10.9.0.1:81"]);
    index.take_changes();
    index.delete(&objects(entry)[0].id());
    assert_eq!(addresses(&index, "a", 80), ["10.0.0.1:8080"]);
    let changes = index.take_changes();
    assert!(changes.endpoints.contains(&ObjectName::new("default", "a")));
}

#[test]
fn a_host_that_states_no_address_gets_one_that_others_leave_alone() {
    let entry = |name: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
             hosts: [{host}]\n  ports: [{{number: 80, name: http}}]\n  resolution: DNS\n---\n"
        )
    };
    let mut index = index_of(&entry("a", "a.com"));
    let of = |index: &Index, host: &str| {
        let snapshot = index.snapshot();
        snapshot
            .allocated
            .iter()
            .find(|(known, _)| known.as_str() == host)
            .map(|(_, address)| address.to_string())
    };
    let first = of(&index, "a.com").unwrap();
    assert!(first.starts_with("240.240."), "{first}");
    for number in 0..50 {
        let yaml = entry(&format!("e{number}"), &format!("host-{number}.com"));
        index.apply(objects(&yaml).remove(0));
    }
    assert_eq!(of(&index, "a.com"), Some(first));
    let all: std::collections::BTreeSet<_> = index.snapshot().allocated.values().copied().collect();
    assert_eq!(all.len(), 51);
    index.delete(&objects(&entry("a", "a.com"))[0].id());
    assert_eq!(of(&index, "a.com"), None);
}

/// A small world in which objects collide often: names, labels and addresses out of a few.
fn arbitrary_object() -> impl Strategy<Value = Object> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let namespace = prop::sample::select(vec!["default", "other"]);
    let app = prop::sample::select(vec!["left", "right"]);
    (0..9u8, name, namespace, app, 1..4u8, any::<bool>()).prop_map(|(kind, name, namespace, app, number, flag)| {
        let yaml = match kind {
            0 => format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
                 clusterIP: 10.96.0.{number}\n  selector: {{app: {app}}}\n  \
                 ports: [{{name: http, port: {number}, targetPort: web}}]\n"
            ),
            1 => format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
                 spec:\n  containers: [{{name: c, ports: [{{name: web, containerPort: 8{number}}}]}}]\n\
                 status: {{podIP: 10.0.0.{number}, phase: {phase}}}\n",
                phase = if flag { "Running" } else { "Pending" }
            ),
            2 => format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: s{number}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 endpoints: [{{addresses: [10.0.0.{number}], conditions: {{ready: {flag}}}}}]\n\
                 ports: [{{name: http, port: 80}}]\n"
            ),
            3 => format!(
                "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, namespace: {namespace}}}\nsubsets:\n\
                 - addresses: [{{ip: 10.0.0.{number}, targetRef: {{kind: Pod, name: {name}}}}}]\n  \
                 ports: [{{name: http, port: 80}}]\n"
            ),
            4 => format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  hosts: [{name}.com, h{number}.com]\n  \
                 ports: [{{number: 80, name: http}}]\n  workloadSelector: {{labels: {{app: {app}}}}}\n  \
                 resolution: {resolution}\n",
                resolution = if flag { "DNS" } else { "STATIC" }
            ),
            5 => format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{address: 10.0.1.{number}, labels: {{app: {app}}}, weight: {number}}}\n"
            ),
            6 => format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
                 parentRefs: [{{group: '', kind: Service, name: a}}, {{group: '', kind: Service, name: {app}}}]\n  \
                 rules: [{{backendRefs: [{{name: b, port: {number}}}]}}]\n"
            ),
            7 => format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {hosts}\n  \
                 http: [{{match: [{{port: {number}}}], {action}}}]\n",
                hosts = if flag { "hosts: [a]" } else { "exportTo: ['*']" },
                action = if flag {
                    "delegate: {name: b, namespace: default}"
                } else {
                    "route: [{destination: {host: c}}]"
                }
            ),
            _ => format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{host: {name}, subsets: [{{name: v{number}, labels: {{version: v{number}}}}}]}}\n"
            ),
        };
        objects(&yaml).remove(0)
    })
}

proptest! {
    #[test]
    fn the_index_equals_a_rebuild_from_scratch(
        steps in prop::collection::vec((arbitrary_object(), any::<bool>()), 1..40)
    ) {
        let mut index = Index::new(MeshConfig::default());
        let mut expected: BTreeMap<ObjectId, Object> = BTreeMap::new();
        for (object, delete) in steps {
            let id = object.id();
            if delete {
                expected.remove(&id);
                index.delete(&id);
            } else {
                expected.insert(id, object.clone());
                index.apply(object);
            }
        }
        let mut rebuilt = Index::new(MeshConfig::default());
        for object in expected.into_values() {
            rebuilt.apply(object);
        }
        prop_assert_eq!(index.snapshot(), rebuilt.snapshot());
    }
}
