//! What delegation comes to, route by route.

use std::sync::Arc;

use super::resolve;
use crate::kube::document;
use crate::model::Object;
use crate::model::route::{HttpAction, StringMatch, VirtualService};

fn rules(yaml: &str) -> Vec<Arc<VirtualService>> {
    let contents = document::read("a.yaml", yaml, "cluster.local");
    assert_eq!(contents.problems, []);
    let rules = contents
        .objects
        .into_iter()
        .map(|sourced| match sourced.object {
            Object::VirtualService(rule) => rule,
            other => panic!("{other:?}"),
        });
    rules.collect()
}

/// The root's HTTP routes, and a delegate `below` with these.
fn resolved(root: &str, below: &str) -> (Arc<VirtualService>, Vec<String>) {
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: root}}\n\
         spec: {{hosts: [a], http: {root}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: below, namespace: other}}\n\
         spec: {below}\n"
    );
    let rules = rules(&yaml);
    let (merged, findings) = resolve(&rules[0], |name| {
        rules.iter().find(|rule| rule.name == *name)
    });
    let findings = findings.iter();
    let said = findings.map(|finding| format!("{}: {}", finding.field, finding.message));
    (merged, said.collect())
}

const DELEGATE: &str = "delegate: {name: below, namespace: other}";

#[test]
fn conditions_of_both_hold_and_the_delegate_speaks_first() {
    let (merged, said) = resolved(
        &format!(
            "[{{name: r, match: [{{uri: {{prefix: /api}}, headers: {{x: {{exact: a}}}}}}], timeout: 3s, {DELEGATE}}}]"
        ),
        "{http: [{name: d, match: [{uri: {prefix: /api/v1}}], timeout: 1s, route: [{destination: {host: b}}]}, {route: [{destination: {host: c}}]}]}",
    );
    assert_eq!(said, Vec::<String>::new());
    let [first, second] = &merged.http[..] else {
        panic!("{:?}", merged.http)
    };
    assert_eq!(first.name, "r-d");
    let condition = &first.matches[0];
    assert_eq!(
        condition.uri,
        Some(StringMatch::Prefix("/api/v1".to_owned()))
    );
    assert_eq!(condition.headers.len(), 1);
    assert_eq!(first.timeout.unwrap().as_secs(), 1);
    assert_eq!(second.timeout.unwrap().as_secs(), 3);
    assert_eq!(
        second.matches[0].uri,
        Some(StringMatch::Prefix("/api".to_owned()))
    );
    let HttpAction::Forward(to) = &second.action else {
        panic!()
    };
    assert_eq!(to[0].host.as_str(), "c.other.svc.cluster.local");
}

#[test]
fn what_cannot_be_merged_is_left_out_by_name() {
    let one = format!("[{{match: [{{uri: {{prefix: /api}}}}], {DELEGATE}}}]");
    let route = "route: [{destination: {host: b}}]";
    for (root, below, wanted) in [
        (
            one.clone(),
            format!("{{http: [{{match: [{{uri: {{prefix: /web}}}}], {route}}}]}}"),
            "spec.http[0].delegate: the matches of http[0] of VirtualService other/below are not among those of this route: it is left out",
        ),
        (
            one.clone(),
            format!("{{exportTo: [.], http: [{{{route}}}]}}"),
            "spec.http[0].delegate: VirtualService other/below is not exported to default, so the route is left out",
        ),
        (
            one.clone(),
            format!("{{hosts: [z], http: [{{{route}}}]}}"),
            "spec.http[0].delegate: VirtualService other/below has hosts of its own and cannot be delegated to: the route is left out",
        ),
        (
            one.clone(),
            "{http: [{delegate: {name: third}}]}".to_owned(),
            "spec.http[0].delegate: http[0] of VirtualService other/below delegates again, which is one level too deep: it is left out",
        ),
        (
            "[{delegate: {name: nobody}}]".to_owned(),
            format!("{{http: [{{{route}}}]}}"),
            "spec.http[0].delegate: no VirtualService default/nobody is known, so the route is left out",
        ),
    ] {
        let (merged, said) = resolved(&root, &below);
        assert_eq!(said, [wanted], "{below}");
        assert!(merged.http.is_empty(), "{below}");
    }
}

#[test]
fn a_match_of_the_delegate_takes_every_match_of_the_root_that_covers_it() {
    let (merged, said) = resolved(
        &format!("[{{match: [{{uri: {{prefix: /a}}}}, {{method: {{exact: GET}}}}], {DELEGATE}}}]"),
        "{http: [{match: [{uri: {exact: /b}}, {uri: {exact: /a/x}}], route: [{destination: {host: b}}]}]}",
    );
    assert_eq!(said, Vec::<String>::new());
    let paths: Vec<_> = merged.http[0]
        .matches
        .iter()
        .map(|condition| (condition.uri.clone().unwrap(), condition.method.is_some()))
        .collect();
    let exact = |path: &str| StringMatch::Exact(path.to_owned());
    assert_eq!(
        paths,
        [
            (exact("/b"), true),
            (exact("/a/x"), false),
            (exact("/a/x"), true)
        ]
    );
}
