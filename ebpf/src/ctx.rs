//! Safe accessors over the raw contexts; the only place that knows byte orders.
//!
//! Every field is read and written at its own size and offset, which the verifier insists on and compilers
//! do not care about.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt, sk_msg_md,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::{
    SkLookupContext, SkMsgContext, SockAddrContext, SockOpsContext, SockoptContext,
};
use core::ffi::c_void;
use millrace_ebpf_abi::{AF_INET, Addr, OrigDst, SockTuple};

/// Loads one field by its constant offset. Written in assembly because the compiler, given two branches that
/// read different fields, would compute the address first, and the verifier refuses a modified context.
macro_rules! load {
    ($width:literal, $value:ty, $ptr:expr, $offset:expr) => {{
        let value: $value;
        // SAFETY: a context pointer is valid for the run of the program, and the verifier checks the access.
        unsafe {
            asm!(
                concat!("{value} = *(", $width, " *)({ptr} + {offset})"),
                value = lateout(reg) value,
                ptr = in(reg) $ptr,
                offset = const $offset,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

macro_rules! read {
    ($ptr:expr, $of:ty, $field:ident) => {
        load!("u32", u32, $ptr, offset_of!($of, $field))
    };
}

macro_rules! read_pointer {
    ($ptr:expr, $of:ty, $field:ident, $target:ty) => {
        load!("u64", *mut $target, $ptr, offset_of!($of, $field))
    };
}

macro_rules! read_v6 {
    ($ptr:expr, $of:ty, $field:ident) => {
        Addr::from_v6_words([
            load!("u32", u32, $ptr, offset_of!($of, $field)),
            load!("u32", u32, $ptr, offset_of!($of, $field) + 4),
            load!("u32", u32, $ptr, offset_of!($of, $field) + 8),
            load!("u32", u32, $ptr, offset_of!($of, $field) + 12),
        ])
    };
}

/// Stores one field, volatile: neighbouring stores may not become a wide one.
macro_rules! write {
    ($ptr:expr, $field:ident $([$index:literal])?, $value:expr) => {
        // SAFETY: as for `load!`; the verifier knows which fields may be written.
        unsafe { addr_of_mut!((*$ptr).$field $([$index])?).write_volatile($value) }
    };
}

/// A socket, as far as programs may look into it.
#[derive(Clone, Copy)]
pub struct Sock {
    raw: *mut bpf_sock,
}

impl Sock {
    /// The raw pointer, for helpers.
    #[inline(always)]
    pub fn raw(self) -> *mut bpf_sock {
        self.raw
    }

    /// What a helper found, not null.
    #[inline(always)]
    pub fn found(raw: *mut bpf_sock) -> Self {
        Self { raw }
    }

    /// Its state, one of `TCP_*`.
    #[inline(always)]
    pub fn state(self) -> u32 {
        read!(self.raw, bpf_sock, state)
    }

    /// Its `SO_PRIORITY`.
    #[inline(always)]
    pub fn priority(self) -> u32 {
        read!(self.raw, bpf_sock, priority)
    }

    /// Its mark.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        read!(self.raw, bpf_sock, mark)
    }

    /// Its family.
    #[inline(always)]
    pub fn family(self) -> u32 {
        read!(self.raw, bpf_sock, family)
    }

    /// Its protocol.
    #[inline(always)]
    pub fn protocol(self) -> u8 {
        read!(self.raw, bpf_sock, protocol) as u8
    }

    /// Its local address and port.
    #[inline(always)]
    pub fn local(self) -> OrigDst {
        let addr = if self.family() == AF_INET {
            Addr::from_v4_word(read!(self.raw, bpf_sock, src_ip4))
        } else {
            read_v6!(self.raw, bpf_sock, src_ip6)
        };
        OrigDst::new(addr, read!(self.raw, bpf_sock, src_port) as u16)
    }

    /// Its peer's address and port.
    #[inline(always)]
    pub fn remote(self) -> OrigDst {
        let addr = if self.family() == AF_INET {
            Addr::from_v4_word(read!(self.raw, bpf_sock, dst_ip4))
        } else {
            read_v6!(self.raw, bpf_sock, dst_ip6)
        };
        OrigDst::new(
            addr,
            u16::from_be(load!("u16", u16, self.raw, offset_of!(bpf_sock, dst_port))),
        )
    }
}

/// Context of connect, getpeername, sendmsg and recvmsg.
pub struct SockAddr<'a> {
    inner: &'a SockAddrContext,
    raw: *mut bpf_sock_addr,
}

impl<'a> SockAddr<'a> {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(inner: &'a SockAddrContext) -> Self {
        Self {
            inner,
            raw: inner.sock_addr,
        }
    }

    /// For the log macros.
    #[inline(always)]
    pub fn inner(&self) -> &SockAddrContext {
        self.inner
    }

    /// For helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut bpf_sock_addr {
        self.raw
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(&self) -> Sock {
        Sock {
            raw: read_pointer!(self.raw, bpf_sock_addr, __bindgen_anon_1, bpf_sock),
        }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid for the run of the program.
        unsafe { bpf_get_netns_cookie(self.inner.as_ptr()) }
    }

    /// The protocol of the socket.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        read!(self.raw, bpf_sock_addr, protocol) as u8
    }

    /// The address that a `*4` program is about.
    #[inline(always)]
    pub fn address4(&self) -> OrigDst {
        OrigDst::new(
            Addr::from_v4_word(read!(self.raw, bpf_sock_addr, user_ip4)),
            self.port(),
        )
    }

    /// The address that a `*6` program is about, possibly v4-mapped.
    #[inline(always)]
    pub fn address6(&self) -> OrigDst {
        OrigDst::new(read_v6!(self.raw, bpf_sock_addr, user_ip6), self.port())
    }

    /// Replaces the address in a `*4` program.
    #[inline(always)]
    pub fn set_address4(&self, addr: &Addr, port: u16) {
        write!(self.raw, user_ip4, addr.v4_word());
        self.set_port(port);
    }

    /// Replaces the address in a `*6` program.
    #[inline(always)]
    pub fn set_address6(&self, addr: &Addr, port: u16) {
        let words = addr.words();
        write!(self.raw, user_ip6[0], words[0]);
        write!(self.raw, user_ip6[1], words[1]);
        write!(self.raw, user_ip6[2], words[2]);
        write!(self.raw, user_ip6[3], words[3]);
        self.set_port(port);
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        u16::from_be(read!(self.raw, bpf_sock_addr, user_port) as u16)
    }

    #[inline(always)]
    fn set_port(&self, port: u16) {
        write!(self.raw, user_port, u32::from(port.to_be()));
    }
}

/// Context of sockops.
pub struct SockOps<'a> {
    inner: &'a SockOpsContext,
    raw: *mut bpf_sock_ops,
}

impl<'a> SockOps<'a> {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(inner: &'a SockOpsContext) -> Self {
        Self {
            inner,
            raw: inner.ops,
        }
    }

    /// For the log macros.
    #[inline(always)]
    pub fn inner(&self) -> &SockOpsContext {
        self.inner
    }

    /// Which callback this is.
    #[inline(always)]
    pub fn op(&self) -> u32 {
        read!(self.raw, bpf_sock_ops, op)
    }

    /// The new state, in the state callback.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        load!(
            "u32",
            u32,
            self.raw,
            offset_of!(bpf_sock_ops, __bindgen_anon_1) + 4
        )
    }

    /// The socket, if it is a full one.
    #[inline(always)]
    pub fn sock(&self) -> Option<Sock> {
        let raw = read_pointer!(self.raw, bpf_sock_ops, __bindgen_anon_2, bpf_sock);
        (!raw.is_null()).then_some(Sock { raw })
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid for the run of the program.
        unsafe { bpf_get_netns_cookie(self.inner.as_ptr()) }
    }

    /// Both ends, seen from this socket.
    #[inline(always)]
    pub fn tuple(&self, netns_cookie: u64) -> SockTuple {
        let (local, remote) = if read!(self.raw, bpf_sock_ops, family) == AF_INET {
            (
                Addr::from_v4_word(read!(self.raw, bpf_sock_ops, local_ip4)),
                Addr::from_v4_word(read!(self.raw, bpf_sock_ops, remote_ip4)),
            )
        } else {
            (
                read_v6!(self.raw, bpf_sock_ops, local_ip6),
                read_v6!(self.raw, bpf_sock_ops, remote_ip6),
            )
        };
        SockTuple {
            netns_cookie,
            local,
            remote,
            local_port: self.local_port(),
            remote_port: self.remote_port(),
            reserved: 0,
        }
    }

    /// Port of this end.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        read!(self.raw, bpf_sock_ops, local_port) as u16
    }

    /// Port of the other end.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        // The kernel shifts the network-order port into the upper half on little-endian machines.
        u32::from_be(read!(self.raw, bpf_sock_ops, remote_port)) as u16
    }

    /// Bytes received.
    #[inline(always)]
    pub fn bytes_received(&self) -> u64 {
        load!(
            "u64",
            u64,
            self.raw,
            offset_of!(bpf_sock_ops, bytes_received)
        )
    }

    /// Bytes sent and acknowledged.
    #[inline(always)]
    pub fn bytes_acked(&self) -> u64 {
        load!("u64", u64, self.raw, offset_of!(bpf_sock_ops, bytes_acked))
    }

    /// Smoothed round-trip time in microseconds; the kernel keeps it times eight.
    #[inline(always)]
    pub fn rtt_us(&self) -> u64 {
        u64::from(read!(self.raw, bpf_sock_ops, srtt_us) >> 3)
    }

    /// Segments sent again.
    #[inline(always)]
    pub fn retransmits(&self) -> u64 {
        u64::from(read!(self.raw, bpf_sock_ops, total_retrans))
    }

    /// Gives the socket a cookie, by which it can be told from a later one in its place.
    #[inline(always)]
    pub fn make_cookie(&self) {
        // SAFETY: the context is valid for the run of the program.
        unsafe { bpf_get_socket_cookie(self.inner.as_ptr()) };
    }

    /// Asks for the state callback of this socket.
    #[inline(always)]
    pub fn watch_state(&self) {
        let flags = read!(self.raw, bpf_sock_ops, bpf_sock_ops_cb_flags)
            | aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context is valid for the run of the program; unknown flags are ignored by the kernel.
        unsafe { bpf_sock_ops_cb_flags_set(self.raw, flags as i32) };
    }
}

