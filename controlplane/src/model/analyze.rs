//! Problems that no single object shows: names that point at nothing, and two objects that claim the
//! same host.
//!
//! Input: a snapshot; output: warnings, each attached to the object that a person would change. The
//! routes are served all the same, and answer 503 where their target is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::delegate;
use crate::model::names::{Hostname, ObjectName};
use crate::model::policy::DestinationRule;
use crate::model::problem::{Finding, Reason};
use crate::model::route::{
    Destination, ExportTo, HttpAction, HttpRoute, SubsetRef, VirtualService,
};
use crate::model::service::{Service, ServiceKind};
use crate::model::{Kind, ObjectId};
use crate::snapshot::MeshSnapshot;

/// Everything that is wrong between objects.
pub fn analyze(snapshot: &MeshSnapshot) -> Vec<(ObjectId, Finding)> {
    let mut analysis = Analysis {
        snapshot,
        only: None,
        found: Vec::new(),
    };
    analysis.virtual_services();
    analysis.route_rules();
    analysis.destination_rules();
    analysis.services();
    analysis.claims();
    analysis.sidecars();
    analysis.api_routes();
    analysis.ingresses();
    analysis.found
}

/// What is wrong between one object and all others.
pub fn analyze_object(snapshot: &MeshSnapshot, id: &ObjectId) -> Vec<Finding> {
    let mut analysis = Analysis {
        snapshot,
        only: Some(id),
        found: Vec::new(),
    };
    match id.kind {
        Kind::VirtualService => analysis.virtual_services(),
        Kind::RouteRule => analysis.route_rules(),
        Kind::DestinationRule => analysis.destination_rules(),
        Kind::Service => analysis.services(),
        Kind::Ingress => analysis.ingresses(),
        Kind::ServiceEntry | Kind::EgressRule => analysis.claims(),
        Kind::Sidecar => analysis.sidecars(),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
            analysis.api_routes();
        }
        _ => {}
    }
    let found = analysis.found.into_iter();
    found
        .filter(|(of, _)| of == id)
        .map(|(_, finding)| finding)
        .collect()
}

mod api_routes;
mod gateways;
mod hints;

pub use self::gateways::takes_at;
pub use self::hints::hints;

struct Analysis<'a> {
    snapshot: &'a MeshSnapshot,
    /// The one object that is judged: of all others only what they claim is looked at.
    only: Option<&'a ObjectId>,
    found: Vec<(ObjectId, Finding)>,
}

