//! cgroup/setsockopt: options that acceleration cannot honour, set on a promoted connection, send it back to
//! TCP in both directions; those set before are seen when it is to be promoted.
//!
//! And the one option without which an `AF_XDP` socket cannot send: its frames pass no other hook that a pod's
//! namespace has.

use millrace_ebpf_abi::{AccelSocket, Counter, OptionVerdict, PodPolicy, option_verdict};

use crate::count::count;
use crate::ctx::Sockopt;
use crate::maps::POLICIES;
use crate::skmsg::sums;
use crate::storage;

/// The kernel carries the call out.
const ALLOW: i32 = 1;
/// The caller gets EPERM.
const REFUSE: i32 = 0;
/// `SOL_XDP` and `XDP_TX_RING` (`linux/if_xdp.h`).
const SOL_XDP: i32 = 283;
const XDP_TX_RING: i32 = 3;
/// The smallest page that Linux has.
const PAGE: i32 = 4096;

/// `setsockopt()` of any option.
#[inline(always)]
pub fn setsockopt(ctx: &Sockopt<'_>) -> i32 {
    if ctx.optlen() > PAGE {
        // A value longer than a page is not in the program's buffer; unless it is disclaimed the call fails
        // (Documentation/bpf/prog_cgroup_sockopt.rst).
        ctx.disclaim();
    }
    if ctx.level() == SOL_XDP && ctx.optname() == XDP_TX_RING && is_closed(ctx) {
        count(Counter::SetsockoptRefused);
        return REFUSE;
    }
    let verdict = option_verdict(ctx.level(), ctx.optname());
    if verdict == OptionVerdict::Ignore {
        return ALLOW;
    }
    let Some(state) = storage::accel(ctx.sock().raw()) else {
        return ALLOW;
    };
    if state.flags & AccelSocket::READY == 0 {
        return ALLOW;
    }
    if verdict == OptionVerdict::Refuse {
        count(Counter::SetsockoptRefused);
        return REFUSE;
    }
    if state.flags & AccelSocket::OPTION == 0 {
        state.flags |= AccelSocket::OPTION;
        count(Counter::SetsockoptReturned);
        if let Some(sums) = sums(state.netns_cookie) {
            sums.returned += 1;
        }
    }
    ALLOW
}

/// Whether the socket is of a pod that fails closed.
#[inline(always)]
fn is_closed(ctx: &Sockopt<'_>) -> bool {
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let policy = unsafe { POLICIES.get(ctx.netns_cookie()) };
    policy.is_some_and(|policy| !policy.has(PodPolicy::OPEN))
}
