use super::*;

#[test]
fn node_ids_round_trip() {
    for text in [
        "node~10.0.0.7~worker-1~cluster.local",
        "sidecar~fd00::7~reviews-v1-abc.default~default.svc.cluster.local",
        "router~~gateway.istio-system~istio-system.svc.cluster.local",
        "waypoint~10.0.0.7~w.default~",
    ] {
        assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
    }
}

#[test]
fn malformed_node_ids_say_what_is_wrong() {
    for (text, message) in [
        ("envoy", "not of the form"),
        ("node~10.0.0.7~a~b~c", "not of the form"),
        ("ztunnel~10.0.0.7~a~b", "unknown role ztunnel"),
        ("node~10.0.0~a~b", "invalid address 10.0.0"),
        ("node~10.0.0.7~~b", "names nothing"),
    ] {
        let error = text.parse::<NodeId>().unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn node_round_trips_through_the_proto() {
    let node = Node {
        locality: Some(Locality {
            region: "eu".into(),
            zone: "eu-1".into(),
            sub_zone: String::new(),
        }),
        user_agent_name: "millrace".into(),
        user_agent_version: "0.1.0".into(),
        client_features: vec!["envoy.lb.does_not_support_overprovisioning".into()],
        ..Node::new(&"node~10.0.0.7~worker-1~cluster.local".parse().unwrap())
    }
    .with_metadata("NODE_NAME", "worker-1")
    .with_metadata("LABELS", serde_json::json!({"app": "reviews", "n": 1}))
    .with_metadata("LIST", serde_json::json!([true, null, 1.5]));

    assert_eq!(Node::from(proto::Node::from(&node)), node);
    assert_eq!(node.node_name(), Some("worker-1"));
    assert_eq!(node.labels(), [("app".into(), "reviews".into())].into());
}

#[test]
fn sidecar_namespace_and_addresses_come_from_metadata_or_id() {
    let mut node = Node::new(&"sidecar~10.0.0.7~reviews.default~x".parse().unwrap());
    assert_eq!(node.namespace().as_deref(), Some("default"));
    assert_eq!(node.addresses(), ["10.0.0.7".parse::<IpAddr>().unwrap()]);

    node = node
        .with_metadata("NAMESPACE", "prod")
        .with_metadata("INSTANCE_IPS", "10.0.0.8, fd00::8");
    assert_eq!(node.namespace().as_deref(), Some("prod"));
    assert_eq!(node.addresses().len(), 2);
}
