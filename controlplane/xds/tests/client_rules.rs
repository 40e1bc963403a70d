//! The delta client's state machine, rule by rule; each test names the part of the xDS protocol
//! specification (Envoy's `api-docs/xds_protocol`) that it holds the client to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;

use std::time::Duration;

use millrace_xds::delta::client::{DeltaClient, Reception, ResponseUpdate};
use millrace_xds::proto::envoy::service::discovery::v3::Resource;
use millrace_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use millrace_xds::{ResourceError, TypeUrl};
use tokio::time::Instant;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const TIMEOUT: Duration = Duration::from_secs(15);

fn client() -> DeltaClient {
    let node = Node {
        id: "node~10.0.0.7~worker~cluster.local".into(),
        ..Default::default()
    };
    let mut client = DeltaClient::new(node, TIMEOUT);
    client.open();
    client
}

fn poll(client: &mut DeltaClient) -> Option<DeltaDiscoveryRequest> {
    client.poll_request(Instant::now())
}

fn response(type_url: &TypeUrl, nonce: &str, resources: &[(&str, u8)]) -> DeltaDiscoveryResponse {
    let resources = resources.iter().map(|(name, content)| {
        let resource = support::encode(type_url, name, *content);
        Resource {
            name: (*name).to_owned(),
            version: content.to_string(),
            resource: Some(resource.to_any()),
            ..Default::default()
        }
    });
    DeltaDiscoveryResponse {
        type_url: type_url.as_str().into(),
        nonce: nonce.into(),
        resources: resources.collect(),
        ..Default::default()
    }
}

fn removal(type_url: &TypeUrl, nonce: &str, names: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        removed_resources: names.iter().map(ToString::to_string).collect(),
        ..response(type_url, nonce, &[])
    }
}

fn update(client: &mut DeltaClient, response: DeltaDiscoveryResponse) -> ResponseUpdate {
    match client.receive(response) {
        Reception::Update(update) => update,
        Reception::Ignored { reason } => panic!("ignored: {reason}"),
    }
}

fn accept(client: &mut DeltaClient, response: DeltaDiscoveryResponse) {
    let update = update(client, response);
    client.finish(update.received.verdict(Vec::new()));
}

fn known(client: &DeltaClient, type_url: &TypeUrl) -> Vec<(String, String)> {
    let known = client.known(type_url);
    known.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

// "Basic Protocol Overview": only the first request carries the node.
#[test]
fn node_is_in_the_first_request_of_a_stream_only() {
    let mut client = client();
    client.subscribe(&CDS, ["*"]);
    client.subscribe(&EDS, ["a"]);
    assert!(poll(&mut client).unwrap().node.is_some());
    assert!(poll(&mut client).unwrap().node.is_none());
    client.close();
    assert!(poll(&mut client).is_none());
    client.open();
    assert!(poll(&mut client).unwrap().node.is_some());
}

#[test]
fn roots_are_asked_for_first() {
    let mut client = client();
    client.subscribe(&TypeUrl::ROUTE, ["9080"]);
    client.subscribe(&CDS, ["*"]);
    assert_eq!(poll(&mut client).unwrap().type_url, CDS.as_str());
}

// "Incremental xDS": a wildcard in the form that every server knows.
#[test]
fn wildcard_alone_is_an_empty_list_and_with_names_it_is_explicit() {
    let mut client = client();
    client.subscribe(&CDS, ["*"]);
    assert!(
        poll(&mut client)
            .unwrap()
            .resource_names_subscribe
            .is_empty()
    );
    client.subscribe(&CDS, ["a"]);
    assert_eq!(poll(&mut client).unwrap().resource_names_subscribe, ["a"]);

    client.close();
    client.open();
    assert_eq!(
        poll(&mut client).unwrap().resource_names_subscribe,
        ["*", "a"]
    );
}

#[test]
fn ack_carries_the_nonce_and_nothing_else() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    accept(&mut client, response(&EDS, "n1", &[("a", 1)]));
    let ack = poll(&mut client).unwrap();
    assert_eq!(ack.response_nonce, "n1");
    assert!(ack.error_detail.is_none());
    assert!(ack.resource_names_subscribe.is_empty());
    assert!(poll(&mut client).is_none());
}

