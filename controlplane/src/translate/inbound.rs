//! LDS for the way into a pod: a chain per port that a service or a container declares, and the rest
//! passed on to the port the client asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as proto;
use millrace_xds::proto::envoy::config::route::v3 as route;
use millrace_xds::proto::envoy::r#type::v3::Int32Range;
use millrace_xds::proto::{Listener, RouteConfiguration};

use super::filter::{self, Routes};
use super::listener::{
    INBOUND_PORT, also_on, any_addresses, base, http_inspector, original_dst, plain_http,
};
use super::wrap::{duration, istio_metadata, object, text, truth, uint};
use super::{ProxyView, Translator, endpoint};
use crate::model::endpoint::target_port;
use crate::model::names::{ClusterName, ObjectName};
use crate::model::service::Protocol;
use crate::model::sidecar::IngressListener;
use crate::model::workload::Workload;

pub(super) const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Before `<namespace>/<pod>` in the names of a node's inbound listeners.
pub(super) const POD_PREFIX: &str = "pod/";

/// What is known of a port of a pod.
struct Port {
    number: u16,
    protocol: Protocol,
    /// The span's name: the service's host and port, or the pod's.
    operation: String,
}

/// A node's inbound listener for a pod.
pub(crate) fn name_of(pod: &ObjectName) -> String {
    format!("{POD_PREFIX}{pod}")
}

/// Whether a name is that of a node's inbound listener for a pod.
pub(crate) fn is_name(name: &str) -> bool {
    name.starts_with(POD_PREFIX)
}

/// Whether a pod runs on a node and can be captured there.
pub(super) fn is_on_node(pod: &Workload, node: &str) -> bool {
    pod.node.as_deref() == Some(node) && !pod.host_network && !pod.addresses.is_empty()
}

/// An inbound listener; none when the name is another kind of listener's, or no such pod is known.
pub(super) fn listener(translator: &Translator<'_>, name: &str) -> Option<Listener> {
    match translator.view {
        ProxyView::Node { .. } => {
            let (namespace, pod) = name.strip_prefix(POD_PREFIX)?.split_once('/')?;
            let workload = translator
                .snapshot
                .workloads
                .get(&ObjectName::new(namespace, pod))?;
            Some(inbound(translator, name, Some(workload)))
        }
        ProxyView::Sidecar { .. } => (name == VIRTUAL_INBOUND)
            .then(|| inbound(translator, name, own_workload(translator).as_deref())),
        ProxyView::Router { .. } | ProxyView::Grpc { .. } => None,
    }
}

/// The declared ports of a sidecar's pod, or of all pods of a node.
pub(super) fn own_ports(translator: &Translator<'_>) -> BTreeSet<u16> {
    let workloads: Vec<Arc<Workload>> = match translator.view {
        ProxyView::Sidecar { .. } => own_workload(translator).into_iter().collect(),
        ProxyView::Router { .. } | ProxyView::Grpc { .. } => Vec::new(),
        ProxyView::Node { name, .. } => {
            let all = translator.snapshot.workloads.values();
            all.filter(|pod| is_on_node(pod, name)).cloned().collect()
        }
    };
    let ports = workloads
        .iter()
        .flat_map(|workload| ports(translator, workload));
    ports.map(|port| port.number).collect()
}

/// A sidecar's pod, by its name or, where that is unknown, by its address.
fn own_workload(translator: &Translator<'_>) -> Option<Arc<Workload>> {
    let ProxyView::Sidecar { addresses, .. } = translator.view else {
        return None;
    };
    let named = translator
        .view
        .own_pod()
        .and_then(|name| translator.snapshot.workloads.get(&name).cloned());
    named.or_else(|| {
        let owner = addresses
            .iter()
            .find_map(|address| translator.snapshot.addresses.get(address))?;
        translator.snapshot.workloads.get(owner).cloned()
    })
}

/// The ports that something declares: services first, since they know the protocol best.
fn ports(translator: &Translator<'_>, workload: &Workload) -> Vec<Port> {
    let sidecar = translator.snapshot.sidecar_for(workload);
    if let Some(ingress) = sidecar.and_then(|sidecar| sidecar.ingress.as_ref()) {
        let port = |listener: &IngressListener| Port {
            number: listener.port,
            protocol: listener.protocol,
            operation: format!(
                "{}.{}:{}/*",
                workload.owner, workload.name.namespace, listener.port
            ),
        };
        return ingress.iter().map(port).collect();
    }
    let mut result: BTreeMap<u16, Port> = BTreeMap::new();
    for service in translator.snapshot.services_of(workload) {
        for port in &service.ports {
            let Some(number) = target_port(&port.target, workload) else {
                continue;
            };
            let operation = format!("{}:{}/*", service.hostname, port.port);
            result.entry(number).or_insert(Port {
                number,
                protocol: port.protocol,
                operation,
            });
        }
    }
    for port in &workload.ports {
        let operation = format!(
            "{}.{}:{}/*",
            workload.owner, workload.name.namespace, port.port
        );
        result.entry(port.port).or_insert(Port {
            number: port.port,
            protocol: port.protocol,
            operation,
        });
    }
    // Ports of the mesh itself are never the application's.
    result.retain(|number, _| ![15001, 15006, 15008, 15053].contains(number));
    result.into_values().collect()
}

