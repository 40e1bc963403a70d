//! A decision in words.

use serde_json::Value;

use super::places::{self, Places};

/// Width of the labels.
const LABEL: usize = 15;

/// The whole text.
pub(super) fn render(decision: &Value, places: &Places) -> String {
    let mut page = Page {
        places,
        text: String::new(),
    };
    page.call(&decision["call"]);
    if let Some(listener) = decision["listener"].as_str() {
        page.step("listener", listener);
    }
    page.chain(&decision["filter_chain"]);
    if let Some(routes) = decision["route_config"].as_str() {
        page.step("routes", routes);
    }
    page.host(&decision["virtual_host"]);
    if decision["answer"]["outcome"] == "no_route" {
        page.passed_over(&decision["virtual_host"]);
    }
    page.route(&decision["route"]);
    let several = list(&decision["clusters"]).count() > 1;
    for cluster in list(&decision["clusters"]) {
        page.cluster(cluster, several);
    }
    if !several {
        page.step("answer", &answer(&decision["answer"]));
    }
    page.text
}

struct Page<'a> {
    places: &'a Places,
    text: String,
}

impl Page<'_> {
    fn step(&mut self, label: &str, text: &str) {
        let line = format!("{label:LABEL$}{text}");
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Belongs to the step before.
    fn more(&mut self, text: &str) {
        self.step("", &format!("  {text}"));
    }

    fn place(&mut self, of: Option<String>) {
        let Some(of) = of else {
            return;
        };
        let (object, place) = self.places.describe(&of);
        let line = if place.is_empty() {
            object
        } else {
            format!("{object} ({place})")
        };
        self.more(&format!("by {line}"));
        for problem in self.places.problems(&of) {
            self.more(&format!("! {problem}"));
        }
    }

    fn call(&mut self, call: &Value) {
        let (from, to) = (&call["from"], &call["to"]);
        let address = text(&from["address"]);
        let caller = match from["pod"].as_str() {
            Some(pod) => format!("pod {pod}, {address}, capture {}", text(&from["captured"])),
            None => address,
        };
        self.step("from", &caller);
        let by = match to["by"].as_str() {
            Some("assumed") => ", whatever the client's resolver says (--address gives it)",
            Some("mesh DNS") => " by the mesh's DNS",
            _ => "",
        };
        let name = to["name"].as_str().map(|name| format!("{name}, "));
        let target = format!("{}{}{by}", name.unwrap_or_default(), text(&to["address"]));
        self.step("to", &target);
        if let Some(pod) = to["pod"].as_str() {
            self.more(&format!("pod {pod} of this node"));
        }
        self.step("direction", &text(&call["direction"]));
    }

    fn chain(&mut self, chain: &Value) {
        if chain.is_null() {
            return;
        }
        let filter = match chain["filter"].as_str() {
            Some("http") => "HTTP",
            _ => "bytes",
        };
        let line = format!(
            "{}, {filter}: {}",
            text(&chain["name"]),
            text(&chain["matches"])
        );
        self.step("filter chain", &line);
        self.place(places::origin(&chain["origin"]));
    }

    fn host(&mut self, host: &Value) {
        if host.is_null() {
            return;
        }
        self.step("virtual host", &text(&host["name"]));
        self.place(places::virtual_host(host));
    }

    /// The routes of a virtual host of which none matches.
    fn passed_over(&mut self, host: &Value) {
        for route in list(&host["passed_over"]) {
            self.more(&format!("not {}", text(&route["matches"])));
            self.place(places::origin(&route["origin"]));
        }
    }

    fn route(&mut self, route: &Value) {
        if route.is_null() {
            return;
        }
        let name = text(&route["name"]);
        self.step("route", &format!("{name}: {}", text(&route["matches"])));
        self.place(places::origin(&route["origin"]));
        if route["retries"].is_object() || route["timeout_ms"].is_number() {
            let timeout = match route["timeout_ms"].as_u64() {
                Some(timeout) => format!("timeout {}", millis(timeout)),
                None => "no timeout".to_owned(),
            };
            self.more(&format!("{timeout}, {}", retries(&route["retries"])));
        }
        if let Some(idle) = route["idle_timeout_ms"].as_u64() {
            self.more(&format!("idle timeout {}", millis(idle)));
        }
        for (label, field) in [
            ("path becomes", "path"),
            ("host becomes", "host"),
            ("redirect to", "location"),
        ] {
            if let Some(value) = route[field].as_str() {
                self.more(&format!("{label} {value}"));
            }
        }
        for (label, field) in [
            ("request", "request_headers"),
            ("response", "response_headers"),
        ] {
            for change in list(&route[field]) {
                self.more(&format!("{label}: {}", text(change)));
            }
        }
    }

    fn cluster(&mut self, cluster: &Value, several: bool) {
        let label = match cluster["share"].as_f64() {
            Some(share) if several || share < 100.0 => format!("cluster {share} %"),
            _ => "cluster".to_owned(),
        };
        let mut parts = vec![text(&cluster["name"])];
        for (before, value) in [("subset ", &cluster["subset"]), ("", &cluster["lb_policy"])] {
            if let Some(value) = value.as_str() {
                parts.push(format!("{before}{value}"));
            }
        }
        if let Some(timeout) = cluster["connect_timeout_ms"].as_u64() {
            parts.push(format!("connect timeout {}", millis(timeout)));
        }
        self.step(&label, &parts.join(", "));
        self.place(places::service(&cluster["service"]));
        self.place(places::origin(&cluster["origin"]));
        for endpoint in list(&cluster["endpoints"]) {
            self.more(&self::endpoint(endpoint));
        }
        if several {
            self.more(&format!("-> {}", answer(&cluster["answer"])));
        }
    }
}

