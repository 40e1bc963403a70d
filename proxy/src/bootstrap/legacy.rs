//! Rewrites the seed era's forms of a bootstrap into today's.
//!
//! Input: the file as a JSON value. Output: the same with `config:` blocks typed, `hosts:` as
//! load assignments, old filter names, old `@type`s and old fields of routes and clusters under
//! their new names. What is of today's form already stays as it is.

use serde_json::{Map, Value, json};

/// Old and new names of filters and loggers and the type of their configuration.
const KINDS: [(&[&str], &str); 9] = [
    (
        &[
            "envoy.http_connection_manager",
            "envoy.filters.network.http_connection_manager",
        ],
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    (
        &["envoy.tcp_proxy", "envoy.filters.network.tcp_proxy"],
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    ),
    (
        &["envoy.router", "envoy.filters.http.router"],
        "envoy.extensions.filters.http.router.v3.Router",
    ),
    (
        &["envoy.file_access_log", "envoy.access_loggers.file"],
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    ),
    (
        &["envoy.access_loggers.stdout"],
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    ),
    (
        &["envoy.access_loggers.stderr"],
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
    ),
    (
        &[
            "envoy.listener.tls_inspector",
            "envoy.filters.listener.tls_inspector",
        ],
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    ),
    (
        &[
            "envoy.listener.http_inspector",
            "envoy.filters.listener.http_inspector",
        ],
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    ),
    (
        &[
            "envoy.listener.original_dst",
            "envoy.filters.listener.original_dst",
        ],
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    ),
];

/// Types of version 2 and what they are called now.
const TYPES: [(&str, &str); 4] = [
    (
        "envoy.config.filter.network.http_connection_manager.v2.HttpConnectionManager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    (
        "envoy.config.filter.network.tcp_proxy.v2.TcpProxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    ),
    (
        "envoy.config.filter.http.router.v2.Router",
        "envoy.extensions.filters.http.router.v3.Router",
    ),
    (
        "envoy.config.accesslog.v2.FileAccessLog",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    ),
];

const PREFIX: &str = "type.googleapis.com/";

/// Something that has no form today.
#[derive(Debug)]
pub(super) struct Obsolete {
    pub(super) path: String,
    pub(super) reason: String,
}

/// Rewrites a whole bootstrap.
pub(super) fn upgrade(bootstrap: &mut Value) -> Result<(), Obsolete> {
    durations(bootstrap);
    let at = "static_resources";
    for (i, listener) in items(bootstrap, &[at, "listeners"]).enumerate() {
        self::listener(listener, &format!("{at}.listeners[{i}]"))?;
    }
    for (i, cluster) in items(bootstrap, &[at, "clusters"]).enumerate() {
        self::cluster(cluster, &format!("{at}.clusters[{i}]"))?;
    }
    Ok(())
}

/// Version 2's files write durations as `{seconds: 5}` too.
fn durations(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(text) = duration(fields) {
                *value = Value::String(text);
                return;
            }
            fields.values_mut().for_each(durations);
        }
        Value::Array(items) => items.iter_mut().for_each(durations),
        _ => {}
    }
}

fn duration(fields: &Map<String, Value>) -> Option<String> {
    let known = |key: &String| key == "seconds" || key == "nanos";
    if fields.is_empty() || !fields.keys().all(known) {
        return None;
    }
    let number = |key: &str| fields.get(key).map_or(Some(0), Value::as_u64);
    Some(format!("{}.{:09}s", number("seconds")?, number("nanos")?))
}

fn listener(listener: &mut Value, path: &str) -> Result<(), Obsolete> {
    for (i, filter) in items(listener, &["listener_filters"]).enumerate() {
        typed(filter, &format!("{path}.listener_filters[{i}]"))?;
    }
    for (i, chain) in items(listener, &["filter_chains"]).enumerate() {
        let path = format!("{path}.filter_chains[{i}]");
        refuse_tls(chain, &path)?;
        for (j, filter) in items(chain, &["filters"]).enumerate() {
            let path = format!("{path}.filters[{j}]");
            typed(filter, &path)?;
            if let Some(config) = filter.get_mut("typed_config") {
                network_filter(config, &format!("{path}.typed_config"))?;
            }
        }
    }
    Ok(())
}

fn network_filter(config: &mut Value, path: &str) -> Result<(), Obsolete> {
    for (i, log) in items(config, &["access_log"]).enumerate() {
        typed(log, &format!("{path}.access_log[{i}]"))?;
    }
    for (i, filter) in items(config, &["http_filters"]).enumerate() {
        typed(filter, &format!("{path}.http_filters[{i}]"))?;
    }
    let is_http = config.get("http_filters").is_some();
    if let Some(fields) = config.as_object_mut().filter(|_| is_http) {
        // Of the connection manager itself in version 2.
        if let Some(timeout) = fields.remove("idle_timeout") {
            let common = fields
                .entry("common_http_protocol_options")
                .or_insert_with(|| json!({}));
            if let Some(common) = common.as_object_mut() {
                common.entry("idle_timeout").or_insert(timeout);
            }
        }
    }
    for host in items(config, &["route_config", "virtual_hosts"]) {
        for route in items(host, &["routes"]) {
            self::route(route);
        }
    }
    Ok(())
}

