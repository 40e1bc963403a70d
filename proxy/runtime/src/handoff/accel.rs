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
//! An application in the map is sent nothing by TCP: its kernel would not count those bytes for it
//! (`FIONREAD`), and bytes of both kinds look like two reads. What is not for the map makes the
//! connection *leave* it: once the application has read everything, the agent takes its end out,
//! and it is an ordinary socket. It may be promoted again.
//!
//! **Conversation.** The proxy sends [`AccelCall::Hello`], the agent [`AccelReply::Welcome`]. Then the
//! proxy sends [`AccelCall::Promote`] and [`AccelCall::Leave`] whenever it likes, up to
//! [`MAX_PROMOTIONS`] connections in a message, and gets one [`PromotionResult`] for each, in any order
//! and grouping, by its number. Where [`Refusal::is_final`] holds, asking again for the same connection
//! is of no use.
//!
//! Two promoted connections whose bytes the proxy only passes on may be *spliced*, where the operator vouches for
//! both pods: [`AccelCall::Splice`]. What the one application sends then goes straight into the other's queue. It
//! is the proxy that opens this way: it reads and writes neither connection from the moment it asks, sends what it
//! has read, and only then sets [`PRIORITY_DIRECT`] on both sockets. The first message that a rule keeps from going
//! there comes to the proxy again, and so does everything after it, until it asks anew.
//!
//! **The proxy's part.** For a promoted connection the proxy
//! 1. reads until `EAGAIN`: a short read does not mean that nothing is left, as redirected bytes and bytes
//!    by TCP come from two queues and one `recv` returns one kind;
//! 2. asks before each message whether it may go by the map ([`AccelWay::is_clear`]) and sends at most
//!    [`MAX_REDIRECTED`] bytes in a call; where it may not, it waits or has the connection leave. Only
//!    the application can change the answer in between, and by reading only for the better;
//! 3. sends nothing from the moment it asks until it is answered, or has taken its mark back;
//! 4. closes with a reset (linger 0) where it closes with unread bytes, as TCP would, and sends no FIN
//!    before the application has read what was redirected first: a `recv` from before the promotion
//!    would see the FIN alone;
//! 5. leaves `IP_TOS` alone, which sets `SO_PRIORITY`, too.
//!
//! **Marks.** `SO_PRIORITY` of the proxy's own socket tells the kernel programs what may be done:
//! [`PRIORITY_NORMAL`] allows promotion and lets the rules decide over messages, [`PRIORITY_LEAVING`]
//! allows the connection to leave, [`PRIORITY_OUT`] neither; [`PRIORITY_FORCED`] sends by the map what
//! the pod's setting or an option of the application's would refuse, where nobody is there to take the
//! connection out. The application's messages go by TCP unless the mark is `NORMAL`. No capability is
//! needed. A proxy that waits no longer for an answer sets `OUT` or `FORCED` and reads the state:
//! unless that is [`Membership::Changing`] it is final.
//!
//! **State.** `getsockopt` with [`SOCKOPT_LEVEL`] and [`SOCKOPT_WAY`] on the proxy's end answers an
//! [`AccelWay`], with [`SOCKOPT_STATE`] an [`AccelState`]; it fails (`ENOPROTOOPT`) where the connection
//! never was promoted.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Message;
use super::pod::{PodSpec, PodUid};

/// Most connections that one [`AccelCall::Promote`] names.
pub const MAX_PROMOTIONS: usize = 128;
/// Version of this conversation, by itself: another agent or proxy than this makes plain TCP.
pub const ACCEL_VERSION: u32 = 3;
/// Most bytes of a message that the proxy sends by the map; the kernel refuses longer ones.
pub const MAX_REDIRECTED: usize = 16 * 1024;

/// `SO_PRIORITY` of the proxy's socket: it may be promoted, and the rules decide over each message.
pub const PRIORITY_NORMAL: u32 = 0;
/// `SO_PRIORITY` of the proxy's socket: the connection may leave the map.
pub const PRIORITY_LEAVING: u32 = 1;
/// `SO_PRIORITY` of the proxy's socket: it may not be promoted.
pub const PRIORITY_OUT: u32 = 2;
/// `SO_PRIORITY` of the proxy's socket: what it sends goes by the map, whatever was set.
pub const PRIORITY_FORCED: u32 = 3;
/// `SO_PRIORITY` of both of the proxy's sockets: the applications' messages go straight to each other.
pub const PRIORITY_DIRECT: u32 = 4;

/// Level of the socket option that tells an end's [`AccelState`].
pub const SOCKOPT_LEVEL: i32 = 0x4d72;
/// Name of the socket option that tells an end's [`AccelState`].
pub const SOCKOPT_STATE: i32 = 1;
/// Name of the socket option that tells an end's [`AccelWay`].
pub const SOCKOPT_WAY: i32 = 2;
/// Name of the socket option that tells an application's [`AccelSpliced`].
pub const SOCKOPT_SPLICED: i32 = 3;

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
    pub const DEFAULT: Self = Self::Auto;

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

/// Two promoted connections whose applications are to send to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpliceRequest {
    /// Chosen by the proxy, repeated in the result.
    pub id: u64,
    /// The proxy's sockets.
    pub ends: [SpliceEnd; 2],
}

/// The proxy's socket of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpliceEnd {
    /// The application's pod.
    pub uid: PodUid,
    /// The socket's `SO_COOKIE`.
    pub cookie: u64,
}

