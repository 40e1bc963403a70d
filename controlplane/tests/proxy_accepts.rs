//! Our own proxy takes every resource of the goldens, and executes all of it but what is listed here.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use millrace_proxy::xds::convert::{self, Invalid, Unsupported};
use millrace_xds::json;
use serde_json::Value;

/// What pilot says to everybody and our proxy does without.
const NOT_EXECUTED: [&str; 2] = [
    "filter_chains[].filters[].typed_config.tracing: is not supported and has no effect",
    "listener_filters[].filter_disabled: the filter runs on every connection",
];
/// What pilot says to stock Envoy alone; our proxy would serve the rest of it.
const OF_STOCK_ENVOY: [&str; 8] = [
    "filter_chains[].filters[].typed_config.hash_policy: is not supported and has no effect",
    "filter_chains[].filters[].typed_config.http_filters[][\"envoy.extensions.filters.http.fault.v3.HTTPFault\"]: the filter does not run",
    "lb_policy: endpoints are chosen in turn, without hashing",
    "maglev_lb_config: is not supported and has no effect",
    "outlier_detection: is not supported and has no effect",
    "ring_hash_lb_config: is not supported and has no effect",
    "virtual_hosts[].routes[].route.hash_policy: is not supported and has no effect",
    "virtual_hosts[].routes[].typed_per_filter_config: is not supported and has no effect",
];

fn convert(kind: &str, bytes: &[u8]) -> Result<Vec<Unsupported>, Invalid> {
    match kind {
        "CDS" => convert::cluster(bytes, true).map(|converted| converted.unsupported),
        "EDS" => convert::endpoints(bytes).map(|converted| converted.unsupported),
        "LDS" => convert::listener(bytes).map(|converted| converted.unsupported),
        "RDS" => convert::route_configuration(bytes).map(|converted| converted.unsupported),
        _ => convert::name_table(bytes).map(|converted| converted.unsupported),
    }
}

#[test]
fn our_proxy_takes_every_golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    let (mut refused, mut all_left) = (Vec::new(), [BTreeSet::new(), BTreeSet::new()]);
    for case in fs::read_dir(root).unwrap() {
        let views = ["node.golden.json", "sidecar.golden.json"];
        for (view, left) in views.iter().zip(&mut all_left) {
            let path = case.as_ref().unwrap().path().join(view);
            let golden: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            for (kind, resources) in golden.as_object().unwrap() {
                for resource in resources.as_array().unwrap() {
                    let any = json::any_from_value(resource).unwrap();
                    match convert(kind, &any.value) {
                        Ok(unsupported) => left.extend(
                            unsupported
                                .into_iter()
                                .map(|item| format!("{}: {}", item.field, item.effect)),
                        ),
                        Err(error) => refused.push(format!("{}: {error}", path.display())),
                    }
                }
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    let [left_of_node, left_of_envoy] = all_left;
    let known: BTreeSet<String> = NOT_EXECUTED.map(str::to_owned).into();
    assert_eq!(left_of_node, known);
    let beyond: Vec<&String> = left_of_envoy.difference(&known).collect();
    assert_eq!(beyond, OF_STOCK_ENVOY);
}
