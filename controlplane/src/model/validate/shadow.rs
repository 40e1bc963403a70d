//! Routes that nothing reaches, since one before them takes all that they would get.
//!
//! Pure, over one object's routes. It claims only what it can prove from the conditions themselves: a pattern covers
//! an equal one and nothing else.

use crate::model::names::Hostname;
use crate::model::problem::{Finding, Reason};
use crate::model::route::{
    HttpAction, HttpMatch, HttpRoute, StringMatch, TcpMatch, TcpRoute, ValueMatch,
};

/// HTTP routes out of reach.
pub(super) fn http(routes: &[HttpRoute], field: &str) -> Vec<Finding> {
    let every = [HttpMatch::default()];
    let conditions = |route: &HttpRoute| match &route.matches[..] {
        [] => every.to_vec(),
        some => some.to_vec(),
    };
    // What a delegate does not take goes on to the next route.
    let takes = |route: &&HttpRoute| !matches!(route.action, HttpAction::Delegate(_));
    unreached(
        routes,
        field,
        |before, route| {
            let mut before = before.iter().filter(takes);
            let wanted = conditions(route);
            before.find_map(|other| {
                let has = conditions(other);
                let all = wanted
                    .iter()
                    .all(|wanted| has.iter().any(|has| covers(has, wanted)));
                all.then_some(other.at)
            })
        },
        |route| route.at,
    )
}

/// Routes of connections out of reach.
pub(super) fn connections(routes: &[TcpRoute], field: &str) -> Vec<Finding> {
    unreached(
        routes,
        field,
        |before, route| {
            before.iter().find_map(|other| {
                let taken = |wanted: &TcpMatch| {
                    other.matches.is_empty() || other.matches.iter().any(|has| holds(has, wanted))
                };
                let all = match &route.matches[..] {
                    [] => taken(&TcpMatch::default()),
                    some => some.iter().all(taken),
                };
                all.then_some(other.at)
            })
        },
        |route| route.at,
    )
}

fn unreached<T>(
    routes: &[T],
    field: &str,
    taker: impl Fn(&[T], &T) -> Option<usize>,
    place: impl Fn(&T) -> usize,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        if let Some(other) = taker(&routes[..index], route) {
            let message = format!("nothing gets here: route {other} before it takes all of it");
            let field = format!("{field}[{}]", place(route));
            findings.push(Finding::warning(Reason::Unreachable, field, message));
        }
    }
    findings
}

/// Whether every request for which `b` holds is one for which `a` does.
fn covers(a: &HttpMatch, b: &HttpMatch) -> bool {
    let path = if a.whole_segments || b.whole_segments {
        a.uri.is_none() || (a.uri == b.uri && a.whole_segments == b.whole_segments)
    } else if a.ignore_uri_case {
        let lower = |path: &Option<StringMatch>| path.as_ref().map(lower);
        covers_path(lower(&a.uri).as_ref(), lower(&b.uri).as_ref())
    } else {
        covers_path(a.uri.as_ref(), b.uri.as_ref()) && (a.uri.is_none() || !b.ignore_uri_case)
    };
    path && covers_text(a.scheme.as_ref(), b.scheme.as_ref())
        && covers_text(a.method.as_ref(), b.method.as_ref())
        && covers_text(a.authority.as_ref(), b.authority.as_ref())
        && covers_values(&a.headers, &b.headers)
        && a.without_headers
            .iter()
            .all(|without| b.without_headers.contains(without))
        && covers_values(&a.query_params, &b.query_params)
        && (a.port.is_none() || a.port == b.port)
        && (a.source_namespace.is_none() || a.source_namespace == b.source_namespace)
}

/// Every path begins with a slash, so that prefix is no condition.
fn covers_path(a: Option<&StringMatch>, b: Option<&StringMatch>) -> bool {
    matches!(a, Some(StringMatch::Prefix(prefix)) if prefix == "/") || covers_text(a, b)
}

fn covers_text(a: Option<&StringMatch>, b: Option<&StringMatch>) -> bool {
    use StringMatch::{Exact, Prefix};
    match (a, b) {
        (None, _) => true,
        (Some(Prefix(prefix)), Some(Exact(text) | Prefix(text))) => text.starts_with(prefix),
        (a, b) => a == b,
    }
}

fn covers_values(a: &[(String, ValueMatch)], b: &[(String, ValueMatch)]) -> bool {
    a.iter().all(|(name, wanted)| {
        b.iter().any(|(other, has)| {
            let covered = match (wanted, has) {
                (ValueMatch::Present, _) => true,
                (ValueMatch::Value(a), ValueMatch::Value(b)) => covers_text(Some(a), Some(b)),
                (ValueMatch::Value(_), ValueMatch::Present) => false,
            };
            name == other && covered
        })
    })
}

/// Patterns stay as they are, since case means something in them: `\D` is not `\d`.
fn lower(text: &StringMatch) -> StringMatch {
    match text {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_ascii_lowercase()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase()),
        StringMatch::Regex(_) => text.clone(),
    }
}

/// Whether every connection for which `b` holds is one for which `a` does.
fn holds(a: &TcpMatch, b: &TcpMatch) -> bool {
    let host = |name: &String| Hostname::literal(name).ok();
    let named = |wanted: &String| {
        a.sni_hosts
            .iter()
            .filter_map(host)
            .any(|has| host(wanted).is_some_and(|wanted| has == wanted || has.covers(&wanted)))
    };
    let server = if a.sni_hosts.is_empty() {
        true
    } else {
        !b.sni_hosts.is_empty() && b.sni_hosts.iter().all(named)
    };
    server
        && (a.port.is_none() || a.port == b.port)
        && (a.source_namespace.is_none() || a.source_namespace == b.source_namespace)
}

#[cfg(test)]
mod tests;
