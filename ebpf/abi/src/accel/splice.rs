//! Two promoted connections of a node, tied to each other: what the application of one sends goes straight into the
//! queue of the other's, past the proxy.
//!
//! Bytes keep their order by two facts. A splice begins when nothing that the sender has sent is on its way to the
//! other application, and holds for its next message only if it has sent nothing else since ([`AccelSplice::at`],
//! [`AccelSplice::seq`]), and the proxy nothing by TCP ([`AccelSplice::proxy_seq`]). And it ends for good with the
//! first message that may not pass: that one goes to the proxy, which forwards it when what is before it has been
//! read.

use super::rules::{CLOSE_WAIT, ESTABLISHED, is_over_cap};
use super::{AccelSocket, priority};
use crate::{Acceleration, Counter};

/// Where what an application sends goes, instead of to the proxy. Kept by the sender's cookie, beyond the life of
/// its socket, as the proxy counts what was sent. Addresses are the kernel's, as those of [`AccelSocket`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelSplice {
    /// Cookie of the other application's end, its key in the map.
    pub to: u64,
    /// Address of its socket.
    pub to_own: u64,
    /// Address of its `AccelSocket`.
    pub to_state: u64,
    /// Its pod.
    pub to_netns_cookie: u64,
    /// Address of the proxy's end towards it.
    pub to_proxy: u64,
    /// Cookie of that end.
    pub to_proxy_cookie: u64,
    /// What the sender had redirected to the proxy when the splice began; not more since, or it has ended.
    pub at: u64,
    /// Messages moved.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When one was moved last, by `bpf_ktime_get_coarse_ns`.
    pub moved_at: u64,
    /// The sender's `write_seq` when the splice began; the same since, or it has ended.
    pub seq: u32,
    /// `write_seq` of the proxy's end towards the other application when the splice began; the same since, as what
    /// is redirected would overtake anything by TCP.
    pub proxy_seq: u32,
    /// Messages moved since the other application had read everything.
    pub unread_messages: u32,
    /// 1 while it holds.
    pub on: u32,
    /// Index of the [`Counter`] that says why it ended; 0 if it has not.
    pub ended: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What the socket option [`SOCKOPT_SPLICED`](super::SOCKOPT_SPLICED) answers, of the application's messages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccelSpliced {
    /// Messages moved straight into the other pod.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nanoseconds since the last one.
    pub quiet_ns: u64,
    /// 1 while the splice holds.
    pub on: u32,
    /// As [`AccelSplice::ended`].
    pub ended: u32,
}

/// A way through the proxy at the moment when it is to be replaced by a splice.
#[derive(Clone, Copy, Debug)]
pub struct Pipe {
    /// References to the sender's psock; more than the map's own while it is sending.
    pub refs: u32,
    /// How far the sender has written by TCP.
    pub write_seq: u32,
    /// How far the proxy has read of that.
    pub proxy_copied_seq: u32,
    /// Redirected bytes that the proxy has not read.
    pub proxy_unread: u32,
    /// How far the proxy has written by TCP to the other application.
    pub proxy_write_seq: u32,
    /// How far that has read of it.
    pub copied_seq: u32,
}

/// References to a psock while nobody is in a system call that uses it: the map's.
pub const REFS_AT_REST: u32 = 1;

/// Whether nothing is on its way by TCP, or from the sender to the proxy. What was redirected to the other
/// application is in its queue, before all that a splice puts there.
#[inline(always)]
pub const fn pipe_is_empty(pipe: &Pipe) -> bool {
    pipe.refs == REFS_AT_REST
        && pipe.write_seq == pipe.proxy_copied_seq
        && pipe.proxy_unread == 0
        && pipe.proxy_write_seq == pipe.copied_seq
}

/// A spliced application and the other one at the moment of a message.
#[derive(Clone, Copy, Debug)]
pub struct SpliceSight {
    /// Bytes of the message.
    pub size: u32,
    /// Settings of the pods; `None` if one is not captured.
    pub settings: [Option<Acceleration>; 2],
    /// `SO_PRIORITY` of the proxy's ends.
    pub priorities: [u32; 2],
    /// [`AccelSocket::flags`] of the applications' ends.
    pub flags: [u32; 2],
    /// `sk_state` of the sender.
    pub state: u32,
    /// It has sent nothing but what was moved since the splice began, and the proxy nothing by TCP.
    pub is_unbroken: bool,
    /// Bytes that wait at the other application.
    pub peer_unread: u32,
    /// Its `SO_RCVBUF`, as the kernel counts it.
    pub peer_rcvbuf: u32,
    /// [`AccelSplice::unread_messages`].
    pub unread_messages: u32,
    /// TCP is short of memory.
    pub pressure: bool,
}

/// Whether a message goes straight into the other pod.
///
/// # Errors
///
/// Why not; the splice has ended then.
#[inline(always)]
pub const fn splice_way(sight: &SpliceSight) -> Result<(), Counter> {
    if !is_on(sight.settings[0]) || !is_on(sight.settings[1]) {
        return Err(Counter::UnspliceOff);
    }
    if sight.priorities[0] != priority::DIRECT || sight.priorities[1] != priority::DIRECT {
        return Err(Counter::UnspliceMarked);
    }
    if (sight.flags[0] | sight.flags[1]) & AccelSocket::OPTION != 0 {
        return Err(Counter::UnspliceOption);
    }
    if sight.flags[1] & AccelSocket::READY == 0 {
        return Err(Counter::UnspliceGone);
    }
    if sight.state != ESTABLISHED && sight.state != CLOSE_WAIT {
        return Err(Counter::UnspliceShutDown);
    }
    if !sight.is_unbroken {
        return Err(Counter::UnspliceBroken);
    }
    if is_over_cap(
        sight.size,
        sight.peer_unread,
        sight.peer_rcvbuf,
        sight.unread_messages,
    ) {
        return Err(Counter::UnspliceCapped);
    }
    if sight.pressure {
        return Err(Counter::UnsplicePressure);
    }
    Ok(())
}

#[inline(always)]
const fn is_on(setting: Option<Acceleration>) -> bool {
    matches!(setting, Some(Acceleration::On))
}

const _: () = assert!(size_of::<AccelSplice>() == 10 * 8 + 6 * 4);
const _: () = assert!(size_of::<AccelSpliced>() == 3 * 8 + 2 * 4);

#[cfg(test)]
mod tests;
