//! `proxy-config`: what a proxy serves, as tables or as the proxy's own JSON.

use serde_json::Value;

use crate::app::Output;
use crate::cli::{Format, ProxyConfig};
use crate::peer::Peers;
use crate::table::Table;

/// Runs one of the commands.
pub(crate) async fn run(
    peers: &Peers,
    what: &ProxyConfig,
    format: Format,
) -> anyhow::Result<Output> {
    let (path, filter, render): (_, _, fn(&Value) -> Table) = match what {
        ProxyConfig::Listeners(narrow) => ("/listeners?format=json", &narrow.filter, listeners),
        ProxyConfig::Routes(narrow) => ("/routes?format=json", &narrow.filter, routes),
        ProxyConfig::Clusters(narrow) => ("/clusters?format=json", &narrow.filter, clusters),
        ProxyConfig::Endpoints(narrow) => ("/clusters?format=json", &narrow.filter, endpoints),
        ProxyConfig::Dump | ProxyConfig::Log { .. } => {
            return Output::json(&peers.proxy.json("/config_dump").await?, true);
        }
    };
    let document = peers.proxy.json(path).await?;
    if format == Format::Json {
        return Output::json(&document, true);
    }
    let mut table = render(&document);
    table.filter(filter.as_deref());
    Ok(Output::ok(table.render("nothing is served")))
}

fn listeners(document: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "ADDRESS", "DIRECTION", "MATCH", "TARGET"]);
    for listener in list(&document["listener_statuses"]) {
        let address = address(&listener["local_address"]);
        let mut first = true;
        for chain in list(&listener["filter_chains"]) {
            let mut condition = text(&chain["match"]);
            if chain["default"] == true {
                "otherwise".clone_into(&mut condition);
            }
            // A filter finds a chain by its listener, so every row names it.
            table.row([
                text(&listener["name"]),
                if first {
                    address.clone()
                } else {
                    String::new()
                },
                text(&listener["traffic_direction"]).to_lowercase(),
                condition,
                target(&chain["target"]),
            ]);
            first = false;
        }
    }
    table
}

fn target(target: &Value) -> String {
    match target["filter"].as_str() {
        Some("http") => format!("route {}", text(&target["route"])),
        _ => format!("cluster {}", text(&target["cluster"])),
    }
}

fn routes(document: &Value) -> Table {
    let mut table = Table::new(&["ROUTE", "VIRTUAL HOST", "DOMAINS", "MATCH", "TARGET"]);
    for route in list(&document["routes"]) {
        table.row([
            text(&route["route_config"]),
            text(&route["virtual_host"]),
            domains(&route["domains"]),
            text(&route["match"]),
            text(&route["action"]),
        ]);
    }
    table
}

/// The first two and how many more.
fn domains(value: &Value) -> String {
    let all: Vec<_> = list(value).map(text).collect();
    match all.as_slice() {
        [first, second, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second} + {} more", rest.len())
        }
        all => all.join(", "),
    }
}

fn clusters(document: &Value) -> Table {
    let mut table = Table::new(&[
        "CLUSTER",
        "FROM",
        "ENDPOINTS",
        "HEALTHY",
        "REQUESTS",
        "ERRORS",
        "CONNECTIONS",
    ]);
    for cluster in list(&document["cluster_statuses"]) {
        let hosts: Vec<_> = list(&cluster["host_statuses"]).collect();
        let sum = |stat: &str| hosts.iter().map(|h| self::stat(h, stat)).sum::<u64>();
        let healthy = hosts.iter().filter(|h| is_healthy(h)).count();
        let from = if cluster["added_via_api"] == true {
            "xds"
        } else {
            "file"
        };
        table.row([
            text(&cluster["name"]),
            from.to_owned(),
            hosts.len().to_string(),
            healthy.to_string(),
            sum("rq_total").to_string(),
            sum("rq_error").to_string(),
            sum("cx_active").to_string(),
        ]);
    }
    table
}

fn endpoints(document: &Value) -> Table {
    let mut table = Table::new(&[
        "ENDPOINT", "HEALTH", "WEIGHT", "LOCALITY", "REQUESTS", "ERRORS", "CLUSTER",
    ]);
    for cluster in list(&document["cluster_statuses"]) {
        for host in list(&cluster["host_statuses"]) {
            let locality = &host["locality"];
            let parts = ["region", "zone", "sub_zone"].map(|part| text(&locality[part]));
            let parts: Vec<_> = parts.into_iter().filter(|p| !p.is_empty()).collect();
            table.row([
                address(&host["address"]),
                text(&host["health_status"]["eds_health_status"]).to_lowercase(),
                text(&host["weight"]),
                parts.join("/"),
                stat(host, "rq_total").to_string(),
                stat(host, "rq_error").to_string(),
                text(&cluster["name"]),
            ]);
        }
    }
    table
}

fn is_healthy(host: &Value) -> bool {
    let health = host["health_status"]["eds_health_status"].as_str();
    matches!(health, Some("HEALTHY" | "UNKNOWN"))
}

fn stat(host: &Value, name: &str) -> u64 {
    let found = list(&host["stats"]).find(|s| s["name"] == name);
    found.and_then(|s| s["value"].as_u64()).unwrap_or_default()
}

fn address(value: &Value) -> String {
    let socket = &value["socket_address"];
    let (ip, port) = (text(&socket["address"]), text(&socket["port_value"]));
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn clusters_and_endpoints_add_up_the_same_document() {
        let host = |ip: &str, health: &str, total: u64| {
            json!({
                "address": {"socket_address": {"address": ip, "port_value": 9080}},
                "stats": [{"name": "rq_total", "value": total}, {"name": "rq_error", "value": 1}],
                "health_status": {"eds_health_status": health},
                "weight": 1, "locality": {"region": "r", "zone": "z", "sub_zone": ""},
            })
        };
        let document = json!({"cluster_statuses": [{
            "name": "c", "added_via_api": true,
            "host_statuses": [host("10.0.0.1", "HEALTHY", 5), host("fd00::1", "DRAINING", 7)],
        }]});
        let text = clusters(&document).render("none");
        assert!(
            text.contains("c         xds    2           1         12         2        0"),
            "{text}"
        );
        let text = endpoints(&document).render("none");
        assert!(
            text.contains("[fd00::1]:9080   draining   1        r/z"),
            "{text}"
        );
    }

    #[test]
    fn every_chain_of_a_listener_is_a_row() {
        let document = json!({"listener_statuses": [{
            "name": "default/0.0.0.0_9080",
            "local_address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
            "traffic_direction": "OUTBOUND",
            "filter_chains": [
                {"match": "app http/1.1", "default": false, "target": {"filter": "http", "route": "default/9080"}},
                {"match": "all", "default": true, "target": {"filter": "tcp", "cluster": "PassthroughCluster"}},
            ],
        }]});
        let mut table = listeners(&document);
        table.filter(Some("otherwise"));
        let text = table.render("none");
        assert!(
            text.contains("otherwise   cluster PassthroughCluster"),
            "{text}"
        );
        assert!(!text.contains("http/1.1"));
    }

    #[test]
    fn long_lists_of_domains_are_cut() {
        assert_eq!(domains(&json!(["a", "b", "c", "d"])), "a, b + 2 more");
        assert_eq!(domains(&json!(["a", "b"])), "a, b");
    }
}
