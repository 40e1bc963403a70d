//! Outbound capture: connect, getpeername, sockops and getsockopt together, as an application and a proxy
//! see them.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/bpf.rs"]
mod bpf;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};

use bpf::{
    accept, addr, connect, connect_marked, has_connection, listen, node, original_dst,
    passes_bytes, tcp_socket,
};
use millrace_agent::bpf::{CapturePolicy, Counter, OnCaptureLoss};
use millrace_testkit::eventually;
use nix::sys::socket::SockaddrStorage;

const SERVICE4: &str = "10.96.0.10:9080";
const SERVICE6: &str = "[fd00:96::10]:9080";

#[test]
fn ipv4_connection_arrives_with_its_original_destination() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let mut client = app.pod.connect(addr(SERVICE4)).expect("captured");
    let (mut proxy, peer) = accept(&app.outbound4);

    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE4)));
    assert!(original_dst(&proxy, libc::SOL_IPV6).is_err());
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVICE4));
    assert_eq!(peer.ip(), app.pod.ip(), "the pod's address is the source");
    assert_eq!(client.local_addr().expect("getsockname"), peer);
    assert_eq!(
        proxy.peer_addr().expect("getpeername"),
        peer,
        "the proxy's own view is untouched"
    );
    passes_bytes(&mut client, &mut proxy);
    passes_bytes(&mut proxy, &mut client);
    assert_eq!(fixture.count(Counter::ConnectRedirected), 1);
    assert_eq!(fixture.count(Counter::SockopsPublished), 1);
    assert_eq!(fixture.count(Counter::SockopsAdopted), 1);
    assert_eq!(fixture.count(Counter::GetsockoptAnswered), 1);
    assert_eq!(fixture.count(Counter::GetsockoptMissed), 1);
    assert_eq!(fixture.count(Counter::GetpeernameRestored), 1);
    assert_eq!(fixture.count(Counter::ConnectSourceNotBound), 0);
}

#[test]
fn ipv6_connection_arrives_with_its_original_destination() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client = app.pod.connect(addr(SERVICE6)).expect("captured");
    let (proxy, peer) = accept(&app.outbound6);

    assert_eq!(original_dst(&proxy, libc::SOL_IPV6), Ok(addr(SERVICE6)));
    assert!(original_dst(&proxy, libc::SOL_IP).is_err());
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVICE6));
    assert_eq!(peer.ip(), app.pod.ip6());
}

#[test]
fn v4_mapped_destination_of_a_dual_stack_socket_is_ipv4_to_the_proxy() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let mapped = addr("[::ffff:10.96.0.10]:9080");
    let client = connect(tcp_socket(&app.pod, mapped), mapped).expect("captured");
    let (proxy, peer) = accept(&app.outbound4);

    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE4)));
    assert_eq!(client.peer_addr().expect("getpeername"), mapped);
    assert_eq!(peer.ip(), app.pod.ip());
}

#[test]
fn original_destination_is_known_after_the_client_is_gone() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let mut client = app.pod.connect(addr(SERVICE4)).expect("captured");
    client.write_all(b"last words").expect("write");
    drop(client);
    let (mut proxy, _) = accept(&app.outbound4);
    let mut heard = Vec::new();
    proxy.read_to_end(&mut heard).expect("read");

    assert_eq!(heard, b"last words");
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE4)));
}

#[test]
fn many_connections_at_once_keep_their_own_destinations() {
    let mut fixture = node!();
    let pods = [
        fixture.captured("one", CapturePolicy::default()),
        fixture.captured("two", CapturePolicy::default()),
    ];
    for port in 1..200_u16 {
        for (index, app) in (0..).zip(&pods) {
            let to = SocketAddr::from((Ipv4Addr::new(10, 96, 1, index), 1000 + port));
            let client = app.pod.connect(to).expect("captured");
            let (proxy, peer) = accept(&app.outbound4);
            assert_eq!(peer, client.local_addr().expect("getsockname"));
            assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(to));
        }
    }
}

#[test]
fn equal_tuples_of_two_pods_are_kept_apart() {
    let mut fixture = node!();
    let pods = [
        fixture.captured("one", CapturePolicy::default()),
        fixture.captured("two", CapturePolicy::default()),
    ];
    let source = addr("127.0.0.1:40000");
    let asked = [addr("10.96.0.1:80"), addr("10.96.0.2:80")];
    let clients: Vec<TcpStream> = (pods.iter().zip(asked))
        .map(|(app, to)| {
            let fd = tcp_socket(&app.pod, to);
            bind(&fd, source);
            connect(fd, to).expect("captured")
        })
        .collect();
    for (app, to) in pods.iter().zip(asked) {
        let (proxy, peer) = accept(&app.outbound4);
        assert_eq!(peer, source);
        assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(to));
    }
    drop(clients);
}

