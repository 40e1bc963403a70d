//! `RouteRule` v1alpha2, into the same routes as a `VirtualService`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Validated;
use super::fields::{DEFAULT_RETRY_ON, Judge};
use crate::kube::crd::{self, LabelValue};
use crate::model::names::{Hostname, ObjectName};
use crate::model::place::Place;
use crate::model::problem::Finding;
use crate::model::route::{
    Destination, HeaderChanges, HeaderOperations, HttpAction, HttpMatch, HttpRoute, Redirect,
    Retries, Rewrite, RouteRule, SubsetRef,
};
use crate::model::workload::Labels;
use crate::model::{Kind, Object};

/// Judges a `RouteRule`.
pub fn route_rule(object: &crd::RouteRule, domain: &str) -> Validated<Object> {
    let namespace = object.metadata.namespace();
    let mut judge = Judge::new(namespace, domain);
    let spec = &object.spec;
    for (field, value) in [
        ("httpFault", &spec.http_fault),
        ("l4Fault", &spec.l4_fault),
        ("mirror", &spec.mirror),
        ("corsPolicy", &spec.cors_policy),
    ] {
        judge.not_executed(value.as_ref(), format!("spec.{field}"));
    }
    let destination = host(&mut judge, &spec.destination, "spec.destination");
    let condition = condition(&mut judge, spec.condition.as_ref());
    let name = ObjectName::new(namespace, &object.metadata.name);
    let route = HttpRoute {
        at: 0,
        name: object.metadata.name.clone(),
        matches: condition.clone().unwrap_or_default(),
        action: action(&mut judge, spec, &destination),
        timeout: timeout(&mut judge, spec),
        retries: retries(&mut judge, spec),
        rewrite: spec.rewrite.as_ref().map(|rewrite| Rewrite {
            uri: rewrite.uri.clone(),
            uri_regex: None,
            authority: rewrite.authority.clone(),
        }),
        fault: None,
        headers: judge.headers(
            Some(&crd::Headers {
                request: crd::HeaderOperations {
                    add: spec.append_headers.clone(),
                    ..Default::default()
                },
                ..Default::default()
            }),
            "spec.appendHeaders",
        ),
        no_backend: 503,
        place: Place::shared(Kind::RouteRule, &name, ""),
    };
    let model = RouteRule {
        name,
        destination,
        precedence: spec.precedence,
        route,
    };
    if condition.is_none() {
        // Its condition can never hold, so the rule is left out; the finding says so.
        return Validated {
            object: None,
            findings: judge.findings,
        };
    }
    Validated::judged(Object::RouteRule(Arc::new(model)), judge.findings)
}

fn host(judge: &mut Judge<'_>, service: &crd::IstioService, field: &str) -> Hostname {
    judge.not_executed(service.labels.as_ref(), format!("{field}.labels"));
    if let Some(full) = service.service.as_deref() {
        if service.name.is_some() {
            judge.error(field, "only one of name and service may be set");
        }
        return judge.host(full, &format!("{field}.service"));
    }
    let Some(name) = service.name.as_deref().filter(|name| !name.is_empty()) else {
        judge.error(format!("{field}.name"), "a name is needed");
        return Hostname::service("invalid", judge.namespace, judge.domain);
    };
    let namespace = service.namespace.as_deref().unwrap_or(judge.namespace);
    match service.domain.as_deref() {
        // The seeds' domain comes with or without the `svc` label.
        Some(domain) if domain.starts_with("svc.") => {
            judge.host(&format!("{name}.{namespace}.{domain}"), field)
        }
        Some(domain) => judge.host(&format!("{name}.{namespace}.svc.{domain}"), field),
        None => judge.host(&format!("{name}.{namespace}.svc.{}", judge.domain), field),
    }
}

/// The conditions, none of them where every request is meant; absent when they can never hold.
fn condition(
    judge: &mut Judge<'_>,
    condition: Option<&crd::MatchCondition>,
) -> Option<Vec<HttpMatch>> {
    let Some(condition) = condition else {
        return Some(Vec::new());
    };
    let mut executable = true;
    for (field, value) in [
        ("source", &condition.source),
        ("tcp", &condition.tcp),
        ("udp", &condition.udp),
    ] {
        if value.is_some() {
            let message = "no proxy of this release executes it, so the whole rule is left out";
            judge.findings.push(Finding::not_executed(
                format!("spec.match.{field}"),
                message,
            ));
            executable = false;
        }
    }
    let Some(request) = &condition.request else {
        return executable.then(Vec::new);
    };
    let field = "spec.match.request.headers";
    let mut headers = request.headers.clone();
    let mut take = |judge: &mut Judge<'_>, name: &str| {
        let value = headers.remove(name)?;
        judge.required_match(Some(&value), &format!("{field}.{name}"))
    };
    let result = HttpMatch {
        uri: take(judge, "uri"),
        scheme: take(judge, "scheme"),
        method: take(judge, "method"),
        authority: take(judge, "authority"),
        ..HttpMatch::default()
    };
    let result = HttpMatch {
        headers: judge.header_matches(&headers, field),
        ..result
    };
    executable.then(|| {
        if result == HttpMatch::default() {
            Vec::new()
        } else {
            vec![result]
        }
    })
}

