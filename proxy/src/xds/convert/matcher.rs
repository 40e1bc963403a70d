//! String, header and query matchers, and the conditions of a route.

use millrace_xds::proto::envoy::config::route::v3 as pb;
use millrace_xds::proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use millrace_xds::proto::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher as PbString,
};
use pb::header_matcher::HeaderMatchSpecifier as HeaderKind;
use pb::query_parameter_matcher::QueryParameterMatchSpecifier as QueryKind;
use pb::route_match::PathSpecifier;
use regex::Regex;

use super::header::header_name;
use super::value::{bool_or, runtime_fraction};
use super::{Cx, Invalid};
use crate::resource::matcher::{HeaderMatcherName, HeaderValueMatcher};
use crate::resource::{HeaderMatcher, PathMatcher, QueryMatcher, RouteMatch, StringMatcher};

/// The conditions of a route. `None`: no plaintext request can meet them, so the route is dead.
pub(super) fn route_match(cx: &mut Cx, m: &pb::RouteMatch) -> Result<Option<RouteMatch>, Invalid> {
    refuse_conditions(cx, m)?;
    let alive = m.tls_context.as_ref().is_none_or(|tls| {
        // Connections are plain: no certificate is presented, none is validated.
        !bool_or(tls.presented.as_ref(), false) && !bool_or(tls.validated.as_ref(), false)
    });
    let path = path(cx, m)?;
    let headers = cx.each("headers", &m.headers, header)?;
    let query = cx.each("query_parameters", &m.query_parameters, query)?;
    let runtime_fraction = match &m.runtime_fraction {
        Some(fraction) => Some(runtime_fraction(cx, "runtime_fraction", fraction)?),
        None => None,
    };
    Ok(alive.then_some(RouteMatch {
        path,
        headers,
        query,
        grpc_only: m.grpc.is_some(),
        runtime_fraction,
    }))
}

/// Conditions that cannot be evaluated must not be taken for met.
fn refuse_conditions(cx: &mut Cx, m: &pb::RouteMatch) -> Result<(), Invalid> {
    let refused = [
        ("cookies", !m.cookies.is_empty()),
        ("dynamic_metadata", !m.dynamic_metadata.is_empty()),
        ("filter_state", !m.filter_state.is_empty()),
    ];
    for (field, set) in refused {
        if set {
            return Err(cx.bad(field, "this condition is not supported"));
        }
    }
    Ok(())
}

