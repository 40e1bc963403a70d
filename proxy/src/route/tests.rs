use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use regex::Regex;

use super::action::{choose, location, weighted_index};
use super::match_vhost::{HostIndex, strip_port};
use super::retry::{Outcome, RetryState, parse_on};
use super::string_match::{matches_header, matches_query};
use super::timeout::Timeouts;
use super::*;
use crate::resource::matcher::{HeaderMatcherName, HeaderValueMatcher};
use crate::resource::route::{PathRedirect, PathRewrite, RedirectAction};
use crate::resource::{
    HeaderMatcher, HeaderMutation, PathMatcher, QueryMatcher, RetryOn, RetryPolicy, RouteAction,
    RouteMatch, StringMatcher, WeightedCluster, WeightedClusters,
};

fn prefix(value: &str) -> PathMatcher {
    PathMatcher::Prefix {
        value: value.into(),
        ignore_case: false,
    }
}

fn route(path: PathMatcher, cluster: &str) -> Route {
    Route {
        name: cluster.into(),
        matches: RouteMatch {
            path,
            headers: Vec::new(),
            query: Vec::new(),
            grpc_only: false,
            runtime_fraction: None,
        },
        action: Action::Forward(Arc::new(RouteAction {
            cluster: ClusterSpecifier::Cluster(cluster.into()),
            cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
            timeout: Duration::ZERO,
            idle_timeout: None,
            retry_policy: None,
            path_rewrite: None,
            host_rewrite: None,
            upgrades: Vec::new(),
        })),
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        operation: None,
        origin: None,
    }
}

fn table(domains: &[&str], routes: Vec<Route>) -> Arc<RouteTable> {
    Arc::new(RouteTable::new(Arc::new(RouteConfiguration {
        name: "test".into(),
        virtual_hosts: vec![Arc::new(VirtualHost {
            name: "host".into(),
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            routes: routes.into_iter().map(Arc::new).collect(),
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
            retry_policy: None,
            include_request_attempt_count: false,
            origin: None,
        })],
        ignore_port_in_host_matching: false,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    })))
}

fn head<'a>(authority: &'a str, path: &'a str, headers: &'a HeaderMap) -> Head<'a> {
    Head {
        method: &Method::GET,
        path,
        authority,
        scheme: "http",
        headers,
    }
}

#[test]
fn the_most_specific_domain_wins() {
    let mut index = HostIndex::default();
    let domains = [
        "reviews",
        "reviews:9080",
        "*.example.com",
        "*.a.example.com",
        "www.*",
        "www.example.*",
        "*",
    ];
    for (n, domain) in domains.iter().enumerate() {
        index.insert(domain, n);
    }
    for (host, expected) in [
        ("reviews", 0),
        ("REVIEWS", 0),
        ("reviews:9080", 1),
        ("reviews:80", 6),
        ("b.example.com", 2),
        ("b.a.example.com", 3),
        (".example.com", 6),
        ("www.foo", 4),
        ("www.example.org", 5),
        ("www.example.com", 2),
        ("www.", 6),
        ("other", 6),
        ("", 6),
    ] {
        assert_eq!(index.find(host, false), Some(expected), "{host}");
    }
    assert_eq!(index.find("reviews:80", true), Some(0));
}

