//! TTLs of resources (xDS protocol, "TTL"): the server renews what is as it was, the client forgets what nobody renews.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;
#[path = "support/server.rs"]
mod support_server;

use std::time::Duration;

use millrace_xds::client::{ClientConfig, Event, client};
use millrace_xds::delta::client::{DeltaClient, Reception, ResponseUpdate};
use millrace_xds::delta::server::Delta;
use millrace_xds::node::Node;
use millrace_xds::proto::envoy::service::discovery::v3::Resource;
use millrace_xds::proto::{
    self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use millrace_xds::push::{Generation, Session, SessionConfig};
use millrace_xds::sotw::server::Sotw;
use millrace_xds::{EncodedResource, TypeUrl};
use support::{World, encode};
use support_server::{Running, Source};
use tokio::time::Instant;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const TTL: Duration = Duration::from_secs(10);
const HALF: Duration = Duration::from_secs(5);

fn with_ttl(type_url: &TypeUrl, name: &str, content: u8) -> EncodedResource {
    encode(type_url, name, content).with_ttl(Some(TTL))
}

fn session<V: millrace_xds::push::Variant>() -> Session<V> {
    Session::new(SessionConfig::default(), 7, Generation(0))
}

fn delta(type_url: &TypeUrl, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.as_str().into(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn accept(session: &mut Session<Delta>, response: &DeltaDiscoveryResponse) {
    let mut ack = delta(&TypeUrl::from(response.type_url.as_str()), &[]);
    ack.response_nonce.clone_from(&response.nonce);
    session.receive(&ack).unwrap();
}

fn seconds(resource: &Resource) -> Option<i64> {
    resource.ttl.as_ref().map(|ttl| ttl.seconds)
}

#[test]
fn a_delta_client_hears_of_a_resource_again_at_half_its_ttl() {
    let mut now = Instant::now();
    let mut world = World::default();
    world.put(with_ttl(&EDS, "a", 1));
    world.set(&EDS, "b", 1);
    world.publish();
    let mut server = session::<Delta>();
    server.receive(&delta(&EDS, &["a", "b"])).unwrap();
    let first = server.poll(now, &world).unwrap();
    assert_eq!(first.resources.len(), 2);
    assert_eq!(
        first.resources.iter().map(seconds).collect::<Vec<_>>(),
        [Some(10), None]
    );
    // Unanswered, it holds the renewal back.
    now += TTL;
    assert!(server.poll(now, &world).is_none());
    accept(&mut server, &first);
    let renewal = server.poll(now, &world).unwrap();
    let [again] = &renewal.resources[..] else {
        panic!("{renewal:?}");
    };
    assert_eq!((again.name.as_str(), seconds(again)), ("a", Some(10)));
    assert_eq!(
        (&again.resource, &again.version),
        (&None, &first.resources[0].version)
    );
    accept(&mut server, &renewal);
    assert!(server.poll(now, &world).is_none());
    assert_eq!(server.deadline(now), Some(now + HALF));
    // What changes is sent whole, and then renewed half a TTL after that.
    now += Duration::from_secs(4);
    world.put(with_ttl(&EDS, "a", 2));
    let generation = world.publish();
    server.advance(generation, |_, _| true);
    let changed = server.poll(now, &world).unwrap();
    assert!(changed.resources[0].resource.is_some());
    accept(&mut server, &changed);
    now += Duration::from_secs(2);
    assert!(server.poll(now, &world).is_none());
    now += HALF;
    assert!(server.poll(now, &world).is_some());
}

#[test]
fn what_a_client_brings_along_is_renewed_at_once() {
    let now = Instant::now();
    let mut world = World::default();
    world.put(with_ttl(&EDS, "a", 1));
    world.publish();
    let version = with_ttl(&EDS, "a", 1).version().as_str().to_owned();
    let mut server = session::<Delta>();
    let mut request = delta(&EDS, &["a"]);
    request
        .initial_resource_versions
        .insert("a".to_owned(), version);
    server.receive(&request).unwrap();
    let renewal = server.poll(now, &world).unwrap();
    assert_eq!(renewal.resources.len(), 1);
    assert_eq!(
        (
            &renewal.resources[0].resource,
            seconds(&renewal.resources[0])
        ),
        (&None, Some(10))
    );
}

#[test]
fn a_ttl_that_comes_or_goes_is_told_without_other_change() {
    let mut now = Instant::now();
    let mut world = World::default();
    world.set(&EDS, "a", 1);
    world.publish();
    let mut server = session::<Delta>();
    server.receive(&delta(&EDS, &["a"])).unwrap();
    let first = server.poll(now, &world).unwrap();
    accept(&mut server, &first);
    for (resource, ttl) in [
        (with_ttl(&EDS, "a", 1), Some(10)),
        (encode(&EDS, "a", 1), None),
    ] {
        world.put(resource);
        let generation = world.publish();
        server.advance(generation, |_, _| true);
        let response = server.poll(now, &world).unwrap();
        assert_eq!(seconds(&response.resources[0]), ttl);
        accept(&mut server, &response);
    }
    now += TTL;
    assert!(server.poll(now, &world).is_none());
}

fn sotw(type_url: &TypeUrl, names: &[&str], features: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.as_str().into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        node: Some(proto::Node {
            client_features: features.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn sotw_ack(server: &mut Session<Sotw>, names: &[&str], response: &DiscoveryResponse) {
    let mut ack = sotw(&TypeUrl::from(response.type_url.as_str()), names, &[]);
    ack.node = None;
    ack.version_info.clone_from(&response.version_info);
    ack.response_nonce.clone_from(&response.nonce);
    server.receive(&ack).unwrap();
}

#[test]
fn a_sotw_client_is_told_ttls_only_if_it_understands_wrappers() {
    let mut now = Instant::now();
    let mut world = World::default();
    world.put(with_ttl(&EDS, "a", 1));
    world.put(with_ttl(&EDS, "b", 1));
    world.publish();
    let mut plain = session::<Sotw>();
    plain.receive(&sotw(&EDS, &["a", "b"], &[])).unwrap();
    let response = plain.poll(now, &world).unwrap();
    assert!(
        response
            .resources
            .iter()
            .all(|any| any.type_url == EDS.as_str())
    );
    sotw_ack(&mut plain, &["a", "b"], &response);
    assert_eq!(plain.deadline(now), None);

    let mut server = session::<Sotw>();
    let features = ["xds.config.resource-in-sotw"];
    server.receive(&sotw(&EDS, &["a", "b"], &features)).unwrap();
    let first = server.poll(now, &world).unwrap();
    let wrapped: Resource = proto::unpack(&first.resources[0]).unwrap();
    assert_eq!((wrapped.name.as_str(), seconds(&wrapped)), ("a", Some(10)));
    assert!(wrapped.resource.is_some());
    sotw_ack(&mut server, &["a", "b"], &first);
    assert!(server.poll(now, &world).is_none());
    now += HALF;
    let renewal = server.poll(now, &world).unwrap();
    assert_eq!(renewal.version_info, first.version_info);
    assert_eq!(renewal.resources.len(), 2);
    for any in &renewal.resources {
        let wrapped: Resource = proto::unpack(any).unwrap();
        assert_eq!(
            (wrapped.resource.as_ref(), seconds(&wrapped)),
            (None, Some(10))
        );
    }
}

#[test]
fn a_sotw_client_is_told_of_a_ttl_that_comes_or_goes_without_other_change() {
    let now = Instant::now();
    let mut world = World::default();
    world.set(&EDS, "a", 1);
    world.publish();
    let mut server = session::<Sotw>();
    let features = ["xds.config.resource-in-sotw"];
    server.receive(&sotw(&EDS, &["a"], &features)).unwrap();
    let mut response = server.poll(now, &world).unwrap();
    for (resource, wrapped) in [
        (with_ttl(&EDS, "a", 1), true),
        (encode(&EDS, "a", 1), false),
    ] {
        sotw_ack(&mut server, &["a"], &response);
        world.put(resource);
        let generation = world.publish();
        server.advance(generation, |_, _| true);
        response = server.poll(now, &world).unwrap();
        let is_plain = response.resources[0].type_url == EDS.as_str();
        assert_eq!(is_plain, !wrapped);
    }
}

#[test]
fn a_whole_state_is_renewed_as_a_whole() {
    let mut now = Instant::now();
    let mut world = World::default();
    world.put(with_ttl(&CDS, "a", 1));
    world.set(&CDS, "b", 1);
    world.publish();
    let mut server = session::<Sotw>();
    server
        .receive(&sotw(&CDS, &[], &["xds.config.resource-in-sotw"]))
        .unwrap();
    let first = server.poll(now, &world).unwrap();
    sotw_ack(&mut server, &[], &first);
    now += HALF;
    // A client would take what is missing for gone.
    let renewal = server.poll(now, &world).unwrap();
    assert_eq!(renewal.resources, first.resources);
    assert_eq!(renewal.version_info, first.version_info);
}

/// A client that holds `a` with a TTL, given by a server whose world has nothing else.
fn holder(now: Instant) -> (DeltaClient, Session<Delta>, World) {
    let mut world = World::default();
    world.put(with_ttl(&EDS, "a", 1));
    world.publish();
    let mut client = DeltaClient::new(proto::Node::default(), Duration::from_mins(1));
    client.subscribe(&EDS, ["a"]);
    let mut server = session::<Delta>();
    client.open();
    assert_eq!(exchange(&mut client, &mut server, (&world, now)), ["a"]);
    (client, server, world)
}

/// Moves everything that is due between the two; gives the names of what reached the consumer.
fn exchange(
    client: &mut DeltaClient,
    server: &mut Session<Delta>,
    (world, now): (&World, Instant),
) -> Vec<String> {
    let mut given = Vec::new();
    loop {
        while let Some(request) = client.poll_request(now) {
            server.receive(&request).unwrap();
        }
        let Some(response) = server.poll(now, world) else {
            return given;
        };
        if let Reception::Update(ResponseUpdate {
            resources,
            received,
            ..
        }) = client.receive_at(response, now)
        {
            given.extend(resources.into_iter().map(|resource| resource.name));
            client.finish(received.verdict(Vec::new()));
        }
    }
}

#[test]
fn a_resource_that_is_renewed_is_kept() {
    let mut now = Instant::now();
    let (mut client, mut server, world) = holder(now);
    for _ in 0..10 {
        now += HALF;
        assert_eq!(
            exchange(&mut client, &mut server, (&world, now)),
            Vec::<String>::new()
        );
        assert_eq!(client.lapse(now), None);
    }
    assert_eq!(client.known(&EDS).count(), 1);
}

#[test]
fn a_resource_that_nobody_renews_is_forgotten_and_asked_for_again() {
    let mut now = Instant::now();
    let (mut client, mut server, world) = holder(now);
    assert_eq!(client.next_lapse(), Some(now + TTL));
    now += TTL;
    assert_eq!(client.lapse(now), Some((EDS, vec!["a".to_owned()])));
    assert_eq!(client.lapse(now), None);
    assert_eq!(client.known(&EDS).count(), 0);
    // The stream was only slow: the server takes it for held, and has to be asked.
    assert_eq!(exchange(&mut client, &mut server, (&world, now)), ["a"]);
    // Without a stream the time passes as well.
    client.close();
    now += TTL;
    assert!(client.lapse(now).is_some());
    client.open();
    let request = client.poll_request(now).unwrap();
    assert!(request.initial_resource_versions.is_empty(), "{request:?}");
    // What is wanted no longer does not lapse.
    let (mut client, ..) = holder(now);
    client.unsubscribe(&EDS, ["a"]);
    assert_eq!(client.next_lapse(), None);
}

#[tokio::test]
async fn the_consumer_is_told_when_the_control_plane_is_gone_for_too_long() {
    let short = Some(Duration::from_millis(500));
    let source = Source::new();
    source.change(|world| world.put(encode(&EDS, "a", 1).with_ttl(short)));
    let server = Running::on_port(source.clone(), 0).await;
    let node = Node::new(&"node~10.0.0.7~worker~cluster.local".parse().unwrap());
    let (handle, mut events, driver) = client(ClientConfig::new(server.url(), node)).unwrap();
    let driver = tokio::spawn(driver.run());
    handle.subscribe(&EDS, ["a"]);
    let test = async {
        let mut server = Some(server);
        loop {
            let Event::Update(update) = events.next().await.unwrap() else {
                continue;
            };
            let (given, gone) = (!update.resources.is_empty(), update.removed == ["a"]);
            update.commit();
            if let Some(server) = server.take_if(|_| given) {
                server.stop().await;
            } else if gone && server.is_none() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), test)
        .await
        .unwrap();
    assert!(handle.known(&EDS).is_empty());
    driver.abort();
}
