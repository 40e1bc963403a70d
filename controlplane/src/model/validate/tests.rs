//! What is said of each kind of mistake, by field.

mod api_routes;
mod entries;
mod failures;
mod sidecars;

use std::time::Duration;

use super::parse_duration;
use crate::kube::document::{self, Contents};
use crate::model::Object;
use crate::model::problem::{Reason, Severity};
use crate::model::route::{HttpAction, SubsetRef};

fn version_of(kind: &str) -> &'static str {
    if kind == "RouteRule" {
        "config.istio.io/v1alpha2"
    } else {
        "networking.istio.io/v1"
    }
}

fn read(kind: &str, spec: &str) -> Contents {
    read_of(version_of(kind), kind, spec)
}

fn read_of(version: &str, kind: &str, spec: &str) -> Contents {
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n{spec}");
    document::read("a.yaml", &text, "cluster.local")
}

/// Line, field and message of every finding, errors marked by an exclamation mark.
fn findings(kind: &str, spec: &str) -> Vec<String> {
    findings_of(version_of(kind), kind, spec)
}

/// The same, of a kind that has another version.
fn findings_of(version: &str, kind: &str, spec: &str) -> Vec<String> {
    let contents = read_of(version, kind, spec);
    let refused = contents
        .problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    assert_eq!(
        contents.objects.is_empty(),
        refused,
        "an object is served unless it has an error"
    );
    let mark = |severity| if severity == Severity::Error { "!" } else { "" };
    let describe = |problem: &crate::model::problem::Problem| {
        format!(
            "{}{} {}: {}",
            mark(problem.severity),
            problem.line.unwrap(),
            problem.field,
            problem.message
        )
    };
    contents.problems.iter().map(describe).collect()
}

#[test]
fn weights_are_parts_of_their_sum_where_that_is_no_mistake() {
    let spec = "  hosts: [a]\n  http:\n  - route:\n    - {destination: {host: a}, weight: 50}\n    \
                - {destination: {host: b}, weight: 40}\n";
    assert_eq!(
        findings("VirtualService", spec),
        ["7 spec.http[0].route: the weights add up to 90, not to 100: each is a part of 90"]
    );
    let spec = "  destination: {name: a}\n  route:\n  - {labels: {version: v1}, weight: 99}\n  \
                - {labels: {version: v3}, weight: 2}\n";
    assert_eq!(
        findings("RouteRule", spec),
        ["!6 spec.route: the weights add up to 101, not to 100"]
    );
    let spec = "  hosts: [a]\n  http:\n  - route:\n    - {destination: {host: a}, weight: -1}\n    \
                - {destination: {host: b}, weight: 101}\n";
    let found = findings("VirtualService", spec);
    assert_eq!(
        found[0],
        "!8 spec.http[0].route[0].weight: -1 is not a weight"
    );
}

#[test]
fn weights_that_reach_nothing_or_too_much_are_refused() {
    let spec = |first: i64, second: i64| {
        format!(
            "  hosts: [a]\n  http:\n  - route:\n    - {{destination: {{host: a}}, weight: {first}}}\n    \
             - {{destination: {{host: b}}, weight: {second}}}\n"
        )
    };
    assert_eq!(
        findings("VirtualService", &spec(0, 0)),
        ["!7 spec.http[0].route: the weights add up to 0: nothing could be reached"]
    );
    assert_eq!(
        findings("VirtualService", &spec(4_294_967_295, 1)),
        ["!7 spec.http[0].route: the weights add up to 4294967296, which is too much"]
    );
    assert_eq!(
        findings("VirtualService", &spec(1, 99)),
        Vec::<String>::new()
    );
}

#[test]
fn one_destination_without_a_weight_gets_everything() {
    let contents = read(
        "VirtualService",
        "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n",
    );
    let Object::VirtualService(rule) = &contents.objects[0].object else {
        panic!()
    };
    let HttpAction::Forward(to) = &rule.http[0].action else {
        panic!()
    };
    assert_eq!(
        (to[0].weight, to[0].host.as_str()),
        (100, "a.default.svc.cluster.local")
    );
}

#[test]
fn the_slides_weight_under_labels_is_explained() {
    let spec = "  destination: {name: reviews}\n  precedence: 1\n  route:\n  - labels:\n      version: v1\n      weight: 50\n  \
                - labels:\n      version: v3\n      weight: 50\n";
    assert_eq!(
        findings("RouteRule", spec),
        [
            "!10 spec.route[0].labels.weight: weight: 50 stands under labels; it belongs beside labels, in the same list item",
            "!13 spec.route[1].labels.weight: weight: 50 stands under labels; it belongs beside labels, in the same list item",
        ]
    );
}

#[test]
fn labels_of_a_route_rule_are_kept_for_subsets() {
    let contents = read(
        "RouteRule",
        "  destination: {name: reviews, namespace: other}\n  route: [{labels: {version: v1}}]\n",
    );
    let Object::RouteRule(rule) = &contents.objects[0].object else {
        panic!()
    };
    assert_eq!(rule.destination.as_str(), "reviews.other.svc.cluster.local");
    let HttpAction::Forward(to) = &rule.route.action else {
        panic!()
    };
    let SubsetRef::Labels(labels) = &to[0].subset else {
        panic!()
    };
    assert_eq!((labels["version"].as_str(), to[0].weight), ("v1", 100));
}