#[test]
fn ports_are_taken_off_but_addresses_stay_whole() {
    for (authority, host) in [
        ("a:80", "a"),
        ("a", "a"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("10.0.0.1:8080", "10.0.0.1"),
        ("a:b", "a:b"),
    ] {
        assert_eq!(strip_port(authority), host, "{authority}");
    }
}

#[test]
fn the_first_matching_route_is_taken() {
    let separated = PathMatcher::PathSeparatedPrefix {
        value: "/api".into(),
        ignore_case: false,
    };
    let exact = PathMatcher::Exact {
        value: "/Login".into(),
        ignore_case: true,
    };
    let regex = PathMatcher::Regex(Regex::new("^(?:/v[0-9]+/x)$").unwrap());
    let routes = vec![
        route(separated, "api"),
        route(exact, "login"),
        route(regex, "regex"),
        route(prefix("/a"), "a"),
    ];
    let elsewhere = table(&["a"], vec![route(prefix("/"), "a")]);
    let table = table(&["*"], routes);
    let headers = HeaderMap::new();
    for (path, expected) in [
        ("/api", Some("api")),
        ("/api/x", Some("api")),
        ("/api?x", Some("api")),
        ("/apis", Some("a")),
        ("/LOGIN", Some("login")),
        ("/v12/x?y", Some("regex")),
        ("/v12/xy", None),
        ("/", None),
    ] {
        let found = table.find(&head("h", path, &headers), 0);
        let name = found.as_ref().ok().map(|m| m.route().name.as_str());
        assert_eq!(name, expected, "{path}");
    }
    let missing = elsewhere.find(&head("b", "/", &headers), 0);
    assert_eq!(missing.unwrap_err(), NoRoute::VirtualHost);
}

fn on_header(value: HeaderValueMatcher, invert: bool, missing_as_empty: bool) -> HeaderMatcher {
    HeaderMatcher {
        name: HeaderMatcherName::Header(HeaderName::from_static("x")),
        value,
        invert,
        treat_missing_as_empty: missing_as_empty,
    }
}

#[test]
fn header_matchers_treat_absence_as_envoy_does() {
    let exact = |v: &str| {
        HeaderValueMatcher::String(StringMatcher::Exact {
            value: v.into(),
            ignore_case: false,
        })
    };
    let (none, mut one) = (HeaderMap::new(), HeaderMap::new());
    one.append("x", HeaderValue::from_static("1"));
    let mut two = one.clone();
    two.append("x", HeaderValue::from_static("2"));
    let is = |matcher: &HeaderMatcher, headers| matches_header(matcher, &head("h", "/", headers));
    assert!(is(&on_header(exact("1"), false, false), &one));
    assert!(is(&on_header(exact("1,2"), false, false), &two));
    assert!(!is(&on_header(exact("1"), false, false), &none));
    assert!(!is(&on_header(exact("1"), true, false), &none));
    assert!(is(&on_header(exact("1"), true, true), &none));
    assert!(is(&on_header(exact(""), false, true), &none));
    assert!(is(
        &on_header(HeaderValueMatcher::Present(true), true, false),
        &none
    ));
    assert!(is(
        &on_header(HeaderValueMatcher::Present(false), false, false),
        &none
    ));
    assert!(is(
        &on_header(HeaderValueMatcher::Range(1..2), false, false),
        &one
    ));
    assert!(!is(
        &on_header(HeaderValueMatcher::Range(2..3), false, false),
        &one
    ));
    let method = HeaderMatcher {
        name: HeaderMatcherName::Method,
        ..on_header(exact("GET"), false, false)
    };
    assert!(is(&method, &none));
}

#[test]
fn query_matchers_look_at_the_first_value() {
    let matcher = |value: Option<&str>| QueryMatcher {
        name: "a".into(),
        value: value.map(|v| StringMatcher::Exact {
            value: v.into(),
            ignore_case: false,
        }),
    };
    assert!(matches_query(&matcher(Some("1")), "b=2&a=1&a=3"));
    assert!(!matches_query(&matcher(Some("3")), "a=1&a=3"));
    assert!(matches_query(&matcher(None), "a"));
    assert!(!matches_query(&matcher(None), "aa=1"));
}

#[test]
fn rewrites_keep_the_query() {
    let change = PathRewrite::Prefix("/new".into());
    assert_eq!(
        rewrite::path(&change, &prefix("/old"), "/old/x?y=/old"),
        "/new/x?y=/old"
    );
    let exact = PathMatcher::Exact {
        value: "/a".into(),
        ignore_case: false,
    };
    assert_eq!(rewrite::path(&change, &exact, "/a?b"), "/new?b");
    let regex = PathRewrite::Regex {
        pattern: Regex::new("/v([0-9]+)").unwrap(),
        substitution: "/version-$1".into(),
    };
    assert_eq!(
        rewrite::path(&regex, &prefix("/"), "/v2/v3?v4"),
        "/version-2/version-3?v4"
    );
}

#[test]
fn redirects_name_the_new_place() {
    let redirect = |host: Option<&str>, port, scheme: Option<&str>, path| RedirectAction {
        host: host.map(Into::into),
        port,
        scheme: scheme.map(Into::into),
        path,
        strip_query: false,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    let table = table(&["*"], vec![route(prefix("/a"), "a")]);
    let headers = HeaderMap::new();
    let head = head("h:80", "/a/b?c", &headers);
    let matched = table.find(&head, 0).unwrap();
    for (action, expected) in [
        (redirect(Some("x"), None, None, None), "http://x/a/b?c"),
        (redirect(None, None, Some("https"), None), "https://h/a/b?c"),
        (
            redirect(None, Some(8080), None, None),
            "http://h:8080/a/b?c",
        ),
        (
            redirect(None, Some(443), Some("https"), None),
            "https://h/a/b?c",
        ),
        (
            redirect(None, None, None, Some(PathRedirect::Full("/z".into()))),
            "http://h:80/z?c",
        ),
        (
            redirect(None, None, None, Some(PathRedirect::Prefix("/z".into()))),
            "http://h:80/z/b?c",
        ),
    ] {
        assert_eq!(location(&action, &matched, &head), expected);
    }
}

fn weighted(weights: &[u32]) -> WeightedClusters {
    WeightedClusters {
        total: weights.iter().sum(),
        clusters: weights
            .iter()
            .enumerate()
            .map(|(n, weight)| WeightedCluster {
                name: n.to_string().into(),
                weight: *weight,
                request_headers: HeaderMutation::default(),
                response_headers: HeaderMutation::default(),
            })
            .collect(),
    }
}

/// Pearson's chi-square with two degrees of freedom; 13.8 is exceeded once in a thousand runs,
/// and the seed is fixed.
#[test]
fn a_weighted_split_is_as_its_weights_say() {
    let split = weighted(&[90, 9, 1]);
    let mut rng = fastrand::Rng::with_seed(2026);
    let mut seen = [0f64; 3];
    for _ in 0..20_000 {
        seen[weighted_index(&split, rng.u64(..))] += 1.0;
    }
    let chi: f64 = [18_000.0, 1800.0, 200.0]
        .iter()
        .zip(seen)
        .map(|(expected, seen)| (seen - expected).powi(2) / expected)
        .sum();
    assert!(chi < 13.8, "{seen:?}: {chi}");
    let never = weighted(&[0, 100]);
    assert!((0..1000).all(|n| weighted_index(&never, n) == 1));
    let specifier = ClusterSpecifier::Weighted(split);
    let chosen = choose(&specifier, &HeaderMap::new(), 95).unwrap();
    assert_eq!((chosen.cluster.as_str(), chosen.weighted), ("1", Some(1)));
}

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        on,
        num_retries: 2,
        per_try_timeout: None,
        retriable_status_codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
    }
}

