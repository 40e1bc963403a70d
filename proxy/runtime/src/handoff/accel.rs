//! Messages between a proxy and the agent about accelerated connections (`accel.sock`), and what
//! the proxy's end of such a connection has to keep to.
//!
//! A connection between an application and the proxy starts as plain TCP over loopback. When it
//! has earned it, the proxy asks for its *promotion*; the agent puts both ends into the kernel's
//! map in one step, or neither, and says which. From then on the kernel decides at every message,
//! per direction, whether it goes straight into the other end's queue or through TCP as before. No
//! answer, no agent or a refusal means plain TCP, and a broken `accel.sock` changes nothing for
//! connections that are promoted. Nobody is told of a promoted connection that closes.
//!
//! **Conversation.** The proxy sends [`AccelCall::Hello`], the agent [`AccelReply::Welcome`]. Then the
//! proxy sends [`AccelCall::Promote`] whenever it likes, up to [`MAX_PROMOTIONS`] connections in a
//! message, and gets one [`PromotionResult`] for each, in any order and grouping, by its number.
//! Where [`Refusal::is_final`] holds, asking again for the same connection is of no use.
//!
//! **The proxy's part.** For a promoted connection the proxy
//! 1. reads until `EAGAIN`: a short read does not mean that nothing is left, as redirected bytes and bytes
//!    by TCP come from two queues and one `recv` returns one kind;
//! 2. decides before the first byte of a message to the application which way it goes, and sends what
//!    goes by the map whole, in one system call, at most [`MAX_REDIRECTED`] bytes. Anything larger,
//!    streamed, or interim (1xx), and every upgrade, goes by TCP to its last byte;
//! 3. sends nothing by the map while the application may have unread bytes of it: HTTP/1.1 without
//!    pipelining sees to that; a client that pipelines is withdrawn;
//! 4. closes with a reset (linger 0) where it closes with unread bytes, as TCP would;
//! 5. leaves `IP_TOS` alone, which sets `SO_PRIORITY`, too.
//!
//! **Marks.** `SO_PRIORITY` of the proxy's own socket tells the kernel programs, from the next message on:
//! [`PRIORITY_NORMAL`] lets the rules decide, [`PRIORITY_BY_TCP`] sends by TCP what the proxy sends,
//! [`PRIORITY_WITHDRAWN`] sends by TCP what either end sends. No capability is needed for them, nobody is
//! asked, and any other value counts as withdrawn. Both may be set before promotion.
//!
//! **Counters.** `getsockopt` with [`SOCKOPT_LEVEL`] and [`SOCKOPT_STATE`] on the proxy's end answers
//! [`AccelState::SIZE`] bytes for [`AccelState::from_bytes`]; it fails (`ENOPROTOOPT`) where the
//! connection is not promoted.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Message;
use super::pod::{PodSpec, PodUid};

/// Most connections that one [`AccelCall::Promote`] names.
pub const MAX_PROMOTIONS: usize = 128;
/// Most bytes of a message that the proxy sends by the map; the kernel sends longer ones by TCP.
pub const MAX_REDIRECTED: usize = 16 * 1024;

/// `SO_PRIORITY` of the proxy's socket: the rules decide about each message.
pub const PRIORITY_NORMAL: u32 = 0;
/// `SO_PRIORITY` of the proxy's socket: what it sends goes by TCP.
pub const PRIORITY_BY_TCP: u32 = 2;
/// `SO_PRIORITY` of the proxy's socket: what either end sends goes by TCP.
pub const PRIORITY_WITHDRAWN: u32 = 1;

/// Level of the socket option that tells an end's [`AccelState`].
pub const SOCKOPT_LEVEL: i32 = 0x4d72;
/// Name of the socket option that tells an end's [`AccelState`].
pub const SOCKOPT_STATE: i32 = 1;

/// Annotation of a pod or namespace that holds its [`Acceleration`].
pub const ACCELERATION_ANNOTATION: &str = "millrace.io/acceleration";

