//! What the proxy is told at its start: flags and environment, turned into a typed [`Config`].
//!
//! Three modes: a node's proxy (the default), alone from a file (`-c FILE`), and as a sidecar
//! (`--sidecar`). Envoy's names of flags are understood too where both programs have the flag
//! (R22, R30), so that either can be started the same way. Called by `main`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use millrace_runtime::duration;

#[cfg(test)]
mod tests;

/// The proxy's command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "millrace-proxy",
    about = "Millrace's L7 proxy",
    disable_version_flag = true
)]
pub struct Args {
    /// Run alone from this static bootstrap (YAML or JSON)
    #[arg(short = 'c', long, value_name = "FILE", conflicts_with = "sidecar")]
    pub config_path: Option<PathBuf>,
    /// Run as the sidecar of one pod: bind the capture ports in this network namespace
    #[arg(long)]
    pub sidecar: bool,
    /// Directory of the sockets shared with the broker
    #[arg(long, env = "MILLRACE_RUN_DIR", default_value = "/run/millrace")]
    pub run_dir: PathBuf,
    /// Directory of the last good configuration
    #[arg(long, env = "MILLRACE_STATE_DIR", default_value = "/var/lib/millrace")]
    pub state_dir: PathBuf,
    /// Name of this node
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Address of this node, or of the sidecar's pod
    #[arg(long, env = "INSTANCE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Name of the sidecar's pod
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Namespace of the sidecar's pod
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// DNS domain [default: cluster.local, a sidecar's begins with its namespace]
    #[arg(long)]
    pub domain: Option<String>,
    /// Whole node id (`sidecar~ip~pod.namespace~domain`) in place of its parts
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
    /// Cluster name sent to the control plane
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// The control plane's xDS server: `https://host:port`, `http://host:port` or `unix:///path`, or several
    /// replicas with commas between
    #[arg(long, env = "MILLRACE_XDS_ADDR", value_name = "URL")]
    pub xds_addr: Option<String>,
    /// PEM file of the authorities that the control plane's certificate is trusted by, read for every
    /// connection
    #[arg(long, env = "MILLRACE_XDS_ROOTS", value_name = "FILE")]
    pub xds_roots: Option<PathBuf>,
    /// Name in the control plane's certificate [default: the host of its address]
    #[arg(long, env = "MILLRACE_XDS_SERVER_NAME", value_name = "NAME")]
    pub xds_server_name: Option<String>,
    /// File of the service account's token that is shown to the control plane, read for every stream
    #[arg(long, env = "MILLRACE_XDS_TOKEN", value_name = "FILE")]
    pub xds_token: Option<PathBuf>,
    /// How often this proxy was restarted; the one before, where it runs, gives its listening sockets and its
    /// connections to this one (alone from a file only where this is given, from 0 on)
    #[arg(long, alias = "restart-epoch", value_name = "NUMBER")]
    pub epoch: Option<u32>,
    /// Tells proxies apart that are restarted so and share a network namespace
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub base_id: u32,
    /// Worker threads; 0 is one per hardware thread
    #[arg(long, alias = "concurrency", default_value_t = 0)]
    pub workers: u16,
    /// Address of the admin port [default: 127.0.0.1:15000, or the file's]
    #[arg(long)]
    pub admin_addr: Option<SocketAddr>,
    /// Address of the metrics port [default: 0.0.0.0:15020, none alone from a file]
    #[arg(long)]
    pub metrics_addr: Option<SocketAddr>,
    /// Address of the readiness port [default: 0.0.0.0:15021, none alone from a file]
    #[arg(long)]
    pub ready_addr: Option<SocketAddr>,
    /// How long connections may finish after SIGTERM where no other epoch takes over
    #[arg(long, aliases = ["drainDuration", "drain-time-s"], default_value = "45s",
        value_name = "DURATION", value_parser = duration::parse)]
    pub drain_duration: Duration,
    /// How long this epoch may live once another one has taken over
    #[arg(long, aliases = ["parentShutdownDuration", "parent-shutdown-time-s"], default_value = "1m",
        value_name = "DURATION", value_parser = duration::parse)]
    pub parent_shutdown_duration: Duration,
    /// Log filter, for example `info` or `info,millrace_proxy::http=debug`
    #[arg(short = 'l', long, env = "MILLRACE_LOG", default_value = "info")]
    pub log_level: String,
    /// Log JSON objects rather than lines of text
    #[arg(long)]
    pub log_json: bool,
    /// Print version and build, and exit
    #[arg(short = 'V', long)]
    pub version: bool,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the proxy is for.
    pub mode: Mode,
    /// Worker threads, at least one.
    pub workers: u16,
    /// Restart epoch.
    pub epoch: u32,
    /// The name under which epochs find each other that have no broker, as `@name`; none where they are not
    /// to.
    pub hot_restart: Option<PathBuf>,
    /// Admin port; none where the file is to say.
    pub admin_addr: Option<SocketAddr>,
    /// Metrics port.
    pub metrics_addr: Option<SocketAddr>,
    /// Readiness port.
    pub ready_addr: Option<SocketAddr>,
    /// Time that connections have to finish where nobody takes over.
    pub drain_time: Duration,
    /// Time that this epoch has once another one has taken over.
    pub parent_shutdown: Duration,
}

