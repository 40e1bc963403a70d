//! The command line of `millrace-agent`: flags and `MILLRACE_*` variables → typed settings.

mod init;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use millrace_runtime::duration;
use millrace_runtime::telemetry::Format;

use crate::broker::BrokerConfig;
use crate::config::{AgentConfig, Paths};
use crate::integrity::CANARY_INTERVAL;
use crate::node::NodeConfig;
use crate::redirect::Wish;

pub use init::InitArgs;

/// Millrace's node agent.
#[derive(Debug, Parser)]
#[command(name = "millrace-agent", version, about)]
pub struct Cli {
    /// Log filter: a level or target=level, comma-separated.
    #[arg(long, env = "MILLRACE_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Log format: text or json.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value_t = Format::Text, global = true)]
    pub log_format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Captures this node's pods and reports on them.
    Run(RunArgs),
    /// Makes sockets and rules inside pods for agent and proxy.
    Broker(BrokerArgs),
    /// Starts broker, agent and proxy and keeps them running.
    Node(Box<NodeArgs>),
    /// Writes the capture rules of an init container into the current network namespace.
    Init(InitArgs),
    /// Ends all capture on this node: programs, rules in pods, sockets, state.
    Cleanup(CleanupArgs),
    /// Prints everything a running agent knows, as one JSON object.
    Dump(DumpArgs),
    /// Prints what this kernel and host can do, as one JSON object.
    Probe,
    /// Prints the version of this build.
    Version,
}

/// Directories, shared by the commands.
#[derive(Clone, Debug, Args)]
pub struct PathArgs {
    /// Directory of sockets.
    #[arg(long, env = "MILLRACE_RUN_DIR", default_value = "/run/millrace")]
    pub run_dir: PathBuf,
    /// Directory of what outlives processes.
    #[arg(long, env = "MILLRACE_STATE_DIR", default_value = "/var/lib/millrace")]
    pub state_dir: PathBuf,
    /// Directory of the programs' pins, on a bpffs.
    #[arg(
        long,
        env = "MILLRACE_BPFFS_DIR",
        default_value = "/sys/fs/bpf/millrace"
    )]
    pub bpffs_dir: PathBuf,
}

impl From<&PathArgs> for Paths {
    fn from(args: &PathArgs) -> Self {
        Self {
            run_dir: args.run_dir.clone(),
            state_dir: args.state_dir.clone(),
            bpffs_dir: args.bpffs_dir.clone(),
        }
    }
}

/// What the agent is told about its node.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Name of this node; the host's name by default.
    #[arg(long, env = "MILLRACE_NODE_NAME")]
    pub node_name: Option<String>,
    /// Directory of pod descriptions; `pods` in the state directory by default.
    #[arg(long, env = "MILLRACE_PODS_DIR")]
    pub pods_dir: Option<PathBuf>,
    /// cgroup2 directory above pods, broker and kubelet; the hierarchy's root by default.
    #[arg(long, env = "MILLRACE_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// How pods are captured: auto, ebpf, iptables or none.
    #[arg(long, env = "MILLRACE_CAPTURE", default_value = "auto")]
    pub capture: Wish,
    /// Cookie of the network namespace from which the node itself connects; the agent's own by
    /// default.
    #[arg(long, env = "MILLRACE_HOST_NETNS_COOKIE")]
    pub host_netns_cookie: Option<u64>,
    /// Seconds between two canaries of a pod, connections that show whether its capture works; 0
    /// sends none. On a node of many pods each has its turn less often.
    #[arg(long, env = "MILLRACE_CANARY_INTERVAL_S", default_value_t = CANARY_INTERVAL.as_secs())]
    pub canary_interval_s: u64,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directories.
    #[command(flatten)]
    pub paths: PathArgs,
    /// The node.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// The proxy's user.
    #[command(flatten)]
    pub user: ProxyUser,
    /// Ends with the process that started this one.
    #[arg(long, hide = true)]
    pub with_launcher: bool,
}

