//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millrace_controlplane::legacy::bootstrap::Address;
use millrace_runtime::duration;

/// Looks at Millrace on this node and turns its switches.
#[derive(Clone, Debug, Parser)]
#[command(name = "millctl", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Where to find the parts of Millrace.
    #[command(flatten)]
    pub(crate) places: Places,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where to find the parts of Millrace.
#[derive(Clone, Debug, Args)]
pub(crate) struct Places {
    /// Directory of the node's sockets
    #[arg(
        long,
        global = true,
        env = "MILLRACE_RUN_DIR",
        default_value = "/run/millrace"
    )]
    pub(crate) run_dir: PathBuf,
    /// Admin address of a proxy, in place of its socket in the run directory
    #[arg(long, global = true, value_name = "IP:PORT")]
    pub(crate) proxy_admin: Option<SocketAddr>,
    /// HTTP address of pilot
    #[arg(
        long,
        global = true,
        env = "MILLRACE_PILOT_HTTP",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:15014"
    )]
    pub(crate) pilot: SocketAddr,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// What is wrong with configuration: in files, in a cluster, or in files if they were applied to a cluster
    ///
    /// Exits with 0 where nothing is as bad as --failure-threshold, with 79 where something is, with 65 where files
    /// cannot be read; the codes are those of istioctl.
    Analyze(Analyze),
    /// What an Envoy of the seed era (to 1.7) is started with to poll pilot's REST v1 API; Istio's spelling of the
    /// flags (--discoveryAddress) is taken too
    Bootstrap(Bootstrap),
    /// What this kernel and host can do
    Precheck,
    /// The node and its pods: captured how, why, since when, healthy
    Status {
        /// Show this pod alone (name or namespace/name)
        pod: Option<String>,
    },
    /// What a proxy serves
    #[command(subcommand, visible_alias = "pc")]
    ProxyConfig(ProxyConfig),
    /// How far every client of pilot is with what it was sent
    #[command(visible_alias = "ps")]
    ProxyStatus {
        /// Everything of the clients in whose node id this occurs
        node: Option<String>,
    },
    /// What would become of a call, and which object of the configuration decides each step
    Explain(Explain),
    /// Log levels at run time; without a level, what they are
    Log {
        /// Whose
        #[arg(value_enum)]
        part: Option<Part>,
        /// New level: error, warn, info, debug, trace, or a list like `info,millrace_proxy::http=debug`
        level: Option<String>,
    },
    /// Version of every part
    Version,
}

/// Of the flags of Istio 0.7's `proxy sidecar` those that its bootstrap depends on.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bootstrap {
    /// Where pilot listens for polls (its --legacy-addr)
    #[arg(
        long,
        alias = "discoveryAddress",
        value_name = "HOST:PORT",
        default_value = "istio-pilot.istio-system:8080"
    )]
    pub(crate) discovery_address: Address,
    /// Time between two polls
    #[arg(long, alias = "discoveryRefreshDelay", default_value = "1s", value_parser = duration::parse)]
    pub(crate) discovery_refresh_delay: Duration,
    /// Time for a connection to pilot to be made
    #[arg(long, alias = "connectTimeout", default_value = "10s", value_parser = duration::parse)]
    pub(crate) connect_timeout: Duration,
    /// Envoy's admin port on 127.0.0.1
    #[arg(long, alias = "proxyAdminPort", default_value_t = 15000)]
    pub(crate) proxy_admin_port: u16,
    /// Where spans are sent; without it there are none
    #[arg(long, alias = "zipkinAddress", value_name = "HOST:PORT")]
    pub(crate) zipkin_address: Option<Address>,
    /// Where statistics are sent; without it nowhere
    #[arg(long, alias = "statsdUdpAddress", value_name = "HOST:PORT")]
    pub(crate) statsd_udp_address: Option<Address>,
}

