//! The fuzz targets' bodies on stable: arbitrary bytes, and valid messages with bytes changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

mod support;

use millrace_testkit::fuzz;
use millrace_xds::proto::envoy::service::discovery::v3::Resource;
use millrace_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, google};
use millrace_xds::{TypeUrl, proto};
use prost::Message;

const YAML: &str = "node: { id: a, metadata: { k: [1, x] } }\nstatic_resources:\n  clusters:\n  - name: a\n    connect_timeout: 0.25s\n";

/// Valid input of each body.
fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| google::protobuf::Value {
        kind: Some(google::protobuf::value::Kind::StringValue(text.into())),
    };
    let metadata = google::protobuf::Struct {
        fields: [
            ("NODE_NAME".into(), text("n")),
            ("INSTANCE_IPS".into(), text("::1")),
        ]
        .into(),
    };
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "node~10.0.0.7~worker~cluster.local".into(),
            metadata: Some(metadata.clone()),
            ..Default::default()
        }),
        type_url: TypeUrl::CLUSTER.as_str().into(),
        resource_names_subscribe: vec!["a".into(), "ns/*".into(), "*".into(), "gone".into()],
        resource_names_unsubscribe: vec!["a".into(), "b".into()],
        initial_resource_versions: [("a".into(), "1".into()), ("old".into(), "1".into())].into(),
        ..Default::default()
    };
    let cluster = support::encode(&TypeUrl::CLUSTER, "a", 1);
    let response = DeltaDiscoveryResponse {
        type_url: TypeUrl::CLUSTER.as_str().into(),
        nonce: "1".into(),
        removed_resources: vec!["b".into(), "ns/*".into()],
        resources: vec![Resource {
            name: "a".into(),
            version: "1".into(),
            resource: Some(cluster.to_any()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let with_maps = proto::Cluster {
        metadata: Some(proto::envoy::config::core::v3::Metadata {
            filter_metadata: [
                ("a".into(), metadata.clone()),
                ("b".into(), metadata.clone()),
            ]
            .into(),
            typed_filter_metadata: [("c".into(), proto::pack(&metadata))].into(),
        }),
        ..Default::default()
    };
    vec![
        request.encode_to_vec(),
        response.encode_to_vec(),
        with_maps.encode_to_vec(),
        YAML.as_bytes().to_vec(),
    ]
}

fn run(data: &[u8]) {
    bodies::requests(data);
    bodies::responses(data);
    bodies::resources(data);
    bodies::json(data);
}

#[test]
fn seeds_are_read() {
    for seed in seeds() {
        run(&seed);
    }
}

#[test]
fn arbitrary_bytes_are_survived() {
    fuzz::arbitrary(run);
}

#[test]
fn changed_messages_are_survived() {
    fuzz::changed(&seeds(), run);
}
