//! Evaluation of string, header and query matchers.

use std::borrow::Cow;

use super::Head;
use crate::resource::matcher::{HeaderMatcherName, HeaderValueMatcher};
use crate::resource::{HeaderMatcher, QueryMatcher, StringMatcher};

/// Whether a string is what the matcher asks for.
pub fn matches_string(matcher: &StringMatcher, text: &str) -> bool {
    match matcher {
        StringMatcher::Exact { value, ignore_case } => equal(text, value, *ignore_case),
        StringMatcher::Prefix { value, ignore_case } => starts_with(text, value, *ignore_case),
        StringMatcher::Suffix { value, ignore_case } => text
            .len()
            .checked_sub(value.len())
            .and_then(|start| text.get(start..))
            .is_some_and(|end| equal(end, value, *ignore_case)),
        StringMatcher::Contains {
            value,
            ignore_case: false,
        } => text.contains(value.as_str()),
        StringMatcher::Contains {
            value,
            ignore_case: true,
        } => text
            .to_ascii_lowercase()
            .contains(&value.to_ascii_lowercase()),
        StringMatcher::Regex(regex) => regex.is_match(text),
    }
}

/// Equality, folding ASCII case where asked.
pub fn equal(text: &str, value: &str, ignore_case: bool) -> bool {
    if ignore_case {
        text.eq_ignore_ascii_case(value)
    } else {
        text == value
    }
}

/// Whether `text` begins with `value`, folding ASCII case where asked.
pub fn starts_with(text: &str, value: &str, ignore_case: bool) -> bool {
    text.as_bytes().get(..value.len()).is_some_and(|start| {
        if ignore_case {
            start.eq_ignore_ascii_case(value.as_bytes())
        } else {
            start == value.as_bytes()
        }
    })
}

/// Whether the request has what the matcher asks for. An absent header matches nothing, inverted
/// or not, unless it counts as empty or is asked to be absent.
pub fn matches_header(matcher: &HeaderMatcher, head: &Head<'_>) -> bool {
    let value = header_value(&matcher.name, head);
    if let HeaderValueMatcher::Present(present) = &matcher.value {
        return (value.is_some() == *present) != matcher.invert;
    }
    let value = match value {
        Some(value) => value,
        None if matcher.treat_missing_as_empty => Cow::Borrowed(""),
        None => return false,
    };
    let holds = match &matcher.value {
        HeaderValueMatcher::Present(_) => true,
        HeaderValueMatcher::Range(range) => value
            .parse::<i64>()
            .is_ok_and(|number| range.contains(&number)),
        HeaderValueMatcher::String(string) => matches_string(string, &value),
    };
    holds != matcher.invert
}

fn header_value<'a>(name: &HeaderMatcherName, head: &Head<'a>) -> Option<Cow<'a, str>> {
    let name = match name {
        HeaderMatcherName::Method => return Some(Cow::Borrowed(head.method.as_str())),
        HeaderMatcherName::Path => return Some(Cow::Borrowed(head.path)),
        HeaderMatcherName::Authority => return Some(Cow::Borrowed(head.authority)),
        HeaderMatcherName::Scheme => return Some(Cow::Borrowed(head.scheme)),
        HeaderMatcherName::Header(name) => name,
    };
    if *name == http::header::HOST {
        return Some(Cow::Borrowed(head.authority));
    }
    let mut values = head.headers.get_all(name).iter();
    let first = String::from_utf8_lossy(values.next()?.as_bytes());
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first);
    }
    let mut joined = first.into_owned();
    for value in rest {
        joined.push(',');
        joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    Some(Cow::Owned(joined))
}

/// Whether the query has the parameter. The first of several counts; nothing is percent-decoded,
/// as in Envoy.
pub fn matches_query(matcher: &QueryMatcher, query: &str) -> bool {
    let found = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| *name == matcher.name);
    match (found, &matcher.value) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some((_, value)), Some(expected)) => matches_string(expected, value),
    }
}
