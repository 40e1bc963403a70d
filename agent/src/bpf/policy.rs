//! What the agent decided for a pod, before it is put into the words of the maps.

use ipnet::IpNet;
use millrace_ebpf_abi::{Acceleration, Addr, CidrKey, Direction, PodPolicy, PortKey, Rule, ports};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What happens to a pod's traffic when nobody is there to take it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCaptureLoss {
    /// The application gets an error.
    #[default]
    Closed,
    /// It goes direct.
    Open,
}

/// Ports of the in-pod listeners.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListenerPorts {
    /// Outbound capture.
    pub outbound: u16,
    /// Inbound capture.
    pub inbound: u16,
    /// HBONE.
    pub hbone: u16,
    /// DNS capture.
    pub dns: u16,
}

impl Default for ListenerPorts {
    fn default() -> Self {
        Self {
            outbound: ports::OUTBOUND,
            inbound: ports::INBOUND,
            hbone: ports::HBONE,
            dns: ports::DNS_CAPTURE,
        }
    }
}

/// How a pod's traffic is captured; the default captures everything and fails closed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CapturePolicy {
    /// Capture outbound TCP.
    pub outbound: bool,
    /// Capture inbound TCP.
    pub inbound: bool,
    /// Capture UDP and TCP to port 53.
    pub dns: bool,
    /// `millrace.io/on-capture-loss`.
    pub on_capture_loss: OnCaptureLoss,
    /// `millrace.io/acceleration`.
    pub acceleration: Acceleration,
    /// Where the listeners are.
    pub ports: ListenerPorts,
    /// `excludeOutboundPorts`.
    pub exclude_outbound_ports: Vec<u16>,
    /// `includeOutboundPorts`: captured whatever the address.
    pub include_outbound_ports: Vec<u16>,
    /// `excludeOutboundIPRanges`.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// `includeOutboundIPRanges`; `None` is `*`.
    pub include_outbound_cidrs: Option<Vec<IpNet>>,
    /// `excludeInboundPorts`.
    pub exclude_inbound_ports: Vec<u16>,
    /// `includeInboundPorts`; `None` is `*`.
    pub include_inbound_ports: Option<Vec<u16>>,
}

impl Default for CapturePolicy {
    fn default() -> Self {
        Self {
            outbound: true,
            inbound: true,
            dns: true,
            on_capture_loss: OnCaptureLoss::default(),
            acceleration: Acceleration::default(),
            ports: ListenerPorts::default(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            include_outbound_cidrs: None,
            exclude_inbound_ports: Vec::new(),
            include_inbound_ports: None,
        }
    }
}

impl CapturePolicy {
    /// The policy word and its companions, for a pod with these addresses.
    pub(super) fn words(&self, rule_set: u64, ips: &[IpAddr]) -> PodPolicy {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let first = |v4: bool| {
            ips.iter()
                .map(|ip| Addr::from(*ip))
                .find(|addr| addr.is_v4() == v4)
                .unwrap_or(Addr::UNSPECIFIED)
        };
        let flags = flag(self.outbound, PodPolicy::CAPTURE_OUTBOUND)
            | flag(self.inbound, PodPolicy::CAPTURE_INBOUND)
            | flag(self.dns, PodPolicy::CAPTURE_DNS)
            | flag(self.on_capture_loss == OnCaptureLoss::Open, PodPolicy::OPEN)
            | flag(
                self.has_port_rules(Direction::Outbound),
                PodPolicy::OUTBOUND_PORT_RULES,
            )
            | flag(
                self.has_port_rules(Direction::Inbound),
                PodPolicy::INBOUND_PORT_RULES,
            )
            | flag(
                !self.cidr_rules(ips).is_empty(),
                PodPolicy::OUTBOUND_CIDR_RULES,
            )
            | flag(
                self.include_outbound_cidrs.is_some(),
                PodPolicy::OUTBOUND_INCLUDE_ONLY,
            )
            | flag(
                self.include_inbound_ports.is_some(),
                PodPolicy::INBOUND_INCLUDE_ONLY,
            );
        PodPolicy {
            rule_set,
            flags,
            outbound_port: self.ports.outbound,
            inbound_port: self.ports.inbound,
            hbone_port: self.ports.hbone,
            dns_port: self.ports.dns,
            address_v4: first(true),
            address_v6: first(false),
            reserved: 0,
        }
        .with_acceleration(self.acceleration)
    }

    /// Port rules as elements of the map; an excluded port wins over an included one.
    pub(super) fn port_elements(&self, rule_set: u64) -> Vec<(PortKey, u8)> {
        let included = [
            (Direction::Outbound, self.include_outbound_ports.as_slice()),
            (
                Direction::Inbound,
                self.include_inbound_ports.as_deref().unwrap_or_default(),
            ),
        ];
        let excluded = [
            (Direction::Outbound, self.exclude_outbound_ports.as_slice()),
            (Direction::Inbound, self.exclude_inbound_ports.as_slice()),
        ];
        let elements = |rules: [(Direction, &[u16]); 2], rule: Rule| {
            rules
                .into_iter()
                .flat_map(move |(direction, ports)| {
                    ports
                        .iter()
                        .map(move |port| (PortKey::new(rule_set, direction, *port), rule as u8))
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        let mut all = elements(included, Rule::Include);
        all.extend(elements(excluded, Rule::Exclude));
        all
    }

    /// CIDR rules as elements of the trie: prefix length, key, rule.
    pub(super) fn cidr_elements(&self, rule_set: u64, ips: &[IpAddr]) -> Vec<(u32, CidrKey, u8)> {
        self.cidr_rules(ips)
            .into_iter()
            .map(|(net, rule)| {
                let addr = Addr::from(net.network());
                let above = if addr.is_v4() { 96 } else { 0 };
                let prefix = CidrKey::RULE_SET_BITS + above + u32::from(net.prefix_len());
                (prefix, CidrKey::new(rule_set, addr), rule as u8)
            })
            .collect()
    }

    /// The trie answers with the longest match, Istio with "excluded before included": an included range
    /// inside an excluded one is therefore left out.
    fn cidr_rules(&self, ips: &[IpAddr]) -> Vec<(IpNet, Rule)> {
        let covered = |net: &IpNet| {
            self.exclude_outbound_cidrs
                .iter()
                .any(|excluded| excluded.contains(net))
        };
        let included = self.include_outbound_cidrs.iter().flatten();
        let mut rules: Vec<(IpNet, Rule)> = included
            .filter(|net| !covered(net))
            .map(|net| (net.trunc(), Rule::Include))
            .collect();
        rules.extend(
            self.exclude_outbound_cidrs
                .iter()
                .map(|net| (net.trunc(), Rule::Exclude)),
        );
        // The first address of each family is in the policy itself.
        for v4 in [true, false] {
            let own = ips
                .iter()
                .filter(|ip| ip.to_canonical().is_ipv4() == v4)
                .skip(1);
            rules.extend(own.map(|ip| (IpNet::from(ip.to_canonical()), Rule::Own)));
        }
        rules
    }

    fn has_port_rules(&self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => {
                !self.exclude_outbound_ports.is_empty() || !self.include_outbound_ports.is_empty()
            }
            Direction::Inbound => {
                !self.exclude_inbound_ports.is_empty() || self.include_inbound_ports.is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests;
