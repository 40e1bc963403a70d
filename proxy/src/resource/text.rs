//! Conditions in words, for people: the admin port's lists and explanations.

use super::matcher::{HeaderMatcherName, HeaderValueMatcher};
use super::{
    FilterChainMatch, HeaderMatcher, HeaderMutation, LbPolicy, Locality, PathMatcher, QueryMatcher,
    RouteMatch, StringMatcher,
};

/// When a filter chain is taken.
pub fn chain_match(matches: &FilterChainMatch) -> String {
    let mut parts = Vec::new();
    if let Some(port) = matches.destination_port {
        parts.push(format!("port {port}"));
    }
    let mut list = |label: &str, values: Vec<String>| {
        if !values.is_empty() {
            parts.push(format!("{label} {}", values.join(",")));
        }
    };
    let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
    let from_ports = matches.source_ports.iter().map(ToString::to_string);
    list("to", nets(&matches.prefix_ranges));
    list("sni", matches.server_names.clone());
    list("app", matches.application_protocols.clone());
    list("from", nets(&matches.source_prefix_ranges));
    list("from port", from_ports.collect());
    if !matches.transport_protocol.is_empty() {
        parts.push(matches.transport_protocol.clone());
    }
    if parts.is_empty() {
        return "all".to_owned();
    }
    parts.join("; ")
}

/// When a route is taken.
pub fn route_match(matches: &RouteMatch) -> String {
    let mut parts = vec![path(&matches.path)];
    parts.extend(matches.headers.iter().map(header));
    parts.extend(matches.query.iter().map(query));
    if matches.grpc_only {
        parts.push("gRPC".to_owned());
    }
    if let Some(part) = matches.runtime_fraction {
        parts.push(format!("{} % of requests", f64::from(part) / 10_000.0));
    }
    parts.join(" and ")
}

fn path(path: &PathMatcher) -> String {
    match path {
        PathMatcher::Prefix { value, ignore_case } => format!("{value}*{}", folded(*ignore_case)),
        PathMatcher::PathSeparatedPrefix { value, ignore_case } => {
            format!("{value} or {value}/*{}", folded(*ignore_case))
        }
        PathMatcher::Exact { value, ignore_case } => format!("{value}{}", folded(*ignore_case)),
        PathMatcher::Regex(regex) => format!("~{}", regex.as_str()),
        PathMatcher::Connect => "CONNECT".to_owned(),
    }
}

fn folded(ignore_case: bool) -> &'static str {
    if ignore_case { " (any case)" } else { "" }
}

fn header(matcher: &HeaderMatcher) -> String {
    let name = match &matcher.name {
        HeaderMatcherName::Header(name) => name.as_str(),
        HeaderMatcherName::Method => ":method",
        HeaderMatcherName::Path => ":path",
        HeaderMatcherName::Authority => ":authority",
        HeaderMatcherName::Scheme => ":scheme",
    };
    let value = match &matcher.value {
        HeaderValueMatcher::Present(true) => "present".to_owned(),
        HeaderValueMatcher::Present(false) => "absent".to_owned(),
        HeaderValueMatcher::Range(range) => format!("in {}..{}", range.start, range.end),
        HeaderValueMatcher::String(value) => string(value),
    };
    let not = if matcher.invert { "not " } else { "" };
    format!("{name} {not}{value}")
}

fn query(matcher: &QueryMatcher) -> String {
    match &matcher.value {
        Some(value) => format!("?{} {}", matcher.name, string(value)),
        None => format!("?{} present", matcher.name),
    }
}

fn string(matcher: &StringMatcher) -> String {
    match matcher {
        StringMatcher::Exact { value, ignore_case } => {
            format!("= {value:?}{}", folded(*ignore_case))
        }
        StringMatcher::Prefix { value, ignore_case } => {
            format!("= {value:?}*{}", folded(*ignore_case))
        }
        StringMatcher::Suffix { value, ignore_case } => {
            format!("= *{value:?}{}", folded(*ignore_case))
        }
        StringMatcher::Contains { value, ignore_case } => {
            format!("= *{value:?}*{}", folded(*ignore_case))
        }
        StringMatcher::Regex(regex) => format!("~ {}", regex.as_str()),
    }
}

/// Changes of headers, one by one.
pub fn header_changes(mutation: &HeaderMutation) -> Vec<String> {
    let removed = mutation.remove.iter().map(|name| format!("remove {name}"));
    let set = mutation.set.iter().map(|set| {
        let value = String::from_utf8_lossy(set.value.as_bytes());
        let verb = match set.action {
            super::header::HeaderAppend::AppendIfExistsOrAdd => "add",
            super::header::HeaderAppend::AddIfAbsent => "add if absent",
            super::header::HeaderAppend::OverwriteIfExistsOrAdd => "set",
            super::header::HeaderAppend::OverwriteIfExists => "set if present",
        };
        format!("{verb} {}: {value}", set.name)
    });
    removed.chain(set).collect()
}

/// `region/zone/sub-zone`, as far as it is known.
pub fn locality(locality: &Locality) -> String {
    let parts = [&locality.region, &locality.zone, &locality.sub_zone];
    let known: Vec<&str> = parts
        .into_iter()
        .map(AsRef::as_ref)
        .filter(|part| !str::is_empty(part))
        .collect();
    known.join("/")
}

/// How one endpoint is chosen.
pub fn lb_policy(policy: LbPolicy) -> &'static str {
    match policy {
        LbPolicy::RoundRobin => "round robin",
        LbPolicy::LeastRequest { .. } => "least request",
        LbPolicy::Random => "random",
        LbPolicy::ClusterProvided => "original destination",
    }
}
