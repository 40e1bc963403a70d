//! sockops: hands original destinations from the connecting to the accepting end, announces connections that
//! `sk_lookup` must let pass, and keeps L4 telemetry of the applications' own connections.
//!
//! A connecting end publishes before its SYN leaves, so that not even fast-open data is accepted without an
//! original destination; the accepting end takes it into its own storage when it is established, so that it
//! still knows when the connecting end is long closed.

use millrace_ebpf_abi::{
    Announced, Counter, Direction, EventKind, OrigDst, PodTelemetry, SocketEvent, SocketRole,
    SocketState, TelemetryKey, announcement, is_application_socket, ports, sockops_event,
};

use crate::count::count;
use crate::ctx::{Sock, SockOps};
use crate::log::{Subject, decision, node};
use crate::maps::{ADDRESSES, ANNOUNCED, ORIG_DSTS, POLICIES, TELEMETRY};
use crate::{event, storage};

/// The value that sockops programs return when all is well.
const DONE: u32 = 1;

/// Any event of any TCP socket.
#[inline(always)]
pub fn sockops(ctx: &SockOps<'_>) -> u32 {
    let socket_event = sockops_event(ctx.op(), ctx.new_state());
    if socket_event == SocketEvent::Ignore {
        return DONE;
    }
    let Some(sock) = ctx.sock() else { return DONE };
    let netns_cookie = ctx.netns_cookie();
    if matches!(socket_event, SocketEvent::Connected | SocketEvent::Accepted) {
        // The connection may be promoted one day, and the promotion program cannot make one.
        ctx.make_cookie();
    }
    match socket_event {
        SocketEvent::Connecting => connecting(ctx, sock, netns_cookie),
        SocketEvent::Connected => established(ctx, sock, netns_cookie, Direction::Outbound),
        SocketEvent::Accepted => accepted(ctx, sock, netns_cookie),
        SocketEvent::Closed => closed(ctx, sock, netns_cookie),
        SocketEvent::Ignore => {}
    }
    DONE
}

#[inline(always)]
fn connecting(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64) {
    let node = node();
    if let Some(announced) = announcement(netns_cookie, &node, sock.mark()) {
        return announce(ctx, announced);
    }
    let Some(state) = redirected(ctx, sock) else {
        return;
    };
    let orig_dst = state.orig_dst;
    ctx.watch_state();
    if ORIG_DSTS
        .insert(ctx.tuple(netns_cookie), orig_dst, 0)
        .is_ok()
    {
        count(Counter::SockopsPublished);
    } else {
        let counter = Counter::SockopsPublishFailed;
        count(counter);
        let subject = &Subject {
            node,
            netns_cookie,
            destination: orig_dst,
        };
        event::send(
            EventKind::OrigDstLost,
            counter,
            Direction::Outbound,
            subject,
        );
        decision!(
            Error,
            ctx.inner(),
            "sockops publish failed",
            subject,
            counter
        );
    }
}

/// Tells `sk_lookup` that a connection goes straight to the application.
#[inline(always)]
fn announce(ctx: &SockOps<'_>, announced: Announced) {
    let tuple = ctx.tuple(0);
    if ADDRESSES.get_ptr(tuple.remote).is_none() {
        return;
    }
    ctx.watch_state();
    count(if ANNOUNCED.insert(tuple, announced as u8, 0).is_ok() {
        Counter::SockopsAnnounced
    } else {
        Counter::SockopsAnnounceFailed
    });
}

/// The accepting end of a redirected connection takes the original destination over.
#[inline(always)]
fn accepted(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64) {
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let Some(policy) = (unsafe { POLICIES.get(netns_cookie) }) else {
        return adopt_unenrolled(ctx, sock, netns_cookie);
    };
    let port = ctx.local_port();
    if port == policy.outbound_port || port == policy.dns_port {
        if !adopt(ctx, sock, netns_cookie) {
            count(Counter::SockopsAdoptMissed);
        }
        return;
    }
    // Nobody else may come in under an announced name.
    ANNOUNCED.remove(ctx.tuple(0).reversed()).ok();
    established(ctx, sock, netns_cookie, Direction::Inbound);
}

/// A pod may be withdrawn between the two ends of a handshake; what was redirected is still delivered.
#[inline(always)]
fn adopt_unenrolled(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64) {
    if ctx.tuple(netns_cookie).local.is_loopback() {
        adopt(ctx, sock, netns_cookie);
    }
}

/// Whether there was something to take over.
#[inline(always)]
fn adopt(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64) -> bool {
    let tuple = ctx.tuple(netns_cookie).reversed();
    let Some(orig_dst) = ORIG_DSTS.get_ptr(tuple) else {
        return false;
    };
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let orig_dst: OrigDst = unsafe { *orig_dst };
    match storage::get_or_create(sock.raw()) {
        Some(state) => {
            state.orig_dst = orig_dst;
            state.redirected_port = 0;
            state.role = SocketRole::Accepted as u8;
            // Nobody else may ask for it: an error means that the connecting end just closed.
            ORIG_DSTS.remove(tuple).ok();
            count(Counter::SockopsAdopted);
        }
        None => count(Counter::SockopsStorageFailed),
    }
    true
}

/// Counts an application's connection and remembers to count it again at close.
#[inline(always)]
fn established(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64, direction: Direction) {
    let accepted = matches!(direction, Direction::Inbound);
    if !is_application_socket(accepted, sock.mark()) {
        return;
    }
    let Some(sums) = telemetry(netns_cookie, direction) else {
        return;
    };
    let Some(state) = storage::get_or_create(sock.raw()) else {
        return count(Counter::SockopsStorageFailed);
    };
    // A canary is nobody's traffic.
    if state.orig_dst.port == ports::CANARY {
        return;
    }
    state.counted = direction as u8 + 1;
    sums.opened += 1;
    ctx.watch_state();
}

#[inline(always)]
fn closed(ctx: &SockOps<'_>, sock: Sock, netns_cookie: u64) {
    if announcement(netns_cookie, &node(), sock.mark()).is_some() {
        // Gone already if it was accepted.
        ANNOUNCED.remove(ctx.tuple(0)).ok();
        return;
    }
    let Some(state) = storage::get(sock.raw()) else {
        return;
    };
    if state.role == SocketRole::Redirected as u8 {
        // Gone already if the other end took it over.
        ORIG_DSTS.remove(ctx.tuple(netns_cookie)).ok();
    }
    let direction = match state.counted {
        1 => Direction::Outbound,
        2 => Direction::Inbound,
        _ => return,
    };
    state.counted = 0;
    if let Some(sums) = telemetry(netns_cookie, direction) {
        sums.closed += 1;
        sums.sent_bytes += ctx.bytes_acked();
        sums.received_bytes += ctx.bytes_received();
        sums.rtt_us_sum += ctx.rtt_us();
        sums.retransmits += ctx.retransmits();
    }
}

/// The state of a socket that connects where it was redirected to.
#[inline(always)]
fn redirected<'a>(ctx: &SockOps<'_>, sock: Sock) -> Option<&'a SocketState> {
    let state = storage::get(sock.raw())?;
    (state.role == SocketRole::Redirected as u8 && state.redirected_port == ctx.remote_port())
        .then_some(state)
}

#[inline(always)]
fn telemetry<'a>(netns_cookie: u64, direction: Direction) -> Option<&'a mut PodTelemetry> {
    let sums = TELEMETRY.get_ptr_mut(TelemetryKey::new(netns_cookie, direction))?;
    // SAFETY: this CPU's own copy of an element whose memory the kernel frees only after the program has run.
    unsafe { sums.as_mut() }
}