/// Context of getsockopt.
pub struct Sockopt<'a> {
    inner: &'a SockoptContext,
    raw: *mut bpf_sockopt,
}

impl<'a> Sockopt<'a> {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(inner: &'a SockoptContext) -> Self {
        Self {
            inner,
            raw: inner.sockopt,
        }
    }

    /// The option's level.
    #[inline(always)]
    pub fn level(&self) -> i32 {
        read!(self.raw, bpf_sockopt, level).cast_signed()
    }

    /// The option.
    #[inline(always)]
    pub fn optname(&self) -> i32 {
        read!(self.raw, bpf_sockopt, optname).cast_signed()
    }

    /// The socket.
    #[inline(always)]
    pub fn sock(&self) -> Sock {
        Sock {
            raw: read_pointer!(self.raw, bpf_sockopt, __bindgen_anon_1, bpf_sock),
        }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid for the run of the program.
        unsafe { bpf_get_netns_cookie(self.inner.as_ptr()) }
    }

    /// Length of the kernel's answer.
    #[inline(always)]
    pub fn optlen(&self) -> i32 {
        read!(self.raw, bpf_sockopt, optlen).cast_signed()
    }

    /// Lets the kernel's answer through as it is, whatever its length.
    #[inline(always)]
    pub fn disclaim(&self) {
        write!(self.raw, optlen, 0);
    }

