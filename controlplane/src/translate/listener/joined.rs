//! All that a pod's calls may meet as one listener, for stock Envoy as the proxy of a whole node: it hands connections from
//! listener to listener by address alone, whatever network namespace they are in.
//!
//! Input: the listeners that others have one by one; output: one with their chains, each under its port and address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as proto;
use millrace_xds::proto::{Listener, pack};

use super::{
    OUTBOUND_PORT, any_of, base, http_inspector, original_dst, own, own_names, tls_inspector,
    to_itself, unknown,
};
use crate::translate::Translator;
use crate::translate::inbound::except_ports;
use crate::translate::wrap::{duration, uint};

/// The outbound listener of clients of a namespace.
pub(super) fn outbound(translator: &Translator<'_>, namespace: &str, name: &str) -> Listener {
    let (any, _) = any_of(&[]);
    let mut joined = Joined {
        listener: base(name, any, OUTBOUND_PORT, core::TrafficDirection::Outbound),
        taken: BTreeSet::new(),
        http: BTreeSet::new(),
        tls: BTreeSet::new(),
    };
    joined.listener.filter_chains.push(to_itself(translator));
    joined.listener.listener_filters_timeout = duration(std::time::Duration::ZERO);
    // Those of one address come first: where an entry's networks are one address too, they have it.
    let names = own_names(translator, namespace);
    let (any, addressed): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| name.starts_with("0.0.0.0_"));
    for own_name in addressed.into_iter().chain(any) {
        if let Some(alone) = own(translator, namespace, own_name, own_name) {
            joined.add(own_name, alone);
        }
    }
    let rest = unknown(translator, namespace, "virtualOutbound-catchall-tcp");
    joined.finish(rest)
}

struct Joined {
    listener: Listener,
    /// What chains match already: Envoy refuses a listener in which two match the same.
    taken: BTreeSet<Vec<u8>>,
    /// Ports on which HTTP is looked for, and TLS.
    http: BTreeSet<u16>,
    tls: BTreeSet<u16>,
}

impl Joined {
    fn add(&mut self, own_name: &str, alone: Listener) {
        let Some((address, port)) = own_name.rsplit_once('_') else {
            return;
        };
        let (Ok(address), Ok(port)) = (address.parse::<IpAddr>(), port.parse()) else {
            return;
        };
        for filter in &alone.listener_filters {
            if filter.name == http_inspector().name {
                self.http.insert(port);
            } else if filter.name == tls_inspector().name {
                self.tls.insert(port);
            }
        }
        // One that waits for ever would wait for servers that speak first, too.
        let timeout = alone.listener_filters_timeout;
        if timeout.is_some_and(|timeout| (timeout.seconds, timeout.nanos) != (0, 0)) {
            self.listener.listener_filters_timeout = timeout;
        }
        let chains = alone.filter_chains.into_iter();
        for (index, mut chain) in chains.chain(alone.default_filter_chain).enumerate() {
            let matches = chain.filter_chain_match.get_or_insert_default();
            matches.destination_port = uint(u32::from(port));
            if matches.prefix_ranges.is_empty() && !address.is_unspecified() {
                matches.prefix_ranges.push(whole(address));
            }
            if self.take(matches) {
                chain.name = format!("{own_name}-{index}");
                self.listener.filter_chains.push(chain);
            }
        }
    }

    /// Leaves what no chain before matches; whether anything is left.
    fn take(&mut self, matches: &mut proto::FilterChainMatch) -> bool {
        let ranges = std::mem::take(&mut matches.prefix_ranges);
        if ranges.is_empty() {
            return self.taken.insert(pack(matches).value);
        }
        let mut left = Vec::new();
        for range in ranges {
            matches.prefix_ranges = vec![range.clone()];
            if self.taken.insert(pack(matches).value) {
                left.push(range);
            }
        }
        matches.prefix_ranges = left;
        !matches.prefix_ranges.is_empty()
    }

    fn finish(mut self, rest: proto::FilterChain) -> Listener {
        let filters = &mut self.listener.listener_filters;
        filters.push(original_dst());
        for (ports, mut inspector) in [(self.tls, tls_inspector()), (self.http, http_inspector())] {
            if !ports.is_empty() {
                let ports: Vec<u16> = ports.into_iter().collect();
                inspector.filter_disabled = Some(except_ports(&ports));
                filters.push(inspector);
            }
        }
        self.listener.continue_on_listener_filters_timeout = true;
        self.listener.default_filter_chain = Some(rest);
        self.listener
    }
}

/// One address.
fn whole(address: IpAddr) -> core::CidrRange {
    core::CidrRange {
        address_prefix: address.to_string(),
        prefix_len: uint(if address.is_ipv4() { 32 } else { 128 }),
    }
}
