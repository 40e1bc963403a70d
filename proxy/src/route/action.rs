//! What a matched route does: which cluster a request goes to, or what is answered.

use http::{HeaderMap, Uri};

use super::match_vhost::strip_port;
use super::{Head, Matched, rewrite};
use crate::resource::route::{PathRedirect, RedirectAction};
use crate::resource::{ClusterName, ClusterSpecifier, WeightedClusters};

/// The cluster that a forwarding route chose.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name.
    pub cluster: ClusterName,
    /// Which of the weighted clusters it is.
    pub weighted: Option<usize>,
}

/// The cluster for a request; `random` decides among weighted ones. `None` where the header that
/// should name the cluster is absent.
pub fn choose(specifier: &ClusterSpecifier, headers: &HeaderMap, random: u64) -> Option<Chosen> {
    match specifier {
        ClusterSpecifier::Cluster(name) => Some(Chosen {
            cluster: name.clone(),
            weighted: None,
        }),
        ClusterSpecifier::Header(header) => {
            let name = headers.get(header)?.to_str().ok()?;
            Some(Chosen {
                cluster: name.into(),
                weighted: None,
            })
        }
        ClusterSpecifier::Weighted(weighted) => {
            let index = weighted_index(weighted, random);
            Some(Chosen {
                cluster: weighted.clusters.get(index)?.name.clone(),
                weighted: Some(index),
            })
        }
    }
}

/// Which of the weighted clusters a random number falls on.
pub fn weighted_index(weighted: &WeightedClusters, random: u64) -> usize {
    let mut point = random % u64::from(weighted.total.max(1));
    for (index, cluster) in weighted.clusters.iter().enumerate() {
        let weight = u64::from(cluster.weight);
        if point < weight {
            return index;
        }
        point -= weight;
    }
    weighted.clusters.len().saturating_sub(1)
}

/// The `location` of a redirect.
pub fn location(redirect: &RedirectAction, matched: &Matched, head: &Head<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let host = match (&redirect.host, redirect.port) {
        (Some(host), None) => host.clone(),
        (host, Some(port)) => {
            let host = host.as_deref().unwrap_or(strip_port(head.authority));
            if default_port(scheme) == Some(port) {
                host.to_owned()
            } else {
                format!("{host}:{port}")
            }
        }
        // A changed scheme takes the port of the old one off (`Envoy::Http::Utility`).
        (None, None) if redirect.scheme.is_some() && has_default_port(head) => {
            strip_port(head.authority).to_owned()
        }
        (None, None) => head.authority.to_owned(),
    };
    let path = match &redirect.path {
        None => head.path_only().to_owned(),
        Some(PathRedirect::Full(path)) => path.clone(),
        Some(PathRedirect::Prefix(prefix)) => {
            rewrite::replace_prefix(&matched.route().matches.path, head.path_only(), prefix)
        }
    };
    let query = head.query();
    let separator = if path.contains('?') { "&" } else { "?" };
    if redirect.strip_query || query.is_empty() || path.contains('?') {
        format!("{scheme}://{host}{path}")
    } else {
        format!("{scheme}://{host}{path}{separator}{query}")
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn has_default_port(head: &Head<'_>) -> bool {
    head.authority
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.port_u16())
        .is_some_and(|port| default_port(head.scheme) == Some(port))
}
