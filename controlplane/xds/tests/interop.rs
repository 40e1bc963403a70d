//! tonic's `xds-client`, an implementation of its own by other people, against our server: the
//! state-of-the-world variant as gRPC clients speak it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;
#[path = "support/server.rs"]
mod support_server;

use std::time::Duration;

use bytes::Bytes;
use millrace_xds::{TypeUrl, proto};
use prost::Message;
use support_server::{Running, Source};
use xds_client::resource::TypeUrl as PeerTypeUrl;
use xds_client::{
    ClientConfig, Error, Node, ProstCodec, Resource, ResourceEvent, ResourceWatcher, TokioRuntime,
    TonicTransportBuilder, XdsClient,
};

#[derive(Debug)]
struct Listener(proto::Listener);

impl Resource for Listener {
    type Message = proto::Listener;
    const TYPE_URL: PeerTypeUrl =
        PeerTypeUrl::new("type.googleapis.com/envoy.config.listener.v3.Listener");

    fn deserialize(bytes: Bytes) -> xds_client::Result<Self::Message> {
        proto::Listener::decode(bytes).map_err(Into::into)
    }

    fn name(message: &Self::Message) -> &str {
        &message.name
    }

    fn validate(message: Self::Message) -> xds_client::Result<Self> {
        if message.stat_prefix == "13" {
            return Err(Error::Validation("13 is not allowed".into()));
        }
        Ok(Self(message))
    }
}

#[derive(Debug)]
struct Endpoints(proto::ClusterLoadAssignment);

impl Resource for Endpoints {
    type Message = proto::ClusterLoadAssignment;
    const TYPE_URL: PeerTypeUrl =
        PeerTypeUrl::new("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    const ALL_RESOURCES_REQUIRED_IN_SOTW: bool = false;

    fn deserialize(bytes: Bytes) -> xds_client::Result<Self::Message> {
        proto::ClusterLoadAssignment::decode(bytes).map_err(Into::into)
    }

    fn name(message: &Self::Message) -> &str {
        &message.cluster_name
    }

    fn validate(message: Self::Message) -> xds_client::Result<Self> {
        Ok(Self(message))
    }
}

fn client(url: &str) -> XdsClient {
    let node = Node::new("grpc", "1.0").with_id("grpc-client");
    let config = ClientConfig::new(node, url);
    XdsClient::builder(
        config,
        TonicTransportBuilder::new(),
        ProstCodec,
        TokioRuntime,
    )
    .build()
}

/// The next change: the resource, or why there is none.
async fn change<T: Resource>(watcher: &mut ResourceWatcher<T>) -> Result<std::sync::Arc<T>, Error> {
    loop {
        match watcher.next().await.unwrap() {
            ResourceEvent::ResourceChanged { result, .. } => return result,
            ResourceEvent::AmbientError { .. } => {}
        }
    }
}

async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(30), test)
        .await
        .expect("the test does not end");
}

#[tokio::test]
async fn listener_is_served_updated_and_deleted() {
    in_time(async {
        let source = Source::new();
        source.set(&TypeUrl::LISTENER, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let client = client(&server.url());
        let mut watcher = client.watch::<Listener>("a").await;
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "1");
        source.told("acked grpc-client LDS").await;

        source.set(&TypeUrl::LISTENER, "a", 2);
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "2");

        source.change(|world| world.remove(&TypeUrl::LISTENER, "a"));
        let error = change(&mut watcher).await.unwrap_err();
        assert!(matches!(error, Error::ResourceDoesNotExist), "{error}");

        source.set(&TypeUrl::LISTENER, "a", 3);
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "3");
    })
    .await;
}

#[tokio::test]
async fn further_names_and_types_are_served_on_the_same_stream() {
    in_time(async {
        let source = Source::new();
        source.change(|world| {
            world.set(&TypeUrl::LISTENER, "a", 1);
            world.set(&TypeUrl::LISTENER, "b", 2);
            world.set(&TypeUrl::ENDPOINT, "e", 3);
        });
        let server = Running::on_port(source.clone(), 0).await;
        let client = client(&server.url());
        let mut a = client.watch::<Listener>("a").await;
        assert_eq!(change(&mut a).await.unwrap().0.stat_prefix, "1");
        let mut b = client.watch::<Listener>("b").await;
        assert_eq!(change(&mut b).await.unwrap().0.stat_prefix, "2");
        // This client reads on only when every watcher has taken what came for it, and the full
        // state that brought b brought a again.
        tokio::spawn(async move { while a.next().await.is_some() {} });
        let mut e = client.watch::<Endpoints>("e").await;
        let factor = |endpoints: &proto::ClusterLoadAssignment| {
            let policy = endpoints.policy.clone().unwrap();
            policy.overprovisioning_factor.unwrap().value
        };
        assert_eq!(factor(&change(&mut e).await.unwrap().0), 3);
        assert_eq!(server.connections.count(), 1);

        source.set(&TypeUrl::ENDPOINT, "e", 4);
        assert_eq!(factor(&change(&mut e).await.unwrap().0), 4);
    })
    .await;
}

#[tokio::test]
async fn rejected_listener_is_reported_and_a_later_one_accepted() {
    in_time(async {
        let source = Source::new();
        source.set(&TypeUrl::LISTENER, "a", 13);
        let server = Running::on_port(source.clone(), 0).await;
        let client = client(&server.url());
        let mut watcher = client.watch::<Listener>("a").await;
        change(&mut watcher).await.unwrap_err();
        source.told("nacked grpc-client LDS of a").await;
        let status = server.connections.status();
        let error = status[0].types[0].last_error.clone().unwrap();
        assert!(error.contains("13 is not allowed"), "{error}");

        source.set(&TypeUrl::LISTENER, "a", 1);
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "1");
    })
    .await;
}

#[tokio::test]
async fn stream_is_resumed_with_another_server() {
    in_time(async {
        let source = Source::new();
        source.set(&TypeUrl::LISTENER, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let port = server.addr.unwrap().port();
        let client = client(&server.url());
        let mut watcher = client.watch::<Listener>("a").await;
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "1");
        server.stop().await;
        source.set(&TypeUrl::LISTENER, "a", 2);
        let _server = Running::on_port(source.clone(), port).await;
        assert_eq!(change(&mut watcher).await.unwrap().0.stat_prefix, "2");
    })
    .await;
}
