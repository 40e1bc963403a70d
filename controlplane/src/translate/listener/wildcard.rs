//! The listener of a port at any address: HTTP told apart by its host, TLS by the server name in its
//! first message, networks of `ServiceEntries` by the destination, and what is left.
//!
//! Input: the ports that clients of a namespace reach; output: one listener, or none where nothing is
//! told this way. Called by [`super`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use millrace_xds::proto::Listener;
use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as proto;

use super::{
    Maker, also_on, any_addresses, by_host, by_server_names, http_inspector, once_per_name,
    plain_http, tls_inspector, unknown, wildcard_name,
};
use crate::model::entry::Resolution;
use crate::model::service::{Protocol, Service, ServicePort};
use crate::translate::wrap::{duration, uint};
use crate::translate::{ProxyView, Translator};

type ServedPort<'a> = (&'a Arc<Service>, &'a ServicePort);

/// What clients of a namespace reach on one port without its address.
pub(super) struct Ports<'a> {
    port: u16,
    http: bool,
    tls: Vec<ServedPort<'a>>,
    networks: Vec<ServedPort<'a>>,
    /// Takes what nothing else tells.
    rest: Option<ServedPort<'a>>,
}

/// Whether a port is among those of the listener at any address.
pub(super) fn is_on_any_address(
    translator: &Translator<'_>,
    service: &Service,
    port: &ServicePort,
) -> bool {
    by_host(service, port)
        || by_server_name(service, port)
        || by_network(service, port)
        || takes_the_rest(translator, service, port)
}

/// TLS of an entry without an address of its own.
fn by_server_name(service: &Service, port: &ServicePort) -> bool {
    let addressless = service
        .entry()
        .is_some_and(|entry| service.addresses.is_empty() && entry.networks.is_empty());
    addressless && port.protocol == Protocol::Tls
}

fn by_network(service: &Service, port: &ServicePort) -> bool {
    let entry = service.entry();
    entry.is_some_and(|entry| !entry.networks.is_empty()) && !port.protocol.is_http()
}

/// Bytes that only the port tells: of an entry without an address, for clients that do not learn the
/// one that was allocated. Pods of a node with Millrace's proxy ask that for names.
fn takes_the_rest(translator: &Translator<'_>, service: &Service, port: &ServicePort) -> bool {
    let Some(entry) = service.entry() else {
        return false;
    };
    let knows_address =
        matches!(translator.view, ProxyView::Node { netns: None, .. }) && entry.allocate;
    service.addresses.is_empty()
        && entry.networks.is_empty()
        && matches!(port.protocol, Protocol::Tcp | Protocol::Auto)
        && (entry.resolution == Resolution::None || !knows_address)
}

impl<'a> Ports<'a> {
    pub(super) fn of(translator: &Translator<'a>, namespace: &'a str, port: u16) -> Self {
        let mut result = Self {
            port,
            http: false,
            tls: Vec::new(),
            networks: Vec::new(),
            rest: None,
        };
        let ports = translator.snapshot.ports_for(namespace);
        for (service, declared) in ports.filter(|(_, declared)| declared.port == port) {
            result.http |= by_host(service, declared);
            if by_server_name(service, declared) {
                result.tls.push((service, declared));
            }
            if by_network(service, declared) {
                result.networks.push((service, declared));
            }
            if takes_the_rest(translator, service, declared) {
                let older = |(known, _): &ServedPort<'_>| {
                    (known.created.is_none(), &known.created, &known.name)
                        < (service.created.is_none(), &service.created, &service.name)
                };
                if !result.rest.as_ref().is_some_and(older) {
                    result.rest = Some((service, declared));
                }
            }
        }
        result
    }

    /// The listener; none where nothing is told this way.
    pub(super) fn listener(&self, maker: &Maker<'_>) -> Option<Listener> {
        if !self.http && self.tls.is_empty() && self.networks.is_empty() && self.rest.is_none() {
            return None;
        }
        let (address, second) = any_addresses(maker.translator.view);
        let mut listener = maker.base(address, self.port);
        also_on(&mut listener, second, self.port);
        self.inspect(maker, &mut listener);
        for (service, port) in &self.networks {
            network_chains(maker, service, port, &mut listener.filter_chains);
        }
        listener.filter_chains.extend(self.tls_chains(maker));
        if self.http {
            let prefix = format!("outbound_{}", wildcard_name(self.port));
            let chain = maker.route_chain(&self.port.to_string(), &prefix, Some(plain_http()));
            listener.filter_chains.push(chain);
        }
        listener.default_filter_chain = Some(match &self.rest {
            Some((service, port)) => maker.tcp_chain(service, port),
            None => unknown(maker.translator, maker.namespace, "PassthroughFilterChain"),
        });
        Some(listener)
    }

    /// What routes say of server names first, then each service under its own.
    fn tls_chains(&self, maker: &Maker<'_>) -> Vec<proto::FilterChain> {
        let mut taken = BTreeSet::new();
        let ports = self.tls.iter();
        let routed = ports.flat_map(|(service, port)| maker.tls_chains(service, port));
        let mut chains = once_per_name(routed.collect(), &mut taken);
        let own = self.tls.iter().map(|(service, port)| {
            let names = vec![service.hostname.to_string()];
            by_server_names(maker.tcp_chain(service, port), names)
        });
        chains.extend(once_per_name(own.collect(), &mut taken));
        chains
    }

    fn inspect(&self, maker: &Maker<'_>, listener: &mut Listener) {
        let sniffs_network = |(_, port): &ServedPort<'_>| port.protocol == Protocol::Auto;
        let sniffed_networks = self.networks.iter().any(sniffs_network);
        if !self.tls.is_empty() {
            listener.listener_filters.push(tls_inspector());
        }
        if self.http || sniffed_networks {
            listener.listener_filters.push(http_inspector());
        }
        if listener.listener_filters.is_empty() {
            return;
        }
        // Where every protocol on the port lets the client speak first, one that thinks is waited for.
        let server_may_speak = self.rest.is_some() || !self.networks.is_empty();
        let timeout = if server_may_speak {
            maker.translator.snapshot.mesh.detection_timeout
        } else {
            Duration::ZERO
        };
        listener.listener_filters_timeout = duration(timeout);
        listener.continue_on_listener_filters_timeout = true;
    }
}

/// Bytes to the networks of an entry; where its protocol is not declared, HTTP beside them.
fn network_chains(
    maker: &Maker<'_>,
    service: &Service,
    port: &ServicePort,
    chains: &mut Vec<proto::FilterChain>,
) {
    let networks = service.entry().map(|entry| entry.networks.as_slice());
    let ranges: Vec<_> = networks.unwrap_or_default().iter().map(range).collect();
    if port.protocol == Protocol::Auto {
        let route = format!("{}:{}", service.hostname, port.port);
        let prefix = format!("outbound_{route}");
        let matches = proto::FilterChainMatch {
            prefix_ranges: ranges.clone(),
            ..plain_http()
        };
        chains.push(maker.route_chain(&route, &prefix, Some(matches)));
    }
    chains.push(proto::FilterChain {
        filter_chain_match: Some(proto::FilterChainMatch {
            prefix_ranges: ranges,
            ..Default::default()
        }),
        ..maker.tcp_chain(service, port)
    });
}

fn range(network: &IpNet) -> core::CidrRange {
    core::CidrRange {
        address_prefix: network.addr().to_string(),
        prefix_len: uint(u32::from(network.prefix_len())),
    }
}
