//! Who may be promoted, and which way a message of a promoted connection goes.
//!
//! The rules, per direction and message, keep redirected bytes from overtaking others, from piling up and
//! from being lost: 1. everything sent by TCP has been read; 2. the sender has not shut its side down;
//! 3. what is unread stays below a cap; 4. of an application's messages, a byte has gone by TCP since
//! promotion, and been read, so that no `recv` of the proxy's from before is still under way; 5. an
//! application in the map is sent nothing by TCP, so that it never has bytes of both kinds to read, nor any that
//! its kernel does not count: the proxy asks before each message whether the rules let it pass, and where they do
//! not it waits, or has the connection leave the map first. What they keep from the map all the same goes by TCP.

use super::{AccelOutcome, AccelSocket, MAX_REDIRECTED, MAX_UNREAD, MAX_UNREAD_MESSAGES, priority};
use crate::{Acceleration, Counter, GUARD_MARK, GUARD_MARK_MASK};

/// What is read of an end before it is promoted.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of a socket, not states of ours"
)]
#[derive(Clone, Copy, Debug)]
pub struct EndFacts {
    /// Its cookie; 0 if nobody asked for one yet.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// `sk_state`.
    pub state: u32,
    /// Its mark.
    pub mark: u32,
    /// Whether a file belongs to it.
    pub has_file: bool,
    /// `f_flags` of that file.
    pub file_flags: u32,
    /// `SO_RCVLOWAT`.
    pub rcvlowat: i32,
    /// `SO_PEEK_OFF`; negative is off.
    pub peek_off: i32,
    /// `SO_TIMESTAMPING`.
    pub tsflags: u32,
    /// `sk_flags`, those that acceleration cannot honour.
    pub excluded_flags: u32,
    /// A socket filter is attached.
    pub has_filter: bool,
    /// `TCP_INQ`.
    pub inq: bool,
    /// A subflow of Multipath TCP.
    pub mptcp: bool,
}

pub(super) const ESTABLISHED: u32 = 1;
pub(super) const CLOSE_WAIT: u32 = 8;
const O_NONBLOCK: u32 = 0o4000;

/// Whether an end may be promoted for the pod of this namespace; `as_proxy` says which one it should be.
///
/// # Errors
///
/// Why not.
#[inline(always)]
pub const fn end_verdict(
    end: &EndFacts,
    netns_cookie: u64,
    as_proxy: bool,
) -> Result<(), AccelOutcome> {
    // The number of a namespace that is gone may be another's by now.
    if end.netns_cookie != netns_cookie {
        return Err(AccelOutcome::NotFound);
    }
    if end.state != ESTABLISHED {
        return Err(AccelOutcome::NotEstablished);
    }
    if end.mptcp {
        return Err(AccelOutcome::Mptcp);
    }
    if !end.has_file {
        return Err(AccelOutcome::NotAccepted);
    }
    if end.file_flags & O_NONBLOCK == 0 {
        return Err(AccelOutcome::Blocking);
    }
    if as_proxy && end.mark & GUARD_MARK_MASK != GUARD_MARK {
        return Err(AccelOutcome::NotProxys);
    }
    if end.rcvlowat > 1
        || end.peek_off >= 0
        || end.tsflags != 0
        || end.excluded_flags != 0
        || end.has_filter
        || end.inq
    {
        return Err(AccelOutcome::SocketOption);
    }
    if end.cookie == 0 {
        return Err(AccelOutcome::NoCookie);
    }
    Ok(())
}

/// Rules that an experiment switches off to show what they are for; never in service.
pub mod experiment {
    /// Rule 1: everything sent by TCP has been read.
    pub const NO_RULE_1: u32 = 1 << 0;
    /// Rule 2: the sender has not shut its side down.
    pub const NO_RULE_2: u32 = 1 << 1;
    /// Rule 3: what is unread stays below a cap.
    pub const NO_RULE_3: u32 = 1 << 2;
    /// Rule 4: a byte of the application's has gone by TCP since promotion.
    pub const NO_RULE_4: u32 = 1 << 3;
    /// Rule 5: the proxy's mark, and its messages' size.
    pub const NO_RULE_5: u32 = 1 << 4;
    /// Blocking ends are promoted, too.
    pub const BLOCKING: u32 = 1 << 5;
    /// A splice begins and goes on whatever is on its way through the proxy.
    pub const SPLICE_ANYHOW: u32 = 1 << 6;
    /// A spliced application leaves the map though a message may be on its way to it.
    pub const LEAVE_UNSETTLED: u32 = 1 << 7;
}

/// What is known of a message without a look at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The pod's setting; `None` if it is not captured.
    pub setting: Option<Acceleration>,
    /// [`AccelSocket::flags`] of the sender.
    pub flags: u32,
    /// The sender's `SO_PRIORITY`.
    pub priority: u32,
    /// Bytes.
    pub size: u32,
    /// See [`experiment`].
    pub experiment: u32,
}

impl Message {
    #[inline(always)]
    const fn is_proxys(&self) -> bool {
        self.flags & AccelSocket::PROXY != 0
    }

    #[inline(always)]
    const fn is_forced(&self) -> bool {
        self.is_proxys() && self.priority == priority::FORCED
    }
}

