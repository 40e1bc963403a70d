//! Filters: what they come to, and which no proxy runs.

use crate::kube::crd;
use crate::model::problem::Finding;
use crate::model::route::{HeaderOperations, HttpMatch, Redirect, Rewrite, StringMatch};
use crate::model::validate::fields::Judge;

/// What the filters of a rule come to.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) headers: HeaderOperations,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Option<Rewrite>,
}

/// Reads the filters of a rule whose conditions these are.
pub(super) fn of_rule(
    judge: &mut Judge<'_>,
    filters: &[crd::HttpRouteFilter],
    matches: &[HttpMatch],
    field: &str,
) -> Filters {
    let mut result = Filters::default();
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        match filter.kind.as_str() {
            "RequestRedirect" => {
                if let Some(redirect) = needed(
                    judge,
                    filter.request_redirect.as_ref(),
                    &field,
                    "requestRedirect",
                ) {
                    result.redirect = Some(self::redirect(
                        judge,
                        redirect,
                        matches,
                        &format!("{field}.requestRedirect"),
                    ));
                }
            }
            "URLRewrite" => {
                if let Some(rewrite) =
                    needed(judge, filter.url_rewrite.as_ref(), &field, "urlRewrite")
                {
                    result.rewrite = Some(url_rewrite(
                        judge,
                        rewrite,
                        matches,
                        &format!("{field}.urlRewrite"),
                    ));
                }
            }
            _ => of_message(judge, filter, &mut result.headers, &field),
        }
    }
    if result.redirect.is_some() && result.rewrite.is_some() {
        judge.error(format!("{field}.filters"), "a redirect cannot be rewritten");
    }
    result
}

/// Reads the filters of a backend, which change headers alone.
pub(super) fn of_backend(
    judge: &mut Judge<'_>,
    filters: &[crd::HttpRouteFilter],
    field: &str,
) -> HeaderOperations {
    let mut headers = HeaderOperations::default();
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        if ["RequestRedirect", "URLRewrite"].contains(&filter.kind.as_str()) {
            let message = format!("{} is for whole rules in this release", filter.kind);
            judge.error(format!("{field}.type"), message);
        } else {
            of_message(judge, filter, &mut headers, &field);
        }
    }
    headers
}

fn of_message(
    judge: &mut Judge<'_>,
    filter: &crd::HttpRouteFilter,
    headers: &mut HeaderOperations,
    field: &str,
) {
    match filter.kind.as_str() {
        "RequestHeaderModifier" => {
            let member = "requestHeaderModifier";
            if let Some(changes) = needed(
                judge,
                filter.request_header_modifier.as_ref(),
                field,
                member,
            ) {
                let changes = judge.modifier(changes, &format!("{field}.{member}"));
                headers.request.extend(changes);
            }
        }
        "ResponseHeaderModifier" => {
            let member = "responseHeaderModifier";
            if let Some(changes) = needed(
                judge,
                filter.response_header_modifier.as_ref(),
                field,
                member,
            ) {
                let changes = judge.modifier(changes, &format!("{field}.{member}"));
                headers.response.extend(changes);
            }
        }
        kind @ ("RequestMirror" | "CORS") => {
            let message = format!("no proxy of this release executes {kind}");
            judge
                .findings
                .push(Finding::not_executed(format!("{field}.type"), message));
        }
        // What protects or answers must not be left out silently.
        kind @ ("ExternalAuth" | "ExtensionRef") => {
            let message = format!(
                "no proxy of this release executes {kind}, and the rule must not go without it"
            );
            judge.error(format!("{field}.type"), message);
        }
        other => judge.error(
            format!("{field}.type"),
            format!("{other:?} is not a filter of the Gateway API"),
        ),
    }
}

/// The member that a filter's type asks for.
fn needed<'a, T>(
    judge: &mut Judge<'_>,
    value: Option<&'a T>,
    field: &str,
    member: &str,
) -> Option<&'a T> {
    if value.is_none() {
        judge.error(format!("{field}.{member}"), "the filter's type needs it");
    }
    value
}

fn redirect(
    judge: &mut Judge<'_>,
    redirect: &crd::RequestRedirect,
    matches: &[HttpMatch],
    field: &str,
) -> Redirect {
    let code = redirect.status_code.unwrap_or(302);
    judge.redirect(code, redirect.scheme.as_deref(), "statusCode", field);
    let port = redirect
        .port
        .map(|port| judge.port(port, &format!("{field}.port")));
    let mut result = Redirect {
        authority: redirect.hostname.clone(),
        scheme: redirect.scheme.clone(),
        port,
        code,
        ..Redirect::default()
    };
    match redirect
        .path
        .as_ref()
        .and_then(|path| new_path(judge, path, matches, &format!("{field}.path")))
    {
        Some(NewPath::Full(path)) => result.uri = Some(path),
        Some(NewPath::Prefix(_, prefix)) => result.prefix = Some(prefix),
        None => {}
    }
    result
}

fn url_rewrite(
    judge: &mut Judge<'_>,
    rewrite: &crd::UrlRewrite,
    matches: &[HttpMatch],
    field: &str,
) -> Rewrite {
    let mut result = Rewrite {
        authority: rewrite.hostname.clone(),
        ..Rewrite::default()
    };
    match rewrite
        .path
        .as_ref()
        .and_then(|path| new_path(judge, path, matches, &format!("{field}.path")))
    {
        Some(NewPath::Full(path)) => {
            result.uri_regex = Some(("^.*$".to_owned(), path.replace('\\', "\\\\")));
        }
        // Without the prefix what is left begins with a slash, or is nothing.
        Some(NewPath::Prefix(taken, prefix)) if prefix.is_empty() => {
            let pattern = format!("^{}/?", regex::escape(&taken));
            result.uri_regex = Some((pattern, "/".to_owned()));
        }
        Some(NewPath::Prefix(_, prefix)) => result.uri = Some(prefix),
        None => {}
    }
    result
}

enum NewPath {
    Full(String),
    /// The prefix that is matched, and what comes in its place.
    Prefix(String, String),
}

fn new_path(
    judge: &mut Judge<'_>,
    path: &crd::PathModifier,
    matches: &[HttpMatch],
    field: &str,
) -> Option<NewPath> {
    let value = match path.kind.as_str() {
        "ReplaceFullPath" => path.replace_full_path.clone().map(NewPath::Full),
        "ReplacePrefixMatch" => {
            let prefixes: Vec<&String> = matches
                .iter()
                .filter_map(|condition| match &condition.uri {
                    Some(StringMatch::Prefix(prefix)) => Some(prefix),
                    _ => None,
                })
                .collect();
            let [only] = prefixes[..] else {
                let message = "it needs one match, of the type PathPrefix";
                judge.error(format!("{field}.type"), message);
                return None;
            };
            let replacement = path.replace_prefix_match.as_ref()?;
            let trimmed = replacement.trim_end_matches('/');
            // A prefix of one slash takes it away with it.
            let prefix = if only == "/" {
                format!("{trimmed}/")
            } else {
                trimmed.to_owned()
            };
            Some(NewPath::Prefix(only.clone(), prefix))
        }
        other => {
            let message = format!("{other:?} is not ReplaceFullPath or ReplacePrefixMatch");
            judge.error(format!("{field}.type"), message);
            return None;
        }
    };
    if value.is_none() {
        judge.error(field, "the new path is missing");
    }
    value
}
