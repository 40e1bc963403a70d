//! LDS: a listener for each port of HTTP, each address and port of other services, each port of the client's pod,
//! and the one that captured connections come to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::clusters::bracketed;
use super::schema::{
    AccessLog, FilterConfig, HttpConnectionManager, HttpFilter, Listener, Listeners, NetworkFilter,
    Nothing, Rds, RouteConfig, TcpProxy, TcpRoute, TcpRouteConfig, Tracing,
};
use super::{Client, Renderer};
use crate::model::Kind;
use crate::model::mesh::AccessLogFormat;
use crate::model::service::{Service, ServiceKind, ServicePort};
use crate::snapshot::{MeshSnapshot, claim};

/// Where captured connections arrive, in both directions.
const CAPTURE_PORT: u16 = 15001;
/// The bootstrap's cluster of pilot.
pub(super) const RDS_CLUSTER: &str = "rds";
/// Time between two questions: R29's `--discoveryRefreshDelay`.
pub(super) const REFRESH_DELAY_MS: u64 = 1000;

/// Where a listener gets its routes from.
pub(super) enum Routes {
    /// RDS.
    Rds,
    /// The listener itself.
    Inline(RouteConfig),
}

/// What spans of a listener are.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    Ingress,
    Egress,
}

/// Listeners of services that do not speak HTTP.
struct Bytes {
    listeners: Vec<Listener>,
    /// The ports that one listener has for all addresses.
    shared: Vec<u16>,
}

/// The answer of LDS, and what it leaves out.
pub(super) fn document(snapshot: &MeshSnapshot, client: &Client) -> (Listeners, Vec<String>) {
    let mut renderer = Renderer::new(snapshot, client);
    let listeners = renderer.listeners();
    (listeners, renderer.left_out.into_iter().collect())
}

