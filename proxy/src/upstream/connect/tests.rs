//! Choice of transport, loop protection, source addresses and the mapping of errors.

use millrace_runtime::handoff::{CaptureMode, Families, PodSpec};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::pods::Want;

struct Node {
    pods: Arc<LocalPods>,
    connector: Connector,
    wants: mpsc::UnboundedReceiver<Want>,
}

fn node(ips: &[&[&str]]) -> Node {
    let (sender, wants) = mpsc::unbounded_channel();
    let pods = Arc::new(LocalPods::default());
    for (i, ips) in ips.iter().enumerate() {
        let spec = PodSpec {
            uid: format!("u-{i}").as_str().into(),
            name: format!("pod-{i}"),
            namespace: "default".into(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..PodSpec::default()
        };
        let pod = LocalPod::new(spec, Families::default(), CaptureMode::Ebpf, &sender);
        pods.insert(&Arc::new(pod));
    }
    let connector = Connector::new(pods.clone(), Arc::from(["10.9.9.9".parse().unwrap()]));
    Node {
        pods,
        connector,
        wants,
    }
}

fn target(address: &str) -> ConnectTarget {
    ConnectTarget {
        address: address.parse().unwrap(),
        source: None,
        client: None,
        keep_port: false,
        connect_timeout: Duration::from_secs(5),
        keepalive: None,
        bind_source: BindSource::default(),
    }
}

#[test]
fn transport_follows_the_destination_then_the_source() {
    let node = node(&[&["10.0.0.1"], &["10.0.0.2", "fd00::2"]]);
    let source = node.pods.by_ip("10.0.0.1".parse().unwrap());
    for (address, from_pod, expected) in [
        ("10.0.0.2:80", true, "delivery pod-1"),
        ("[fd00::2]:80", true, "delivery pod-1"),
        ("10.0.0.1:80", true, "delivery pod-0"),
        ("127.0.0.1:80", true, "delivery pod-0"),
        ("10.0.0.2:80", false, "delivery pod-1"),
        ("10.0.7.7:80", true, "direct pod-0"),
        ("10.0.7.7:80", false, "own"),
        ("127.0.0.1:80", false, "own"),
        ("10.0.7.7:15006", true, "direct pod-0"),
        ("10.0.0.2:15006", true, "loop"),
        ("127.0.0.1:15001", true, "loop"),
        ("10.9.9.9:15001", false, "loop"),
    ] {
        let mut target = target(address);
        target.source = source.clone().filter(|_| from_pod);
        let got = match node.connector.transport(&target) {
            Ok(Transport::Delivery(pod)) => format!("delivery {}", pod.spec.name),
            Ok(Transport::Direct(pod)) => format!("direct {}", pod.spec.name),
            Ok(Transport::Own) => "own".to_owned(),
            Err(ConnectError::Loop { .. }) => "loop".to_owned(),
            Err(other) => other.to_string(),
        };
        assert_eq!(got, expected, "{address} from pod: {from_pod}");
    }
}

#[test]
fn the_clients_address_is_kept_in_the_endpoints_family() {
    let node = node(&[&["10.0.0.1", "fd00::1"], &["10.0.0.2", "fd00::2"]]);
    let source = node.pods.by_ip("10.0.0.1".parse().unwrap());
    for (to, client, expected) in [
        ("10.0.0.2:80", "10.0.0.1:4000", Some("10.0.0.1:4000")),
        ("[fd00::2]:80", "10.0.0.1:4000", Some("[fd00::1]:4000")),
        ("[fd00::2]:80", "10.0.0.99:4000", None),
    ] {
        let mut target = target(to);
        target.source.clone_from(&source);
        target.client = Some(client.parse().unwrap());
        let transport = node.connector.transport(&target).unwrap();
        let expected = expected.map(|a| a.parse().unwrap());
        assert_eq!(
            source_address(&transport, &target),
            expected,
            "{client} to {to}"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_is_named_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = node(&[]).connector.connect(&target(&address)).await;
    assert!(matches!(error, Err(ConnectError::Refused { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_is_waited_for_until_the_connect_timeout() {
    let mut node = node(&[&["127.0.0.5"]]);
    let error = node.connector.connect(&target("127.0.0.5:80")).await;
    assert!(matches!(error, Err(ConnectError::Timeout { .. })));
    assert_eq!(node.wants.recv().await.unwrap().kind, SocketKind::Delivery);
}

#[tokio::test]
async fn a_taken_source_port_is_replaced_by_another() {
    let server = TcpListener::bind("127.0.0.5:0").await.unwrap();
    let taken = TcpListener::bind("127.0.0.6:0").await.unwrap();
    let node = node(&[&["127.0.0.5"]]);
    let pod = node.pods.by_ip("127.0.0.5".parse().unwrap()).unwrap();
    let fds =
        (0..4).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None));
    pod.pool(SocketKind::Delivery, Family::V4)
        .fill(fds.map(|s| s.unwrap().into()).collect());
    let mut target = target(&server.local_addr().unwrap().to_string());
    target.client = Some(taken.local_addr().unwrap());
    target.keep_port = true;
    let stream = node.connector.connect(&target).await.unwrap();
    let local = stream.local_addr().unwrap();
    assert_eq!(local.ip(), taken.local_addr().unwrap().ip());
    assert_ne!(local.port(), taken.local_addr().unwrap().port());
    // Never one that the client itself may be using towards the same endpoint.
    assert!(DELIVERY_PORTS.contains(&local.port()), "{local}");
}

#[tokio::test]
async fn the_proxys_own_sockets_are_bound_to_the_clusters_source_of_the_endpoints_family() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = node(&[]).connector;
    let mut target = target(&server.local_addr().unwrap().to_string());
    target.bind_source.v4 = Some("127.0.0.6:0".parse().unwrap());
    for keep_port in [false, true] {
        target.keep_port = keep_port;
        target.client = Some("10.1.0.9:4000".parse().unwrap());
        let stream = connector.connect(&target).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.6");
    }

    let Ok(server) = TcpListener::bind("[::1]:0").await else {
        return;
    };
    target.address = server.local_addr().unwrap();
    let stream = connector.connect(&target).await.unwrap();
    assert_eq!(stream.local_addr().unwrap().ip().to_string(), "::1");
}

#[test]
fn capture_ports_are_the_proxys_own_at_its_addresses_alone() {
    let node = node(&[&["10.0.0.1"], &["10.0.0.2"]]);
    let source = node.pods.by_ip("10.0.0.1".parse().unwrap());
    for (address, from_pod, expected) in [
        ("10.9.9.9:15006", false, true),
        ("10.9.9.9:15001", false, true),
        ("10.9.9.9:15008", false, false),
        ("10.0.0.2:15006", true, true),
        ("127.0.0.1:15001", true, true),
        ("127.0.0.1:15001", false, false),
        ("10.0.7.7:15006", true, false),
    ] {
        let source = source.as_ref().filter(|_| from_pod);
        let got = node
            .connector
            .is_capture_port(source, address.parse().unwrap());
        assert_eq!(got, expected, "{address}");
    }
}

#[tokio::test]
async fn what_leaves_a_namespace_with_nat_rules_has_ports_of_its_own() {
    let (sender, _wants) = mpsc::unbounded_channel();
    for (capture, limited) in [(CaptureMode::Iptables, true), (CaptureMode::Ebpf, false)] {
        let node = node(&[]);
        for to in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(to).await.unwrap();
            let mut target = target(&listener.local_addr().unwrap().to_string());
            let spec = PodSpec::default();
            let pod = LocalPod::new(spec, Families::default(), capture, &sender);
            let (family, socket) = if target.address.is_ipv4() {
                (Family::V4, TcpSocket::new_v4())
            } else {
                (Family::V6, TcpSocket::new_v6())
            };
            let socket = socket.unwrap();
            let fd = std::os::fd::AsFd::as_fd(&socket)
                .try_clone_to_owned()
                .unwrap();
            pod.pool(SocketKind::Outbound, family).fill(vec![fd]);
            let pod = Arc::new(pod);
            // The pod's own loopback would be a delivery.
            let transport = Transport::Direct(pod.clone());
            target.source = Some(pod);
            let ports = node.connector.ports(&transport);
            let stream = open(&transport, &target, ports).await.unwrap();
            let port = stream.local_addr().unwrap().port();
            assert_eq!(
                DIRECT_PORTS.contains(&port),
                limited,
                "{capture} {to}: {port}"
            );
        }
    }
}
