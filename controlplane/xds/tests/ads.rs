//! The server's and the client's drivers against each other over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;
#[path = "support/server.rs"]
mod support_server;

use std::time::Duration;

use millrace_xds::client::{
    Client, ClientConfig, ConnectionState, Event, Events, KnownResource, Update, client,
};
use millrace_xds::node::Node;
use millrace_xds::proto::{self, Cluster};
use millrace_xds::push::SyncState;
use millrace_xds::{ResourceError, TypeUrl};
use support_server::{Running, Source};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const NODE: &str = "node~10.0.0.7~worker~cluster.local";

/// A client whose driver is aborted when dropped.
struct Proxy {
    client: Client,
    events: Events,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn config(server: &str) -> ClientConfig {
    let mut config = ClientConfig::new(server, Node::new(&NODE.parse().unwrap()));
    config.backoff.base = Duration::from_millis(5);
    config.backoff.max = Duration::from_millis(20);
    config
}

impl Proxy {
    fn new(server: &str) -> Self {
        Self::with(config(server))
    }

    fn with(config: ClientConfig) -> Self {
        let (client, events, driver) = client(config).unwrap();
        Self {
            client,
            events,
            driver: tokio::spawn(driver.run()),
        }
    }

    async fn update(&mut self) -> Update {
        loop {
            match self.events.next().await.unwrap() {
                Event::Update(update) => return update,
                Event::Connected => {}
                Event::Missing { names, .. } => panic!("{names:?} missing"),
            }
        }
    }

    async fn state(&self, matches: impl Fn(&ConnectionState) -> bool) -> ConnectionState {
        let mut state = self.client.state();
        state.wait_for(matches).await.unwrap().clone()
    }
}

fn names(update: &Update) -> Vec<&str> {
    update.resources.iter().map(|r| r.name.as_str()).collect()
}

/// Fails a test that hangs instead of letting it hang the suite.
async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(30), test)
        .await
        .expect("the test does not end");
}

#[tokio::test]
async fn update_reaches_the_proxy_and_its_ack_the_source() {
    in_time(async {
        let source = Source::new();
        source.set(&CDS, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let mut proxy = Proxy::new(&server.url());
        proxy.client.subscribe(&CDS, ["*"]);

        let update = proxy.update().await;
        let decoded = update.decode(|cluster: Cluster| Ok::<_, String>(cluster.alt_stat_name));
        assert_eq!(decoded.accepted, [("a".to_owned(), "1".to_owned())]);
        update.commit();
        source.told(&format!("acked {NODE} CDS")).await;

        let status = server.connections.status();
        assert_eq!(server.connections.count(), 1);
        assert_eq!(status[0].node_id, NODE);
        assert_eq!(status[0].types[0].state, SyncState::Synced);
        let state = proxy
            .state(|s| {
                matches!(
                    s,
                    ConnectionState::Connected {
                        control_plane: Some(_)
                    }
                )
            })
            .await;
        let control_plane = Some("millrace-pilot".to_owned());
        assert_eq!(state, ConnectionState::Connected { control_plane });
    })
    .await;
}

#[tokio::test]
async fn rejected_resource_is_named_to_the_source_and_the_rest_is_kept() {
    in_time(async {
        let source = Source::new();
        source.change(|world| {
            world.set(&CDS, "a", 1);
            world.set(&CDS, "b", 1);
        });
        let server = Running::on_port(source.clone(), 0).await;
        let mut proxy = Proxy::new(&server.url());
        proxy.client.subscribe(&CDS, ["*"]);
        proxy.update().await.reject(vec![ResourceError {
            name: "b".into(),
            message: "unknown load balancer".into(),
        }]);
        let report = source.told("nacked").await;
        assert_eq!(
            report,
            format!("nacked {NODE} CDS of a,b: b: unknown load balancer")
        );
        let known = proxy.client.known(&CDS);
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].0, "a");
    })
    .await;
}

