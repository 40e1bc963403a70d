//! Reviews as API servers send them.

use super::*;
use crate::index::Index;
use crate::kube::document;
use crate::model::mesh::MeshConfig;

const DOMAIN: &str = "cluster.local";

fn rule(route: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": route}}]}]},
    })
}

fn asked(object: &Value, before: &Value, mesh: Option<&MeshSnapshot>) -> (Value, Outcome) {
    let review = json!({
        "apiVersion": VERSION, "kind": "AdmissionReview",
        "request": {"uid": "7", "operation": "UPDATE", "object": object, "oldObject": before},
    });
    let (mut answer, outcome) = answer(review.to_string().as_bytes(), mesh, DOMAIN).unwrap();
    assert_eq!(answer["apiVersion"], VERSION);
    let mut response = answer["response"].take();
    assert_eq!(response["uid"].take(), "7");
    (response, outcome)
}

#[test]
fn what_cannot_be_used_is_refused_with_object_field_and_reason() {
    let mut bad = rule("b");
    bad["spec"]["http"][0]["timeout"] = "soon".into();
    bad["spec"]["hosts"] = json!(["*"]);
    let (response, outcome) = asked(&bad, &Value::Null, None);
    assert_eq!(
        (outcome, &response["allowed"]),
        (Outcome::Refused, &json!(false))
    );
    let message = response["status"]["message"].as_str().unwrap();
    for part in [
        "VirtualService shop/a: spec.hosts: the host \"*\" needs a gateway",
        "; VirtualService shop/a: spec.http[0].timeout: ",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_is_wrong_between_objects_warns_once_the_mesh_is_known() {
    assert_eq!(
        asked(&rule("b"), &Value::Null, None),
        (json!({"uid": null, "allowed": true}), Outcome::Allowed)
    );
    let (response, outcome) = asked(&rule("b"), &Value::Null, Some(&MeshSnapshot::default()));
    let unknown = "spec.http[0].route[0].destination.host: \
                   no service b.shop.svc.cluster.local is known: requests get 503 (NC)";
    assert_eq!(
        (outcome, &response["warnings"]),
        (Outcome::Warned, &json!([unknown]))
    );
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop}\n\
                spec: {clusterIP: 10.0.0.1, ports: [{port: 80, name: http}]}\n";
    let mut index = Index::new(MeshConfig::default());
    for sourced in document::read("b.yaml", yaml, DOMAIN).objects {
        index.apply(sourced.object);
    }
    let (_, outcome) = asked(&rule("b"), &Value::Null, Some(&index.snapshot()));
    assert_eq!(outcome, Outcome::Allowed);
}

#[test]
fn metadata_of_what_was_always_wrong_can_be_changed() {
    let mut bad = rule("b");
    bad["spec"]["hosts"] = json!(["*"]);
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"x": "y"});
    let (response, outcome) = asked(&labelled, &bad, None);
    assert_eq!(
        (outcome, &response["allowed"]),
        (Outcome::Warned, &json!(true))
    );
    let mut worse = bad.clone();
    worse["spec"]["http"][0]["timeout"] = "soon".into();
    assert_eq!(asked(&worse, &bad, None).1, Outcome::Refused);
    worse["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(asked(&worse, &bad, None).1, Outcome::Warned);
}

#[test]
fn an_object_without_a_name_is_judged_like_one_with() {
    let mut unnamed = rule("b");
    unnamed["metadata"] = json!({"generateName": "a-", "namespace": "shop"});
    assert_eq!(asked(&unnamed, &Value::Null, None).1, Outcome::Allowed);
    unnamed["spec"]["hosts"] = json!(["*"]);
    let (response, _) = asked(&unnamed, &Value::Null, None);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("VirtualService shop/a-*: "),
        "{message}"
    );
}

#[test]
fn warnings_are_as_many_and_as_long_as_an_api_server_takes() {
    let mut object = rule("b");
    for index in 0..40 {
        object["spec"][format!("unknown{index}")] = 1.into();
    }
    object["spec"]["ä".repeat(300)] = 1.into();
    let (response, _) = asked(&object, &Value::Null, None);
    let warnings = response["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), MAX_WARNINGS);
    object["spec"] = json!({"hosts": ["a"], "http": rule("b")["spec"]["http"], "ä".repeat(300): 1});
    let (response, _) = asked(&object, &Value::Null, None);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.len() <= MAX_WARNING && warning.ends_with("ä..."),
        "{warning}"
    );
}

#[test]
fn what_is_no_review_gets_no_answer() {
    for text in [
        "",
        "{}",
        r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "7"}}"#,
        r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#,
    ] {
        assert!(answer(text.as_bytes(), None, DOMAIN).is_err(), "{text}");
    }
}
