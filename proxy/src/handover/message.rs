//! What an old epoch of the proxy and its successor say to each other on `takeover.sock`.
//!
//! The old epoch connects and says `Hello`; the new one answers `Welcome` once it serves. Each
//! connection then takes three steps: `Give` (description, sockets, bytes), `Taken`, `Go`. The giver has
//! stopped reading and writing before `Give`; the taker touches nothing before `Go`. What was not
//! answered `Taken` stays with the giver. Where the giver's process dies, what it had given and not let
//! go is the taker's: the [`will`](super::will) that came first says so, and a giver that lives revokes it
//! before it ends the conversation. A taker that lost the thread says `Stop` and listens until then, since
//! a `Go` may be on its way.
//!
//! Two builds of one [`VERSION`] understand each other: messages grow by fields that may be absent, a
//! reason that is not known is one like another, and a description that cannot be read declines its
//! connection alone. `Hello`, `Welcome` and `Refused` are the same in every version.

use std::net::SocketAddr;

use millrace_runtime::handoff::{Message, PodUid};
use serde::{Deserialize, Serialize};

use crate::acceleration::lane::LaneState;
use crate::resource::TrafficDirection;

/// Version spoken by this build. Epochs of different versions do not hand connections over.
pub const VERSION: u32 = 2;
/// Connections that are given and not yet settled at a time: each is silent meanwhile.
pub const WINDOW: usize = 64;
/// Most bytes that travel with a connection: what either direction holds back, and what was read of
/// both ends and put back.
pub const MAX_BYTES: usize = 1 << 20;

/// Old epoch → new epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Giving {
    /// First message.
    Hello {
        /// [`VERSION`] of the giver.
        version: u32,
        /// Its epoch.
        epoch: u32,
        /// Its process id.
        pid: u32,
    },
    /// Follows `Welcome`, with the [`Will`](super::will::Will).
    Will,
    /// A connection: its sockets, then a memory file with its bytes if it has any.
    Give {
        /// Chosen by the giver, repeated in the answer.
        id: u64,
        /// How many descriptors come with it.
        fds: u8,
        /// What it is.
        parcel: Described,
    },
    /// A connection that was taken is the taker's from now on.
    Go {
        /// Its number.
        id: u64,
    },
}

impl Giving {
    /// A connection with as many descriptors as it consists of.
    pub fn give(id: u64, parcel: Box<Parcel>) -> Self {
        Self::Give {
            id,
            // Never more than three.
            fds: u8::try_from(parcel.fds()).unwrap_or(u8::MAX),
            parcel: Described::Readable(parcel),
        }
    }
}

impl Message for Giving {
    fn fd_count(&self) -> usize {
        match self {
            Self::Will => 1,
            Self::Give { fds, .. } => usize::from(*fds),
            Self::Hello { .. } | Self::Go { .. } => 0,
        }
    }
}

/// A description, as far as this build can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Described {
    /// It can.
    Readable(Box<Parcel>),
    /// It is of a build that says what this one does not know, or damaged.
    Unreadable(serde_json::Value),
}

/// New epoch → old epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Taking {
    /// Answer to `Hello`: connections may be given.
    Welcome {
        /// [`VERSION`] of the taker.
        version: u32,
        /// Its epoch.
        epoch: u32,
        /// Its process id.
        pid: u32,
    },
    /// Answer to the `Hello` of another version.
    Refused {
        /// [`VERSION`] of the taker.
        version: u32,
    },
    /// The connection can be served; it waits for `Go`.
    Taken {
        /// Its number.
        id: u64,
    },
    /// The taker cannot go on with the conversation; the giver is to end it.
    Stop,
    /// The connection stays with the giver.
    Declined {
        /// Its number.
        id: u64,
        /// Why.
        reason: Decline,
    },
}

impl Message for Taking {
    fn fd_count(&self) -> usize {
        0
    }
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decline {
    /// The taker is being replaced itself.
    Leaving,
    /// Its configuration has no such pod, listener, filter chain or cluster.
    Unknown,
    /// The description contradicts itself or its descriptors, or cannot be read.
    Malformed,
    /// It needs the descriptors that it has left for new connections.
    Full,
    /// Another build's.
    #[serde(other)]
    Other,
}

impl Decline {
    /// As metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaving => "leaving",
            Self::Unknown => "unknown",
            Self::Malformed => "malformed",
            Self::Full => "full",
            Self::Other => "other",
        }
    }
}