fn action(judge: &mut Judge<'_>, spec: &crd::RouteRuleSpec, destination: &Hostname) -> HttpAction {
    if let Some(redirect) = &spec.redirect {
        if !spec.route.is_empty() {
            judge.error("spec", "only one of route and redirect may be set");
        }
        return HttpAction::Redirect(Redirect {
            uri: redirect.uri.clone(),
            authority: redirect.authority.clone(),
            code: 301,
            ..Redirect::default()
        });
    }
    if spec.route.is_empty() {
        return HttpAction::Forward(vec![Destination {
            host: destination.clone(),
            subset: SubsetRef::All,
            port: None,
            weight: 100,
            headers: HeaderOperations {
                request: HeaderChanges::default(),
                response: HeaderChanges::default(),
            },
            reference: None,
        }]);
    }
    let labels: Vec<Option<Labels>> = spec
        .route
        .iter()
        .enumerate()
        .map(|(index, route)| labels(judge, &route.labels, &format!("spec.route[{index}].labels")))
        .collect();
    // A misplaced weight is one mistake; that the sum is then wrong too would only confuse.
    let weights: Vec<_> = spec.route.iter().map(|route| route.weight).collect();
    let weights = if labels.iter().all(Option::is_some) {
        judge.percentages(&weights, "spec.route")
    } else {
        vec![0; weights.len()]
    };
    let mut destinations = Vec::new();
    for (index, ((route, labels), weight)) in spec.route.iter().zip(labels).zip(weights).enumerate()
    {
        let host = match &route.destination {
            Some(service) => host(judge, service, &format!("spec.route[{index}].destination")),
            None => destination.clone(),
        };
        let labels = labels.unwrap_or_default();
        let subset = if labels.is_empty() {
            SubsetRef::All
        } else {
            SubsetRef::Labels(labels)
        };
        destinations.push(Destination {
            host,
            subset,
            port: None,
            weight,
            headers: HeaderOperations::default(),
            reference: None,
        });
    }
    HttpAction::Forward(destinations)
}

fn labels(
    judge: &mut Judge<'_>,
    labels: &BTreeMap<String, LabelValue>,
    field: &str,
) -> Option<Labels> {
    let mut result = Labels::new();
    let mut good = true;
    for (key, value) in labels {
        match value {
            LabelValue::Text(text) => {
                judge.subset_name(text, &format!("{field}.{key}"));
                result.insert(key.clone(), text.clone());
            }
            LabelValue::Number(number) if key == "weight" => {
                judge.error(
                    format!("{field}.weight"),
                    format!("weight: {number} stands under labels; it belongs beside labels, in the same list item"),
                );
                good = false;
            }
            LabelValue::Number(_) | LabelValue::Other(_) | LabelValue::Truth(_) => {
                judge.error(
                    format!("{field}.{key}"),
                    "a label's value is text: put it in quotes",
                );
                good = false;
            }
        }
    }
    good.then_some(result)
}

fn timeout(judge: &mut Judge<'_>, spec: &crd::RouteRuleSpec) -> Option<std::time::Duration> {
    let timeout = spec.http_req_timeout.as_ref()?;
    judge.not_executed(
        timeout.custom.as_ref(),
        "spec.httpReqTimeout.custom".to_owned(),
    );
    let simple = timeout.simple_timeout.as_ref()?;
    let field = "spec.httpReqTimeout.simpleTimeout";
    judge.not_executed(
        simple.override_header_name.as_ref(),
        format!("{field}.overrideHeaderName"),
    );
    judge.duration(simple.timeout.as_deref(), &format!("{field}.timeout"))
}

fn retries(judge: &mut Judge<'_>, spec: &crd::RouteRuleSpec) -> Option<Retries> {
    let retries = spec.http_req_retries.as_ref()?;
    judge.not_executed(
        retries.custom.as_ref(),
        "spec.httpReqRetries.custom".to_owned(),
    );
    let simple = retries.simple_retry.as_ref()?;
    let field = "spec.httpReqRetries.simpleRetry";
    judge.not_executed(
        simple.override_header_name.as_ref(),
        format!("{field}.overrideHeaderName"),
    );
    Some(Retries {
        attempts: simple.attempts,
        per_try_timeout: judge.duration(
            simple.per_try_timeout.as_deref(),
            &format!("{field}.perTryTimeout"),
        ),
        // What Istio 0.x retried.
        retry_on: format!("5xx,{DEFAULT_RETRY_ON}"),
        status_codes: Vec::new(),
    })
}