#[test]
fn proxy_sockets_are_left_alone() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    for mark in [0x539, 0x1_0539, 0xabcd_0539] {
        let client = connect_marked(&app.pod, server.at(9080), mark).expect("direct");
        let (_, peer) = accept(&listener);
        assert_eq!(peer, client.local_addr().expect("getsockname"));
    }
    assert_eq!(fixture.count(Counter::ConnectGuardMark), 3);
    assert!(!has_connection(&app.outbound4));
}

#[test]
fn loopback_and_own_addresses_are_not_captured() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let local = listen(&app.pod, "[::]:9080");
    let (v4, v6) = (app.pod.ip(), app.pod.ip6());
    for to in [
        addr("127.0.0.1:9080"),
        addr("127.1.2.3:9080"),
        addr("[::1]:9080"),
        addr("0.0.0.0:9080"),
        SocketAddr::new(v4, 9080),
        SocketAddr::new(v6, 9080),
    ] {
        app.pod
            .connect(to)
            .unwrap_or_else(|error| panic!("{to}: {error:#}"));
        accept(&local);
    }
    assert_eq!(fixture.count(Counter::ConnectLoopback), 4);
    assert_eq!(fixture.count(Counter::ConnectOwnAddress), 2);
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
    assert_eq!(fixture.count(Counter::LookupLocal), 6);
}

#[test]
fn pods_that_are_not_enrolled_are_not_touched() {
    let mut fixture = node!();
    let (other, server) = (fixture.pod("other"), fixture.pod("server"));
    let listener = listen(&server, "0.0.0.0:9080");
    let client = other.connect(server.at(9080)).expect("direct");
    accept(&listener);
    assert_eq!(client.peer_addr().expect("getpeername"), server.at(9080));
    assert!(original_dst(&client, libc::SOL_IP).is_err());
    assert_eq!(fixture.count(Counter::ConnectNotEnrolled), 1);
    // The kernel asks for the peer of an accepted socket, too.
    assert_eq!(fixture.count(Counter::GetpeernamePassed), 2);
    assert!(fixture.bpf().enrolled().expect("listed").is_empty());
}

#[test]
fn excluded_ports_and_ranges_go_direct() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let policy = CapturePolicy {
        exclude_outbound_ports: vec![9000],
        exclude_outbound_cidrs: vec![format!("{}/32", server.ip()).parse().expect("CIDR")],
        include_outbound_ports: vec![9001],
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    let elsewhere = fixture.pod("elsewhere");
    let (by_port, by_range) = (
        listen(&elsewhere, "0.0.0.0:9000"),
        listen(&server, "0.0.0.0:9080"),
    );

    app.pod.connect(elsewhere.at(9000)).expect("direct");
    accept(&by_port);
    app.pod.connect(server.at(9080)).expect("direct");
    accept(&by_range);
    app.pod
        .connect(server.at(9001))
        .expect("captured: an included port wins over a range");
    accept(&app.outbound4);
    assert_eq!(fixture.count(Counter::ConnectExcludedPort), 1);
    assert_eq!(fixture.count(Counter::ConnectExcludedCidr), 1);
}

#[test]
fn only_included_ranges_are_captured() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    let policy = CapturePolicy {
        include_outbound_cidrs: Some(vec!["10.96.0.0/12".parse().expect("CIDR")]),
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);

    app.pod.connect(addr(SERVICE4)).expect("captured");
    accept(&app.outbound4);
    app.pod.connect(server.at(9080)).expect("direct");
    accept(&listener);
    assert_eq!(fixture.count(Counter::ConnectNotIncluded), 1);
}

#[test]
fn changed_rules_replace_the_old_ones() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9000");
    let excluding = |port| CapturePolicy {
        exclude_outbound_ports: vec![port],
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", excluding(9000));
    app.pod.connect(server.at(9000)).expect("direct");
    accept(&listener);
    fixture.enroll(&app, excluding(9001));

    app.pod.connect(server.at(9000)).expect("captured");
    accept(&app.outbound4);
}

#[test]
fn open_pod_without_a_listener_goes_direct() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "[::]:9080");
    let policy = CapturePolicy {
        on_capture_loss: OnCaptureLoss::Open,
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    app.pod.connect(server.at(9080)).expect("captured");
    accept(&app.outbound4);
    app.stop_listening();

    app.pod.connect(server.at(9080)).expect("direct");
    accept(&listener);
    app.pod
        .connect(SocketAddr::new(server.ip6(), 9080))
        .expect("direct");
    accept(&listener);
    assert_eq!(fixture.count(Counter::ConnectListenerMissing), 2);
}