/// `millrace.io/acceleration`: which connections of a pod may be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// Those that the proxy has recognised as HTTP/1.1 keep-alive without pipelining.
    Auto,
    /// Any: the operator vouches for the pod's programs.
    On,
    /// None.
    Off,
}

impl Acceleration {
    /// What holds for a pod whose annotations and namespace say nothing.
    pub const DEFAULT: Self = Self::Off;

    /// The setting of this name.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "on" => Some(Self::On),
            "off" => Some(Self::Off),
            _ => None,
        }
    }

    /// What the description of a pod says that came from the broker; the agent has written there
    /// what its namespace and the default say. `Off` where nothing can be read.
    pub fn of(pod: &PodSpec) -> Self {
        let text = pod.annotations.get(ACCELERATION_ANNOTATION);
        text.and_then(|text| Self::parse(text.trim()))
            .unwrap_or(Self::Off)
    }
}

impl Default for Acceleration {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// A connection to be promoted. Both its ends are in the network namespace of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionRequest {
    /// Chosen by the proxy, repeated in the result.
    pub id: u64,
    /// The pod.
    pub uid: PodUid,
    /// Local address of the proxy's socket; the application's is the other one.
    pub local: SocketAddr,
    /// Remote address of the proxy's socket.
    pub remote: SocketAddr,
}

/// What became of a [`PromotionRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionResult {
    /// Number of the request.
    pub id: u64,
    /// `None`: both ends are in the map. Else the connection is plain TCP as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// Why a connection stays plain TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// This node cannot accelerate; `Welcome` said why.
    Unavailable,
    /// The agent does not know the pod, or does not capture it by eBPF.
    UnknownPod,
    /// The pod's setting is `off`.
    Off,
    /// One of the ends is not there (any more).
    NotFound,
    /// An end is not in state ESTABLISHED.
    NotEstablished,
    /// The local end is not a socket of the proxy's, or the remote end is.
    NotProxys,
    /// Connected before the pod was captured.
    Unknown,
    /// The application has not accepted the connection yet.
    NotAccepted,
    /// An end's socket blocks.
    Blocking,
    /// The application set an option that acceleration cannot honour.
    SocketOption,
    /// An end is Multipath TCP.
    Mptcp,
    /// An end is in a map already.
    InUse,
    /// The kernel does not take an end (TLS in the kernel and the like).
    Unsupported,
    /// The map is full, or memory is short.
    Full,
    /// The kernel refused in another way; the agent's log has it.
    Failed,
}

impl Refusal {
    /// As it is written in messages and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::UnknownPod => "unknown_pod",
            Self::Off => "off",
            Self::NotFound => "not_found",
            Self::NotEstablished => "not_established",
            Self::NotProxys => "not_proxys",
            Self::Unknown => "unknown",
            Self::NotAccepted => "not_accepted",
            Self::Blocking => "blocking",
            Self::SocketOption => "socket_option",
            Self::Mptcp => "mptcp",
            Self::InUse => "in_use",
            Self::Unsupported => "unsupported",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }

    /// Whether asking again for the same connection is of no use.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::NotAccepted | Self::Full | Self::Failed)
    }
}

/// Proxy → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AccelCall {
    /// First message.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the proxy.
        version: u32,
        /// The proxy's own process id.
        pid: u32,
    },
    /// Asks for connections to be promoted.
    Promote {
        /// At most [`MAX_PROMOTIONS`]; further ones are refused as `full`.
        requests: Vec<PromotionRequest>,
    },
}

impl Message for AccelCall {
    fn fd_count(&self) -> usize {
        0
    }
}

/// Agent → proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AccelReply {
    /// Answer to `Hello`.
    Welcome {
        /// [`super::PROTOCOL_VERSION`] of the agent; where it is another one the agent closes.
        version: u32,
        /// Why nothing can be accelerated on this node, if so: the proxy need not ask.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unavailable: Option<String>,
    },
    /// What became of connections.
    Promoted {
        /// One per request.
        results: Vec<PromotionResult>,
    },
}

impl Message for AccelReply {
    fn fd_count(&self) -> usize {
        0
    }
}

