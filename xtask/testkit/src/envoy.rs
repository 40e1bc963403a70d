//! What a stock Envoy is started with to be a sidecar of ours.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// A bootstrap that takes everything by ADS in this variant (`GRPC`, `DELTA_GRPC`) from the pilot at `pilot`.
pub fn bootstrap(node_id: &str, api_type: &str, pilot: SocketAddr) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let address =
        json!({ "socket_address": { "address": pilot.ip(), "port_value": pilot.port() } });
    json!({
        "node": { "id": node_id, "cluster": "sidecar" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": { "cluster_name": "xds", "endpoints": [
                { "lb_endpoints": [{ "endpoint": { "address": address } }] },
            ] },
        }] },
    })
}
