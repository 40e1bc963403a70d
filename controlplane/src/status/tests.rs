//! Statuses of problems, and of none.

use super::*;
use crate::model::problem::Severity;

const FIRST: Moment<'static> = Moment {
    generation: 1,
    now: "2026-01-01T00:00:00Z",
};
const LATER: Moment<'static> = Moment {
    generation: 2,
    now: "2026-01-02T00:00:00Z",
};

/// No gateway is ours.
fn none(_: &Value) -> bool {
    false
}

fn problem(severity: Severity, reason: Reason, field: &str) -> Problem {
    Problem {
        severity,
        reason,
        file: None,
        line: None,
        object: None,
        field: field.to_owned(),
        message: "is so".to_owned(),
    }
}

/// Type, status, reason and message of every condition.
fn told(conditions: &Value) -> Vec<String> {
    let part = |condition: &Value, key: &str| condition[key].as_str().unwrap().to_owned();
    items(conditions)
        .iter()
        .map(|it| {
            ["type", "status", "reason", "message"]
                .map(|key| part(it, key))
                .join(" ")
        })
        .collect()
}

#[test]
fn what_is_wrong_and_what_is_not_executed_are_two_conditions() {
    let problems = [
        problem(Severity::Warning, Reason::NotExecuted, "spec.http[0].fault"),
        problem(Severity::Warning, Reason::UnknownReference, "spec.host"),
    ];
    let status = istio::status(&problems, &Value::Null, FIRST).unwrap();
    assert_eq!(
        told(&status["conditions"]),
        [
            "PassedAnalysis False ErrorsFound spec.host: is so",
            "millrace.io/Executed False NotExecuted spec.http[0].fault: is so",
        ]
    );
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(
        status["validationMessages"][1],
        json!({"level": "WARNING", "type": {"name": "spec.host: is so", "code": "unknown_reference"}})
    );
    assert_eq!(istio::status(&problems, &status, FIRST), None);
    let good = istio::status(&[], &status, LATER).unwrap();
    assert_eq!(
        told(&good["conditions"]),
        [
            "PassedAnalysis True NoErrorsFound ",
            "millrace.io/Executed True Executed ",
        ]
    );
    assert_eq!(good["conditions"][0]["lastTransitionTime"], LATER.now);
}

#[test]
fn what_others_wrote_stays_and_times_are_those_of_changes() {
    let foreign = json!({"type": "Reconciled", "status": "True"});
    let before = json!({"conditions": [foreign], "addresses": [{"value": "1.2.3.4"}]});
    let status = istio::status(&[], &before, FIRST).unwrap();
    assert_eq!(status["conditions"][0], foreign);
    assert_eq!(status.get("addresses"), None, "a merge leaves it alone");
    let later = istio::status(&[], &status, LATER).unwrap();
    assert_eq!(later["conditions"][1]["lastTransitionTime"], FIRST.now);
    assert_eq!(later["conditions"][1]["observedGeneration"], 2);
    let mut text = later.clone();
    text["observedGeneration"] = "2".into();
    assert_eq!(
        istio::status(&[], &text, LATER),
        None,
        "as istiod writes it"
    );
}

#[test]
fn each_parent_of_a_route_has_its_verdict() {
    let service = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let gateway = json!({"name": "edge"});
    let parents = json!([service("a"), gateway, service("b")]);
    let theirs =
        json!({"parentRef": gateway, "controllerName": "example.com/gateway", "conditions": []});
    let gone =
        json!({"parentRef": service("c"), "controllerName": routes::CONTROLLER, "conditions": []});
    let before = json!({"parents": [theirs, gone]});
    let problems = [
        problem(
            Severity::Warning,
            Reason::UnknownReference,
            "spec.parentRefs[2]",
        ),
        problem(
            Severity::Warning,
            Reason::NotPermitted,
            "spec.rules[0].backendRefs[0]",
        ),
        problem(
            Severity::Warning,
            Reason::NotExecuted,
            "spec.rules[0].retry.backoff",
        ),
    ];
    let status = routes::status(&parents, &none, &problems, &before, FIRST).unwrap();
    let all = items(&status["parents"]);
    assert_eq!(all.len(), 3, "{all:#?}");
    assert_eq!(all[0], theirs);
    let rest = [
        "ResolvedRefs False RefNotPermitted spec.rules[0].backendRefs[0]: is so",
        "millrace.io/Executed False NotExecuted spec.rules[0].retry.backoff: is so",
    ];
    assert_eq!(told(&all[1]["conditions"])[0], "Accepted True Accepted ");
    assert_eq!(told(&all[1]["conditions"])[1..], rest);
    assert_eq!(
        told(&all[2]["conditions"])[0],
        "Accepted False NoMatchingParent spec.parentRefs[2]: is so"
    );
    assert_eq!(
        routes::status(&parents, &none, &problems, &status, FIRST),
        None
    );
    let alone = routes::status(&json!([gateway]), &none, &problems, &status, FIRST);
    assert_eq!(alone.unwrap()["parents"], json!([theirs]));
    assert_eq!(
        routes::status(&json!([gateway]), &none, &[], &Value::Null, FIRST),
        None
    );
}

