use serde_json::json;

use super::*;

fn packed(group: &str, kind: &str, object: &Object) -> Any {
    Any {
        type_url: RESOURCE.to_owned(),
        value: pack(group, kind, object).unwrap(),
    }
}

fn object(spec: Value) -> Object {
    Object {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        created: "2026-03-01T10:00:00Z".to_owned(),
        version: "17".to_owned(),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        annotations: [("note".to_owned(), "b".to_owned())].into(),
        spec,
        unknown: Vec::new(),
    }
}

#[test]
fn a_virtual_service_is_a_message_of_its_own() {
    let spec = json!({
        "hosts": ["cart"],
        "http": [{
            "match": [{"headers": {"user": {"exact": "jason"}}}],
            "timeout": "2.500s",
            "route": [{"destination": {"host": "cart", "subset": "v1", "port": {"number": 80}}, "weight": 90}],
        }],
    });
    let object = object(spec);
    let any = packed("networking.istio.io", "VirtualService", &object);
    assert_eq!(unpack(&any).unwrap(), object);
    assert_eq!(name_of(&any).as_deref(), Some("shop/cart"));
    let message = b"type.googleapis.com/istio.networking.v1alpha3.VirtualService";
    let mut windows = any.value.windows(message.len());
    assert!(windows.any(|window| window == message));
}

#[test]
fn a_kind_without_a_message_is_a_struct() {
    let object = object(json!({"rules": [{"weight": 1.0, "matches": [{"path": {"value": "/"}}]}]}));
    let any = packed("gateway.networking.k8s.io", "HTTPRoute", &object);
    assert_eq!(unpack(&any).unwrap(), object);
}

#[test]
fn a_spec_that_its_message_cannot_say_is_a_struct() {
    let object = object(json!({"hosts": ["a"], "http": [{"timeout": "1m"}]}));
    let any = packed("networking.istio.io", "VirtualService", &object);
    assert_eq!(unpack(&any).unwrap(), object);
}

#[test]
fn what_a_newer_server_says_is_named_by_its_number() {
    // A VirtualService with a host, and a field 99 in its only HTTP route.
    let route = [0x9a, 0x06, 0x01, b'x'];
    let spec = [&[0x0a, 1, b'h', 0x1a, 4][..], &route[..]].concat();
    let body = Any {
        type_url: "type.googleapis.com/istio.networking.v1alpha3.VirtualService".to_owned(),
        value: spec,
    };
    let metadata = [&[0x0a, 5, 0x0a, 3][..], b"a/b"].concat();
    let body = body.encode_to_vec();
    let length = u8::try_from(body.len()).unwrap();
    let any = Any {
        type_url: RESOURCE.to_owned(),
        value: [metadata, vec![0x12, length], body].concat(),
    };
    let object = unpack(&any).unwrap();
    assert_eq!(
        (object.namespace.as_str(), object.name.as_str()),
        ("a", "b")
    );
    let unknown = ["spec.http[0]: field 99 of istio.networking.v1alpha3.HTTPRoute"];
    assert_eq!(object.unknown, unknown);
}

#[test]
fn what_is_no_object_is_refused_with_the_reason() {
    let other = Any {
        type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(),
        value: Vec::new(),
    };
    assert!(matches!(unpack(&other), Err(InvalidObject::Type(_))));
    let mut nameless = object(json!({}));
    nameless.namespace = "a/b".to_owned();
    let any = packed("networking.istio.io", "Sidecar", &nameless);
    assert!(matches!(unpack(&any), Err(InvalidObject::Name(_))));
    let broken = Any {
        type_url: RESOURCE.to_owned(),
        value: vec![0x0a, 0xff],
    };
    assert!(matches!(unpack(&broken), Err(InvalidObject::Malformed(_))));
}
