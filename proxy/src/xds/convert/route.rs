//! Route configurations, virtual hosts, routes and their actions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use millrace_xds::proto::envoy::config::core::v3::RoutingPriority;
use millrace_xds::proto::envoy::config::route::v3 as pb;
use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use pb::route::Action as PbAction;
use pb::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier as PbCluster};
use pb::route_action::{HostRewriteSpecifier, UpgradeConfig};
use pb::virtual_host::TlsRequirementType;
use pb::weighted_cluster::ClusterWeight;

use super::header::{self, header_name};
use super::matcher;
use super::metadata;
use super::value::{bool_or, data_source, duration, enumeration, optional_duration, u32_or};
use super::{Cx, Invalid};
use crate::resource::header::HeaderMutation;
use crate::resource::route::{HostRewrite, PathRedirect, PathRewrite, RedirectAction};
use crate::resource::{
    Action, ClusterSpecifier, Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster,
    WeightedClusters,
};

mod retry;

/// Envoy's default of `max_direct_response_body_size_bytes`.
const MAX_DIRECT_BODY: u32 = 4096;
/// Envoy's default of `RouteAction.timeout`.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// Converts a route configuration.
pub(super) fn convert(
    cx: &mut Cx,
    m: &pb::RouteConfiguration,
) -> Result<RouteConfiguration, Invalid> {
    if m.vhds.is_some() {
        return Err(cx.bad("vhds", "virtual host discovery is not supported"));
    }
    let max_body = u32_or(
        m.max_direct_response_body_size_bytes.as_ref(),
        MAX_DIRECT_BODY,
    );
    let virtual_hosts = cx.each("virtual_hosts", &m.virtual_hosts, |cx, host| {
        virtual_host(cx, host, max_body).map(Arc::new)
    })?;
    unique(cx, &virtual_hosts)?;
    Ok(RouteConfiguration {
        name: m.name.as_str().into(),
        virtual_hosts,
        ignore_port_in_host_matching: m.ignore_port_in_host_matching,
        request_headers: header::request(
            cx,
            &m.request_headers_to_add,
            &m.request_headers_to_remove,
        )?,
        response_headers: header::response(
            cx,
            &m.response_headers_to_add,
            &m.response_headers_to_remove,
        )?,
    })
}

/// Neither a name nor a domain may occur twice.
fn unique(cx: &mut Cx, hosts: &[Arc<VirtualHost>]) -> Result<(), Invalid> {
    let mut names = HashMap::new();
    let mut domains = HashMap::new();
    for (i, host) in hosts.iter().enumerate() {
        if let Some(first) = names.insert(host.name.as_str(), i) {
            let reason = format!("[{i}].name: {:?} is that of [{first}] too", host.name);
            return Err(cx.bad("virtual_hosts", reason));
        }
        for domain in &host.domains {
            if let Some(first) = domains.insert(domain.as_str(), i) {
                let reason = format!("[{i}].domains: {domain:?} occurs in [{first}] already");
                return Err(cx.bad("virtual_hosts", reason));
            }
        }
    }
    Ok(())
}

fn virtual_host(cx: &mut Cx, m: &pb::VirtualHost, max_body: u32) -> Result<VirtualHost, Invalid> {
    if m.name.is_empty() {
        return Err(cx.bad("name", "is required"));
    }
    if m.domains.is_empty() {
        return Err(cx.bad("domains", "at least one is required"));
    }
    let require_tls: TlsRequirementType = enumeration(cx, "require_tls", m.require_tls)?;
    if require_tls != TlsRequirementType::None {
        return Err(cx.bad("require_tls", "TLS requirements are not supported"));
    }
    if m.matcher.is_some() {
        return Err(cx.bad("matcher", "matching trees are not supported"));
    }
    let domains = cx.each("domains", &m.domains, |cx, d| domain(cx, d))?;
    let routes = cx.each("routes", &m.routes, |cx, r| route(cx, r, max_body))?;
    let retry_policy = match &m.retry_policy {
        Some(policy) => Some(cx.at("retry_policy", |cx| retry::convert(cx, policy))?),
        None => None,
    };
    Ok(VirtualHost {
        name: m.name.clone(),
        domains,
        routes: routes.into_iter().flatten().map(Arc::new).collect(),
        request_headers: header::request(
            cx,
            &m.request_headers_to_add,
            &m.request_headers_to_remove,
        )?,
        response_headers: header::response(
            cx,
            &m.response_headers_to_add,
            &m.response_headers_to_remove,
        )?,
        retry_policy,
        include_request_attempt_count: m.include_request_attempt_count,
        origin: metadata::origin(m.metadata.as_ref()),
    })
}

