//! Which virtual host a request's host belongs to.
//!
//! Envoy's order: the exact name, the longest `*suffix`, the longest `prefix*`, then `*`. ASCII
//! case is folded. A wildcard stands for at least one character.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Wildcard domains without their `*`, the longest first.
type ByLength = BTreeMap<Reverse<usize>, HashMap<Box<str>, usize>>;

/// Domains of all virtual hosts of a configuration.
#[derive(Debug, Default)]
pub struct HostIndex {
    exact: HashMap<Box<str>, usize>,
    suffix: ByLength,
    prefix: ByLength,
    any: Option<usize>,
}

impl HostIndex {
    /// Adds a domain of virtual host `vhost`.
    pub fn insert(&mut self, domain: &str, vhost: usize) {
        let domain = domain.to_ascii_lowercase();
        let by_length = |map: &mut ByLength, rest: &str| {
            map.entry(Reverse(rest.len()))
                .or_default()
                .entry(rest.into())
                .or_insert(vhost);
        };
        if domain == "*" {
            self.any.get_or_insert(vhost);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            by_length(&mut self.suffix, suffix);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            by_length(&mut self.prefix, prefix);
        } else {
            self.exact.entry(domain.into()).or_insert(vhost);
        }
    }

    /// The virtual host of a request's host.
    pub fn find(&self, authority: &str, ignore_port: bool) -> Option<usize> {
        let host = if ignore_port {
            strip_port(authority)
        } else {
            authority
        };
        let host = lower(host);
        if let Some(vhost) = self.exact.get(&*host) {
            return Some(*vhost);
        }
        let wildcard = |map: &ByLength, part: fn(&str, usize) -> Option<&str>| {
            map.iter()
                .filter(|(Reverse(len), _)| *len < host.len())
                .find_map(|(Reverse(len), names)| names.get(part(&host, *len)?).copied())
        };
        wildcard(&self.suffix, |host, len| host.get(host.len() - len..))
            .or_else(|| wildcard(&self.prefix, |host, len| host.get(..len)))
            .or(self.any)
    }
}

/// A host without its port; an IPv6 literal keeps its brackets.
pub fn strip_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon)
            if authority[colon + 1..].bytes().all(|b| b.is_ascii_digit())
                && (!authority.starts_with('[') || authority[..colon].ends_with(']')) =>
        {
            &authority[..colon]
        }
        _ => authority,
    }
}

fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}
