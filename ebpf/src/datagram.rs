//! cgroup/sendmsg and recvmsg: unconnected DNS datagrams to the pod's DNS listener and their answers back.
//!
//! A socket remembers the server that it asked last; an answer from the listener is shown as that server's.

use millrace_ebpf_abi::{
    Addr, ConnectInput, ConnectVerdict, Counter, Direction, EventKind, OrigDst, PodPolicy, UDP,
    connect_verdict, hidden_peer,
};

use crate::connect::{ALLOW, REFUSE, remember};
use crate::count::count;
use crate::ctx::SockAddr;
use crate::log::{Subject, decision, node};
use crate::maps::POLICIES;
use crate::{event, storage};

/// `sendmsg()` with an IPv4 destination.
#[inline(always)]
pub fn sendmsg4(ctx: &SockAddr<'_>) -> i32 {
    match redirect(ctx, ctx.address4()) {
        Ok(Some((addr, port))) => ctx.set_address4(&addr, port),
        Ok(None) => {}
        Err(Refused) => return REFUSE,
    }
    ALLOW
}

/// `sendmsg()` with an IPv6 destination. The kernel sends a v4-mapped one through sendmsg4.
#[inline(always)]
pub fn sendmsg6(ctx: &SockAddr<'_>) -> i32 {
    match redirect(ctx, ctx.address6()) {
        Ok(Some((addr, port))) => ctx.set_address6(&addr, port),
        Ok(None) => {}
        Err(Refused) => return REFUSE,
    }
    ALLOW
}

/// `recvmsg()` that wants the source of an IPv4 datagram.
#[inline(always)]
pub fn recvmsg4(ctx: &SockAddr<'_>) -> i32 {
    if let Some(server) = asked_server(ctx, &ctx.address4()) {
        ctx.set_address4(&server.addr, server.port);
    }
    ALLOW
}

/// `recvmsg()` that wants the source of a datagram on an IPv6 socket, v4-mapped ones included.
#[inline(always)]
pub fn recvmsg6(ctx: &SockAddr<'_>) -> i32 {
    if let Some(server) = asked_server(ctx, &ctx.address6()) {
        ctx.set_address6(&server.addr, server.port);
    }
    ALLOW
}

struct Refused;

#[inline(always)]
fn redirect(ctx: &SockAddr<'_>, destination: OrigDst) -> Result<Option<(Addr, u16)>, Refused> {
    let node = node();
    let netns_cookie = ctx.netns_cookie();
    let sock = ctx.sock();
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let policy = unsafe { POLICIES.get(netns_cookie) };
    let input = ConnectInput {
        policy,
        node_flags: node.flags,
        mark: sock.mark(),
        protocol: UDP,
        destination,
    };
    let mut verdict = connect_verdict(&input, ctx);
    if let (ConnectVerdict::Redirect(port, _), Some(policy)) = (verdict, policy)
        && !remember(sock, destination, port)
    {
        verdict = if policy.has(PodPolicy::OPEN) {
            ConnectVerdict::Direct(Counter::ConnectStorageFullDirect)
        } else {
            ConnectVerdict::Refuse(Counter::ConnectStorageFullRefused)
        };
    }
    let subject = Subject {
        node,
        netns_cookie,
        destination,
    };
    carry_out(ctx, &subject, verdict)
}

#[inline(always)]
fn carry_out(
    ctx: &SockAddr<'_>,
    subject: &Subject,
    verdict: ConnectVerdict,
) -> Result<Option<(Addr, u16)>, Refused> {
    match verdict {
        ConnectVerdict::Pass(_) => {
            count(Counter::SendmsgPassed);
            Ok(None)
        }
        ConnectVerdict::Direct(reason) => {
            count(Counter::SendmsgDirect);
            event::send(EventKind::WentDirect, reason, Direction::Outbound, subject);
            decision!(Warn, ctx.inner(), "sendmsg went direct", subject, reason);
            Ok(None)
        }
        ConnectVerdict::Redirect(port, reason) => {
            count(Counter::SendmsgDnsRedirected);
            decision!(Debug, ctx.inner(), "sendmsg redirected", subject, reason);
            Ok(Some((subject.destination.addr.loopback(), port)))
        }
        ConnectVerdict::Refuse(reason) => {
            count(Counter::SendmsgRefused);
            event::send(EventKind::Refused, reason, Direction::Outbound, subject);
            decision!(Warn, ctx.inner(), "sendmsg refused", subject, reason);
            Err(Refused)
        }
    }
}

#[inline(always)]
fn asked_server(ctx: &SockAddr<'_>, source: &OrigDst) -> Option<OrigDst> {
    let state = storage::get(ctx.sock().raw());
    let server = hidden_peer(state.as_deref(), &source.addr, source.port);
    count(if server.is_some() {
        Counter::RecvmsgRestored
    } else {
        Counter::RecvmsgPassed
    });
    server
}
