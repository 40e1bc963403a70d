//! RDS: the virtual hosts of a port, by rules of every kind.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::clusters::{bracketed, millis};
use super::names::ServiceKey;
use super::schema::{
    Decorator, Header, RetryPolicy, Route, RouteConfig, VirtualHost, WeightedCluster,
    WeightedClusters,
};
use super::{Renderer, conditions};
use crate::model::route::{
    Destination, HeaderChanges, HeaderOperations, HttpAction, HttpMatch, HttpRoute, Redirect,
    Retries, Rewrite, StringMatch, VirtualService,
};
use crate::model::service::{Service, ServicePort};
use crate::model::validate::DEFAULT_RETRY_ON;
use crate::model::workload::Labels;
use crate::snapshot::claim;

/// What spans of requests are called that no rule is for.
pub(crate) const DEFAULT_ROUTE: &str = "default-route";
/// The failures that the era retried where a rule said only how often.
const ERA_RETRY_ON: &str = "5xx,connect-failure,refused-stream";
/// The port on which hosts are routed that no service has.
const PLAIN_HTTP_PORT: u16 = 80;
/// What weights come to.
const ALL: u32 = 100;

impl Renderer<'_> {
    /// The ports of services that speak HTTP.
    pub fn http_ports(&self) -> BTreeSet<u16> {
        let ports = self.snapshot.ports_for(&self.client.namespace);
        ports
            .filter(|(_, port)| port.protocol.is_http())
            .map(|(_, port)| port.port)
            .collect()
    }

    /// The route configuration of a port; without virtual hosts where no service speaks HTTP there.
    pub fn routes(&mut self, number: u16) -> RouteConfig {
        let namespace = self.client.namespace.as_str();
        let rules = self.snapshot.virtual_services_for(namespace);
        let mut hosts = Vec::new();
        for (service, port) in self.snapshot.ports_for(namespace) {
            if port.port == number && port.protocol.is_http() {
                let routes = self.routes_of(&rules, service, port);
                hosts.push(VirtualHost {
                    name: ServiceKey::of(service, port, &Labels::new()).to_string(),
                    domains: self.domains(service, number),
                    routes,
                });
            }
        }
        if hosts.is_empty() {
            return RouteConfig {
                validate_clusters: true,
                virtual_hosts: hosts,
            };
        }
        if number == PLAIN_HTTP_PORT {
            hosts.extend(self.hosts_without_service(&rules));
        }
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        if let Some(cluster) = self.elsewhere() {
            hosts.push(anything_else(cluster));
        }
        once_per_domain(&mut hosts);
        RouteConfig {
            validate_clusters: true,
            virtual_hosts: hosts,
        }
    }

    /// Routes of the Gateway API, else a `VirtualService`, else `RouteRules`, else straight to the service.
    fn routes_of(
        &mut self,
        rules: &[&Arc<VirtualService>],
        service: &Arc<Service>,
        port: &ServicePort,
    ) -> Vec<Route> {
        let (snapshot, namespace) = (self.snapshot, self.client.namespace.as_str());
        if let Some(rules) = snapshot.api_http_rules(namespace, service, port) {
            return self.all(rules.iter(), port.port);
        }
        let rule = claim(rules, &service.hostname);
        if let Some(rule) = rule.filter(|rule| !rule.http.is_empty()) {
            return self.all(rule.http.iter(), port.port);
        }
        let rules = snapshot.route_rules_for(&service.hostname);
        let mut routes = self.all(rules.iter().map(|rule| &rule.route), port.port);
        // What comes after a route for everything is never reached, and the era left it out.
        if let Some(last) = routes.iter().position(Route::catches_all) {
            routes.truncate(last + 1);
            return routes;
        }
        let mut route = everything();
        route.cluster = Some(self.whole(service, port));
        routes.push(route);
        routes
    }

    fn all<'r>(&mut self, rules: impl Iterator<Item = &'r HttpRoute>, at: u16) -> Vec<Route> {
        let mut routes = Vec::new();
        for rule in rules {
            for condition in self.conditions_of(rule, at) {
                routes.extend(self.route(rule, condition, at));
            }
        }
        routes
    }

    /// The conditions of a rule that may hold at a port for this client.
    pub(super) fn conditions_of<'r>(
        &self,
        rule: &'r HttpRoute,
        at: u16,
    ) -> Vec<Option<&'r HttpMatch>> {
        if rule.matches.is_empty() {
            return vec![None];
        }
        let namespace = self.client.namespace.as_str();
        let here = |condition: &&HttpMatch| {
            let from = condition.source_namespace.as_deref();
            condition.port.is_none_or(|wanted| wanted == at)
                && from.is_none_or(|wanted| wanted == namespace)
        };
        rule.matches.iter().filter(here).map(Some).collect()
    }

    /// A condition of a rule without what happens; none where the condition has no words.
    pub(super) fn condition(
        &mut self,
        rule: &HttpRoute,
        condition: Option<&HttpMatch>,
    ) -> Option<Route> {
        match conditions::of(condition) {
            Ok(route) => {
                let place = rule.place.as_deref();
                let name = place.map_or(DEFAULT_ROUTE, |place| &place.object.name.name);
                Some(Route {
                    decorator: Decorator {
                        operation: name.to_owned(),
                    },
                    ..route
                })
            }
            Err(what) => {
                self.leave_out(rule, &format!("{what}: the condition is never met"));
                None
            }
        }
    }

    fn route(&mut self, rule: &HttpRoute, condition: Option<&HttpMatch>, at: u16) -> Option<Route> {
        let mut route = self.condition(rule, condition)?;
        let made = match &rule.action {
            HttpAction::Forward(to) => self.forward(rule, to, condition, at, &mut route),
            HttpAction::Redirect(to) => redirect(to, &mut route),
            HttpAction::Respond { .. } => Err("an answer of the proxy's own"),
            HttpAction::Delegate(_) => Err("a delegate that is not there"),
        };
        if let Err(what) = made {
            self.leave_out(rule, &format!("{what}: its requests get 503"));
            route.cluster = Some(self.nowhere());
        }
        Some(route)
    }

    fn forward(
        &mut self,
        rule: &HttpRoute,
        destinations: &[Destination],
        condition: Option<&HttpMatch>,
        at: u16,
        route: &mut Route,
    ) -> Result<(), &'static str> {
        if let Some(rewrite) = &rule.rewrite {
            rewrite_path(rewrite, condition, route)?;
        }
        let weighted: Vec<&Destination> = destinations.iter().filter(|to| to.weight > 0).collect();
        let mut request = rule.headers.request.clone();
        let mut unsaid = rule.headers.response != HeaderChanges::default();
        match &weighted[..] {
            [] => return Err("weights that are all 0"),
            [only] => {
                route.cluster = Some(self.destination(only, at));
                request.extend(only.headers.request.clone());
                unsaid |= only.headers.response != HeaderChanges::default();
            }
            several => {
                let weights = of_hundred(several);
                let clusters = several.iter().zip(weights).map(|(to, weight)| {
                    unsaid |= to.headers != HeaderOperations::default();
                    WeightedCluster {
                        name: self.destination(to, at),
                        weight,
                    }
                });
                let clusters = clusters.collect();
                route.weighted_clusters = Some(WeightedClusters { clusters });
            }
        }
        unsaid |= change_headers(request, route);
        if unsaid {
            self.leave_out(rule, "changes of headers other than added ones of requests");
        }
        if rule.fault.is_some() {
            self.leave_out(rule, "a fault: none is made");
        }
        route.timeout_ms = rule.timeout.map_or(0, millis);
        let retries = rule.retries.as_ref();
        route.retry_policy = retries.filter(|retries| retries.attempts > 0).map(retry);
        Ok(())
    }

    /// Hosts that a `VirtualService` routes and no service has, under the names that the era gave those of an
    /// `EgressRule`.
    fn hosts_without_service(&mut self, rules: &[&Arc<VirtualService>]) -> Vec<VirtualHost> {
        let mut hosts = Vec::new();
        for rule in rules.iter().filter(|rule| !rule.http.is_empty()) {
            for host in &rule.hosts {
                if self.snapshot.service(host).is_some() {
                    continue;
                }
                let name = format!("{host}:{PLAIN_HTTP_PORT}");
                hosts.push(VirtualHost {
                    domains: vec![name.clone(), host.to_string()],
                    routes: self.all(rule.http.iter(), PLAIN_HTTP_PORT),
                    name,
                });
            }
        }
        hosts
    }

    /// Every name of a service as its clients may write it, each with the port first: down from the shortest that
    /// the client's namespace allows.
    fn domains(&self, service: &Service, port: u16) -> Vec<String> {
        let full = service.hostname.as_str();
        let mut names = Vec::new();
        if service.entry().is_none() {
            let own = *service.name.namespace == *self.client.namespace;
            let shortest = usize::from(!own);
            let ends = full.match_indices('.').map(|(at, _)| at).skip(shortest);
            names.extend(ends.map(|end| full[..end].to_owned()));
        }
        names.push(full.to_owned());
        let addresses = self.snapshot.addresses_of(service);
        names.extend(
            addresses
                .iter()
                .map(|ip: &IpAddr| bracketed(&ip.to_string())),
        );
        names
            .into_iter()
            .flat_map(|name| [format!("{name}:{port}"), name])
            .collect()
    }
}