// "ACK and NACK semantics summary", per resource.
#[test]
fn nack_names_the_bad_resource_and_the_good_one_is_kept() {
    let mut client = client();
    client.subscribe(&EDS, ["a", "b"]);
    poll(&mut client);
    accept(&mut client, response(&EDS, "n1", &[("a", 1), ("b", 1)]));
    poll(&mut client);
    let received = update(&mut client, response(&EDS, "n2", &[("a", 2), ("b", 2)])).received;
    client.finish(received.verdict(vec![ResourceError {
        name: "b".into(),
        message: "no such field".into(),
    }]));

    let nack = poll(&mut client).unwrap();
    assert_eq!(nack.response_nonce, "n2");
    assert_eq!(nack.error_detail.unwrap().message, "b: no such field");
    let expected = [("a", "2"), ("b", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(known(&client, &EDS), expected);
}

// "Duplicate Resource Names".
#[test]
fn response_with_a_name_twice_is_rejected() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    let twice = response(&EDS, "n1", &[("a", 1), ("a", 2)]);
    assert!(matches!(client.receive(twice), Reception::Ignored { .. }));
    let nack = poll(&mut client).unwrap();
    assert_eq!(nack.response_nonce, "n1");
    assert!(nack.error_detail.unwrap().message.contains('a'));
}

// "The client will silently ignore any supplied resources that were not explicitly requested".
#[test]
fn resources_that_are_not_wanted_are_ignored_and_acknowledged() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    let update = update(&mut client, response(&EDS, "n1", &[("a", 1), ("x", 1)]));
    assert_eq!(update.resources.len(), 1);

    let unknown_type = response(&CDS, "n2", &[("c", 1)]);
    assert!(matches!(
        client.receive(unknown_type),
        Reception::Ignored { .. }
    ));
}

// "TTL": a resource without content is a heartbeat.
#[test]
fn heartbeat_is_no_update() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    let mut heartbeat = response(&EDS, "n1", &[("a", 1)]);
    heartbeat.resources[0].resource = None;
    let reception = client.receive(heartbeat);
    assert!(
        matches!(reception, Reception::Ignored { .. }),
        "{reception:?}"
    );
    assert_eq!(poll(&mut client).unwrap().response_nonce, "n1");
}

#[test]
fn unsubscribing_and_subscribing_again_asks_again() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    accept(&mut client, response(&EDS, "n1", &[("a", 1)]));
    poll(&mut client);
    client.unsubscribe(&EDS, ["a"]);
    assert!(known(&client, &EDS).is_empty());
    client.subscribe(&EDS, ["a"]);
    let request = poll(&mut client).unwrap();
    assert_eq!(request.resource_names_subscribe, ["a"]);
    assert!(request.resource_names_unsubscribe.is_empty());
}

// "Incremental xDS": "the reconnecting client must provide the server with all resource names".
#[test]
fn new_stream_resumes_with_names_and_versions() {
    let mut client = client();
    client.subscribe(&EDS, ["a", "b"]);
    poll(&mut client);
    accept(&mut client, response(&EDS, "n1", &[("a", 1)]));
    client.close();
    client.open();
    let request = poll(&mut client).unwrap();
    assert_eq!(request.resource_names_subscribe, ["a", "b"]);
    let versions = [("a".to_owned(), "1".to_owned())];
    assert_eq!(request.initial_resource_versions, versions.into());
    assert!(request.response_nonce.is_empty());
}

#[test]
fn restored_resources_are_claimed_when_wanted() {
    let mut client = client();
    client.restore(&EDS, "a", "1");
    client.restore(&EDS, "b", "1");
    client.subscribe(&EDS, ["a"]);
    let versions = poll(&mut client).unwrap().initial_resource_versions;
    assert_eq!(versions, [("a".to_owned(), "1".to_owned())].into());
}

/// Whoever wants nothing may have dropped what was restored.
#[test]
fn restored_resources_are_not_claimed_after_nothing_was_wanted() {
    let mut client = client();
    client.restore(&EDS, "a", "1");
    client.unsubscribe(&EDS, []);
    client.subscribe(&EDS, ["a"]);
    let versions = poll(&mut client).unwrap().initial_resource_versions;
    assert_eq!(versions, [].into());
}

