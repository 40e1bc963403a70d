//! Inbound capture: `sk_lookup` in pods' namespaces, the host's own connections, and delivery by the proxy.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/bpf.rs"]
mod bpf;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;

use bpf::{
    Captured, accept, connect, has_connection, listen, listen_v6only, node, original_dst,
    passes_bytes,
};
use millrace_agent::bpf::{CapturePolicy, Counter, OnCaptureLoss};
use millrace_testkit::Pod;
use nix::sys::socket::{self, SockaddrStorage, setsockopt, sockopt};

#[test]
fn inbound_ipv4_is_steered_with_its_local_address_kept() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client_pod = fixture.pod("client");
    let application = listen(&app.pod, "0.0.0.0:9080");
    let mut client = client_pod.connect(app.pod.at(9080)).expect("steered");
    let (mut proxy, peer) = accept(&app.inbound[0]);

    assert_eq!(peer.ip(), client_pod.ip());
    assert_eq!(proxy.local_addr().expect("getsockname"), app.pod.at(9080));
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(app.pod.at(9080)));
    assert!(!has_connection(&application));
    passes_bytes(&mut client, &mut proxy);
    passes_bytes(&mut proxy, &mut client);
    assert_eq!(fixture.count(Counter::LookupSteered), 1);
    assert_eq!(fixture.count(Counter::GetsockoptLocalAddress), 1);
}

#[test]
fn inbound_ipv6_is_steered_with_its_local_address_kept() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client_pod = fixture.pod("client");
    let to = SocketAddr::new(app.pod.ip6(), 9080);
    let _client = client_pod.connect(to).expect("steered");
    let (proxy, peer) = accept(&app.inbound[1]);

    assert_eq!(peer.ip(), client_pod.ip6());
    assert_eq!(proxy.local_addr().expect("getsockname"), to);
    assert_eq!(original_dst(&proxy, libc::SOL_IPV6), Ok(to));
}

#[test]
fn one_dual_stack_listener_takes_both_families() {
    let mut fixture = node!();
    let mut app = Captured::new(fixture.pod("app"));
    app.inbound = [listen(&app.pod, "[::]:0"), listen_v6only(&app.pod, 0)];
    let dual_stack = &app.inbound[0];
    fixture.enroll(&app, CapturePolicy::default());
    let client_pod = fixture.pod("client");

    let _v4 = client_pod.connect(app.pod.at(9080)).expect("steered");
    let (proxy, _) = accept(dual_stack);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(app.pod.at(9080)));
    let _v6 = client_pod
        .connect(SocketAddr::new(app.pod.ip6(), 9080))
        .expect("steered");
    accept(dual_stack);
}

#[test]
fn next_listener_takes_over_when_the_first_is_closed() {
    let mut fixture = node!();
    let mut app = Captured::new(fixture.pod("app"));
    // Two listeners of IPv4, as two workers have them.
    app.inbound = [listen(&app.pod, "0.0.0.0:0"), listen(&app.pod, "0.0.0.0:0")];
    fixture.enroll(&app, CapturePolicy::default());
    let client_pod = fixture.pod("client");
    let _first = client_pod.connect(app.pod.at(9080)).expect("steered");
    accept(&app.inbound[0]);
    let [closed, second] = app.inbound;
    // A process that another test is just starting may hold a copy of the descriptor, so closing
    // this one need not end the listener; shutdown() does.
    socket::shutdown(closed.as_raw_fd(), socket::Shutdown::Both).expect("shutdown");
    drop(closed);

    let _second = client_pod.connect(app.pod.at(9080)).expect("steered");
    accept(&second);
}

