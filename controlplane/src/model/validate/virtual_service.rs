//! `VirtualService`.

use std::sync::Arc;

use super::fields::Judge;
use super::{Validated, fault, shadow};
use crate::kube::crd;
use crate::model::names::{Hostname, ObjectName};
use crate::model::place::Place;
use crate::model::problem::Finding;
use crate::model::route::{
    Destination, HeaderOperations, HttpAction, HttpMatch, HttpRoute, Redirect, TcpMatch, TcpRoute,
    VirtualService,
};
use crate::model::{Kind, Object};

/// The gateway name that stands for traffic between workloads.
const MESH: &str = "mesh";

/// Judges a `VirtualService`.
pub fn virtual_service(object: &crd::VirtualService, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    if spec.hosts.is_empty() {
        delegate_only(&mut judge, spec);
    }
    let hosts: Vec<_> = spec
        .hosts
        .iter()
        .enumerate()
        .map(|(index, host)| judge.host(host, &format!("spec.hosts[{index}]")))
        .collect();
    let named = &spec.gateways;
    let for_mesh = named.is_empty() || named.iter().any(|gateway| gateway == MESH);
    if for_mesh && hosts.iter().any(|host| host.as_str() == "*") {
        judge.error("spec.hosts", "the host \"*\" needs a gateway: between workloads it would take every service's traffic");
    }
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        judge.error("spec", "at least one of http, tls and tcp is needed");
    }
    let name = ObjectName::new(namespace, &object.metadata.name);
    let http = spec
        .http
        .iter()
        .enumerate()
        .filter_map(|(index, route)| http_route(&mut judge, &name, route, index))
        .collect::<Vec<_>>();
    let tcp = spec
        .tcp
        .iter()
        .enumerate()
        .filter_map(|(index, route)| tcp_route(&mut judge, &name, route, index))
        .collect::<Vec<_>>();
    let tls = spec
        .tls
        .iter()
        .enumerate()
        .filter_map(|(index, route)| tls_route(&mut judge, &name, route, index))
        .collect::<Vec<_>>();
    let unreached = [
        shadow::http(&http, "spec.http"),
        shadow::connections(&tcp, "spec.tcp"),
        shadow::connections(&tls, "spec.tls"),
    ];
    judge.findings.extend(unreached.into_iter().flatten());
    let model = VirtualService {
        name,
        created: object.metadata.creation_timestamp.clone(),
        hosts,
        for_mesh,
        gateways: gateways(namespace, spec),
        export_to: judge.export_to(&spec.export_to),
        http,
        tcp,
        tls,
    };
    Validated::judged(Object::VirtualService(Arc::new(model)), judge.findings)
}

/// The gateways that it names, by name or by namespace and name.
fn gateways(namespace: &str, spec: &crd::VirtualServiceSpec) -> Vec<ObjectName> {
    let named = spec.gateways.iter().filter(|gateway| *gateway != MESH);
    let resolved = named.map(|gateway| match gateway.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(namespace, gateway),
    });
    resolved.collect()
}

/// A `VirtualService` without hosts is one that others delegate to, which takes HTTP routes alone.
fn delegate_only(judge: &mut Judge<'_>, spec: &crd::VirtualServiceSpec) {
    let others = [
        ("spec.gateways", !spec.gateways.is_empty()),
        ("spec.tcp", !spec.tcp.is_empty()),
        ("spec.tls", !spec.tls.is_empty()),
    ];
    if spec.http.is_empty() {
        judge.error("spec.hosts", "at least one host is needed");
    }
    for (field, set) in others {
        if set {
            let message = "without hosts others can delegate HTTP routes to it, and nothing else";
            judge.error(field, message);
        }
    }
}

fn http_route(
    judge: &mut Judge<'_>,
    object: &ObjectName,
    route: &crd::HttpRoute,
    at: usize,
) -> Option<HttpRoute> {
    let field = &format!("spec.http[{at}]");
    judge.not_executed(route.mirror.as_ref(), format!("{field}.mirror"));
    judge.not_executed(route.mirrors.as_ref(), format!("{field}.mirrors"));
    judge.not_executed(
        route.mirror_percent.as_ref(),
        format!("{field}.mirrorPercent"),
    );
    judge.not_executed(
        route.mirror_percentage.as_ref(),
        format!("{field}.mirrorPercentage"),
    );
    judge.not_executed(route.cors_policy.as_ref(), format!("{field}.corsPolicy"));
    let action = http_action(judge, route, field);
    let rewrite = route
        .rewrite
        .as_ref()
        .map(|rewrite| judge.rewrite(rewrite, &format!("{field}.rewrite")));
    let timeout = judge.duration(route.timeout.as_deref(), &format!("{field}.timeout"));
    let retries = route
        .retries
        .as_ref()
        .map(|retries| judge.retries(retries, &format!("{field}.retries")));
    let fault = route.fault.as_ref();
    let fault =
        fault.and_then(|fault| fault::fault(judge, fault, route, &format!("{field}.fault")));
    let headers = judge.headers(route.headers.as_ref(), &format!("{field}.headers"));
    let mut matches = Vec::new();
    for (index, condition) in route.matches.iter().enumerate() {
        matches.extend(http_match(
            judge,
            condition,
            &format!("{field}.match[{index}]"),
        ));
    }
    // Conditions that cannot be executed are left out; a route with none left must not match all.
    if matches.is_empty() && !route.matches.is_empty() {
        return None;
    }
    let name = route.name.clone();
    Some(HttpRoute {
        at,
        name,
        matches,
        action: action?,
        timeout,
        retries,
        rewrite,
        fault,
        headers,
        no_backend: 503,
        place: Place::shared(Kind::VirtualService, object, field),
    })
}