#[test]
fn what_nothing_executes_is_named_and_the_rest_is_served() {
    let spec = "  hosts: [a]\n  gateways: [mesh, edge]\n  http:\n  - fault: {delay: {fixedDelay: 5s, percentage: {value: 1}}}\n    \
                mirror: {host: b}\n    corsPolicy: {allowOrigins: [{exact: x}]}\n    route: [{destination: {host: a}}]\n";
    assert_eq!(
        findings("VirtualService", spec),
        [
            "9 spec.http[0].mirror: no proxy of this release executes it",
            "10 spec.http[0].corsPolicy: no proxy of this release executes it",
            "8 spec.http[0].fault: stock Envoys and gRPC's own clients execute it, Millrace's proxy does not",
        ]
    );
    let spec = "  host: a\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 7}\n    \
                loadBalancer: {consistentHash: {httpHeaderName: x}}\n    tls: {mode: ISTIO_MUTUAL}\n";
    let found = findings("DestinationRule", spec);
    let starts = [
        "9 spec.trafficPolicy.tls.mode: no proxy of this release has an identity",
        "8 spec.trafficPolicy.loadBalancer.consistentHash: stock Envoys execute it, gRPC's own clients too, Millrace's proxy does not",
        "7 spec.trafficPolicy.outlierDetection: stock Envoys execute it; gRPC's own clients, which count no failures in a row",
    ];
    assert_eq!(found.len(), 3, "{found:?}");
    for (finding, start) in found.iter().zip(starts) {
        assert!(finding.starts_with(start), "{finding}");
    }
}

#[test]
fn a_condition_that_cannot_be_executed_never_holds_instead_of_always() {
    let spec = "  hosts: [a]\n  http:\n  - match: [{sourceLabels: {app: x}}]\n    route: [{destination: {host: b}}]\n  \
                - match: [{sourceLabels: {app: x}}, {uri: {exact: /x}}]\n    route: [{destination: {host: c}}]\n  \
                - route: [{destination: {host: a}}]\n";
    let contents = read("VirtualService", spec);
    let Object::VirtualService(rule) = &contents.objects[0].object else {
        panic!()
    };
    assert_eq!(rule.http.len(), 2);
    assert_eq!(rule.http[0].matches.len(), 1);
    assert!(
        contents
            .problems
            .iter()
            .all(|problem| problem.reason == Reason::NotExecuted)
    );
}

#[test]
fn wrong_values_are_refused_with_their_field() {
    for (kind, spec, wanted) in [
        (
            "VirtualService",
            "  hosts: [\"a b\"]\n  http: [{route: [{destination: {host: a}}]}]\n",
            "spec.hosts[0]",
        ),
        (
            "VirtualService",
            "  hosts: [\"*\"]\n  http: [{route: [{destination: {host: a}}]}]\n",
            "spec.hosts",
        ),
        ("VirtualService", "  hosts: [a]\n", "spec"),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{timeout: soon, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].timeout",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{match: [{uri: {regex: \"(\"}}], route: [{destination: {host: a}}]}]\n",
            "spec.http[0].match[0].uri.regex",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{match: [{uri: {exact: a, prefix: b}}], route: [{destination: {host: a}}]}]\n",
            "spec.http[0].match[0].uri",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{redirect: {redirectCode: 200}}]\n",
            "spec.http[0].redirect.redirectCode",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{directResponse: {status: 99}}]\n",
            "spec.http[0].directResponse.status",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{route: [{destination: {host: a}}], redirect: {uri: /}}]\n",
            "spec.http[0]",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{retries: {retryOn: sometimes}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].retries.retryOn",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{headers: {request: {set: {\"a b\": c}}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].headers.request.set.a b",
        ),
        (
            "DestinationRule",
            "  host: a\n  subsets: [{name: v1}, {name: v1}]\n",
            "spec.subsets[1].name",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {simple: BEST}}\n",
            "spec.trafficPolicy.loadBalancer.simple",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {tls: {mode: SIMPLE}}\n",
            "spec.trafficPolicy.tls.mode",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}\n",
            "spec.trafficPolicy.connectionPool.tcp.maxConnections",
        ),
        ("RouteRule", "  destination: {}\n", "spec.destination.name"),
        (
            "RouteRule",
            "  destination: {name: a}\n  route: [{labels: {version: 1.0}}]\n",
            "spec.route[0].labels.version",
        ),
    ] {
        assert_refused(kind, spec, wanted);
    }
}

/// Asserts that an object is refused for this field alone.
fn assert_refused(kind: &str, spec: &str, wanted: &str) {
    let contents = read(kind, spec);
    assert!(contents.objects.is_empty(), "{spec}");
    assert_eq!(contents.refused.len(), 1, "{spec}");
    let problems = contents.problems.iter();
    let wrong = problems.filter(|problem| problem.reason != Reason::NotExecuted);
    let fields: Vec<&str> = wrong.map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, [wanted], "{spec}");
}

#[test]
fn durations_are_go_durations() {
    for (text, wanted) in [
        ("5s", Some(Duration::from_secs(5))),
        ("250ms", Some(Duration::from_millis(250))),
        ("1.5h", Some(Duration::from_mins(90))),
        ("1h2m3s", Some(Duration::from_secs(3723))),
        ("0", Some(Duration::ZERO)),
        ("0s", Some(Duration::ZERO)),
        ("", None),
        ("5", None),
        ("s", None),
        ("-1s", None),
        ("5 s", None),
        ("1e9s", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(parse_duration(text), wanted, "{text:?}");
    }
}