impl Analysis<'_> {
    /// Whether an object is judged.
    fn judges(&self, kind: Kind, name: &ObjectName) -> bool {
        self.only
            .is_none_or(|only| only.kind == kind && only.name == *name)
    }

    fn warn(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        reason: Reason,
        field: String,
        message: String,
    ) {
        let id = ObjectId {
            kind,
            name: name.clone(),
        };
        self.found
            .push((id, Finding::warning(reason, field, message)));
    }

    fn virtual_services(&mut self) {
        let mut claimed: BTreeMap<&Hostname, &ObjectName> = BTreeMap::new();
        let mut rules: Vec<_> = self
            .snapshot
            .virtual_services
            .values()
            .filter(|rule| rule.for_mesh || !rule.gateways.is_empty())
            .collect();
        rules.sort_by_key(|rule| {
            (
                rule.created.is_none(),
                rule.created.clone(),
                rule.name.clone(),
            )
        });
        for rule in rules {
            let judged = self.judges(Kind::VirtualService, &rule.name);
            if judged {
                self.delegates(rule);
                self.named_gateways(rule);
            }
            let of_mesh = rule.hosts.iter().enumerate();
            for (index, host) in of_mesh.filter(|_| rule.for_mesh) {
                if let Some(winner) = claimed.get(host) {
                    let message =
                        format!("{host} is already routed by VirtualService {winner}, which wins");
                    let field = format!("spec.hosts[{index}]");
                    self.warn(
                        Kind::VirtualService,
                        &rule.name,
                        Reason::Conflict,
                        field,
                        message,
                    );
                } else {
                    claimed.insert(host, &rule.name);
                }
            }
            if !judged {
                continue;
            }
            for route in &rule.http {
                self.http_route(
                    Kind::VirtualService,
                    &rule.name,
                    route,
                    &format!("spec.http[{}].route", route.at),
                );
            }
            let tcp = rule.tcp.iter().map(|route| ("tcp", route));
            let tls = rule.tls.iter().map(|route| ("tls", route));
            for (member, route) in tcp.chain(tls) {
                let field = format!("spec.{member}[{}].route", route.at);
                self.destinations(
                    Kind::VirtualService,
                    &rule.name,
                    &route.destinations,
                    &field,
                );
            }
        }
    }

    /// What comes of the routes that a rule leaves to others.
    fn delegates(&mut self, rule: &Arc<VirtualService>) {
        let rules = &self.snapshot.virtual_services;
        let (_, findings) = delegate::resolve(rule, |name| rules.get(name));
        let id = ObjectId {
            kind: Kind::VirtualService,
            name: rule.name.clone(),
        };
        self.found
            .extend(findings.into_iter().map(|finding| (id.clone(), finding)));
    }

    fn route_rules(&mut self) {
        let mut routed: BTreeMap<&Hostname, &ObjectName> = BTreeMap::new();
        if !self.snapshot.route_rules.is_empty() {
            let rules = self.snapshot.virtual_services.values();
            for rule in rules.filter(|rule| rule.for_mesh && !rule.http.is_empty()) {
                for host in &rule.hosts {
                    routed.entry(host).or_insert(&rule.name);
                }
            }
        }
        for rule in self.snapshot.route_rules.values() {
            if !self.judges(Kind::RouteRule, &rule.name) {
                continue;
            }
            let host = &rule.destination;
            if self.snapshot.service(host).is_none() {
                let message = format!("no service {host} is known, so the rule has no effect");
                let field = "spec.destination".to_owned();
                self.warn(
                    Kind::RouteRule,
                    &rule.name,
                    Reason::UnknownReference,
                    field,
                    message,
                );
            }
            let claims = host.and_wildcards();
            let winner = claims.iter().filter_map(|claim| routed.get(claim)).min();
            if let Some(winner) = winner {
                let message = format!("{host} is routed by VirtualService {winner}, which wins");
                let field = "spec.destination".to_owned();
                self.warn(
                    Kind::RouteRule,
                    &rule.name,
                    Reason::Conflict,
                    field,
                    message,
                );
            }
            self.http_route(Kind::RouteRule, &rule.name, &rule.route, "spec.route");
        }
    }

    fn http_route(&mut self, kind: Kind, name: &ObjectName, route: &HttpRoute, field: &str) {
        if let HttpAction::Forward(destinations) = &route.action {
            self.destinations(kind, name, destinations, field);
        }
    }

    fn destinations(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        destinations: &[Destination],
        field: &str,
    ) {
        for (index, destination) in destinations.iter().enumerate() {
            let item = format!("{field}[{index}]");
            let member = |member: &str| match kind {
                Kind::VirtualService => format!("{item}.destination.{member}"),
                _ => item.clone(),
            };
            let Some(service) = self.snapshot.service(&destination.host) else {
                let message = format!(
                    "no service {} is known: requests get 503 (NC)",
                    destination.host
                );
                self.warn(
                    kind,
                    name,
                    Reason::UnknownReference,
                    member("host"),
                    message,
                );
                continue;
            };
            let service = service.clone();
            if let Some(port) = destination
                .port
                .filter(|port| service.port(*port).is_none())
            {
                let message = format!(
                    "{} has no port {port}: requests get 503 (NC)",
                    destination.host
                );
                self.warn(
                    kind,
                    name,
                    Reason::UnknownReference,
                    member("port.number"),
                    message,
                );
            }
            self.subset(kind, name, destination, &service, member("subset"));
        }
    }

    fn subset(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        to: &Destination,
        service: &Service,
        field: String,
    ) {
        match &to.subset {
            SubsetRef::All => {}
            SubsetRef::Named(subset) => {
                let rules = self
                    .snapshot
                    .destination_rules_for(service, Some(&name.namespace));
                let known = rules
                    .iter()
                    .flat_map(|rule| &rule.subsets)
                    .any(|known| known.name == *subset);
                if !known {
                    let message = format!(
                        "no DestinationRule gives {} a subset {subset:?}: requests get 503 (NC)",
                        to.host
                    );
                    self.warn(kind, name, Reason::UnknownReference, field, message);
                }
            }
            SubsetRef::Labels(labels) => {
                let namespace = &service.name.namespace;
                let mut pods = self.snapshot.workloads.in_namespace(namespace);
                let any = pods.any(|pod| {
                    super::workload::selects(&service.selector, &pod.labels)
                        && super::workload::has_all(labels, &pod.labels)
                });
                if !any {
                    let labels: Vec<_> = labels
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"))
                        .collect();
                    let message = format!(
                        "no pod of {} has the labels {}: requests get 503 (UH)",
                        to.host,
                        labels.join(",")
                    );
                    self.warn(
                        kind,
                        name,
                        Reason::UnknownReference,
                        format!("{field}.labels"),
                        message,
                    );
                }
            }
        }
    }

    fn destination_rules(&mut self) {
        let mut seen: BTreeSet<(&str, &Hostname, &str)> = BTreeSet::new();
        let mut rules: Vec<_> = self.snapshot.destination_rules.values().collect();
        rules.sort_by_key(|rule| {
            (
                rule.created.is_none(),
                rule.created.clone(),
                rule.name.clone(),
            )
        });
        for rule in rules {
            for (index, subset) in rule.subsets.iter().enumerate() {
                if !seen.insert((&rule.name.namespace, &rule.host, &subset.name)) {
                    let message = format!(
                        "another DestinationRule gives {} the subset {:?}, which wins",
                        rule.host, subset.name
                    );
                    let field = format!("spec.subsets[{index}].name");
                    self.warn_rule(rule, Reason::Conflict, field, message);
                }
            }
            if !rule.host.is_wildcard() {
                self.destination_rule_of_a_host(rule);
            }
        }
    }

    fn warn_rule(
        &mut self,
        rule: &DestinationRule,
        reason: Reason,
        field: String,
        message: String,
    ) {
        self.warn(Kind::DestinationRule, &rule.name, reason, field, message);
    }

    /// Whether the rule has a service to work on.
    fn destination_rule_of_a_host(&mut self, rule: &DestinationRule) {
        if self.snapshot.service(&rule.host).is_none() {
            let message = format!(
                "no service {} is known, so the rule has no effect",
                rule.host
            );
            self.warn_rule(
                rule,
                Reason::UnknownReference,
                "spec.host".to_owned(),
                message,
            );
        }
    }

    /// Several for all pods of one namespace, of which the oldest counts.
    fn sidecars(&mut self) {
        let all = self.snapshot.sidecars.values();
        for sidecar in all.filter(|sidecar| sidecar.selector.is_empty()) {
            let winner = self.snapshot.sidecar_of(&sidecar.name.namespace);
            if let Some(winner) = winner.filter(|winner| winner.name != sidecar.name) {
                let message = format!(
                    "Sidecar {} is for all pods of {} too, and wins",
                    winner.name, sidecar.name.namespace
                );
                let field = "spec.workloadSelector".to_owned();
                self.warn(
                    Kind::Sidecar,
                    &sidecar.name,
                    Reason::Conflict,
                    field,
                    message,
                );
            }
        }
    }

    /// Ports of a host that two objects claim for the same clients.
    fn claims(&mut self) {
        for host in self.snapshot.hosts.iter().filter(|(_, all)| all.len() > 1) {
            let services: Vec<_> = self.snapshot.services_with(host.0).collect();
            for (at, service) in services.iter().enumerate() {
                let Some(entry) = service.entry() else {
                    continue;
                };
                for port in &service.ports {
                    let meets = |other: &&&Arc<Service>| {
                        other.port(port.port).is_some()
                            && (other.name.namespace == service.name.namespace
                                || (other.export_to == ExportTo::Everyone
                                    && service.export_to == ExportTo::Everyone))
                    };
                    let Some(winner) = services[..at].iter().find(meets) else {
                        continue;
                    };
                    let by = match winner.entry() {
                        Some(entry) => entry.object.to_string(),
                        None => format!("Service {}", winner.name),
                    };
                    let message = format!(
                        "port {} of {} is already served by {by}, which wins{}",
                        port.port,
                        host.0,
                        if winner.name.namespace == service.name.namespace {
                            ""
                        } else {
                            " outside this namespace"
                        }
                    );
                    let finding = Finding::warning(Reason::Conflict, "spec.ports", message);
                    self.found.push((entry.object.clone(), finding));
                }
            }
        }
    }

    fn services(&mut self) {
        for service in self.snapshot.services.values() {
            if service.kind == ServiceKind::ClusterIp && service.addresses.is_empty() {
                let undeclared = service.ports.iter().any(|port| !port.protocol.is_http());
                if undeclared {
                    let message =
                        "a port that is not HTTP is found by its address, and the service has none";
                    let field = "spec.clusterIP".to_owned();
                    self.warn(
                        Kind::Service,
                        &service.name,
                        Reason::NotExecuted,
                        field,
                        message.to_owned(),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