/// What is analyzed, and what is said of it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Analyze {
    /// Files, directories (with all below them), or - for standard input
    pub(crate) paths: Vec<PathBuf>,
    /// Take a cluster's objects into account; what files say holds instead of them
    #[arg(short = 'k', long)]
    pub(crate) kube: bool,
    /// The kubeconfig; without it, kubectl's places
    #[arg(long, requires = "kube")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one where absent
    #[arg(long, requires = "kubeconfig")]
    pub(crate) context: Option<String>,
    /// Say what is wrong with objects of this namespace alone
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// What makes the exit code 79
    #[arg(long, value_enum, default_value_t = Threshold::Error)]
    pub(crate) failure_threshold: Threshold,
    /// What is said at all
    #[arg(long, value_enum, default_value_t = Threshold::Info)]
    pub(crate) output_threshold: Threshold,
    /// Say nothing of this, written like `unclear=Service default/web`; * stands for any text
    #[arg(short = 'S', long, value_name = "REASON=OBJECT")]
    pub(crate) suppress: Vec<String>,
    /// How long a cluster may take to be read
    #[arg(long, default_value = "30s", value_parser = millrace_runtime::duration::parse)]
    pub(crate) timeout: Duration,
    /// The cluster's DNS domain
    #[arg(long, env = "MILLRACE_DOMAIN", default_value = "cluster.local")]
    pub(crate) domain: String,
}

/// How bad something must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Threshold {
    /// Objects that are refused.
    Error,
    /// And what is not served as it is written.
    Warning,
    /// And what could be written better.
    Info,
}

/// What a proxy serves.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ProxyConfig {
    /// Listeners and their filter chains
    #[command(visible_aliases = ["listener", "l"])]
    Listeners(Narrow),
    /// Routes
    #[command(visible_aliases = ["route", "r"])]
    Routes(Narrow),
    /// Clusters
    #[command(visible_aliases = ["cluster", "c"])]
    Clusters(Narrow),
    /// Endpoints and how they fare
    #[command(visible_aliases = ["endpoint", "ep"])]
    Endpoints(Narrow),
    /// Log filter of the proxy; without a level, what it is
    Log {
        /// New filter
        level: Option<String>,
    },
    /// Everything, with versions, refusals and what is not executed (JSON)
    #[command(visible_alias = "all")]
    Dump,
}

/// Which rows are shown.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Narrow {
    /// Only rows in which this occurs
    pub(crate) filter: Option<String>,
}

/// A call to be explained.
#[derive(Clone, Debug, Args)]
pub(crate) struct Explain {
    /// Who calls: a pod of this node (name, namespace/name or address), or any address for the way into one
    pub(crate) from: String,
    /// What is called: host[:port], as the pod would name it, or IP:port
    pub(crate) to: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    pub(crate) method: String,
    /// Path of the request, with its query
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Host of the request, where it is not TO
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// A header of the request; may be repeated
    #[arg(long, short = 'H', value_name = "NAME=VALUE")]
    pub(crate) header: Vec<String>,
    /// What the client speaks
    #[arg(long, value_enum, default_value_t = Speaks::Http)]
    pub(crate) protocol: Speaks,
    /// Server name that a TLS client asks for, where it is not TO's host
    #[arg(long)]
    pub(crate) sni: Option<String>,
    /// Address of a host that the mesh's DNS does not know
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<IpAddr>,
    /// Choose among weighted clusters by this number, in place of telling all of them
    #[arg(long, value_name = "NUMBER")]
    pub(crate) random: Option<u64>,
    /// The way into TO, though FROM is a pod of this node
    #[arg(long)]
    pub(crate) inbound: bool,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speaks {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// TLS.
    Tls,
    /// Bytes of no protocol that is known, or nothing before the server.
    Tcp,
}

impl Speaks {
    /// As the proxy's admin port has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// Parts that log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The node's proxy.
    Proxy,
    /// The node's agent.
    Agent,
    /// The control plane.
    Pilot,
    /// The programs in the kernel.
    Kernel,
}
