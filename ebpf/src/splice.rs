//! Two promoted connections of a node, tied to each other by the promotion program: `splice` begins that, `settle`
//! makes sure of its end before an application's end leaves the map.
//!
//! The proxy keeps still while this runs, and opens the way afterwards, by its mark on both of its ends; until
//! then nothing goes it. So that a run that it did not wait for does no harm, the marks are looked at last.

use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release};
use core::ffi::c_void;
use core::ptr;
use millrace_ebpf_abi::{
    AccelCommand, AccelOutcome, AccelSocket, AccelSplice, AccelSpliced, Acceleration, Counter,
    REFS_AT_REST, end_verdict, experiment, pipe_is_empty, priority,
};

use crate::count::count;
use crate::ctx::Sock;
use crate::kernel::{self, KernelSock};
use crate::maps::{ACCELERATED, SPLICED};
use crate::skmsg::{setting, sums};
use crate::storage;

/// `TCP_ESTABLISHED`.
const ESTABLISHED: u32 = 1;

/// Ties the connections that the command names by the cookies of the proxy's ends.
#[inline(always)]
pub fn command(command: *const AccelCommand) -> AccelOutcome {
    // SAFETY: within the packet, as checked by the caller.
    let (key, other_key, pods) = unsafe {
        (
            (&raw const (*command).key).read_unaligned(),
            (&raw const (*command).other_key).read_unaligned(),
            [
                (&raw const (*command).netns_cookie).read_unaligned(),
                (&raw const (*command).other_netns_cookie).read_unaligned(),
            ],
        )
    };
    with_found(key, |near, near_state| {
        with_found(other_key, |far, far_state| {
            with_found(near_state.peer_cookie, |near_sock, near_application| {
                with_found(far_state.peer_cookie, |far_sock, far_application| {
                    let here = Half {
                        proxy: near,
                        proxy_state: near_state,
                        application_sock: near_sock,
                        application: near_application,
                    };
                    let there = Half {
                        proxy: far,
                        proxy_state: far_state,
                        application_sock: far_sock,
                        application: far_application,
                    };
                    let outcome = tie(&here, &there, pods);
                    if outcome == AccelOutcome::Done {
                        near_application.spliced = 1;
                        far_application.spliced = 1;
                    }
                    outcome
                })
            })
        })
    })
}

/// Does `what` with the end of this cookie, if it is in the map.
#[inline(always)]
fn with_found(key: u64, what: impl FnOnce(Sock, &mut AccelSocket) -> AccelOutcome) -> AccelOutcome {
    let mut key = key;
    let map = ptr::from_ref(&ACCELERATED).cast_mut().cast::<c_void>();
    // SAFETY: map and key outlive the call.
    let found = unsafe { bpf_map_lookup_elem(map, (&raw mut key).cast()) }.cast::<bpf_sock>();
    if found.is_null() {
        return AccelOutcome::NotFound;
    }
    let outcome = match storage::accel(found) {
        Some(state) => what(Sock::found(found), state),
        None => AccelOutcome::NotFound,
    };
    // SAFETY: the reference that the lookup took.
    unsafe { bpf_sk_release(found.cast()) };
    outcome
}

/// One of the two connections.
struct Half<'a> {
    proxy: Sock,
    proxy_state: &'a AccelSocket,
    application_sock: Sock,
    application: &'a AccelSocket,
}

impl Half<'_> {
    /// Whether it is a promoted connection of this pod, and its operator vouches for any that it carries.
    #[inline(always)]
    fn verdict(&self, netns_cookie: u64) -> Result<(), AccelOutcome> {
        let (near, far) = (self.proxy_state, self.application);
        let is_pair = near.flags & far.flags & AccelSocket::READY != 0
            && near.flags & (AccelSocket::PROXY | AccelSocket::BUSY) == AccelSocket::PROXY
            && far.flags & AccelSocket::PROXY == 0
            && far.peer_cookie == near.cookie
            && near.netns_cookie == netns_cookie;
        if !is_pair {
            return Err(AccelOutcome::NotFound);
        }
        if setting(netns_cookie) != Some(Acceleration::On) {
            return Err(AccelOutcome::Off);
        }
        if far.flags & AccelSocket::OPTION != 0 {
            return Err(AccelOutcome::SocketOption);
        }
        let facts = kernel::end_facts(self.application_sock, far.own);
        end_verdict(&facts.ok_or(AccelOutcome::Failed)?, netns_cookie, false)?;
        if self.proxy.state() == ESTABLISHED {
            Ok(())
        } else {
            Err(AccelOutcome::NotEstablished)
        }
    }
}

/// What the sender has sent so far, and the proxy's end towards the other application by TCP.
#[derive(Clone, Copy)]
struct Sent {
    redirected: u64,
    seq: u32,
    proxy_seq: u32,
}

#[inline(always)]
fn tie(here: &Half<'_>, there: &Half<'_>, [pod, other_pod]: [u64; 2]) -> AccelOutcome {
    let result = here
        .verdict(pod)
        .and_then(|()| there.verdict(other_pod))
        .and_then(|()| Ok((sent(here, there)?, sent(there, here)?)))
        .and_then(|both| {
            let marks = [here.proxy.priority(), there.proxy.priority()];
            if marks == [priority::NORMAL; 2] {
                Ok(both)
            } else {
                Err(AccelOutcome::Withdrawn)
            }
        })
        .and_then(|(out, back)| {
            begin(here, there, out)?;
            begin(there, here, back)
        });
    match result {
        Ok(()) => {
            for netns_cookie in [pod, other_pod] {
                if let Some(sums) = sums(netns_cookie) {
                    sums.spliced += 1;
                }
            }
            AccelOutcome::Done
        }
        Err(outcome) => outcome,
    }
}

