//! Maps and storages that are full: what then becomes of pods and connections, each time counted. Nothing
//! that decides is evicted.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use accel::{Place, promote, promoted, redirected, state};
use aya::maps::{HashMap, Map, MapData, MapInfo, MapType};
use bpf::{
    Captured, Fixture, accept, addr, connect, has_connection, listen, node, original_dst,
    passes_bytes, tcp_socket, udp,
};
use millrace_agent::bpf::{
    AccelOutcome, BpfEvent, CapturePolicy, Counter, EventKind, MapOccupancy, OnCaptureLoss,
    PodEnrolment,
};
use millrace_ebpf_abi::{Event, OrigDst, SockTuple};
use millrace_testkit::{Pod, skip};
use nix::sys::socket::{self, SockaddrStorage};

const SERVICE: &str = "10.96.0.10:9080";

fn policy(on_capture_loss: OnCaptureLoss) -> CapturePolicy {
    CapturePolicy {
        on_capture_loss,
        ..CapturePolicy::default()
    }
}

fn pin(fixture: &Fixture, map: &str) -> PathBuf {
    let version = format!("v{}", millrace_ebpf_abi::ABI_VERSION);
    fixture
        .node
        .bpffs_dir()
        .join(version)
        .join("maps")
        .join(map)
}

/// Connects a fresh TCP socket of the pod's; the error tells why not.
fn dial(pod: &Pod, to: SocketAddr) -> std::io::Result<TcpStream> {
    connect(tcp_socket(pod, to), to)
}

#[test]
fn nothing_that_decides_is_evicted() {
    let fixture = node!();
    let maps = std::fs::read_dir(pin(&fixture, "")).expect("pinned");
    let mut seen = 0;
    for map in maps {
        let map = map.expect("an entry").path();
        let info = MapInfo::from_pin(&map).expect("a map");
        let kind = info.map_type().expect("a known type");
        assert!(
            !matches!(kind, MapType::LruHash | MapType::LruPerCpuHash),
            "{} is of type {kind:?}",
            map.display()
        );
        seen += 1;
    }
    assert_eq!(seen, 18, "every map of the programs");
}

/// What a pod needs of each map that the agent fills, with the policy of [`excluding`].
const NEEDED: [(&str, u32); 7] = [
    ("POLICIES", 1),
    ("ADDRESSES", 2),
    ("PORT_RULES", 2),
    ("CIDR_RULES", 3),
    ("LISTENERS", 2),
    ("TELEMETRY", 2),
    ("ACCELERATION", 1),
];

fn excluding() -> CapturePolicy {
    CapturePolicy {
        exclude_outbound_ports: vec![9001, 9002],
        exclude_outbound_cidrs: ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"]
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .to_vec(),
        ..CapturePolicy::default()
    }
}

#[test]
fn a_pod_that_a_map_has_no_room_for_is_refused_whole() {
    millrace_testkit::require!(cluster);
    for (map, needed) in NEEDED {
        let mut fixture = Fixture::with_max_entries(&[(map, needed)]);
        let first = fixture.captured("first", excluding());
        let used = occupancy(&mut fixture);

        let second = Captured::new(fixture.pod("second"));
        let error = enroll(&mut fixture, &second, excluding()).expect_err(map);
        assert!(error.contains(map), "{map}: {error}");
        assert_eq!(occupancy(&mut fixture), used, "{map}: nothing of it stays");
        let enrolled = fixture.bpf().enrolled().expect("readable");
        assert_eq!(enrolled.len(), 1, "{map}");
        let links = pin(&fixture, "").join("../lookup");
        let links = std::fs::read_dir(links).expect("a directory").count();
        assert_eq!(links, 1, "{map}: links of sk_lookup");

        // Of the second nothing is captured, of the first everything is, as before.
        let server = fixture.pod("server");
        let direct = listen(&server, "0.0.0.0:9080");
        dial(&second.pod, server.at(9080)).expect("direct");
        accept(&direct);
        assert_eq!(fixture.count(Counter::ConnectNotEnrolled), 1, "{map}");
        dial(&first.pod, addr(SERVICE)).expect("captured");
        let (proxy, _) = accept(&first.outbound4);
        assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));

        // With the first gone there is room.
        fixture.bpf().withdraw(first.cookie).expect("withdrawn");
        enroll(&mut fixture, &second, excluding()).expect(map);
    }
}

fn enroll(fixture: &mut Fixture, captured: &Captured, policy: CapturePolicy) -> Result<(), String> {
    let pod = PodEnrolment {
        netns_cookie: captured.cookie,
        netns: captured.pod.netns().file().as_fd(),
        ips: vec![captured.pod.ip(), captured.pod.ip6()],
        policy,
        inbound_listeners: captured.inbound.iter().map(|l| l.as_fd()).collect(),
    };
    fixture.bpf().enroll(&pod).map_err(|error| {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        causes
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    })
}

/// Elements of the maps that pods fill.
fn occupancy(fixture: &mut Fixture) -> Vec<(&'static str, usize)> {
    let maps = fixture.bpf().occupancy().expect("readable");
    let of = |map: &MapOccupancy| (map.map, map.used);
    maps.iter().map(of).collect()
}

