//! `status`: the node and its pods.

use anyhow::bail;
use serde_json::{Value, json};

use crate::app::Output;
use crate::cli::Format;
use crate::peer::Peers;
use crate::table::Table;

/// Runs the command; not healthy where a pod or the node is not.
pub(crate) async fn run(
    peers: &Peers,
    pod: Option<&str>,
    format: Format,
) -> anyhow::Result<Output> {
    let node = peers.agent.json("/status").await?;
    let pods = peers.agent.json("/pods").await?;
    let pods = select(&pods, pod);
    if let Some(wanted) = pod.filter(|_| pods.is_empty()) {
        bail!("no pod of this node is called {wanted:?}");
    }
    // The agent alone knows pods; a proxy that does not answer is part of the answer.
    let proxy = peers.proxy.json("/server_info").await;
    let healthy = is_healthy(&node, &pods);
    if format == Format::Json {
        let proxy = proxy.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        let all = json!({"node": node, "proxy": proxy, "pods": pods});
        return Output::json(&all, healthy);
    }
    let mut text = String::new();
    if pod.is_none() {
        text = node_text(&node);
        text.push_str(&proxy_text(proxy.as_ref().map_err(|e| format!("{e:#}"))));
        text.push('\n');
    }
    text.push_str(&table(&pods).render("no pods on this node"));
    for one in &pods {
        text.push_str(&problems(one));
        text.push_str(&integrity(one, pod.is_some()));
        text.push_str(&acceleration(one));
    }
    Ok(Output::of_health(text, healthy))
}

fn select<'a>(pods: &'a Value, wanted: Option<&str>) -> Vec<&'a Value> {
    let pods = pods.as_array().into_iter().flatten();
    pods.filter(|pod| {
        wanted.is_none_or(|wanted| {
            let name = string(&pod["name"]);
            let full = format!("{}/{name}", string(&pod["namespace"]));
            name == wanted || full == wanted || string(&pod["uid"]) == wanted
        })
    })
    .collect()
}

fn is_healthy(node: &Value, pods: &[&Value]) -> bool {
    let node_fine = node["broker_connected"] != false
        && node["proxy_gone"] != true
        && node["problems"].as_array().is_none_or(Vec::is_empty);
    let pod_fine = |pod: &&Value| pod["enrolled"] != true || pod["healthy"] == true;
    node_fine && pods.iter().all(pod_fine)
}

fn node_text(node: &Value) -> String {
    let ebpf = match node["ebpf"]["reason"].as_str() {
        Some(reason) => format!("not available: {reason}"),
        None => "loaded".to_owned(),
    };
    let broker = if node["broker_connected"] == true {
        "connected"
    } else {
        "NOT CONNECTED"
    };
    let count = |key: &str| node["pods"][key].as_u64().unwrap_or_default();
    let mut text = format!(
        "node {}: agent since {}, broker {broker}, eBPF {ebpf}\n\
         {} pods, {} enrolled ({} eBPF, {} iptables), {} unhealthy\n",
        string(&node["node"]),
        string(&node["started"]),
        count("known"),
        count("enrolled"),
        count("ebpf"),
        count("iptables"),
        count("unhealthy"),
    );
    let proxies = node["proxies"].as_array().into_iter().flatten();
    let replaced = proxies.filter(|proxy| proxy["draining"] == true);
    let lines: Vec<_> = replaced
        .map(|proxy| {
            let (epoch, pid) = (&proxy["epoch"], &proxy["pid"]);
            format!("proxy of epoch {epoch} (process {pid}) ends its last connections\n")
        })
        .collect();
    text.push_str(&lines.concat());
    if node["proxy_gone"] == true {
        text.push_str("the proxy is GONE: no heartbeat within the deadline\n");
    }
    let problems = node["problems"].as_array().into_iter().flatten();
    let lines: Vec<_> = problems
        .map(|problem| format!("problem: {}\n", compact(problem)))
        .collect();
    text + &lines.concat() + &node_integrity(&node["integrity"])
}

/// What became of the programs that capture all pods, and who else is attached where they are.
fn node_integrity(found: &Value) -> String {
    let mut lines = Vec::new();
    let history = history(found);
    if !history.is_empty() {
        lines.push(format!("eBPF programs: {history}\n"));
    }
    for program in found["foreign"].as_array().into_iter().flatten() {
        let order = match program["order"].as_str() {
            Some("before") => "runs BEFORE Millrace's, which does not see what was asked for",
            Some("after") => "runs after Millrace's",
            _ => "is alone there",
        };
        lines.push(format!(
            "foreign program {} ({}) at hook {} of {} {order}\n",
            string(&program["name"]),
            string(&program["id"]),
            string(&program["hook"]),
            string(&program["at"]),
        ));
    }
    lines.concat()
}

