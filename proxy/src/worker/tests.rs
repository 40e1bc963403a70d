//! A connection's whole way through a worker's thread, and the end of a worker.

use std::time::Duration;

use millrace_runtime::drain::Outcome;
use millrace_runtime::handoff::{CaptureMode, Families, Family, PodSpec, SocketKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::fixture::{Fixture, cluster, listener, tcp_chain};
use crate::pods::LocalPod;
use crate::snapshot::{Naming, Resources};

/// Two workers that serve one socket for a listener whose chain goes to `server`.
struct Proxy {
    fixture: Fixture,
    workers: Workers,
    threads: Threads,
    trigger: drain::Trigger,
    socket: std::net::TcpListener,
    server: TcpListener,
    stop: CancellationToken,
}

async fn proxy(origin: Origin) -> Proxy {
    let fixture = Fixture::new();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (trigger, watcher) = drain::channel();
    let (workers, threads) = Workers::start(2, &fixture.parts, &watcher).unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stop = CancellationToken::new();
    let copy = socket.try_clone().unwrap().into();
    workers.serve(1, copy, origin, stop.clone());
    Proxy {
        fixture,
        workers,
        threads,
        trigger,
        socket,
        server,
        stop,
    }
}

impl Proxy {
    fn publish(&self) {
        let to = self.server.local_addr().unwrap();
        self.fixture.publish(
            [listener("l", [tcp_chain("tcp", "c")])],
            [cluster("c", &[to])],
        );
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.socket.local_addr().unwrap())
            .await
            .unwrap()
    }

    /// A connection that has reached the server, with its server end.
    async fn established(&self) -> (TcpStream, TcpStream) {
        let client = self.connect().await;
        let (server, _) = self.server.accept().await.unwrap();
        (client, server)
    }
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
}

#[tokio::test]
async fn a_drain_waits_for_connections_and_leaves_new_ones_in_the_backlog() {
    let proxy = proxy(Origin::Listener("l".into())).await;
    proxy.publish();
    let (mut client, mut server) = proxy.established().await;
    let trigger = proxy.trigger;
    let drained = tokio::spawn(trigger.drain(Duration::from_mins(1)));
    proxy_stops_accepting(&proxy.socket, &proxy.server).await;
    exchange(&mut client, &mut server).await;
    drop((client, server));
    assert_eq!(drained.await.unwrap(), Outcome::Finished);
    proxy.threads.join();
    drop(proxy.workers);
    proxy.stop.cancel();
}

/// Who connects now is accepted by nobody but this test, which holds the socket too.
async fn proxy_stops_accepting(socket: &std::net::TcpListener, server: &TcpListener) {
    socket.set_nonblocking(true).unwrap();
    loop {
        let _client = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let socket = TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
        tokio::select! {
            accepted = socket.accept() => {
                accepted.unwrap();
                return;
            }
            proxied = server.accept() => drop(proxied.unwrap()),
        }
    }
}

#[tokio::test]
async fn a_worker_that_can_get_no_more_sockets_serves_those_it_has() {
    let proxy = proxy(Origin::Listener("l".into())).await;
    proxy.publish();
    let Proxy {
        workers,
        threads,
        trigger,
        socket,
        server,
        ..
    } = proxy;
    // As a sidecar does once its capture ports are bound.
    drop(workers);
    for _ in 0..2 {
        let mut client = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let (mut server, _) = server.accept().await.unwrap();
        exchange(&mut client, &mut server).await;
    }
    let outcome = trigger.drain(Duration::from_mins(1)).await;
    assert_eq!(outcome, Outcome::Finished);
    threads.join();
}

#[tokio::test]
async fn a_connection_that_outlives_the_drain_is_closed() {
    let proxy = proxy(Origin::Listener("l".into())).await;
    proxy.publish();
    let (mut client, _server) = proxy.established().await;
    let outcome = proxy.trigger.drain(Duration::from_millis(10)).await;
    assert_eq!(outcome, Outcome::Forced);
    proxy.threads.join();
    assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_connection_waits_for_the_configuration_of_its_listener() {
    let proxy = proxy(Origin::Listener("l".into())).await;
    let mut client = proxy.connect().await;
    client.write_all(b"early").await.unwrap();
    proxy.fixture.publish([], []);
    proxy.publish();
    let (mut server, _) = proxy.server.accept().await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"early");
}

#[tokio::test]
async fn a_pods_inbound_connection_is_delivered_from_the_clients_address() {
    let proxy = proxy(Origin::Inbound(Some("u-1".into()))).await;
    let (wants, mut asked) = mpsc::unbounded_channel();
    let spec = PodSpec {
        uid: "u-1".into(),
        name: "p".into(),
        namespace: "default".into(),
        ips: vec!["10.1.0.7".parse().unwrap()],
        ..PodSpec::default()
    };
    let pod = LocalPod::new(spec, Families::default(), CaptureMode::Ebpf, &wants);
    proxy.fixture.parts.pods.insert(&Arc::new(pod));
    publish_node(&proxy);

    let client = tokio::net::TcpSocket::new_v4().unwrap();
    client.bind("127.0.0.77:0".parse().unwrap()).unwrap();
    let mut client = client
        .connect(proxy.socket.local_addr().unwrap())
        .await
        .unwrap();
    let want = asked.recv().await.unwrap();
    assert_eq!((want.kind, want.family), (SocketKind::Delivery, Family::V4));
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let pod = proxy.fixture.parts.pods.by_uid(&want.uid).unwrap();
    let sockets = (0..want.count).map(|_| socket().unwrap().into());
    pod.pool(want.kind, want.family).fill(sockets.collect());

    let (mut server, peer) = proxy.server.accept().await.unwrap();
    assert_eq!(peer.ip(), client.local_addr().unwrap().ip());
    exchange(&mut client, &mut server).await;
}

/// The pod's listener, under the name that a node's proxy knows it by.
fn publish_node(proxy: &Proxy) {
    let listener = listener("pod/default/p", [tcp_chain("tcp", "c")]);
    let cluster = cluster("c", &[proxy.server.local_addr().unwrap()]);
    let mut resources = Resources {
        naming: Naming::Node,
        ..Resources::default()
    };
    resources
        .listeners
        .insert(listener.name.clone(), Arc::new(listener));
    resources
        .clusters
        .insert(cluster.name.clone(), Arc::new(cluster));
    let parts = &proxy.fixture.parts;
    parts.store.publish(&resources, &proxy.fixture.manager);
}