fn http_action(judge: &mut Judge<'_>, route: &crd::HttpRoute, field: &str) -> Option<HttpAction> {
    let forms = [
        !route.route.is_empty(),
        route.redirect.is_some(),
        route.direct_response.is_some(),
        route.delegate.is_some(),
    ];
    if forms.into_iter().filter(|form| *form).count() != 1 {
        judge.error(
            field,
            "exactly one of route, redirect, directResponse and delegate is needed",
        );
        return None;
    }
    if let Some(redirect) = &route.redirect {
        if route.rewrite.is_some() {
            judge.error(format!("{field}.rewrite"), "a redirect cannot be rewritten");
        }
        return Some(HttpAction::Redirect(http_redirect(
            judge,
            redirect,
            &format!("{field}.redirect"),
        )));
    }
    if let Some(response) = &route.direct_response {
        return direct_response(judge, response, &format!("{field}.directResponse"));
    }
    if let Some(delegate) = &route.delegate {
        if delegate.name.is_empty() {
            judge.error(format!("{field}.delegate.name"), "a name is needed");
        }
        let namespace = delegate
            .namespace
            .as_deref()
            .filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or(judge.namespace);
        let name = ObjectName::new(namespace, &delegate.name);
        return Some(HttpAction::Delegate(name));
    }
    let weights: Vec<_> = route
        .route
        .iter()
        .map(|destination| destination.weight)
        .collect();
    let weights = judge.weights(&weights, &format!("{field}.route"));
    let mut destinations = Vec::new();
    for (index, (destination, weight)) in route.route.iter().zip(weights).enumerate() {
        let field = format!("{field}.route[{index}]");
        let headers = judge.headers(destination.headers.as_ref(), &format!("{field}.headers"));
        destinations.push(judge.destination(
            &destination.destination,
            weight,
            headers,
            &format!("{field}.destination"),
        ));
    }
    Some(HttpAction::Forward(destinations))
}

fn http_redirect(judge: &mut Judge<'_>, redirect: &crd::Redirect, field: &str) -> Redirect {
    let code = redirect.redirect_code.unwrap_or(301);
    judge.redirect(code, redirect.scheme.as_deref(), "redirectCode", field);
    judge.not_executed(redirect.derive_port.as_ref(), format!("{field}.derivePort"));
    Redirect {
        uri: redirect.uri.clone(),
        prefix: None,
        authority: redirect.authority.clone(),
        scheme: redirect.scheme.clone(),
        port: redirect.port,
        code,
    }
}

/// Envoy refuses a larger body of a direct response.
const MAX_DIRECT_BODY: usize = 4096;

fn direct_response(
    judge: &mut Judge<'_>,
    response: &crd::DirectResponse,
    field: &str,
) -> Option<HttpAction> {
    let status = response.status;
    if !(200..600).contains(&status) {
        judge.error(
            format!("{field}.status"),
            format!("{status} is not a status code from 200 to 599"),
        );
        return None;
    }
    let mut body = None;
    if let Some(given) = &response.body {
        judge.not_executed(given.bytes.as_ref(), format!("{field}.body.bytes"));
        body = given.string.as_ref().map(|text| text.clone().into_bytes());
    }
    if body
        .as_ref()
        .is_some_and(|body| body.len() > MAX_DIRECT_BODY)
    {
        judge.error(
            format!("{field}.body"),
            format!("the body is larger than {MAX_DIRECT_BODY} bytes"),
        );
    }
    Some(HttpAction::Respond { status, body })
}

