//! `TCPRoute` and `TLSRoute`.

use std::sync::Arc;

use super::{Common, backend};
use crate::kube::crd;
use crate::model::names::Hostname;
use crate::model::place::Place;
use crate::model::route::{HeaderOperations, TcpMatch, TcpRoute};
use crate::model::validate::Validated;
use crate::model::validate::fields::Judge;
use crate::model::{Kind, Object};

/// Judges a `TCPRoute`.
pub fn tcp_route(
    object: &crd::ApiObject<crd::ConnectionRouteSpec>,
    domain: &str,
) -> Validated<Object> {
    connection_route(object, domain, Kind::TcpRoute)
}

/// Judges a `TLSRoute`.
pub fn tls_route(
    object: &crd::ApiObject<crd::ConnectionRouteSpec>,
    domain: &str,
) -> Validated<Object> {
    connection_route(object, domain, Kind::TlsRoute)
}

fn connection_route(
    object: &crd::ApiObject<crd::ConnectionRouteSpec>,
    domain: &str,
    kind: Kind,
) -> Validated<Object> {
    let mut judge = Judge::new(object.metadata.namespace(), domain);
    let spec = &object.spec;
    let common = Common {
        kind,
        metadata: &object.metadata,
        parents: &spec.parent_refs,
        default_gateways: spec.use_default_gateways.as_ref(),
        hostnames: &[],
    };
    let mut route = common.route(&mut judge);
    let matches = if kind == Kind::TlsRoute {
        vec![server_names(&mut judge, &spec.hostnames)]
    } else {
        Vec::new()
    };
    let [rule] = &spec.rules[..] else {
        let message = format!("one rule is needed, not {}", spec.rules.len());
        judge.error("spec.rules", message);
        return Validated::judged(Object::ApiRoute(Arc::new(route)), judge.findings);
    };
    if rule.backend_refs.is_empty() {
        judge.error(
            "spec.rules[0].backendRefs",
            "at least one backend is needed",
        );
    }
    let mut destinations = Vec::new();
    for (index, item) in rule.backend_refs.iter().enumerate() {
        let field = format!("spec.rules[0].backendRefs[{index}]");
        if !item.filters.is_empty() {
            judge.error(format!("{field}.filters"), "connections have no filters");
        }
        destinations.extend(backend(
            &mut judge,
            kind,
            item,
            HeaderOperations::default(),
            &field,
        ));
    }
    route.connections = Some(TcpRoute {
        at: 0,
        matches,
        destinations,
        place: Place::shared(route.kind, &route.name, "spec.rules[0]"),
    });
    Validated::judged(Object::ApiRoute(Arc::new(route)), judge.findings)
}

fn server_names(judge: &mut Judge<'_>, hostnames: &[String]) -> TcpMatch {
    if hostnames.is_empty() {
        judge.error("spec.hostnames", "at least one host is needed");
    }
    let mut sni_hosts = Vec::new();
    for (index, host) in hostnames.iter().enumerate() {
        match Hostname::literal(host) {
            Ok(host) if host.as_str() != "*" => sni_hosts.push(host.to_string()),
            Ok(_) => judge.error(
                format!("spec.hostnames[{index}]"),
                "\"*\" alone is no server name",
            ),
            Err(error) => judge.error(format!("spec.hostnames[{index}]"), error.to_string()),
        }
    }
    TcpMatch {
        sni_hosts,
        ..TcpMatch::default()
    }
}
