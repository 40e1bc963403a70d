//! `cgroup/sock_create`: tells the sockets that the broker makes for the proxy from all others.
//!
//! Their mark alone would not: whoever has `CAP_NET_RAW` in a pod can set it. The broker's cgroup is one that no
//! pod can enter, and what a socket is remembered as lives as long as it does, whatever becomes of the broker.

use aya_ebpf::helpers::bpf_get_current_cgroup_id;
use aya_ebpf::programs::SockContext;
use millrace_ebpf_abi::{Counter, SocketRole};

use crate::count::count;
use crate::maps::TRUSTED;
use crate::storage;

/// The socket is made.
const ALLOW: i32 = 1;

/// `socket()` of an internet family.
#[inline(always)]
pub fn create(ctx: &SockContext) -> i32 {
    if !caller_is_trusted() {
        return ALLOW;
    }
    match storage::get_or_create(ctx.sock) {
        Some(state) => state.role = SocketRole::Ours as u8,
        None => count(Counter::SockopsStorageFailed),
    }
    ALLOW
}

/// Whether the calling process is of a cgroup of Millrace's own.
#[inline(always)]
pub fn caller_is_trusted() -> bool {
    // SAFETY: takes no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    TRUSTED.get_ptr(cgroup).is_some()
}
