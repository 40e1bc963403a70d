//! cgroup/getpeername: a redirected socket shows the address that its application asked for.

use millrace_ebpf_abi::{Counter, OrigDst, hidden_peer};

use crate::connect::ALLOW;
use crate::count::count;
use crate::ctx::SockAddr;
use crate::storage;

/// `getpeername()` of an IPv4 socket.
#[inline(always)]
pub fn getpeername4(ctx: &SockAddr<'_>) -> i32 {
    if let Some(peer) = asked_peer(ctx, &ctx.address4()) {
        ctx.set_address4(&peer.addr, peer.port);
    }
    ALLOW
}

/// `getpeername()` of an IPv6 socket, v4-mapped peers included.
#[inline(always)]
pub fn getpeername6(ctx: &SockAddr<'_>) -> i32 {
    if let Some(peer) = asked_peer(ctx, &ctx.address6()) {
        ctx.set_address6(&peer.addr, peer.port);
    }
    ALLOW
}

#[inline(always)]
fn asked_peer(ctx: &SockAddr<'_>, peer: &OrigDst) -> Option<OrigDst> {
    let state = storage::get(ctx.sock().raw());
    let asked = hidden_peer(state.as_deref(), &peer.addr, peer.port);
    count(if asked.is_some() {
        Counter::GetpeernameRestored
    } else {
        Counter::GetpeernamePassed
    });
    asked
}