impl RunArgs {
    /// The typed settings.
    pub fn config(&self) -> AgentConfig {
        AgentConfig {
            paths: Paths::from(&self.paths),
            node_name: self.agent.node_name.clone().unwrap_or_else(host_name),
            pods_dir: self
                .agent
                .pods_dir
                .clone()
                .unwrap_or_else(|| self.paths.state_dir.join("pods")),
            cgroup: self.agent.cgroup.clone(),
            capture: self.agent.capture,
            host_netns_cookie: self.agent.host_netns_cookie,
            proxy_uid: self.user.proxy_uid,
            canary_interval: Some(self.agent.canary_interval_s)
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        }
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The proxy's user.
#[derive(Clone, Copy, Debug, Args)]
pub struct ProxyUser {
    /// User that the proxy runs as.
    #[arg(long, env = "MILLRACE_PROXY_UID", default_value_t = 1337)]
    pub proxy_uid: u32,
    /// Group that the proxy runs as.
    #[arg(long, env = "MILLRACE_PROXY_GID", default_value_t = 1337)]
    pub proxy_gid: u32,
}

/// Arguments of `broker`.
#[derive(Clone, Debug, Args)]
pub struct BrokerArgs {
    /// Directory of sockets.
    #[arg(long, env = "MILLRACE_RUN_DIR", default_value = "/run/millrace")]
    pub run_dir: PathBuf,
    /// The proxy's user.
    #[command(flatten)]
    pub user: ProxyUser,
    /// Sockets per role before a proxy says how many workers it has; the number of CPUs by
    /// default.
    #[arg(long, env = "MILLRACE_WORKERS")]
    pub workers: Option<u16>,
    /// Ends with the process that started this one.
    #[arg(long, hide = true)]
    pub with_launcher: bool,
}

impl BrokerArgs {
    /// The typed settings.
    pub fn config(&self) -> BrokerConfig {
        BrokerConfig {
            agent_socket: self.run_dir.join("broker.sock"),
            proxy_socket: self.run_dir.join("proxy.sock"),
            proxy_uid: self.user.proxy_uid,
            proxy_gid: self.user.proxy_gid,
            workers: self.workers.unwrap_or_else(cpus),
        }
    }
}

fn cpus() -> u16 {
    std::thread::available_parallelism()
        .ok()
        .and_then(|cpus| u16::try_from(cpus.get()).ok())
        .unwrap_or(1)
}

/// What a proxy may take beyond its own limits before it is killed.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Arguments of `node`.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Directories.
    #[command(flatten)]
    pub paths: PathArgs,
    /// The node.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// The proxy's user.
    #[command(flatten)]
    pub user: ProxyUser,
    /// The proxy's program; `millrace-proxy` beside this program by default.
    #[arg(long, env = "MILLRACE_PROXY_BIN")]
    pub proxy_bin: Option<PathBuf>,
    /// Address of pilot's xDS.
    #[arg(
        long,
        env = "MILLRACE_XDS_ADDR",
        default_value = "http://127.0.0.1:15010"
    )]
    pub xds_addr: String,
    /// The proxy's worker threads; its own default if not given.
    #[arg(long, env = "MILLRACE_WORKERS")]
    pub workers: Option<u16>,
    /// The proxy's admin address.
    #[arg(long, env = "MILLRACE_ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin_addr: SocketAddr,
    /// One more argument of the proxy; may be given several times.
    #[arg(long = "proxy-arg", allow_hyphen_values = true)]
    pub proxy_args: Vec<String>,
    /// A file or directory whose change starts a new proxy epoch; may be given several times.
    #[arg(long = "proxy-watch")]
    pub proxy_watch: Vec<PathBuf>,
    /// Seconds that broker and agent may take to end before they are killed.
    #[arg(long, env = "MILLRACE_STOP_WITHIN", default_value_t = 10)]
    pub stop_within: u64,
    /// How long the proxy's connections may finish when all is ended; nobody takes them over then.
    #[arg(long, aliases = ["drainDuration", "drain-time-s"], env = "MILLRACE_DRAIN_DURATION",
        default_value = "45s", value_name = "DURATION", value_parser = duration::parse)]
    pub drain_duration: Duration,
    /// How long a proxy may live that another one has taken over from.
    #[arg(long, aliases = ["parentShutdownDuration", "parent-shutdown-time-s"],
        env = "MILLRACE_PARENT_SHUTDOWN_DURATION", default_value = "1m", value_name = "DURATION",
        value_parser = duration::parse)]
    pub parent_shutdown_duration: Duration,
    /// Seconds that the proxy may take to drain and end before it is killed; 15 more than
    /// `--drain-duration` by default. A second signal to the launcher cuts draining short.
    #[arg(long, env = "MILLRACE_PROXY_STOP_WITHIN")]
    pub proxy_stop_within: Option<u64>,
}