/// Why a message stays out of the map whatever the other end's state, if it does.
#[inline(always)]
pub const fn stays_with_tcp(message: &Message) -> Option<Counter> {
    let is_on = matches!(message.setting, Some(setting) if setting.is_on());
    if !is_on && !message.is_forced() {
        return Some(Counter::MessageOff);
    }
    if message.flags & AccelSocket::OPTION != 0 && !message.is_forced() {
        return Some(Counter::MessageOption);
    }
    if !message.is_proxys() || message.experiment & experiment::NO_RULE_5 != 0 {
        return None;
    }
    if !priority::is_normal(message.priority) && message.priority != priority::FORCED {
        return Some(Counter::MessageMarked);
    }
    if message.size > MAX_REDIRECTED {
        return Some(Counter::MessageTooLarge);
    }
    None
}

/// Both ends at the moment of a message.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The other end is the socket that it was.
    pub peer_alive: bool,
    /// [`AccelSocket::flags`] of the other end.
    pub peer_flags: u32,
    /// `SO_PRIORITY` of the other end, where that is the proxy's.
    pub peer_priority: u32,
    /// How far the other end has read what came by TCP.
    pub peer_copied_seq: u32,
    /// Bytes that wait at the other end.
    pub peer_unread: u32,
    /// `SO_RCVBUF` of the other end, as the kernel counts it.
    pub peer_rcvbuf: u32,
    /// `sk_state` of the sender, which says whether it has shut its side down.
    pub state: u32,
    /// How far the sender has written by TCP.
    pub write_seq: u32,
    /// [`AccelSocket::armed_from`].
    pub armed_from: u32,
    /// [`AccelSocket::unread_messages`].
    pub unread_messages: u32,
    /// TCP is short of memory: a redirected message would fail with ENOMEM where TCP waits.
    pub pressure: bool,
}

impl Sight {
    /// Everything that the sender sent by TCP has been read.
    #[inline(always)]
    pub const fn has_read_all(&self) -> bool {
        self.peer_copied_seq == self.write_seq
    }

    /// Redirected bytes wait at the other end, and nothing else.
    #[inline(always)]
    pub const fn has_redirected(&self) -> bool {
        self.peer_alive && self.has_read_all() && self.peer_unread > 0
    }
}

/// Whether a message is redirected: rules 1 to 4.
///
/// # Errors
///
/// Why it is not.
#[inline(always)]
pub const fn message_way(message: &Message, sight: &Sight) -> Result<(), Counter> {
    if !sight.peer_alive {
        return Err(Counter::MessagePeerGone);
    }
    if sight.peer_flags & AccelSocket::OPTION != 0 && !message.is_forced() {
        return Err(Counter::MessageOption);
    }
    if sight.peer_flags & AccelSocket::PROXY != 0 && !priority::is_normal(sight.peer_priority) {
        return Err(Counter::MessageWithdrawn);
    }
    if sight.state != ESTABLISHED
        && sight.state != CLOSE_WAIT
        && message.experiment & experiment::NO_RULE_2 == 0
    {
        return Err(Counter::MessageShutDown);
    }
    if !sight.has_read_all() && message.experiment & experiment::NO_RULE_1 == 0 {
        return Err(Counter::MessageUnreadTcp);
    }
    if !message.is_proxys()
        && message.flags & AccelSocket::ARMED == 0
        && sight.write_seq == sight.armed_from
        && message.experiment & experiment::NO_RULE_4 == 0
    {
        return Err(Counter::MessageNotArmed);
    }
    let is_over_cap = is_over_cap(
        message.size,
        sight.peer_unread,
        sight.peer_rcvbuf,
        sight.unread_messages,
    );
    if is_over_cap && message.experiment & experiment::NO_RULE_3 == 0 {
        return Err(Counter::MessageCapped);
    }
    if sight.pressure {
        return Err(Counter::MessagePressure);
    }
    Ok(())
}

#[inline(always)]
pub(super) const fn is_over_cap(size: u32, unread: u32, rcvbuf: u32, messages: u32) -> bool {
    let quarter = rcvbuf / 4;
    let cap = if quarter < MAX_UNREAD {
        quarter
    } else {
        MAX_UNREAD
    };
    if unread == 0 {
        // A small buffer is no reason to wait for ever.
        return size > cap && size > MAX_REDIRECTED;
    }
    size > cap || unread > cap - size || messages >= MAX_UNREAD_MESSAGES
}

/// What a `setsockopt` means for a promoted connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OptionVerdict {
    /// Nothing.
    Ignore,
    /// Acceleration cannot honour it: the connection returns to TCP.
    Return,
    /// Not even by TCP, as long as the socket is in a map: a protocol on top has bugs there, and zero-copy sends
    /// copy and never tell that they are done. The caller is told, and does without.
    Refuse,
}

/// Decides what setting an option does to a promoted connection.
#[inline(always)]
pub const fn option_verdict(level: i32, name: i32) -> OptionVerdict {
    const SOL_SOCKET: i32 = 1;
    const SOL_TCP: i32 = 6;
    match (level, name) {
        // SO_OOBINLINE, SO_RCVLOWAT, SO_ATTACH_FILTER, SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING (old and
        // new), SO_PEEK_OFF, SO_ATTACH_BPF
        (SOL_SOCKET, 10 | 18 | 26 | 29 | 35 | 37 | 42 | 50 | 63 | 64 | 65)
        // TCP_REPAIR, TCP_INQ
        | (SOL_TCP, 19 | 36) => OptionVerdict::Return,
        // SO_ZEROCOPY, TCP_ULP
        (SOL_SOCKET, 60) | (SOL_TCP, 31) => OptionVerdict::Refuse,
        _ => OptionVerdict::Ignore,
    }
}

#[cfg(test)]
mod tests;