/// A domain, folded to lower case; at most one `*`, at its beginning or end.
fn domain(cx: &mut Cx, domain: &str) -> Result<String, Invalid> {
    if domain.is_empty() {
        return Err(cx.invalid("an empty domain"));
    }
    if domain.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(cx.invalid(format_args!("{domain:?} is not a domain")));
    }
    let inner = domain.strip_prefix('*').unwrap_or(domain);
    let inner = if inner.len() == domain.len() {
        inner.strip_suffix('*').unwrap_or(inner)
    } else {
        inner
    };
    if inner.contains('*') {
        let reason = format!("{domain:?}: one '*', at the beginning or the end, is allowed");
        return Err(cx.invalid(reason));
    }
    Ok(domain.to_ascii_lowercase())
}

/// A route; `None` where no request can ever match it.
fn route(cx: &mut Cx, m: &pb::Route, max_body: u32) -> Result<Option<Route>, Invalid> {
    let Some(matches) = &m.r#match else {
        return Err(cx.bad("match", "is required"));
    };
    let matches = cx.at("match", |cx| matcher::route_match(cx, matches))?;
    let action = action(cx, m, max_body)?;
    let request_headers =
        header::request(cx, &m.request_headers_to_add, &m.request_headers_to_remove)?;
    let response_headers = header::response(
        cx,
        &m.response_headers_to_add,
        &m.response_headers_to_remove,
    )?;
    Ok(matches.map(|matches| Route {
        name: m.name.clone(),
        matches,
        action,
        request_headers,
        response_headers,
        operation: m
            .decorator
            .as_ref()
            .map(|d| d.operation.clone())
            .filter(|o| !o.is_empty()),
        origin: metadata::origin(m.metadata.as_ref()),
    }))
}

fn action(cx: &mut Cx, m: &pb::Route, max_body: u32) -> Result<Action, Invalid> {
    match &m.action {
        Some(PbAction::Route(action)) => cx.at("route", |cx| {
            forward(cx, action).map(|a| Action::Forward(Arc::new(a)))
        }),
        Some(PbAction::Redirect(action)) => cx.at("redirect", |cx| redirect(cx, action)),
        Some(PbAction::DirectResponse(action)) => {
            cx.at("direct_response", |cx| direct(cx, action, max_body))
        }
        Some(PbAction::FilterAction(_)) => {
            Err(cx.bad("filter_action", "filter actions are not supported"))
        }
        Some(PbAction::NonForwardingAction(_)) => Err(cx.bad(
            "non_forwarding_action",
            "has no meaning in a proxy, which forwards",
        )),
        None => Err(cx.invalid("an action is required")),
    }
}

fn forward(cx: &mut Cx, m: &pb::RouteAction) -> Result<RouteAction, Invalid> {
    let priority: RoutingPriority = enumeration(cx, "priority", m.priority)?;
    if priority == RoutingPriority::High {
        cx.note("priority", "requests count against the default priority");
    }
    note_stream_duration(cx, m)?;
    Ok(RouteAction {
        cluster: cluster_specifier(cx, m)?,
        cluster_not_found: match enumeration(
            cx,
            "cluster_not_found_response_code",
            m.cluster_not_found_response_code,
        )? {
            ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
            ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        },
        timeout: duration(cx, "timeout", m.timeout.as_ref(), ROUTE_TIMEOUT)?,
        idle_timeout: optional_duration(cx, "idle_timeout", m.idle_timeout.as_ref())?,
        retry_policy: match &m.retry_policy {
            Some(policy) => Some(cx.at("retry_policy", |cx| retry::convert(cx, policy))?),
            None => None,
        },
        path_rewrite: path_rewrite(cx, m)?,
        host_rewrite: host_rewrite(cx, m)?,
        upgrades: cx.each("upgrade_configs", &m.upgrade_configs, upgrade)?,
    })
}