fn endpoint(endpoint: &Value) -> String {
    let mut parts = vec![
        text(&endpoint["address"]),
        format!("{} %", endpoint["share"].as_f64().unwrap_or_default()),
        text(&endpoint["health"]),
    ];
    if endpoint["priority"].as_u64().unwrap_or_default() > 0 {
        parts.push(format!("priority {}", endpoint["priority"]));
    }
    parts.push(text(&endpoint["locality"]));
    parts.push(text(&endpoint["workload"]));
    if let Some(pod) = endpoint["local_pod"].as_str() {
        parts.push(format!("pod {pod} of this node, delivered there"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

fn retries(retries: &Value) -> String {
    if !retries.is_object() {
        return "no retries".to_owned();
    }
    let on: Vec<String> = list(&retries["on"])
        .chain(list(&retries["statuses"]))
        .map(text)
        .collect();
    let each = match retries["per_try_timeout_ms"].as_u64() {
        Some(limit) => format!(", each try {}", millis(limit)),
        None => String::new(),
    };
    format!(
        "{} retries after {}{each}",
        retries["attempts"],
        on.join(",")
    )
}

/// How a call ends, with what the access log says of it.
fn answer(answer: &Value) -> String {
    let end = match answer["outcome"].as_str().unwrap_or_default() {
        "forwarded" => "one of the endpoints answers",
        "passthrough" => "goes on to the address that the client asked for",
        "answered" => "the proxy answers by itself",
        "redirected" => "the client is sent elsewhere",
        "no_listener" => "no listener stands for this address: the connection is reset",
        "no_filter_chain" => "no filter chain takes it: the connection is reset",
        "refused" => "the request is refused as it stands",
        "no_route_config" => "the route configuration is not there",
        "no_virtual_host" => "no virtual host has this host",
        "no_route" => "no route of the virtual host matches",
        "no_cluster" => "the cluster does not exist",
        "no_endpoint" => "the cluster has no endpoint that can be used",
        other => other,
    };
    let mut facts: Vec<String> = Vec::new();
    facts.extend(answer["status"].as_u64().map(|status| status.to_string()));
    facts.extend(
        answer["grpc_status"]
            .as_u64()
            .map(|status| format!("grpc-status {status}")),
    );
    facts.extend(answer["flags"].as_str().map(str::to_owned));
    facts.extend(answer["details"].as_str().map(str::to_owned));
    if facts.is_empty() {
        return end.to_owned();
    }
    format!("{end} ({})", facts.join(", "))
}

fn millis(millis: u64) -> String {
    match millis {
        whole if whole % 1000 == 0 => format!("{} s", whole / 1000),
        part => format!("{part} ms"),
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
    use std::fs;
    use std::path::{Path, PathBuf};

    use serde_json::json;

    use super::*;

    /// What pilot's tests found out about each case's calls (`controlplane/tests/explain.rs`), in words.
    #[test]
    fn goldens_are_what_is_printed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/explain");
        let bless = std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1");
        let entries = fs::read_dir(root).unwrap();
        let cases = entries.map(|entry| entry.unwrap().path());
        let mut different: Vec<PathBuf> = Vec::new();
        for case in cases.filter(|path| path.is_dir()) {
            let golden = fs::read_to_string(case.join("golden.json")).unwrap();
            let golden: Value = serde_json::from_str(&golden).unwrap();
            let printed: String = list(&golden).map(printed).collect();
            let path = case.join("golden.txt");
            if bless {
                fs::write(&path, printed).unwrap();
            } else if fs::read_to_string(&path).unwrap_or_default() != printed {
                different.push(path);
            }
        }
        assert!(
            different.is_empty(),
            "not as printed (MILLRACE_BLESS=1 rewrites): {different:#?}"
        );
    }

    fn printed(item: &Value) -> String {
        let places = Places::new(&json!({ "places": item["places"] }));
        let text = render(&item["answer"], &places);
        format!("# {}\n{text}\n", item["query"].as_str().unwrap())
    }

    #[test]
    fn without_pilot_objects_are_named_by_what_resources_say() {
        let config = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/http-route/cart";
        let decision = json!({"route": {
            "name": "r", "matches": "/*", "origin": {"config": config, "field": "spec.rules[1]"},
        }});
        let text = render(&decision, &Places::default());
        assert!(
            text.contains("by HTTPRoute shop/cart spec.rules[1]\n"),
            "{text}"
        );
    }
}
