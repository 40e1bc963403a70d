//! How the process was asked to run: flags and environment, nothing of the mesh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgPredicate;
use clap::{ArgAction, Parser};
use millrace_runtime::duration;
use millrace_runtime::telemetry::Format;

use crate::model::names::ObjectName;
use crate::registry::Registries;
use crate::registry::xds::ConfigSource;
use crate::serve::ttl::ResourceTtl;

/// Millrace's pilot: services and configuration to xDS.
#[derive(Clone, Debug, Parser)]
#[command(name = "millrace-pilot", version, about)]
pub struct Config {
    /// Where services and configuration come from: file, kubernetes, consul, eureka, mock; several with commas between
    /// them, the first of which counts where several have an object; none.
    #[arg(
        long = "registries",
        alias = "registry",
        env = "MILLRACE_REGISTRY",
        default_value = "file",
        default_value_if("config_sources", ArgPredicate::IsPresent, "none")
    )]
    pub registries: Registries,

    /// Servers that configuration is read from besides, as `xds://host:port`; several with commas between them. Those of
    /// the mesh settings' `configSources` come after them. Without --registries they are all that is read.
    #[arg(long, env = "MILLRACE_CONFIG_SOURCES", value_delimiter = ',')]
    pub config_sources: Vec<ConfigSource>,

    /// The agent that the Consul registry asks.
    #[arg(
        long,
        env = "MILLRACE_CONSUL_ADDR",
        default_value = "http://127.0.0.1:8500"
    )]
    pub consul_addr: String,

    /// The token that the Consul registry sends.
    #[arg(long, env = "CONSUL_HTTP_TOKEN", hide_env_values = true)]
    pub consul_token: Option<String>,

    /// The server that the Eureka registry asks.
    #[arg(
        long,
        env = "MILLRACE_EUREKA_ADDR",
        default_value = "http://127.0.0.1:8761/eureka"
    )]
    pub eureka_addr: String,

    /// The kubeconfig of the Kubernetes registry; without it, the pod's own service account.
    #[arg(long, env = "MILLRACE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig; its current one where absent.
    #[arg(long, requires = "kubeconfig")]
    pub context: Option<String>,

    /// The directory of YAML that the file registry watches.
    #[arg(
        long,
        env = "MILLRACE_CONFIG_DIR",
        default_value = "/etc/millrace/config"
    )]
    pub config_dir: PathBuf,

    /// Where xDS is served, in plain text: loopback or a network of one's own.
    #[arg(long, env = "MILLRACE_XDS_ADDR", default_value = "127.0.0.1:15010")]
    pub xds_addr: SocketAddr,

    /// Where xDS is served over TLS, with pilot's own certificate, to nodes that show a token; usually port
    /// 15012. Needs an API server, whichever the registry is.
    #[arg(long, env = "MILLRACE_TLS_XDS_ADDR")]
    pub tls_xds_addr: Option<SocketAddr>,

    /// The audience that nodes' tokens must be for.
    #[arg(long, env = "MILLRACE_TOKEN_AUDIENCE", default_value = "millrace")]
    pub token_audience: String,

    /// A service account of nodes' proxies, as `namespace/name`; may be given several times.
    #[arg(long = "node-account", value_parser = account, default_value = "millrace-system/millrace-node")]
    pub node_accounts: Vec<ObjectName>,

    /// How often the API server is asked whether a token still holds; a node whose token does not is sent away. What a
    /// token says of its own end counts at once.
    #[arg(long, default_value = "5m", value_parser = duration::parse)]
    pub token_review_interval: Duration,

    /// How long clients keep resources of a type without hearing of them (`eds=30s`, several with commas); what no flag
    /// names they keep until they are told otherwise.
    #[arg(long, env = "MILLRACE_RESOURCE_TTL", value_delimiter = ',')]
    pub resource_ttl: Vec<ResourceTtl>,

    /// Where metrics and debug pages are served.
    #[arg(long, env = "MILLRACE_HTTP_ADDR", default_value = "127.0.0.1:15014")]
    pub http_addr: SocketAddr,

    /// Where seed-era Envoys poll the REST v1 API, in plain text; without an address after it the era's 0.0.0.0:8080,
    /// without the flag nowhere.
    #[arg(
        long,
        env = "MILLRACE_LEGACY_ADDR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0.0.0.0:8080"
    )]
    pub legacy_addr: Option<SocketAddr>,

    /// Where the API server's questions are answered over TLS whether an object may be written; without it there is no
    /// admission webhook.
    #[arg(long, env = "MILLRACE_WEBHOOK_ADDR")]
    pub webhook_addr: Option<SocketAddr>,

    /// The `ValidatingWebhookConfiguration` that pilot keeps up to date.
    #[arg(long, default_value = "millrace-validator")]
    pub webhook_config: String,

    /// Whether what pilot made of objects is written into their statuses, by the replica that leads.
    #[arg(long, env = "MILLRACE_STATUSES", action = ArgAction::Set, default_value_t = true)]
    pub statuses: bool,

    /// The namespace that pilot runs in, for its own Secret and Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "millrace-system")]
    pub namespace: String,

    /// The pod's name, for people who look who leads.
    #[arg(long, env = "POD_NAME", default_value = "millrace-pilot")]
    pub pod_name: String,

    /// Further names and addresses by which clients reach pilot's TLS ports, besides those of its service.
    #[arg(long = "tls-name", env = "MILLRACE_TLS_NAMES", value_delimiter = ',')]
    pub tls_names: Vec<String>,

    /// How long the authority of pilot's certificates holds.
    #[arg(long, default_value = "87600h", value_parser = duration::parse)]
    pub ca_lifetime: Duration,

    /// How long a certificate of pilot's holds.
    #[arg(long, default_value = "24h", value_parser = duration::parse)]
    pub certificate_lifetime: Duration,

    /// How long a replica leads without a word before another takes over.
    #[arg(long, default_value = "15s", value_parser = duration::parse)]
    pub lease_duration: Duration,

    /// Settings of the whole mesh, a file of Istio's `MeshConfig`; re-read when it changes.
    #[arg(long, env = "MILLRACE_MESH_CONFIG")]
    pub mesh_config: Option<PathBuf>,

    /// Writes the addresses in use to this file as JSON, for port 0.
    #[arg(long)]
    pub print_addrs_to: Option<PathBuf>,

    /// The cluster's DNS domain.
    #[arg(long, env = "MILLRACE_DOMAIN", default_value = "cluster.local")]
    pub domain: String,

    /// Which logs to write, such as `info` or `info,millrace_controlplane=debug`.
    #[arg(long, env = "MILLRACE_LOG", default_value = "info")]
    pub log: String,

    /// How logs look: text or json.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
}

fn account(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("expected namespace/name".to_owned()),
    }
}
