//! What routes do with a request.

use std::time::Duration;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::route::v3 as proto;
use millrace_xds::proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use millrace_xds::proto::envoy::r#type::matcher::v3 as matcher;
use millrace_xds::proto::pack;

use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use proto::route::Action;
use proto::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};

use super::route_match::{self, everything};
use super::wrap::{duration, uint, written_at};
use super::{Translator, fault, hash};
use crate::model::names::ClusterName;
use crate::model::route::{
    Destination, HeaderChanges, HeaderOperations, HttpAction, HttpMatch, HttpRoute, Redirect,
    Retries, Rewrite,
};
use crate::model::validate::DEFAULT_RETRY_ON;

/// Tries after the first where nothing is said, as Istio.
const DEFAULT_RETRIES: u32 = 2;
/// Tries to find a host that has not failed yet.
const HOST_SELECTION_ATTEMPTS: i64 = 5;

/// A route to the service itself.
pub(super) fn default_route(
    translator: &Translator<'_>,
    cluster: String,
    operation: String,
) -> proto::Route {
    let action = proto::RouteAction {
        hash_policy: hash::policies(translator, std::iter::once(cluster.as_str())),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        timeout: duration(Duration::ZERO),
        retry_policy: Some(retry_policy(None)),
        ..Default::default()
    };
    proto::Route {
        name: "default".to_owned(),
        r#match: Some(everything()),
        decorator: Some(proto::Decorator {
            operation,
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// To wherever the client asked for.
pub(super) fn passthrough() -> Action {
    Action::Route(proto::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(
            ClusterName::Passthrough.to_string(),
        )),
        timeout: duration(Duration::ZERO),
        ..Default::default()
    })
}

/// No further, as Istio's `REGISTRY_ONLY`.
pub(super) fn refuse() -> Action {
    Action::DirectResponse(proto::DirectResponseAction {
        status: 502,
        ..Default::default()
    })
}

/// Makes the routes of one virtual host.
pub(super) struct Maker<'a> {
    pub(super) translator: &'a Translator<'a>,
    /// The clients' namespace.
    pub(super) namespace: &'a str,
    pub(super) port: u16,
    pub(super) operation: &'a str,
}

impl Maker<'_> {
    /// One condition of a route, with its action.
    pub(super) fn route(&self, route: &HttpRoute, condition: Option<&HttpMatch>) -> proto::Route {
        let mut headers = route.headers.clone();
        let action = match &route.action {
            HttpAction::Forward(destinations) => {
                Action::Route(self.forward(route, destinations, condition, &mut headers))
            }
            HttpAction::Redirect(to) => Action::Redirect(redirect(to)),
            // Left over where nothing resolved it: nobody says what is to happen.
            HttpAction::Delegate(_) => Action::DirectResponse(respond(404, None)),
            HttpAction::Respond { status, body } => {
                Action::DirectResponse(respond(*status, body.as_deref()))
            }
        };
        let mut result = proto::Route {
            name: name(route, condition),
            r#match: Some(condition.map_or_else(everything, route_match::condition)),
            decorator: Some(proto::Decorator {
                operation: self.operation.to_owned(),
                ..Default::default()
            }),
            action: Some(action),
            metadata: route.place.as_deref().map(written_at),
            ..Default::default()
        };
        result.request_headers_to_add = additions(&headers.request);
        result.request_headers_to_remove = headers.request.remove;
        result.response_headers_to_add = additions(&headers.response);
        result.response_headers_to_remove = headers.response.remove;
        let fault = fault::of_route(self.translator.view, route.fault.as_ref());
        result.typed_per_filter_config.extend(fault);
        result
    }

    fn forward(
        &self,
        route: &HttpRoute,
        destinations: &[Destination],
        condition: Option<&HttpMatch>,
        headers: &mut HeaderOperations,
    ) -> proto::RouteAction {
        let no_backend = match route.no_backend {
            500 => ClusterNotFoundResponseCode::InternalServerError,
            _ => ClusterNotFoundResponseCode::ServiceUnavailable,
        };
        let mut action = proto::RouteAction {
            timeout: duration(route.timeout.unwrap_or(Duration::ZERO)),
            cluster_not_found_response_code: no_backend.into(),
            ..Default::default()
        };
        if route
            .retries
            .as_ref()
            .is_none_or(|retries| retries.attempts > 0)
        {
            action.retry_policy = Some(retry_policy(route.retries.as_ref()));
        }
        let mut authority = take_authority(&mut headers.request);
        let weighted: Vec<&Destination> = destinations.iter().filter(|to| to.weight > 0).collect();
        action.cluster_specifier = Some(match &weighted[..] {
            [only] => {
                let mut own = only.headers.clone();
                authority = take_authority(&mut own.request).or(authority);
                headers.request.extend(own.request);
                headers.response.extend(own.response);
                ClusterSpecifier::Cluster(self.cluster(only))
            }
            several => ClusterSpecifier::WeightedClusters(proto::WeightedCluster {
                clusters: several.iter().map(|to| self.weight(to)).collect(),
                ..Default::default()
            }),
        });
        action.hash_policy = self.hash_policies(&action);
        if let Some(rewrite) = &route.rewrite {
            rewrite_path(&mut action, rewrite, condition);
            authority = rewrite.authority.clone().or(authority);
        }
        action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
        action
    }

    /// What requests are hashed by, as the rules for any of the clusters say.
    fn hash_policies(&self, action: &proto::RouteAction) -> Vec<proto::route_action::HashPolicy> {
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(only)) => {
                hash::policies(self.translator, std::iter::once(only.as_str()))
            }
            Some(ClusterSpecifier::WeightedClusters(several)) => {
                let names = several.clusters.iter().map(|to| to.name.as_str());
                hash::policies(self.translator, names)
            }
            _ => Vec::new(),
        }
    }

    fn cluster(&self, to: &Destination) -> String {
        self.translator.destination(self.namespace, to, self.port)
    }

    fn weight(&self, to: &Destination) -> proto::weighted_cluster::ClusterWeight {
        use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        let mut headers = to.headers.clone();
        let authority = take_authority(&mut headers.request);
        proto::weighted_cluster::ClusterWeight {
            name: self.cluster(to),
            weight: uint(to.weight),
            request_headers_to_add: additions(&headers.request),
            request_headers_to_remove: headers.request.remove,
            response_headers_to_add: additions(&headers.response),
            response_headers_to_remove: headers.response.remove,
            host_rewrite_specifier: authority.map(HostRewriteSpecifier::HostRewriteLiteral),
            ..Default::default()
        }
    }
}