impl Renderer<'_> {
    /// All listeners. Of two with one address the first stays, as in the era: what comes into the pod, bytes, HTTP.
    pub fn listeners(&mut self) -> Listeners {
        let declared = self.inbound_listeners();
        let mut shared = self.tcp_listeners();
        let http = self.http_ports();
        let ports = http.iter().copied().chain(shared.shared.iter().copied());
        let undeclared = self.undeclared_listeners(&ports.collect());
        let mut all = declared;
        all.append(&mut shared.listeners);
        for port in http {
            all.push(self.http_listener(self.any(), port, Operation::Egress, Routes::Rds));
        }
        let mut by_address: BTreeMap<String, Listener> = BTreeMap::new();
        for listener in all {
            match by_address.entry(listener.address.clone()) {
                Entry::Vacant(free) => {
                    free.insert(listener);
                }
                Entry::Occupied(taken) => {
                    let (name, by) = (listener.name, &taken.get().name);
                    let what = format!("listener {name}: {by} has its address");
                    self.left_out.insert(what);
                }
            }
        }
        for listener in undeclared {
            let address = listener.address.clone();
            by_address.entry(address).or_insert(listener);
        }
        let capture = self.capture_listener();
        by_address.insert(capture.address.clone(), capture);
        Listeners {
            listeners: by_address.into_values().collect(),
        }
    }

    /// Where everything arrives that is captured, and stays what no other listener is for. What was meant for the pod
    /// itself must not be sent where it was meant to go: it would be captured again.
    fn capture_listener(&mut self) -> Listener {
        let mut filters = Vec::new();
        if let Some(elsewhere) = self.elsewhere() {
            let own: Vec<IpNet> = self.own_addresses().iter().map(|ip| (*ip).into()).collect();
            let refused = (!own.is_empty()).then(|| TcpRoute::to(self.nowhere(), &own));
            let rest = TcpRoute::to(elsewhere, &[]);
            filters.push(bytes(refused.into_iter().chain([rest]).collect()));
        }
        Listener {
            filters,
            bind_to_port: true,
            use_original_dst: true,
            ..Listener::at("virtual", self.any(), CAPTURE_PORT)
        }
    }

    /// All addresses of the family that the client's pod has first.
    fn any(&self) -> IpAddr {
        match self.own_addresses().first() {
            Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Some(IpAddr::V4(_)) | None => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    pub(super) fn http_listener(
        &self,
        address: IpAddr,
        port: u16,
        operation: Operation,
        routes: Routes,
    ) -> Listener {
        let mesh = &self.snapshot.mesh;
        let (route_config, rds) = match routes {
            Routes::Inline(routes) => (Some(routes), None),
            Routes::Rds => (None, Some(rds(port))),
        };
        let access_log = mesh.access_log.iter().map(|log| AccessLog {
            path: log.path.clone(),
            format: match &log.format {
                AccessLogFormat::Text(format) => Some(format.clone()),
                _ => None,
            },
        });
        let manager = HttpConnectionManager {
            codec_type: "auto",
            stat_prefix: "http",
            generate_request_id: true,
            tracing: mesh.tracing_percent.map(|_| Tracing {
                operation_name: match operation {
                    Operation::Ingress => "ingress",
                    Operation::Egress => "egress",
                },
            }),
            route_config,
            rds,
            filters: vec![filter(None, "cors"), filter(Some("decoder"), "router")],
            access_log: access_log.collect(),
        };
        Listener {
            filters: vec![NetworkFilter {
                kind: "read",
                name: "http_connection_manager",
                config: FilterConfig::Http(Box::new(manager)),
            }],
            ..Listener::at(&format!("http_{address}_{port}"), address, port)
        }
    }

    /// One for each address of a service and port. Services without an address share one for each port, in which
    /// networks come before what is for any address.
    fn tcp_listeners(&mut self) -> Bytes {
        let mut listeners = Vec::new();
        let mut shared: BTreeMap<u16, Vec<TcpRoute>> = BTreeMap::new();
        for (service, port) in self.snapshot.ports_for(&self.client.namespace) {
            let named_only = matches!(service.kind, ServiceKind::ExternalName(_));
            if port.protocol.is_http() || named_only {
                continue;
            }
            let networks = service.entry().map_or(&[][..], |entry| &entry.networks);
            let addresses = self.snapshot.addresses_of(service);
            let cluster = self.cluster_of_bytes(service, port);
            for address in &addresses {
                let route = TcpRoute::to(cluster.clone(), &[(*address).into()]);
                listeners.push(Listener::tcp(*address, port.port, vec![route]));
            }
            let routes = shared.entry(port.port);
            if !networks.is_empty() {
                routes.or_default().push(TcpRoute::to(cluster, networks));
            } else if addresses.is_empty() {
                routes.or_default().push(TcpRoute::to(cluster, &[]));
            }
        }
        let ports = shared.keys().copied().collect();
        for (port, mut routes) in shared {
            routes.sort_by_key(|route| route.destination_ip_list.is_empty());
            let last = routes
                .iter()
                .position(|route| route.destination_ip_list.is_empty());
            routes.truncate(last.map_or(routes.len(), |last| last + 1));
            listeners.push(Listener::tcp(self.any(), port, routes));
        }
        Bytes {
            listeners,
            shared: ports,
        }
    }

    /// Where bytes to a service go: by its first route of connections, if that has one destination.
    fn cluster_of_bytes(&mut self, service: &Service, port: &ServicePort) -> String {
        let (snapshot, namespace) = (self.snapshot, self.client.namespace.as_str());
        if service.kind == ServiceKind::Headless {
            return self.original_destination();
        }
        let attached = snapshot.api_connection_rules(Kind::TcpRoute, namespace, service, port);
        let rules = snapshot.virtual_services_for(namespace);
        let rule = claim(&rules, &service.hostname);
        let routes = rule.into_iter().flat_map(|rule| &rule.tcp);
        let mut routes = attached
            .into_iter()
            .chain(routes.filter(|route| route.fits(port.port, namespace)));
        let Some(route) = routes.next() else {
            return self.whole(service, port);
        };
        let mut weighted = route.destinations.iter().filter(|to| to.weight > 0);
        match (weighted.next(), weighted.next()) {
            (Some(only), None) => self.destination(only, port.port),
            (None, _) => self.nowhere(),
            (Some(_), Some(_)) => {
                let place = route.place.as_deref();
                let place = place.map_or_else(String::new, |place| {
                    format!("{} {}: ", place.object, place.field)
                });
                self.left_out.insert(format!(
                    "{place}weights of connections: all go to {}",
                    service.hostname
                ));
                self.whole(service, port)
            }
        }
    }
}

impl Listener {
    pub(super) fn at(name: &str, address: IpAddr, port: u16) -> Self {
        Self {
            address: format!("tcp://{}:{port}", bracketed(&address.to_string())),
            name: name.to_owned(),
            filters: Vec::new(),
            bind_to_port: false,
            use_original_dst: false,
        }
    }

    pub(super) fn tcp(address: IpAddr, port: u16, routes: Vec<TcpRoute>) -> Self {
        Self {
            filters: vec![bytes(routes)],
            ..Self::at(&format!("tcp_{address}_{port}"), address, port)
        }
    }
}

impl TcpRoute {
    pub(super) fn to(cluster: String, networks: &[IpNet]) -> Self {
        Self {
            cluster,
            destination_ip_list: networks.iter().map(ToString::to_string).collect(),
        }
    }
}

fn bytes(routes: Vec<TcpRoute>) -> NetworkFilter {
    NetworkFilter {
        kind: "read",
        name: "tcp_proxy",
        config: FilterConfig::Tcp(TcpProxy {
            stat_prefix: "tcp",
            route_config: TcpRouteConfig { routes },
        }),
    }
}

fn rds(port: u16) -> Rds {
    Rds {
        cluster: RDS_CLUSTER,
        route_config_name: port.to_string(),
        refresh_delay_ms: REFRESH_DELAY_MS,
    }
}

fn filter(kind: Option<&'static str>, name: &'static str) -> HttpFilter {
    HttpFilter {
        kind,
        name,
        config: Nothing {},
    }
}