    /// Answers with `value`, in place of the kernel's own answer; false if the caller's buffer is too small.
    #[inline(always)]
    pub fn answer<T>(&self, value: T) -> bool {
        let start = read_pointer!(self.raw, bpf_sockopt, __bindgen_anon_2, c_void).cast::<T>();
        let end = read_pointer!(self.raw, bpf_sockopt, __bindgen_anon_3, c_void) as usize;
        if start as usize + size_of::<T>() > end {
            return false;
        }
        // SAFETY: the range was just checked, and the verifier checks it again.
        unsafe { start.write_unaligned(value) };
        write!(self.raw, optlen, size_of::<T>() as i32);
        write!(self.raw, retval, 0);
        true
    }
}

/// Context of `sk_lookup`.
pub struct Lookup<'a> {
    inner: &'a SkLookupContext,
    raw: *mut bpf_sk_lookup,
}

impl<'a> Lookup<'a> {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(inner: &'a SkLookupContext) -> Self {
        Self {
            inner,
            raw: inner.lookup,
        }
    }

    /// For the log macros and helpers.
    #[inline(always)]
    pub fn inner(&self) -> &SkLookupContext {
        self.inner
    }

    /// Family of the packet.
    #[inline(always)]
    pub fn family(&self) -> u32 {
        read!(self.raw, bpf_sk_lookup, family)
    }

    /// Protocol of the packet.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        read!(self.raw, bpf_sk_lookup, protocol) as u8
    }

    /// Interface that the packet came in on.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        read!(self.raw, bpf_sk_lookup, ingress_ifindex)
    }

    /// What the packet asks for.
    #[inline(always)]
    pub fn local(&self) -> OrigDst {
        let addr = if self.family() == AF_INET {
            Addr::from_v4_word(read!(self.raw, bpf_sk_lookup, local_ip4))
        } else {
            read_v6!(self.raw, bpf_sk_lookup, local_ip6)
        };
        OrigDst::new(addr, read!(self.raw, bpf_sk_lookup, local_port) as u16)
    }

    /// Where the packet comes from.
    #[inline(always)]
    pub fn remote(&self) -> OrigDst {
        let addr = if self.family() == AF_INET {
            Addr::from_v4_word(read!(self.raw, bpf_sk_lookup, remote_ip4))
        } else {
            read_v6!(self.raw, bpf_sk_lookup, remote_ip6)
        };
        OrigDst::new(
            addr,
            u16::from_be(load!(
                "u16",
                u16,
                self.raw,
                offset_of!(bpf_sk_lookup, remote_port)
            )),
        )
    }
}

/// Context of a message that a socket in the map sends.
pub struct Msg<'a> {
    inner: &'a SkMsgContext,
    raw: *mut sk_msg_md,
}

impl<'a> Msg<'a> {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(inner: &'a SkMsgContext) -> Self {
        Self {
            inner,
            raw: inner.msg,
        }
    }

    /// For the map.
    #[inline(always)]
    pub fn inner(&self) -> &SkMsgContext {
        self.inner
    }

    /// The sender.
    #[inline(always)]
    pub fn sock(&self) -> Sock {
        Sock {
            raw: read_pointer!(self.raw, sk_msg_md, __bindgen_anon_3, bpf_sock),
        }
    }

    /// Bytes of the message.
    #[inline(always)]
    pub fn size(&self) -> u32 {
        read!(self.raw, sk_msg_md, size)
    }
}
