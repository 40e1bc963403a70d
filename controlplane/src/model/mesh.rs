//! Settings of the whole mesh: the part of Istio's `MeshConfig` that this release executes.

use std::time::Duration;

use crate::registry::xds::ConfigSource;

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// The cluster's DNS domain.
    pub domain: String,
    /// The namespace whose `DestinationRules` apply to every host.
    pub root_namespace: String,
    /// What happens to traffic that belongs to no service.
    pub outbound: OutboundPolicy,
    /// Where access log lines go; absent means nowhere.
    pub access_log: Option<AccessLog>,
    /// Whether proxies make spans, and for how many of 100 requests.
    pub tracing_percent: Option<f64>,
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// How long an undeclared port's first bytes are waited for before it counts as TCP.
    pub detection_timeout: Duration,
    /// Servers that configuration is read from, as far as they were named at the start.
    pub config_sources: Vec<ConfigSource>,
}

/// What happens to traffic that belongs to no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// It goes where the client asked.
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// The file.
    pub path: String,
    /// How a line looks.
    pub format: AccessLogFormat,
}

/// How an access log line looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Istio's default text.
    DefaultText,
    /// A text with Envoy's command operators.
    Text(String),
    /// Istio's default fields, as JSON.
    DefaultJson,
    /// Named fields with Envoy's command operators, as JSON.
    Json(Vec<(String, String)>),
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound: OutboundPolicy::AllowAny,
            access_log: None,
            tracing_percent: None,
            connect_timeout: Duration::from_secs(10),
            detection_timeout: Duration::from_millis(100),
            config_sources: Vec::new(),
        }
    }
}
