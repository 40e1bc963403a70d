//! `millrace-agent init` in real pods: both forms capture real connections, leave what they must
//! alone, can be written twice, replaced and removed; the broker's guard holds without them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use agent::{PATIENCE, agent_command, original_dst};
use millrace_agent::broker::guard::{self, Guard};
use millrace_runtime::handoff::{CaptureMode, IptablesConfig, OUTBOUND_MARK};
use millrace_testkit::{Cluster, Node, Pod};
use socket2::SockRef;

struct Pods {
    node: Node,
    pod: Pod,
    other: Pod,
    _cluster: Cluster,
}

fn pods() -> Option<Pods> {
    if !millrace_testkit::skip::is_root() {
        return None;
    }
    let cluster = Cluster::new().expect("cluster");
    let node = cluster.node("n1").expect("node");
    Some(Pods {
        pod: node.pod("app").expect("pod"),
        other: node.pod("other").expect("pod"),
        node,
        _cluster: cluster,
    })
}

macro_rules! pods {
    () => {
        match pods() {
            Some(pods) => pods,
            None => return millrace_testkit::skip::skip("network namespaces need root"),
        }
    };
}

fn init(pod: &Pod, args: &[&str]) {
    let mut command = agent_command("init");
    command.args(args);
    pod.stdout(command).expect("init");
}

fn cleanup(pod: &Pod) {
    let mut command = agent_command("cleanup");
    command.arg("--here");
    pod.stdout(command).expect("cleanup");
}

fn rules(pod: &Pod) -> String {
    let save = |tool: &str| {
        let lines = pod.stdout(Command::new(tool)).unwrap_or_default();
        let rules = lines.lines().filter(|line| line.starts_with("-A"));
        rules.collect::<Vec<_>>().join("\n")
    };
    save("iptables-save") + &save("ip6tables-save")
}

/// A listener as the proxy's: its answers carry the mark.
fn listen(pod: &Pod, port: u16) -> TcpListener {
    let listener = pod
        .listen(SocketAddr::new("::".parse().unwrap(), port))
        .expect("listening");
    SockRef::from(&listener).set_mark(OUTBOUND_MARK).unwrap();
    listener
}

fn accept(listener: &TcpListener) -> (std::net::TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().expect("accepted");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (
        stream,
        SocketAddr::new(peer.ip().to_canonical(), peer.port()),
    )
}

#[test]
fn the_seed_era_rules_send_both_directions_to_one_port() {
    let pods = pods!();
    init(&pods.pod, &["-p", "15001", "-u", "1337"]);
    let proxy = listen(&pods.pod, 15001);
    let service: SocketAddr = "10.96.0.10:9080".parse().unwrap();
    let _client = pods.pod.connect(service).expect("captured");
    let (stream, _) = accept(&proxy);
    assert_eq!(original_dst(&stream, false), service);
    let _client = pods.other.connect(pods.pod.at(9080)).expect("captured");
    let (stream, peer) = accept(&proxy);
    assert_eq!(original_dst(&stream, false), pods.pod.at(9080));
    assert_eq!(peer.ip(), pods.other.ip());
}

#[test]
fn the_modern_rules_keep_directions_apart_on_both_families() {
    let pods = pods!();
    init(&pods.pod, &[]);
    let (outbound, inbound) = (listen(&pods.pod, 15001), listen(&pods.pod, 15006));
    for (service, own, v6) in [
        ("10.96.0.10:9080", pods.pod.ip(), false),
        ("[fd00:96::10]:9080", pods.pod.ip6(), true),
    ] {
        let service: SocketAddr = service.parse().unwrap();
        let mut client = pods.pod.connect(service).expect("captured");
        let (mut stream, _) = accept(&outbound);
        assert_eq!(original_dst(&stream, v6), service);
        client.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        let to = SocketAddr::new(own, 9080);
        let _client = pods.other.connect(to).expect("captured");
        let (stream, _) = accept(&inbound);
        assert_eq!(original_dst(&stream, v6), to);
    }
}

#[test]
fn the_proxys_own_sockets_and_reserved_ports_are_left_alone() {
    let pods = pods!();
    init(&pods.pod, &["-o", "3306"]);
    let at = |port| SocketAddr::new(pods.node.ip(), port);
    let service = pods.node.listen(at(9080)).unwrap();
    let excluded = pods.node.listen(at(3306)).unwrap();

    // By mark, as the broker's sockets: the process that connects has any uid.
    let marked = pods
        .pod
        .socket(libc::AF_INET, libc::SOCK_STREAM, 0)
        .unwrap();
    SockRef::from(&marked).set_mark(OUTBOUND_MARK).unwrap();
    SockRef::from(&marked)
        .connect_timeout(&at(9080).into(), PATIENCE)
        .expect("direct");
    assert_eq!(accept(&service).1.ip(), pods.pod.ip());

    // By uid, as a sidecar's.
    let mut connect = Command::new("bash");
    connect.args(["-c", &format!("exec 3<>/dev/tcp/{}/9080", pods.node.ip())]);
    let launch = pods.pod.launch("sidecar", connect).unwrap().uid(1337);
    assert!(launch.output().unwrap().status.success());
    accept(&service);

    let _client = pods.pod.connect(at(3306)).expect("direct");
    accept(&excluded);
    for port in [15020, 15021, 15090] {
        let direct = pods.pod.listen(pods.pod.at(port)).unwrap();
        let _client = pods.other.connect(pods.pod.at(port)).expect("direct");
        accept(&direct);
    }
}