/// The route's name with its condition's, as Istio joins them.
fn name(route: &HttpRoute, condition: Option<&HttpMatch>) -> String {
    let condition = condition
        .map(|condition| condition.name.as_str())
        .unwrap_or_default();
    match (route.name.is_empty(), condition.is_empty()) {
        (true, true) => "default".to_owned(),
        (false, true) => route.name.clone(),
        (true, false) => condition.to_owned(),
        (false, false) => format!("{}.{condition}", route.name),
    }
}

/// Takes a new authority out of header changes: Envoy changes it in another place.
fn take_authority(changes: &mut HeaderChanges) -> Option<String> {
    let is_authority = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    let found = changes.set.iter().position(|(name, _)| is_authority(name));
    let value = found.map(|position| changes.set.remove(position).1);
    changes.set.retain(|(name, _)| !is_authority(name));
    changes.add.retain(|(name, _)| !is_authority(name));
    value
}

fn additions(changes: &HeaderChanges) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction;
    let option =
        |(name, value): &(String, String), action: HeaderAppendAction| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.clone(),
                value: value.clone(),
                ..Default::default()
            }),
            append_action: action.into(),
            ..Default::default()
        };
    let set = changes
        .set
        .iter()
        .map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes
        .add
        .iter()
        .map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

fn rewrite_path(action: &mut proto::RouteAction, rewrite: &Rewrite, condition: Option<&HttpMatch>) {
    use crate::model::route::StringMatch;
    if let Some((pattern, substitution)) = &rewrite.uri_regex {
        action.regex_rewrite = Some(substitute(pattern, substitution));
    }
    let Some(uri) = &rewrite.uri else { return };
    match condition.and_then(|condition| condition.uri.as_ref()) {
        // Where a pattern matched the whole path there is no prefix, so the whole path is replaced.
        Some(StringMatch::Regex(_)) => {
            action.regex_rewrite = Some(substitute("^.*$", &uri.replace('\\', "\\\\")));
        }
        _ => action.prefix_rewrite.clone_from(uri),
    }
}

fn substitute(pattern: &str, substitution: &str) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute {
        pattern: Some(route_match::regex(pattern)),
        substitution: substitution.to_owned(),
    }
}

fn retry_policy(retries: Option<&Retries>) -> proto::RetryPolicy {
    let predicate = proto::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(
            proto::retry_policy::retry_host_predicate::ConfigType::TypedConfig(pack(
                &PreviousHostsPredicate {},
            )),
        ),
    };
    proto::RetryPolicy {
        retry_on: retries
            .map_or(DEFAULT_RETRY_ON, |retries| &retries.retry_on)
            .to_owned(),
        num_retries: uint(retries.map_or(DEFAULT_RETRIES, |retries| retries.attempts)),
        per_try_timeout: retries
            .and_then(|retries| retries.per_try_timeout)
            .and_then(duration),
        retriable_status_codes: retries
            .map(|retries| retries.status_codes.clone())
            .unwrap_or_default(),
        retry_host_predicate: vec![predicate],
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        ..Default::default()
    }
}

fn redirect(to: &Redirect) -> proto::RedirectAction {
    let response_code = match to.code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    proto::RedirectAction {
        host_redirect: to.authority.clone().unwrap_or_default(),
        port_redirect: to.port.map_or(0, u32::from),
        path_rewrite_specifier: match (&to.uri, &to.prefix) {
            (Some(path), _) => Some(PathRewriteSpecifier::PathRedirect(path.clone())),
            (None, Some(prefix)) => Some(PathRewriteSpecifier::PrefixRewrite(prefix.clone())),
            (None, None) => None,
        },
        scheme_rewrite_specifier: to
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        response_code: response_code.into(),
        ..Default::default()
    }
}

fn respond(status: u16, body: Option<&[u8]>) -> proto::DirectResponseAction {
    let body = body.map(|body| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(body.to_vec())),
        ..Default::default()
    });
    proto::DirectResponseAction {
        status: u32::from(status),
        body,
        ..Default::default()
    }
}
