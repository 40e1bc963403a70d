//! A node with a real broker and a real agent, and its API.
#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test binary uses its part, and helpers of tests may panic"
)]

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use millrace_agent::status::{NodeStatus, PodStatus};
use millrace_runtime::admin::client::{Answer, Target, call};
use millrace_testkit::{Cluster, Node, Pod, PodOptions, Process};
use nix::sys::socket::{getsockopt, sockopt};

pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A node whose broker accepts this test as a proxy.
pub(crate) struct AgentNode {
    pub(crate) node: Node,
    pub(crate) pod: Pod,
    _cluster: Cluster,
}

impl AgentNode {
    pub(crate) fn new(annotations: &[(&str, &str)]) -> Self {
        let cluster = Cluster::new().expect("cluster");
        let node = cluster.node("n1").expect("node");
        let mut options = PodOptions::named("app").label("millrace.io/dataplane-mode", "node");
        for (key, value) in annotations {
            options = options.annotation(key, value);
        }
        let pod = node.pod_with(options).expect("pod");
        Self {
            node,
            pod,
            _cluster: cluster,
        }
    }

    /// Describes the pod to the agent.
    pub(crate) fn describe(&self) {
        let options = self.pod.options();
        let description = serde_json::json!({
            "uid": self.pod.uid(),
            "name": options.name,
            "labels": options.labels,
            "annotations": options.annotations,
            "ips": [self.pod.ip(), self.pod.ip6()],
            "netns": self.pod.netns().path(),
        });
        std::fs::write(self.description(), description.to_string()).expect("described");
    }

    pub(crate) fn description(&self) -> PathBuf {
        self.node.pods_dir().join("app.json")
    }

    pub(crate) fn broker(&self) -> Process {
        self.broker_with(&[])
    }

    pub(crate) fn broker_with(&self, environment: &[(&str, &str)]) -> Process {
        let mut command = agent_command("broker");
        command.envs(environment.iter().copied());
        command.arg("--run-dir").arg(self.node.run_dir()).args([
            "--proxy-uid",
            "0",
            "--proxy-gid",
            "0",
            "--workers",
            "1",
        ]);
        self.node.spawn("broker", command).expect("broker")
    }

    pub(crate) fn agent(&self, more: &[&str]) -> Process {
        let mut command = agent_command("run");
        command
            .arg("--run-dir")
            .arg(self.node.run_dir())
            .arg("--state-dir")
            .arg(self.node.state_dir())
            .arg("--bpffs-dir")
            .arg(self.node.bpffs_dir())
            .arg("--pods-dir")
            .arg(self.node.pods_dir())
            .arg("--cgroup")
            .arg(self.node.cgroup_root())
            .args(["--node-name", "n1", "--log", "debug"])
            // Proxies written by hand answer none; the flag wins where one does.
            .env("MILLRACE_CANARY_INTERVAL_S", "0")
            .args(more);
        self.node.spawn("agent", command).expect("agent")
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: &str) -> Option<Answer> {
        let target = Target::Unix(self.node.run_dir().join("agent.sock"));
        let body = Bytes::copy_from_slice(body.as_bytes());
        call(&target, method, path, body, PATIENCE).await.ok()
    }

    pub(crate) async fn status(&self) -> Option<NodeStatus> {
        let answer = self.ask(Method::GET, "/status", "").await?;
        serde_json::from_slice(&answer.body).ok()
    }

    pub(crate) async fn pod_status(&self) -> Option<PodStatus> {
        let path = format!("/pods/{}", self.pod.uid());
        let answer = self.ask(Method::GET, &path, "").await?;
        serde_json::from_slice(&answer.body).ok()
    }

    /// Waits until the pod's status is as wanted.
    #[expect(
        clippy::unused_async,
        reason = "it waits by itself, and is called like all that waits here"
    )]
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let found = wait(async || {
            let status = self.pod_status().await;
            let as_wanted = status.as_ref().filter(|status| wanted(status)).cloned();
            as_wanted.ok_or_else(|| format!("{status:?}"))
        });
        found.unwrap_or_else(|error| {
            panic!(
                "{what}: {error}\n{}\n{}",
                self.log("agent"),
                self.log("broker")
            )
        })
    }

    pub(crate) async fn switch(&self, mode: &str) -> PodStatus {
        self.until("the agent knows the pod", |_| true).await;
        let path = format!("/pods/{}/capture", self.pod.uid());
        let body = format!("{{\"mode\": \"{mode}\"}}");
        let answer = self.ask(Method::PUT, &path, &body).await.expect("answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).expect("status")
    }

    pub(crate) fn log(&self, name: &str) -> String {
        let path = self.node.log_dir().join(format!("{name}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

/// The testkit's wait for what is asked for asynchronously, by a test with several threads.
///
/// # Errors
/// The last one, if there is still one after [`PATIENCE`].
pub(crate) fn wait<T>(attempt: impl AsyncFnMut() -> Result<T, String>) -> anyhow::Result<T> {
    wait_for(PATIENCE, attempt)
}

/// As [`wait`], for so long.
pub(crate) fn wait_for<T>(
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        millrace_testkit::until(patience, || runtime.block_on(attempt()))
    })
}

/// A command of the binary under test.
pub(crate) fn agent_command(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-agent"));
    command.arg(name);
    command
}

/// What the accepted connection was meant for.
pub(crate) fn original_dst(stream: &impl AsFd, v6: bool) -> SocketAddr {
    if v6 {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).expect("original destination");
        let ip = std::net::Ipv6Addr::from(raw.sin6_addr.s6_addr);
        SocketAddr::new(ip.into(), u16::from_be(raw.sin6_port))
    } else {
        let raw = getsockopt(stream, sockopt::OriginalDst).expect("original destination");
        let ip = std::net::Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        SocketAddr::new(ip.into(), u16::from_be(raw.sin_port))
    }
}