/// What became of a [`PromotionRequest`], to promote or to leave, or of a [`SpliceRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionResult {
    /// Number of the request.
    pub id: u64,
    /// `None`: it was done. Else everything is as before.
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
    /// The proxy took its mark back before it was done.
    Withdrawn,
    /// Something is not read: by the application that is to leave, or on the way that is to be spliced.
    Unread,
    /// A message from or to a spliced application may be on its way; to leave.
    Unsettled,
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
            Self::Withdrawn => "withdrawn",
            Self::Unread => "unread",
            Self::Unsettled => "unsettled",
        }
    }

    /// Whether asking again for the same connection is of no use.
    pub const fn is_final(self) -> bool {
        !matches!(
            self,
            Self::NotAccepted
                | Self::Full
                | Self::Failed
                | Self::Withdrawn
                | Self::Unread
                | Self::Unsettled
        )
    }
}

/// Proxy → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AccelCall {
    /// First message.
    Hello {
        /// [`ACCEL_VERSION`] of the proxy.
        version: u32,
        /// The proxy's own process id.
        pid: u32,
    },
    /// Asks for connections to be promoted.
    Promote {
        /// At most [`MAX_PROMOTIONS`]; further ones are refused as `full`.
        requests: Vec<PromotionRequest>,
    },
    /// Asks for the applications' ends to be taken out of the map.
    Leave {
        /// At most [`MAX_PROMOTIONS`]; further ones are refused as `full`.
        requests: Vec<PromotionRequest>,
    },
    /// Asks for applications to send to each other.
    Splice {
        /// At most [`MAX_PROMOTIONS`]; further ones are refused as `full`.
        requests: Vec<SpliceRequest>,
    },
}

impl AccelCall {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Hello { .. } => false,
            Self::Promote { requests } | Self::Leave { requests } => requests.is_empty(),
            Self::Splice { requests } => requests.is_empty(),
        }
    }
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
        /// [`ACCEL_VERSION`] of the agent; where it is another one the agent closes.
        version: u32,
        /// Why nothing can be accelerated on this node, if so: the proxy need not ask.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unavailable: Option<String>,
    },
    /// What became of connections that were to be promoted.
    Promoted {
        /// One per request.
        results: Vec<PromotionResult>,
    },
    /// What became of connections that were to leave.
    Left {
        /// One per request.
        results: Vec<PromotionResult>,
    },
    /// What became of connections that were to be spliced.
    Spliced {
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
    /// Where the connection is.
    pub membership: Membership,
}

/// What stands in the way of a message to the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccelWay {
    /// Where the connection is.
    pub membership: Membership,
    /// Redirected bytes that the application has not read.
    pub unread_redirected: u32,
    /// Bytes sent by TCP that it has not read.
    pub unread_tcp: u32,
    /// Bits of [`Self::OPTION`] and its like.
    pub obstacles: u32,
}

impl AccelWay {
    /// Size of the kernel's answer.
    pub const SIZE: usize = 16;
    /// An option was set that acceleration cannot honour.
    pub const OPTION: u32 = 1 << 0;
    /// TCP is short of memory.
    pub const PRESSURE: u32 = 1 << 1;
    /// The pod's setting is off, or it is not captured.
    pub const OFF: u32 = 1 << 2;

    /// Whether a message may go by the map now.
    pub fn is_clear(&self) -> bool {
        self.membership == Membership::In && self.obstacles == 0 && self.is_read()
    }

    /// Whether the application has read everything.
    pub fn is_read(&self) -> bool {
        self.unread_redirected == 0 && self.unread_tcp == 0
    }

    /// Reads the kernel's answer: four numbers in the machine's byte order.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        Self {
            membership: Membership::of(word(0)),
            unread_redirected: word(4),
            unread_tcp: word(8),
            obstacles: word(12),
        }
    }
}

/// What went from the application at the other end straight into another pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccelSpliced {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time since the last one.
    pub quiet: Duration,
    /// Whether its next message goes there, too, unless a rule forbids it.
    pub on: bool,
}

impl AccelSpliced {
    /// Size of the kernel's answer.
    pub const SIZE: usize = 32;

    /// Reads the kernel's answer: three numbers of 64 bits and two of 32, in the machine's byte order.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        Self {
            messages: word(0),
            bytes: word(8),
            quiet: Duration::from_nanos(word(16)),
            on: bytes[24..28] != [0; 4],
        }
    }
}

/// Where a connection is, as far as the kernel's map goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// Neither end is in the map.
    #[default]
    Out,
    /// The programs are putting it there or taking it out.
    Changing,
    /// Both ends are.
    In,
    /// The proxy's end is, the application's not any more.
    Left,
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
    pub const SIZE: usize = 80;

    /// Reads the kernel's answer: eight counters of 64 bits, then two of 32, flags and nothing, in the
    /// machine's byte order.
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
        let [unread_redirected, unread_tcp, flags] = [64, 68, 72].map(|at| {
            let mut half = [0; 4];
            half.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(half)
        });
        Self {
            sent: traffic(0),
            received: traffic(4),
            unread_redirected,
            unread_tcp,
            membership: Membership::of(flags),
        }
    }
}

impl Membership {
    const READY: u32 = 1 << 0;
    const LEFT: u32 = 1 << 4;
    const BUSY: u32 = 1 << 5;

    fn of(flags: u32) -> Self {
        let has = |flag| flags & flag != 0;
        if has(Self::BUSY) {
            Self::Changing
        } else if has(Self::READY) {
            Self::In
        } else if has(Self::LEFT) {
            Self::Left
        } else {
            Self::Out
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
        assert_eq!(state.membership, Membership::Out);
        for (flags, membership) in [
            (1_u32, Membership::In),
            (3, Membership::In),
            (1 << 4 | 2, Membership::Left),
            (1 << 5, Membership::Changing),
            (1 << 5 | 1, Membership::Changing),
        ] {
            bytes[72..76].copy_from_slice(&flags.to_ne_bytes());
            assert_eq!(AccelState::from_bytes(&bytes).membership, membership);
        }
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
