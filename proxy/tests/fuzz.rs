//! The fuzz targets' bodies on stable.
#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/whole.rs"]
#[expect(dead_code, reason = "the tests of HTTP need more of their peers")]
mod whole;

use millrace_testkit::fuzz::{self, Target, target};
use whole::support;

#[test]
fn fuzz_targets_survive() {
    // Each input makes a proxy and an upstream of its own.
    let http = Target {
        inputs: 100,
        ..target("http", whole::http)
    };
    fuzz::run(
        env!("CARGO_MANIFEST_DIR"),
        &[
            target("access_log", bodies::access_log),
            target("bootstrap", bodies::bootstrap),
            target("dns", bodies::dns),
            target("framing", bodies::framing),
            target("handoff", bodies::handoff),
            target("handover", whole::handover),
            http,
            target("inspector", bodies::inspector),
            target("resources", bodies::resources),
            target("state", bodies::state),
        ],
    );
}

/// A seed that is not what it says would make the runs above blind.
#[test]
fn seeds_are_of_their_kind() {
    use millrace_proxy::handover::claim::Granting;
    use millrace_runtime::handoff::{AccelCall, AgentCall, ProxyRequest, decode};
    let read = |name: &str| {
        let path = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    };
    assert!(decode::<ProxyRequest>(&read("handoff/proxy-hello")[1..], 0).is_ok());
    assert!(decode::<AgentCall>(&read("handoff/agent-adopts")[1..], 0).is_ok());
    assert!(decode::<Granting>(&read("handoff/claim-sockets")[1..], 2).is_ok());
    assert!(decode::<AccelCall>(&read("handoff/accel-promotion")[1..], 0).is_ok());
    for name in ["bytes", "http", "tunnel", "undecided"] {
        assert!(
            whole::is_taken(&read(&format!("handover/{name}"))),
            "{name}"
        );
    }
    let routes = millrace_proxy::xds::convert::route_configuration(&read("resources/routes"));
    assert!(routes.is_ok(), "{routes:?}");
    let text = String::from_utf8(read("bootstrap/static.yaml")).unwrap();
    let node = millrace_xds::node::Node::default();
    let bootstrap = millrace_proxy::bootstrap::parse(&text, "static.yaml", &node);
    assert!(bootstrap.is_ok());
}
