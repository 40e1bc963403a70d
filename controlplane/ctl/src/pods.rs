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
    for pod in &pods {
        text.push_str(&problems(pod));
        text.push_str(&acceleration(pod));
    }
    Ok(Output { text, healthy })
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
    if node["proxy_gone"] == true {
        text.push_str("the proxy is GONE: no heartbeat within the deadline\n");
    }
    let problems = node["problems"].as_array().into_iter().flatten();
    let lines: Vec<_> = problems
        .map(|problem| format!("problem: {}\n", compact(problem)))
        .collect();
    text + &lines.concat()
}

fn proxy_text(proxy: Result<&Value, String>) -> String {
    match proxy {
        Ok(info) => format!(
            "proxy {}, up {} s, serving from {}{}\n",
            string(&info["state"]),
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

fn table(pods: &[&Value]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "POD",
        "IP",
        "CAPTURE",
        "WHY",
        "SINCE",
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
        let line =
            "default     b     10.0.0.1   ebpf      the kernel can   2026-11-21T10:00:00Z   NO";
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
    fn one_unhealthy_pod_makes_the_answer_unhealthy() {
        let node = json!({"broker_connected": true, "proxy_gone": false, "problems": []});
        let (good, bad) = (pod("a", true), pod("b", false));
        assert!(is_healthy(&node, &[&good]));
        assert!(!is_healthy(&node, &[&good, &bad]));
        let gone = json!({"broker_connected": true, "proxy_gone": true, "problems": []});
        assert!(!is_healthy(&gone, &[&good]));
    }
}
