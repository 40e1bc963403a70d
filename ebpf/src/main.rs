//! Kernel programs of Millrace: the entry points.
//!
//! Each hands its context to the module of its hook; decisions are in `millrace-ebpf-abi`, maps in `maps`.
//! Loaded, pinned and attached by `millrace-agent`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    unreachable_pub,
    reason = "programs are exported by name, which the attribute macros need `pub` for"
)]
#![expect(
    missing_docs,
    reason = "the attribute macros drop the documentation of what they wrap"
)]
#![expect(
    clippy::inline_always,
    reason = "a call costs instructions and stack, of which a program has 512 bytes"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the attribute macros hand contexts over by value"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "fields of the kernel's structures are wider than what they hold"
)]

mod connect;
mod count;
mod create;
mod ctx;
mod datagram;
mod event;
mod facts;
mod getpeername;
mod getsockopt;
mod kernel;
mod log;
mod lookup;
mod maps;
mod promote;
mod setsockopt;
mod skmsg;
mod sockops;
mod splice;
mod storage;

use aya_ebpf::macros::{
    cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup, sk_msg, sock_ops,
};
use aya_ebpf::programs::{
    SkLookupContext, SkMsgContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext,
    TcContext,
};

use crate::ctx::{Lookup, Msg, SockAddr, SockOps, Sockopt};

#[cgroup_sock(sock_create)]
pub fn millrace_create(ctx: SockContext) -> i32 {
    create::create(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn millrace_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn millrace_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(getpeername4)]
pub fn millrace_peer4(ctx: SockAddrContext) -> i32 {
    getpeername::getpeername4(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(getpeername6)]
pub fn millrace_peer6(ctx: SockAddrContext) -> i32 {
    getpeername::getpeername6(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn millrace_send4(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg4(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn millrace_send6(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg6(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn millrace_recv4(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg4(&SockAddr::new(&ctx))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn millrace_recv6(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg6(&SockAddr::new(&ctx))
}

#[cgroup_sockopt(getsockopt)]
pub fn millrace_getopt(ctx: SockoptContext) -> i32 {
    getsockopt::getsockopt(&Sockopt::new(&ctx))
}

#[cgroup_sockopt(setsockopt)]
pub fn millrace_setopt(ctx: SockoptContext) -> i32 {
    setsockopt::setsockopt(&Sockopt::new(&ctx))
}

#[sk_msg]
pub fn millrace_message(ctx: SkMsgContext) -> u32 {
    skmsg::message(&Msg::new(&ctx))
}

#[classifier]
pub fn millrace_promote(ctx: TcContext) -> i32 {
    promote::command(&ctx)
}

#[sock_ops]
pub fn millrace_sockops(ctx: SockOpsContext) -> u32 {
    sockops::sockops(&SockOps::new(&ctx))
}

#[sk_lookup]
pub fn millrace_lookup(ctx: SkLookupContext) -> u32 {
    lookup::lookup(&Lookup::new(&ctx))
}

/// What the agent checks before it loads this object.
#[unsafe(no_mangle)]
#[unsafe(link_section = "millrace_abi")]
pub static ABI: [u32; 2] = millrace_ebpf_abi::ABI;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_bind` and the socket lookups are open to GPL-compatible programs only; Apache-2.0 code may be
/// offered under the GPL to the kernel as well.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
