//! Accepts connections of one listening socket and hands each to the filter chain that takes it.
//!
//! Input: sockets that the broker or `listener::bind` made, each with its [`Origin`]. Output: a
//! task per connection that ends in `http::connection::serve` or `tcp::serve`. A connection that
//! nobody takes is reset and counted by [`Refusal`]; the agent's canaries are answered here.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_runtime::handoff::{CANARY_PORT, ListenerRole, PodUid, canary_answer, is_canary};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::DownstreamInfo;
use super::detect::{self, Choice, Chosen};
use super::stats::Refusal;
use crate::acceleration::Side;
use crate::access_log::Record;
use crate::flags::ResponseFlags;
use crate::handover::Turn;
use crate::handover::message::{Carried, Parcel, ParcelOrigin};
use crate::handover::parcel::{self, Contents};
use crate::http;
use crate::pods::LocalPod;
use crate::resource::{Listener, ListenerName, NetworkFilter, TrafficDirection};
use crate::snapshot::Snapshot;
use crate::socket::{self, Stream, canonical};
use crate::tcp;
use crate::worker::Worker;

/// How long a connection waits for configuration that names its listener: as long as a warming
/// resource may take.
const CONFIGURATION_WAIT: Duration = Duration::from_secs(15);
/// Pause after a failed accept (descriptors or memory are short).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listening socket stands for.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Port 15001: where applications connect to.
    Outbound(Option<PodUid>),
    /// Port 15006: what others connect to.
    Inbound(Option<PodUid>),
    /// A listener's own address.
    Listener(ListenerName),
}