/// How often something broke and was repaired, and what did last; nothing where nothing ever did.
fn history(found: &Value) -> String {
    let sum = |key: &str| {
        let counts = found[key].as_object().into_iter().flatten();
        counts.filter_map(|(_, n)| n.as_u64()).sum::<u64>()
    };
    let broken = sum("broken_total");
    if broken == 0 {
        return String::new();
    }
    let event = |key: &str| {
        let event = &found[key];
        format!(
            "{} ({}: {})",
            string(&event["at"]),
            string(&event["cause"]),
            string(&event["detail"])
        )
    };
    let repaired = if found["last_repaired"].is_null() {
        String::new()
    } else {
        format!(", last repaired {}", event("last_repaired"))
    };
    format!(
        "broken {broken} times, repaired {}, last broken {}{repaired}",
        sum("repaired_total"),
        event("last_broken")
    )
}

/// Whether the pod's capture is intact; where all is well only if it is asked for.
fn integrity(pod: &Value, asked_for: bool) -> String {
    let found = &pod["integrity"];
    let name = format!("{}/{}", string(&pod["namespace"]), string(&pod["name"]));
    let mut lines = Vec::new();
    let history = history(found);
    if !history.is_empty() {
        lines.push(format!("{name}: capture {history}\n"));
    }
    for rule in found["foreign"].as_array().into_iter().flatten() {
        lines.push(format!("{name}: foreign {}\n", string(rule)));
    }
    let ways = found["canary"]["ways"].as_object().into_iter().flatten();
    let ways: Vec<_> = ways
        .filter(|(_, way)| asked_for || way["ok"] != true)
        .map(
            |(way, state)| match (state["ok"].as_bool(), state["reason"].as_str()) {
                (Some(true), _) => format!("{way} answered"),
                (Some(false), Some(reason)) => format!("{way} FAILED: {reason}"),
                (_, reason) => format!("{way} says nothing: {}", reason.unwrap_or("not asked yet")),
            },
        )
        .collect();
    if !ways.is_empty() {
        let last = found["canary"]["last_success"].as_str().unwrap_or("never");
        lines.push(format!(
            "{name}: canary {}; all answered last: {last}\n",
            ways.join(", ")
        ));
    }
    lines.concat()
}

/// One word on the pod's canaries.
fn canary(pod: &Value) -> &'static str {
    let ways = pod["integrity"]["canary"]["ways"].as_object();
    let mut ways = ways.into_iter().flatten().map(|(_, way)| &way["ok"]);
    let (mut answered, mut failed) = (false, false);
    ways.by_ref().for_each(|ok| {
        answered |= *ok == true;
        failed |= *ok == false;
    });
    match (answered, failed) {
        (_, true) => "FAILED",
        (true, false) => "ok",
        (false, false) => "-",
    }
}

fn proxy_text(proxy: Result<&Value, String>) -> String {
    match proxy {
        Ok(info) => format!(
            "proxy {}, epoch {}{}, up {} s, serving from {}{}\n",
            string(&info["state"]),
            info["handover"]["epoch"].as_u64().unwrap_or_default(),
            taken(&info["handover"]),
            info["uptime_seconds"].as_u64().unwrap_or_default(),
            string(&info["freshness"]["serving"]),
            match info["freshness"]["control_plane"].as_str() {
                Some(state) => format!(" ({state})"),
                None => String::new(),
            }
        ),
        Err(error) => format!("proxy: {error}\n"),
    }
}

/// How many connections the proxy has from the epoch before it.
fn taken(handover: &Value) -> String {
    let counts = handover["adopted"].as_object().into_iter().flatten();
    let total: u64 = counts.filter_map(|(_, count)| count.as_u64()).sum();
    if total == 0 {
        return String::new();
    }
    let pause = handover["longest_pause_us"].as_u64().unwrap_or_default();
    format!(" ({total} connections taken over, longest pause {pause} µs)")
}

fn table(pods: &[&Value]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD",
        "IP",
        "CAPTURE",
        "WHY",
        "SINCE",
        "CANARY",
        "HEALTHY",
    ]);
    for pod in pods {
        let ips = pod["ips"].as_array().into_iter().flatten();
        let ips: Vec<_> = ips.map(string).collect();
        let healthy = match (pod["enrolled"] == true, pod["healthy"] == true) {
            (false, _) => "-",
            (true, true) => "yes",
            (true, false) => "NO",
        };
        table.row([
            string(&pod["namespace"]),
            string(&pod["name"]),
            ips.join(","),
            string(&pod["capture"]),
            string(&pod["reason"]),
            string(&pod["since"]),
            canary(pod).to_owned(),
            healthy.to_owned(),
        ]);
    }
    table
}

fn problems(pod: &Value) -> String {
    let name = format!("{}/{}", string(&pod["namespace"]), string(&pod["name"]));
    let annotations = pod["annotation_problems"].as_array().into_iter().flatten();
    let own = pod["problem"].as_str().map(str::to_owned);
    own.into_iter()
        .chain(annotations.map(string))
        .map(|problem| format!("{name}: {problem}\n"))
        .collect::<Vec<_>>()
        .concat()
}

