//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