#[test]
fn ports_of_millrace_and_excluded_ports_reach_their_own_listeners() {
    let mut fixture = node!();
    let policy = CapturePolicy {
        exclude_inbound_ports: vec![9000],
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    let client_pod = fixture.pod("client");
    for port in [15008, 15020, 15021, 15090, 9000] {
        let listener = listen(&app.pod, &format!("0.0.0.0:{port}"));
        let _client = client_pod.connect(app.pod.at(port)).expect("direct");
        accept(&listener);
    }
    let _client = client_pod.connect(app.pod.at(15006)).expect("direct");
    accept(&app.inbound[0]);
    assert_eq!(fixture.count(Counter::LookupReservedPort), 5);
    assert_eq!(fixture.count(Counter::LookupExcludedPort), 1);
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
}

#[test]
fn only_included_ports_are_steered() {
    let mut fixture = node!();
    let policy = CapturePolicy {
        include_inbound_ports: Some(vec![9080]),
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    let other = listen(&app.pod, "0.0.0.0:9081");
    let client_pod = fixture.pod("client");
    let _steered = client_pod.connect(app.pod.at(9080)).expect("steered");
    accept(&app.inbound[0]);
    let _direct = client_pod.connect(app.pod.at(9081)).expect("direct");
    accept(&other);
    assert_eq!(fixture.count(Counter::LookupNotIncluded), 1);
}

#[test]
fn connections_of_the_host_reach_the_application() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let application = listen(&app.pod, "[::]:9080");
    for ip in [app.pod.ip(), app.pod.ip6()] {
        let mut probe = fixture
            .node
            .connect(SocketAddr::new(ip, 9080))
            .expect("direct");
        let (mut accepted, _) = accept(&application);
        passes_bytes(&mut probe, &mut accepted);
    }
    assert_eq!(fixture.count(Counter::LookupHostOriginated), 2);
    assert_eq!(fixture.count(Counter::SockopsAnnounced), 2);
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
}

#[test]
fn probe_of_a_port_that_nobody_has_is_refused() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    assert!(fixture.node.connect(app.pod.at(9080)).is_err());
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
}

#[test]
fn source_address_of_the_host_alone_proves_nothing() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let application = listen(&app.pod, "0.0.0.0:9080");
    let forger = fixture.pod("forger");
    // The node's bridge address, put on the forger; whoever answers ARP first, the SYN asks for a socket.
    let gateway = gateway_of(&app.pod);
    ip(&forger, &format!("address add {gateway}/32 dev lo"));
    let fd = bpf::tcp_socket(&forger, app.pod.at(9080));
    socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(gateway, 0)),
    )
    .expect("bind");
    setsockopt(
        &fd,
        sockopt::SendTimeout,
        &nix::sys::time::TimeVal::new(1, 0),
    )
    .expect("SO_SNDTIMEO");
    let _either_way = socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(app.pod.at(9080)));

    assert_eq!(fixture.count(Counter::LookupHostOriginated), 0);
    assert!(fixture.count(Counter::LookupSteered) >= 1);
    assert!(!has_connection(&application));
}

#[test]
fn proxy_delivers_to_the_application_with_the_clients_address() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let application = listen(&app.pod, "[::]:9080");
    let client_pod = fixture.pod("client");
    for rule in [
        "rule add fwmark 0x10000/0x10000 lookup 100",
        "route add local default dev lo table 100",
        "-6 rule add fwmark 0x10000/0x10000 lookup 100",
        "-6 route add local default dev lo table 100",
    ] {
        ip(&app.pod, rule);
    }
    sysctl(&app.pod, "ipv4/tcp_fwmark_accept", "1");
    for (client, target) in [
        (client_pod.ip(), app.pod.ip()),
        (client_pod.ip6(), app.pod.ip6()),
    ] {
        let to = SocketAddr::new(target, 9080);
        let source = SocketAddr::new(client, 40000);
        let fd = bpf::tcp_socket(&app.pod, to);
        setsockopt(&fd, sockopt::Mark, &0x1_0539).expect("SO_MARK");
        if to.is_ipv4() {
            setsockopt(&fd, sockopt::IpTransparent, &true).expect("IP_TRANSPARENT");
        } else {
            socket2::SockRef::from(&fd)
                .set_ip_transparent_v6(true)
                .expect("IPV6_TRANSPARENT");
        }
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).expect("bind");
        let mut delivery: TcpStream = connect(fd, to).expect("delivered");
        let (mut accepted, peer) = accept(&application);
        assert_eq!(peer.ip().to_canonical(), client);
        passes_bytes(&mut delivery, &mut accepted);
        passes_bytes(&mut accepted, &mut delivery);
    }
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
    assert_eq!(fixture.count(Counter::LookupDelivery), 2);
    assert_eq!(fixture.count(Counter::ConnectGuardMark), 2);
    let announced = fixture.bpf().occupancy().expect("counted");
    let announced = announced.iter().find(|map| map.map == "ANNOUNCED");
    assert_eq!(
        announced.expect("the map").used,
        0,
        "struck off when accepted"
    );
}

