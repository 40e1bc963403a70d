//! Accelerated connections: what the programs keep of each end, what they must know of the kernel's own
//! structures, and what the agent and the promotion program tell each other.
//!
//! A promoted connection has both ends in the `ACCELERATED` map, keyed by each socket's own cookie, and an
//! [`AccelSocket`] in each socket's storage. Which way a message goes is decided in `rules`.

mod rules;
mod splice;

pub use rules::{
    EndFacts, Message, OptionVerdict, Sight, end_verdict, experiment, message_way, option_verdict,
    stays_with_tcp,
};
pub use splice::{
    AccelSplice, AccelSpliced, Pipe, REFS_AT_REST, SpliceSight, pipe_is_empty, splice_way,
};

use crate::{Addr, Counter};

/// `SO_PRIORITY` of the proxy's end, by which it says what may be done with the connection.
pub mod priority {
    /// It may be promoted, and once it is, the rules decide over each message.
    pub const NORMAL: u32 = 0;
    /// It may leave the map; the proxy sends nothing, and the application by TCP.
    pub const LEAVING: u32 = 1;
    /// It may not be promoted.
    pub const OUT: u32 = 2;
    /// Nobody takes it out of the map: the proxy sends by the map whatever the pod's setting and the
    /// application's options are, the application by TCP.
    pub const FORCED: u32 = 3;
    /// As normal, and where the proxy's end towards the other pod says the same, the application's messages go
    /// straight into the other pod.
    pub const DIRECT: u32 = 4;

    /// Whether the rules decide over each message.
    #[inline(always)]
    pub const fn is_normal(priority: u32) -> bool {
        matches!(priority, NORMAL | DIRECT)
    }
}

/// Most bytes of a message of the proxy's that is redirected.
pub const MAX_REDIRECTED: u32 = 16 * 1024;
/// Most unread bytes of a direction.
pub const MAX_UNREAD: u32 = 64 * 1024;
/// Most unread messages of a direction; each costs the kernel about a kilobyte besides its bytes.
pub const MAX_UNREAD_MESSAGES: u32 = 64;

/// Level of the socket option that answers an [`AccelAnswer`].
pub const SOCKOPT_LEVEL: i32 = 0x4d72;
/// Name of the socket option that answers an [`AccelAnswer`].
pub const SOCKOPT_STATE: i32 = 1;
/// Name of the socket option that answers an [`AccelWay`].
pub const SOCKOPT_WAY: i32 = 2;
/// Name of the socket option that answers an [`AccelSpliced`].
pub const SOCKOPT_SPLICED: i32 = 3;

/// Where the kernel that runs keeps what the programs read: offsets in bytes from its BTF, found by the
/// agent and given to the programs as a constant. aya emits no relocations for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KernelLayout {
    /// `sock.sk_cookie`.
    pub cookie: u32,
    /// `sock.sk_flags`.
    pub flags: u32,
    /// `sock.sk_prot`.
    pub prot: u32,
    /// `proto.memory_pressure`.
    pub memory_pressure: u32,
    /// `sock.sk_net`.
    pub net: u32,
    /// `net.net_cookie`.
    pub net_cookie: u32,
    /// `sock.sk_peek_off`.
    pub peek_off: u32,
    /// `sock.sk_rmem_alloc`.
    pub rmem_alloc: u32,
    /// `sock.sk_rcvbuf`.
    pub rcvbuf: u32,
    /// `sock.sk_filter`.
    pub filter: u32,
    /// `sock.sk_rcvlowat`.
    pub rcvlowat: u32,
    /// `sock.sk_socket`.
    pub socket: u32,
    /// `sock.sk_tsflags`.
    pub tsflags: u32,
    /// `sock.sk_priority`.
    pub priority: u32,
    /// `sock.sk_user_data`.
    pub user_data: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// Byte that holds `tcp_sock.recvmsg_inq`.
    pub inq: u32,
    /// Its bit in that byte.
    pub inq_mask: u32,
    /// `tcp_sock.is_mptcp`.
    pub mptcp: u32,
    /// `socket.file`.
    pub file: u32,
    /// `file.f_flags`.
    pub file_flags: u32,
    /// `sk_psock.msg_tot_len`.
    pub psock_unread: u32,
    /// `sk_psock.refcnt`.
    pub psock_refs: u32,
    /// Bits of `sk_flags` that acceleration cannot honour.
    pub excluded_flags: u32,
    /// 1 once everything above is known.
    pub known: u32,
}