/// `max_stream_duration` of zero changes nothing; anything else is not executed.
fn note_stream_duration(cx: &mut Cx, m: &pb::RouteAction) -> Result<(), Invalid> {
    let Some(limit) = &m.max_stream_duration else {
        return Ok(());
    };
    cx.at("max_stream_duration", |cx| {
        let fields = [
            ("max_stream_duration", &limit.max_stream_duration),
            ("grpc_timeout_header_max", &limit.grpc_timeout_header_max),
            (
                "grpc_timeout_header_offset",
                &limit.grpc_timeout_header_offset,
            ),
        ];
        for (field, value) in fields {
            if optional_duration(cx, field, value.as_ref())?.is_some_and(|d| !d.is_zero()) {
                cx.note(field, "the route's timeout holds alone");
            }
        }
        Ok(())
    })
}

fn cluster_specifier(cx: &mut Cx, m: &pb::RouteAction) -> Result<ClusterSpecifier, Invalid> {
    match &m.cluster_specifier {
        Some(PbCluster::Cluster(name)) if name.is_empty() => Err(cx.bad("cluster", "is empty")),
        Some(PbCluster::Cluster(name)) => Ok(ClusterSpecifier::Cluster(name.as_str().into())),
        Some(PbCluster::ClusterHeader(name)) => cx.at("cluster_header", |cx| {
            header_name(cx, name).map(ClusterSpecifier::Header)
        }),
        Some(PbCluster::WeightedClusters(weighted)) => {
            cx.at("weighted_clusters", |cx| weighted_clusters(cx, weighted))
        }
        Some(PbCluster::ClusterSpecifierPlugin(_)) => {
            Err(cx.bad("cluster_specifier_plugin", "plugins are not supported"))
        }
        Some(PbCluster::InlineClusterSpecifierPlugin(_)) => Err(cx.bad(
            "inline_cluster_specifier_plugin",
            "plugins are not supported",
        )),
        None => Err(cx.invalid("a cluster specifier is required")),
    }
}

fn weighted_clusters(cx: &mut Cx, m: &pb::WeightedCluster) -> Result<ClusterSpecifier, Invalid> {
    if m.random_value_specifier.is_some() {
        cx.note("random_value_specifier", "the choice is made at random");
    }
    let clusters = cx.each("clusters", &m.clusters, weighted_cluster)?;
    let total = clusters.iter().map(|c| u64::from(c.weight)).sum::<u64>();
    let total = checked_total(cx, total)?;
    #[expect(deprecated, reason = "control planes still send it")]
    let declared = m.total_weight.as_ref().map(|w| w.value);
    if declared.is_some_and(|declared| declared != total) {
        let reason = format!("the weights add up to {total}");
        return Err(cx.bad("total_weight", reason));
    }
    Ok(ClusterSpecifier::Weighted(WeightedClusters {
        total,
        clusters,
    }))
}

/// The sum of weights, which must be between 1 and 2³²-1.
pub(super) fn checked_total(cx: &mut Cx, total: u64) -> Result<u32, Invalid> {
    match u32::try_from(total) {
        Ok(0) => Err(cx.bad("clusters", "the sum of weights must be greater than 0")),
        Ok(total) => Ok(total),
        Err(_) => Err(cx.bad("clusters", "the sum of weights exceeds 4294967295")),
    }
}

fn weighted_cluster(cx: &mut Cx, m: &ClusterWeight) -> Result<WeightedCluster, Invalid> {
    if !m.cluster_header.is_empty() {
        return Err(cx.bad(
            "cluster_header",
            "a header cannot name one of several clusters",
        ));
    }
    if m.name.is_empty() {
        return Err(cx.bad("name", "is required"));
    }
    Ok(WeightedCluster {
        name: m.name.as_str().into(),
        weight: u32_or(m.weight.as_ref(), 0),
        request_headers: header::request(
            cx,
            &m.request_headers_to_add,
            &m.request_headers_to_remove,
        )?,
        response_headers: header::response(
            cx,
            &m.response_headers_to_add,
            &m.response_headers_to_remove,
        )?,
    })
}

