//! Delegation: a `VirtualService` whose routes are said in part by others, as Istio merges them.
//!
//! Input: one that has hosts, and a way to find the others; output: the routes that come of it and what
//! is wrong. Pure; the index resolves whenever one of them changes, the analysis reports.

use std::sync::Arc;

use super::names::ObjectName;
use super::problem::{Finding, Reason};
use super::route::{
    HeaderOperations, HttpAction, HttpMatch, HttpRoute, StringMatch, ValueMatch, VirtualService,
};

/// The `VirtualService` with the routes of those that it delegates to in place, and what is wrong.
pub fn resolve<'a>(
    root: &Arc<VirtualService>,
    find: impl Fn(&ObjectName) -> Option<&'a Arc<VirtualService>>,
) -> (Arc<VirtualService>, Vec<Finding>) {
    let delegates = |route: &HttpRoute| matches!(route.action, HttpAction::Delegate(_));
    if !root.http.iter().any(delegates) {
        return (Arc::clone(root), Vec::new());
    }
    let (mut http, mut findings) = (Vec::new(), Vec::new());
    for route in &root.http {
        let HttpAction::Delegate(name) = &route.action else {
            http.push(route.clone());
            continue;
        };
        let mut warn = |reason, message: String| {
            let field = format!("spec.http[{}].delegate", route.at);
            findings.push(Finding::warning(reason, field, message));
        };
        let found = find(name);
        let visible = found.filter(|found| found.export_to.includes(&root.name.namespace));
        let Some(delegate) = visible else {
            let message = match found {
                None => format!("no VirtualService {name} is known, so the route is left out"),
                Some(_) => format!(
                    "VirtualService {name} is not exported to {}, so the route is left out",
                    root.name.namespace
                ),
            };
            warn(Reason::UnknownReference, message);
            continue;
        };
        if !delegate.hosts.is_empty() {
            let message = format!(
                "VirtualService {name} has hosts of its own and cannot be delegated to: the route is left out"
            );
            warn(Reason::Conflict, message);
            continue;
        }
        for below in &delegate.http {
            let at = below.at;
            if delegates(below) {
                let message = format!(
                    "http[{at}] of VirtualService {name} delegates again, which is one level too deep: it is left out"
                );
                warn(Reason::Conflict, message);
                continue;
            }
            match merge(route, below) {
                Some(merged) => http.push(merged),
                None => warn(
                    Reason::Conflict,
                    format!(
                        "the matches of http[{at}] of VirtualService {name} are not among those of this route: it is left out"
                    ),
                ),
            }
        }
    }
    let resolved = VirtualService {
        http,
        ..(**root).clone()
    };
    (Arc::new(resolved), findings)
}

/// The delegate's route under the conditions of both; where it says nothing, the root's word holds.
/// None where the conditions exclude each other.
fn merge(root: &HttpRoute, below: &HttpRoute) -> Option<HttpRoute> {
    let matches = merge_matches(&root.matches, &below.matches)?;
    let name = match (root.name.is_empty(), below.name.is_empty()) {
        (_, true) => root.name.clone(),
        (true, false) => below.name.clone(),
        (false, false) => format!("{}-{}", root.name, below.name),
    };
    let headers = if below.headers == HeaderOperations::default() {
        &root.headers
    } else {
        &below.headers
    };
    Some(HttpRoute {
        at: root.at,
        name,
        matches,
        action: below.action.clone(),
        timeout: below.timeout.or(root.timeout),
        retries: below.retries.clone().or_else(|| root.retries.clone()),
        rewrite: below.rewrite.clone().or_else(|| root.rewrite.clone()),
        fault: below.fault.clone().or_else(|| root.fault.clone()),
        headers: headers.clone(),
        no_backend: below.no_backend,
        place: below.place.clone(),
    })
}

fn merge_matches(root: &[HttpMatch], below: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(below.to_vec());
    }
    if below.is_empty() {
        return Some(root.to_vec());
    }
    let mut result = Vec::new();
    for condition in below {
        let before = result.len();
        for outer in root {
            if !excludes(outer, condition) {
                result.push(merge_match(outer, condition));
            }
        }
        if result.len() == before {
            return None;
        }
    }
    Some(result)
}

fn merge_match(root: &HttpMatch, below: &HttpMatch) -> HttpMatch {
    let name = match (root.name.is_empty(), below.name.is_empty()) {
        (_, true) => root.name.clone(),
        (true, false) => below.name.clone(),
        (false, false) => format!("{}-{}", root.name, below.name),
    };
    let pick = |below: &Option<StringMatch>, root: &Option<StringMatch>| {
        below.clone().or_else(|| root.clone())
    };
    HttpMatch {
        name,
        uri: pick(&below.uri, &root.uri),
        ignore_uri_case: root.ignore_uri_case || below.ignore_uri_case,
        whole_segments: root.whole_segments || below.whole_segments,
        scheme: pick(&below.scheme, &root.scheme),
        method: pick(&below.method, &root.method),
        authority: pick(&below.authority, &root.authority),
        headers: union(&root.headers, &below.headers),
        without_headers: union(&root.without_headers, &below.without_headers),
        query_params: union(&root.query_params, &below.query_params),
        port: below.port.or(root.port),
        source_namespace: below
            .source_namespace
            .clone()
            .or_else(|| root.source_namespace.clone()),
    }
}

type Values = [(String, ValueMatch)];

fn union(root: &Values, below: &Values) -> Vec<(String, ValueMatch)> {
    let mut all: Vec<_> = below.to_vec();
    let known = |name: &String| below.iter().any(|(other, _)| other == name);
    all.extend(root.iter().filter(|(name, _)| !known(name)).cloned());
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

/// Whether what `below` matches is not all matched by `root`.
fn excludes(root: &HttpMatch, below: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &below.uri),
        (&root.scheme, &below.scheme),
        (&root.method, &below.method),
        (&root.authority, &below.authority),
    ];
    let ports = root.port.is_some() && below.port.is_some() && root.port != below.port;
    let namespaces = root.source_namespace.is_some()
        && below.source_namespace.is_some()
        && root.source_namespace != below.source_namespace;
    let cases =
        root.uri.is_some() && below.uri.is_some() && root.ignore_uri_case != below.ignore_uri_case;
    ports
        || namespaces
        || cases
        || texts
            .into_iter()
            .any(|(root, below)| text_excludes(root.as_ref(), below.as_ref()))
        || values_exclude(&root.headers, &below.headers)
        || values_exclude(&root.without_headers, &below.without_headers)
        || values_exclude(&root.query_params, &below.query_params)
}

fn values_exclude(root: &Values, below: &Values) -> bool {
    root.iter().any(|(name, wanted)| {
        let other = below.iter().find(|(other, _)| other == name);
        match (wanted, other.map(|(_, value)| value)) {
            (ValueMatch::Value(root), Some(ValueMatch::Value(below))) => {
                text_excludes(Some(root), Some(below))
            }
            (ValueMatch::Value(_), Some(ValueMatch::Present)) => true,
            (ValueMatch::Present, _) | (_, None) => false,
        }
    })
}

fn text_excludes(root: Option<&StringMatch>, below: Option<&StringMatch>) -> bool {
    let (Some(root), Some(below)) = (root, below) else {
        return false;
    };
    match (root, below) {
        (StringMatch::Exact(root), StringMatch::Exact(below)) => root != below,
        (StringMatch::Prefix(root), StringMatch::Exact(below) | StringMatch::Prefix(below)) => {
            !below.starts_with(root.as_str())
        }
        // Whether one pattern is within another cannot be told.
        _ => root != below,
    }
}

#[cfg(test)]
mod tests;
