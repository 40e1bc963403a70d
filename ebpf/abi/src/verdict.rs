//! The decisions, as pure functions over plain data.
//!
//! The kernel programs gather the input and carry out the answer. Facts that cost a helper call are asked
//! for through a trait, only when the answer depends on them.

use crate::{
    Addr, Counter, DELIVERY_MARK, GUARD_MARK, GUARD_MARK_MASK, LOOPBACK_IFINDEX, NodeConfig,
    OrigDst, PodPolicy, Rule, SocketRole, SocketState, TCP, UDP, ports,
};

/// What a connect or a sendmsg program knows at no cost.
#[derive(Clone, Copy, Debug)]
pub struct ConnectInput<'a> {
    /// Policy of the socket's namespace.
    pub policy: Option<&'a PodPolicy>,
    /// [`NodeConfig::flags`].
    pub node_flags: u32,
    /// The socket's mark.
    pub mark: u32,
    /// `IPPROTO_*` of the socket.
    pub protocol: u8,
    /// Where the application wants to go.
    pub destination: OrigDst,
}

/// What a connect or a sendmsg program can find out.
pub trait ConnectFacts {
    /// The pod's rule for this outbound port.
    fn port_rule(&self, rule_set: u64, port: u16) -> Option<Rule>;
    /// The pod's rule for the longest CIDR that holds this address.
    fn cidr_rule(&self, rule_set: u64, addr: &Addr) -> Option<Rule>;
    /// Whether something listens on this port of the pod's loopback.
    fn listener_present(&self, protocol: u8, destination: &Addr, port: u16) -> bool;
    /// Whether a socket that has the proxy's mark is the proxy's: any application with `CAP_NET_RAW` can
    /// set that mark.
    fn is_proxys_own(&self) -> bool;
}

/// What becomes of an outbound connection or datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectVerdict {
    /// Left as it is, by choice.
    Pass(Counter),
    /// Left as it is because it could not be captured and the pod is open.
    Direct(Counter),
    /// Sent to this port of the pod's loopback.
    Redirect(u16, Counter),
    /// Refused because it could not be captured and the pod is closed.
    Refuse(Counter),
}

/// Decides over one outbound connection or datagram.
///
/// The order is that of Istio's rules for the same pod: excluded ports win over DNS, DNS over excluded
/// CIDRs, and what an application sends through `lo` (loopback, its own addresses) is never captured
/// (`-o lo -m owner ! --uid-owner 1337 -j RETURN`).
#[inline(always)]
pub fn connect_verdict(input: &ConnectInput<'_>, facts: &impl ConnectFacts) -> ConnectVerdict {
    use ConnectVerdict::{Direct, Pass, Redirect, Refuse};

    let Some(policy) = input.policy else {
        return Pass(Counter::ConnectNotEnrolled);
    };
    if is_guarded(input.mark) && facts.is_proxys_own() {
        return Pass(Counter::ConnectGuardMark);
    }
    let destination = &input.destination;
    let dns = destination.port == ports::DNS && policy.has(PodPolicy::CAPTURE_DNS);
    if input.protocol != TCP && !(input.protocol == UDP && dns) {
        return Pass(Counter::ConnectOtherProtocol);
    }
    if destination.addr.is_loopback() || destination.addr.is_unspecified() {
        return Pass(Counter::ConnectLoopback);
    }
    if destination.addr.equals(&policy.address_v4) || destination.addr.equals(&policy.address_v6) {
        return Pass(Counter::ConnectOwnAddress);
    }
    if !dns && !policy.has(PodPolicy::CAPTURE_OUTBOUND) {
        return Pass(Counter::ConnectOutboundOff);
    }
    if let Some(counter) = excluded(policy, destination, dns, facts) {
        return Pass(counter);
    }
    let open = policy.has(PodPolicy::OPEN);
    if input.node_flags & NodeConfig::PROXY_GONE != 0 {
        return if open {
            Direct(Counter::ConnectProxyGoneDirect)
        } else {
            Refuse(Counter::ConnectProxyGoneRefused)
        };
    }
    let (port, counter) = if dns {
        (policy.dns_port, Counter::ConnectDnsRedirected)
    } else {
        (policy.outbound_port, Counter::ConnectRedirected)
    };
    if open && !facts.listener_present(input.protocol, &destination.addr, port) {
        return Direct(Counter::ConnectListenerMissing);
    }
    Redirect(port, counter)
}