impl KernelLayout {
    /// Nothing is known: nobody is promoted.
    pub const UNKNOWN: Self = Self {
        cookie: 0,
        flags: 0,
        prot: 0,
        memory_pressure: 0,
        net: 0,
        net_cookie: 0,
        peek_off: 0,
        rmem_alloc: 0,
        rcvbuf: 0,
        filter: 0,
        rcvlowat: 0,
        socket: 0,
        tsflags: 0,
        priority: 0,
        user_data: 0,
        copied_seq: 0,
        write_seq: 0,
        inq: 0,
        inq_mask: 0,
        mptcp: 0,
        file: 0,
        file_flags: 0,
        psock_unread: 0,
        psock_refs: 0,
        excluded_flags: 0,
        known: 0,
    };
}

/// What one end of a promoted connection sent since its promotion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelTraffic {
    /// Messages put straight into the other end's queue.
    pub redirected_messages: u64,
    /// Their bytes.
    pub redirected_bytes: u64,
    /// Messages left to TCP.
    pub tcp_messages: u64,
    /// Their bytes; a message that found no room and is offered again counts again.
    pub tcp_bytes: u64,
}

/// Socket storage of one end of a promoted connection. Addresses are the kernel's: programs read through
/// them and compare cookies, as the other end may be gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelSocket {
    /// The socket's own cookie, its key in the map.
    pub cookie: u64,
    /// Address of the socket.
    pub own: u64,
    /// Address of the other end's socket.
    pub peer: u64,
    /// Cookie of the other end.
    pub peer_cookie: u64,
    /// Address of the other end's `AccelSocket`.
    pub peer_state: u64,
    /// The pod.
    pub netns_cookie: u64,
    /// Address of the number that says whether TCP is short of memory.
    pub pressure: u64,
    /// See the constants of this type.
    pub flags: u32,
    /// `write_seq` just after promotion.
    pub armed_from: u32,
    /// Messages redirected since the other end had read everything.
    pub unread_messages: u32,
    /// 1 if there is an [`AccelSplice`] of this end's. Only the promotion program changes it.
    pub spliced: u32,
    /// When a message was redirected last, by `bpf_ktime_get_coarse_ns`.
    pub redirected_at: u64,
    /// What this end sent.
    pub sent: AccelTraffic,
}

impl AccelSocket {
    /// Both ends are in the map.
    pub const READY: u32 = 1 << 0;
    /// The proxy's end.
    pub const PROXY: u32 = 1 << 1;
    /// Rule 4 is met.
    pub const ARMED: u32 = 1 << 2;
    /// An option was set that acceleration cannot honour.
    pub const OPTION: u32 = 1 << 3;
    /// The other end, an application's, was taken out of the map: everything goes by TCP.
    pub const LEFT: u32 = 1 << 4;
    /// The promotion program is at work on the connection.
    pub const BUSY: u32 = 1 << 5;
    /// Byte offset of [`Self::flags`].
    pub const FLAGS_AT: u64 = 56;
    /// Byte offset of [`Self::sent`].
    pub const SENT_AT: u64 = 80;
}

/// Sums over the promoted connections of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PodAcceleration {
    /// Connections promoted.
    pub promoted: u64,
    /// Messages put straight into the other end's queue.
    pub redirected_messages: u64,
    /// Their bytes.
    pub redirected_bytes: u64,
    /// Messages of promoted connections left to TCP.
    pub tcp_messages: u64,
    /// Their bytes.
    pub tcp_bytes: u64,
    /// Those of them that the cap on what is unread sent there.
    pub capped: u64,
    /// Connections that returned to TCP because of a socket option.
    pub returned: u64,
    /// Times that an application had bytes of both kinds to read.
    pub mixed: u64,
    /// Connections spliced with one of another pod's.
    pub spliced: u64,
    /// Directions of them that went back to the proxy.
    pub unspliced: u64,
    /// Messages put straight into the queue of another pod's application.
    pub spliced_messages: u64,
    /// Their bytes.
    pub spliced_bytes: u64,
}