fn http_match(judge: &mut Judge<'_>, condition: &crd::HttpMatch, field: &str) -> Option<HttpMatch> {
    let gateway_only =
        !condition.gateways.is_empty() && !condition.gateways.iter().any(|name| name == MESH);
    let result = HttpMatch {
        name: condition.name.clone(),
        uri: judge.required_match(condition.uri.as_ref(), &format!("{field}.uri")),
        ignore_uri_case: condition.ignore_uri_case,
        whole_segments: false,
        scheme: judge.required_match(condition.scheme.as_ref(), &format!("{field}.scheme")),
        method: judge.required_match(condition.method.as_ref(), &format!("{field}.method")),
        authority: judge
            .required_match(condition.authority.as_ref(), &format!("{field}.authority")),
        headers: judge.header_matches(&condition.headers, &format!("{field}.headers")),
        without_headers: judge.header_matches(
            &condition.without_headers,
            &format!("{field}.withoutHeaders"),
        ),
        query_params: judge.value_matches(&condition.query_params, &format!("{field}.queryParams")),
        port: condition.port,
        source_namespace: condition.source_namespace.clone(),
    };
    if condition.source_labels.is_some() {
        let message =
            "no proxy of this release tells pods of a namespace apart, so this match never holds";
        judge.findings.push(Finding::not_executed(
            format!("{field}.sourceLabels"),
            message,
        ));
        return None;
    }
    judge.not_executed(
        condition.stat_prefix.as_ref(),
        format!("{field}.statPrefix"),
    );
    (!gateway_only).then_some(result)
}

fn tcp_route(
    judge: &mut Judge<'_>,
    object: &ObjectName,
    route: &crd::TcpRoute,
    at: usize,
) -> Option<TcpRoute> {
    let field = &format!("spec.tcp[{at}]");
    let destinations = connection_destinations(judge, &route.route, field);
    let mut matches = Vec::new();
    for (index, condition) in route.matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        let narrowing = [
            ("destinationSubnets", &condition.destination_subnets),
            ("sourceLabels", &condition.source_labels),
            ("sourceSubnet", &condition.source_subnet),
        ];
        if executable(judge, &narrowing, &condition.gateways, &field) {
            matches.push(TcpMatch {
                sni_hosts: Vec::new(),
                port: condition.port,
                source_namespace: condition.source_namespace.clone(),
            });
        }
    }
    // A route whose conditions never hold must not match all.
    let dead = matches.is_empty() && !route.matches.is_empty();
    (!dead).then_some(TcpRoute {
        at,
        matches,
        destinations,
        place: Place::shared(Kind::VirtualService, object, field),
    })
}

fn tls_route(
    judge: &mut Judge<'_>,
    object: &ObjectName,
    route: &crd::TlsRoute,
    at: usize,
) -> Option<TcpRoute> {
    let field = &format!("spec.tls[{at}]");
    let destinations = connection_destinations(judge, &route.route, field);
    if route.matches.is_empty() {
        judge.error(format!("{field}.match"), "at least one match is needed");
    }
    let mut matches = Vec::new();
    for (index, condition) in route.matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        if condition.sni_hosts.is_empty() {
            judge.error(format!("{field}.sniHosts"), "at least one host is needed");
        }
        let mut sni_hosts = Vec::new();
        for (at, host) in condition.sni_hosts.iter().enumerate() {
            match Hostname::literal(host) {
                Ok(host) if host.as_str() != "*" => sni_hosts.push(host.to_string()),
                Ok(_) => judge.error(
                    format!("{field}.sniHosts[{at}]"),
                    "\"*\" alone is no server name",
                ),
                Err(error) => judge.error(format!("{field}.sniHosts[{at}]"), error.to_string()),
            }
        }
        let narrowing = [
            ("destinationSubnets", &condition.destination_subnets),
            ("sourceLabels", &condition.source_labels),
        ];
        if executable(judge, &narrowing, &condition.gateways, &field) {
            matches.push(TcpMatch {
                sni_hosts,
                port: condition.port,
                source_namespace: condition.source_namespace.clone(),
            });
        }
    }
    (!matches.is_empty()).then_some(TcpRoute {
        at,
        matches,
        destinations,
        place: Place::shared(Kind::VirtualService, object, field),
    })
}

fn connection_destinations(
    judge: &mut Judge<'_>,
    routes: &[crd::TcpDestination],
    field: &str,
) -> Vec<Destination> {
    if routes.is_empty() {
        judge.error(
            format!("{field}.route"),
            "at least one destination is needed",
        );
    }
    let weights: Vec<_> = routes
        .iter()
        .map(|destination| destination.weight)
        .collect();
    let weights = judge.weights(&weights, &format!("{field}.route"));
    let mut destinations: Vec<Destination> = Vec::new();
    for (index, (destination, weight)) in routes.iter().zip(weights).enumerate() {
        let field = format!("{field}.route[{index}].destination");
        destinations.push(judge.destination(
            &destination.destination,
            weight,
            HeaderOperations::default(),
            &field,
        ));
    }
    destinations
}

/// Whether a condition can hold between workloads; what makes it impossible is named.
fn executable(
    judge: &mut Judge<'_>,
    narrowing: &[(&str, &Option<crd::Unexecuted>)],
    gateways: &[String],
    field: &str,
) -> bool {
    let mut executable = gateways.is_empty() || gateways.iter().any(|name| name == MESH);
    for (name, value) in narrowing {
        if value.is_some() {
            let message = "no proxy of this release executes it, so this match never holds";
            judge
                .findings
                .push(Finding::not_executed(format!("{field}.{name}"), message));
            executable = false;
        }
    }
    executable
}
