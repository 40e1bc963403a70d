//! The facts that cost a helper call, for the verdict functions.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use millrace_ebpf_abi::{
    Addr, Announced, CidrKey, ConnectFacts, Direction, LookupFacts, NodeConfig, PortKey, Rule,
    SockTuple, SocketRole, TCP,
};

use crate::ctx::{Lookup, SockAddr};
use crate::log::node;
use crate::maps::{ANNOUNCED, CIDR_RULES, PORT_RULES};
use crate::{create, lookup, storage};

/// `BPF_F_CURRENT_NETNS`: the namespace of the context's socket.
const CURRENT_NETNS: u64 = (-1_i64).cast_unsigned();

impl ConnectFacts for SockAddr<'_> {
    #[inline(always)]
    fn port_rule(&self, rule_set: u64, port: u16) -> Option<Rule> {
        port_rule(rule_set, Direction::Outbound, port)
    }

    #[inline(always)]
    fn cidr_rule(&self, rule_set: u64, addr: &Addr) -> Option<Rule> {
        let key = Key::new(CidrKey::FULL, CidrKey::new(rule_set, *addr));
        Rule::from_value(*CIDR_RULES.get(&key)?)
    }

    #[inline(always)]
    fn listener_present(&self, protocol: u8, destination: &Addr, port: u16) -> bool {
        if destination.is_v4() {
            let ports = Tuple4 {
                saddr: 0,
                daddr: Addr::LOOPBACK_V4.v4_word(),
                sport: 0,
                dport: port.to_be(),
            };
            self.somebody_has(
                protocol,
                bpf_sock_tuple__bindgen_ty_1 { ipv4: ports },
                size_of::<Tuple4>() as u32,
            )
        } else {
            let ports = Tuple6 {
                saddr: [0; 4],
                daddr: Addr::LOOPBACK_V6.words(),
                sport: 0,
                dport: port.to_be(),
            };
            self.somebody_has(
                protocol,
                bpf_sock_tuple__bindgen_ty_1 { ipv6: ports },
                size_of::<Tuple6>() as u32,
            )
        }
    }

    #[inline(always)]
    fn is_proxys_own(&self) -> bool {
        node().flags & NodeConfig::CREATORS_KNOWN == 0
            || self.is_ours()
            || create::caller_is_trusted()
    }
}

impl SockAddr<'_> {
    #[inline(always)]
    fn is_ours(&self) -> bool {
        let state = storage::get(self.sock().raw());
        state.is_some_and(|state| state.role == SocketRole::Ours as u8)
    }

    #[inline(always)]
    fn somebody_has(&self, protocol: u8, tuple: bpf_sock_tuple__bindgen_ty_1, size: u32) -> bool {
        let mut tuple = bpf_sock_tuple {
            __bindgen_anon_1: tuple,
        };
        let ctx = self.inner().as_ptr();
        // SAFETY: the tuple outlives the call; the reference that a hit takes is given back at once.
        unsafe {
            let sock = if protocol == TCP {
                bpf_sk_lookup_tcp(ctx, &raw mut tuple, size, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(ctx, &raw mut tuple, size, CURRENT_NETNS, 0)
            };
            if sock.is_null() {
                return false;
            }
            bpf_sk_release(sock.cast());
        }
        true
    }
}

impl LookupFacts for Lookup<'_> {
    #[inline(always)]
    fn port_rule(&self, rule_set: u64, port: u16) -> Option<Rule> {
        port_rule(rule_set, Direction::Inbound, port)
    }

    #[inline(always)]
    fn is_from_pod_itself(&self) -> bool {
        let remote = self.remote().addr;
        remote.is_loopback() || lookup::owner(&remote) == lookup::owner(&self.local().addr)
    }

    #[inline(always)]
    fn announced(&self) -> Option<Announced> {
        let (local, remote) = (self.local(), self.remote());
        let tuple = SockTuple {
            netns_cookie: 0,
            local: remote.addr,
            remote: local.addr,
            local_port: remote.port,
            remote_port: local.port,
            reserved: 0,
        };
        let value = ANNOUNCED.get_ptr(tuple)?;
        // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
        Announced::from_value(unsafe { *value })
    }
}

#[inline(always)]
fn port_rule(rule_set: u64, direction: Direction, port: u16) -> Option<Rule> {
    let value = PORT_RULES.get_ptr(PortKey::new(rule_set, direction, port))?;
    // SAFETY: an element of a map whose memory the kernel frees only after the program has run.
    Rule::from_value(unsafe { *value })
}
