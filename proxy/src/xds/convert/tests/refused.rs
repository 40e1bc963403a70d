//! What is refused, each with the field that is named.

use super::*;

fn refused<T>(result: Result<Converted<T>, Invalid>, field: &str, reason: &str) {
    let Err(error) = result else {
        panic!("{field}: {reason}: not refused");
    };
    assert_eq!(error.field, field, "{error}");
    assert!(error.reason.contains(reason), "{error}");
}

#[test]
fn listeners() {
    let cases = [
        ("name: default/0.0.0.0_9080", "name: ''", "name", "required"),
        (
            "address: 0.0.0.0",
            "address: example.com",
            "address",
            "not an IP address",
        ),
        (
            "port_value: 9080",
            "port_value: 70000",
            "address.socket_address.port_value",
            "70000",
        ),
        (
            "[http/1.1, h2c]}",
            "[http/1.1, h2c], source_type: EXTERNAL}",
            "filter_chains[0].filter_chain_match.source_type",
            "not supported",
        ),
        (
            "stat_prefix: outbound_0.0.0.0_9080",
            "stat_prefix: ''",
            "filter_chains[0].filters[0].typed_config.stat_prefix",
            "required",
        ),
        (
            "http.router.v3.Router",
            "http.lua.v3.Lua",
            "filter_chains[0].filters[0].typed_config.http_filters[0]",
            "must be the router",
        ),
        (
            "http_inspector.v3.HttpInspector",
            "proxy_protocol.v3.ProxyProtocol",
            "listener_filters[0]",
            "ProxyProtocol is not supported",
        ),
        (
            "  name: tcp",
            "  transport_socket: {name: envoy.transport_sockets.tls}",
            "default_filter_chain.transport_socket",
            "envoy.transport_sockets.tls is not supported",
        ),
        (
            "cluster: PassthroughCluster",
            "max_connect_attempts: 0\n      cluster: c",
            "default_filter_chain.filters[0].typed_config.max_connect_attempts",
            "at least 1",
        ),
    ];
    for (from, to, field, reason) in cases {
        assert!(LISTENER.contains(from), "{from}");
        let field = field.trim_end_matches(".socket_address.address");
        refused(listener_of(&LISTENER.replacen(from, to, 1)), field, reason);
    }
}

#[test]
fn an_unknown_http_filter_is_refused_unless_optional() {
    let router = "      - name: envoy.filters.http.router";
    let with = |optional: bool| {
        let rbac = format!(
            "      - name: rbac\n        is_optional: {optional}\n        typed_config: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}}\n{router}"
        );
        listener_of(&LISTENER.replace(router, &rbac))
    };
    let field = "filter_chains[0].filters[0].typed_config.http_filters[0]";
    refused(with(false), field, "RBAC is not supported");
    let noted = with(true).unwrap().unsupported;
    assert_eq!(noted.len(), 1);
    assert!(noted[0].field.contains("RBAC"), "{noted:?}");
}

#[test]
fn two_chains_with_equal_conditions() {
    let twice = LISTENER.replace(
        "default_filter_chain:\n  name: tcp\n  filters:",
        "- name: tcp\n  filter_chain_match: {application_protocols: [http/1.1, h2c]}\n  filters:",
    );
    refused(
        listener_of(&twice),
        "filter_chains",
        "[1] has the same conditions",
    );
}

fn route(matches: &str, action: &str) -> Result<Converted<RouteConfiguration>, Invalid> {
    routes_of(&format!(
        "
name: r
virtual_hosts:
- name: v
  domains: ['*']
  routes:
  - match: {matches}
    {action}
"
    ))
}

#[test]
fn routes() {
    let to_c = "route: {cluster: c}";
    let at = "virtual_hosts[0].routes[0]";
    let cases = [
        (
            "{safe_regex: {regex: 'a('}}",
            to_c,
            "match.safe_regex.regex",
            "unclosed group",
        ),
        (
            "{safe_regex: {regex: 'a)(b'}}",
            to_c,
            "match.safe_regex.regex",
            "unopened group",
        ),
        ("{}", to_c, "match", "path specifier is required"),
        (
            "{prefix: /, headers: [{name: 'a b'}]}",
            to_c,
            "match.headers[0].name",
            "header name",
        ),
        (
            "{prefix: /, cookies: [{name: a, string_match: {exact: b}}]}",
            to_c,
            "match.cookies",
            "not supported",
        ),
        (
            "{prefix: /, headers: [{name: a, range_match: {start: 5, end: 5}}]}",
            to_c,
            "match.headers[0].range_match",
            "empty",
        ),
        (
            "{prefix: /}",
            "route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}",
            "route.weighted_clusters.clusters",
            "greater than 0",
        ),
        (
            "{prefix: /}",
            "route: {weighted_clusters: {total_weight: 90, clusters: [{name: a, weight: 100}]}}",
            "route.weighted_clusters.total_weight",
            "add up to 100",
        ),
        (
            "{prefix: /}",
            "route: {cluster: ''}",
            "route.cluster",
            "empty",
        ),
        ("{prefix: /}", "route: {}", "route", "cluster specifier"),
        (
            "{prefix: /}",
            r"route: {cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\1'}}",
            "route.regex_rewrite.substitution",
            "has 0 groups",
        ),
        (
            "{prefix: /}",
            "direct_response: {status: 99}",
            "direct_response.status",
            "99",
        ),
        (
            "{prefix: /}",
            "non_forwarding_action: {}",
            "non_forwarding_action",
            "no meaning",
        ),
        (
            "{prefix: /}",
            "request_headers_to_add: [{header: {key: ':path', value: a}}]\n    route: {cluster: c}",
            "request_headers_to_add[0].header.key",
            "may not be modified",
        ),
        (
            "{prefix: /}",
            "route: {cluster: c, retry_policy: {retry_back_off: {base_interval: 2s, max_interval: 1s}}}",
            "route.retry_policy.retry_back_off.max_interval",
            "less than base_interval",
        ),
    ];
    for (matches, action, field, reason) in cases {
        refused(route(matches, action), &format!("{at}.{field}"), reason);
    }
}

