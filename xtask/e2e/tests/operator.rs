//! What an operator does with `millctl` on a node that serves: each command against the real sockets of
//! agent, proxy and pilot, as a table, as JSON, and by its exit code.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::Scene;
use millrace_testkit::http::Request;
use millrace_testkit::mesh::MeshNode;
use millrace_testkit::{require, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

/// Runs `millctl` on a node.
fn millctl(node: &MeshNode, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(node.mesh().cluster().binary("millctl")?);
    command
        .args(arguments)
        .arg("--run-dir")
        .arg(node.run_dir())
        .args(["--pilot", &node.mesh().pilot().http_addr().to_string()]);
    node.output(command)
}

/// What a command prints that is to end with this exit code.
fn printed(node: &MeshNode, code: i32, arguments: &[&str]) -> anyhow::Result<String> {
    let output = millctl(node, arguments)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "millctl {arguments:?}: {}: {error}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    eprintln!("millctl {}\n{text}{error}", arguments.join(" "));
    Ok(if code == 1 { error.into_owned() } else { text })
}

fn table(node: &MeshNode, arguments: &[&str]) -> anyhow::Result<String> {
    printed(node, 0, arguments)
}

fn document(node: &MeshNode, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = printed(node, 0, &[arguments, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// The table's line in which all of `words` occur.
fn line<'a>(text: &'a str, words: &[&str]) -> anyhow::Result<&'a str> {
    let found = text
        .lines()
        .find(|line| words.iter().all(|word| line.contains(word)));
    found.with_context(|| format!("no line with {words:?} in\n{text}"))
}

#[test]
fn status_tells_how_each_pod_is_captured_and_fails_where_one_is_not() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let node = &scene.near;
    let address = scene.client.ip().to_string();

    let text = table(node, &["status"])?;
    line(&text, &["node near", "broker connected", "eBPF loaded"])?;
    line(
        &text,
        &["2 pods, 2 enrolled (2 eBPF, 0 iptables), 0 unhealthy"],
    )?;
    line(&text, &["proxy LIVE", "serving from control plane"])?;
    let row = line(&text, &["default", "client", &address, "ebpf"])?;
    assert!(row.ends_with("yes"), "{row}");

    node.switch(&scene.client, "iptables")?;
    let shown = document(node, &["status", "default/client"])?;
    let [pod] = &shown["pods"].as_array().context("no pods")?[..] else {
        anyhow::bail!("one pod was asked for: {shown}");
    };
    assert_eq!(pod["capture"], "iptables", "{pod}");
    assert_eq!(pod["healthy"], true, "{pod}");
    for told in ["reason", "since"] {
        assert!(pod[told].as_str().is_some_and(|it| !it.is_empty()), "{pod}");
    }

    let error = printed(node, 1, &["status", "nobody"])?;
    assert!(error.contains("no pod of this node is called"), "{error}");

    // A pod whose namespace is gone is known, not captured, and makes the answer an unhealthy one.
    let lost = json!({
        "name": "lost", "netns": "/run/netns/millrace-no-such", "ips": ["10.244.1.250"],
        "labels": {"millrace.io/dataplane-mode": "node"},
    });
    node.agent_request(&Request::new("POST", "agent", "/pods").body(lost.to_string()))?;
    until(SOON, || {
        let text = printed(node, 2, &["status"])?;
        let row = line(&text, &["default", "lost", "10.244.1.250", "none"])?;
        ensure!(row.ends_with("NO"), "{row}");
        line(&text, &["default/lost: "]).map(drop)
    })
}

#[test]
fn precheck_tells_what_this_kernel_can_do_with_and_without_an_agent() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let node = &scene.near;
    let text = table(node, &["precheck"])?;
    line(&text, &["pods are captured by eBPF"])?;
    line(
        &text,
        &["kernel ", "cgroup2 /", "(asked the running agent)"],
    )?;
    line(&text, &["ebpf", "available"])?;
    line(&text, &["iptables", "available"])?;
    line(&text, &["program millrace_connect4", "available"])?;
    let found = document(node, &["precheck"])?;
    let features = found["kernel"]["features"].as_array();
    let features = features.context("no features")?;
    assert!(features.len() > 10, "{found}");
    assert!(features.iter().all(|it| it["verdict"] == "available"));

    node.stop()?;
    let text = table(node, &["precheck"])?;
    line(&text, &["`millrace-agent probe`, as no agent runs here"])?;
    line(&text, &["ebpf", "available"])?;
    // Every other command says whom it missed, and what helps.
    let error = printed(node, 1, &["status"])?;
    assert!(error.contains("agent cannot be asked"), "{error}");
    assert!(error.contains("--run-dir"), "{error}");
    let error = printed(node, 1, &["proxy-config", "routes"])?;
    assert!(error.contains("proxy cannot be asked"), "{error}");
    Ok(())
}

