//! `sk_lookup`: inbound connections of a pod to its inbound listener, without NAT.
//!
//! Attached to each pod's network namespace. The pod is found by the local address, since this kind of
//! program cannot ask for the namespace's cookie.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use millrace_ebpf_abi::{
    Addr, Counter, Direction, EventKind, LISTENER_SLOTS, ListenerKey, LookupInput, LookupVerdict,
    PodPolicy, lookup_verdict, missing_listener,
};

use crate::count::count;
use crate::ctx::Lookup;
use crate::event;
use crate::log::{Subject, decision, node};
use crate::maps::{ADDRESSES, LISTENERS, POLICIES};

/// Chooses the socket of an inbound connection.
#[inline(always)]
pub fn lookup(ctx: &Lookup<'_>) -> u32 {
    let node = node();
    let local = ctx.local();
    let netns_cookie = owner(&local.addr);
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let policy = unsafe { POLICIES.get(netns_cookie) };
    let input = LookupInput {
        policy,
        node_flags: node.flags,
        protocol: ctx.protocol(),
        ingress_ifindex: ctx.ingress_ifindex(),
        local_port: local.port,
    };
    let mut verdict = lookup_verdict(&input, ctx);
    if let (LookupVerdict::Steer, Some(policy)) = (verdict, policy) {
        verdict = steer(ctx, netns_cookie, policy);
    }
    let subject = Subject {
        node,
        netns_cookie,
        destination: local,
    };
    carry_out(ctx, &subject, verdict)
}

/// Cookie of the pod that has this address; 0, which no namespace has, for none.
#[inline(always)]
pub fn owner(addr: &Addr) -> u64 {
    match ADDRESSES.get_ptr(addr) {
        // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
        Some(cookie) => unsafe { *cookie },
        None => 0,
    }
}

/// Hands the connection to a listener; any of them leads to its whole `SO_REUSEPORT` group.
#[inline(always)]
fn steer(ctx: &Lookup<'_>, netns_cookie: u64, policy: &PodPolicy) -> LookupVerdict {
    let mut slot = 0;
    while slot < LISTENER_SLOTS {
        let key = ListenerKey::new(netns_cookie, ctx.family() as u16, slot);
        if LISTENERS.redirect_sk_lookup(ctx.inner(), key, 0).is_ok() {
            return LookupVerdict::Steer;
        }
        slot += 1;
    }
    missing_listener(policy)
}

#[inline(always)]
fn carry_out(ctx: &Lookup<'_>, subject: &Subject, verdict: LookupVerdict) -> u32 {
    match verdict {
        LookupVerdict::Pass(counter) => {
            count(counter);
            decision!(Trace, ctx.inner(), "sk_lookup passed", subject, counter);
            SK_PASS
        }
        LookupVerdict::Steer => {
            let counter = Counter::LookupSteered;
            count(counter);
            decision!(Debug, ctx.inner(), "sk_lookup steered", subject, counter);
            SK_PASS
        }
        LookupVerdict::Direct(counter) => {
            count(counter);
            event::send(EventKind::WentDirect, counter, Direction::Inbound, subject);
            decision!(Warn, ctx.inner(), "sk_lookup went direct", subject, counter);
            SK_PASS
        }
        LookupVerdict::Refuse(counter) => {
            count(counter);
            event::send(EventKind::Refused, counter, Direction::Inbound, subject);
            decision!(Warn, ctx.inner(), "sk_lookup refused", subject, counter);
            SK_DROP
        }
    }
}
