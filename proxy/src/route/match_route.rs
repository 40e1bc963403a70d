//! Whether a request matches a route: all of its conditions hold.

use http::Method;

use super::Head;
use super::string_match::{equal, matches_header, matches_query, starts_with};
use crate::resource::{PathMatcher, RouteMatch};

/// Whether every condition holds; `point` is a random number in `0..1_000_000`.
pub fn matches(conditions: &RouteMatch, head: &Head<'_>, point: u32) -> bool {
    matches_path(&conditions.path, head)
        && conditions.runtime_fraction.is_none_or(|part| point < part)
        && (!conditions.grpc_only || is_grpc(head.headers))
        && conditions.headers.iter().all(|m| matches_header(m, head))
        && (conditions.query.is_empty()
            || conditions
                .query
                .iter()
                .all(|m| matches_query(m, head.query())))
}

/// Whether `content-type` is gRPC's: `application/grpc`, also with a suffix as `+proto`.
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn matches_path(matcher: &PathMatcher, head: &Head<'_>) -> bool {
    let path = head.path_only();
    match matcher {
        PathMatcher::Connect => head.method == Method::CONNECT,
        // A CONNECT request has no path; Envoy lets only its own matcher take one.
        _ if head.method == Method::CONNECT && !path.starts_with('/') => false,
        PathMatcher::Prefix { value, ignore_case } => starts_with(path, value, *ignore_case),
        PathMatcher::PathSeparatedPrefix { value, ignore_case } => {
            starts_with(path, value, *ignore_case)
                && matches!(path.as_bytes().get(value.len()), None | Some(b'/'))
        }
        PathMatcher::Exact { value, ignore_case } => equal(path, value, *ignore_case),
        PathMatcher::Regex(regex) => regex.is_match(path),
    }
}