fn inbound(translator: &Translator<'_>, name: &str, workload: Option<&Workload>) -> Listener {
    let (address, second) = any_addresses(translator.view);
    let mut listener = base(name, address, INBOUND_PORT, core::TrafficDirection::Inbound);
    also_on(&mut listener, second, INBOUND_PORT);
    listener.listener_filters = vec![original_dst()];
    let ports = workload
        .map(|workload| ports(translator, workload))
        .unwrap_or_default();
    if let Some(workload) = workload {
        listener.metadata = Some(istio_metadata(object([(
            "workload",
            text(endpoint::describe(workload)),
        )])));
    }
    let undeclared: Vec<u16> = ports
        .iter()
        .filter(|port| port.protocol == Protocol::Auto)
        .map(|port| port.number)
        .collect();
    if !undeclared.is_empty() {
        let mut inspector = http_inspector();
        inspector.filter_disabled = Some(except_ports(&undeclared));
        listener.listener_filters.push(inspector);
        listener.listener_filters_timeout = duration(translator.snapshot.mesh.detection_timeout);
        listener.continue_on_listener_filters_timeout = true;
    }
    listener.filter_chains.push(chain(
        "virtualInbound-blackhole",
        on_port(INBOUND_PORT),
        tcp_to(translator, &ClusterName::BlackHole),
    ));
    for port in &ports {
        port_chains(translator, port, &mut listener.filter_chains);
    }
    let rest = tcp_to(translator, &ClusterName::InboundPassthrough);
    listener.default_filter_chain = Some(proto::FilterChain {
        name: "virtualInbound".to_owned(),
        filters: vec![rest],
        ..Default::default()
    });
    listener
}

fn port_chains(translator: &Translator<'_>, port: &Port, chains: &mut Vec<proto::FilterChain>) {
    let name = format!("0.0.0.0_{}", port.number);
    let http = || {
        let routes = Routes::Inline(Box::new(routes(port)));
        filter::http(translator, &format!("inbound_{name}"), routes, Vec::new())
    };
    let tcp = || tcp_to(translator, &ClusterName::Inbound { port: port.number });
    match port.protocol {
        Protocol::Auto => {
            let sniffed = proto::FilterChainMatch {
                destination_port: uint(u32::from(port.number)),
                ..plain_http()
            };
            chains.push(chain(&name, sniffed, http()));
            chains.push(chain(&format!("{name}_tcp"), on_port(port.number), tcp()));
        }
        protocol if protocol.is_http() => chains.push(chain(&name, on_port(port.number), http())),
        _ => chains.push(chain(&name, on_port(port.number), tcp())),
    }
}

fn chain(
    name: &str,
    matches: proto::FilterChainMatch,
    filter: proto::Filter,
) -> proto::FilterChain {
    proto::FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(matches),
        filters: vec![filter],
        ..Default::default()
    }
}

fn on_port(port: u16) -> proto::FilterChainMatch {
    proto::FilterChainMatch {
        destination_port: uint(u32::from(port)),
        ..Default::default()
    }
}

fn tcp_to(translator: &Translator<'_>, cluster: &ClusterName) -> proto::Filter {
    let cluster = cluster.to_string();
    filter::tcp(translator, &cluster, &[(cluster.clone(), 100)], None)
}

/// Everything but these ports: where a server may speak first, nobody waits for the client's bytes.
pub(super) fn except_ports(ports: &[u16]) -> proto::ListenerFilterChainMatchPredicate {
    use proto::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let predicate = |rule| proto::ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let mut ranges: Vec<_> = ports
        .iter()
        .map(|port| {
            let start = i32::from(*port);
            predicate(Rule::DestinationPortRange(Int32Range {
                start,
                end: start + 1,
            }))
        })
        .collect();
    let any = match ranges.len() {
        1 => ranges.remove(0),
        _ => predicate(Rule::OrMatch(MatchSet { rules: ranges })),
    };
    predicate(Rule::NotMatch(Box::new(any)))
}

/// Everything to the pod's own application.
fn routes(port: &Port) -> RouteConfiguration {
    let cluster = ClusterName::Inbound { port: port.number }.to_string();
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
            cluster.clone(),
        )),
        timeout: duration(std::time::Duration::ZERO),
        ..Default::default()
    };
    RouteConfiguration {
        name: cluster,
        validate_clusters: truth(false),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{}", port.number),
            domains: vec!["*".to_owned()],
            routes: vec![route::Route {
                name: "default".to_owned(),
                r#match: Some(super::route_match::everything()),
                decorator: Some(route::Decorator {
                    operation: port.operation.clone(),
                    ..Default::default()
                }),
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