/// A route for all requests.
pub(super) fn everything() -> Route {
    Route {
        prefix: Some("/".to_owned()),
        decorator: Decorator {
            operation: DEFAULT_ROUTE.to_owned(),
        },
        ..Default::default()
    }
}

fn anything_else(cluster: String) -> VirtualHost {
    VirtualHost {
        name: "allow_any".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            cluster: Some(cluster),
            ..everything()
        }],
    }
}

/// Envoy refuses a configuration in which a domain is there twice.
fn once_per_domain(hosts: &mut Vec<VirtualHost>) {
    let mut taken = BTreeSet::new();
    for host in hosts.iter_mut() {
        host.domains.retain(|domain| taken.insert(domain.clone()));
    }
    hosts.retain(|host| !host.domains.is_empty());
}

fn rewrite_path(
    rewrite: &Rewrite,
    condition: Option<&HttpMatch>,
    route: &mut Route,
) -> Result<(), &'static str> {
    if rewrite.uri_regex.is_some() {
        return Err("a rewrite by a pattern");
    }
    route.host_rewrite.clone_from(&rewrite.authority);
    let Some(uri) = &rewrite.uri else {
        return Ok(());
    };
    let uri_match = condition.and_then(|condition| condition.uri.as_ref());
    if route.regex.is_some() || matches!(uri_match, Some(StringMatch::Regex(_))) {
        return Err("a rewrite of a path that a pattern matched");
    }
    route.prefix_rewrite = Some(uri.clone());
    Ok(())
}

