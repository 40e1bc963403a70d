//! The fuzz targets' bodies on stable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use millrace_testkit::fuzz::{self, target};
use millrace_xds::proto::{
    Cluster, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    RouteConfiguration,
};
use prost::Message;

#[test]
fn fuzz_targets_survive() {
    fuzz::run(
        env!("CARGO_MANIFEST_DIR"),
        &[
            target("json", bodies::json),
            target("requests", bodies::requests),
            target("resources", bodies::resources),
            target("responses", bodies::responses),
        ],
    );
}

/// A seed that is not what it says would make the runs above blind.
#[test]
fn seeds_are_of_their_kind() {
    fn read<M: Message + Default>(name: &str) -> M {
        let path = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        M::decode(&std::fs::read(path).unwrap()[..]).unwrap()
    }
    let request: DeltaDiscoveryRequest = read("requests/delta");
    assert_eq!(request.resource_names_subscribe.len(), 4);
    assert_eq!(request.node.unwrap().metadata.unwrap().fields.len(), 2);
    let request: DiscoveryRequest = read("requests/state-of-the-world");
    assert_eq!(request.resource_names, ["a", "*"]);
    let response: DeltaDiscoveryResponse = read("responses/delta");
    assert_eq!(response.resources[0].name, "a");
    assert_eq!(response.removed_resources, ["b", "ns/*"]);
    let response: DiscoveryResponse = read("responses/state-of-the-world");
    assert_eq!(response.resources.len(), 1);
    let cluster: Cluster = read("resources/cluster-with-maps");
    assert_eq!(cluster.metadata.unwrap().filter_metadata.len(), 2);
    let routes: RouteConfiguration = read("resources/routes");
    assert_eq!(routes.virtual_hosts[0].routes.len(), 1);
}