/// An element that no connection has.
fn stranger() -> SockTuple {
    SockTuple {
        netns_cookie: u64::MAX,
        ..SockTuple::default()
    }
}

fn connections<V: aya::Pod>(fixture: &Fixture, map: &str) -> HashMap<MapData, SockTuple, V> {
    let data = MapData::from_pin(pin(fixture, map)).expect("pinned");
    let map = Map::from_map_data(data).expect("a map");
    HashMap::try_from(map).expect("a hash map")
}

#[test]
fn a_connection_whose_destination_cannot_be_published_reaches_the_proxy_without_one() {
    millrace_testkit::require!(cluster);
    for kind in [OnCaptureLoss::Closed, OnCaptureLoss::Open] {
        let mut fixture = Fixture::with_max_entries(&[("ORIG_DSTS", 1)]);
        let app = fixture.captured("app", policy(kind));
        let mut map = connections::<OrigDst>(&fixture, "ORIG_DSTS");
        map.insert(stranger(), OrigDst::default(), 0)
            .expect("room for one");

        // The proxy resets what nobody can tell the destination of: it might be its own port.
        let _client = dial(&app.pod, addr(SERVICE)).expect("redirected");
        let (proxy, _) = accept(&app.outbound4);
        assert_eq!(
            original_dst(&proxy, libc::SOL_IP),
            Err(nix::errno::Errno::ENOENT)
        );
        assert_eq!(fixture.count(Counter::SockopsPublishFailed), 1);
        assert_eq!(fixture.count(Counter::SockopsAdoptMissed), 1);
        assert_eq!(fixture.count(Counter::GetsockoptMissed), 1);
        let events = events(&mut fixture);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventKind::OrigDstLost);
        assert_eq!(events[0].reason, Counter::SockopsPublishFailed);
        assert_eq!(events[0].netns_cookie, app.cookie);
        assert_eq!(events[0].destination, addr(SERVICE));

        map.remove(&stranger()).expect("it was there");
        let _client = dial(&app.pod, addr(SERVICE)).expect("redirected");
        let (proxy, _) = accept(&app.outbound4);
        assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));
        assert_eq!(fixture.count(Counter::SockopsPublishFailed), 1);
    }
}

/// Every event that waits.
fn events(fixture: &mut Fixture) -> Vec<BpfEvent> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut stream = fixture.bpf().events().expect("the event ring");
        let mut seen = Vec::new();
        // What waits is there at the first look; a poll that waits has seen the last.
        while let Some(event) = now(stream.next()).await {
            seen.push(event.expect("readable"));
        }
        seen
    })
}

/// What a future has now.
async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

#[test]
fn a_connection_of_the_host_that_cannot_be_announced_is_steered_like_any_other() {
    millrace_testkit::require!(cluster);
    let mut fixture = Fixture::with_max_entries(&[("ANNOUNCED", 1)]);
    let app = fixture.captured("app", CapturePolicy::default());
    let application = listen(&app.pod, "0.0.0.0:9080");
    let mut map = connections::<u8>(&fixture, "ANNOUNCED");
    map.insert(stranger(), 0, 0).expect("room for one");

    let _client = fixture.node.connect(app.pod.at(9080)).expect("steered");
    accept(&app.inbound[0]);
    assert!(!has_connection(&application));
    assert_eq!(fixture.count(Counter::SockopsAnnounceFailed), 1);
    assert_eq!(fixture.count(Counter::LookupSteered), 1);
    assert_eq!(fixture.count(Counter::LookupHostOriginated), 0);

    map.remove(&stranger()).expect("it was there");
    let _client = fixture.node.connect(app.pod.at(9080)).expect("direct");
    accept(&application);
    assert_eq!(fixture.count(Counter::SockopsAnnounceFailed), 1);
}