fn redirect(to: &Redirect, route: &mut Route) -> Result<(), &'static str> {
    if to.code != 301 {
        return Err("a redirect with another code than 301");
    }
    if to.port.is_some() || to.prefix.is_some() || to.scheme.is_some() {
        return Err("a redirect to a port or scheme, or of a prefix");
    }
    route.path_redirect.clone_from(&to.uri);
    route.host_redirect.clone_from(&to.authority);
    Ok(())
}

/// Adds headers, and says whether anything else was asked for. A new authority is no header here.
fn change_headers(changes: HeaderChanges, route: &mut Route) -> bool {
    let is_authority =
        |name: &str| name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority");
    let mut unsaid = !changes.remove.is_empty();
    for (name, value) in changes.set {
        if is_authority(&name) {
            route.host_rewrite.get_or_insert(value);
        } else {
            unsaid = true;
        }
    }
    let added = changes
        .add
        .into_iter()
        .filter(|(name, _)| !is_authority(name));
    route.request_headers_to_add = added.map(|(key, value)| Header { key, value }).collect();
    unsaid
}

fn retry(retries: &Retries) -> RetryPolicy {
    let retry_on = match retries.retry_on.as_str() {
        DEFAULT_RETRY_ON => ERA_RETRY_ON,
        stated => stated,
    };
    RetryPolicy {
        retry_on: retry_on.to_owned(),
        num_retries: retries.attempts,
        per_try_timeout_ms: retries.per_try_timeout.map(millis),
    }
}

/// Weights as parts of 100, which is what they have to come to; who loses most by rounding gets what is left.
fn of_hundred(destinations: &[&Destination]) -> Vec<u32> {
    let total: u64 = destinations.iter().map(|to| u64::from(to.weight)).sum();
    let scaled = |to: &&Destination| {
        let part = u64::from(to.weight) * u64::from(ALL);
        (u32::try_from(part / total).unwrap_or(ALL), part % total)
    };
    let mut parts: Vec<(u32, u64)> = destinations.iter().map(scaled).collect();
    let given: u32 = parts.iter().map(|(weight, _)| weight).sum();
    let mut by_loss: Vec<usize> = (0..parts.len()).collect();
    by_loss.sort_by_key(|at| std::cmp::Reverse(parts[*at].1));
    for at in by_loss.into_iter().take((ALL - given) as usize) {
        parts[at].0 += 1;
    }
    parts.into_iter().map(|(weight, _)| weight).collect()
}
