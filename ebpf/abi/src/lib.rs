//! Types and decisions shared by the kernel programs and the agent.
//!
//! Everything here is plain data with a fixed layout, or a pure function over such data: the kernel
//! programs (`millrace-ebpf`) gather the facts and carry out the verdict, the agent writes the maps.
//! The decisions are therefore unit-tested on the host. Ports are in host order everywhere; addresses
//! are 16 bytes with IPv4 as v4-mapped IPv6, so that one key serves every socket family.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a BPF function call takes five words at most and returns one; everything is inlined into a program"
)]

mod accel;
mod addr;
mod counter;
mod event;
mod node;
mod origin;
mod policy;
mod rule;
mod telemetry;
mod tuple;
#[cfg(feature = "user")]
mod user;
mod verdict;

pub use accel::{
    AccelAnswer, AccelCommand, AccelOutcome, AccelReport, AccelSocket, AccelSplice, AccelSpliced,
    AccelTraffic, AccelWay, EndFacts, KernelLayout, MAX_REDIRECTED, MAX_UNREAD,
    MAX_UNREAD_MESSAGES, Message, OptionVerdict, Pipe, PodAcceleration, REFS_AT_REST,
    SOCKOPT_LEVEL, SOCKOPT_SPLICED, SOCKOPT_STATE, SOCKOPT_WAY, Sight, SpliceSight, end_verdict,
    experiment, message_way, option_verdict, pipe_is_empty, priority, splice_way, stays_with_tcp,
};
pub use addr::Addr;
pub use counter::Counter;
pub use event::{Event, EventKind};
pub use node::{LogLevel, NodeConfig};
pub use origin::{OrigDst, SocketRole, SocketState};
pub use policy::{Acceleration, DELIVERY_MARK, GUARD_MARK, GUARD_MARK_MASK, PodPolicy, ports};
pub use rule::{CidrKey, Direction, ListenerKey, PortKey, Rule};
pub use telemetry::{PodTelemetry, TelemetryKey};
pub use tuple::SockTuple;
pub use verdict::{
    Announced, ConnectFacts, ConnectInput, ConnectVerdict, LookupFacts, LookupInput, LookupVerdict,
    OrigDstAnswer, SocketEvent, announcement, connect_verdict, getsockopt_verdict, hidden_peer,
    is_application_socket, lookup_verdict, missing_listener, sockops_event,
};

/// Version of every layout in this crate and of the maps' names and meanings.
///
/// It names the directory that the pins live in: programs and maps of different versions never meet.
pub const ABI_VERSION: u32 = 2;

/// What an object file says of itself, in its section [`ABI_SECTION`]: version and layout.
///
/// The layout changes with the size of any shared type and the number of counters, so that an agent tells
/// an object that somebody forgot to build again.
pub const ABI: [u32; 2] = [ABI_VERSION, layout()];
/// Name of the section that holds [`ABI`].
pub const ABI_SECTION: &str = "millrace_abi";

const fn layout() -> u32 {
    let sizes = [
        size_of::<AccelCommand>(),
        size_of::<AccelReport>(),
        size_of::<AccelSocket>(),
        size_of::<AccelSplice>(),
        size_of::<CidrKey>(),
        size_of::<Event>(),
        size_of::<KernelLayout>(),
        size_of::<ListenerKey>(),
        size_of::<NodeConfig>(),
        size_of::<OrigDst>(),
        size_of::<PodAcceleration>(),
        size_of::<PodPolicy>(),
        size_of::<PodTelemetry>(),
        size_of::<PortKey>(),
        size_of::<SockTuple>(),
        size_of::<SocketState>(),
        size_of::<TelemetryKey>(),
        Counter::COUNT,
    ];
    let mut digest = 0_u32;
    let mut at = 0;
    while at < sizes.len() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "sizes of small types, and a digest besides"
        )]
        let size = sizes[at] as u32;
        digest = digest.wrapping_mul(257).wrapping_add(size);
        at += 1;
    }
    digest
}

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// Interface index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
pub const LOOPBACK_IFINDEX: u32 = 1;
/// How many listeners per pod and family the inbound program may choose from.
pub const LISTENER_SLOTS: u16 = 4;
