//! Chooses the filter chain of a connection, in the order that Envoy documents for
//! `FilterChainMatch`: destination port, destination address, server name, transport protocol,
//! application protocols, source address, source port. At each step only the chains that match
//! most specifically stay; there is no way back to a less specific one.
//!
//! Called by `accept` in two steps: [`Candidates::narrow`] by what is known at once, which also
//! says what an inspector has to find out, then [`Candidates::select`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::inspector::{Detected, Needs};
use crate::resource::{FilterChain, FilterChainMatch, Listener};

#[cfg(test)]
mod tests;

/// Transport protocol of a connection that is not TLS.
const RAW_BUFFER: &str = "raw_buffer";
/// Transport protocol of a connection that begins with a `ClientHello`.
const TLS: &str = "tls";

/// The chains that a destination leaves.
#[derive(Clone, Debug)]
pub struct Candidates<'a> {
    chains: Vec<&'a Arc<FilterChain>>,
    listener: &'a Listener,
}

impl<'a> Candidates<'a> {
    /// The chains of a listener that match the original destination.
    pub fn narrow(listener: &'a Listener, destination: SocketAddr) -> Self {
        let mut candidates = Self {
            chains: listener.filter_chains.iter().collect(),
            listener,
        };
        candidates.keep(|m| match m.destination_port {
            Some(port) => (port == destination.port()).then_some(1),
            None => Some(0),
        });
        candidates.keep(|m| prefix_rank(&m.prefix_ranges, destination.ip()));
        candidates
    }

    /// What the first bytes must tell before a chain can be chosen.
    pub fn needs(&self) -> Needs {
        let any = |f: fn(&FilterChainMatch) -> bool| self.chains.iter().any(|c| f(&c.matches));
        let protocols = any(|m| !m.application_protocols.is_empty());
        let tls = any(|m| !m.server_names.is_empty() || !m.transport_protocol.is_empty());
        Needs {
            tls: self.listener.tls_inspector && (tls || protocols),
            http: self.listener.http_inspector && protocols,
        }
    }

    /// The chain for what the inspectors found and where the connection comes from; the
    /// listener's default chain where none matches.
    pub fn select(&self, detected: &Detected, source: SocketAddr) -> Option<&'a Arc<FilterChain>> {
        let mut left = self.clone();
        let transport = if detected.tls { TLS } else { RAW_BUFFER };
        let server_name = detected.server_name.as_deref();
        left.keep(|m| server_name_rank(&m.server_names, server_name));
        left.keep(|m| match m.transport_protocol.as_str() {
            "" => Some(0),
            protocol => (protocol == transport).then_some(1),
        });
        let protocols = &detected.application_protocols;
        left.keep(|m| protocol_rank(&m.application_protocols, protocols));
        left.keep(|m| prefix_rank(&m.source_prefix_ranges, source.ip()));
        left.keep(|m| match m.source_ports.as_slice() {
            [] => Some(0),
            ports => ports.contains(&source.port()).then_some(1),
        });
        let chosen = left.chains.first().copied();
        chosen.or(self.listener.default_filter_chain.as_ref())
    }

    /// Keeps the chains of the highest rank; those without a rank do not match.
    fn keep(&mut self, rank: impl Fn(&FilterChainMatch) -> Option<usize>) {
        let ranks: Vec<_> = self.chains.iter().map(|c| rank(&c.matches)).collect();
        let best = ranks.iter().flatten().max().copied();
        let mut ranks = ranks.into_iter();
        self.chains
            .retain(|_| ranks.next().flatten().is_some_and(|r| Some(r) == best));
    }
}

/// Longest prefix that contains `ip`; no prefixes at all are `0.0.0.0/0` and `::/0`.
fn prefix_rank(prefixes: &[IpNet], ip: IpAddr) -> Option<usize> {
    if prefixes.is_empty() {
        return Some(0);
    }
    let containing = prefixes.iter().filter(|net| net.contains(&ip));
    containing.map(|net| usize::from(net.prefix_len())).max()
}

/// An exact name before the longest wildcard before none.
fn server_name_rank(names: &[String], sni: Option<&str>) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let sni = sni?;
    let rank = |name: &String| match name.strip_prefix('*') {
        Some(suffix) => sni
            .len()
            .checked_sub(suffix.len())
            .filter(|&at| at > 0 && sni.is_char_boundary(at))
            .filter(|&at| sni[at..].eq_ignore_ascii_case(suffix))
            .map(|_| suffix.len()),
        None => sni.eq_ignore_ascii_case(name).then_some(usize::MAX),
    };
    names.iter().filter_map(rank).max()
}

/// The protocol that the client prefers before the ones that follow before none.
fn protocol_rank(accepted: &[String], offered: &[impl AsRef<str>]) -> Option<usize> {
    if accepted.is_empty() {
        return Some(0);
    }
    let position = offered
        .iter()
        .position(|offer| accepted.iter().any(|a| a == offer.as_ref()))?;
    Some(offered.len() - position)
}
