//! A captured connection, from what its socket says to where its client wanted to go: the same whichever way it was
//! captured.
//!
//! Input: an accepted socket and what its listening socket stands for, an [`Origin`]. Output: [`Accepted`], which finds
//! its listener in a snapshot. Called by `listener::accept`, and by `handover::adopt` for those of an earlier epoch.

use std::net::SocketAddr;
use std::sync::Arc;

use millrace_runtime::handoff::{CANARY_PORT, ListenerRole, PodUid, is_canary};
use tokio::time::Instant;

use super::DownstreamInfo;
use super::stats::Refusal;
use crate::handover::message::{Carried, Parcel, ParcelOrigin};
use crate::handover::parcel;
use crate::pods::LocalPod;
use crate::resource::{Listener, ListenerName, TrafficDirection};
use crate::snapshot::Snapshot;
use crate::socket::{self, Stream};
use crate::worker::Worker;

#[cfg(test)]
mod tests;

/// The inbound listener of a sidecar, by Istio's name.
const VIRTUAL_INBOUND: &str = "virtualInbound";

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

/// Where a connection comes in, as far as its listener depends on that.
#[derive(Clone, Copy, Debug)]
pub enum Entrance<'a> {
    /// From a pod of this namespace; `None` for a proxy of one workload.
    Outbound(Option<&'a str>),
    /// To the pod of this namespace and name; `None` for a proxy of one workload.
    Inbound(Option<(&'a str, &'a str)>),
    /// At this listener's own address.
    Listener(&'a str),
}

impl Entrance<'_> {
    /// The listener that stands for a connection to `orig_dst`.
    pub fn listener(self, snapshot: &Snapshot, orig_dst: SocketAddr) -> Option<&Arc<Listener>> {
        match self {
            Self::Outbound(namespace) => snapshot.outbound(namespace, orig_dst),
            Self::Inbound(Some((namespace, name))) => snapshot.inbound(namespace, name),
            Self::Inbound(None) => snapshot.listener(VIRTUAL_INBOUND),
            Self::Listener(name) => match snapshot.listener(name) {
                Some(listener) if listener.use_original_dst => {
                    snapshot.outbound(None, orig_dst).or(Some(listener))
                }
                listener => listener,
            },
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
    /// Reads what the socket says; refused where the client meant the proxy itself.
    pub(super) fn new(
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
    pub(super) fn is_canary(&self) -> bool {
        match self.origin {
            Origin::Outbound(_) => is_canary(self.orig_dst.ip()),
            Origin::Inbound(_) => self.orig_dst.port() == CANARY_PORT,
            Origin::Listener(_) => false,
        }
    }

    /// The listener that stands for this connection in a snapshot.
    pub(super) fn listener(&self, snapshot: &Snapshot) -> Option<Arc<Listener>> {
        let pod = self.pod.as_ref().map(|pod| &pod.spec);
        let entrance = match &self.origin {
            Origin::Outbound(_) => Entrance::Outbound(pod.map(|pod| pod.namespace.as_str())),
            Origin::Inbound(_) => Entrance::Inbound(pod.map(|pod| (&*pod.namespace, &*pod.name))),
            Origin::Listener(name) => Entrance::Listener(name.as_str()),
        };
        entrance.listener(snapshot, self.orig_dst).cloned()
    }

    /// What is known of it once it has a listener.
    pub(super) fn info(&self, listener: &Listener) -> DownstreamInfo {
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
    pub(super) fn parcel(&self, worker: &Worker, stream: &Stream) -> Parcel {
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
