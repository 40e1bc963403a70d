//! LDS for the way into the client's own pod: a listener for each port that a service or a container declares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Renderer;
use super::listeners::{Operation, Routes};
use super::routes::everything;
use super::schema::{Listener, Route, RouteConfig, TcpRoute, VirtualHost};
use crate::model::endpoint::target_port;
use crate::model::route::HttpRoute;
use crate::model::service::{Protocol, Service};
use crate::snapshot::claim;

/// A port of the client's pod.
struct Port<'a> {
    protocol: Protocol,
    /// The service, and its own number for the port.
    service: Option<(&'a Arc<Service>, u16)>,
}

impl<'a> Renderer<'a> {
    pub(super) fn inbound_listeners(&mut self) -> Vec<Listener> {
        let Some(workload) = self.workload() else {
            return Vec::new();
        };
        let mut listeners = Vec::new();
        for (number, port) in self.own_ports() {
            let cluster = self.inbound_cluster(number, port.protocol);
            for address in &workload.addresses {
                listeners.push(if port.protocol.is_http() {
                    let routes = Routes::Inline(self.inbound_routes(number, &port, &cluster));
                    self.http_listener(*address, number, Operation::Ingress, routes)
                } else {
                    let route = TcpRoute::to(cluster.clone(), &[(*address).into()]);
                    Listener::tcp(*address, number, vec![route])
                });
            }
        }
        listeners
    }

    /// Ports that nothing declares and that a listener for all addresses would take for calls to others: bytes to the
    /// application, or what is meant for the pod would be routed by its host, or captured again and again.
    pub(super) fn undeclared_listeners(&mut self, ports: &BTreeSet<u16>) -> Vec<Listener> {
        let mut listeners = Vec::new();
        let declared = self.own_ports();
        for port in ports.iter().filter(|port| !declared.contains_key(port)) {
            for address in self.own_addresses() {
                let cluster = self.inbound_cluster(*port, Protocol::Tcp);
                let route = TcpRoute::to(cluster, &[address.into()]);
                listeners.push(Listener::tcp(address, *port, vec![route]));
            }
        }
        listeners
    }

    /// Services first, since they know the protocol best.
    fn own_ports(&self) -> BTreeMap<u16, Port<'a>> {
        let mut ports = BTreeMap::new();
        let Some(workload) = self.workload() else {
            return ports;
        };
        let sidecar = self.snapshot.sidecar_for(workload);
        if let Some(ingress) = sidecar.and_then(|sidecar| sidecar.ingress.as_ref()) {
            let port = |protocol| Port {
                protocol,
                service: None,
            };
            let stated = ingress.iter();
            return stated
                .map(|listener| (listener.port, port(listener.protocol)))
                .collect();
        }
        for service in self.snapshot.services_of(workload) {
            for port in &service.ports {
                if let Some(number) = target_port(&port.target, workload) {
                    ports.entry(number).or_insert(Port {
                        protocol: port.protocol,
                        service: Some((service, port.port)),
                    });
                }
            }
        }
        // Nothing says who calls these; the era passed them on as bytes, for probes.
        for port in &workload.ports {
            ports.entry(port.port).or_insert(Port {
                protocol: Protocol::Tcp,
                service: None,
            });
        }
        ports
    }

    /// All to the application; the rules of the service only say what spans are called.
    fn inbound_routes(&mut self, number: u16, port: &Port<'_>, cluster: &str) -> RouteConfig {
        let mut routes = Vec::new();
        if let Some((service, at)) = port.service {
            for rule in self.rules_of(service) {
                routes.extend(self.inbound_rule(rule, at));
            }
        }
        if let Some(last) = routes.iter().position(Route::catches_all) {
            routes.truncate(last + 1);
        } else {
            routes.push(everything());
        }
        for route in &mut routes {
            route.cluster = Some(cluster.to_owned());
        }
        RouteConfig {
            validate_clusters: true,
            virtual_hosts: vec![VirtualHost {
                name: format!("inbound|{number}"),
                domains: vec!["*".to_owned()],
                routes,
            }],
        }
    }

    fn rules_of(&self, service: &Service) -> Vec<&'a HttpRoute> {
        let snapshot = self.snapshot;
        let rules = snapshot.virtual_services_for(&self.client.namespace);
        let rule = claim(&rules, &service.hostname);
        if let Some(rule) = rule.filter(|rule| !rule.http.is_empty()) {
            return rule.http.iter().collect();
        }
        let rules = snapshot.route_rules_for(&service.hostname);
        rules.into_iter().map(|rule| &rule.route).collect()
    }

    /// What a rule's requests look like when they arrive, after the caller's proxy has rewritten them.
    fn inbound_rule(&mut self, rule: &HttpRoute, at: u16) -> Vec<Route> {
        let rewrite = rule.rewrite.as_ref();
        let mut routes = Vec::new();
        for condition in self.conditions_of(rule, at) {
            let Some(mut route) = self.condition(rule, condition) else {
                continue;
            };
            if rewrite.is_some_and(|rewrite| rewrite.uri_regex.is_some()) {
                continue;
            }
            if let Some(uri) = rewrite.and_then(|rewrite| rewrite.uri.as_ref()) {
                route.prefix = Some(uri.clone());
                route.path = None;
                route.regex = None;
            }
            routes.push(route);
        }
        routes
    }
}