impl PodAcceleration {
    /// The sum of two, as for the values of several CPUs.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            promoted: self.promoted + other.promoted,
            redirected_messages: self.redirected_messages + other.redirected_messages,
            redirected_bytes: self.redirected_bytes + other.redirected_bytes,
            tcp_messages: self.tcp_messages + other.tcp_messages,
            tcp_bytes: self.tcp_bytes + other.tcp_bytes,
            capped: self.capped + other.capped,
            returned: self.returned + other.returned,
            mixed: self.mixed + other.mixed,
            spliced: self.spliced + other.spliced,
            unspliced: self.unspliced + other.unspliced,
            spliced_messages: self.spliced_messages + other.spliced_messages,
            spliced_bytes: self.spliced_bytes + other.spliced_bytes,
        }
    }
}

/// What the socket option [`SOCKOPT_STATE`] answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelAnswer {
    /// What this end sent.
    pub sent: AccelTraffic,
    /// What the other end sent.
    pub received: AccelTraffic,
    /// Redirected bytes that the other end has not read.
    pub unread_redirected: u32,
    /// Bytes sent by TCP that the other end has not read.
    pub unread_tcp: u32,
    /// [`AccelSocket::flags`].
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What the socket option [`SOCKOPT_WAY`] answers: all that is asked before a message. Small enough for the
/// kernel's buffer on the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelWay {
    /// [`AccelSocket::flags`].
    pub flags: u32,
    /// Redirected bytes that the other end has not read.
    pub unread_redirected: u32,
    /// Bytes sent by TCP that the other end has not read.
    pub unread_tcp: u32,
    /// [`Self::OPTION`] and [`Self::PRESSURE`].
    pub obstacles: u32,
}

impl AccelWay {
    /// An option was set, at either end, that acceleration cannot honour.
    pub const OPTION: u32 = 1 << 0;
    /// TCP is short of memory.
    pub const PRESSURE: u32 = 1 << 1;
    /// The pod's setting is off, or it is not captured.
    pub const OFF: u32 = 1 << 2;
}

/// What the agent asks of the promotion program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelCommand {
    /// The pod.
    pub netns_cookie: u64,
    /// Cookie of the end to look at, for [`Self::INSPECT`]; of the proxy's end, for [`Self::SPLICE`].
    pub key: u64,
    /// The other pod, for [`Self::SPLICE`].
    pub other_netns_cookie: u64,
    /// Cookie of the proxy's end towards it.
    pub other_key: u64,
    /// Local address of the proxy's end.
    pub local: Addr,
    /// Remote address of the proxy's end.
    pub remote: Addr,
    /// Number of the pod's namespace, as the agent's own namespace has it.
    pub nsid: u32,
    /// What to do.
    pub operation: u32,
    /// Local port of the proxy's end.
    pub local_port: u16,
    /// Remote port of the proxy's end.
    pub remote_port: u16,
    /// Always 0.
    pub reserved: u32,
}

impl AccelCommand {
    /// Puts both ends of a connection into the map.
    pub const PROMOTE: u32 = 1;
    /// Tells how an end of a promoted connection is.
    pub const INSPECT: u32 = 2;
    /// Takes the application's end of a promoted connection out of the map.
    pub const LEAVE: u32 = 3;
    /// Lets the applications of two promoted connections send to each other.
    pub const SPLICE: u32 = 4;
    /// Where the command begins in the program's packet: an Ethernet header comes first.
    pub const AT: usize = 16;
}

/// What the promotion program tells, behind the command.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelReport {
    /// What the socket option would answer.
    pub answer: AccelAnswer,
    /// For how long nothing was redirected, in nanoseconds.
    pub idle_ns: u64,
    /// The pod.
    pub netns_cookie: u64,
    /// The end's address.
    pub local: Addr,
    /// The other end's address.
    pub remote: Addr,
    /// The end's port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// [`AccelSocket::flags`].
    pub flags: u32,
    /// The kernel's answer where it refused an end.
    pub errno: i32,
    /// 1 if what this end sends goes straight into another pod.
    pub spliced: u32,
}

impl AccelReport {
    /// Where the report begins in the program's packet.
    pub const AT: usize = AccelCommand::AT + size_of::<AccelCommand>();
    /// Size of the program's packet.
    pub const PACKET: usize = Self::AT + size_of::<Self>();
}