/// What the proxy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One proxy for all pods of a node.
    Node {
        /// Where `proxy.sock` is.
        run_dir: PathBuf,
        /// How it gets its configuration.
        xds: Xds,
    },
    /// Alone, from a static bootstrap.
    File {
        /// The bootstrap.
        path: PathBuf,
        /// Who it is, where the bootstrap does not say.
        node_id: Option<String>,
        /// `node.cluster`, where the bootstrap does not say.
        node_cluster: Option<String>,
    },
    /// In one pod.
    Sidecar {
        /// Address of the pod.
        ip: Option<IpAddr>,
        /// Namespace of the pod.
        namespace: Option<String>,
        /// How it gets its configuration.
        xds: Xds,
    },
}

/// How the proxy reaches the control plane, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xds {
    /// The server, or several with commas between.
    pub address: String,
    /// The authorities that it is trusted by, where it is reached over TLS.
    pub roots: Option<PathBuf>,
    /// The name in its certificate, where that is not its host.
    pub server_name: Option<String>,
    /// The token that it is shown.
    pub token: Option<PathBuf>,
    /// `role~ip~id~domain`.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// Name of the Kubernetes node (`NODE_NAME` of the metadata), where it is known.
    pub node_name: Option<String>,
    /// Domain of the cluster, `cluster.local` unless told otherwise.
    pub cluster_domain: String,
    /// Where the last good state is kept.
    pub state_dir: PathBuf,
}

/// Flags that do not go together, or lack something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidArgs {
    /// A flag is missing in this mode.
    #[error("{mode} needs {flag} (or the environment variable {variable})")]
    Missing {
        /// The mode.
        mode: &'static str,
        /// The flag.
        flag: &'static str,
        /// Its variable.
        variable: &'static str,
    },
    /// The address of the control plane is no URL.
    #[error(
        "--xds-addr {0:?} is not of the form https://host:port, http://host:port or unix:///path"
    )]
    XdsAddress(String),
    /// Nobody says whom to trust.
    #[error("--xds-addr {0:?} needs --xds-roots (or the environment variable MILLRACE_XDS_ROOTS)")]
    Roots(String),
    /// More workers than the broker serves.
    #[error("--workers {0} is more than {max}", max = millrace_runtime::handoff::MAX_WORKERS)]
    Workers(u16),
}

impl TryFrom<Args> for Config {
    type Error = InvalidArgs;

    fn try_from(args: Args) -> Result<Self, InvalidArgs> {
        let alone = args.config_path.is_some();
        let port = |given: Option<SocketAddr>, port: u16| {
            given.or_else(|| (!alone).then(|| SocketAddr::from(([0, 0, 0, 0], port))))
        };
        let default_admin = || SocketAddr::from(([127, 0, 0, 1], 15000));
        Ok(Self {
            workers: workers(args.workers)?,
            epoch: args.epoch.unwrap_or_default(),
            hot_restart: hot_restart(&args),
            admin_addr: args.admin_addr.or_else(|| (!alone).then(default_admin)),
            metrics_addr: port(args.metrics_addr, 15020),
            ready_addr: port(args.ready_addr, 15021),
            drain_time: args.drain_duration,
            parent_shutdown: args.parent_shutdown_duration,
            mode: mode(args)?,
        })
    }
}

/// In a network namespace there is one sidecar, but any number of proxies that have nothing to do with each
/// other.
fn hot_restart(args: &Args) -> Option<PathBuf> {
    let kind = match (&args.config_path, args.sidecar, args.epoch) {
        (Some(_), _, Some(_)) => "proxy",
        (None, true, _) => "sidecar",
        _ => return None,
    };
    Some(format!("@millrace-{kind}-{}", args.base_id).into())
}