/// What the application of `from` has sent, if nothing of it is on its way to that of `to`.
#[inline(always)]
fn sent(from: &Half<'_>, to: &Half<'_>) -> Result<Sent, AccelOutcome> {
    let gone = AccelOutcome::NotFound;
    let sender = from.application;
    // Before anything else is looked at: what it sends from here on breaks the splice.
    // SAFETY: a field of the storage, which the message program may just be changing.
    let redirected = unsafe { (&raw const sender.sent.redirected_bytes).read_volatile() };
    let pipe =
        kernel::pipe((sender, from.proxy_state), (to.proxy_state, to.application)).ok_or(gone)?;
    if !pipe_is_empty(&pipe) && kernel::experiment() & experiment::SPLICE_ANYHOW == 0 {
        return Err(AccelOutcome::Unread);
    }
    Ok(Sent {
        redirected,
        seq: pipe.write_seq,
        proxy_seq: pipe.proxy_write_seq,
    })
}

/// Notes where what the application of `from` sends goes from now on.
#[inline(always)]
fn begin(from: &Half<'_>, to: &Half<'_>, sent: Sent) -> Result<(), AccelOutcome> {
    let cookie = from.application.cookie;
    let Some(splice) = SPLICED.get_ptr_mut(cookie) else {
        let splice = lead(AccelSplice::default(), to, sent);
        return SPLICED
            .insert(cookie, splice, u64::from(BPF_ANY))
            .map_err(|_| AccelOutcome::Full);
    };
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run. What the sender
    // may be doing with it ends the splice, as the way is not open.
    unsafe { *splice = lead(*splice, to, sent) };
    Ok(())
}

/// The same counts, with another way.
#[inline(always)]
fn lead(splice: AccelSplice, to: &Half<'_>, sent: Sent) -> AccelSplice {
    AccelSplice {
        to: to.application.cookie,
        to_own: to.application.own,
        // As the proxy's end there knows it.
        to_state: to.proxy_state.peer_state,
        to_netns_cookie: to.proxy_state.netns_cookie,
        to_proxy: to.proxy_state.own,
        to_proxy_cookie: to.proxy_state.cookie,
        at: sent.redirected,
        seq: sent.seq,
        proxy_seq: sent.proxy_seq,
        unread_messages: 0,
        on: 1,
        ended: 0,
        ..splice
    }
}

/// Ends both directions of an application that is to leave the map; whether no message is on its way any more. The
/// way is closed already, by the proxy's mark. Who has left the map or closed was asked the same before.
#[inline(always)]
pub fn settle(leaving: &AccelSocket) -> bool {
    let Some(own) = SPLICED.get_ptr_mut(leaving.cookie) else {
        return true;
    };
    // SAFETY: as in `begin`.
    let own = unsafe { &mut *own };
    end(own, leaving.netns_cookie);
    if let Some(other) = SPLICED.get_ptr_mut(own.to) {
        // SAFETY: as in `begin`.
        end(unsafe { &mut *other }, own.to_netns_cookie);
    }
    if kernel::experiment() & experiment::LEAVE_UNSETTLED != 0 {
        return true;
    }
    let other = KernelSock::at(own.to_own);
    let is_other_quiet = other.cookie() != Some(own.to)
        || other.psock_refs().is_none_or(|refs| refs <= REFS_AT_REST);
    let refs = KernelSock::at(leaving.own).psock_refs();
    is_other_quiet && refs == Some(REFS_AT_REST)
}

/// Ends a direction that the proxy has closed, if the sender's next message has not; `netns_cookie` is its pod's.
#[inline(always)]
fn end(splice: &mut AccelSplice, netns_cookie: u64) {
    if splice.on != 0 {
        close(splice, netns_cookie, Counter::UnspliceMarked);
    }
}

/// Ends a direction for this reason.
#[inline(always)]
pub fn close(splice: &mut AccelSplice, netns_cookie: u64, why: Counter) {
    splice.on = 0;
    splice.ended = why as u32;
    if let Some(sums) = sums(netns_cookie) {
        sums.unspliced += 1;
    }
    count(why);
}

/// What was moved of the application's messages, asked at either end of its connection.
#[inline(always)]
pub fn answer(state: &AccelSocket) -> Option<AccelSpliced> {
    let splice = of(state)?;
    Some(AccelSpliced {
        messages: splice.messages,
        bytes: splice.bytes,
        // SAFETY: asks for nothing.
        quiet_ns: unsafe { bpf_ktime_get_ns() }.saturating_sub(splice.moved_at),
        on: splice.on,
        ended: splice.ended,
    })
}

/// The splice of a connection's application.
#[inline(always)]
pub fn of(state: &AccelSocket) -> Option<AccelSplice> {
    let application = if state.flags & AccelSocket::PROXY == 0 {
        state.cookie
    } else {
        state.peer_cookie
    };
    let splice = SPLICED.get_ptr(application)?;
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    Some(unsafe { *splice })
}

/// When something was put last into the queue of the application at the other end of the proxy's.
#[inline(always)]
pub fn moved_to(proxy: &AccelSocket) -> u64 {
    let back = of(proxy).and_then(|splice| SPLICED.get_ptr(splice.to));
    // SAFETY: as in `of`.
    back.map_or(0, |splice| unsafe { (*splice).moved_at })
}
