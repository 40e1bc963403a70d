//! cgroup/connect4 and connect6: capture of outbound TCP, of TCP DNS and of connected UDP DNS.
//!
//! The original destination goes into the socket's storage, the destination becomes the listener on the
//! loopback of the pod's own namespace, and an unbound socket is bound to the pod's address, so that the
//! application's getsockname and the proxy's peer address are what they are without a mesh.

use aya_ebpf::helpers::bpf_bind;
use millrace_ebpf_abi::{
    AF_INET, AF_INET6, Addr, ConnectInput, ConnectVerdict, Counter, Direction, EventKind, OrigDst,
    PodPolicy, SocketRole, connect_verdict,
};

use crate::count::count;
use crate::ctx::{Sock, SockAddr};
use crate::log::{Subject, decision, node};
use crate::maps::POLICIES;
use crate::{event, storage};

/// The call goes on.
pub const ALLOW: i32 = 1;
/// The caller gets EPERM.
pub const REFUSE: i32 = 0;

/// `connect()` to an IPv4 address.
#[inline(always)]
pub fn connect4(ctx: &SockAddr<'_>) -> i32 {
    match capture(ctx, ctx.address4()) {
        Ok(Some((addr, port))) => ctx.set_address4(&addr, port),
        Ok(None) => {}
        Err(Refused) => return REFUSE,
    }
    ALLOW
}

/// `connect()` to an IPv6 address, v4-mapped ones included.
#[inline(always)]
pub fn connect6(ctx: &SockAddr<'_>) -> i32 {
    match capture(ctx, ctx.address6()) {
        Ok(Some((addr, port))) => ctx.set_address6(&addr, port),
        Ok(None) => {}
        Err(Refused) => return REFUSE,
    }
    ALLOW
}

struct Refused;

/// Where to connect to instead, if anywhere.
#[inline(always)]
fn capture(ctx: &SockAddr<'_>, destination: OrigDst) -> Result<Option<(Addr, u16)>, Refused> {
    let node = node();
    let netns_cookie = ctx.netns_cookie();
    let sock = ctx.sock();
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    let policy = unsafe { POLICIES.get(netns_cookie) };
    let input = ConnectInput {
        policy,
        node_flags: node.flags,
        mark: sock.mark(),
        protocol: ctx.protocol(),
        destination,
    };
    let mut verdict = connect_verdict(&input, ctx);
    if let (ConnectVerdict::Redirect(port, _), Some(policy)) = (verdict, policy) {
        if remember(sock, destination, port) {
            bind_to_pod(ctx, sock, policy, &destination.addr);
        } else if policy.has(PodPolicy::OPEN) {
            verdict = ConnectVerdict::Direct(Counter::ConnectStorageFullDirect);
        } else {
            verdict = ConnectVerdict::Refuse(Counter::ConnectStorageFullRefused);
        }
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
        ConnectVerdict::Pass(counter) => {
            count(counter);
            decision!(Trace, ctx.inner(), "connect passed", subject, counter);
            Ok(None)
        }
        ConnectVerdict::Direct(counter) => {
            count(counter);
            event::send(EventKind::WentDirect, counter, Direction::Outbound, subject);
            decision!(Warn, ctx.inner(), "connect went direct", subject, counter);
            Ok(None)
        }
        ConnectVerdict::Redirect(port, counter) => {
            count(counter);
            decision!(Debug, ctx.inner(), "connect redirected", subject, counter);
            Ok(Some((subject.destination.addr.loopback(), port)))
        }
        ConnectVerdict::Refuse(counter) => {
            count(counter);
            event::send(EventKind::Refused, counter, Direction::Outbound, subject);
            decision!(Warn, ctx.inner(), "connect refused", subject, counter);
            Err(Refused)
        }
    }
}

/// Keeps the original destination with the socket; false if memory is short.
#[inline(always)]
pub fn remember(sock: Sock, destination: OrigDst, port: u16) -> bool {
    let Some(state) = storage::get_or_create(sock.raw()) else {
        return false;
    };
    state.orig_dst = destination;
    state.redirected_port = port;
    state.role = SocketRole::Redirected as u8;
    true
}

#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u8; 8],
}

#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flowinfo: u32,
    addr: [u32; 4],
    scope_id: u32,
}

/// Binds an unbound socket to the pod's address. Port 0: the kernel chooses it when it connects, as ever.
#[inline(always)]
fn bind_to_pod(ctx: &SockAddr<'_>, sock: Sock, policy: &PodPolicy, destination: &Addr) {
    let source = policy.address_like(destination);
    let local = sock.local();
    if source.is_unspecified() || local.port != 0 || !(local.addr.is_unspecified()) {
        return;
    }
    let failed = if sock.family() == AF_INET {
        let mut address = SockaddrIn {
            family: AF_INET as u16,
            port: 0,
            addr: source.v4_word(),
            zero: [0; 8],
        };
        // SAFETY: the address outlives the call.
        unsafe {
            bpf_bind(
                ctx.raw(),
                (&raw mut address).cast(),
                size_of::<SockaddrIn>() as i32,
            ) != 0
        }
    } else {
        let mut address = SockaddrIn6 {
            family: AF_INET6 as u16,
            port: 0,
            flowinfo: 0,
            addr: source.words(),
            scope_id: 0,
        };
        // SAFETY: the address outlives the call.
        unsafe {
            bpf_bind(
                ctx.raw(),
                (&raw mut address).cast(),
                size_of::<SockaddrIn6>() as i32,
            ) != 0
        }
    };
    if failed {
        count(Counter::ConnectSourceNotBound);
    }
}
