//! `GRPCRoute`.

use std::sync::Arc;

use super::Common;
use super::filters;
use super::http::{backends, named, route};
use crate::kube::crd;
use crate::model::place::Place;
use crate::model::route::{HttpMatch, HttpRoute, StringMatch};
use crate::model::validate::Validated;
use crate::model::validate::fields::Judge;
use crate::model::{Kind, Object};

/// Judges a `GRPCRoute`.
pub fn grpc_route(object: &crd::ApiObject<crd::GrpcRouteSpec>, domain: &str) -> Validated<Object> {
    let mut judge = Judge::new(object.metadata.namespace(), domain);
    let spec = &object.spec;
    let common = Common {
        kind: Kind::GrpcRoute,
        metadata: &object.metadata,
        parents: &spec.parent_refs,
        default_gateways: spec.use_default_gateways.as_ref(),
        hostnames: &spec.hostnames,
    };
    let mut route = common.route(&mut judge);
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let rule = self::rule(&mut judge, rule, &field);
        let place = Place::shared(route.kind, &route.name, field);
        route.http.push(HttpRoute { place, ..rule });
    }
    Validated::judged(Object::ApiRoute(Arc::new(route)), judge.findings)
}

fn rule(judge: &mut Judge<'_>, rule: &crd::GrpcRouteRule, field: &str) -> HttpRoute {
    judge.not_executed(
        rule.session_persistence.as_ref(),
        format!("{field}.sessionPersistence"),
    );
    let mut matches = Vec::new();
    for (index, condition) in rule.matches.iter().enumerate() {
        let field = format!("{field}.matches[{index}]");
        let uri = condition
            .method
            .as_ref()
            .and_then(|method| path(judge, method, &format!("{field}.method")));
        matches.push(HttpMatch {
            uri,
            headers: named(judge, &condition.headers, true, &format!("{field}.headers")),
            ..HttpMatch::default()
        });
    }
    for (index, filter) in rule.filters.iter().enumerate() {
        if ["RequestRedirect", "URLRewrite", "CORS"].contains(&filter.kind.as_str()) {
            let message = format!("{} is no filter of a GRPCRoute", filter.kind);
            judge.error(format!("{field}.filters[{index}].type"), message);
        }
    }
    let filters = filters::of_rule(judge, &rule.filters, &matches, field);
    let backends = backends(judge, Kind::GrpcRoute, &rule.backend_refs, field);
    HttpRoute {
        name: rule.name.clone().unwrap_or_default(),
        ..route(judge, matches, filters, backends, field)
    }
}

/// The path that a call's service and method come to.
fn path(judge: &mut Judge<'_>, method: &crd::GrpcMethod, field: &str) -> Option<StringMatch> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, name) = (given(&method.service), given(&method.method));
    if service.is_none() && name.is_none() {
        judge.error(field, "a service or a method is needed");
        return None;
    }
    match method.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Some(match (service, name) {
            (Some(service), Some(name)) => StringMatch::Exact(format!("/{service}/{name}")),
            (Some(service), None) => StringMatch::Prefix(format!("/{service}/")),
            (None, name) => {
                let name = regex::escape(&name.unwrap_or_default());
                StringMatch::Regex(format!("/[^/]+/{name}"))
            }
        }),
        "RegularExpression" => {
            let any = || "[^/]+".to_owned();
            let pattern = format!(
                "/{}/{}",
                service.unwrap_or_else(any),
                name.unwrap_or_else(any)
            );
            judge.regex(&pattern, field);
            Some(StringMatch::Regex(pattern))
        }
        other => {
            let message = format!("{other:?} is not Exact or RegularExpression");
            judge.error(format!("{field}.type"), message);
            None
        }
    }
}