#[test]
fn dns_is_captured_over_udp_and_the_answer_comes_from_the_server_that_was_asked() {
    let pods = pods!();
    init(&pods.pod, &["--redirect-dns"]);
    for (server, local, v6) in [
        ("10.96.0.10:53", "0.0.0.0:0", false),
        ("[fd00:96::10]:53", "[::]:0", true),
    ] {
        let server: SocketAddr = server.parse().unwrap();
        let listen: SocketAddr = if v6 { "[::1]:15053" } else { "127.0.0.1:15053" }
            .parse()
            .unwrap();
        let proxy = pods.pod.udp(listen).unwrap();
        SockRef::from(&proxy).set_mark(OUTBOUND_MARK).unwrap();
        proxy.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = pods.pod.udp(local.parse().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"question", server).unwrap();
        let mut bytes = [0; 16];
        let (length, from) = proxy.recv_from(&mut bytes).expect("captured");
        assert_eq!(&bytes[..length], b"question");
        proxy.send_to(b"answer", from).unwrap();
        let (length, from) = client.recv_from(&mut bytes).expect("answered");
        assert_eq!((&bytes[..length], from), (&b"answer"[..], server));
    }
}

#[test]
fn rules_are_written_once_replaced_whole_and_removed_without_a_trace() {
    let pods = pods!();
    let untouched = rules(&pods.pod);
    init(&pods.pod, &["--redirect-dns"]);
    let once = rules(&pods.pod);
    init(&pods.pod, &["--redirect-dns"]);
    assert_eq!(rules(&pods.pod), once);

    init(&pods.pod, &["-p", "15001", "-u", "1337"]);
    let seed = rules(&pods.pod);
    assert!(
        !seed.contains("ISTIO_IN_REDIRECT") && !seed.contains("CT --zone"),
        "{seed}"
    );

    cleanup(&pods.pod);
    assert_eq!(rules(&pods.pod), untouched);
    cleanup(&pods.pod);
}

#[test]
fn a_sidecars_deliveries_over_ipv6_have_an_address_to_come_from() {
    let pods = pods!();
    let source = || {
        let mut list = Command::new("ip");
        list.args(["-6", "-oneline", "address", "show", "dev", "lo"]);
        pods.pod
            .stdout(list)
            .expect("addresses")
            .contains(" ::6/128 ")
    };
    init(&pods.pod, &["-p", "15001", "-u", "1337"]);
    assert!(!source(), "the seed's form has IPv4 alone");
    init(&pods.pod, &[]);
    init(&pods.pod, &[]);
    assert!(source());
    // What comes from there is left alone: it arrives where it was sent.
    let application = pods.pod.listen(SocketAddr::new(pods.pod.ip6(), 0)).unwrap();
    let to = application.local_addr().unwrap();
    let client = pods
        .pod
        .run(|| {
            let socket = socket2::Socket::new(
                socket2::Domain::IPV6,
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )?;
            socket.bind(&SocketAddr::new("::6".parse()?, 0).into())?;
            socket.connect(&to.into())?;
            Ok(socket)
        })
        .expect("delivered");
    let (_stream, peer) = accept(&application);
    assert_eq!(peer.ip().to_string(), "::6");
    drop(client);
    cleanup(&pods.pod);
    cleanup(&pods.pod);
    assert!(!source());
}

#[test]
fn a_guard_refuses_what_is_not_captured_and_nothing_else() {
    let pods = pods!();
    let service = pods
        .node
        .listen(SocketAddr::new(pods.node.ip(), 0))
        .unwrap();
    let to = service.local_addr().unwrap();
    let excluded = pods
        .node
        .listen(SocketAddr::new(pods.node.ip(), 0))
        .unwrap();
    let served = pods.pod.listen(pods.pod.at(0)).unwrap();
    let config = IptablesConfig {
        outbound_ports_exclude: vec![excluded.local_addr().unwrap().port()],
        ..IptablesConfig::default()
    };
    let guard = Guard {
        config,
        mode: CaptureMode::Ebpf,
        closed: true,
    };
    pods.pod.run(|| Ok(guard.install()?)).expect("guarded");

    let refused = pods
        .pod
        .connect_within(to, Duration::from_secs(2))
        .expect_err("guarded");
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    let dns = pods.pod.udp("0.0.0.0:0".parse().unwrap()).unwrap();
    assert!(dns.send_to(b"question", (pods.node.ip(), 53)).is_err());

    let _client = pods
        .pod
        .connect(excluded.local_addr().unwrap())
        .expect("excluded");
    let _client = pods
        .pod
        .connect(served.local_addr().unwrap())
        .expect("own address");
    let mut client = pods
        .other
        .connect(served.local_addr().unwrap())
        .expect("inbound");
    let (_own, _) = accept(&served);
    let (mut stream, _) = accept(&served);
    stream.write_all(b"pong").unwrap();
    let mut bytes = [0; 4];
    client.read_exact(&mut bytes).expect("answers pass");

    pods.pod.run(|| Ok(guard::remove()?)).expect("removed");
    pods.pod.connect(to).expect("direct");
}

#[test]
fn a_missing_tool_is_named() {
    let pods = pods!();
    let mut command = agent_command("init");
    command.env("PATH", "/nonexistent");
    let output = pods.pod.output(command).unwrap();
    // Administrators' directories are looked at whatever PATH says.
    assert!(output.status.success());
    let mut command = agent_command("init");
    command.args(["-i", "10.0.0.0/40"]);
    let output = pods.pod.output(command).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("--istio-service-cidr: \"10.0.0.0/40\""),
        "{said}"
    );
}