#[test]
fn proxy_config_shows_what_the_proxy_serves() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    scene.only("v2")?;
    scene.answered_by("echo-v2")?;
    let node = &scene.near;
    let host = scene.service.host();
    let config = |what: &str| table(node, &["proxy-config", what, "echo"]);

    let text = table(node, &["proxy-config", "listeners"])?;
    line(&text, &["default/0.0.0.0_8080", "outbound", "route "])?;
    line(&text, &["default/virtualOutbound"])?;
    line(&text, &["pod/default/echo-v1", "inbound"])?;
    let text = config("routes")?;
    line(
        &text,
        &["default/8080", &format!("outbound|8080|v2|{host}")],
    )?;
    let text = config("clusters")?;
    let cluster = format!("outbound|8080|v2|{host}");
    line(&text, &[&cluster, "xds"])?;
    let text = config("endpoints")?;
    let endpoint = scene.backends[1].pod.at(Scene::HTTP).to_string();
    line(&text, &[&endpoint, "healthy", &cluster])?;

    for (what, key) in [
        ("listeners", "listener_statuses"),
        ("routes", "routes"),
        ("clusters", "cluster_statuses"),
        ("endpoints", "cluster_statuses"),
    ] {
        let document = document(node, &["proxy-config", what])?;
        let list = document[key].as_array().context("no list")?;
        assert!(!list.is_empty(), "{what}: {document}");
    }
    let dump = document(node, &["proxy-config", "dump"])?;
    assert!(dump["configs"].is_array(), "{dump}");
    Ok(())
}

#[test]
fn proxy_status_shows_how_far_each_proxy_is() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let node = &scene.near;
    until(SOON, || {
        let text = table(node, &["proxy-status"])?;
        for name in ["~near~", "~far~"] {
            let row = line(&text, &[name, "delta"])?;
            ensure!(row.matches("SYNCED").count() == 5, "{row}");
        }
        Ok(())
    })?;
    let text = table(node, &["proxy-status", "~far~"])?;
    line(&text, &["RDS", "SYNCED"])?;
    assert!(!text.contains("~near~"), "{text}");
    let shown = document(node, &["proxy-status"])?;
    assert_eq!(shown.as_array().map(Vec::len), Some(2), "{shown}");
    let error = printed(node, 1, &["proxy-status", "nobody"])?;
    assert!(error.contains("no client of pilot is called"), "{error}");
    Ok(())
}

