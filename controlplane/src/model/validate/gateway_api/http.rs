//! `HTTPRoute`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::filters::{self, Filters};
use super::{Common, backend};
use crate::kube::crd;
use crate::model::place::Place;
use crate::model::route::{
    Destination, HttpAction, HttpMatch, HttpRoute, Retries, StringMatch, ValueMatch,
};
use crate::model::validate::Validated;
use crate::model::validate::fields::{DEFAULT_RETRY_ON, Judge};
use crate::model::{Kind, Object};

/// Tries after the first where a rule says times and no number, as for other routes.
const DEFAULT_ATTEMPTS: u32 = 2;

/// Judges an `HTTPRoute`.
pub fn http_route(object: &crd::ApiObject<crd::HttpRouteSpec>, domain: &str) -> Validated<Object> {
    let mut judge = Judge::new(object.metadata.namespace(), domain);
    let spec = &object.spec;
    let common = Common {
        kind: Kind::HttpRoute,
        metadata: &object.metadata,
        parents: &spec.parent_refs,
        default_gateways: spec.use_default_gateways.as_ref(),
        hostnames: &spec.hostnames,
    };
    let mut route = common.route(&mut judge);
    // Between workloads the service is the host; `hostnames` are for gateways.
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let rule = self::rule(&mut judge, rule, &field);
        let place = Place::shared(route.kind, &route.name, field);
        route.http.push(HttpRoute { place, ..rule });
    }
    if spec.rules.is_empty() {
        let rule = crd::HttpRouteRule::default();
        let rule = self::rule(&mut judge, &rule, "spec.rules");
        let place = Place::shared(route.kind, &route.name, "spec");
        route.http.push(HttpRoute { place, ..rule });
    }
    Validated::judged(Object::ApiRoute(Arc::new(route)), judge.findings)
}

fn rule(judge: &mut Judge<'_>, rule: &crd::HttpRouteRule, field: &str) -> HttpRoute {
    judge.not_executed(
        rule.session_persistence.as_ref(),
        format!("{field}.sessionPersistence"),
    );
    let mut matches = Vec::new();
    for (index, condition) in rule.matches.iter().enumerate() {
        matches.push(condition_of(
            judge,
            condition,
            &format!("{field}.matches[{index}]"),
        ));
    }
    if matches.is_empty() {
        matches.push(HttpMatch {
            uri: Some(StringMatch::Prefix("/".to_owned())),
            ..HttpMatch::default()
        });
    }
    let filters = filters::of_rule(judge, &rule.filters, &matches, field);
    let backends = backends(judge, Kind::HttpRoute, &rule.backend_refs, field);
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let timeout = judge.duration(
        timeouts.request.as_deref(),
        &format!("{field}.timeouts.request"),
    );
    let per_try = judge.duration(
        timeouts.backend_request.as_deref(),
        &format!("{field}.timeouts.backendRequest"),
    );
    if let (Some(whole), Some(one)) = (timeout, per_try)
        && !whole.is_zero()
        && one > whole
    {
        let message = "it cannot be longer than the whole request's";
        judge.error(format!("{field}.timeouts.backendRequest"), message);
    }
    if let Some(retry) = &rule.retry {
        judge.not_executed(retry.backoff.as_ref(), format!("{field}.retry.backoff"));
    }
    let has_retries = rule.retry.is_some() || per_try.is_some();
    let retries = has_retries.then(|| retries(judge, rule.retry.as_ref(), per_try, field));
    HttpRoute {
        name: rule.name.clone().unwrap_or_default(),
        timeout,
        retries,
        ..route(judge, matches, filters, backends, field)
    }
}

/// A rule of the Gateway API: where nothing can be reached requests get 500.
pub(super) fn route(
    judge: &mut Judge<'_>,
    matches: Vec<HttpMatch>,
    filters: Filters,
    backends: Vec<Destination>,
    field: &str,
) -> HttpRoute {
    let action = match filters.redirect {
        Some(redirect) => {
            if !backends.is_empty() {
                let message = "a redirect goes to no backend";
                judge.error(format!("{field}.backendRefs"), message);
            }
            HttpAction::Redirect(redirect)
        }
        None if backends.iter().all(|backend| backend.weight == 0) => HttpAction::Respond {
            status: 500,
            body: None,
        },
        None => HttpAction::Forward(backends),
    };
    HttpRoute {
        at: 0,
        name: String::new(),
        matches,
        action,
        timeout: None,
        retries: None,
        rewrite: filters.rewrite,
        fault: None,
        headers: filters.headers,
        no_backend: 500,
        place: None,
    }
}

