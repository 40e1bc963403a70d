//! The fuzz targets' bodies on stable: arbitrary bytes, and valid input with bytes changed.
#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use millrace_runtime::handoff::{PROTOCOL_VERSION, ProxyRequest};
use millrace_testkit::fuzz;
use millrace_xds::json::from_yaml;
use millrace_xds::proto::{self, pack};

const ROUTES: &str = "name: r\nvirtual_hosts:\n- {name: v, domains: ['*'], routes: [{match: {prefix: /a}, route: {cluster: c, timeout: 1s}}]}\n";

/// Valid input of each body.
fn seeds() -> Vec<Vec<u8>> {
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07reviews\x07default\x03svc\x07cluster\x05local\0\0\x01\0\x01";
    let hello = ProxyRequest::Hello {
        version: PROTOCOL_VERSION,
        epoch: 1,
        workers: 2,
        pid: 3,
    };
    let hello = serde_json::to_vec(&hello).unwrap();
    vec![
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x82"
            .to_vec(),
        b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03"
            .iter()
            .copied()
            .chain([7; 40])
            .collect(),
        question.to_vec(),
        pack(&from_yaml::<proto::RouteConfiguration>(ROUTES).unwrap()).value,
        b"%START_TIME(%Y)% %REQ(X?:PATH):9% %RESPONSE_FLAGS%\n".to_vec(),
        [&[0][..], &hello].concat(),
    ]
}

fn run(data: &[u8]) {
    bodies::inspector(data);
    bodies::dns(data);
    bodies::state(data);
    bodies::framing(data);
    bodies::resources(data);
    bodies::access_log(data);
    bodies::handoff(data);
}

#[test]
fn seeds_are_read() {
    for seed in seeds() {
        run(&seed);
    }
}

#[test]
fn arbitrary_bytes_are_survived() {
    fuzz::arbitrary(run);
}

#[test]
fn changed_input_is_survived() {
    fuzz::changed(&seeds(), run);
}
