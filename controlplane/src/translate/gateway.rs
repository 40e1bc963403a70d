//! LDS and RDS of gateways: a listener for each port of the gateways that a router's pod runs, and one route
//! configuration behind it, with a virtual host for each host that routes are bound for.
//!
//! Listeners are `0.0.0.0_<port>` and routes `http.<port>`, as Istio's are. A port is the one that the pod listens on:
//! where a service leads to the pod, its target port.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_xds::proto::envoy::config::core::v3::TrafficDirection;
use millrace_xds::proto::envoy::config::listener::v3 as listener;
use millrace_xds::proto::envoy::config::route::v3 as proto;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use millrace_xds::proto::{self as messages, Any, Listener, RouteConfiguration, VirtualHost, pack};

use super::filter::{self, Routes};
use super::listener::{also_on, any_addresses, base};
use super::wrap::{truth, written_at};
use super::{ProxyView, Translator, fault, route_action};
use crate::model::Kind;
use crate::model::api_route::{ApiRoute, Parent, by_precedence, sort_by_precedence};
use crate::model::endpoint::target_port;
use crate::model::gateway::{Gateway, GatewayServer, IngressPort, IngressRoute};
use crate::model::names::{Hostname, ObjectName};
use crate::model::route::{
    Destination, HeaderOperations, HttpAction, HttpMatch, HttpRoute, SubsetRef, VirtualService,
};
use crate::model::service::TargetPort;
use crate::model::workload::{Labels, selects};

/// Where a router listens, and for what.
type Ports<'a> = BTreeMap<u16, Vec<(&'a Arc<Gateway>, &'a GatewayServer)>>;

/// The listeners of a router.
pub(super) fn listener_names(translator: &Translator<'_>) -> Vec<String> {
    let ports = ports(translator);
    ports.keys().map(|port| format!("0.0.0.0_{port}")).collect()
}

/// The route configurations of a router.
pub(super) fn route_names(translator: &Translator<'_>) -> Vec<String> {
    ports(translator)
        .keys()
        .map(|port| route_name(*port))
        .collect()
}

fn route_name(port: u16) -> String {
    format!("http.{port}")
}

/// A listener by its name.
pub(super) fn listener(translator: &Translator<'_>, name: &str) -> Option<Listener> {
    let port: u16 = name.strip_prefix("0.0.0.0_")?.parse().ok()?;
    let ports = ports(translator);
    let (_, server) = ports.get(&port)?.first()?;
    let (address, second) = any_addresses(translator.view);
    let mut listener = base(name, address, port, TrafficDirection::Outbound);
    also_on(&mut listener, second, port);
    listener.filter_chains.push(listener::FilterChain {
        filters: vec![at_the_edge(filter::http(
            translator,
            &format!("outbound_{name}"),
            Routes::Rds(route_name(port)),
            fault::filters(translator.view),
        ))],
        metadata: Some(written_at(&server.place)),
        ..Default::default()
    });
    Some(listener)
}

/// The connection manager of a proxy whose clients are strangers: their address is the connection's, whatever they say.
fn at_the_edge(mut filter: listener::Filter) -> listener::Filter {
    use listener::filter::ConfigType;
    if let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type
        && let Ok(mut manager) = messages::unpack::<HttpConnectionManager>(config)
    {
        manager.use_remote_address = truth(true);
        let packed: Any = pack(&manager);
        *config = packed;
    }
    filter
}

/// A route configuration by its name.
pub(super) fn configuration(translator: &Translator<'_>, name: &str) -> Option<RouteConfiguration> {
    let port: u16 = name.strip_prefix("http.")?.parse().ok()?;
    let ports = ports(translator);
    let servers = ports.get(&port)?;
    let ProxyView::Router { namespace, .. } = translator.view else {
        return None;
    };
    let mut hosts = Hosts {
        translator,
        namespace,
        found: BTreeMap::new(),
    };
    for (gateway, server) in servers {
        hosts.of_rules(gateway, server);
        hosts.of_api_routes(gateway, server);
        hosts.of_ingress(gateway);
    }
    Some(RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts.rendered(port),
        validate_clusters: truth(false),
        ignore_port_in_host_matching: true,
        ..Default::default()
    })
}

/// The ports of all gateways that the router's pod runs.
fn ports<'a>(translator: &Translator<'a>) -> Ports<'a> {
    let mut ports = Ports::new();
    let ProxyView::Router {
        namespace, labels, ..
    } = translator.view
    else {
        return ports;
    };
    for gateway in translator.snapshot.gateways_of(namespace, labels) {
        for server in &gateway.servers {
            let port = bound(translator, namespace, labels, server.port);
            ports.entry(port).or_default().push((gateway, server));
        }
    }
    ports
}

/// Where the pod listens for what clients send to a port of the service before it.
fn bound(translator: &Translator<'_>, namespace: &str, labels: &Labels, port: u16) -> u16 {
    let snapshot = translator.snapshot;
    let pod = translator.view.own_pod();
    let pod = pod.and_then(|pod| snapshot.workloads.get(&pod));
    let mut services = snapshot.services.in_namespace(namespace);
    let found = services.find_map(|service| {
        let declared = service
            .port(port)
            .filter(|_| selects(&service.selector, labels))?;
        match &declared.target {
            TargetPort::Number(number) => Some(*number),
            target @ TargetPort::Name(_) => target_port(target, pod?),
        }
    });
    found.unwrap_or(port)
}

/// The routes for each host.
struct Hosts<'a> {
    translator: &'a Translator<'a>,
    /// The router's.
    namespace: &'a str,
    /// With the port by which the host's clients came.
    found: BTreeMap<Hostname, Vec<(u16, HttpRoute)>>,
}