fn workers(asked: u16) -> Result<u16, InvalidArgs> {
    let max = millrace_runtime::handoff::MAX_WORKERS;
    match asked {
        0 => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(u16::try_from(threads).map_or(max, |n| n.min(max)))
        }
        n if n > max => Err(InvalidArgs::Workers(n)),
        n => Ok(n),
    }
}

fn mode(mut args: Args) -> Result<Mode, InvalidArgs> {
    if let Some(path) = args.config_path.take() {
        return Ok(Mode::File {
            path,
            node_id: args.service_node,
            node_cluster: args.service_cluster,
        });
    }
    let missing = |flag, variable| InvalidArgs::Missing {
        mode: if args.sidecar {
            "--sidecar"
        } else {
            "a node's proxy"
        },
        flag,
        variable,
    };
    let address = (args.xds_addr.clone()).ok_or(missing("--xds-addr", "MILLRACE_XDS_ADDR"))?;
    for one in address.split(',') {
        check_address(one.trim(), args.xds_roots.is_some())?;
    }
    let ip = args.node_ip.map(|ip| ip.to_canonical());
    let node_id = own_id(&args, ip, missing)?;
    let xds = Xds {
        address,
        roots: args.xds_roots.clone(),
        server_name: args.xds_server_name.clone(),
        token: args.xds_token.clone(),
        node_id,
        node_cluster: (args.service_cluster.clone()).unwrap_or_else(|| role(&args).to_owned()),
        node_name: args.node_name,
        cluster_domain: cluster_domain(args.domain.as_deref()).to_owned(),
        state_dir: args.state_dir,
    };
    Ok(if args.sidecar {
        Mode::Sidecar {
            ip,
            namespace: args.pod_namespace,
            xds,
        }
    } else {
        Mode::Node {
            run_dir: args.run_dir,
            xds,
        }
    })
}

fn role(args: &Args) -> &'static str {
    if args.sidecar { "sidecar" } else { "node" }
}

/// Who this proxy is to the control plane: as it is told, else put together from its names.
fn own_id(
    args: &Args,
    ip: Option<IpAddr>,
    missing: impl Fn(&'static str, &'static str) -> InvalidArgs,
) -> Result<String, InvalidArgs> {
    if let Some(id) = &args.service_node {
        return Ok(id.clone());
    }
    let domain = args.domain.as_deref();
    if args.sidecar {
        let names = args.pod_name.as_ref().zip(args.pod_namespace.as_ref());
        let (pod, namespace) =
            names.ok_or(missing("--pod-name and --pod-namespace", "POD_NAME"))?;
        let default = format!("{namespace}.svc.cluster.local");
        let domain = domain.unwrap_or(&default);
        return Ok(node_id(
            role(args),
            ip,
            &format!("{pod}.{namespace}"),
            domain,
        ));
    }
    let node = args.node_name.as_ref();
    let node = node.ok_or(missing("--node-name", "NODE_NAME"))?;
    let domain = domain.unwrap_or("cluster.local");
    Ok(node_id(role(args), ip, node, domain))
}

/// A sidecar's domain begins with its namespace: `default.svc.cluster.local`.
fn cluster_domain(domain: Option<&str>) -> &str {
    let domain = domain.unwrap_or("cluster.local");
    domain.split_once(".svc.").map_or(domain, |(_, rest)| rest)
}

/// Istio's form of a node id; the address may be empty.
fn node_id(role: &str, ip: Option<IpAddr>, id: &str, domain: &str) -> String {
    let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
    format!("{role}~{ip}~{id}~{domain}")
}

fn check_address(address: &str, has_roots: bool) -> Result<(), InvalidArgs> {
    if address.starts_with("unix:///") {
        return Ok(());
    }
    let uri: Option<http::Uri> = address.parse().ok();
    let uri = uri.filter(|uri| uri.port().is_some());
    match uri.as_ref().and_then(http::Uri::scheme_str) {
        Some("http") => Ok(()),
        Some("https") if has_roots => Ok(()),
        Some("https") => Err(InvalidArgs::Roots(address.to_owned())),
        _ => Err(InvalidArgs::XdsAddress(address.to_owned())),
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node { .. } => "node",
            Self::File { .. } => "file",
            Self::Sidecar { .. } => "sidecar",
        })
    }
}
