//! Lets a connection of another epoch go on here.
//!
//! [`Resolver::resolve`] runs on the control thread, before the connection is taken: descriptors are
//! checked, and everything that it names is looked up in the configuration, so that nothing is taken
//! that could not be served. [`resume`] runs on the worker that has it from then on.

use std::net::TcpStream as StdStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::message::{Carried, Decline, Pair, Parcel, ParcelOrigin};
use super::parcel::{Unpacked, now_ns};
use crate::acceleration::{Lane, Side, lane::LaneState};
use crate::cluster::{ClusterEntry, Host};
use crate::http::exchange::Exchange;
use crate::http::io::SharedIo;
use crate::http::upgrade::Tunnel;
use crate::http::{Downstream, connection};
use crate::listener::DownstreamInfo;
use crate::listener::accept;
use crate::listener::accepted::{Accepted, Origin};
use crate::pods::{LocalPod, LocalPods};
use crate::resource::{FilterChain, Listener, NetworkFilter};
use crate::snapshot::{Snapshot, Store};
use crate::socket::Stream;
use crate::tcp::copy::Progress;
use crate::tcp::{self, Connected};
use crate::worker::Worker;

/// What connections of another epoch are resolved against.
pub struct Resolver {
    /// The configuration.
    pub store: Arc<Store>,
    /// Pods of this node.
    pub pods: Arc<LocalPods>,
}

/// A connection of another epoch that can be served here.
pub struct Adoptee {
    parcel: Parcel,
    contents: Unpacked,
    pod: Option<Arc<LocalPod>>,
    chain: Option<Arc<FilterChain>>,
    upstream: Option<(Arc<ClusterEntry>, Arc<Host>)>,
}

impl Adoptee {
    /// The worker that had it.
    pub fn worker(&self) -> usize {
        self.parcel.worker
    }
}

impl Resolver {
    /// Checks a connection that was given and finds what it belongs to.
    ///
    /// # Errors
    /// Where it cannot be served here; its descriptors are closed, which the giver's are not.
    pub fn resolve(&self, parcel: Parcel, fds: Vec<OwnedFd>) -> Result<Box<Adoptee>, Decline> {
        let contents = Unpacked::open(&parcel, fds).map_err(|error| {
            tracing::warn!(%error, id = parcel.connection, "a connection was given with other things");
            Decline::Malformed
        })?;
        let pod = match &parcel.pod {
            Some(uid) => Some(self.pods.by_uid(uid).ok_or(Decline::Unknown)?),
            None => None,
        };
        let snapshot = self.store.load();
        let chain = match &parcel.carried {
            Carried::Undecided { .. } => None,
            carried => Some(chain(&snapshot, &parcel, carried).ok_or(Decline::Unknown)?),
        };
        let upstream = match parcel.carried.pair() {
            // A socket in the kernel's map needs a lane, and that its pod.
            Some(Pair {
                lane: Some(lane), ..
            }) if self.pods.by_uid(lane.pod()).is_none() => return Err(Decline::Unknown),
            Some(pair) => Some(endpoint(&snapshot, pair).ok_or(Decline::Unknown)?),
            None => None,
        };
        Ok(Box::new(Adoptee {
            parcel,
            contents,
            pod,
            chain,
            upstream,
        }))
    }
}

/// The filter chain of the connection's name, of the kind that it needs.
fn chain(snapshot: &Snapshot, parcel: &Parcel, carried: &Carried) -> Option<Arc<FilterChain>> {
    let listener: &Listener = snapshot.listener(&parcel.listener)?;
    let fits = |chain: &&Arc<FilterChain>| {
        let kind = match chain.filter {
            NetworkFilter::Http(_) => !matches!(carried, Carried::Bytes { .. }),
            NetworkFilter::Tcp(_) => matches!(carried, Carried::Bytes { .. }),
        };
        kind && chain.name == parcel.filter_chain
    };
    let mut chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    chains.find(fits).cloned()
}

/// Cluster and host of an upstream connection. A host that has left the cluster keeps the connections
/// that it has.
fn endpoint(snapshot: &Snapshot, pair: &Pair) -> Option<(Arc<ClusterEntry>, Arc<Host>)> {
    let cluster = snapshot.cluster(&pair.cluster)?.clone();
    let mut hosts = cluster.hosts.iter();
    let known = hosts.find(|host| host.address() == pair.host).cloned();
    let host = known.unwrap_or_else(|| cluster.original_dst(pair.host));
    Some((cluster, host))
}

/// Goes on with a connection, to its end.
pub async fn resume(worker: Rc<Worker>, adoptee: Box<Adoptee>) {
    let id = adoptee.parcel.connection;
    let kind = adoptee.parcel.carried.name();
    let silent = now_ns().saturating_sub(adoptee.parcel.parked_ns);
    let pause = Duration::from_nanos(silent);
    match Resumed::new(&worker, *adoptee) {
        Ok(resumed) => {
            worker.handover.stats().adopted(kind, pause);
            tracing::debug!(id, kind, ?pause, "connection adopted");
            resumed.run(worker).await;
        }
        Err(error) => tracing::error!(id, kind, %error, "a connection that was taken is lost"),
    }
}

/// A connection with its sockets on this worker's runtime.
struct Resumed {
    parcel: Parcel,
    pod: Option<Arc<LocalPod>>,
    chain: Option<Arc<FilterChain>>,
    started: Instant,
    stream: Stream,
    upstream: Option<(Stream, Arc<ClusterEntry>, Arc<Host>)>,
    pending: [bytes::Bytes; 2],
}

