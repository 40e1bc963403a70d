//! The broker in real namespaces: sockets, delivery with the client's address, backlogs that
//! outlive proxies and brokers, and what happens when no proxy is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/broker.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use millrace_agent::broker::netns::cookie_of;
use millrace_agent::broker_client::BrokerClient;
use millrace_runtime::handoff::{
    AgentRequest, Family, HEARTBEAT_DEADLINE, ListenerRole, ProxyRequest, SocketKind, ToAgent,
    ToProxy,
};
use socket2::{SockRef, Socket};
use std::os::fd::AsFd;
use support::{PATIENCE, accept_any, adopt, canonical, fixture, listeners};

/// Connects a socket of the pool from `client`, as the proxy does: no capability is needed.
fn deliver(socket: OwnedFd, client: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::from(socket);
    socket.set_nonblocking(false)?;
    socket.bind(&client.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
    Ok(socket.into())
}

fn echo_once(listener: &TcpListener) -> SocketAddr {
    let (mut stream, peer) = listener.accept().expect("accepted");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).expect("read");
    stream.write_all(&bytes).expect("written");
    canonical(peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_gets_a_socket_of_every_role() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 3).await;
    let (adopted, fds) = adopt(&agent, fixture.spec()).await;
    assert!(adopted.families.v4 && adopted.families.v6);
    assert_eq!(adopted.inbound.len(), 3);
    assert_eq!(fds.len(), 4);
    assert_eq!(cookie_of(fds[1].as_fd()).unwrap(), adopted.netns_cookie);

    let (pod, held) = proxy.pod().await;
    assert_eq!(pod.qualified_name(), "default/app");
    assert_eq!(held.len(), 4 * 3);
    for (label, fd) in &held {
        let socket = SockRef::from(fd);
        assert_eq!(socket.mark().unwrap(), 0x539);
        assert!(socket.nonblocking().unwrap());
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(address.port(), label.role.port());
        assert_eq!(cookie_of(fd.as_fd()).unwrap(), adopted.netns_cookie);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_connections_carry_the_clients_address() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    let cases: [(Family, IpAddr, &str); 3] = [
        (Family::V4, fixture.pod.ip(), "10.244.9.9:40000"),
        (Family::V6, fixture.pod.ip6(), "[fd00:244:9::9]:40001"),
        (Family::V4, fixture.pod.ip(), "203.0.113.7:40002"),
    ];
    for (family, pod, client) in cases {
        let client: SocketAddr = client.parse().unwrap();
        let app = fixture
            .pod
            .listen(SocketAddr::new(pod, 0))
            .expect("listening");
        let to = app.local_addr().unwrap();
        let server = std::thread::spawn(move || echo_once(&app));
        let socket = proxy
            .want(&fixture.uid(), SocketKind::Delivery, family)
            .await;
        let mut stream = deliver(socket, client, to).expect("delivered");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("answer");
        assert_eq!(server.join().unwrap(), client);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_refuses_a_delivery_at_once() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    for (family, pod, client) in [
        (Family::V4, fixture.pod.ip(), "10.244.9.9:40000"),
        (Family::V6, fixture.pod.ip6(), "[fd00:244:9::9]:40001"),
    ] {
        let socket = proxy
            .want(&fixture.uid(), SocketKind::Delivery, family)
            .await;
        // Without an answer the kind would be another.
        let error = deliver(socket, client.parse().unwrap(), SocketAddr::new(pod, 9))
            .expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// Why the proxy delivers from ports that clients do not take: in the pod's namespace a delivery has the
/// client's address, and with the client's port too it would be the client's own connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_from_the_port_of_the_clients_own_connection_gets_nowhere() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    let other = fixture.node.pod("client").expect("pod");
    let app = fixture.pod.listen(fixture.pod.at(0)).expect("listening");
    let to = app.local_addr().unwrap();
    let uid = fixture.uid();
    let socket = || proxy.want(&uid, SocketKind::Delivery, Family::V4);

    let mut direct = other.connect(to).expect("connected");
    let own = direct.local_addr().unwrap();
    let (mut served, peer) = app.accept().expect("accepted");
    assert_eq!(canonical(peer), own);
    deliver(socket().await, own, to).expect_err("the client has that connection");

    // Above the range that clients take theirs from both live side by side.
    let apart = SocketAddr::new(own.ip(), 61_000);
    let mut delivered = deliver(socket().await, apart, to).expect("delivered");
    let (mut second, peer) = app.accept().expect("accepted");
    assert_eq!(canonical(peer), apart);
    for (from, at) in [(&mut delivered, &mut second), (&mut direct, &mut served)] {
        at.set_read_timeout(Some(PATIENCE)).unwrap();
        from.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        at.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"ping");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_waits_while_the_proxy_restarts() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let first = fixture.proxy(0, 2).await;
    adopt(&agent, fixture.spec()).await;
    let (_, held) = first.pod().await;
    drop(held);
    drop(first);

    let at = SocketAddr::new(fixture.pod.ip(), ListenerRole::Outbound.port());
    let mut waiting = fixture.pod.connect(at).expect("the backlog takes it");
    waiting.write_all(b"wait").unwrap();

    let second = fixture.proxy(1, 2).await;
    let (_, held) = second.pod().await;
    let (mut accepted, _) = accept_any(&listeners(&held, ListenerRole::Outbound));
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn backlogs_survive_a_new_broker() {
    let fixture = fixture!();
    let broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 2).await;
    let (before, _) = adopt(&agent, fixture.spec()).await;
    let (_, held) = proxy.pod().await;
    drop(agent);
    broker.stop().await;

    let at = SocketAddr::new(fixture.pod.ip(), ListenerRole::Inbound.port());
    let _waiting = fixture
        .pod
        .connect(at)
        .expect("the proxy's sockets listen on");

    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    // The agent is first: its adoption waits for the proxy.
    let (adopted, ()) = tokio::join!(adopt(&agent, fixture.spec()), async {
        let path = fixture.socket("proxy.sock");
        let again = support::Proxy::greet(&path, 0, 2).await;
        again.give_back(&fixture.uid(), &held).await;
        again.say(ProxyRequest::Ready).await;
        let (_, after) = again.pod().await;
        let cookies = |held: &[(_, OwnedFd)]| {
            let mut cookies: Vec<u64> = held
                .iter()
                .map(|(_, fd)| rustix::net::sockopt::socket_cookie(fd).unwrap())
                .collect();
            cookies.sort_unstable();
            cookies
        };
        assert_eq!(cookies(&held), cookies(&after));
        accept_any(&listeners(&after, ListenerRole::Inbound));
    });
    assert_eq!(adopted.0.netns_cookie, before.netns_cookie);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_socket_is_not_taken_back() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    let (_, held) = proxy.pod().await;
    let label = held[0].0;
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = fixture.socket("proxy.sock");
    let liar = support::Proxy::greet(&path, 1, 1).await;
    liar.give_back(&fixture.uid(), &[(label, own.into())]).await;
    liar.say(ProxyRequest::Ready).await;
    let (_, after) = liar.pod().await;
    assert_eq!(after.len(), held.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proxy_nothing_listens_after_the_deadline() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let begun = Instant::now();
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    let (_, held) = proxy.pod().await;
    // The proxy hangs: it holds its sockets and says nothing.
    let at = SocketAddr::new(fixture.pod.ip(), ListenerRole::Outbound.port());
    millrace_testkit::eventually(PATIENCE, "connections are refused", || {
        fixture.pod.connect(at).is_err()
    });
    assert!(begun.elapsed() >= HEARTBEAT_DEADLINE, "not at once");
    drop(held);
    let next = fixture.proxy(1, 1).await;
    let (_, held) = next.pod().await;
    let _waiting = fixture.pod.connect(at).expect("new sockets listen");
    accept_any(&listeners(&held, ListenerRole::Outbound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_pod_keeps_nothing() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let proxy = fixture.proxy(0, 1).await;
    adopt(&agent, fixture.spec()).await;
    let uid = fixture.uid();
    agent
        .call(AgentRequest::Release { uid: uid.clone() })
        .await
        .expect("released");
    proxy
        .until(|message| matches!(message, ToProxy::PodDown { uid: gone } if *gone == uid))
        .await;
    let rules = fixture
        .pod
        .stdout(ip(&["rule"]))
        .expect("rules")
        .contains("0x10000");
    assert!(!rules);
}

#[tokio::test(flavor = "multi_thread")]
async fn adoption_is_idempotent_and_refuses_the_nodes_own_namespace() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let agent = fixture.agent().await;
    let _proxy = fixture.proxy(0, 2).await;
    let (first, _) = adopt(&agent, fixture.spec()).await;
    let (second, _) = adopt(&agent, fixture.spec()).await;
    assert_eq!(first, second);

    let mut own = fixture.spec();
    own.uid = "host".into();
    own.netns = "/proc/self/ns/net".into();
    let refused = agent.call(AgentRequest::Adopt { pod: Box::new(own) }).await;
    let message = millrace_agent::broker::chain(&refused.expect_err("refused"));
    assert!(
        message.contains("node's own network namespace"),
        "{message}"
    );
}

/// It parses what strangers send, so it may be anybody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_repeats_itself_makes_no_work_for_broker_and_agent() {
    let fixture = fixture!();
    let _broker = fixture.broker();
    let _early = fixture.agent().await;
    let (agent, mut events) = BrokerClient::connect(&fixture.socket("broker.sock"))
        .await
        .expect("connected");
    let proxy = fixture.proxy(0, 1).await;
    for _ in 0..100 {
        proxy.say(ProxyRequest::Draining).await;
    }
    proxy
        .say(ProxyRequest::Want {
            uid: "nobody".into(),
            kind: SocketKind::Outbound,
            family: Family::V4,
            count: 1,
        })
        .await;
    proxy
        .until(|message| matches!(message, ToProxy::WantFailed { .. }))
        .await;
    // The answer comes after all that the agent was told before.
    let list = AgentRequest::List { after: None };
    agent.call(list).await.expect("listed");
    let mut told = 0;
    while let Ok(event) = events.try_recv() {
        if let ToAgent::Proxies { proxies, .. } = event.message {
            told += u32::from(proxies.iter().any(|proxy| proxy.draining));
        }
    }
    assert!((1..=2).contains(&told), "told {told} times");

    proxy.say(ProxyRequest::Ready).await;
    proxy.ended().await;
}

fn ip(arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new("ip");
    command.args(arguments);
    command
}
