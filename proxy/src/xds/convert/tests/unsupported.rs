//! What is accepted and listed as not executed.

use super::*;

fn fields<T>(result: Result<Converted<T>, Invalid>) -> Vec<String> {
    let converted = result.unwrap_or_else(|error| panic!("{error}"));
    let noted = converted.unsupported.iter();
    noted.map(|u| format!("{} {}", u.field, u.count)).collect()
}

#[test]
fn routes_list_each_field_once_with_its_count() {
    let found = fields(routes_of(
        "
name: r
virtual_hosts:
- name: v
  domains: ['*']
  cors: {}
  routes:
  - match: {prefix: /a}
    route: {cluster: c, request_mirror_policies: [{cluster: m}]}
  - match: {prefix: /b}
    route: {cluster: c, request_mirror_policies: [{cluster: m}], hash_policy: [{header: {header_name: a}}]}
    typed_per_filter_config:
      f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
  - match: {prefix: /c}
    route: {cluster: c, max_stream_duration: {grpc_timeout_header_max: 5s}, retry_policy: {retry_on: 'bogus,5xx'}}
",
    ));
    assert_eq!(
        found,
        [
            "virtual_hosts[].cors 1",
            "virtual_hosts[].routes[].route.hash_policy 1",
            "virtual_hosts[].routes[].route.max_stream_duration.grpc_timeout_header_max 1",
            "virtual_hosts[].routes[].route.request_mirror_policies 2",
            "virtual_hosts[].routes[].route.retry_policy.retry_on[\"bogus\"] 1",
            "virtual_hosts[].routes[].typed_per_filter_config 1",
        ]
    );
}

#[test]
fn clusters() {
    let found = fields(cluster_of(
        "
name: c
type: EDS
eds_cluster_config: {eds_config: {ads: {}}}
lb_policy: RING_HASH
outlier_detection: {consecutive_5xx: 7}
health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]
circuit_breakers: {thresholds: [{retry_budget: {}}, {priority: HIGH, max_retries: 9}]}
",
    ));
    assert_eq!(
        found,
        [
            "circuit_breakers.thresholds[].retry_budget 1",
            "health_checks 1",
            "lb_policy 1",
            "outlier_detection 1",
        ]
    );
}

#[test]
fn connection_managers() {
    let yaml = LISTENER.replace(
        "upgrade_configs:",
        "drain_timeout: 9s\n      upgrade_configs:",
    );
    assert_eq!(
        fields(listener_of(&yaml)),
        ["filter_chains[].filters[].typed_config.drain_timeout 1"]
    );
}

#[test]
fn a_route_that_no_plain_request_meets_is_left_out() {
    let routes = routes_of(
        "
name: r
virtual_hosts:
- name: v
  domains: ['*']
  routes:
  - {match: {prefix: /, tls_context: {presented: true}}, route: {cluster: a}}
  - {match: {prefix: /, tls_context: {presented: false}}, route: {cluster: b}}
",
    )
    .unwrap()
    .value;
    assert_eq!(routes.virtual_hosts[0].routes.len(), 1);
}