#[test]
fn log_levels_change_while_everything_runs() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let node = &scene.near;
    let level = |part: &str| -> anyhow::Result<String> {
        let document = document(node, &["log"])?;
        let level = document[part]["level"].as_str();
        Ok(level.with_context(|| format!("{document}"))?.to_owned())
    };
    for (part, filter) in [
        ("proxy", "info,millrace_proxy::http=debug"),
        ("agent", "debug"),
        ("pilot", "debug"),
        ("kernel", "debug"),
    ] {
        let before = level(part)?;
        let text = table(node, &["log", part, filter])?;
        line(&text, &[part, "debug"])?;
        let now = level(part)?;
        assert_ne!(before, now, "{part}");
        assert!(now.contains("debug"), "{part}: {now}");
    }
    let error = printed(node, 1, &["log", "kernel", "loud"])?;
    assert!(error.contains("is not off, error, warn"), "{error}");

    // What the programs say is seen whatever the agent's own level, and no longer once it is off.
    table(node, &["log", "agent", "warn"])?;
    let said = |from: &str, to: u16| {
        let log = node.log();
        let wanted = format!("]:{to} outcome {from}");
        log.lines()
            .filter(|line| line.contains("connect redirected") && line.contains(&wanted))
            .count()
    };
    assert_eq!(scene.ask()?.status, 200);
    until(SOON, || {
        let log = node.log();
        ensure!(said("redirected", Scene::HTTP) > 0, "not logged: {log}");
        Ok(())
    })?;
    table(node, &["log", "kernel", "off"])?;
    // The ring keeps the order, so a later message that is read means that earlier ones were.
    let mark = |port: u16| -> anyhow::Result<()> {
        table(node, &["log", "kernel", "debug"])?;
        drop(scene.client.connect(scene.service.at(port)));
        until(SOON, || {
            ensure!(said("redirected", port) > 0, "not logged: {port}");
            Ok(())
        })
    };
    mark(Scene::TCP)?;
    table(node, &["log", "kernel", "off"])?;
    let before = said("redirected", Scene::HTTP);
    for _ in 0..3 {
        assert_eq!(scene.ask()?.status, 200);
    }
    mark(1)?;
    assert_eq!(said("redirected", Scene::HTTP), before);
    Ok(())
}

#[test]
fn version_names_every_part_and_what_does_not_answer() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let versions = document(&scene.near, &["version"])?;
    let own = versions["millctl"]["version"].clone();
    assert!(own.is_string(), "{versions}");
    for part in ["agent", "proxy", "pilot"] {
        assert_eq!(versions[part]["version"], own, "{versions}");
    }
    scene.mesh.pilot().kill()?;
    let text = table(&scene.near, &["version"])?;
    line(&text, &["agent", own.as_str().unwrap_or_default()])?;
    line(&text, &["pilot: pilot cannot be asked"])?;
    Ok(())
}

