//! How the process was asked to run: flags and environment, nothing of the mesh.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use millrace_runtime::telemetry::Format;

use crate::registry::RegistryKind;

/// Millrace's pilot: services and configuration to xDS.
#[derive(Clone, Debug, Parser)]
#[command(name = "millrace-pilot", version, about)]
pub struct Config {
    /// Where services and configuration come from: file, kubernetes or mock.
    #[arg(
        long = "registries",
        alias = "registry",
        env = "MILLRACE_REGISTRY",
        default_value = "file"
    )]
    pub registry: RegistryKind,

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

    /// Where metrics and debug pages are served.
    #[arg(long, env = "MILLRACE_HTTP_ADDR", default_value = "127.0.0.1:15014")]
    pub http_addr: SocketAddr,

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