#[test]
fn verdicts_take_effect_in_the_order_of_responses() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    let first = update(&mut client, response(&EDS, "n1", &[("a", 1)])).received;
    let second = update(&mut client, response(&EDS, "n2", &[("a", 2)])).received;
    client.finish(second.verdict(Vec::new()));
    assert!(poll(&mut client).is_none());
    client.finish(first.verdict(Vec::new()));
    assert_eq!(poll(&mut client).unwrap().response_nonce, "n1");
    assert_eq!(poll(&mut client).unwrap().response_nonce, "n2");
    assert_eq!(known(&client, &EDS)[0].1, "2");
}

// "the nonce is valid only in the context of an individual xDS stream".
#[test]
fn verdict_on_a_response_of_an_older_stream_is_kept_but_not_sent() {
    let mut client = client();
    client.subscribe(&EDS, ["a"]);
    poll(&mut client);
    let received = update(&mut client, response(&EDS, "n1", &[("a", 1)])).received;
    client.close();
    client.open();
    poll(&mut client);
    client.finish(received.verdict(Vec::new()));
    assert!(poll(&mut client).is_none());
    assert_eq!(known(&client, &EDS)[0].1, "1");
}

// "Knowing When a Requested Resource Does Not Exist".
#[test]
fn name_that_nothing_is_said_of_is_reported_once() {
    let mut client = client();
    let start = Instant::now();
    client.subscribe(&EDS, ["a", "b", "c"]);
    assert!(client.deadline().is_none(), "nothing was asked yet");
    client.poll_request(start);
    accept(&mut client, response(&EDS, "n1", &[("a", 1)]));
    accept(&mut client, removal(&EDS, "n2", &["b"]));
    assert!(
        client
            .expire(start + TIMEOUT - Duration::from_millis(1))
            .is_empty()
    );
    assert_eq!(client.deadline(), Some(start + TIMEOUT));
    let expired = client.expire(start + TIMEOUT);
    assert_eq!(expired, [(EDS, vec!["c".to_owned()])]);
    assert!(client.expire(start + 2 * TIMEOUT).is_empty());
}

#[test]
fn lost_stream_stops_the_clock_of_unanswered_names() {
    let mut client = client();
    let start = Instant::now();
    client.subscribe(&EDS, ["a"]);
    client.poll_request(start);
    client.close();
    assert!(client.deadline().is_none());
    client.open();
    client.poll_request(start + TIMEOUT);
    assert_eq!(client.deadline(), Some(start + 2 * TIMEOUT));
}

#[test]
fn emptied_collection_takes_its_members_along() {
    let mut client = client();
    client.subscribe(&EDS, ["ns/*", "ns/b"]);
    poll(&mut client);
    accept(
        &mut client,
        response(&EDS, "n1", &[("ns/a", 1), ("ns/b", 1)]),
    );
    let update = update(&mut client, removal(&EDS, "n2", &["ns/*"]));
    assert_eq!(update.removed, ["ns/*", "ns/a"]);
}

#[test]
fn unchanged_members_and_wildcards_need_no_answer_on_a_new_stream() {
    let mut client = client();
    client.subscribe(&EDS, ["ns/*", "gone"]);
    client.subscribe(&CDS, ["*"]);
    poll(&mut client);
    poll(&mut client);
    let unanswered: Vec<_> = client.unanswered(&CDS).collect();
    assert_eq!(unanswered, ["*"]);
    accept(&mut client, response(&EDS, "n1", &[("ns/a", 1)]));
    accept(&mut client, removal(&EDS, "n2", &["gone"]));
    accept(&mut client, response(&CDS, "n3", &[]));
    assert!(client.deadline().is_none());
    client.close();
    client.open();
    let unanswered: Vec<_> = client.unanswered(&EDS).collect();
    assert_eq!(unanswered, ["gone"]);
    assert_eq!(client.unanswered(&CDS).count(), 0);
}

#[test]
fn first_member_answers_for_its_collection() {
    let mut client = client();
    client.subscribe(&EDS, ["ns/*"]);
    poll(&mut client);
    assert!(client.deadline().is_some());
    accept(&mut client, response(&EDS, "n1", &[("ns/a", 1)]));
    assert!(client.deadline().is_none());
}
