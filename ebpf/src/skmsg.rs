//! `sk_msg`: which way a message of a promoted connection goes, its bytes straight into the other end's queue
//! or through TCP as ever. Refusing a message is no way: the kernel then refuses every later one of the socket
//! (`tcp_bpf_send_verdict` keeps the verdict, Linux 6.18), so that the proxy asks before it sends.
//!
//! Runs for each message with the sender locked; who else may change what it reads is the reader at the
//! other end, who can only make room.

use millrace_ebpf_abi::{
    AccelSocket, Acceleration, Counter, Message, PodAcceleration, Sight, message_way, splice_way,
    stays_with_tcp,
};

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;

use crate::count::count;
use crate::ctx::{Msg, Sock};
use crate::maps::{ACCELERATED, ACCELERATION, POLICIES, SPLICED};
use crate::{kernel, splice, storage};

/// The message goes where the helper said, by TCP if it said nothing.
const PASS: u32 = 1;
/// `BPF_F_INGRESS`: into the queue of what the other end receives.
const INGRESS: u64 = 1;

/// A message of a socket in the map.
#[inline(always)]
pub fn message(ctx: &Msg<'_>) -> u32 {
    let sock = ctx.sock();
    let Some(state) = storage::accel(sock.raw()) else {
        return PASS;
    };
    if state.flags & AccelSocket::READY == 0 {
        return PASS;
    }
    if state.spliced != 0 && goes_direct(ctx, sock, state) {
        return PASS;
    }
    let message = Message {
        setting: setting(state.netns_cookie),
        flags: state.flags,
        priority: sock.priority(),
        size: ctx.size(),
        experiment: kernel::experiment(),
    };
    let why = match way(&message, sock, state) {
        Ok(sight) => {
            state.flags |= AccelSocket::ARMED;
            if redirect(ctx, state, &sight, message.size) {
                return PASS;
            }
            Counter::MessageRedirectFailed
        }
        Err(counter) => counter,
    };
    by_tcp(sock, state, message.size, why);
    PASS
}

#[inline(always)]
fn way(message: &Message, sock: Sock, state: &AccelSocket) -> Result<Sight, Counter> {
    if let Some(counter) = stays_with_tcp(message) {
        return Err(counter);
    }
    let Some(sight) = kernel::sight(sock, state) else {
        return Err(Counter::MessagePeerGone);
    };
    message_way(message, &sight)?;
    Ok(sight)
}

/// Puts the message straight into the other pod's queue, as long as the connections are spliced; ends that where it
/// may not go there.
#[inline(always)]
fn goes_direct(ctx: &Msg<'_>, sock: Sock, state: &AccelSocket) -> bool {
    let Some(splice) = SPLICED.get_ptr_mut(state.cookie) else {
        return false;
    };
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let splice = unsafe { &mut *splice };
    if splice.on == 0 {
        return false;
    }
    let size = ctx.size();
    let settings = [setting(state.netns_cookie), setting(splice.to_netns_cookie)];
    let way = match kernel::splice_sight((sock, state), splice, size, settings) {
        Some(sight) => splice_way(&sight).map(|()| sight.peer_unread),
        None => Err(Counter::UnspliceGone),
    };
    let why = match way {
        Ok(unread) => {
            if ACCELERATED.redirect_msg(ctx.inner(), splice.to, INGRESS) == i64::from(PASS) {
                let before = if unread == 0 {
                    0
                } else {
                    splice.unread_messages
                };
                splice.unread_messages = before + 1;
                // SAFETY: asks for nothing.
                splice.moved_at = unsafe { bpf_ktime_get_coarse_ns() };
                splice.messages += 1;
                splice.bytes += u64::from(size);
                if let Some(sums) = sums(state.netns_cookie) {
                    sums.spliced_messages += 1;
                    sums.spliced_bytes += u64::from(size);
                }
                count(Counter::MessageSpliced);
                return true;
            }
            Counter::UnspliceGone
        }
        Err(why) => why,
    };
    splice::close(splice, state.netns_cookie, why);
    false
}

/// The pod's setting.
#[inline(always)]
pub fn setting(netns_cookie: u64) -> Option<Acceleration> {
    let policy = POLICIES.get_ptr(netns_cookie)?;
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    Some(unsafe { (*policy).acceleration() })
}

/// False if the map does not have the other end any more.
#[inline(always)]
fn redirect(ctx: &Msg<'_>, state: &mut AccelSocket, sight: &Sight, size: u32) -> bool {
    if ACCELERATED.redirect_msg(ctx.inner(), state.peer_cookie, INGRESS) != i64::from(PASS) {
        return false;
    }
    state.unread_messages = if sight.peer_unread == 0 {
        1
    } else {
        state.unread_messages + 1
    };
    // SAFETY: asks for nothing.
    state.redirected_at = unsafe { bpf_ktime_get_coarse_ns() };
    state.sent.redirected_messages += 1;
    state.sent.redirected_bytes += u64::from(size);
    if let Some(sums) = sums(state.netns_cookie) {
        sums.redirected_messages += 1;
        sums.redirected_bytes += u64::from(size);
    }
    count(Counter::MessageRedirected);
    true
}

#[inline(always)]
fn by_tcp(sock: Sock, state: &mut AccelSocket, size: u32, why: Counter) {
    state.sent.tcp_messages += 1;
    state.sent.tcp_bytes += u64::from(size);
    count(why);
    let mixed = state.flags & AccelSocket::PROXY != 0
        && state.unread_messages > 0
        && kernel::sight(sock, state).is_some_and(|sight| sight.has_redirected());
    if mixed {
        count(Counter::MessageMixed);
    }
    if let Some(sums) = sums(state.netns_cookie) {
        sums.tcp_messages += 1;
        sums.tcp_bytes += u64::from(size);
        sums.capped += u64::from(matches!(why, Counter::MessageCapped));
        sums.mixed += u64::from(mixed);
    }
}

/// The pod's sums on this CPU.
#[inline(always)]
pub fn sums<'a>(netns_cookie: u64) -> Option<&'a mut PodAcceleration> {
    let sums = ACCELERATION.get_ptr_mut(netns_cookie)?;
    // SAFETY: this CPU's own copy of an element whose memory the kernel frees only after the program has run.
    unsafe { sums.as_mut() }
}
