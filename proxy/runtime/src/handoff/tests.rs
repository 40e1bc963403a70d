//! The protocol's rules, and the body that fuzzers run on its decoder.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;

use super::*;

fn pod() -> PodSpec {
    PodSpec {
        uid: "u-1".into(),
        name: "reviews-v1".to_owned(),
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        ips: vec!["10.1.0.7".parse().unwrap()],
        netns: "/run/netns/reviews".into(),
        ..PodSpec::default()
    }
}

fn label(index: u16) -> ListenerLabel {
    ListenerLabel {
        role: ListenerRole::Inbound,
        index,
        family: ListenerFamily::Dual,
        cookie: 7 + u64::from(index),
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

type Broker = Connection<ProxyRequest, ToProxy>;

#[tokio::test]
async fn a_pod_arrives_with_its_sockets_in_label_order() {
    let (broker, proxy) = Broker::pair().unwrap();
    let files: Vec<OwnedFd> = (0..3)
        .map(|_| File::open("/dev/null").unwrap().into())
        .collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let sent = ToProxy::PodUp {
        pod: Box::new(pod()),
        families: Families { v4: true, v6: true },
        capture: CaptureMode::Ebpf,
        listeners: (0..3).map(label).collect(),
        total: 3,
    };
    broker.send(&sent, &borrowed).await.unwrap();
    let got = proxy.recv().await.unwrap().unwrap();
    assert_eq!(got.message, sent);
    assert_eq!(got.fds.len(), 3);
    for fd in &got.fds {
        let flags = rustix::io::fcntl_getfd(fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[tokio::test]
async fn a_closed_peer_ends_the_stream() {
    let (broker, proxy) = Broker::pair().unwrap();
    proxy.send(&ProxyRequest::Heartbeat, &[]).await.unwrap();
    drop(proxy);
    assert!(broker.recv().await.unwrap().is_some());
    assert!(broker.recv().await.unwrap().is_none());
}

#[tokio::test]
async fn descriptors_that_were_not_announced_are_refused_by_the_sender() {
    let (broker, _proxy) = Broker::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    let error = broker.send(&ToProxy::Synced, &[file.as_fd()]).await;
    assert!(matches!(
        error,
        Err(HandoffError::Fds {
            announced: 0,
            given: 1
        })
    ));
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_sent() {
    let (broker, _proxy) = Broker::pair().unwrap();
    let reason = "x".repeat(MAX_MESSAGE);
    let error = broker.send(&ToProxy::Refused { reason }, &[]).await;
    assert!(matches!(error, Err(HandoffError::TooLong(_))));
}

/// Runs alone in its process by way of nextest or `--test-threads=1`; counts descriptors
/// relative to itself otherwise, so it allows for neighbours by trying again.
#[tokio::test]
async fn unexpected_descriptors_are_closed() {
    let mut leaked = usize::MAX;
    for _ in 0..20 {
        let (a, b) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let receiver = Broker::from_socket(a).unwrap();
        let file = File::open("/dev/null").unwrap();
        let before = open_fds();
        for body in [
            &br#"{"type":"heartbeat"}"#[..],
            b"{",
            &vec![b'x'; MAX_MESSAGE + 9],
        ] {
            let mut space =
                vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            let fds = [file.as_fd(), file.as_fd()];
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(
                &b,
                &[std::io::IoSlice::new(body)],
                &mut control,
                rustix::net::SendFlags::empty(),
            )
            .unwrap();
            assert!(receiver.recv().await.is_err());
        }
        leaked = leaked.min(open_fds().saturating_sub(before));
        if leaked == 0 {
            return;
        }
    }
    panic!("{leaked} descriptors leaked");
}

#[tokio::test]
async fn a_new_listener_takes_the_path_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.sock");
    let options = BindOptions {
        mode: 0o660,
        owner: None,
    };
    let old = Listener::bind(&path, options).unwrap();
    let new = Listener::bind(&path, options).unwrap();
    drop(old);
    let client = BrokerConnection::connect(&path).unwrap();
    let (server, peer) = new.accept::<ProxyRequest, ToProxy>().await.unwrap();
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert!(PeerPolicy::privileged().allows(peer));
    assert!(!PeerPolicy::users(&[4242]).allows(peer));
    client.send(&ProxyRequest::Draining, &[]).await.unwrap();
    assert_eq!(
        server.recv().await.unwrap().unwrap().message,
        ProxyRequest::Draining
    );
}

#[tokio::test]
async fn a_file_in_the_way_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.sock");
    std::fs::write(&path, "precious").unwrap();
    let options = BindOptions {
        mode: 0o600,
        owner: None,
    };
    let error = Listener::bind(&path, options).unwrap_err();
    assert!(format!("{error:?}").contains("is not a socket"));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_pod_names_the_field_that_is_wrong() {
    type Spoil = fn(&mut PodSpec);
    let cases: [(&str, Spoil); 6] = [
        ("uid", |p| p.uid = "".into()),
        ("name", |p| p.name = "a/b".to_owned()),
        ("namespace", |p| p.namespace = "x".repeat(300)),
        ("netns", |p| p.netns = "relative".into()),
        ("ips", |p| p.ips = vec!["127.0.0.1".parse().unwrap()]),
        ("ports", |p| {
            p.ports = vec![PodPort {
                name: String::new(),
                port: 0,
                protocol: String::new(),
                app_protocol: None,
            }];
        }),
    ];
    assert_eq!(pod().validate(), Ok(()));
    for (field, spoil) in cases {
        let mut spoilt = pod();
        spoil(&mut spoilt);
        assert_eq!(spoilt.validate().unwrap_err().field, field);
    }
}

#[test]
fn only_mesh_annotations_travel() {
    let mut pod = pod();
    for key in [
        "millrace.io/capture",
        "sidecar.istio.io/inject",
        "example.com/x",
    ] {
        pod.annotations.insert(key.to_owned(), "1".to_owned());
    }
    let kept: Vec<_> = pod.for_wire().annotations.into_keys().collect();
    assert_eq!(kept, ["millrace.io/capture", "sidecar.istio.io/inject"]);
}

fn decode_any(bytes: &[u8], fds: usize) {
    for ok in [
        decode::<ProxyRequest>(bytes, fds).map(|m| m.fd_count()),
        decode::<ToProxy>(bytes, fds).map(|m| m.fd_count()),
        decode::<AgentCall>(bytes, fds).map(|m| m.fd_count()),
        decode::<ToAgent>(bytes, fds).map(|m| m.fd_count()),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(ok, fds);
    }
}

proptest! {
    #[test]
    fn decoding_arbitrary_bytes_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..512),
        fds in 0_usize..300,
    ) {
        decode_any(&bytes, fds);
    }

    #[test]
    fn decoding_damaged_messages_never_panics(at in 0_usize..400, byte in any::<u8>(), fds in 0_usize..4) {
        let message = ToProxy::PodUp {
            pod: Box::new(pod()),
            families: Families::default(),
            capture: CaptureMode::Iptables,
            listeners: vec![label(0)],
            total: 1,
        };
        let mut bytes = serde_json::to_vec(&message).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        decode_any(&bytes, fds);
    }

    #[test]
    fn wants_survive_the_wire(uid in "[a-z0-9-]{1,64}", count in any::<u16>(), v6 in any::<bool>()) {
        let message = ProxyRequest::Want {
            uid: PodUid(uid),
            kind: SocketKind::Delivery,
            family: if v6 { Family::V6 } else { Family::V4 },
            count,
        };
        let bytes = serde_json::to_vec(&message).unwrap();
        prop_assert_eq!(decode::<ProxyRequest>(&bytes, 0).unwrap(), message);
    }
}

#[test]
fn a_description_that_fits_into_no_message_is_refused_by_its_largest_field() {
    let many = |value: usize| {
        (0..600)
            .map(|index| (format!("istio.io/{index}"), "x".repeat(value)))
            .collect()
    };
    let labels = PodSpec {
        labels: many(63),
        ..pod()
    };
    assert_eq!(labels.validate().unwrap_err().field, "labels");
    let annotations = PodSpec {
        annotations: many(500),
        ..pod()
    };
    assert_eq!(annotations.validate().unwrap_err().field, "annotations");
    let others = PodSpec {
        annotations: [("example.com/note".to_owned(), "x".repeat(200_000))].into(),
        labels: (0..64)
            .map(|index| (format!("key-{index}"), "x".repeat(63)))
            .collect(),
        ..pod()
    };
    others.validate().expect("what does not travel may be long");
    let largest = ToProxy::PodUp {
        pod: Box::new(PodSpec {
            labels: [("key".to_owned(), "x".repeat(40_500))].into(),
            ..pod()
        }),
        families: Families { v4: true, v6: true },
        capture: CaptureMode::Iptables,
        listeners: vec![
            ListenerLabel {
                role: ListenerRole::Outbound,
                index: u16::MAX,
                family: ListenerFamily::Dual,
                cookie: u64::MAX,
            };
            MAX_FDS
        ],
        total: 1024,
    };
    let ToProxy::PodUp { pod, .. } = &largest else {
        unreachable!()
    };
    pod.validate().expect("just short enough");
    assert!(serde_json::to_vec(&largest).unwrap().len() < MAX_MESSAGE);
}

#[tokio::test]
async fn a_name_is_found_until_its_last_duplicate_is_closed() {
    let name = format!("@millrace-test-name-{}", std::process::id());
    let name = std::path::Path::new(&name);
    let listener = Listener::bind_name(name).unwrap();
    assert!(Listener::bind_name(name).is_err(), "two have the name");
    let copy = listener.as_fd().try_clone_to_owned().unwrap();
    drop(listener);
    let listener = Listener::from_socket(copy, name).unwrap();
    let proxy = BrokerConnection::connect(name).unwrap();
    assert!(PeerPolicy::privileged().allows(proxy.peer_cred().unwrap()));
    let (broker, _): (Broker, _) = listener.accept().await.unwrap();
    let heartbeat = ProxyRequest::Heartbeat;
    proxy.send(&heartbeat, &[]).await.unwrap();
    assert_eq!(broker.recv().await.unwrap().unwrap().message, heartbeat);
    drop(listener);
    assert!(BrokerConnection::connect(name).is_err());
}