/// Which rule of the pod leaves this destination alone, if one does.
#[inline(always)]
fn excluded(
    policy: &PodPolicy,
    destination: &OrigDst,
    dns: bool,
    facts: &impl ConnectFacts,
) -> Option<Counter> {
    let mut included = false;
    if policy.has(PodPolicy::OUTBOUND_PORT_RULES) {
        match facts.port_rule(policy.rule_set, destination.port) {
            Some(Rule::Exclude) => return Some(Counter::ConnectExcludedPort),
            Some(Rule::Include) => included = true,
            Some(Rule::Own) | None => {}
        }
    }
    if dns {
        return None;
    }
    if policy.has(PodPolicy::OUTBOUND_CIDR_RULES) {
        match facts.cidr_rule(policy.rule_set, &destination.addr) {
            Some(Rule::Own) => return Some(Counter::ConnectOwnAddress),
            Some(Rule::Exclude) if !included => return Some(Counter::ConnectExcludedCidr),
            Some(Rule::Include) => included = true,
            Some(Rule::Exclude) | None => {}
        }
    }
    (policy.has(PodPolicy::OUTBOUND_INCLUDE_ONLY) && !included)
        .then_some(Counter::ConnectNotIncluded)
}

/// What `sk_lookup` knows at no cost.
#[derive(Clone, Copy, Debug)]
pub struct LookupInput<'a> {
    /// Policy of the pod that owns the local address.
    pub policy: Option<&'a PodPolicy>,
    /// [`NodeConfig::flags`].
    pub node_flags: u32,
    /// `IPPROTO_*` of the packet.
    pub protocol: u8,
    /// Interface that the packet came in on; 0 if another program asks.
    pub ingress_ifindex: u32,
    /// Port that the packet asks for.
    pub local_port: u16,
}

/// What `sk_lookup` can find out.
pub trait LookupFacts {
    /// The pod's rule for this inbound port.
    fn port_rule(&self, rule_set: u64, port: u16) -> Option<Rule>;
    /// Whether the packet comes from the pod itself, by its source address.
    fn is_from_pod_itself(&self) -> bool;
    /// Who announced this very connection before its SYN left, if anybody did.
    fn announced(&self) -> Option<Announced>;
}

/// What becomes of an inbound connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LookupVerdict {
    /// To the socket that the kernel finds itself.
    Pass(Counter),
    /// To the pod's inbound listener; what follows if there is none is [`missing_listener`].
    Steer,
    /// Like [`Self::Pass`], for want of a proxy.
    Direct(Counter),
    /// To nobody: the client is told that the connection is refused.
    Refuse(Counter),
}

/// Decides over one inbound connection.
#[inline(always)]
pub fn lookup_verdict(input: &LookupInput<'_>, facts: &impl LookupFacts) -> LookupVerdict {
    use LookupVerdict::{Pass, Steer};

    if input.protocol != TCP {
        return Pass(Counter::LookupOtherProtocol);
    }
    if input.ingress_ifindex == LOOPBACK_IFINDEX || input.ingress_ifindex == 0 {
        return Pass(Counter::LookupLocal);
    }
    let Some(policy) = input.policy else {
        return Pass(Counter::LookupNotEnrolled);
    };
    if !policy.has(PodPolicy::CAPTURE_INBOUND) {
        return Pass(Counter::LookupInboundOff);
    }
    if policy.is_reserved_port(input.local_port) {
        return Pass(Counter::LookupReservedPort);
    }
    let mut included = false;
    if policy.has(PodPolicy::INBOUND_PORT_RULES) {
        match facts.port_rule(policy.rule_set, input.local_port) {
            Some(Rule::Exclude) => return Pass(Counter::LookupExcludedPort),
            Some(Rule::Include) => included = true,
            Some(Rule::Own) | None => {}
        }
    }
    if policy.has(PodPolicy::INBOUND_INCLUDE_ONLY) && !included {
        return Pass(Counter::LookupNotIncluded);
    }
    // To its own address a pod talks through `lo`, yet the kernel names the interface that has the address
    // (`rt_iif` of a local output route). From outside such a source is a martian, or has nobody to answer.
    if facts.is_from_pod_itself() {
        return Pass(Counter::LookupLocal);
    }
    // The agent's canary comes from the host on purpose, to see where others are led.
    let announced = if input.local_port == ports::CANARY {
        None
    } else {
        facts.announced()
    };
    match announced {
        Some(Announced::Host) => return Pass(Counter::LookupHostOriginated),
        Some(Announced::Delivery) => return Pass(Counter::LookupDelivery),
        None => {}
    }
    if input.node_flags & NodeConfig::PROXY_GONE != 0 {
        return missing_listener(policy);
    }
    Steer
}

