//! RDS: virtual hosts of all services on a port, each with its domains and routes.
//!
//! A route configuration is named after its port (`9080`), or after one service's host and port where
//! the listener belongs to that service alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_xds::proto::envoy::config::route::v3 as proto;
use millrace_xds::proto::{RouteConfiguration, VirtualHost};

use super::wrap::{truth, written_at};
use super::{ProxyView, Translator, gateway, grpc, listener, route_action, route_match};
use crate::model::mesh::OutboundPolicy;
use crate::model::names::{ClusterName, Hostname};
use crate::model::place::Place;
use crate::model::route::{HttpMatch, HttpRoute, VirtualService};
use crate::model::service::{Service, ServicePort};
use crate::snapshot::claim;

/// The port on which hosts are routed that no service has.
const PLAIN_HTTP_PORT: u16 = 80;

/// The route configurations that the listeners of this view ask for.
pub(super) fn names(translator: &Translator<'_>) -> Vec<String> {
    if matches!(translator.view, ProxyView::Router { .. }) {
        return gateway::route_names(translator);
    }
    let mut own = BTreeSet::new();
    for namespace in listener::namespaces(translator) {
        for (service, port) in translator.snapshot.ports_for(namespace) {
            let mut add = |name: &str| own.insert(translator.view.join(namespace, name));
            if listener::by_host(service, port) {
                add(&port.port.to_string());
            }
            if listener::is_sniffed(translator, service, port) {
                add(&format!("{}:{}", service.hostname, port.port));
            }
        }
    }
    own.into_iter().collect()
}

/// A route configuration by its name.
pub(super) fn configuration(translator: &Translator<'_>, name: &str) -> Option<RouteConfiguration> {
    if matches!(translator.view, ProxyView::Router { .. }) {
        return gateway::configuration(translator, name);
    }
    let (namespace, own_name) = translator.view.split(name)?;
    let rules = translator.snapshot.virtual_services_for(namespace);
    let mut builder = Builder {
        translator,
        namespace,
        rules,
        domains: BTreeSet::new(),
        hosts: Vec::new(),
    };
    if let Some((host, port)) = own_name.rsplit_once(':') {
        builder.one_service(host, port.parse().ok()?)?;
    } else {
        let port: u16 = own_name.parse().ok()?;
        builder.services_on(port);
        if builder.hosts.is_empty() {
            return None;
        }
        if port == PLAIN_HTTP_PORT {
            builder.hosts_without_service(port);
        }
    }
    if builder.domains.insert("*".to_owned()) {
        builder.hosts.push(everything_else(translator, namespace));
    }
    let mut routes = RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: builder.hosts,
        // A route to a cluster that is not there answers 503 for its own requests only.
        validate_clusters: truth(false),
        ..Default::default()
    };
    grpc::adapt_routes(translator.view, &mut routes);
    Some(routes)
}

struct Builder<'a> {
    translator: &'a Translator<'a>,
    namespace: &'a str,
    /// In the order in which they claim hosts.
    rules: Vec<&'a Arc<VirtualService>>,
    /// Envoy refuses a configuration in which a domain is there twice.
    domains: BTreeSet<String>,
    hosts: Vec<VirtualHost>,
}