#[test]
fn reasons_are_those_of_the_gateway_api() {
    let parents = json!([{"group": "", "kind": "Service", "name": "a"}]);
    let reasons = |found: Problem| {
        let status = routes::status(&parents, &none, &[found], &Value::Null, FIRST).unwrap();
        let conditions = items(&status["parents"][0]["conditions"]);
        [0, 1].map(|at| conditions[at]["reason"].as_str().unwrap().to_owned())
    };
    let warning = |reason, field| reasons(problem(Severity::Warning, reason, field));
    let error = |field| reasons(problem(Severity::Error, Reason::Invalid, field));
    let backend = "spec.rules[0].backendRefs[1].name";
    assert_eq!(
        warning(Reason::UnknownReference, backend),
        ["Accepted", "BackendNotFound"]
    );
    assert_eq!(
        warning(Reason::Invalid, "spec.parentRefs[0]"),
        ["UnsupportedValue", "ResolvedRefs"]
    );
    assert_eq!(
        warning(Reason::UnknownReference, "spec.parentRefs[1]"),
        ["Accepted", "ResolvedRefs"]
    );
    assert_eq!(
        error("spec.rules[0].timeouts.request"),
        ["UnsupportedValue", "ResolvedRefs"]
    );
    assert_eq!(
        error("spec.rules[0].backendRefs[0].kind"),
        ["UnsupportedValue", "InvalidKind"]
    );
}

#[test]
fn a_gateway_says_what_each_listener_takes() {
    let listeners = json!([{"name": "http"}, {"name": "https"}]);
    let problems = [problem(
        Severity::Warning,
        Reason::NotExecuted,
        "spec.listeners[1].protocol",
    )];
    let theirs = json!({"type": "Mine", "status": "True"});
    let before = json!({"conditions": [theirs]});
    let status = gateways::status(&listeners, &[2, 0], &problems, &before, FIRST).unwrap();
    assert_eq!(status["conditions"][0], theirs);
    assert_eq!(
        told(&json!(items(&status["conditions"])[1..])),
        [
            "Accepted True Accepted ",
            "Programmed True Programmed ",
            "millrace.io/Executed False NotExecuted spec.listeners[1].protocol: is so",
        ]
    );
    let [http, https] = [0, 1].map(|at| status["listeners"][at].clone());
    assert_eq!(
        (&http["attachedRoutes"], &https["attachedRoutes"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(http["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(https["supportedKinds"], json!([]));
    let accepted = |listener: &Value| told(&listener["conditions"]).remove(0);
    assert_eq!(accepted(&http), "Accepted True Accepted ");
    let unsupported = "Accepted False UnsupportedProtocol spec.listeners[1].protocol: is so";
    assert_eq!(accepted(&https), unsupported);
    assert_eq!(
        gateways::status(&listeners, &[2, 0], &problems, &status, FIRST),
        None
    );
}

#[test]
fn a_route_has_a_verdict_at_gateways_of_the_mesh_alone() {
    let parents = json!([{"name": "ours"}, {"name": "theirs"}]);
    let ours = |reference: &Value| reference["name"] == "ours";
    let status = routes::status(&parents, &ours, &[], &Value::Null, FIRST).unwrap();
    let all = items(&status["parents"]);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["parentRef"]["name"], "ours");
    assert_eq!(told(&all[0]["conditions"])[0], "Accepted True Accepted ");
}