pub(super) fn backends(
    judge: &mut Judge<'_>,
    kind: Kind,
    refs: &[crd::BackendRef],
    field: &str,
) -> Vec<Destination> {
    let mut result = Vec::new();
    for (index, item) in refs.iter().enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        let headers = filters::of_backend(judge, &item.filters, &field);
        result.extend(backend(judge, kind, item, headers, &field));
    }
    result
}

fn condition_of(judge: &mut Judge<'_>, condition: &crd::HttpRouteMatch, field: &str) -> HttpMatch {
    let default = crd::PathMatch::default();
    let path = condition.path.as_ref().unwrap_or(&default);
    let (uri, whole_segments) = path_match(judge, path, &format!("{field}.path"));
    let method = condition.method.clone().map(StringMatch::Exact);
    HttpMatch {
        uri,
        whole_segments,
        method,
        headers: named(judge, &condition.headers, true, &format!("{field}.headers")),
        query_params: named(
            judge,
            &condition.query_params,
            false,
            &format!("{field}.queryParams"),
        ),
        ..HttpMatch::default()
    }
}

fn path_match(
    judge: &mut Judge<'_>,
    path: &crd::PathMatch,
    field: &str,
) -> (Option<StringMatch>, bool) {
    let value = path.value.clone().unwrap_or_else(|| "/".to_owned());
    let kind = path.kind.as_deref().unwrap_or("PathPrefix");
    if kind != "RegularExpression" && !value.starts_with('/') {
        let message = format!("{value:?} does not begin with a slash");
        judge.error(format!("{field}.value"), message);
    }
    match kind {
        "Exact" => (Some(StringMatch::Exact(value)), false),
        "PathPrefix" => {
            // "/abc/" is "/abc": a prefix is of whole segments.
            let trimmed = value.trim_end_matches('/');
            if trimmed.is_empty() {
                (Some(StringMatch::Prefix("/".to_owned())), false)
            } else {
                (Some(StringMatch::Prefix(trimmed.to_owned())), true)
            }
        }
        "RegularExpression" => {
            judge.regex(&value, &format!("{field}.value"));
            (Some(StringMatch::Regex(value)), false)
        }
        other => {
            let message = format!("{other:?} is not Exact, PathPrefix or RegularExpression");
            judge.error(format!("{field}.type"), message);
            (None, false)
        }
    }
}

/// Conditions on headers or query parameters; of several with one name the first counts.
pub(super) fn named(
    judge: &mut Judge<'_>,
    conditions: &[crd::NamedMatch],
    headers: bool,
    field: &str,
) -> Vec<(String, ValueMatch)> {
    let mut result = BTreeMap::new();
    for (index, condition) in conditions.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = if headers {
            judge.header_name(&condition.name, &format!("{field}.name"));
            condition.name.to_ascii_lowercase()
        } else {
            condition.name.clone()
        };
        if name.is_empty() {
            judge.error(format!("{field}.name"), "a name is needed");
        }
        let value = condition.value.clone();
        let value = match condition.kind.as_deref().unwrap_or("Exact") {
            "Exact" => StringMatch::Exact(value),
            "RegularExpression" => {
                judge.regex(&value, &format!("{field}.value"));
                StringMatch::Regex(value)
            }
            other => {
                let message = format!("{other:?} is not Exact or RegularExpression");
                judge.error(format!("{field}.type"), message);
                continue;
            }
        };
        result.entry(name).or_insert(ValueMatch::Value(value));
    }
    result.into_iter().collect()
}

fn retries(
    judge: &mut Judge<'_>,
    retry: Option<&crd::RouteRetry>,
    per_try_timeout: Option<std::time::Duration>,
    field: &str,
) -> Retries {
    let mut retry_on = DEFAULT_RETRY_ON.to_owned();
    let mut status_codes = Vec::new();
    for code in retry.into_iter().flat_map(|retry| &retry.codes) {
        if (400..600).contains(code) {
            status_codes.push(*code);
        } else {
            let message = format!("{code} is not a status code from 400 to 599");
            judge.error(format!("{field}.retry.codes"), message);
        }
    }
    if !status_codes.is_empty() {
        retry_on.push_str(",retriable-status-codes");
    }
    Retries {
        attempts: retry
            .and_then(|retry| retry.attempts)
            .unwrap_or(DEFAULT_ATTEMPTS),
        per_try_timeout,
        retry_on,
        status_codes,
    }
}
