//! Conditions of routes.

use millrace_xds::proto::envoy::config::route::v3 as proto;
use millrace_xds::proto::envoy::r#type::matcher::v3 as matcher;

use super::wrap::truth;
use crate::model::route::{HttpMatch, StringMatch, ValueMatch};

/// Matches every request.
pub(super) fn everything() -> proto::RouteMatch {
    proto::RouteMatch {
        path_specifier: Some(proto::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// A route's condition.
pub(super) fn condition(condition: &HttpMatch) -> proto::RouteMatch {
    use proto::route_match::PathSpecifier;
    let path = match &condition.uri {
        None => PathSpecifier::Prefix("/".to_owned()),
        Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(StringMatch::Prefix(prefix)) if condition.whole_segments => {
            PathSpecifier::PathSeparatedPrefix(prefix.clone())
        }
        Some(StringMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch::Regex(pattern)) => PathSpecifier::SafeRegex(regex(pattern)),
    };
    // Envoy has no case-insensitive regex; the pattern says it itself.
    let insensitive =
        condition.ignore_uri_case && !matches!(condition.uri, Some(StringMatch::Regex(_)));
    let mut headers = Vec::new();
    for (name, wanted) in [
        (":method", &condition.method),
        (":scheme", &condition.scheme),
        (":authority", &condition.authority),
    ] {
        headers.extend(
            wanted
                .clone()
                .map(|wanted| header(name, &ValueMatch::Value(wanted), false)),
        );
    }
    headers.extend(
        condition
            .headers
            .iter()
            .map(|(name, wanted)| header(name, wanted, false)),
    );
    headers.extend(
        condition
            .without_headers
            .iter()
            .map(|(name, wanted)| header(name, wanted, true)),
    );
    proto::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: if insensitive { truth(false) } else { None },
        headers,
        query_parameters: condition
            .query_params
            .iter()
            .map(|(name, wanted)| query(name, wanted))
            .collect(),
        ..Default::default()
    }
}

/// A regular expression that must match the whole text.
pub(super) fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

fn header(name: &str, wanted: &ValueMatch, invert: bool) -> proto::HeaderMatcher {
    use proto::header_matcher::HeaderMatchSpecifier;
    proto::HeaderMatcher {
        name: name.to_owned(),
        invert_match: invert,
        header_match_specifier: Some(match wanted {
            ValueMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
            ValueMatch::Value(value) => HeaderMatchSpecifier::StringMatch(string(value)),
        }),
        // An absent header has not the value that must not be there.
        treat_missing_header_as_empty: invert && matches!(wanted, ValueMatch::Value(_)),
    }
}

fn query(name: &str, wanted: &ValueMatch) -> proto::QueryParameterMatcher {
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier;
    proto::QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(match wanted {
            ValueMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
            ValueMatch::Value(value) => QueryParameterMatchSpecifier::StringMatch(string(value)),
        }),
    }
}

fn string(value: &StringMatch) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    matcher::StringMatcher {
        match_pattern: Some(match value {
            StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
            StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
            StringMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
        }),
        ..Default::default()
    }
}