fn path(cx: &mut Cx, m: &pb::RouteMatch) -> Result<PathMatcher, Invalid> {
    let ignore_case = !bool_or(m.case_sensitive.as_ref(), true);
    Ok(match &m.path_specifier {
        Some(PathSpecifier::Prefix(value)) => PathMatcher::Prefix {
            value: value.clone(),
            ignore_case,
        },
        Some(PathSpecifier::Path(value)) => PathMatcher::Exact {
            value: value.clone(),
            ignore_case,
        },
        Some(PathSpecifier::PathSeparatedPrefix(value)) => {
            if !value.starts_with('/') || value.ends_with('/') || value.contains(['?', '#']) {
                let reason = "must begin with '/', not end with it, and have no query or fragment";
                return Err(cx.bad("path_separated_prefix", reason));
            }
            PathMatcher::PathSeparatedPrefix {
                value: value.clone(),
                ignore_case,
            }
        }
        Some(PathSpecifier::SafeRegex(pattern)) => {
            PathMatcher::Regex(cx.at("safe_regex", |cx| whole(cx, pattern))?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatcher::Connect,
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(cx.bad("path_match_policy", "path match policies are not supported"));
        }
        None => return Err(cx.invalid("a path specifier is required")),
    })
}

/// A condition on a header.
pub(super) fn header(cx: &mut Cx, m: &pb::HeaderMatcher) -> Result<HeaderMatcher, Invalid> {
    let name = cx.at("name", |cx| match m.name.to_ascii_lowercase().as_str() {
        ":method" => Ok(HeaderMatcherName::Method),
        ":path" => Ok(HeaderMatcherName::Path),
        ":authority" | "host" => Ok(HeaderMatcherName::Authority),
        ":scheme" => Ok(HeaderMatcherName::Scheme),
        name => header_name(cx, name).map(HeaderMatcherName::Header),
    })?;
    Ok(HeaderMatcher {
        name,
        value: header_value(cx, m)?,
        invert: m.invert_match,
        treat_missing_as_empty: m.treat_missing_header_as_empty,
    })
}

#[expect(deprecated, reason = "control planes still send these forms")]
fn header_value(cx: &mut Cx, m: &pb::HeaderMatcher) -> Result<HeaderValueMatcher, Invalid> {
    let plain = |kind: fn(String, bool) -> StringMatcher, value: &String| {
        HeaderValueMatcher::String(kind(value.clone(), false))
    };
    Ok(match &m.header_match_specifier {
        None => HeaderValueMatcher::Present(true),
        Some(HeaderKind::PresentMatch(present)) => HeaderValueMatcher::Present(*present),
        Some(HeaderKind::ExactMatch(value)) => plain(exact, value),
        Some(HeaderKind::PrefixMatch(value)) => plain(prefix, value),
        Some(HeaderKind::SuffixMatch(value)) => plain(suffix, value),
        Some(HeaderKind::ContainsMatch(value)) => plain(contains, value),
        Some(HeaderKind::RangeMatch(range)) => {
            if range.start >= range.end {
                return Err(cx.bad("range_match", "the range is empty"));
            }
            HeaderValueMatcher::Range(range.start..range.end)
        }
        Some(HeaderKind::SafeRegexMatch(pattern)) => {
            let regex = cx.at("safe_regex_match", |cx| whole(cx, pattern))?;
            HeaderValueMatcher::String(StringMatcher::Regex(regex))
        }
        Some(HeaderKind::StringMatch(matcher)) => {
            HeaderValueMatcher::String(cx.at("string_match", |cx| string(cx, matcher))?)
        }
    })
}

fn query(cx: &mut Cx, m: &pb::QueryParameterMatcher) -> Result<QueryMatcher, Invalid> {
    if m.name.is_empty() {
        return Err(cx.bad("name", "is required"));
    }
    let value = match &m.query_parameter_match_specifier {
        Some(QueryKind::StringMatch(matcher)) => {
            Some(cx.at("string_match", |cx| string(cx, matcher))?)
        }
        Some(QueryKind::PresentMatch(true)) | None => None,
        Some(QueryKind::PresentMatch(false)) => {
            return Err(cx.bad("present_match", "matching absence is not supported"));
        }
    };
    Ok(QueryMatcher {
        name: m.name.clone(),
        value,
    })
}

/// A string comparison.
pub(super) fn string(cx: &mut Cx, m: &PbString) -> Result<StringMatcher, Invalid> {
    let ignore_case = m.ignore_case;
    Ok(match &m.match_pattern {
        Some(MatchPattern::Exact(value)) => exact(value.clone(), ignore_case),
        Some(MatchPattern::Prefix(value)) => prefix(value.clone(), ignore_case),
        Some(MatchPattern::Suffix(value)) => suffix(value.clone(), ignore_case),
        Some(MatchPattern::Contains(value)) => contains(value.clone(), ignore_case),
        Some(MatchPattern::SafeRegex(pattern)) => {
            StringMatcher::Regex(cx.at("safe_regex", |cx| whole(cx, pattern))?)
        }
        Some(MatchPattern::Custom(_)) => {
            return Err(cx.bad("custom", "custom matchers are not supported"));
        }
        None => return Err(cx.invalid("a match pattern is required")),
    })
}

fn exact(value: String, ignore_case: bool) -> StringMatcher {
    StringMatcher::Exact { value, ignore_case }
}

fn prefix(value: String, ignore_case: bool) -> StringMatcher {
    StringMatcher::Prefix { value, ignore_case }
}

fn suffix(value: String, ignore_case: bool) -> StringMatcher {
    StringMatcher::Suffix { value, ignore_case }
}

fn contains(value: String, ignore_case: bool) -> StringMatcher {
    StringMatcher::Contains { value, ignore_case }
}

/// An expression that must match the whole string, as RE2 is used by Envoy.
pub(super) fn whole(cx: &mut Cx, pattern: &RegexMatcher) -> Result<Regex, Invalid> {
    if pattern.regex.is_empty() {
        return Err(cx.bad("regex", "is required"));
    }
    // Compiled by itself first: unbalanced parentheses must not close the group around it.
    compile(cx, &pattern.regex)?;
    compile(cx, &format!("^(?:{})$", pattern.regex))
}

fn compile(cx: &mut Cx, pattern: &str) -> Result<Regex, Invalid> {
    Regex::new(pattern).map_err(|error| {
        // The last line of the report says what is wrong; those before it draw the place.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default();
        cx.bad("regex", format_args!("{pattern:?}: {}", reason.trim()))
    })
}

/// A pattern to look for and its replacement, rewritten from RE2's syntax (`\1`).
pub(super) fn substitute(
    cx: &mut Cx,
    m: &RegexMatchAndSubstitute,
) -> Result<(Regex, String), Invalid> {
    let Some(pattern) = &m.pattern else {
        return Err(cx.bad("pattern", "is required"));
    };
    let regex = cx.at("pattern", |cx| {
        if pattern.regex.is_empty() {
            return Err(cx.bad("regex", "is required"));
        }
        compile(cx, &pattern.regex)
    })?;
    let substitution = substitution(&m.substitution, regex.captures_len() - 1)
        .map_err(|reason| cx.bad("substitution", reason))?;
    Ok((regex, substitution))
}

fn substitution(re2: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(re2.len());
    let mut chars = re2.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = usize::from(digit as u8 - b'0');
                    if group > groups {
                        return Err(format!(r"\{group}: the pattern has {groups} groups"));
                    }
                    out.push_str("${");
                    out.push_str(&group.to_string());
                    out.push('}');
                }
                _ => return Err(r"'\' must be followed by a digit or '\'".to_owned()),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}