#[test]
fn closed_pod_without_a_listener_gets_an_error() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    let app = fixture.captured("app", CapturePolicy::default());
    app.stop_listening();

    let error = refusal(&app.pod, server.at(9080));
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!has_connection(&listener));
}

#[test]
fn gone_proxy_stops_closed_pods_and_frees_open_ones() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    let closed = fixture.captured("closed", CapturePolicy::default());
    let open = fixture.captured(
        "open",
        CapturePolicy {
            on_capture_loss: OnCaptureLoss::Open,
            ..CapturePolicy::default()
        },
    );
    fixture.bpf().set_proxy_gone(true).expect("told");

    assert_eq!(
        refusal(&closed.pod, server.at(9080)).raw_os_error(),
        Some(libc::EPERM)
    );
    open.pod.connect(server.at(9080)).expect("direct");
    accept(&listener);
    fixture.bpf().set_proxy_gone(false).expect("told");
    closed.pod.connect(server.at(9080)).expect("captured");
    accept(&closed.outbound4);
    assert_eq!(fixture.count(Counter::ConnectProxyGoneRefused), 1);
    assert_eq!(fixture.count(Counter::ConnectProxyGoneDirect), 1);
}

#[test]
fn source_that_the_application_bound_is_kept() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let to = addr(SERVICE4);
    let fd = tcp_socket(&app.pod, to);
    let source = SocketAddr::new(app.pod.ip(), 33333);
    bind(&fd, source);
    let _client = connect(fd, to).expect("captured");
    assert_eq!(accept(&app.outbound4).1, source);
}

#[test]
fn mptcp_sockets_are_captured() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let Ok(fd) = app
        .pod
        .socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    else {
        return millrace_testkit::skip::skip("the kernel has no MPTCP");
    };
    let mut client = connect(fd, addr(SERVICE4)).expect("captured");
    let (mut proxy, _) = accept(&app.outbound4);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE4)));
    passes_bytes(&mut client, &mut proxy);
}

#[test]
fn mptcp_listeners_are_served_as_before() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let Ok(fd) = app
        .pod
        .socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    else {
        return millrace_testkit::skip::skip("the kernel has no MPTCP");
    };
    bind(&fd, addr("0.0.0.0:9080"));
    nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::MAXALLOWABLE).expect("listen");
    let application = std::net::TcpListener::from(fd);
    for host in [&app.pod as &millrace_testkit::Host, &fixture.node] {
        let mut client = host.connect(app.pod.at(9080)).expect("direct");
        let (mut accepted, _) = accept(&application);
        passes_bytes(&mut client, &mut accepted);
    }
}

#[test]
fn withdrawn_pod_goes_direct_and_its_connections_live_on() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    let app = fixture.captured("app", CapturePolicy::default());
    let mut client = app.pod.connect(addr(SERVICE4)).expect("captured");
    let (mut proxy, _) = accept(&app.outbound4);
    fixture.bpf().withdraw(app.cookie).expect("withdrawn");

    app.pod.connect(server.at(9080)).expect("direct");
    accept(&listener);
    passes_bytes(&mut client, &mut proxy);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE4)));
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVICE4));
    assert!(fixture.bpf().enrolled().expect("listed").is_empty());
    fixture.bpf().withdraw(app.cookie).expect("twice is fine");
}

#[test]
fn fast_open_data_finds_its_original_destination() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    app.pod
        .run(|| Ok(std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1027")?))
        .expect("fast open for servers and clients, without cookies");
    let to = addr(SERVICE4);
    let fd = tcp_socket(&app.pod, to);
    // TCP_FASTOPEN_CONNECT: connect() returns at once, the first write carries the SYN.
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)
        .expect("TCP_FASTOPEN_CONNECT");
    let mut client: TcpStream = connect(fd, to).expect("captured");
    client.write_all(b"early").expect("write");
    eventually(bpf::PATIENCE, "the connection", || {
        has_connection(&app.outbound4)
    });
    let (mut proxy, _) = accept(&app.outbound4);
    let mut heard = [0; 5];
    proxy.read_exact(&mut heard).expect("read");
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(to));
}

fn refusal(pod: &millrace_testkit::Pod, to: SocketAddr) -> std::io::Error {
    connect(tcp_socket(pod, to), to).expect_err("refused")
}

fn bind(fd: &OwnedFd, source: SocketAddr) {
    let address = SockaddrStorage::from(source);
    nix::sys::socket::bind(fd.as_raw_fd(), &address).expect("bind");
}
