//! cgroup/getsockopt: `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`, answered as netfilter would.
//!
//! So a proxy asks one question whichever way the connection was captured. A socket accepted from
//! `sk_lookup` has its original destination as local address, and conntrack says the same of every
//! connection that nobody redirected.

use millrace_ebpf_abi::{
    AF_INET, AF_INET6, Acceleration, Counter, OrigDst, OrigDstAnswer, SOCKOPT_LEVEL,
    SOCKOPT_SPLICED, SOCKOPT_STATE, SOCKOPT_WAY, SockTuple, SocketRole, TCP, getsockopt_verdict,
};

use crate::count::count;
use crate::ctx::{Sock, Sockopt};
use crate::maps::{ORIG_DSTS, POLICIES};
use crate::{kernel, skmsg, splice, storage};

/// The kernel's own answer stays.
const KEEP: i32 = 1;
/// The smallest page that Linux has.
const PAGE: i32 = 4096;

#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u32; 2],
}

#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flowinfo: u32,
    addr: [u32; 4],
    scope_id: u32,
}

/// `getsockopt()` of any option.
#[inline(always)]
pub fn getsockopt(ctx: &Sockopt<'_>) -> i32 {
    if ctx.optlen() > PAGE {
        // An answer longer than a page is not in the program's buffer; kernels before 6.5 turn it into EFAULT
        // unless the program disclaims it (Documentation/bpf/prog_cgroup_sockopt.rst).
        ctx.disclaim();
        return KEEP;
    }
    if ctx.level() == SOCKOPT_LEVEL {
        acceleration(ctx);
        return KEEP;
    }
    let mut origin = None;
    let verdict = getsockopt_verdict(ctx.level(), ctx.optname(), || {
        origin = find(ctx);
        if origin.is_none() {
            count(Counter::GetsockoptMissed);
        }
        origin.map(|(orig_dst, _)| orig_dst.addr)
    });
    let Some((orig_dst, counter)) = origin else {
        return KEEP;
    };
    let answered = match verdict {
        OrigDstAnswer::Leave => {
            count(Counter::GetsockoptMissed);
            return KEEP;
        }
        OrigDstAnswer::V4 => ctx.answer(SockaddrIn {
            family: AF_INET as u16,
            port: orig_dst.port.to_be(),
            addr: orig_dst.addr.v4_word(),
            zero: [0; 2],
        }),
        OrigDstAnswer::V6 => ctx.answer(SockaddrIn6 {
            family: AF_INET6 as u16,
            port: orig_dst.port.to_be(),
            flowinfo: 0,
            addr: orig_dst.addr.words(),
            scope_id: 0,
        }),
    };
    count(if answered {
        counter
    } else {
        Counter::GetsockoptShortBuffer
    });
    KEEP
}

/// How a promoted connection is; any other socket keeps the kernel's `ENOPROTOOPT`.
#[inline(always)]
fn acceleration(ctx: &Sockopt<'_>) {
    let Some(state) = storage::accel(ctx.sock().raw()) else {
        return;
    };
    let fits = match ctx.optname() {
        SOCKOPT_STATE => kernel::answer(state).is_none_or(|answer| ctx.answer(answer)),
        SOCKOPT_WAY => {
            let is_on = skmsg::setting(state.netns_cookie).is_some_and(Acceleration::is_on);
            kernel::way(state, is_on).is_none_or(|way| ctx.answer(way))
        }
        SOCKOPT_SPLICED => splice::answer(state).is_none_or(|spliced| ctx.answer(spliced)),
        _ => true,
    };
    if !fits {
        count(Counter::GetsockoptShortBuffer);
    }
}

/// The original destination of the socket, and how it is known.
#[inline(always)]
fn find(ctx: &Sockopt<'_>) -> Option<(OrigDst, Counter)> {
    let sock = ctx.sock();
    if sock.protocol() != TCP {
        return None;
    }
    let netns_cookie = ctx.netns_cookie();
    if let Some(state) = storage::get(sock.raw())
        && state.role == SocketRole::Accepted as u8
    {
        return Some((state.orig_dst, Counter::GetsockoptAnswered));
    }
    if let Some(orig_dst) = published(sock, netns_cookie) {
        return Some((orig_dst, Counter::GetsockoptAnswered));
    }
    let policy = POLICIES.get_ptr(netns_cookie)?;
    // SAFETY: as in `published`.
    let policy = unsafe { &*policy };
    let local = sock.local();
    // Whoever arrived at a capture port by none of the programs was redirected there by nat rules,
    // which a pod has until it is enrolled: conntrack knows more. A socket that was reset has no port left.
    (local.port != 0 && !policy.is_capture_port(local.port))
        .then_some((local, Counter::GetsockoptLocalAddress))
}

/// What the connecting end published, where the accepted end found no memory to keep it.
#[inline(always)]
fn published(sock: Sock, netns_cookie: u64) -> Option<OrigDst> {
    let (local, remote) = (sock.local(), sock.remote());
    let key = SockTuple {
        netns_cookie,
        local: remote.addr,
        remote: local.addr,
        local_port: remote.port,
        remote_port: local.port,
        reserved: 0,
    };
    let value = ORIG_DSTS.get_ptr(key)?;
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    Some(unsafe { *value })
}
