//! Routing: from a request to a virtual host, a route and a cluster.
//!
//! Input: a request's head as [`Head`]. Output: a [`Matched`] route of a [`RouteTable`]. Pure;
//! called by `http::stream` once per request and by `simulate`. A table is built once per
//! configuration, with its virtual hosts indexed and its header mutations compiled.

pub mod action;
pub mod headers;
pub mod match_route;
pub mod match_vhost;
pub mod retry;
pub mod rewrite;
pub mod string_match;
pub mod timeout;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};

use crate::flags::{ResponseFlags, details};
use crate::resource::{Action, ClusterSpecifier, Route, RouteConfiguration, VirtualHost};
pub use headers::Mutations;
use match_vhost::HostIndex;

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `:method`.
    pub method: &'a Method,
    /// `:path` with its query.
    pub path: &'a str,
    /// `:authority`, or `Host` on HTTP/1.1.
    pub authority: &'a str,
    /// `:scheme`.
    pub scheme: &'a str,
    /// Everything else.
    pub headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    /// The path without its query.
    pub fn path_only(&self) -> &'a str {
        let end = self.path.find(['?', '#']).unwrap_or(self.path.len());
        &self.path[..end]
    }

    /// The query without its `?`; empty where there is none.
    pub fn query(&self) -> &'a str {
        let rest = self.path.split_once('?').map_or("", |(_, query)| query);
        rest.split_once('#').map_or(rest, |(query, _)| query)
    }
}

/// A route configuration, indexed for look-ups.
#[derive(Default)]
pub struct RouteTable {
    config: Option<Arc<RouteConfiguration>>,
    hosts: HostIndex,
    vhosts: Vec<Vhost>,
    mutations: Mutations,
}

struct Vhost {
    config: Arc<VirtualHost>,
    mutations: Mutations,
    routes: Vec<Entry>,
}

struct Entry {
    route: Arc<Route>,
    mutations: Mutations,
    /// Those of weighted clusters, in their order.
    weighted: Vec<Mutations>,
}

/// A route that a request matches.
#[derive(Clone)]
pub struct Matched {
    table: Arc<RouteTable>,
    vhost: usize,
    route: usize,
}

impl Matched {
    /// Its virtual host.
    pub fn vhost(&self) -> &VirtualHost {
        &self.table.vhosts[self.vhost].config
    }

    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.entry().route
    }

    /// Header mutations from the most specific level to the least, those of the chosen weighted
    /// cluster first.
    pub fn mutations(&self, weighted: Option<usize>) -> impl Iterator<Item = &Mutations> {
        let entry = self.entry();
        let chosen = weighted.and_then(|index| entry.weighted.get(index));
        let vhost = &self.table.vhosts[self.vhost];
        chosen
            .into_iter()
            .chain([&entry.mutations, &vhost.mutations, &self.table.mutations])
    }

    fn entry(&self) -> &Entry {
        &self.table.vhosts[self.vhost].routes[self.route]
    }
}

impl std::fmt::Debug for Matched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matched")
            .field("vhost", &self.vhost().name)
            .field("route", &self.route().name)
            .finish_non_exhaustive()
    }
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No virtual host has the request's host.
    VirtualHost,
    /// The virtual host has no route for the request.
    Route,
}

impl NoRoute {
    /// The status of the answer.
    pub const STATUS: StatusCode = StatusCode::NOT_FOUND;
    /// The response flag.
    pub const FLAG: ResponseFlags = ResponseFlags::NO_ROUTE;
    /// `%RESPONSE_CODE_DETAILS%`.
    pub const DETAILS: &str = details::ROUTE_NOT_FOUND;
}

impl RouteTable {
    /// Indexes a configuration.
    pub fn new(config: Arc<RouteConfiguration>) -> Self {
        let mut hosts = HostIndex::default();
        for (index, vhost) in config.virtual_hosts.iter().enumerate() {
            for domain in &vhost.domains {
                hosts.insert(domain, index);
            }
        }
        let vhosts = config.virtual_hosts.iter().map(Vhost::new).collect();
        let mutations = Mutations::compile(&config.request_headers, &config.response_headers);
        Self {
            hosts,
            vhosts,
            mutations,
            config: Some(config),
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> Option<&Arc<RouteConfiguration>> {
        self.config.as_ref()
    }

    /// The virtual host for an `:authority`.
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        Some(&self.vhosts.get(self.vhost_index(authority)?)?.config)
    }

    /// The first route of the request's virtual host that it matches. `point` is a random number
    /// in `0..1_000_000` that routes for a fraction of the requests are compared with.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(self: &Arc<Self>, head: &Head<'_>, point: u32) -> Result<Matched, NoRoute> {
        let vhost = self
            .vhost_index(head.authority)
            .ok_or(NoRoute::VirtualHost)?;
        let route = self.vhosts[vhost]
            .routes
            .iter()
            .position(|entry| match_route::matches(&entry.route.matches, head, point))
            .ok_or(NoRoute::Route)?;
        Ok(Matched {
            table: self.clone(),
            vhost,
            route,
        })
    }

    fn vhost_index(&self, authority: &str) -> Option<usize> {
        let ignore_port = self
            .config
            .as_ref()
            .is_some_and(|c| c.ignore_port_in_host_matching);
        self.hosts.find(authority, ignore_port)
    }
}

impl Vhost {
    fn new(config: &Arc<VirtualHost>) -> Self {
        Self {
            config: config.clone(),
            mutations: Mutations::compile(&config.request_headers, &config.response_headers),
            routes: config.routes.iter().map(Entry::new).collect(),
        }
    }
}

impl Entry {
    fn new(route: &Arc<Route>) -> Self {
        let weighted = match &route.action {
            Action::Forward(action) => match &action.cluster {
                ClusterSpecifier::Weighted(weighted) => weighted
                    .clusters
                    .iter()
                    .map(|c| Mutations::compile(&c.request_headers, &c.response_headers))
                    .collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        Self {
            route: route.clone(),
            mutations: Mutations::compile(&route.request_headers, &route.response_headers),
            weighted,
        }
    }
}
