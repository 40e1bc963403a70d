//! DNS capture: connected and unconnected UDP, TCP, IPv4 and IPv6.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/bpf.rs"]
mod bpf;

use std::net::{SocketAddr, UdpSocket};

use bpf::{accept, addr, node, original_dst, udp};
use millrace_agent::bpf::{CapturePolicy, Counter, OnCaptureLoss};
use millrace_testkit::Pod;

const SERVER4: &str = "10.96.0.10:53";
const SERVER6: &str = "[fd00:96::10]:53";

/// The DNS listener hears the query and answers it.
fn answer(listener: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 64];
    let (length, client) = listener.recv_from(&mut buffer).expect("a query");
    assert_eq!(&buffer[..length], b"query");
    listener.send_to(b"answer", client).expect("answered");
    client
}

fn hear(client: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 64];
    let (length, source) = client.recv_from(&mut buffer).expect("an answer");
    assert_eq!(&buffer[..length], b"answer");
    source
}

#[test]
fn connected_socket_is_answered_by_the_server_that_it_asked() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    for (server, listener, any) in [
        (SERVER4, &app.dns4, "0.0.0.0:0"),
        (SERVER6, &app.dns6, "[::]:0"),
    ] {
        let client = udp_unbound(&app.pod, any);
        client.connect(addr(server)).expect("captured");
        client.send(b"query").expect("sent");
        let source = answer(listener);
        assert_eq!(hear(&client), addr(server));
        assert_eq!(client.peer_addr().expect("getpeername"), addr(server));
        assert_eq!(source, client.local_addr().expect("getsockname"));
    }
    assert_eq!(fixture.count(Counter::ConnectDnsRedirected), 2);
}

#[test]
fn connected_socket_has_the_pods_address() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client = udp_unbound(&app.pod, "0.0.0.0:0");
    client.connect(addr(SERVER4)).expect("captured");
    assert_eq!(client.local_addr().expect("getsockname").ip(), app.pod.ip());
}

#[test]
fn unconnected_socket_is_answered_by_the_server_that_it_asked() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    for (server, listener, any) in [
        (SERVER4, &app.dns4, "0.0.0.0:0"),
        (SERVER6, &app.dns6, "[::]:0"),
    ] {
        let client = udp(&app.pod, any);
        client.send_to(b"query", addr(server)).expect("captured");
        answer(listener);
        assert_eq!(hear(&client), addr(server));
    }
    assert_eq!(fixture.count(Counter::SendmsgDnsRedirected), 2);
    assert_eq!(fixture.count(Counter::RecvmsgRestored), 2);
}

#[test]
fn dual_stack_socket_asks_a_mapped_server() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let mapped = addr("[::ffff:10.96.0.10]:53");
    let client = udp(&app.pod, "[::]:0");
    client.send_to(b"query", mapped).expect("captured");
    answer(&app.dns4);
    assert_eq!(hear(&client), mapped);

    let connected = udp_unbound(&app.pod, "[::]:0");
    connected.connect(mapped).expect("captured");
    connected.send(b"query").expect("sent");
    answer(&app.dns4);
    assert_eq!(hear(&connected), mapped);
    assert_eq!(connected.peer_addr().expect("getpeername"), mapped);
}

#[test]
fn tcp_query_goes_to_the_dns_listener() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client = app.pod.connect(addr(SERVER4)).expect("captured");
    let (proxy, _) = accept(&app.dns_tcp);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVER4)));
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVER4));
}

#[test]
fn resolver_inside_the_pod_is_left_alone() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let resolver = udp(&app.pod, "127.0.0.53:53");
    let client = udp(&app.pod, "0.0.0.0:0");
    client
        .send_to(b"query", addr("127.0.0.53:53"))
        .expect("direct");
    answer(&resolver);
    assert_eq!(hear(&client), addr("127.0.0.53:53"));
    assert_eq!(fixture.count(Counter::SendmsgDnsRedirected), 0);
}

#[test]
fn other_datagrams_are_left_alone() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let server = fixture.pod("server");
    let peer = udp(&server, "0.0.0.0:5000");
    let client = udp(&app.pod, "0.0.0.0:0");
    client.send_to(b"query", server.at(5000)).expect("direct");
    assert_eq!(answer(&peer).ip(), app.pod.ip());
    assert_eq!(hear(&client), server.at(5000));
    // The query and, from a pod that is not captured, the answer.
    assert_eq!(fixture.count(Counter::SendmsgPassed), 2);
    assert_eq!(fixture.count(Counter::RecvmsgRestored), 0);
}

#[test]
fn dns_capture_can_be_off() {
    let mut fixture = node!();
    let policy = CapturePolicy {
        dns: false,
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    let server = fixture.pod("server");
    let resolver = udp(&server, "0.0.0.0:53");
    let client = udp(&app.pod, "0.0.0.0:0");
    client.send_to(b"query", server.at(53)).expect("direct");
    answer(&resolver);
    assert_eq!(hear(&client), server.at(53));
    let _captured = app.pod.connect(server.at(53)).expect("captured as any TCP");
    accept(&app.outbound4);
}

#[test]
fn excluded_port_wins_over_dns_and_dns_over_an_excluded_range() {
    let mut fixture = node!();
    let by_range = CapturePolicy {
        exclude_outbound_cidrs: vec!["10.96.0.0/12".parse().expect("CIDR")],
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", by_range);
    let client = udp(&app.pod, "0.0.0.0:0");
    client.send_to(b"query", addr(SERVER4)).expect("captured");
    answer(&app.dns4);

    let server = fixture.pod("server");
    let resolver = udp(&server, "0.0.0.0:53");
    let by_port = CapturePolicy {
        exclude_outbound_ports: vec![53],
        ..CapturePolicy::default()
    };
    fixture.enroll(&app, by_port);
    client.send_to(b"query", server.at(53)).expect("direct");
    answer(&resolver);
}

#[test]
fn missing_dns_listener_lets_open_pods_ask_the_server() {
    let mut fixture = node!();
    let policy = CapturePolicy {
        on_capture_loss: OnCaptureLoss::Open,
        ..CapturePolicy::default()
    };
    let mut app = fixture.captured("app", policy);
    app.dns4 = udp(&app.pod, "127.0.0.1:0");
    let server = fixture.pod("server");
    let resolver = udp(&server, "0.0.0.0:53");
    let client = udp(&app.pod, "0.0.0.0:0");
    client.send_to(b"query", server.at(53)).expect("direct");
    answer(&resolver);
    assert_eq!(hear(&client), server.at(53));
    assert_eq!(fixture.count(Counter::SendmsgDirect), 1);
}

#[test]
fn gone_proxy_stops_dns_of_closed_pods() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    fixture.bpf().set_proxy_gone(true).expect("told");
    let client = udp(&app.pod, "0.0.0.0:0");
    let error = client
        .send_to(b"query", addr(SERVER4))
        .expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let connected = udp_unbound(&app.pod, "0.0.0.0:0");
    assert!(connected.connect(addr(SERVER4)).is_err());
    assert_eq!(fixture.count(Counter::SendmsgRefused), 1);
}

/// As resolvers make them: not bound before they connect.
fn udp_unbound(pod: &Pod, family_of: &str) -> UdpSocket {
    let domain = if addr(family_of).is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let socket = UdpSocket::from(pod.socket(domain, libc::SOCK_DGRAM, 0).expect("a socket"));
    socket
        .set_read_timeout(Some(bpf::PATIENCE))
        .expect("SO_RCVTIMEO");
    socket
}
