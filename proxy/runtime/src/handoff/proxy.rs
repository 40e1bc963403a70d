//! Messages between a proxy and the broker.
//!
//! A proxy says `Hello`, gives back what an earlier broker gave it (`Return`, one message per pod
//! and batch), says `Ready`, and from then on hears of pods. `PodUp` for a pod that the proxy knows is an
//! update: by `cookie` the proxy sees which sockets it already holds and closes the duplicates;
//! a socket that is no longer listed is dropped. A pod that the proxy returned stays up until
//! `PodDown`, also when the broker does not mention it before `Synced`.

use serde::{Deserialize, Serialize};

use super::Message;
use super::pod::{CaptureMode, Families, Family, PodSpec, PodUid};

/// What an in-pod listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerRole {
    /// TCP 15001: what the pod's applications connect to.
    Outbound,
    /// TCP 15006: what others connect to in the pod; may accept for any local address.
    Inbound,
    /// UDP 15053.
    DnsUdp,
    /// TCP 15053.
    DnsTcp,
}

impl ListenerRole {
    /// Every role, in the order in which the broker makes sockets.
    pub const ALL: [Self; 4] = [Self::Outbound, Self::Inbound, Self::DnsUdp, Self::DnsTcp];

    /// The port inside the pod's network namespace.
    pub const fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Inbound => 15006,
            Self::DnsUdp | Self::DnsTcp => 15053,
        }
    }

    /// Whether sockets of this role are datagram sockets (bound, not listening).
    pub const fn is_datagram(self) -> bool {
        matches!(self, Self::DnsUdp)
    }
}

/// The address that a listening socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerFamily {
    /// `0.0.0.0`.
    V4,
    /// `[::]`, IPv4 included (addresses appear v4-mapped).
    Dual,
}

/// Names one listening socket of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListenerLabel {
    /// What it is for.
    pub role: ListenerRole,
    /// Number of the socket in its `SO_REUSEPORT` group; worker `index % workers` serves it, so a
    /// proxy with fewer workers than its predecessor still empties every backlog.
    pub index: u16,
    /// What it is bound to.
    pub family: ListenerFamily,
    /// The kernel's `SO_COOKIE`: equal for every duplicate of one socket, never reused.
    pub cookie: u64,
}

/// Puts labels (and whatever travels with them) into the canonical order.
pub fn sort_listeners<T>(listeners: &mut [(ListenerLabel, T)]) {
    listeners.sort_by_key(|(label, _)| *label);
}

/// What an unconnected socket from a pod's namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketKind {
    /// TCP, mark 0x539: connects away from the pod.
    Outbound,
    /// TCP, mark 0x10539, transparent: bound to the client's address, connects to the pod's own
    /// application.
    Delivery,
    /// UDP, mark 0x539: asks resolvers from the pod's namespace.
    Datagram,
}

/// Proxy → broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProxyRequest {
    /// First message.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the proxy.
        version: u32,
        /// Restart epoch; the highest one that is not draining is the current proxy.
        epoch: u32,
        /// Worker threads, 1 to [`super::MAX_WORKERS`].
        workers: u16,
        /// The proxy's own process id.
        pid: u32,
    },
    /// Listening sockets of a pod that an earlier broker handed out; descriptors in label order.
    Return {
        /// The pod.
        uid: PodUid,
        /// One label per descriptor.
        listeners: Vec<ListenerLabel>,
    },
    /// Everything is returned; the broker may announce pods.
    Ready,
    /// Asks for unconnected sockets.
    Want {
        /// The pod to make them in.
        uid: PodUid,
        /// What for.
        kind: SocketKind,
        /// Address family.
        family: Family,
        /// How many, at most [`super::MAX_WANT`].
        count: u16,
    },
    /// Sent every [`super::HEARTBEAT_INTERVAL`].
    Heartbeat,
    /// This proxy accepts nothing new any more; it may still ask for sockets.
    Draining,
}

impl Message for ProxyRequest {
    fn fd_count(&self) -> usize {
        match self {
            Self::Return { listeners, .. } => listeners.len(),
            _ => 0,
        }
    }
}

/// Broker → proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// Answer to `Hello`.
    Welcome {
        /// [`super::PROTOCOL_VERSION`] of the broker.
        version: u32,
        /// The broker's process id.
        pid: u32,
    },
    /// The broker will not serve this proxy and closes.
    Refused {
        /// Why.
        reason: String,
    },
    /// A pod is there, or has changed; descriptors in label order.
    PodUp {
        /// The pod.
        pod: Box<PodSpec>,
        /// Address families of its namespace.
        families: Families,
        /// How it is captured.
        capture: CaptureMode,
        /// One label per descriptor of this message.
        listeners: Vec<ListenerLabel>,
        /// How many sockets the pod has in all; the rest follows in `Listeners`.
        total: usize,
    },
    /// More sockets of the pod that the preceding `PodUp` named.
    Listeners {
        /// The pod.
        uid: PodUid,
        /// One label per descriptor.
        listeners: Vec<ListenerLabel>,
    },
    /// The pod is gone or no longer enrolled: close its listeners, finish its connections.
    PodDown {
        /// The pod.
        uid: PodUid,
    },
    /// Every pod that the broker knew at `Ready` has been announced.
    Synced,
    /// Unconnected sockets, as wanted; fewer than asked for is a valid answer.
    Sockets {
        /// The pod that they were made in.
        uid: PodUid,
        /// What for.
        kind: SocketKind,
        /// Address family.
        family: Family,
        /// Number of descriptors.
        count: u16,
    },
    /// A `Want` that cannot be met.
    WantFailed {
        /// The pod.
        uid: PodUid,
        /// What for.
        kind: SocketKind,
        /// Address family.
        family: Family,
        /// Why not.
        reason: String,
    },
    /// The pod's capture changed; sockets stay as they are.
    CaptureChanged {
        /// The pod.
        uid: PodUid,
        /// How it is captured now.
        capture: CaptureMode,
    },
}

impl Message for ToProxy {
    fn fd_count(&self) -> usize {
        match self {
            Self::PodUp { listeners, .. } | Self::Listeners { listeners, .. } => listeners.len(),
            Self::Sockets { count, .. } => usize::from(*count),
            _ => 0,
        }
    }
}