impl Builder<'_> {
    fn services_on(&mut self, number: u16) {
        for (service, port) in self.translator.snapshot.ports_for(self.namespace) {
            if port.port == number && listener::by_host(service, port) {
                let domains = self.service_domains(service, port.port);
                self.push_service(service, port, domains);
            }
        }
    }

    /// The only service behind a listener takes any host: its address has already told which it is.
    fn one_service(&mut self, host: &str, port: u16) -> Option<()> {
        let host = Hostname::literal(host).ok()?;
        let snapshot = self.translator.snapshot;
        let service = snapshot.service_on(&host, port, Some(self.namespace))?;
        let port = service.port(port)?;
        let mut domains = self.service_domains(service, port.port);
        domains.push("*".to_owned());
        self.push_service(service, port, domains);
        Some(())
    }

    fn push_service(&mut self, service: &Arc<Service>, port: &ServicePort, domains: Vec<String>) {
        let routes = self.routes_of(service, port);
        // A Service of Kubernetes is known by its host.
        let place = service.entry().map(|entry| Place {
            object: entry.object.clone(),
            field: String::new(),
        });
        let host = service.hostname.as_str();
        self.push((host, port.port), domains, routes, place.as_ref());
    }

    /// Hosts that a `VirtualService` routes and no service has.
    fn hosts_without_service(&mut self, port: u16) {
        let snapshot = self.translator.snapshot;
        for rule in self.rules.clone() {
            for host in rule
                .hosts
                .iter()
                .filter(|host| snapshot.service(host).is_none())
            {
                if rule.http.is_empty() {
                    continue;
                }
                let domains = vec![format!("{host}:{port}"), host.to_string()];
                let routes = self.rule_routes(rule, port, &format!("{host}:{port}/*"));
                self.push((host.as_str(), port), domains, routes, None);
            }
        }
    }

    fn push(
        &mut self,
        (host, port): (&str, u16),
        domains: Vec<String>,
        routes: Vec<proto::Route>,
        place: Option<&Place>,
    ) {
        let domains: Vec<String> = domains
            .into_iter()
            .filter(|domain| self.domains.insert(domain.clone()))
            .collect();
        if domains.is_empty() {
            return;
        }
        self.hosts.push(VirtualHost {
            name: format!("{host}:{port}"),
            domains,
            routes,
            include_request_attempt_count: true,
            metadata: place.map(written_at),
            ..Default::default()
        });
    }

    /// Routes of the Gateway API, else a `VirtualService`, else `RouteRules`, else straight to the service.
    fn routes_of(&self, service: &Arc<Service>, port: &ServicePort) -> Vec<proto::Route> {
        let snapshot = self.translator.snapshot;
        let operation = format!("{}:{}/*", service.hostname, port.port);
        if let Some(rules) = snapshot.api_http_rules(self.namespace, service, port) {
            let rules = rules.iter();
            return rules
                .flat_map(|rule| self.routes(rule, port.port, &operation))
                .collect();
        }
        let rule = claim(&self.rules, &service.hostname);
        if let Some(rule) = rule.filter(|rule| !rule.http.is_empty()) {
            return self.rule_routes(rule, port.port, &operation);
        }
        let mut routes = Vec::new();
        for rule in snapshot.route_rules_for(&service.hostname) {
            routes.extend(self.routes(&rule.route, port.port, &operation));
        }
        // The seeds' rules are additions to a service that works without them.
        if !routes.iter().any(is_unconditional) {
            let cluster = ClusterName::outbound(port.port, "", &service.hostname);
            let cluster = self.translator.cluster_name(self.namespace, &cluster);
            let route = route_action::default_route(self.translator, cluster, operation);
            routes.push(route);
        }
        routes
    }

    fn rule_routes(&self, rule: &VirtualService, port: u16, operation: &str) -> Vec<proto::Route> {
        rule.http
            .iter()
            .flat_map(|route| self.routes(route, port, operation))
            .collect()
    }

    /// One route for each of the conditions, of which any will do.
    fn routes(&self, route: &HttpRoute, port: u16, operation: &str) -> Vec<proto::Route> {
        let make = |condition: Option<&HttpMatch>| {
            let maker = route_action::Maker {
                translator: self.translator,
                namespace: self.namespace,
                port,
                operation,
            };
            maker.route(route, condition)
        };
        if route.matches.is_empty() {
            return vec![make(None)];
        }
        let holds_here = |condition: &&HttpMatch| {
            condition.port.is_none_or(|wanted| wanted == port)
                && condition
                    .source_namespace
                    .as_deref()
                    .is_none_or(|wanted| wanted == self.namespace)
        };
        route
            .matches
            .iter()
            .filter(holds_here)
            .map(|condition| make(Some(condition)))
            .collect()
    }

    /// All names of a service, each with the port first: the short ones only of hosts in the cluster's
    /// domain, and the shortest only within its own namespace.
    fn service_domains(&self, service: &Service, port: u16) -> Vec<String> {
        let full = service.hostname.as_str();
        let mut names = Vec::new();
        let domain = &self.translator.snapshot.mesh.domain;
        if let Some((name, namespace)) = service.hostname.within(domain) {
            if namespace == self.namespace {
                names.push(name.to_owned());
            }
            names.push(format!("{name}.{namespace}"));
            names.push(format!("{name}.{namespace}.svc"));
            // `cluster` of `cluster.local`: resolvers complete this one too.
            if let Some((stem, _)) = full
                .rsplit_once('.')
                .filter(|(stem, _)| stem.len() > names[names.len() - 1].len())
            {
                names.push(stem.to_owned());
            }
        }
        names.push(full.to_owned());
        let addresses = self.translator.snapshot.addresses_of(service);
        names.extend(addresses.iter().map(|address| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        }));
        names
            .into_iter()
            .flat_map(|name| [format!("{name}:{port}"), name])
            .collect()
    }
}

/// Whether nothing can come after a route.
fn is_unconditional(route: &proto::Route) -> bool {
    route.r#match.as_ref() == Some(&route_match::everything())
}

/// Requests for hosts that no service has.
fn everything_else(translator: &Translator<'_>, namespace: &str) -> VirtualHost {
    let (name, action) = match translator.snapshot.outbound_policy(namespace) {
        OutboundPolicy::AllowAny => ("allow_any", route_action::passthrough()),
        OutboundPolicy::RegistryOnly => ("block_all", route_action::refuse()),
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![proto::Route {
            name: name.to_owned(),
            r#match: Some(route_match::everything()),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        metadata: listener::policy_place(translator, namespace)
            .as_ref()
            .map(written_at),
        ..Default::default()
    }
}