#[test]
fn missing_listener_refuses_for_closed_pods_and_passes_for_open_ones() {
    let mut fixture = node!();
    let client_pod = fixture.pod("client");
    for (name, on_capture_loss) in [
        ("closed", OnCaptureLoss::Closed),
        ("open", OnCaptureLoss::Open),
    ] {
        let policy = CapturePolicy {
            on_capture_loss,
            ..CapturePolicy::default()
        };
        let app = fixture.captured(name, policy);
        let application = listen(&app.pod, "0.0.0.0:9080");
        let Captured { pod, inbound, .. } = app;
        drop(inbound);
        let result = connect(bpf::tcp_socket(&client_pod, pod.at(9080)), pod.at(9080));
        if on_capture_loss == OnCaptureLoss::Open {
            result.expect("direct");
            accept(&application);
        } else {
            let error = result.expect_err("refused");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            assert!(!has_connection(&application));
        }
    }
    assert_eq!(fixture.count(Counter::LookupListenerMissingRefused), 1);
    assert_eq!(fixture.count(Counter::LookupListenerMissingDirect), 1);
}

#[test]
fn gone_proxy_stops_inbound_of_closed_pods() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client_pod = fixture.pod("client");
    fixture.bpf().set_proxy_gone(true).expect("told");
    assert!(client_pod.connect(app.pod.at(9080)).is_err());
    assert!(!has_connection(&app.inbound[0]));
}

#[test]
fn withdrawn_pod_receives_directly() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let application = listen(&app.pod, "0.0.0.0:9080");
    let client_pod = fixture.pod("client");
    fixture.bpf().withdraw(app.cookie).expect("withdrawn");
    let _client = client_pod.connect(app.pod.at(9080)).expect("direct");
    accept(&application);
    assert_eq!(fixture.count(Counter::LookupSteered), 0);
}

#[test]
fn address_that_another_pod_got_stays_with_it() {
    let mut fixture = node!();
    let gone = fixture.captured("gone", CapturePolicy::default());
    let (old_cookie, ip) = (gone.cookie, gone.pod.ip());
    drop(gone);
    let number = match ip {
        IpAddr::V4(v4) => u16::from(v4.octets()[3]),
        IpAddr::V6(_) => unreachable!("IPv4"),
    };
    let options = millrace_testkit::PodOptions::named("next").number(number);
    let next = Captured::new(fixture.node.pod_with(options).expect("a pod"));
    fixture.enroll(&next, CapturePolicy::default());
    fixture.bpf().withdraw(old_cookie).expect("withdrawn late");

    let client_pod = fixture.pod("client");
    let _client = client_pod.connect(next.pod.at(9080)).expect("steered");
    accept(&next.inbound[0]);
}

fn gateway_of(pod: &Pod) -> IpAddr {
    match pod.ip() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 1])
        }
        IpAddr::V6(_) => unreachable!("IPv4"),
    }
}

fn ip(pod: &Pod, arguments: &str) {
    let status = Command::new("ip")
        .args(["-n", pod.netns().name()])
        .args(arguments.split(' '))
        .status()
        .expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

fn sysctl(pod: &Pod, name: &str, value: &str) {
    pod.run(|| Ok(std::fs::write(format!("/proc/sys/net/{name}"), value)?))
        .expect("sysctl");
}

#[test]
fn listeners_of_another_namespace_are_refused() {
    let mut fixture = node!();
    let mut app = Captured::new(fixture.pod("app"));
    let other = fixture.pod("other");
    app.inbound = [listen(&other, "0.0.0.0:0"), listen(&other, "[::]:0")];
    let inbound = app.inbound.iter().map(std::os::fd::AsFd::as_fd).collect();
    let enrolment = millrace_agent::bpf::PodEnrolment {
        netns_cookie: app.cookie,
        netns: std::os::fd::AsFd::as_fd(app.pod.netns().file()),
        ips: vec![app.pod.ip()],
        policy: CapturePolicy::default(),
        inbound_listeners: inbound,
    };
    let error = fixture.bpf().enroll(&enrolment).expect_err("refused");
    assert!(
        error.to_string().contains("belongs to network namespace"),
        "{error}"
    );
    assert!(fixture.bpf().enrolled().expect("listed").is_empty());
}
