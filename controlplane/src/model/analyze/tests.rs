//! What is said of objects that do not go together.

use super::analyze;
use crate::index::Index;
use crate::kube::document;
use crate::model::mesh::MeshConfig;

/// Object, field and message of every finding.
fn said(yaml: &str) -> Vec<String> {
    let contents = document::read("a.yaml", yaml, "cluster.local");
    assert_eq!(contents.problems, [], "the test's own YAML must be good");
    let mut index = Index::new(MeshConfig::default());
    for sourced in contents.objects {
        index.apply(sourced.object);
    }
    let found = analyze(&index.snapshot());
    found
        .into_iter()
        .map(|(id, finding)| format!("{id}: {}: {}", finding.field, finding.message))
        .collect()
}

fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{{name}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn hosts_that_two_entries_claim_are_told_where_both_are_seen() {
    let entry = |name: &str, port: u16, export: &str| {
        let spec = format!(
            "{{hosts: [a.com], ports: [{{number: {port}, name: http}}], exportTo: [{export}]}}"
        );
        istio("ServiceEntry", name, &spec)
    };
    let all = "\"*\"";
    let same = entry("name: one", 80, all) + &entry("name: two", 80, all);
    assert_eq!(
        said(&same),
        [
            "ServiceEntry default/two: spec.ports: port 80 of a.com is already served by ServiceEntry default/one, which wins"
        ]
    );
    let far = entry("name: one", 80, all) + &entry("name: two, namespace: other", 80, all);
    assert_eq!(
        said(&far),
        [
            "ServiceEntry other/two: spec.ports: port 80 of a.com is already served by ServiceEntry default/one, which wins outside this namespace"
        ]
    );
    let ports = entry("name: one", 80, all) + &entry("name: two", 81, all);
    assert_eq!(said(&ports), Vec::<String>::new());
    let private = entry("name: one", 80, all) + &entry("name: two, namespace: other", 80, ".");
    assert_eq!(said(&private), Vec::<String>::new());
}

#[test]
fn sidecars_and_virtual_services_that_lose_are_told() {
    let sidecars = istio("Sidecar", "name: b", "{}")
        + &istio("Sidecar", "name: a", "{egress: [{hosts: [\"./*\"]}]}");
    assert_eq!(
        said(&sidecars),
        [
            "Sidecar default/b: spec.workloadSelector: Sidecar default/a is for all pods of default too, and wins"
        ]
    );
    let answer = "{hosts: [a.com], http: [{directResponse: {status: 200}}]}";
    let rules = istio(
        "VirtualService",
        "name: a, creationTimestamp: \"2024-01-02T00:00:00Z\"",
        answer,
    ) + &istio(
        "VirtualService",
        "name: b, creationTimestamp: \"2024-01-01T00:00:00Z\"",
        answer,
    );
    assert_eq!(
        said(&rules),
        [
            "VirtualService default/a: spec.hosts[0]: a.com is already routed by VirtualService default/b, which wins"
        ]
    );
}

#[test]
fn delegates_that_are_not_there_are_told_by_the_root() {
    let root = "{hosts: [a.com], http: [{delegate: {name: nobody}}]}";
    assert_eq!(
        said(&istio("VirtualService", "name: a", root)),
        [
            "VirtualService default/a: spec.http[0].delegate: no VirtualService default/nobody is known, so the route is left out"
        ]
    );
}

#[test]
fn routes_of_the_gateway_api_name_what_is_missing() {
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{{name}}}\n\
             spec: {{clusterIP: 10.96.0.9, ports: [{{name: {port}, port: 80}}]}}\n---\n"
        )
    };
    let yaml = service("name: a", "http")
        + &service("name: b, namespace: other", "http")
        + &service("name: t", "tcp")
        + "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs:\n  \
           - {group: \"\", kind: Service, name: a}\n  - {group: \"\", kind: Service, name: a, port: 81}\n  \
           - {group: \"\", kind: Service, name: nobody}\n  - {group: \"\", kind: Service, name: t}\n  rules:\n  - backendRefs:\n    \
           - {name: nobody, port: 80}\n    - {name: a, port: 81}\n    - {name: b, namespace: other, port: 80}\n---\n"
        + &istio(
            "VirtualService",
            "name: v",
            "{hosts: [a], http: [{directResponse: {status: 200}}]}",
        );
    assert_eq!(
        said(&yaml),
        [
            "HTTPRoute default/r: spec.parentRefs[0]: a.default.svc.cluster.local is routed by VirtualService default/v too, which loses",
            "HTTPRoute default/r: spec.parentRefs[1]: a.default.svc.cluster.local has no such port",
            "HTTPRoute default/r: spec.parentRefs[2]: no Service default/nobody is known, so the route has no effect there",
            "HTTPRoute default/r: spec.parentRefs[3]: t.default.svc.cluster.local is not HTTP there: a port's name or appProtocol says so",
            "HTTPRoute default/r: spec.rules[0].backendRefs[0].name: no service nobody.default.svc.cluster.local is known: requests get 500",
            "HTTPRoute default/r: spec.rules[0].backendRefs[1].port: a.default.svc.cluster.local has no port 81: requests get 500",
            "HTTPRoute default/r: spec.rules[0].backendRefs[2]: no ReferenceGrant of other lets HTTPRoutes of default refer to other/b: requests get 500",
        ]
    );
}
