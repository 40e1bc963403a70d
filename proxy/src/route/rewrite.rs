//! Changes of path and host before a request is forwarded.

use http::HeaderMap;

use super::string_match::starts_with;
use crate::resource::PathMatcher;
use crate::resource::route::{HostRewrite, PathRewrite};

/// The new `:path`, query kept.
pub fn path(rewrite: &PathRewrite, matcher: &PathMatcher, path_and_query: &str) -> String {
    let end = path_and_query
        .find(['?', '#'])
        .unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(end);
    let mut new = match rewrite {
        PathRewrite::Prefix(prefix) => replace_prefix(matcher, path, prefix),
        PathRewrite::Regex {
            pattern,
            substitution,
        } => pattern
            .replace_all(path, substitution.as_str())
            .into_owned(),
    };
    new.push_str(query);
    new
}

/// The path with `replacement` in the place of what `matcher` matched: the prefix, else all.
pub fn replace_prefix(matcher: &PathMatcher, path: &str, replacement: &str) -> String {
    let replaced = match matcher {
        PathMatcher::Prefix { value, ignore_case }
        | PathMatcher::PathSeparatedPrefix { value, ignore_case }
            if starts_with(path, value, *ignore_case) =>
        {
            value.len()
        }
        _ => path.len(),
    };
    format!("{replacement}{}", path.get(replaced..).unwrap_or_default())
}

/// The new host, where there is one.
pub fn host<'a>(
    rewrite: &'a HostRewrite,
    headers: &'a HeaderMap,
    endpoint: Option<&'a str>,
) -> Option<&'a str> {
    match rewrite {
        HostRewrite::Literal(host) => Some(host),
        HostRewrite::Auto => endpoint,
        HostRewrite::Header(name) => headers.get(name)?.to_str().ok().filter(|h| !h.is_empty()),
    }
}