#[test]
fn domains_and_names_that_occur_twice() {
    let hosts = |hosts: &str| routes_of(&format!("name: r\nvirtual_hosts: [{hosts}]"));
    let cases = [
        (
            "{name: a, domains: [x]}, {name: b, domains: [X]}",
            "occurs in [0] already",
        ),
        ("{name: a, domains: [x, x]}", "occurs in [0] already"),
        (
            "{name: a, domains: ['*']}, {name: b, domains: ['*']}",
            "occurs in [0]",
        ),
        (
            "{name: a, domains: [x]}, {name: a, domains: [z]}",
            "is that of [0]",
        ),
    ];
    for (yaml, reason) in cases {
        refused(hosts(yaml), "virtual_hosts", reason);
    }
    let field = "virtual_hosts[0].domains[0]";
    refused(hosts("{name: a, domains: ['a*b']}"), field, "one '*'");
    refused(
        hosts("{name: a, domains: []}"),
        "virtual_hosts[0].domains",
        "at least one",
    );
}

#[test]
fn clusters() {
    let cases = [
        ("type: EDS", "eds_cluster_config", "needs it"),
        ("type: STATIC", "load_assignment", "needs it"),
        ("type: ORIGINAL_DST", "lb_policy", "needs CLUSTER_PROVIDED"),
        (
            "load_assignment: {}\nlb_policy: CLUSTER_PROVIDED",
            "lb_policy",
            "ORIGINAL_DST only",
        ),
        (
            "load_assignment: {}\nconnect_timeout: 0s",
            "connect_timeout",
            "greater than 0s",
        ),
        (
            "load_assignment: {}\nconnect_timeout: -1s",
            "connect_timeout",
            "out of range",
        ),
        (
            "load_assignment: {}\ntransport_socket: {name: envoy.transport_sockets.tls}",
            "transport_socket",
            "not supported",
        ),
        (
            "type: LOGICAL_DNS\nload_assignment: {endpoints: [{lb_endpoints: [\
             {endpoint: {address: {socket_address: {address: a, port_value: 80}}}},\
             {endpoint: {address: {socket_address: {address: b, port_value: 80}}}}]}]}",
            "load_assignment",
            "exactly one",
        ),
        (
            "cluster_type: {name: envoy.clusters.aggregate}",
            "cluster_type",
            "aggregate",
        ),
        (
            "load_assignment: {}\ncommon_lb_config: {healthy_panic_threshold: {value: 101}}",
            "common_lb_config.healthy_panic_threshold",
            "between 0 and 100",
        ),
    ];
    for (yaml, field, reason) in cases {
        refused(cluster_of(&format!("name: c\n{yaml}")), field, reason);
    }
    refused(cluster_of("type: EDS"), "name", "required");
}

#[test]
fn endpoints() {
    let one = |address: &str, rest: &str| {
        endpoints_of(&format!(
            "cluster_name: c\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}{rest}}}]}}]"
        ))
    };
    let good = "{socket_address: {address: 10.0.0.1, port_value: 80}}";
    let at = "endpoints[0].lb_endpoints[0]";
    refused(
        one(
            "{socket_address: {address: example.com, port_value: 80}}",
            "",
        ),
        &format!("{at}.endpoint.address"),
        "names need a DNS cluster",
    );
    refused(
        one("{socket_address: {address: 10.0.0.1, port_value: 0}}", ""),
        &format!("{at}.endpoint.address"),
        "cannot be connected to",
    );
    refused(
        one("{pipe: {path: /a}}", ""),
        &format!("{at}.endpoint.address.pipe"),
        "Unix sockets",
    );
    refused(
        one(good, ", load_balancing_weight: 0"),
        &format!("{at}.load_balancing_weight"),
        "at least 1",
    );
    let gap = endpoints_of("cluster_name: c\nendpoints: [{priority: 0}, {priority: 2}]");
    refused(gap, "endpoints", "priority 1 is not");
}

#[test]
fn the_resource_is_named() {
    let error =
        endpoints_of("cluster_name: outbound|80||a\nendpoints: [{priority: 1}]").unwrap_err();
    assert_eq!(
        error.to_string(),
        "endpoints of cluster \"outbound|80||a\": endpoints: priority 1 is used, priority 0 is not"
    );
}