#[test]
fn retries_follow_their_conditions() {
    let unavailable = Outcome::Response(StatusCode::SERVICE_UNAVAILABLE, None);
    let grpc = Outcome::Response(StatusCode::OK, Some(14));
    let cases = [
        ("5xx", unavailable, true),
        ("5xx", Outcome::Reset { sent: true }, true),
        (
            "gateway-error",
            Outcome::Response(StatusCode::INTERNAL_SERVER_ERROR, None),
            false,
        ),
        ("connect-failure", Outcome::ConnectFailure, true),
        ("connect-failure", unavailable, false),
        ("refused-stream", Outcome::RefusedStream, true),
        ("reset-before-request", Outcome::Reset { sent: false }, true),
        ("reset-before-request", Outcome::Reset { sent: true }, false),
        ("retriable-status-codes", unavailable, true),
        (
            "retriable-4xx",
            Outcome::Response(StatusCode::CONFLICT, None),
            true,
        ),
        ("unavailable", grpc, true),
        ("cancelled, nonsense", grpc, false),
        ("5xx", Outcome::Overflow, false),
    ];
    for (on, outcome, expected) in cases {
        let state = RetryState::new(Some(&policy(parse_on(on))), &HeaderMap::new(), false);
        assert_eq!(state.unwrap().wants(outcome), expected, "{on} {outcome:?}");
    }
}

#[test]
fn retries_end_and_back_off() {
    let mut state =
        RetryState::new(Some(&policy(RetryOn::FIVE_XX)), &HeaderMap::new(), false).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    assert!(state.take());
    assert!((0..100).all(|_| state.backoff_with(&mut rng) < Duration::from_millis(25)));
    assert!(state.take());
    assert!((0..100).all(|_| state.backoff_with(&mut rng) < Duration::from_millis(75)));
    assert!(!state.take());
}

#[test]
fn headers_steer_retries_and_timeouts_only_from_inside() {
    let mut headers = HeaderMap::new();
    headers.insert("x-envoy-retry-on", HeaderValue::from_static("5xx"));
    headers.insert(
        "x-envoy-upstream-rq-timeout-ms",
        HeaderValue::from_static("70"),
    );
    assert!(RetryState::new(None, &headers, false).is_none());
    assert!(RetryState::new(None, &headers, true).is_some());
    let route = route(prefix("/"), "a");
    let Action::Forward(action) = &route.action else {
        unreachable!()
    };
    assert_eq!(Timeouts::of(action, None, &headers, false).global, None);
    let inside = Timeouts::of(action, None, &headers, true);
    assert_eq!(inside.global, Some(Duration::from_millis(70)));
}

proptest! {
    /// Whatever a client sends as host and path, matching decides without a panic.
    #[test]
    fn matching_never_panics(authority in "\\PC{0,40}", path in "\\PC{0,60}", query in "\\PC{0,30}") {
        let separated = PathMatcher::PathSeparatedPrefix { value: "/é".into(), ignore_case: true };
        let routes = vec![route(separated, "a"), route(prefix("/ab"), "b")];
        let table = table(&["*.é.com", "x.*", "a"], routes);
        let headers = HeaderMap::new();
        let path = format!("/{path}?{query}");
        let _any = table.find(&head(&authority, &path, &headers), 0);
        let rewritten = rewrite::path(&PathRewrite::Prefix("/z".into()), &prefix("/é"), &path);
        prop_assert!(rewritten.starts_with("/z"));
        strip_port(&authority);
    }
}
