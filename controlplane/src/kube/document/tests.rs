//! Every class of bad file: what is said of it, and that the rest is served.

use super::{Contents, read};
use crate::model::problem::{Reason, Severity};

const GOOD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: good}\nspec:\n  clusterIP: 10.0.0.1\n  \
                    ports: [{port: 80}]\n---\n";

/// Reads the good service, then this, which starts on line 8.
fn after_good(text: &str) -> Contents {
    let contents = read("a.yaml", &format!("{GOOD}{text}"), "cluster.local");
    let ids: Vec<String> = contents
        .objects
        .iter()
        .map(|sourced| sourced.object.id().to_string())
        .collect();
    assert!(ids.contains(&"Service default/good".to_owned()), "{ids:?}");
    contents
}

fn said(contents: &Contents) -> Vec<String> {
    contents.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn broken_yaml_is_told_with_its_line_and_leaves_the_rest() {
    let contents = after_good(
        "kind: Service\nmetadata: {name: bad\nspec: 1\n---\n"
            .to_owned()
            .as_str(),
    );
    assert!(contents.unidentified);
    let problem = &contents.problems[0];
    assert_eq!(
        (problem.reason, problem.severity),
        (Reason::Unreadable, Severity::Error)
    );
    assert!(problem.line.unwrap() >= 9, "{problem}");
    assert_eq!(problem.file.as_deref(), Some("a.yaml"));
}

#[test]
fn a_wrong_type_is_told_with_object_field_and_line() {
    let contents = after_good(
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec:\n  ports:\n  - name: http\n    port: eighty\n",
    );
    assert_eq!(
        said(&contents),
        [
            "a.yaml:14: Service default/bad: spec.ports[0].port: invalid type: string \"eighty\", expected i32"
        ]
    );
    assert_eq!(contents.refused.len(), 1);
}

#[test]
fn an_unknown_field_is_told_and_the_object_is_used() {
    let contents = after_good(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: good\n  \
         trafficPolicy:\n    loadBalancr: {simple: RANDOM}\n",
    );
    assert_eq!(contents.objects.len(), 2);
    assert_eq!(
        said(&contents),
        [
            "a.yaml:14: DestinationRule default/a: spec.trafficPolicy.loadBalancr: no such field, it has no effect"
        ]
    );
}

#[test]
fn kinds_without_a_name_or_a_kind_are_told() {
    let contents = after_good(
        "apiVersion: v1\nkind: Service\nmetadata: {}\n---\nhello: world\n---\n- 1\n- 2\n",
    );
    let said = said(&contents);
    assert!(
        said[0].ends_with("metadata.name: a Service needs a name"),
        "{said:?}"
    );
    assert!(said[1].contains("missing field `apiVersion`"), "{said:?}");
    assert_eq!(
        said[2],
        "a.yaml:14: an object with apiVersion, kind and metadata is expected"
    );
}

#[test]
fn kinds_that_nothing_executes_are_told_and_kinds_of_others_are_not() {
    let contents = after_good(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\n\
         apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: d}\n",
    );
    let reasons: Vec<_> = contents
        .problems
        .iter()
        .map(|problem| (problem.reason, problem.severity))
        .collect();
    assert_eq!(
        reasons,
        [
            (Reason::NotExecuted, Severity::Warning),
            (Reason::NotExecuted, Severity::Warning),
            (Reason::Invalid, Severity::Error),
        ]
    );
}

#[test]
fn a_list_is_its_items() {
    let contents = after_good(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: one}\n  \
         spec: {clusterIP: 10.0.0.2, ports: [{port: 1}]}\n- apiVersion: v1\n  kind: Service\n  \
         metadata: {name: two}\n  spec: {clusterIP: nowhere, ports: [{port: 1}]}\n",
    );
    assert_eq!(contents.objects.len(), 2);
    let said = said(&contents);
    assert!(
        said[0].contains("Service default/two: spec.clusterIP: \"nowhere\" is not an address"),
        "{said:?}"
    );
}

#[test]
fn the_bookinfo_examples_have_no_problems() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/bookinfo");
    for directory in [root.clone(), root.join("rules")] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let contents = read("a.yaml", &text, "cluster.local");
                assert_eq!(said(&contents), Vec::<String>::new(), "{}", path.display());
                assert!(!contents.objects.is_empty());
            }
        }
    }
}