/// A weighted cluster without anything but a name, for TCP.
pub(super) fn plain_weighted(name: &str, weight: u32) -> WeightedCluster {
    WeightedCluster {
        name: name.into(),
        weight,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    }
}

fn path_rewrite(cx: &mut Cx, m: &pb::RouteAction) -> Result<Option<PathRewrite>, Invalid> {
    if m.path_rewrite_policy.is_some() {
        return Err(cx.bad("path_rewrite_policy", "rewrite policies are not supported"));
    }
    if !m.path_rewrite.is_empty() {
        return Err(cx.bad("path_rewrite", "format strings are not supported"));
    }
    match (&m.regex_rewrite, m.prefix_rewrite.as_str()) {
        (None, "") => Ok(None),
        (None, prefix) => Ok(Some(PathRewrite::Prefix(prefix.to_owned()))),
        (Some(rewrite), "") => cx.at("regex_rewrite", |cx| {
            let (pattern, substitution) = matcher::substitute(cx, rewrite)?;
            Ok(Some(PathRewrite::Regex {
                pattern,
                substitution,
            }))
        }),
        (Some(_), _) => Err(cx.bad(
            "regex_rewrite",
            "prefix_rewrite and regex_rewrite exclude each other",
        )),
    }
}

fn host_rewrite(cx: &mut Cx, m: &pb::RouteAction) -> Result<Option<HostRewrite>, Invalid> {
    Ok(match &m.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Some(HostRewrite::Literal(host.clone()))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => {
            auto.value.then_some(HostRewrite::Auto)
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            let name = cx.at("host_rewrite_header", |cx| header_name(cx, name))?;
            Some(HostRewrite::Header(name))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            return Err(cx.bad("host_rewrite_path_regex", "is not supported"));
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return Err(cx.bad("host_rewrite", "format strings are not supported"));
        }
    })
}

fn upgrade(cx: &mut Cx, m: &UpgradeConfig) -> Result<(String, bool), Invalid> {
    if m.upgrade_type.is_empty() {
        return Err(cx.bad("upgrade_type", "is required"));
    }
    let enabled = bool_or(m.enabled.as_ref(), true);
    Ok((m.upgrade_type.to_ascii_lowercase(), enabled))
}

fn redirect(cx: &mut Cx, m: &pb::RedirectAction) -> Result<Action, Invalid> {
    let status = match enumeration(cx, "response_code", m.response_code)? {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    };
    let port = match m.port_redirect {
        0 => None,
        port => Some(
            u16::try_from(port)
                .map_err(|_| cx.bad("port_redirect", format_args!("{port} is not a port")))?,
        ),
    };
    let path = match &m.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(PathRedirect::Full(path.clone())),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(PathRedirect::Prefix(prefix.clone()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(_)) => {
            return Err(cx.bad("regex_rewrite", "is not supported in redirects"));
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(cx.bad("path_rewrite", "format strings are not supported"));
        }
    };
    let scheme = match &m.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.to_ascii_lowercase()),
    };
    Ok(Action::Redirect(RedirectAction {
        host: Some(m.host_redirect.clone()).filter(|h| !h.is_empty()),
        port,
        scheme: scheme.filter(|s| !s.is_empty()),
        path,
        strip_query: m.strip_query,
        status,
    }))
}

fn direct(cx: &mut Cx, m: &pb::DirectResponseAction, max_body: u32) -> Result<Action, Invalid> {
    // Envoy: 200 to 599.
    let status = match u16::try_from(m.status).map(StatusCode::from_u16) {
        Ok(Ok(status)) if (200..600).contains(&m.status) => status,
        _ => return Err(cx.bad("status", format_args!("{} is not a status", m.status))),
    };
    let body = match &m.body {
        Some(source) => data_source(cx, "body", source)?,
        None => Vec::new(),
    };
    if body.len() as u64 > u64::from(max_body) {
        let reason = format!("{} bytes exceed the limit of {max_body}", body.len());
        return Err(cx.bad("body", reason));
    }
    Ok(Action::Direct {
        status,
        body: body.into(),
    })
}