impl NodeArgs {
    /// The typed settings; `cli` gives the log settings that are passed on.
    pub fn config(&self, log: &str, format: Format) -> NodeConfig {
        let proxy_bin = self.proxy_bin.clone().unwrap_or_else(beside_this);
        let run_dir = self.paths.run_dir.display().to_string();
        let logging = || {
            ["--log", log, "--log-format"]
                .map(str::to_owned)
                .into_iter()
                .chain([format.to_string()])
        };
        let node_name = self.agent.node_name.clone().unwrap_or_else(host_name);
        let mut broker_args: Vec<String> = logging().collect();
        broker_args.extend(["--run-dir".to_owned(), run_dir]);
        broker_args.extend(pair("--proxy-uid", self.user.proxy_uid));
        broker_args.extend(pair("--proxy-gid", self.user.proxy_gid));
        broker_args.extend(self.workers.into_iter().flat_map(|n| pair("--workers", n)));
        let mut proxy_args = Vec::new();
        proxy_args.extend(pair("--node-name", &node_name));
        proxy_args.extend(pair("--xds-addr", &self.xds_addr));
        proxy_args.extend(pair("--admin-addr", self.admin_addr));
        proxy_args.extend(self.workers.into_iter().flat_map(|n| pair("--workers", n)));
        for (flag, time) in [
            ("--drain-duration", self.drain_duration),
            ("--parent-shutdown-duration", self.parent_shutdown_duration),
        ] {
            proxy_args.extend(pair(flag, format!("{}ms", time.as_millis())));
        }
        proxy_args.extend(self.proxy_args.iter().cloned());
        NodeConfig {
            agent_bin: own_path(),
            run_dir: self.paths.run_dir.clone(),
            state_dir: self.paths.state_dir.clone(),
            bpffs_dir: self.paths.bpffs_dir.clone(),
            agent_args: self.agent_args(&node_name, logging().collect()),
            broker_args,
            proxy_bin,
            proxy_args,
            proxy_uid: self.user.proxy_uid,
            proxy_gid: self.user.proxy_gid,
            proxy_watch: self.proxy_watch.clone(),
            stop_within: Duration::from_secs(self.stop_within),
            proxy_stop_within: self
                .proxy_stop_within
                .map_or(self.drain_duration + STOP_MARGIN, Duration::from_secs),
            parent_shutdown_within: self.parent_shutdown_duration + STOP_MARGIN,
        }
    }

    fn agent_args(&self, node_name: &str, mut args: Vec<String>) -> Vec<String> {
        args.extend(pair("--run-dir", self.paths.run_dir.display()));
        args.extend(pair("--state-dir", self.paths.state_dir.display()));
        args.extend(pair("--bpffs-dir", self.paths.bpffs_dir.display()));
        args.extend(pair("--node-name", node_name));
        let capture = match self.agent.capture {
            Wish::Auto => "auto",
            Wish::Ebpf => "ebpf",
            Wish::Iptables => "iptables",
            Wish::None => "none",
        };
        args.extend(pair("--capture", capture));
        args.extend(pair("--proxy-uid", self.user.proxy_uid));
        args.extend(pair("--proxy-gid", self.user.proxy_gid));
        if let Some(dir) = &self.agent.pods_dir {
            args.extend(pair("--pods-dir", dir.display()));
        }
        if let Some(cgroup) = &self.agent.cgroup {
            args.extend(pair("--cgroup", cgroup.display()));
        }
        if let Some(cookie) = self.agent.host_netns_cookie {
            args.extend(pair("--host-netns-cookie", cookie));
        }
        args.extend(pair("--canary-interval-s", self.agent.canary_interval_s));
        args
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers, paths and strings are passed alike"
)]
fn pair(flag: &str, value: impl ToString) -> [String; 2] {
    [flag.to_owned(), value.to_string()]
}

fn beside_this() -> PathBuf {
    own_path().with_file_name("millrace-proxy")
}

/// Where this program lies. Asked for once, at the start: after a package has replaced the file
/// the kernel tells the path of the deleted one.
fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("millrace-agent"))
}

/// Arguments of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directories.
    #[command(flatten)]
    pub paths: PathArgs,
    /// Directory of pod descriptions; their namespaces are cleaned when no broker runs.
    #[arg(long, env = "MILLRACE_PODS_DIR")]
    pub pods_dir: Option<PathBuf>,
    /// Cleans the current network namespace instead: undoes `init`.
    #[arg(long)]
    pub here: bool,
}

/// Arguments of `dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// Directory of sockets.
    #[arg(long, env = "MILLRACE_RUN_DIR", default_value = "/run/millrace")]
    pub run_dir: PathBuf,
}