/// What becomes of an inbound connection that found no listener.
#[inline(always)]
pub const fn missing_listener(policy: &PodPolicy) -> LookupVerdict {
    if policy.has(PodPolicy::OPEN) {
        LookupVerdict::Direct(Counter::LookupListenerMissingDirect)
    } else {
        LookupVerdict::Refuse(Counter::LookupListenerMissingRefused)
    }
}

/// The address to show instead of a redirected socket's real peer.
///
/// For getpeername and, with the source of the datagram, for recvmsg. A socket that was redirected once and
/// then connected elsewhere shows its real peer.
#[inline(always)]
pub fn hidden_peer(state: Option<&SocketState>, peer: &Addr, port: u16) -> Option<OrigDst> {
    let state = state?;
    if state.role == SocketRole::Redirected as u8
        && port == state.redirected_port
        && peer.is_loopback()
    {
        Some(state.orig_dst)
    } else {
        None
    }
}

/// What sockops has to do about an event of a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketEvent {
    /// Nothing of ours.
    Ignore,
    /// The socket is about to send its SYN.
    Connecting,
    /// The connecting end is established.
    Connected,
    /// The accepting end is established.
    Accepted,
    /// The socket is closed.
    Closed,
}

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`.
const TCP_CONNECT_CB: u32 = 3;
/// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`.
const ACTIVE_ESTABLISHED_CB: u32 = 4;
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`.
const PASSIVE_ESTABLISHED_CB: u32 = 5;
/// `BPF_SOCK_OPS_STATE_CB`.
const STATE_CB: u32 = 10;
/// `TCP_CLOSE`.
const TCP_CLOSE: u32 = 7;

/// Maps the kernel's callback, and the new state for the state callback, to what it means here.
#[inline(always)]
pub const fn sockops_event(op: u32, new_state: u32) -> SocketEvent {
    match op {
        TCP_CONNECT_CB => SocketEvent::Connecting,
        ACTIVE_ESTABLISHED_CB => SocketEvent::Connected,
        PASSIVE_ESTABLISHED_CB => SocketEvent::Accepted,
        STATE_CB if new_state == TCP_CLOSE => SocketEvent::Closed,
        _ => SocketEvent::Ignore,
    }
}

/// Whether a socket is the application's and not one of the proxy's.
///
/// A delivery socket's accepted end inherits the mark (`tcp_fwmark_accept`), yet it is the application's.
#[inline(always)]
pub const fn is_application_socket(accepted: bool, mark: u32) -> bool {
    !is_guarded(mark) || (accepted && mark & DELIVERY_MARK != 0)
}

/// Whose connections go straight to the application.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Announced {
    /// A socket in the host's namespace, such as a kubelet's probe.
    Host = 1,
    /// The proxy's delivery socket in the pod's own namespace.
    Delivery = 2,
}

impl Announced {
    /// From the value of a map.
    #[inline(always)]
    pub const fn from_value(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Host),
            2 => Some(Self::Delivery),
            _ => None,
        }
    }
}

/// Whether a connecting socket is to be announced to `sk_lookup`.
///
/// By its namespace or its mark, never by its address: anybody can forge an address.
#[inline(always)]
pub const fn announcement(netns_cookie: u64, node: &NodeConfig, mark: u32) -> Option<Announced> {
    if netns_cookie == node.host_netns_cookie {
        Some(Announced::Host)
    } else if is_guarded(mark) && mark & DELIVERY_MARK != 0 {
        Some(Announced::Delivery)
    } else {
        None
    }
}

/// How an original destination is to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OrigDstAnswer {
    /// Not asked for, or not of the family that is asked for.
    Leave,
    /// As a `sockaddr_in`.
    V4,
    /// As a `sockaddr_in6`.
    V6,
}

/// `SOL_IP`.
const SOL_IP: i32 = 0;
/// `SOL_IPV6`.
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`.
const SO_ORIGINAL_DST: i32 = 80;

/// Decides how to answer a getsockopt, as netfilter would for a redirected connection.
///
/// `addr` is asked for only if the option is the right one.
#[inline(always)]
pub fn getsockopt_verdict(
    level: i32,
    optname: i32,
    addr: impl FnOnce() -> Option<Addr>,
) -> OrigDstAnswer {
    if optname != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        return OrigDstAnswer::Leave;
    }
    match addr() {
        Some(addr) if level == SOL_IP && addr.is_v4() => OrigDstAnswer::V4,
        Some(addr) if level == SOL_IPV6 && !addr.is_v4() => OrigDstAnswer::V6,
        _ => OrigDstAnswer::Leave,
    }
}

#[inline(always)]
const fn is_guarded(mark: u32) -> bool {
    mark & GUARD_MARK_MASK == GUARD_MARK
}

#[cfg(test)]
mod tests;