#[test]
fn events_that_find_the_ring_full_are_counted() {
    let mut fixture = node!();
    let app = fixture.captured("app", policy(OnCaptureLoss::Closed));
    fixture.bpf().set_proxy_gone(true).expect("written");
    // A record has a header of 8 bytes (Documentation/bpf/ringbuf.rst).
    let room = 65_536 / (size_of::<Event>() + 8);
    let refused = room + 100;
    for _ in 0..refused {
        let error = dial(&app.pod, addr(SERVICE)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    let lost = fixture.count(Counter::EventLost);
    assert!(lost >= 100, "{lost} events lost");
    let seen = events(&mut fixture).len();
    assert_eq!(seen + usize::try_from(lost).expect("few"), refused);
    let counted = fixture.count(Counter::ConnectProxyGoneRefused);
    assert_eq!(counted, refused as u64, "counted all the same");
}

/// Whether sockets of the pod get no more memory for what belongs to them, storage included.
fn starve(pod: &Pod) -> bool {
    let path = "/proc/sys/net/core/optmem_max";
    let limited = pod.run(|| Ok(std::fs::write(path, "0")?));
    limited.is_ok()
}

macro_rules! starve {
    ($pod:expr) => {
        if !starve($pod) {
            return skip::not_applicable(
                "storage-limit",
                "no net.core.optmem_max in the namespace",
            );
        }
    };
}

#[test]
fn a_connection_without_storage_is_refused_or_direct_as_its_pod_says() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let direct = listen(&server, "0.0.0.0:9080");
    let resolver = udp(&server, "0.0.0.0:53");
    let closed = fixture.captured("closed", policy(OnCaptureLoss::Closed));
    let open = fixture.captured("open", policy(OnCaptureLoss::Open));
    starve!(&closed.pod);
    starve!(&open.pod);

    let error = dial(&closed.pod, server.at(9080)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(!has_connection(&direct));
    assert_eq!(fixture.count(Counter::ConnectStorageFullRefused), 1);
    let mut client = dial(&open.pod, server.at(9080)).expect("direct");
    let (mut accepted, peer) = accept(&direct);
    assert_eq!(peer.ip(), open.pod.ip());
    passes_bytes(&mut client, &mut accepted);
    assert_eq!(fixture.count(Counter::ConnectStorageFullDirect), 1);

    // Unconnected DNS likewise.
    let socket = udp(&closed.pod, "0.0.0.0:0");
    let error = socket
        .send_to(b"query", server.at(53))
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(fixture.count(Counter::SendmsgRefused), 1);
    let socket = udp(&open.pod, "0.0.0.0:0");
    socket.send_to(b"query", server.at(53)).expect("direct");
    let (_, asked) = resolver.recv_from(&mut [0; 16]).expect("a query");
    assert_eq!(asked.ip(), open.pod.ip());
    assert_eq!(fixture.count(Counter::SendmsgDirect), 1);

    let mut reasons: Vec<_> = events(&mut fixture)
        .into_iter()
        .map(|event| (event.netns_cookie, event.reason))
        .collect();
    reasons.sort_by_key(|(cookie, _)| *cookie != closed.cookie);
    let expected = [
        (closed.cookie, Counter::ConnectStorageFullRefused),
        (closed.cookie, Counter::ConnectStorageFullRefused),
        (open.cookie, Counter::ConnectStorageFullDirect),
        (open.cookie, Counter::ConnectStorageFullDirect),
    ];
    assert_eq!(reasons, expected);
    for listener in [&closed.outbound4, &open.outbound4] {
        assert!(!has_connection(listener));
    }
}

#[test]
fn an_accepted_connection_without_storage_is_known_while_its_client_is_there() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    // The connecting socket keeps its storage from an earlier connection.
    let socket = tcp_socket(&app.pod, addr(SERVICE));
    let fd = socket.as_raw_fd();
    let first = connect(socket.try_clone().expect("dup"), addr("10.96.0.11:1")).expect("captured");
    drop((first, accept(&app.outbound4)));
    disconnect(fd);
    starve!(&app.pod);
    socket::connect(fd, &SockaddrStorage::from(addr(SERVICE))).expect("captured");
    let (proxy, _) = accept(&app.outbound4);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));
    assert!(fixture.count(Counter::SockopsStorageFailed) >= 1);
    assert_eq!(fixture.count(Counter::SockopsAdopted), 1, "the first one");
    disconnect(fd);
    assert_eq!(
        original_dst(&proxy, libc::SOL_IP),
        Err(nix::errno::Errno::ENOENT)
    );
}

/// `connect()` to an address of no family (`AF_UNSPEC` is 0): the socket is as new.
fn disconnect(fd: i32) {
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    // SAFETY: the address outlives the call.
    let result = unsafe { libc::connect(fd, &raw const nowhere, 16) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_connection_that_the_map_has_no_room_for_stays_with_tcp() {
    accel::require!();
    // Room for one connection and one end more.
    let mut fixture = Fixture::with_max_entries(&[("ACCELERATED", 3)]);
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut first = promoted(&mut fixture, &place, &listener);
    let mut second = place.connect(&listener);
    second.exchange();
    let promotion = place.promotion(&second);
    for refused in 1..=2 {
        // Again: its first end was taken out.
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Full);
        assert_eq!(fixture.count(Counter::PromoteFull), refused);
    }
    assert_eq!((state(&second.app), state(&second.proxy)), (None, None));
    let before = redirected(&first.app);
    for _ in 0..10 {
        first.exchange();
        second.exchange();
    }
    assert_eq!(redirected(&first.app), before + 10);
    assert_eq!((state(&second.app), state(&second.proxy)), (None, None));

    drop(first);
    millrace_testkit::eventually(bpf::PATIENCE, "there is room again", || {
        promote(&mut fixture, promotion) == AccelOutcome::Done
    });
    second.exchange();
    second.exchange();
    assert_eq!(redirected(&second.app), 1);
}

#[test]
fn a_connection_without_storage_stays_with_tcp() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = place.connect(&listener);
    pair.exchange();
    starve!(place.pod());
    let promotion = place.promotion(&pair);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Full);
    assert_eq!(fixture.count(Counter::PromoteFull), 1);
    assert_eq!((state(&pair.app), state(&pair.proxy)), (None, None));
    for _ in 0..10 {
        pair.exchange();
    }
}