impl Resumed {
    fn new(worker: &Worker, adoptee: Adoptee) -> std::io::Result<Self> {
        let Adoptee {
            parcel,
            contents,
            pod,
            chain,
            upstream,
        } = adoptee;
        let Unpacked { sockets, parts } = contents;
        let [unread, far_unread, out, back] = parts;
        let mut sockets = sockets.into_iter();
        let near = sockets.next().ok_or(std::io::ErrorKind::NotConnected)?;
        let lane = (Side::Downstream, parcel.lane.as_ref());
        let stream = stream(worker, near, unread, lane)?;
        let upstream = match (upstream, sockets.next(), parcel.carried.pair()) {
            (Some((cluster, host)), Some(far), Some(pair)) => {
                let lane = (Side::Upstream, pair.lane.as_ref());
                Some((self::stream(worker, far, far_unread, lane)?, cluster, host))
            }
            _ => None,
        };
        let (now, age) = (Instant::now(), Duration::from_micros(parcel.age_us));
        Ok(Self {
            started: now.checked_sub(age).unwrap_or(now),
            parcel,
            pod,
            chain,
            stream,
            upstream,
            pending: [out, back],
        })
    }

    async fn run(self, worker: Rc<Worker>) {
        let info = Rc::new(self.info());
        let Self {
            parcel,
            pod,
            chain,
            started,
            stream,
            upstream,
            pending,
        } = self;
        let progress = |pair: &Pair| {
            let flows = [(pair.out, &*pending[0]), (pair.back, &*pending[1])];
            Progress::resume(flows, Duration::from_micros(pair.idle_us))
        };
        let filter = chain.as_ref().map(|chain| &chain.filter);
        match (parcel.carried, filter, upstream) {
            (Carried::Undecided { origin }, ..) => {
                let accepted = Accepted {
                    id: parcel.connection,
                    origin: accepted_from(origin, pod.as_ref()),
                    pod,
                    peer: parcel.peer,
                    local: parcel.local,
                    orig_dst: parcel.orig_dst,
                    started,
                };
                Box::pin(accept::attend(worker, stream, accepted)).await;
            }
            (Carried::Http { http1 }, Some(NetworkFilter::Http(hcm)), _) => {
                let serving = connection::resume(worker, stream, info, hcm.clone(), http1);
                Box::pin(serving).await;
            }
            (Carried::Bytes { pair }, Some(NetworkFilter::Tcp(proxy)), Some(far)) => {
                let (far, cluster, host) = far;
                let connected = Connected::adopt(far, cluster, host, pair.attempts);
                let at = (connected, &pair, progress(&pair));
                Box::pin(tcp::resume(worker, stream, info, proxy.clone(), at)).await;
            }
            (Carried::Tunnel { pair, request }, Some(NetworkFilter::Http(hcm)), Some(far)) => {
                let (far, cluster, host) = far;
                let guard = (host.connection(), host.request());
                let downstream =
                    Downstream::new((&worker, &info, hcm), false, SharedIo::elsewhere());
                let mut exchange = Box::new(Exchange::resume(Rc::new(downstream), &request));
                let delivery = request.delivery.as_ref();
                exchange.delivery = delivery.and_then(|uid| worker.pods.by_uid(uid));
                (exchange.cluster, exchange.host) = (Some(cluster), Some(host));
                let tunnel = Tunnel {
                    near: Box::new(stream),
                    far: Box::new(far),
                    exchange,
                    progress: progress(&pair),
                    counts: (pair.received.into(), pair.sent.into()),
                };
                Box::pin(tunnel.run(guard)).await;
            }
            // `chain` found one of the right kind, and what needs an upstream came with one.
            (Carried::Http { .. } | Carried::Bytes { .. } | Carried::Tunnel { .. }, ..) => {}
        }
    }

    fn info(&self) -> DownstreamInfo {
        let parcel = &self.parcel;
        DownstreamInfo {
            id: parcel.connection,
            pod: self.pod.clone(),
            peer: parcel.peer,
            local: parcel.local,
            orig_dst: parcel.orig_dst,
            direction: parcel.direction,
            listener: parcel.listener.as_str().into(),
            filter_chain: parcel.filter_chain.clone(),
            server_name: parcel.server_name.clone(),
            started: self.started,
        }
    }
}

fn accepted_from(origin: ParcelOrigin, pod: Option<&Arc<LocalPod>>) -> Origin {
    let uid = pod.map(|pod| pod.spec.uid.clone());
    match origin {
        ParcelOrigin::Outbound => Origin::Outbound(uid),
        ParcelOrigin::Inbound => Origin::Inbound(uid),
        ParcelOrigin::Listener(name) => Origin::Listener(name.into()),
    }
}

/// A socket on this worker's runtime, as its last owner left it.
fn stream(
    worker: &Worker,
    socket: StdStream,
    unread: bytes::Bytes,
    (side, lane): (Side, Option<&LaneState>),
) -> std::io::Result<Stream> {
    let mut stream = Stream::new(TcpStream::from_std(socket)?);
    stream.unread(unread);
    let pod = lane.and_then(|state| worker.pods.by_uid(state.pod()));
    if let (Some(state), Some(pod)) = (lane, pod) {
        let lane = Lane::resume(&worker.accelerator, &pod, side, state, stream.tcp());
        stream.set_lane(lane);
    }
    Ok(stream)
}
