//! Mesh names and their addresses, as the control plane gives them (NDS).
//!
//! Input: a queried name and the namespace of the pod that asks. Output: the addresses, and the
//! canonical name where the query is an expansion of a resolver's search list. Pure; `dns` asks
//! it for each query, `xds::convert` builds it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(test)]
mod tests;

/// Longest name in text form, without the trailing dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// Mesh names and their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    hosts: HashMap<String, Addresses>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Addresses>,
}

/// Addresses of one name, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6.
    pub v6: Vec<Ipv6Addr>,
}

/// What the table says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its addresses; none means that the name exists without any.
    pub addresses: &'a Addresses,
    /// The name it stands for, where the query is an expansion of a search list.
    pub canonical: Option<String>,
}

/// Whose names are short.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Namespace of the pod that asks; `None` for a proxy without one.
    pub namespace: Option<&'a str>,
    /// Domain of the cluster, such as `cluster.local`.
    pub domain: &'a str,
}

impl NameTable {
    /// Looks up `query`, in lower case and without its trailing dot. `None`: not a mesh name.
    ///
    /// A query is tried as it stands, then as a short name of the pod's namespace, then as what a
    /// resolver with `ndots:5` makes of either by its search list. Answering the latter at once,
    /// as an alias, saves the client its further queries.
    pub fn find(&self, query: &str, scope: Scope<'_>) -> Option<Found<'_>> {
        if let Some(addresses) = self.find_exact(query, scope) {
            return Some(Found {
                addresses,
                canonical: None,
            });
        }
        search_suffixes(scope).find_map(|suffix| {
            let rest = query.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
            let addresses = self.find_exact(rest, scope)?;
            Some(Found {
                addresses,
                canonical: Some(rest.to_owned()),
            })
        })
    }

    /// Every name, for display.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Addresses)> {
        let wildcards = self.wildcards.iter().map(|(n, a)| (format!("*.{n}"), a));
        self.hosts
            .iter()
            .map(|(n, a)| (n.clone(), a))
            .chain(wildcards)
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.hosts.len() + self.wildcards.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find_exact(&self, name: &str, scope: Scope<'_>) -> Option<&Addresses> {
        self.hosts
            .get(name)
            .or_else(|| self.hosts.get(&full_name(name, scope)?))
            .or_else(|| self.find_wildcard(name))
    }

    /// The longest wildcard wins; `*` stands for one label or more.
    fn find_wildcard(&self, name: &str) -> Option<&Addresses> {
        if self.wildcards.is_empty() {
            return None;
        }
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(addresses) = self.wildcards.get(suffix) {
                return Some(addresses);
            }
            rest = suffix;
        }
        None
    }
}

/// `reviews`, `reviews.default` or `reviews.default.svc` in full.
fn full_name(name: &str, scope: Scope<'_>) -> Option<String> {
    let domain = scope.domain;
    let mut labels = name.split('.');
    match (labels.next(), labels.next(), labels.next(), labels.next()) {
        (Some(service), None, ..) => {
            let namespace = scope.namespace?;
            Some(format!("{service}.{namespace}.svc.{domain}"))
        }
        (Some(service), Some(namespace), None, _) => {
            Some(format!("{service}.{namespace}.svc.{domain}"))
        }
        (Some(_), Some(_), Some("svc"), None) => Some(format!("{name}.{domain}")),
        _ => None,
    }
}

/// The search list that the kubelet gives a pod.
fn search_suffixes(scope: Scope<'_>) -> impl Iterator<Item = String> {
    let domain = scope.domain;
    scope
        .namespace
        .map(|namespace| format!("{namespace}.svc.{domain}"))
        .into_iter()
        .chain([format!("svc.{domain}"), domain.to_owned()])
}

/// Collects a [`NameTable`].
#[derive(Debug, Default)]
pub struct NameTableBuilder {
    table: NameTable,
}

impl NameTableBuilder {
    /// Adds addresses under a name, which may begin with `*.`; false when it is no host name.
    pub fn add(&mut self, name: &str, ips: &[IpAddr]) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let (names, name) = match name.strip_prefix("*.") {
            Some(suffix) => (&mut self.table.wildcards, suffix.to_owned()),
            None => (&mut self.table.hosts, name),
        };
        if !is_host_name(&name) {
            return false;
        }
        let addresses = names.entry(name).or_default();
        for ip in ips {
            match ip {
                IpAddr::V4(ip) if !addresses.v4.contains(ip) => addresses.v4.push(*ip),
                IpAddr::V6(ip) if !addresses.v6.contains(ip) => addresses.v6.push(*ip),
                _ => {}
            }
        }
        true
    }

    /// The table.
    pub fn build(self) -> NameTable {
        self.table
    }
}

fn is_host_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}