/// A downstream connection and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// Its number in access logs.
    pub connection: u64,
    /// The worker that had it.
    pub worker: usize,
    /// The pod in whose namespace it was accepted.
    pub pod: Option<PodUid>,
    /// Whose traffic it is.
    pub direction: TrafficDirection,
    /// The client.
    pub peer: SocketAddr,
    /// The accepted socket's own address.
    pub local: SocketAddr,
    /// Where the client wanted to go.
    pub orig_dst: SocketAddr,
    /// Its listener; empty where none was chosen yet.
    pub listener: String,
    /// Its filter chain.
    pub filter_chain: String,
    /// SNI.
    pub server_name: Option<String>,
    /// Microseconds since it was accepted.
    pub age_us: u64,
    /// When it fell silent, in nanoseconds since 1970.
    pub parked_ns: u64,
    /// Bytes that were read from the client and put back.
    pub unread: usize,
    /// How far its acceleration is.
    pub lane: Option<LaneState>,
    /// What it carries.
    pub carried: Carried,
}

/// What the listening socket stands for that a connection was accepted from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParcelOrigin {
    /// Port 15001.
    Outbound,
    /// Port 15006.
    Inbound,
    /// The own address of the listener of this name.
    Listener(String),
}

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Carried {
    /// Nobody knows yet: no filter chain has it.
    Undecided {
        /// What it was accepted from.
        origin: ParcelOrigin,
    },
    /// HTTP, between two requests or before the first.
    Http {
        /// Whether it is known to be HTTP/1.
        http1: bool,
    },
    /// Bytes.
    Bytes {
        /// The way of the bytes.
        pair: Pair,
    },
    /// Bytes, after an upgrade or CONNECT over HTTP/1.
    Tunnel {
        /// The way of the bytes.
        pair: Pair,
        /// The request that asked for it, for its access log record.
        request: Box<TunnelRequest>,
    },
}

impl Carried {
    /// As metrics show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Undecided { .. } => "undecided",
            Self::Http { .. } => "http",
            Self::Bytes { .. } => "tcp",
            Self::Tunnel { .. } => "tunnel",
        }
    }

    /// The way of the bytes, where there is one.
    pub fn pair(&self) -> Option<&Pair> {
        match self {
            Self::Bytes { pair } | Self::Tunnel { pair, .. } => Some(pair),
            Self::Undecided { .. } | Self::Http { .. } => None,
        }
    }
}

/// The upstream connection that a downstream connection is tied to, and what is between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The cluster.
    pub cluster: String,
    /// The endpoint.
    pub host: SocketAddr,
    /// How many connects it took.
    pub attempts: u32,
    /// Bytes that were read from the endpoint and put back.
    pub unread: usize,
    /// How far the acceleration of the upstream connection is.
    pub lane: Option<LaneState>,
    /// From the client to the endpoint.
    pub out: Flow,
    /// From the endpoint to the client.
    pub back: Flow,
    /// Bytes read from the client so far.
    pub received: u64,
    /// Bytes read from the endpoint so far.
    pub sent: u64,
    /// Microseconds since the last byte.
    pub idle_us: u64,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes that were read and are not written yet.
    pub pending: usize,
    /// The source has ended.
    pub ended: bool,
    /// ... and the sink knows.
    pub told: bool,
    /// The sink takes nothing any more: the error number.
    pub broken: Option<i32>,
}

/// A request that became a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRequest {
    /// `:method`.
    pub method: String,
    /// `:path`.
    pub path: String,
    /// `:authority`.
    pub authority: String,
    /// The client, as far as it could be trusted.
    pub remote: std::net::IpAddr,
    /// Status of the answer.
    pub status: u16,
    /// Name of its route.
    pub route: Option<String>,
    /// This end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// The pod of this node that the upstream connection leads into.
    pub delivery: Option<PodUid>,
    /// Microseconds since the request came.
    pub age_us: u64,
    /// Bound of the time without a byte, in microseconds; 0 is none.
    pub idle_timeout_us: u64,
    /// Headers that the access log asks for: of the request, of the response.
    pub headers: [Vec<(String, String)>; 2],
}

impl Parcel {
    /// How many sockets it consists of.
    pub fn sockets(&self) -> usize {
        1 + usize::from(self.carried.pair().is_some())
    }

    /// How many descriptors travel with it.
    pub fn fds(&self) -> usize {
        self.sockets() + usize::from(self.bytes() > 0)
    }

    /// Lengths of its bytes, in the order in which they lie in the memory file: put back of the
    /// client's, put back of the endpoint's, on the way to the endpoint, on the way to the client.
    pub fn lengths(&self) -> [usize; 4] {
        let pair = self.carried.pair();
        let of = |length: fn(&Pair) -> usize| pair.map_or(0, length);
        [
            self.unread,
            of(|pair| pair.unread),
            of(|pair| pair.out.pending),
            of(|pair| pair.back.pending),
        ]
    }

    /// How many bytes travel with it.
    pub fn bytes(&self) -> usize {
        let add = |sum: usize, length| sum.saturating_add(length);
        self.lengths().into_iter().fold(0, add)
    }
}

#[cfg(test)]
mod tests;
