//! Conditions of routes in the words of the v1 API.

use super::schema;
use crate::model::route::{HttpMatch, StringMatch, ValueMatch};

/// A route with its conditions and nothing else.
///
/// # Errors
/// Says what has no words: without that condition the route would match more than it is meant to.
pub(super) fn of(condition: Option<&HttpMatch>) -> Result<schema::Route, &'static str> {
    let everything = schema::Route {
        prefix: Some("/".to_owned()),
        ..Default::default()
    };
    let Some(condition) = condition else {
        return Ok(everything);
    };
    if !condition.without_headers.is_empty() {
        return Err("withoutHeaders");
    }
    let mut route = path(condition)?.unwrap_or(everything);
    let special = [
        (":method", &condition.method),
        (":scheme", &condition.scheme),
        (":authority", &condition.authority),
    ];
    let special = special.into_iter().filter_map(|(name, wanted)| {
        let wanted = ValueMatch::Value(wanted.clone()?);
        Some(value(name, &wanted))
    });
    let named = condition.headers.iter();
    let named = named.map(|(name, wanted)| value(name, wanted));
    route.headers = special.chain(named).collect();
    let parameters = condition.query_params.iter();
    route.query_parameters = parameters
        .map(|(name, wanted)| value(name, wanted))
        .collect();
    Ok(route)
}

fn path(condition: &HttpMatch) -> Result<Option<schema::Route>, &'static str> {
    let Some(uri) = &condition.uri else {
        return Ok(None);
    };
    let mut route = schema::Route::default();
    match uri {
        StringMatch::Exact(path) => route.path = Some(path.clone()),
        StringMatch::Prefix(prefix) if condition.whole_segments => {
            let stem = prefix.trim_end_matches('/');
            if stem.is_empty() {
                route.prefix = Some("/".to_owned());
            } else {
                route.regex = Some(format!("{}(/.*)?", regex::escape(stem)));
            }
        }
        StringMatch::Prefix(prefix) => route.prefix = Some(prefix.clone()),
        StringMatch::Regex(pattern) => route.regex = Some(pattern.clone()),
    }
    if condition.ignore_uri_case {
        if route.regex.is_some() {
            return Err("a pattern of the path without regard to case");
        }
        route.case_sensitive = Some(false);
    }
    Ok(Some(route))
}

fn value(name: &str, wanted: &ValueMatch) -> schema::ValueMatch {
    let (value, regex) = match wanted {
        ValueMatch::Present => (None, false),
        ValueMatch::Value(StringMatch::Exact(value)) => (Some(value.clone()), false),
        ValueMatch::Value(StringMatch::Prefix(prefix)) => {
            (Some(format!("^{}.*", regex::escape(prefix))), true)
        }
        ValueMatch::Value(StringMatch::Regex(pattern)) => (Some(pattern.clone()), true),
    };
    schema::ValueMatch {
        name: name.to_owned(),
        value,
        regex,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> HttpMatch {
        HttpMatch {
            uri: Some(StringMatch::Prefix(text.to_owned())),
            ..HttpMatch::default()
        }
    }

    #[test]
    fn a_prefix_of_whole_segments_becomes_a_pattern() {
        let whole = |text| {
            let condition = HttpMatch {
                whole_segments: true,
                ..prefix(text)
            };
            of(Some(&condition)).unwrap()
        };
        let route = whole("/api.v1/");
        assert_eq!(route.regex.as_deref(), Some(r"/api\.v1(/.*)?"));
        assert_eq!(whole("/").prefix.as_deref(), Some("/"));
    }

    #[test]
    fn a_condition_without_words_is_an_error_and_never_dropped() {
        let without = HttpMatch {
            without_headers: vec![("x".to_owned(), ValueMatch::Present)],
            ..HttpMatch::default()
        };
        assert_eq!(of(Some(&without)), Err("withoutHeaders"));
        let pattern = HttpMatch {
            uri: Some(StringMatch::Regex("/a".to_owned())),
            ignore_uri_case: true,
            ..HttpMatch::default()
        };
        assert!(of(Some(&pattern)).is_err());
    }

    #[test]
    fn values_are_compared_in_the_eras_three_ways() {
        let headers = [
            ("a", ValueMatch::Present),
            ("b", ValueMatch::Value(StringMatch::Prefix("x+".to_owned()))),
            ("c", ValueMatch::Value(StringMatch::Exact("y".to_owned()))),
        ];
        let condition = HttpMatch {
            headers: headers
                .map(|(name, wanted)| (name.to_owned(), wanted))
                .into(),
            method: Some(StringMatch::Exact("GET".to_owned())),
            ..HttpMatch::default()
        };
        let route = of(Some(&condition)).unwrap();
        let made = serde_json::to_value(&route.headers).unwrap();
        let expected = serde_json::json!([
            { "name": ":method", "value": "GET" },
            { "name": "a" },
            { "name": "b", "value": "^x\\+.*", "regex": true },
            { "name": "c", "value": "y" },
        ]);
        assert_eq!(made, expected);
        assert!(!route.catches_all());
        assert!(of(None).unwrap().catches_all());
    }
}
