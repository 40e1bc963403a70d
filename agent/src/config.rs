//! Typed settings of the agent's commands; `cli.rs` fills them from flags and environment.

use std::path::PathBuf;
use std::time::Duration;

use crate::redirect::Wish;

/// Where things are on a node; shared by all commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Sockets: `agent.sock`, `accel.sock`, `broker.sock`, `proxy.sock`.
    pub run_dir: PathBuf,
    /// What outlives processes.
    pub state_dir: PathBuf,
    /// Pins of the eBPF programs.
    pub bpffs_dir: PathBuf,
}

impl Paths {
    /// The agent's API.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Where proxies ask for acceleration.
    pub fn accel_socket(&self) -> PathBuf {
        self.run_dir.join("accel.sock")
    }

    /// Where the agent reaches the broker.
    pub fn broker_socket(&self) -> PathBuf {
        self.run_dir.join("broker.sock")
    }

    /// Where proxies reach the broker.
    pub fn proxy_socket(&self) -> PathBuf {
        self.run_dir.join("proxy.sock")
    }
}

/// Settings of `millrace-agent run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Where things are.
    pub paths: Paths,
    /// The node's name.
    pub node_name: String,
    /// Directory of pod descriptions.
    pub pods_dir: PathBuf,
    /// cgroup2 directory above pods, broker and kubelet; `None` is the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    /// The operator's capture setting for all pods.
    pub capture: Wish,
    /// Cookie of the namespace from which the node itself connects; `None` is the agent's own.
    pub host_netns_cookie: Option<u64>,
    /// The user that proxies run as.
    pub proxy_uid: u32,
    /// Time between two canaries of a pod; `None` sends none.
    pub canary_interval: Option<Duration>,
}