/// A route of each end that a request can have; the last is to no route.
const ENDS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: default}
spec:
  host: echo
  subsets:
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: default}
spec:
  hosts: [echo]
  http:
  - name: forwarded
    match: [{uri: {prefix: /forwarded}, headers: {x-wants: {exact: two}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - name: redirected
    match: [{uri: {prefix: /redirected}}]
    redirect: {uri: /elsewhere}
  - name: no_endpoint
    match: [{uri: {prefix: /no_endpoint}}]
    route: [{destination: {host: echo, subset: v3}}]
  - name: no_cluster
    match: [{uri: {prefix: /no_cluster}}]
    route: [{destination: {host: nobody}}]
";

#[test]
fn explain_says_what_really_becomes_of_requests() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    scene.rule(ENDS)?;
    let call = |end: &str| explained(&scene, end);
    until(SOON, || {
        let (_, told, _) = call("forwarded")?;
        ensure!(told["route"]["name"] == "forwarded", "{told}");
        let endpoints = &told["clusters"][0]["endpoints"];
        ensure!(endpoints[0]["share"] == 100.0, "{told}");
        Ok(())
    })?;
    for end in [
        "forwarded",
        "redirected",
        "no_endpoint",
        "no_cluster",
        "no_route",
    ] {
        let (path, told, code) = call(end)?;
        assert_eq!(told["answer"]["outcome"], end, "{told}");
        let gets_through = ["forwarded", "redirected"].contains(&end);
        assert_eq!(code, Some(if gets_through { 0 } else { 2 }), "{told}");

        let request = Request::get(Scene::HOST, &path).header("x-wants", "two");
        let status = scene.connect()?.send(&request)?.status;
        let log = scene.logged(|line| line["path"] == path)?;
        assert_eq!(log["response_code"], status, "{log}");
        as_logged(&told, &log);
    }
    Ok(())
}

/// The path of a request that is to have this end, what is told of it, and how `millctl` ends.
fn explained(scene: &Scene, end: &str) -> anyhow::Result<(String, Value, Option<i32>)> {
    let path = format!("/{end}/1");
    let asked = ["explain", "client", Scene::HOST, "--path", &path];
    let asked = [&asked[..], &["-H", "x-wants=two", "-o", "json"]].concat();
    let output = millctl(&scene.near, &asked)?;
    let error = String::from_utf8_lossy(&output.stderr);
    let told = serde_json::from_slice(&output.stdout).with_context(|| error.into_owned())?;
    Ok((path, told, output.status.code()))
}

/// What was told of a request is what the access log says of it.
fn as_logged(told: &Value, log: &Value) {
    let answer = &told["answer"];
    let cluster = &told["clusters"][0];
    let or = |value: &Value, other: &str| match value {
        Value::Null => other.to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let logged = |field: &str| or(&log[field], "");
    assert_eq!(
        or(&answer["status"], "200"),
        logged("response_code"),
        "{log}"
    );
    assert_eq!(
        or(&answer["flags"], "-"),
        or(&log["response_flags"], "-"),
        "{log}"
    );
    let details = or(&answer["details"], "via_upstream");
    assert_eq!(details, logged("response_code_details"), "{log}");
    assert_eq!(
        or(&told["route"]["name"], ""),
        logged("route_name"),
        "{log}"
    );
    if answer["outcome"] != "no_cluster" {
        assert_eq!(
            or(&cluster["name"], ""),
            logged("upstream_cluster"),
            "{log}"
        );
    }
    let endpoint = &cluster["endpoints"][0];
    assert_eq!(
        or(&endpoint["address"], ""),
        logged("upstream_host"),
        "{log}"
    );
}

#[test]
fn explain_names_objects_with_their_lines_and_the_way_into_a_pod() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    scene.rule(ENDS)?;
    let node = &scene.near;
    let asked = ["explain", "client", Scene::HOST, "--path", "/forwarded"];
    let asked = [&asked[..], &["-H", "x-wants=two"]].concat();
    let of = |part: &str| {
        1 + ENDS
            .lines()
            .position(|line| line.contains(part))
            .unwrap_or_default()
    };
    let (rule, subset) = (of("name: forwarded"), of("name: v2"));
    until(SOON, || {
        let text = table(node, &asked)?;
        let place = format!("(rule.yaml:{rule})");
        line(
            &text,
            &["by VirtualService default/echo spec.http[0]", &place],
        )?;
        let place = format!("(rule.yaml:{subset})");
        line(
            &text,
            &["by DestinationRule default/echo spec.subsets[0]", &place],
        )?;
        let endpoint = scene.backends[1].pod.at(Scene::HTTP).to_string();
        line(&text, &[&endpoint, "100 %", "healthy"]).map(drop)
    })?;

    let own = scene.backends[0].pod.at(Scene::HTTP).to_string();
    let text = table(node, &["explain", "192.0.2.7", &own])?;
    line(&text, &["direction", "inbound"])?;
    line(&text, &["listener", "pod/default/echo-v1"])?;
    line(&text, &["cluster", "inbound|8080||"])?;
    let far = scene.backends[1].pod.at(Scene::HTTP).to_string();
    let error = printed(node, 1, &["explain", "192.0.2.7", &far])?;
    assert!(error.contains("is a pod of this node"), "{error}");
    let error = printed(node, 1, &["explain", "nobody", Scene::HOST])?;
    assert!(
        error.contains("no pod of this node is called nobody"),
        "{error}"
    );

    // Without pilot everything is told but where the objects stand.
    scene.mesh.pilot().kill()?;
    let text = table(node, &asked)?;
    line(&text, &["by VirtualService default/echo spec.http[0]"])?;
    line(&text, &["no files and lines: pilot cannot be asked"]).map(drop)
}
