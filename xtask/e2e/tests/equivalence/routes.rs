//! Where rules send requests and connections, and what the client's proxy says of it in its access log.

use std::time::Duration;

use anyhow::Context as _;
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Request, Response};
use millrace_testkit::until;
use serde_json::Value;

use crate::observation::Observation;
use crate::scene::{SOON, Scene};
use crate::server;

/// The last line of the access log of the client's proxy that satisfies `wanted`, as soon as there is one.
/// Where one proxy serves both ends it logs a request once.
pub(crate) fn log_line(scene: &Scene, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    until(SOON, || {
        let log = scene.log();
        let mut lines = log
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines
            .find(|line| wanted(line))
            .context("no such line in the access log")
    })
}

/// What the log says of an outcome; addresses are another behaviour's.
const FIELDS: [&str; 11] = [
    "authority",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_code_details",
    "response_flags",
    "route_name",
    "upstream_cluster",
    "bytes_received",
    "requested_server_name",
];

fn said(line: &Value) -> String {
    let field = |name: &&str| format!("{name}={}", line[*name].to_string().replace('"', ""));
    FIELDS.iter().map(field).collect::<Vec<_>>().join(" ")
}

fn answered(answer: &Response) -> String {
    let from = answer.headers.first("x-server").unwrap_or("the proxy");
    let more = ["location", "x-answer"].map(|name| answer.headers.first(name).unwrap_or("-"));
    let body = if from == "the proxy" {
        answer.text()
    } else {
        String::new()
    };
    format!(
        "{} from {from}, {} {}, {body:?}",
        answer.status, more[0], more[1]
    )
}

/// Requests that rules decide about.
pub(crate) fn requests(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let to = scene.service("routed", server::HTTP, false);
    for (name, path, header) in [
        ("answered by the rule", "/ready", None),
        ("by header", "/by-header", Some(("x-to", "far"))),
        ("by another header", "/other-header", Some(("x-to", "near"))),
        ("redirected", "/old", None),
        ("rewritten", "/rewrite/me", None),
        ("too slow", "/hold/routed", None),
        ("headers", "/headers", Some(("x-gone", "1"))),
        ("a subset of nobody", "/subset-of-nobody", None),
        ("a service that is not there", "/nowhere", None),
        ("by weight", "/all-to-far", None),
        ("by default", "/default", None),
    ] {
        let mut request = Request::get("routed:8080", path);
        if let Some((name, value)) = header {
            request.headers.add(name, value);
        }
        let answer = scene.ask(to, &request)?;
        seen.see(format!("{name}: answer"), answered(&answer));
        if let Ok(server) = Seen::of(&answer) {
            let sets = ["x-set", "x-gone", "host"].map(|name| server.header(name).unwrap_or("-"));
            seen.see(
                format!("{name}: at the server"),
                format!("{} {sets:?}", server.path),
            );
        }
        let line = log_line(scene, |line| {
            line["path"] == path || line["path"] == "/written" && name == "rewritten"
        });
        seen.see_result(format!("{name}: logged"), line.map(|line| said(&line)));
    }
    let request = Request::get("routed:8080", "/retry/all").header("x-echo-status", "503");
    let answer = scene.ask(to, &request)?;
    seen.see("tried again: answer", answered(&answer));
    seen.see(
        "tried again: times",
        scene.near.servers.seen.requests("/retry/all"),
    );
    let line = log_line(scene, |line| line["path"] == "/retry/all");
    seen.see_result("tried again: logged", line.map(|line| said(&line)));
    Ok(seen)
}

/// Requests that no rule is for and no endpoint takes.
pub(crate) fn failures(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for (name, service, port) in [
        ("no endpoints", "empty", server::HTTP),
        ("nobody listens near", "near", server::CLOSED_HTTP),
        ("nobody listens far", "far", server::CLOSED_HTTP),
    ] {
        let path = format!("/{}", name.replace(' ', "-"));
        let host = format!("{service}:{port}");
        let answer = scene.ask(
            scene.service(service, port, false),
            &Request::get(&host, &path),
        )?;
        seen.see(format!("{name}: answer"), answered(&answer));
        let line = log_line(scene, |line| line["path"] == path.as_str());
        seen.see_result(format!("{name}: logged"), line.map(|line| said(&line)));
    }
    Ok(seen)
}

/// Connections that rules for TCP decide about.
pub(crate) fn connections(scene: &Scene) -> anyhow::Result<Observation> {
    use std::io::{Read as _, Write as _};

    let mut seen = Observation::default();
    let mut stream = scene
        .client
        .connect(scene.service("routed", server::CONTROL, false))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"seen\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let address = said.split(' ').nth(1).context("the server saw nothing")?;
    seen.see("the rest", scene.whose(address.parse()?));

    let to = scene.service("routed", server::ECHO, true);
    let mut stream = scene.client.connect(to)?;
    millrace_testkit::raw::exchange_half_closed(&mut stream, b"routed", SOON)?;
    drop(stream);
    let wanted = format!("[{}]:{}", to.ip(), to.port());
    let line = log_line(scene, |line| {
        line["downstream_local_address"] == wanted.as_str()
    })?;
    for field in [
        "upstream_cluster",
        "response_flags",
        "bytes_sent",
        "bytes_received",
    ] {
        seen.see(format!("by port: {field}"), &line[field]);
    }
    Ok(seen)
}