/// What acceleration does for a pod; nothing where it is off and always was.
fn acceleration(pod: &Value) -> String {
    let counts = &pod["accelerated"];
    let count = |key: &str| counts[key].as_u64().unwrap_or_default();
    let setting = string(&pod["acceleration"]);
    if (setting.is_empty() || setting == "off") && count("promoted") == 0 {
        return String::new();
    }
    let refused = match compact(&counts["refused"]) {
        none if none.is_empty() => none,
        some => format!(", refused: {some}"),
    };
    let suspended = if counts["suspended"] == true {
        format!(", SUSPENDED: {} readers stalled", count("stalled"))
    } else {
        String::new()
    };
    format!(
        "{}/{}: acceleration {setting}, {} connections promoted, {} messages ({} bytes) past TCP, {} by TCP ({} at the cap), \
         {} returned to TCP{refused}{suspended}\n",
        string(&pod["namespace"]),
        string(&pod["name"]),
        count("promoted"),
        count("redirected_messages"),
        count("redirected_bytes"),
        count("tcp_messages"),
        count("capped"),
        count("returned"),
    )
}

/// A string as it is, anything else as JSON; nothing for null.
fn string(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn compact(value: &Value) -> String {
    let Some(fields) = value.as_object() else {
        return string(value);
    };
    let parts: Vec<_> = fields
        .iter()
        .filter(|(_, v)| !v.is_null())
        .map(|(k, v)| format!("{k} {}", string(v)))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, healthy: bool) -> Value {
        json!({
            "uid": name, "name": name, "namespace": "default", "ips": ["10.0.0.1"],
            "enrolled": true, "capture": "ebpf", "reason": "the kernel can",
            "since": "2026-11-21T10:00:00Z", "healthy": healthy,
            "problem": (!healthy).then_some("no proxy"), "annotation_problems": [],
        })
    }

    #[test]
    fn pods_are_a_table_with_their_problems_below() {
        let pods = json!([pod("a", true), pod("b", false)]);
        let chosen = select(&pods, None);
        let text = table(&chosen).render("none");
        let line = "default     b     10.0.0.1   ebpf      the kernel can   2026-11-21T10:00:00Z   -        NO";
        assert!(text.lines().any(|l| l == line), "{text}");
        assert_eq!(problems(chosen[1]), "default/b: no proxy\n");
        assert_eq!(select(&pods, Some("default/a")).len(), 1);
        assert!(select(&pods, Some("c")).is_empty());
    }

    #[test]
    fn acceleration_is_told_where_it_is_asked_for() {
        let mut pod = pod("a", true);
        pod["acceleration"] = json!("off");
        assert_eq!(acceleration(&pod), "");
        pod["acceleration"] = json!("auto");
        pod["accelerated"] = json!({
            "promoted": 3, "redirected_messages": 40, "redirected_bytes": 9000, "tcp_messages": 5,
            "capped": 1, "returned": 2, "refused": {"blocking": 7}, "stalled": 1, "suspended": true,
        });
        assert_eq!(
            acceleration(&pod),
            "default/a: acceleration auto, 3 connections promoted, 40 messages (9000 bytes) past TCP, 5 by TCP (1 at the cap), \
             2 returned to TCP, refused: blocking 7, SUSPENDED: 1 readers stalled\n"
        );
    }

    #[test]
    fn what_broke_and_who_interferes_is_told() {
        let mut pod = pod("a", true);
        assert_eq!(integrity(&pod, false), "");
        pod["integrity"] = json!({
            "broken_total": {"rules": 2}, "repaired_total": {"rules": 2},
            "last_broken": {"at": "T1", "cause": "rules", "detail": "missing: x"},
            "last_repaired": {"at": "T2", "cause": "rules", "detail": "missing: x"},
            "foreign": ["nft table ip lb"],
            "canary": {"last_success": "T3", "ways": {
                "outbound4": {"ok": true, "reason": null},
                "inbound4": {"ok": false, "reason": "no answer"},
            }},
        });
        assert_eq!(
            integrity(&pod, false),
            "default/a: capture broken 2 times, repaired 2, last broken T1 (rules: missing: x), last repaired T2 (rules: missing: x)\n\
             default/a: foreign nft table ip lb\n\
             default/a: canary inbound4 FAILED: no answer; all answered last: T3\n"
        );
        assert_eq!(canary(&pod), "FAILED");
        let node = json!({"foreign": [{"id": 7, "name": "cil_sock4", "hook": "connect4", "at": "/c", "order": "after"}]});
        assert_eq!(
            node_integrity(&node),
            "foreign program cil_sock4 (7) at hook connect4 of /c runs after Millrace's\n"
        );
    }

    #[test]
    fn one_unhealthy_pod_makes_the_answer_unhealthy() {
        let node = json!({"broker_connected": true, "proxy_gone": false, "problems": []});
        let (good, bad) = (pod("a", true), pod("b", false));
        assert!(is_healthy(&node, &[&good]));
        assert!(!is_healthy(&node, &[&good, &bad]));
        let gone = json!({"broker_connected": true, "proxy_gone": true, "problems": []});
        assert!(!is_healthy(&gone, &[&good]));
    }
}