/// One end of a promoted connection, as the kernel programs have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccelState {
    /// What this end sent.
    pub sent: AccelTraffic,
    /// What the other end sent.
    pub received: AccelTraffic,
    /// Redirected bytes that the other end has not read.
    pub unread_redirected: u32,
    /// Bytes sent by TCP that the other end has not read.
    pub unread_tcp: u32,
}

/// What one end of a promoted connection sent since then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccelTraffic {
    /// Messages that went straight into the other end's queue.
    pub redirected_messages: u64,
    /// Their bytes.
    pub redirected_bytes: u64,
    /// Messages that went by TCP.
    pub tcp_messages: u64,
    /// Their bytes.
    pub tcp_bytes: u64,
}

impl AccelState {
    /// Size of the kernel's answer.
    pub const SIZE: usize = 72;

    /// Reads the kernel's answer: eight counters of 64 bits and two of 32, in the machine's byte order.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            word
        };
        let long = |index| u64::from_ne_bytes(word(index));
        let traffic = |first| AccelTraffic {
            redirected_messages: long(first),
            redirected_bytes: long(first + 1),
            tcp_messages: long(first + 2),
            tcp_bytes: long(first + 3),
        };
        let [unread_redirected, unread_tcp] = [64, 68].map(|at| {
            let mut half = [0; 4];
            half.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(half)
        });
        Self {
            sent: traffic(0),
            received: traffic(4),
            unread_redirected,
            unread_tcp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::{MAX_MESSAGE, decode};

    #[test]
    fn the_largest_batch_fits_into_a_message() {
        let request = PromotionRequest {
            id: u64::MAX,
            uid: PodUid("u".repeat(128)),
            local: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .unwrap(),
            remote: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .unwrap(),
        };
        let call = AccelCall::Promote {
            requests: vec![request; MAX_PROMOTIONS],
        };
        let bytes = serde_json::to_vec(&call).unwrap();
        assert!(bytes.len() < MAX_MESSAGE, "{}", bytes.len());
        assert_eq!(decode::<AccelCall>(&bytes, 0).unwrap(), call);
    }

    #[test]
    fn a_result_names_its_refusal() {
        let reply = AccelReply::Promoted {
            results: vec![
                PromotionResult {
                    id: 1,
                    refused: None,
                },
                PromotionResult {
                    id: 2,
                    refused: Some(Refusal::SocketOption),
                },
            ],
        };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(
            text,
            r#"{"type":"promoted","results":[{"id":1},{"id":2,"refused":"socket_option"}]}"#
        );
        assert_eq!(decode::<AccelReply>(text.as_bytes(), 0).unwrap(), reply);
        let refusal = Refusal::SocketOption;
        assert!(text.contains(&format!("{:?}", refusal.name())));
    }

    #[test]
    fn the_kernels_answer_is_read_in_its_order() {
        let mut bytes = [0; AccelState::SIZE];
        for index in 0..8_u64 {
            let at = usize::try_from(index).unwrap() * 8;
            bytes[at..at + 8].copy_from_slice(&(index + 1).to_ne_bytes());
        }
        bytes[64..68].copy_from_slice(&9_u32.to_ne_bytes());
        bytes[68..72].copy_from_slice(&10_u32.to_ne_bytes());
        let state = AccelState::from_bytes(&bytes);
        assert_eq!(state.sent.redirected_messages, 1);
        assert_eq!(state.sent.tcp_bytes, 4);
        assert_eq!(state.received.redirected_bytes, 6);
        assert_eq!((state.unread_redirected, state.unread_tcp), (9, 10));
    }

    #[test]
    fn a_pod_without_the_annotation_is_off() {
        let mut pod = PodSpec::default();
        assert_eq!(Acceleration::of(&pod), Acceleration::Off);
        for setting in [Acceleration::Auto, Acceleration::On, Acceleration::Off] {
            pod.annotations
                .insert(ACCELERATION_ANNOTATION.to_owned(), setting.to_string());
            assert_eq!(Acceleration::of(&pod), setting);
        }
    }
}