/// What became of a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum AccelOutcome {
    /// Done.
    Done = 0,
    /// No such command.
    Malformed = 1,
    /// An end is not there.
    NotFound = 2,
    /// An end is not established.
    NotEstablished = 3,
    /// The local end is not the proxy's, or the remote end is.
    NotProxys = 4,
    /// An end has no cookie: it was connected before its pod was captured.
    NoCookie = 5,
    /// An end has no file: not accepted yet, or closed.
    NotAccepted = 6,
    /// An end blocks.
    Blocking = 7,
    /// An end has an option that acceleration cannot honour.
    SocketOption = 8,
    /// An end is Multipath TCP.
    Mptcp = 9,
    /// An end is in a map already.
    InUse = 10,
    /// The kernel does not take an end.
    Unsupported = 11,
    /// No memory, or the map is full.
    Full = 12,
    /// The kernel refused in another way.
    Failed = 13,
    /// Offsets are not known.
    NoLayout = 14,
    /// The proxy's mark does not allow it any more.
    Withdrawn = 15,
    /// Something is unread: by the application that is to leave, or on the way between two that are to be spliced.
    Unread = 16,
    /// A message from or to a spliced application may be on its way.
    Unsettled = 17,
    /// The setting of a pod is not `on`, as a splice needs it.
    Off = 18,
}

impl AccelOutcome {
    /// Every outcome, in the order of the numbers.
    pub const ALL: [Self; 19] = [
        Self::Done,
        Self::Malformed,
        Self::NotFound,
        Self::NotEstablished,
        Self::NotProxys,
        Self::NoCookie,
        Self::NotAccepted,
        Self::Blocking,
        Self::SocketOption,
        Self::Mptcp,
        Self::InUse,
        Self::Unsupported,
        Self::Full,
        Self::Failed,
        Self::NoLayout,
        Self::Withdrawn,
        Self::Unread,
        Self::Unsettled,
        Self::Off,
    ];

    /// From the program's return value.
    pub fn from_value(value: u32) -> Self {
        let known = Self::ALL.into_iter().find(|known| *known as u32 == value);
        known.unwrap_or(Self::Failed)
    }

    /// What the map's refusal of a socket means (`sock_hash_update_common`, `net/core/sock_map.c`).
    #[inline(always)]
    pub const fn of_insertion(errno: i64) -> Self {
        match errno {
            // EEXIST, EBUSY
            -17 | -16 => Self::InUse,
            // EOPNOTSUPP, EINVAL (a ULP)
            -95 | -22 => Self::Unsupported,
            // E2BIG, ENOMEM
            -7 | -12 => Self::Full,
            _ => Self::Failed,
        }
    }

    /// What is counted.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::Done => Counter::PromoteDone,
            Self::NotFound => Counter::PromoteNotFound,
            Self::NotEstablished => Counter::PromoteNotEstablished,
            Self::NotProxys => Counter::PromoteNotProxys,
            Self::NoCookie => Counter::PromoteNoCookie,
            Self::NotAccepted => Counter::PromoteNotAccepted,
            Self::Blocking => Counter::PromoteBlocking,
            Self::SocketOption => Counter::PromoteSocketOption,
            Self::Mptcp => Counter::PromoteMptcp,
            Self::InUse => Counter::PromoteInUse,
            Self::Unsupported => Counter::PromoteUnsupported,
            Self::Full => Counter::PromoteFull,
            Self::Withdrawn => Counter::PromoteWithdrawn,
            Self::Unread => Counter::LeaveUnread,
            Self::Unsettled | Self::Off | Self::Failed | Self::Malformed | Self::NoLayout => {
                Counter::PromoteFailed
            }
        }
    }
}

const _: () = assert!(size_of::<KernelLayout>() == 26 * 4);
const _: () = assert!(size_of::<AccelSocket>() == 7 * 8 + 4 * 4 + 8 + 4 * 8);
const _: () = assert!(core::mem::offset_of!(AccelSocket, flags) as u64 == AccelSocket::FLAGS_AT);
const _: () = assert!(core::mem::offset_of!(AccelSocket, sent) as u64 == AccelSocket::SENT_AT);
const _: () = assert!(size_of::<PodAcceleration>() == 12 * 8);
const _: () = assert!(size_of::<AccelAnswer>() == 8 * 8 + 4 * 4);
const _: () = assert!(size_of::<AccelCommand>() == 4 * 8 + 2 * 16 + 2 * 4 + 2 * 2 + 4);
const _: () = assert!(size_of::<AccelReport>() == 80 + 2 * 8 + 2 * 16 + 2 * 2 + 3 * 4);
