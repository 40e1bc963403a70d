//! What is fuzzed of the proxy as a whole: a client that sends anything, with an upstream of which strict and
//! lax readers must read alike whatever arrives; and a predecessor that gives anything. The peers are those of
//! `tests/http`, which expect `support` in the root of their crate.

#[path = "../tests/http/smuggling/reading.rs"]
mod reading;
#[path = "../tests/http/support.rs"]
pub(crate) mod support;
#[path = "../tests/http/smuggling/upstream.rs"]
mod upstream;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millrace_proxy::acceleration::Accelerator;
use millrace_proxy::cluster::Manager;
use millrace_proxy::handover::Handover;
use millrace_proxy::handover::adopt::{self, Resolver};
use millrace_proxy::handover::message::{Described, Giving, Parcel, Taking};
use millrace_proxy::handover::parcel::Unpacked;
use millrace_proxy::listener::server_first::ServerFirst;
use millrace_proxy::listener::stats::ListenerStats;
use millrace_proxy::metrics::Telemetry;
use millrace_proxy::pods::LocalPods;
use millrace_proxy::resource::{
    ClusterSpecifier, FilterChain, FilterChainMatch, Listener, NetworkFilter, TcpProxy,
    TrafficDirection,
};
use millrace_proxy::snapshot::{Resources, Store};
use millrace_proxy::worker::Parts;
use millrace_runtime::handoff::decode;
use tokio::task::LocalSet;

use reading::{LAX, Reader};
use support::{Setup, cluster, connect, hcm};
use upstream::Upstream;

/// Follows the input, so that a request that ends before it is seen to have ended.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// How long the proxy waits for what an input leaves out.
const PATIENCE: Duration = Duration::from_millis(20);

/// A connection's bytes.
pub(crate) fn http(data: &[u8]) {
    let reader = if data.len().is_multiple_of(2) {
        Reader::Strict
    } else {
        LAX
    };
    let upstream = Upstream::new(reader);
    let proxy = Setup::new(&[upstream.address])
        .hcm(|hcm| {
            hcm.request_headers_timeout = PATIENCE;
            hcm.stream_idle_timeout = PATIENCE;
            hcm.idle_timeout = PATIENCE;
        })
        .start();
    let mut stream = connect(proxy.address);
    // Whoever refuses may be gone before the last byte.
    stream.write_all(data).ok();
    stream.write_all(NEXT).ok();
    stream.read_to_end(&mut Vec::new()).ok();
    drop(proxy);
    upstream.read_by_all("fuzz");
}

/// What a predecessor says, and a connection that it gives: a byte that tells which descriptors come with
/// it, two bits for each, the message, and after a zero the bytes of memory files.
pub(crate) fn handover(data: &[u8]) {
    let Some((parcel, kinds, bytes)) = given(data) else {
        return;
    };
    let parts = parts();
    let fds = || descriptors(&parcel, kinds, bytes);
    if let Ok(unpacked) = Unpacked::open(&parcel, fds()) {
        for (part, length) in unpacked.parts.iter().zip(parcel.lengths()) {
            assert_eq!(part.len(), length);
        }
        assert_eq!(unpacked.sockets.len(), parcel.sockets());
    }
    let resolver = Resolver {
        store: parts.store.clone(),
        pods: parts.pods.clone(),
    };
    let Ok(adoptee) = resolver.resolve(parcel.clone(), fds()) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let goes_on = async {
        let worker = Rc::new(parts.worker(0));
        // Its peers are gone, but an input may want it to wait for somebody else.
        let resumed = adopt::resume(worker, adoptee);
        tokio::time::timeout(PATIENCE, resumed).await.ok();
    };
    LocalSet::new().block_on(&runtime, goes_on);
}

/// Whether a seed is a connection that is taken.
#[allow(dead_code, reason = "libFuzzer has no such question")]
pub(crate) fn is_taken(data: &[u8]) -> bool {
    let parts = parts();
    let resolver = Resolver {
        store: parts.store.clone(),
        pods: parts.pods.clone(),
    };
    given(data).is_some_and(|(parcel, kinds, bytes)| {
        let fds = descriptors(&parcel, kinds, bytes);
        resolver.resolve(parcel, fds).is_ok()
    })
}

fn given(data: &[u8]) -> Option<(Parcel, u8, &[u8])> {
    let (kinds, rest) = data.split_first()?;
    let end = rest.iter().position(|byte| *byte == 0);
    let (text, bytes) = rest.split_at(end.unwrap_or(rest.len()));
    drop(decode::<Taking>(text, 0));
    let message = (0..=3).find_map(|fds| decode::<Giving>(text, fds).ok())?;
    match message {
        Giving::Give {
            parcel: Described::Readable(parcel),
            ..
        } => Some((*parcel, *kinds, bytes.get(1..).unwrap_or_default())),
        _ => None,
    }
}

fn descriptors(parcel: &Parcel, kinds: u8, bytes: &[u8]) -> Vec<OwnedFd> {
    let one = |index| match kinds >> (2 * index) & 3 {
        0 => tcp().into(),
        1 => memory(bytes).into(),
        2 => UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        _ => UnixStream::pair().unwrap().0.into(),
    };
    (0..parcel.fds()).map(one).collect()
}

/// A connection whose other end has said something and is gone.
fn tcp() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let near = TcpStream::connect(address).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    near
}

fn memory(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A proxy that serves `t` for bytes and `h` for HTTP.
fn parts() -> Parts {
    let (store, manager) = (Arc::new(Store::new()), Manager::new());
    let mut resources = Resources::default();
    let tcp = NetworkFilter::Tcp(Arc::new(TcpProxy {
        cluster: ClusterSpecifier::Cluster("c".into()),
        idle_timeout: Duration::from_hours(1),
        max_connect_attempts: 1,
        access_log: Vec::new(),
    }));
    let http = NetworkFilter::Http(Arc::new(hcm()));
    for (name, filter) in [("t", tcp), ("h", http)] {
        let chain = FilterChain {
            name: name.into(),
            matches: FilterChainMatch::default(),
            filter,
            origin: None,
        };
        let listener = Listener {
            name: name.into(),
            address: ([127, 0, 0, 1], 0).into(),
            bind_to_port: true,
            use_original_dst: false,
            direction: TrafficDirection::Outbound,
            workload: None,
            http_inspector: true,
            tls_inspector: true,
            listener_filters_timeout: PATIENCE,
            continue_on_listener_filters_timeout: true,
            filter_chains: vec![Arc::new(chain)],
            default_filter_chain: None,
            access_log: Vec::new(),
        };
        let listener = Arc::new(listener);
        resources.listeners.insert(listener.name.clone(), listener);
    }
    let cluster = Arc::new(cluster("c", &[]));
    resources.clusters.insert(cluster.name.clone(), cluster);
    store.publish(&resources, &manager);
    Parts {
        store,
        pods: Arc::new(LocalPods::default()),
        own_addresses: Arc::from([]),
        telemetry: Telemetry::new(),
        stats: ListenerStats::default(),
        server_first: ServerFirst::default(),
        accelerator: Accelerator::none(),
        handover: Handover::none(),
    }
}
