//! One request, hop by hop, from the proxies' access logs; and the same call outside the mesh.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::until;
use serde::Serialize;
use serde_json::{Value, json};

use super::bookinfo::{Bookinfo, PORT, call};
use super::narrate::Narrator;
use crate::client::{Called, Latencies};

/// How many calls, one after the other, give the latencies that are compared.
const CALLS: &str = "300";
/// Access logs are written in batches.
const LOGGED: Duration = Duration::from_secs(5);
/// Who must have seen which part of the page's request: each call leaves through the caller's node, and
/// details is on the other one. Reviews v1 is on both, and asks nobody.
const EXPECTED: [(&str, &str); 4] = [
    ("node-a", "GET /productpage"),
    ("node-a", "GET /details/0"),
    ("node-b", "GET /details/0"),
    ("node-a", "GET /reviews/0"),
];

/// Settings of the demo's mesh: records of what is shown, with times in microseconds.
pub(super) fn mesh_config() -> String {
    let fields = json!({
        "start_time": "%START_TIME(%FT%T.%6fZ)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "response_code": "%RESPONSE_CODE%",
        "response_flags": "%RESPONSE_FLAGS%",
        "upstream_host": "%UPSTREAM_HOST%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
        "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
        "first_byte_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%",
    });
    let settings = json!({
        "accessLogFile": "/dev/stdout",
        "accessLogEncoding": "JSON",
        "accessLogFormat": fields.to_string(),
    });
    settings.to_string()
}

/// A request's way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Traced {
    request_id: String,
    pub(super) hops: Vec<Hop>,
    /// The page through the mesh.
    pub(super) mesh: Latencies,
    /// The page of the twin that no mesh captures.
    pub(super) outside: Latencies,
    errors: u64,
}

/// What one proxy did for the request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Hop {
    node: String,
    start: String,
    call: String,
    cluster: String,
    upstream: String,
    status: u64,
    flags: String,
    /// From the first byte of the request to the last of the response.
    duration_us: u64,
    /// Of this, until the upstream's first byte.
    first_byte_us: u64,
}

impl Traced {
    pub(super) fn ok(&self) -> bool {
        self.errors == 0
            && unseen(&self.hops).is_empty()
            && self.hops.iter().all(|hop| hop.status == 200)
            && self.mesh.p50_us > 0.0
            && self.outside.p50_us > 0.0
    }
}

pub(super) fn show(bookinfo: &Bookinfo, narrator: &Narrator) -> anyhow::Result<Traced> {
    narrator.title("One request, hop by hop");
    let client = bookinfo.clients.first().context("no client")?;
    let url = format!("http://productpage:{PORT}/productpage");
    let id = format!("0de30000-0000-4000-8000-{:012x}", std::process::id());
    let header = format!("x-request-id: {id}");
    let called = call(client, &url, &["--header", &header])?;
    ensure!(called.ok == 1, "the page failed: {:?}", called.errors);
    let hops = until(LOGGED, || {
        let hops = logged(bookinfo, &id);
        let unseen = unseen(&hops);
        ensure!(unseen.is_empty(), "not logged: {}", unseen.join(", "));
        Ok(hops)
    })?;
    narrator.say(format_args!("{url} with {header}"));
    for hop in &hops {
        narrator.say(format_args!(
            "    {:<8} {:<24} → {:<20} {:<45} {} {:>6} us, the first byte after {:>6} us",
            hop.node,
            hop.call,
            hop.upstream,
            hop.cluster,
            hop.status,
            hop.duration_us,
            hop.first_byte_us
        ));
    }
    compare(bookinfo, &url, id, hops, narrator)
}

fn compare(
    bookinfo: &Bookinfo,
    url: &str,
    request_id: String,
    hops: Vec<Hop>,
    narrator: &Narrator,
) -> anyhow::Result<Traced> {
    let client = bookinfo.clients.first().context("no client")?;
    let outside_url = format!("http://{}/productpage", bookinfo.outside.page);
    let mesh = call(client, url, &["--requests", CALLS])?;
    let outside = call(
        &bookinfo.outside.client,
        &outside_url,
        &["--requests", CALLS],
    )?;
    let errors = |called: &Called| called.errors.values().sum::<u64>();
    for (what, called) in [("through the mesh", &mesh), ("outside the mesh", &outside)] {
        narrator.check(
            called.errors.is_empty(),
            format_args!(
                "the page {what}: p50 {:.0} us, p99 {:.0} us over {CALLS} calls",
                called.latencies.p50_us, called.latencies.p99_us
            ),
        );
    }
    let errors = errors(&mesh) + errors(&outside);
    let (mesh, outside) = (mesh.latencies, outside.latencies);
    Ok(Traced {
        request_id,
        hops,
        mesh,
        outside,
        errors,
    })
}

/// What should have been seen of the request, and was not.
fn unseen(hops: &[Hop]) -> Vec<String> {
    let seen = |node: &str, call: &str| hops.iter().any(|hop| hop.node == node && hop.call == call);
    EXPECTED
        .iter()
        .filter(|(node, call)| !seen(node, call))
        .map(|(node, call)| format!("{call} on {node}"))
        .collect()
}

/// The access log records of the request on all nodes, in order of their beginning.
fn logged(bookinfo: &Bookinfo, id: &str) -> Vec<Hop> {
    let mut hops: Vec<Hop> = bookinfo
        .nodes
        .iter()
        .flat_map(|node| {
            let lines = node.log();
            let records = lines
                .lines()
                .filter(|line| line.contains(id))
                .filter_map(|line| Hop::read(node.name(), &serde_json::from_str(line).ok()?));
            records.collect::<Vec<_>>()
        })
        .collect();
    hops.sort_by(|a, b| a.start.cmp(&b.start));
    hops
}

impl Hop {
    fn read(node: &str, record: &Value) -> Option<Self> {
        let text = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
        Some(Self {
            node: node.to_owned(),
            start: text("start_time"),
            call: format!("{} {}", text("method"), text("path")),
            cluster: text("upstream_cluster"),
            upstream: text("upstream_host"),
            status: record["response_code"].as_u64()?,
            flags: text("response_flags"),
            duration_us: record["duration_us"].as_u64()?,
            first_byte_us: record["first_byte_us"].as_u64()?,
        })
    }
}