impl Hosts<'_> {
    fn add(&mut self, host: Hostname, port: u16, routes: impl IntoIterator<Item = HttpRoute>) {
        let known = self.found.entry(host).or_default();
        known.extend(routes.into_iter().map(|route| (port, route)));
    }

    /// Rules that name the gateway, the older ones first.
    fn of_rules(&mut self, gateway: &Gateway, server: &GatewayServer) {
        if gateway.kind != Kind::IstioGateway {
            return;
        }
        let rules = self.translator.snapshot.routed.values();
        let bound = |rule: &&Arc<VirtualService>| {
            rule.gateways.contains(&gateway.name) && rule.export_to.includes(self.namespace)
        };
        let mut rules: Vec<_> = rules.filter(bound).cloned().collect();
        rules.sort_by(|a, b| {
            let order = |rule: &VirtualService| {
                (
                    rule.created.is_none(),
                    rule.created.clone(),
                    rule.name.clone(),
                )
            };
            order(a).cmp(&order(b))
        });
        for rule in rules {
            let own = &*rule.name.namespace;
            for host in hosts_of(server, own, &rule.hosts) {
                self.add(host, server.port, rule.http.iter().cloned());
            }
        }
    }

    /// Routes of the Gateway API that are attached to the gateway, in their own order for each host.
    fn of_api_routes(&mut self, gateway: &Gateway, server: &GatewayServer) {
        if gateway.kind != Kind::Gateway {
            return;
        }
        let here = |parent: &Parent| parent.is_at(&gateway.name, server);
        let routes = self.translator.snapshot.api_routes.values();
        let routes = routes.filter(|route| route.is_http() && route.parents.iter().any(here));
        let mut of_host: BTreeMap<Hostname, Vec<&ApiRoute>> = BTreeMap::new();
        for route in routes {
            let any: Vec<Hostname> = Hostname::literal("*").into_iter().collect();
            let named = if route.hostnames.is_empty() {
                &any
            } else {
                &route.hostnames
            };
            for host in hosts_of(server, &route.name.namespace, named) {
                of_host.entry(host).or_default().push(route);
            }
        }
        for (host, routes) in of_host {
            self.add(host, server.port, by_precedence(routes));
        }
    }

    /// What an Ingress says itself.
    fn of_ingress(&mut self, gateway: &Gateway) {
        let mut of_host: BTreeMap<&Hostname, Vec<HttpRoute>> = BTreeMap::new();
        for route in &gateway.routes {
            let of_host = of_host.entry(&route.host).or_default();
            of_host.push(self.ingress_route(route));
        }
        for (host, mut routes) in of_host {
            sort_by_precedence(&mut routes);
            let port = gateway.servers.first().map_or(80, |server| server.port);
            self.add(host.clone(), port, routes);
        }
    }

    fn ingress_route(&self, route: &IngressRoute) -> HttpRoute {
        let snapshot = self.translator.snapshot;
        let port = match &route.port {
            IngressPort::Number(number) => Some(*number),
            IngressPort::Name(name) => snapshot.services.get(&route.service).and_then(|service| {
                let port = service.ports.iter().find(|port| port.name == *name)?;
                Some(port.port)
            }),
        };
        let ObjectName { namespace, name } = &route.service;
        let action = match port {
            Some(port) => HttpAction::Forward(vec![Destination {
                host: Hostname::service(name, namespace, &snapshot.mesh.domain),
                subset: SubsetRef::All,
                port: Some(port),
                weight: 1,
                headers: HeaderOperations::default(),
                reference: None,
            }]),
            None => HttpAction::Respond {
                status: 503,
                body: None,
            },
        };
        HttpRoute {
            at: 0,
            name: String::new(),
            matches: vec![route.condition.clone()],
            action,
            timeout: None,
            retries: None,
            rewrite: None,
            fault: None,
            headers: HeaderOperations::default(),
            no_backend: 503,
            place: Some(Arc::new(route.place.clone())),
        }
    }

    fn rendered(self, bound: u16) -> Vec<VirtualHost> {
        let hosts = self.found.into_iter();
        hosts
            .map(|(host, routes)| VirtualHost {
                name: format!("{host}:{bound}"),
                domains: vec![host.to_string()],
                routes: routes
                    .iter()
                    .flat_map(|(port, route)| {
                        let operation = format!("{host}:{port}/*");
                        let maker = route_action::Maker {
                            translator: self.translator,
                            namespace: self.namespace,
                            port: *port,
                            operation: &operation,
                        };
                        rendered(&maker, route, *port)
                    })
                    .collect(),
                include_request_attempt_count: true,
                ..Default::default()
            })
            .collect()
    }
}

/// One route for each of the conditions, of which any will do. Clients from outside are of no namespace.
fn rendered(maker: &route_action::Maker<'_>, route: &HttpRoute, port: u16) -> Vec<proto::Route> {
    if route.matches.is_empty() {
        return vec![maker.route(route, None)];
    }
    let holds = |condition: &&HttpMatch| {
        condition.port.is_none_or(|wanted| wanted == port) && condition.source_namespace.is_none()
    };
    let conditions = route.matches.iter().filter(holds);
    conditions
        .map(|condition| maker.route(route, Some(condition)))
        .collect()
}

/// What a server has of the hosts of a route of a namespace.
fn hosts_of(server: &GatewayServer, namespace: &str, named: &[Hostname]) -> BTreeSet<Hostname> {
    let pairs = named
        .iter()
        .flat_map(|host| server.hosts.iter().map(move |own| (own, host)));
    pairs
        .filter_map(|(own, host)| own.of_route(namespace, host))
        .collect()
}