fn route(route: &mut Value) {
    if let Some(matches) = route.get_mut("match").and_then(Value::as_object_mut) {
        regex(matches, "regex", "safe_regex");
        for header in list(matches.get_mut("headers")) {
            if let Some(header) = header.as_object_mut() {
                regex(header, "regex_match", "safe_regex_match");
            }
        }
    }
    let Some(action) = route.get_mut("route").and_then(Value::as_object_mut) else {
        return;
    };
    rename(action, "host_rewrite", "host_rewrite_literal");
    rename(action, "auto_host_rewrite_header", "host_rewrite_header");
    if action.remove("use_websocket") == Some(Value::Bool(true)) {
        action
            .entry("upgrade_configs")
            .or_insert_with(|| json!([{"upgrade_type": "websocket"}]));
    }
}

fn cluster(cluster: &mut Value, path: &str) -> Result<(), Obsolete> {
    refuse_tls(cluster, path)?;
    let Some(fields) = cluster.as_object_mut() else {
        return Ok(());
    };
    if fields.get("lb_policy").and_then(Value::as_str) == Some("ORIGINAL_DST_LB") {
        fields.insert("lb_policy".to_owned(), json!("CLUSTER_PROVIDED"));
    }
    let Some(hosts) = fields.remove("hosts") else {
        return Ok(());
    };
    if fields.contains_key("load_assignment") {
        return Err(obsolete(
            path,
            "hosts and load_assignment exclude each other",
        ));
    }
    let Value::Array(hosts) = hosts else {
        return Err(obsolete(&format!("{path}.hosts"), "must be a list"));
    };
    let endpoints: Vec<_> = hosts
        .into_iter()
        .map(|address| json!({"endpoint": {"address": address}}))
        .collect();
    let name = fields.get("name").cloned().unwrap_or_default();
    fields.insert(
        "load_assignment".to_owned(),
        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}),
    );
    Ok(())
}

/// Gives a filter or logger its typed configuration: from an untyped one, or empty where an old
/// file leaves it out.
fn typed(filter: &mut Value, path: &str) -> Result<(), Obsolete> {
    let Some(fields) = filter.as_object_mut() else {
        return Ok(());
    };
    if let Some(config) = fields.get_mut("typed_config") {
        modern_type(config);
        return Ok(());
    }
    let name = fields
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = KINDS.iter().find(|(names, _)| names.contains(&name));
    let config = match (kind, fields.get("config")) {
        (Some((_, kind)), config) => {
            let mut config = match config {
                Some(Value::Object(config)) => config.clone(),
                None | Some(Value::Null) => Map::new(),
                Some(_) => return Err(obsolete(&format!("{path}.config"), "must be an object")),
            };
            config.insert("@type".to_owned(), json!(format!("{PREFIX}{kind}")));
            config
        }
        (None, Some(_)) => {
            let reason = format!("{name:?} is not known, so its untyped config cannot be read");
            return Err(obsolete(&format!("{path}.config"), &reason));
        }
        (None, None) => return Ok(()),
    };
    fields.remove("config");
    fields.insert("typed_config".to_owned(), Value::Object(config));
    Ok(())
}

fn modern_type(config: &mut Value) {
    let Some(Value::String(url)) = config.get_mut("@type") else {
        return;
    };
    let name = url.rsplit('/').next().unwrap_or_default();
    if let Some((_, new)) = TYPES.iter().find(|(old, _)| *old == name) {
        *url = format!("{PREFIX}{new}");
    }
}

fn refuse_tls(value: &Value, path: &str) -> Result<(), Obsolete> {
    match value.get("tls_context") {
        Some(_) => Err(obsolete(
            &format!("{path}.tls_context"),
            "TLS is not supported",
        )),
        None => Ok(()),
    }
}

fn regex(fields: &mut Map<String, Value>, old: &str, new: &str) {
    if let Some(pattern) = fields.remove(old) {
        fields.insert(new.to_owned(), json!({"regex": pattern}));
    }
}

/// A string under an old name; in today's files the same name may hold something else.
fn rename(fields: &mut Map<String, Value>, old: &str, new: &str) {
    if !fields.contains_key(new)
        && let Some(value) = fields.remove(old)
    {
        fields.insert(new.to_owned(), value);
    }
}

fn obsolete(path: &str, reason: &str) -> Obsolete {
    Obsolete {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The elements of a list somewhere below.
fn items<'a>(value: &'a mut Value, path: &[&str]) -> impl Iterator<Item = &'a mut Value> {
    let found = path
        .iter()
        .try_fold(value, |value, key| value.get_mut(*key));
    list(found)
}

fn list(value: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    value.and_then(Value::as_array_mut).into_iter().flatten()
}