/// Accepts until `stop` is cancelled or the worker drains. Connections in the backlog stay there
/// for whoever else holds the socket.
pub async fn run(
    worker: Rc<Worker>,
    listener: TcpListener,
    origin: Origin,
    stop: CancellationToken,
) {
    let mut stopped = pin!(stop.cancelled());
    let leaving = worker.leaving.clone();
    let mut leaving = pin!(leaving.cancelled());
    loop {
        // biased: a stop must not lose against a busy listener.
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            () = &mut leaving => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                let connection = serve(worker.clone(), io, canonical(peer), origin.clone());
                worker.tasks.spawn_local(connection);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                worker.stats.accept_failed();
                tracing::warn!(%error, ?origin, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors that accept(2) passes on from a connection that is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn serve(worker: Rc<Worker>, io: TcpStream, peer: SocketAddr, origin: Origin) {
    let mut stream = Stream::new(io);
    let accepted = match Accepted::new(&worker, &stream, peer, origin) {
        Ok(accepted) => accepted,
        Err(refusal) => return refuse(&worker, &stream, peer, refusal),
    };
    if accepted.is_canary() {
        return answer_canary(&worker, stream, &accepted).await;
    }
    if let (Origin::Outbound(_), Some(pod)) = (&accepted.origin, &accepted.pod) {
        stream.set_lane(worker.accelerator.lane(pod, Side::Downstream));
    }
    attend(worker, stream, accepted).await;
}

/// Finds listener and chain of a connection and serves it; hands it over where it is still undecided
/// when the worker leaves.
pub(crate) async fn attend(worker: Rc<Worker>, mut stream: Stream, accepted: Accepted) {
    let mut parking = worker.parking();
    loop {
        let listener = tokio::select! {
            biased;
            listener = configured(&worker, &accepted) => match listener {
                Some(listener) => Ok(listener),
                None => return refuse(&worker, &stream, accepted.peer, Refusal::NoListener),
            },
            turn = parking.turn() => Err(turn),
        };
        let turn = match listener {
            Err(turn) => turn,
            Ok(listener) => {
                let park = parking.turn();
                match serve_chain(&worker, &mut stream, &accepted, &listener, park).await {
                    Decided::Refused => return,
                    Decided::Taken(info, choice) => {
                        return hand_to_chain(worker, stream, info, choice).await;
                    }
                    Decided::Parked(turn) => turn,
                }
            }
        };
        let parcel = accepted.parcel(&worker, &stream);
        let contents = Contents::of_one(&stream);
        if parking.give(turn, parcel, contents).await {
            return stream.let_go();
        }
    }
}

/// Tells the agent that its canary arrived, and at whose listener.
async fn answer_canary(worker: &Worker, mut stream: Stream, accepted: &Accepted) {
    worker.stats.canary();
    let uid = accepted.pod.as_ref().map(|pod| pod.spec.uid.clone());
    let answer = canary_answer(&uid.unwrap_or_default());
    if let Err(error) = stream.write_all(answer.as_bytes()).await {
        tracing::debug!(peer = %accepted.peer, %error, "canary is gone");
    }
}

fn refuse(worker: &Worker, stream: &Stream, peer: SocketAddr, refusal: Refusal) {
    worker.stats.refused(refusal);
    tracing::debug!(%peer, ?refusal, "connection refused");
    stream.reset_on_close();
}

/// One access log record for a connection that no filter chain took.
fn record(worker: &Worker, listener: &Arc<Listener>, info: &DownstreamInfo, refusal: Refusal) {
    let loggers = worker.telemetry.loggers(listener, &listener.access_log);
    if loggers.is_empty() {
        return;
    }
    let began = SystemTime::now() - info.started.elapsed();
    let mut record = Record::new(began, info.orig_dst, info.peer);
    record.duration = info.started.elapsed();
    record.flags = match refusal {
        Refusal::NoFilterChain => ResponseFlags::NO_ROUTE,
        Refusal::Gone => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
        Refusal::Loop | Refusal::NoListener | Refusal::InspectionTimeout => ResponseFlags::NONE,
    };
    record.termination_details =
        (refusal == Refusal::InspectionTimeout).then_some("listener_filter_timeout");
    record.connection_id = info.id;
    loggers.record(&record);
}

/// What became of a connection that has a listener.
enum Decided {
    /// No chain takes it; it has been told so.
    Refused,
    /// This chain takes it.
    Taken(Rc<DownstreamInfo>, Choice),
    /// It is to be handed over.
    Parked(Turn),
}

async fn serve_chain(
    worker: &Worker,
    stream: &mut Stream,
    accepted: &Accepted,
    listener: &Arc<Listener>,
    park: impl Future<Output = Turn>,
) -> Decided {
    let mut info = accepted.info(listener);
    match detect::choose(worker, stream, &mut info, listener, park).await {
        Ok(Chosen::Chain(choice)) => {
            tracing::trace!(id = info.id, listener = %info.listener, chain = info.filter_chain,
                orig_dst = %info.orig_dst, "filter chain chosen");
            Decided::Taken(Rc::new(info), choice)
        }
        Ok(Chosen::Parked(turn)) => Decided::Parked(turn),
        Err(refusal) => {
            record(worker, listener, &info, refusal);
            refuse(worker, stream, info.peer, refusal);
            Decided::Refused
        }
    }
}

async fn hand_to_chain(
    worker: Rc<Worker>,
    stream: Stream,
    info: Rc<DownstreamInfo>,
    choice: Choice,
) {
    match &choice.chain.filter {
        NetworkFilter::Http(hcm) => {
            Box::pin(http::connection::serve(worker, stream, info, hcm.clone())).await;
        }
        NetworkFilter::Tcp(proxy) => {
            Box::pin(tcp::serve(
                worker,
                stream,
                info,
                proxy.clone(),
                choice.upstream,
            ))
            .await;
        }
    }
}

/// A connection whose destination is known.
pub(crate) struct Accepted {
    pub(crate) id: u64,
    pub(crate) pod: Option<Arc<LocalPod>>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) orig_dst: SocketAddr,
    pub(crate) origin: Origin,
    pub(crate) started: Instant,
}

impl Accepted {
    fn new(
        worker: &Worker,
        stream: &Stream,
        peer: SocketAddr,
        origin: Origin,
    ) -> Result<Self, Refusal> {
        let local = stream.local_addr().map_err(|_| Refusal::Gone)?;
        let uid = match &origin {
            Origin::Outbound(uid) | Origin::Inbound(uid) => uid.as_ref(),
            Origin::Listener(_) => None,
        };
        let pod = uid.and_then(|uid| worker.pods.by_uid(uid));
        let orig_dst = destination(&origin, local, || socket::orig_dst(stream, local))?;
        let captured = !matches!(origin, Origin::Listener(_));
        if captured && worker.connector.is_capture_port(pod.as_ref(), orig_dst) {
            return Err(Refusal::Loop);
        }
        Ok(Self {
            id: worker.next_connection_id(),
            peer: client_address(&origin, pod.as_deref(), peer),
            pod,
            local,
            orig_dst,
            origin,
            started: Instant::now(),
        })
    }

    /// Whether it is the agent's, made to see that capture works; it goes no further.
    fn is_canary(&self) -> bool {
        match self.origin {
            Origin::Outbound(_) => is_canary(self.orig_dst.ip()),
            Origin::Inbound(_) => self.orig_dst.port() == CANARY_PORT,
            Origin::Listener(_) => false,
        }
    }

    /// The listener that stands for this connection in a snapshot.
    fn listener(&self, snapshot: &Snapshot) -> Option<Arc<Listener>> {
        let spec = self.pod.as_ref().map(|pod| &pod.spec);
        let found = match &self.origin {
            Origin::Outbound(_) => {
                snapshot.outbound(spec.map(|s| s.namespace.as_str()), self.orig_dst)
            }
            Origin::Inbound(_) => match spec {
                Some(spec) => snapshot.inbound(&spec.namespace, &spec.name),
                None => snapshot.listener(VIRTUAL_INBOUND),
            },
            Origin::Listener(name) => match snapshot.listener(name.as_str()) {
                Some(listener) if listener.use_original_dst => {
                    snapshot.outbound(None, self.orig_dst).or(Some(listener))
                }
                listener => listener,
            },
        };
        found.cloned()
    }

    fn info(&self, listener: &Listener) -> DownstreamInfo {
        DownstreamInfo {
            id: self.id,
            pod: self.pod.clone(),
            peer: self.peer,
            local: self.local,
            orig_dst: self.orig_dst,
            direction: match self.origin {
                Origin::Outbound(_) => TrafficDirection::Outbound,
                Origin::Inbound(_) => TrafficDirection::Inbound,
                Origin::Listener(_) => listener.direction,
            },
            listener: listener.name.clone(),
            filter_chain: String::new(),
            server_name: None,
            started: self.started,
        }
    }

    /// The connection as the next epoch gets it.
    fn parcel(&self, worker: &Worker, stream: &Stream) -> Parcel {
        let (origin, direction) = match &self.origin {
            Origin::Outbound(_) => (ParcelOrigin::Outbound, TrafficDirection::Outbound),
            Origin::Inbound(_) => (ParcelOrigin::Inbound, TrafficDirection::Inbound),
            Origin::Listener(name) => {
                let name = ParcelOrigin::Listener(name.to_string());
                (name, TrafficDirection::Unspecified)
            }
        };
        let info = DownstreamInfo {
            id: self.id,
            pod: self.pod.clone(),
            peer: self.peer,
            local: self.local,
            orig_dst: self.orig_dst,
            direction,
            listener: "".into(),
            filter_chain: String::new(),
            server_name: None,
            started: self.started,
        };
        parcel::describe(worker, &info, stream, Carried::Undecided { origin })
    }
}

/// The inbound listener of a sidecar, by Istio's name.
const VIRTUAL_INBOUND: &str = "virtualInbound";

/// Where the client wanted to go. A connection that was made to a capture port itself has no
/// destination but the proxy, and forwarding it would never end.
fn destination(
    origin: &Origin,
    local: SocketAddr,
    redirected: impl FnOnce() -> Option<SocketAddr>,
) -> Result<SocketAddr, Refusal> {
    let capture_port = match origin {
        Origin::Outbound(_) => ListenerRole::Outbound.port(),
        Origin::Inbound(_) => ListenerRole::Inbound.port(),
        Origin::Listener(_) => return Ok(redirected().unwrap_or(local)),
    };
    // A steered connection (sk_lookup, TPROXY) keeps its destination as its local address.
    if local.port() != capture_port {
        return Ok(local);
    }
    match redirected() {
        Some(orig_dst) if orig_dst != local => Ok(orig_dst),
        _ => Err(Refusal::Loop),
    }
}

/// The client as others know it: a connect hook sends applications to loopback, and their
/// sockets then have a loopback address.
fn client_address(origin: &Origin, pod: Option<&LocalPod>, peer: SocketAddr) -> SocketAddr {
    match (origin, pod) {
        (Origin::Outbound(_), Some(pod)) if peer.ip().is_loopback() => {
            let ip = pod.address_like(peer.ip()).unwrap_or(peer.ip());
            SocketAddr::new(ip, peer.port())
        }
        _ => peer,
    }
}

/// The listener of a connection, waiting for the configuration to have one: a pod may be
/// enrolled before its resources have come.
async fn configured(worker: &Worker, accepted: &Accepted) -> Option<Arc<Listener>> {
    if let Some(listener) = accepted.listener(&worker.snapshot.load()) {
        return Some(listener);
    }
    let mut generations = worker.generations.clone();
    let wait = async {
        loop {
            generations.mark_unchanged();
            if let Some(listener) = accepted.listener(&worker.snapshot.load()) {
                return Some(listener);
            }
            if generations.changed().await.is_err() {
                return None;
            }
        }
    };
    // biased: a drain ends the wait at once.
    tokio::select! {
        biased;
        () = worker.drain.cancelled() => None,
        found = tokio::time::timeout(CONFIGURATION_WAIT, wait) => found.ok().flatten(),
    }
}

#[cfg(test)]
mod tests;
