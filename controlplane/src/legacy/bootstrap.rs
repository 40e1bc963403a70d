//! What an Envoy of the era is started with to poll pilot: `envoy-rev<epoch>.json` as Istio 0.7's agent wrote it.

use std::time::Duration;

use serde_json::{Value, json};

use super::listeners::RDS_CLUSTER;

/// The flags of `proxy sidecar` that the file depends on, with the era's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// `--discoveryAddress`.
    pub discovery: Address,
    /// `--discoveryRefreshDelay`.
    pub refresh_delay: Duration,
    /// `--connectTimeout`.
    pub connect_timeout: Duration,
    /// `--proxyAdminPort`.
    pub admin_port: u16,
    /// `--zipkinAddress`.
    pub zipkin: Option<Address>,
    /// `--statsdUdpAddress`.
    pub statsd: Option<Address>,
}

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not <host>:<port>")]
pub struct InvalidAddress(String);

impl std::str::FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let host = host
            .strip_prefix('[')
            .map_or(Some(host), |rest| rest.strip_suffix(']'));
        let host = host.filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| invalid())?,
        })
    }
}

/// The file.
pub fn render(flags: &Flags) -> Value {
    let polled = json!({ "api_config_source": {
        "api_type": "REST_LEGACY",
        "refresh_delay": duration(flags.refresh_delay),
        "cluster_names": [RDS_CLUSTER],
    } });
    let mut clusters = vec![cluster(RDS_CLUSTER, flags, &flags.discovery)];
    clusters.extend(
        flags
            .zipkin
            .iter()
            .map(|zipkin| cluster("zipkin", flags, zipkin)),
    );
    let mut file = json!({
        "stats_config": { "use_all_default_tags": false },
        "admin": {
            "access_log_path": "/dev/stdout",
            "address": socket("127.0.0.1", flags.admin_port),
        },
        "dynamic_resources": {
            "lds_config": polled,
            "cds_config": polled,
            "deprecated_v1": { "sds_config": polled },
        },
        "static_resources": { "clusters": clusters },
    });
    if flags.zipkin.is_some() {
        file["tracing"] = json!({ "http": {
            "name": "envoy.zipkin",
            "config": { "collector_cluster": "zipkin", "collector_endpoint": "/api/v1/spans" },
        } });
    }
    if let Some(statsd) = &flags.statsd {
        file["stats_sinks"] = json!([{
            "name": "envoy.statsd",
            "config": { "address": socket(&statsd.host, statsd.port) },
        }]);
    }
    file
}

fn cluster(name: &str, flags: &Flags, at: &Address) -> Value {
    json!({
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": duration(flags.connect_timeout),
        "lb_policy": "ROUND_ROBIN",
        "hosts": [socket(&at.host, at.port)],
    })
}

fn socket(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// As proto-JSON has it.
fn duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if millis == 0 {
        format!("{seconds}s")
    } else {
        format!("{seconds}.{millis:03}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        let read = |text: &str| text.parse::<Address>().map(|it| (it.host, it.port));
        assert_eq!(read("a.b:80"), Ok(("a.b".to_owned(), 80)));
        assert_eq!(read("[::1]:80"), Ok(("::1".to_owned(), 80)));
        for text in ["", "a", ":80", "a:x", "[::1:80"] {
            assert_eq!(read(text), Err(InvalidAddress(text.to_owned())));
        }
    }
}