#[tokio::test]
async fn update_that_is_dropped_is_rejected() {
    in_time(async {
        let source = Source::new();
        source.set(&CDS, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let mut proxy = Proxy::new(&server.url());
        proxy.client.subscribe(&CDS, ["*"]);
        drop(proxy.update().await);
        let report = source.told("nacked").await;
        assert!(report.contains("unprocessed"), "{report}");
    })
    .await;
}

#[tokio::test]
async fn subscriptions_change_from_other_tasks() {
    in_time(async {
        let source = Source::new();
        source.set(&EDS, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let mut proxy = Proxy::new(&server.url());
        let handle = proxy.client.clone();
        tokio::spawn(async move { handle.subscribe(&EDS, ["a", "b"]) });

        let update = proxy.update().await;
        assert_eq!(names(&update), ["a"]);
        assert_eq!(update.removed, ["b"]);
        update.commit();
        source.set(&EDS, "b", 1);
        let update = proxy.update().await;
        assert_eq!(names(&update), ["b"]);
        update.commit();

        proxy.client.set_subscription(&EDS, ["b", "c"]);
        source.told(&format!("subscribed {NODE} EDS b,c")).await;
        let update = proxy.update().await;
        assert_eq!(update.removed, ["c"]);
        assert_eq!(proxy.client.known(&EDS).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn reconnect_resumes_and_brings_only_what_changed() {
    in_time(async {
        let source = Source::new();
        source.change(|world| {
            world.set(&CDS, "same", 1);
            world.set(&CDS, "changes", 1);
            world.set(&CDS, "goes", 1);
        });
        let server = Running::on_port(source.clone(), 0).await;
        let port = server.addr.unwrap().port();
        let mut proxy = Proxy::new(&server.url());
        proxy.client.subscribe(&CDS, ["*"]);
        let update = proxy.update().await;
        assert_eq!(names(&update), ["changes", "goes", "same"]);
        update.commit();

        server.stop().await;
        proxy
            .state(|state| matches!(state, ConnectionState::Disconnected { .. }))
            .await;
        source.change(|world| {
            world.set(&CDS, "changes", 2);
            world.remove(&CDS, "goes");
        });
        let _server = Running::on_port(source.clone(), port).await;
        let update = proxy.update().await;
        assert_eq!(names(&update), ["changes"]);
        update.commit();
        let update = proxy.update().await;
        assert_eq!(update.removed, ["goes"]);
    })
    .await;
}

#[tokio::test]
async fn saved_state_is_not_sent_again_after_a_restart() {
    in_time(async {
        let source = Source::new();
        source.set(&EDS, "a", 1);
        let server = Running::on_port(source.clone(), 0).await;
        let mut first = Proxy::new(&server.url());
        first.client.subscribe(&EDS, ["a"]);
        first.update().await.commit();
        let saved = first.client.known(&EDS);
        drop(first);

        let mut config = config(&server.url());
        config.known = saved
            .into_iter()
            .map(|(name, version)| KnownResource {
                type_url: EDS,
                name,
                version,
            })
            .collect();
        let mut second = Proxy::with(config);
        second.client.subscribe(&EDS, ["a"]);
        source.told(&format!("subscribed {NODE} EDS a")).await;
        source.set(&EDS, "a", 2);
        let update = second.update().await;
        let version = support::encode(&EDS, "a", 2).version().to_string();
        assert_eq!(update.resources[0].version, version);
    })
    .await;
}

#[tokio::test]
async fn unix_sockets_carry_ads() {
    in_time(async {
        let dir = std::env::temp_dir().join(format!("millrace-xds-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ads.sock");
        let source = Source::new();
        source.set(&CDS, "a", 1);
        let server = Running::on_socket(source, &path);
        let mut proxy = Proxy::new(&format!("unix://{}", path.display()));
        proxy.client.subscribe(&CDS, ["*"]);
        assert_eq!(names(&proxy.update().await), ["a"]);
        assert_eq!(server.connections.status()[0].peer, None);
        std::fs::remove_dir_all(&dir).unwrap();
    })
    .await;
}

#[tokio::test]
async fn draining_server_sends_its_clients_away() {
    in_time(async {
        let source = Source::new();
        let server = Running::on_port(source.clone(), 0).await;
        let proxy = Proxy::new(&server.url());
        proxy.client.subscribe(&CDS, ["*"]);
        source.told("connected").await;
        server.connections.drain();
        let state = proxy
            .state(|state| matches!(state, ConnectionState::Disconnected { .. }))
            .await;
        let ConnectionState::Disconnected { error, .. } = state else {
            unreachable!("waited for it");
        };
        assert!(error.contains("shutting down"), "{error}");
        source.told("disconnected").await;
        assert_eq!(server.connections.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn refusal_of_the_source_is_what_the_client_sees() {
    in_time(async {
        let server = Running::on_port(Source::new(), 0).await;
        let mut config = config(&server.url());
        config
            .metadata
            .push(("authorization".into(), "wrong".into()));
        let proxy = Proxy::with(config);
        proxy.client.subscribe(&CDS, ["*"]);
        let state = proxy
            .state(|state| matches!(state, ConnectionState::Disconnected { .. }))
            .await;
        let ConnectionState::Disconnected { error, .. } = state else {
            unreachable!("waited for it");
        };
        assert!(error.contains("wrong token"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn unreachable_server_is_tried_again() {
    in_time(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let proxy = Proxy::new(&url);
        proxy
            .state(|state| matches!(state, ConnectionState::Connecting { attempt: 3.. }))
            .await;
    })
    .await;
}

#[tokio::test]
async fn driver_ends_when_nobody_listens() {
    in_time(async {
        let server = Running::on_port(Source::new(), 0).await;
        let (client, events, driver) = client(config(&server.url())).unwrap();
        let task = tokio::spawn(driver.run());
        client.subscribe(&CDS, ["*"]);
        drop(events);
        task.await.unwrap();
        assert_eq!(*client.state().borrow(), ConnectionState::Closed);
    })
    .await;
}

#[test]
fn address_of_another_scheme_is_refused() {
    let error = client(config("https://pilot:15012")).unwrap_err();
    assert!(error.to_string().contains("https://pilot:15012"));
}

#[tokio::test]
async fn first_request_without_a_node_is_refused() {
    use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

    in_time(async {
        let server = Running::on_port(Source::new(), 0).await;
        let mut raw = AggregatedDiscoveryServiceClient::connect(server.url())
            .await
            .unwrap();
        let request = proto::DeltaDiscoveryRequest {
            type_url: CDS.as_str().into(),
            ..Default::default()
        };
        let stream = raw
            .delta_aggregated_resources(tokio_stream::iter([request]))
            .await;
        let mut stream = stream.unwrap().into_inner();
        let status = stream.message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    })
    .await;
}
