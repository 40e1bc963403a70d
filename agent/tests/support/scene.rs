//! A captured pod under watch: a node with a real broker and a real agent, and a proxy written by hand.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test binary uses its part, and helpers of tests may panic"
)]

#[path = "agent.rs"]
pub(crate) mod agent;
#[path = "answering.rs"]
pub(crate) mod answering;
#[path = "attach.rs"]
pub(crate) mod attach;
#[path = "broker.rs"]
pub(crate) mod support;

use std::net::SocketAddr;
use std::process::Command;

use agent::AgentNode;
use answering::Answering;
use http::Method;
use millrace_agent::status::PodStatus;
use millrace_runtime::handoff::{Cause, ListenerRole};
use millrace_testkit::Process;

/// A service that nobody has.
const SERVICE: &str = "10.96.0.10:9080";

/// Everything that runs. Field order is drop order.
pub(crate) struct Scene {
    pub(crate) proxy: Answering,
    agent: Process,
    broker: Process,
    pub(crate) node: AgentNode,
}

/// A node with a pod that is to be captured in this way; nothing runs yet.
pub(crate) fn node(mode: &str, besides: &[(&str, &str)]) -> AgentNode {
    let mut annotations = vec![("millrace.io/capture", mode)];
    annotations.extend(besides);
    let node = AgentNode::new(&annotations);
    node.describe();
    node
}

impl Scene {
    /// Starts everything on `node` and waits until the pod is captured.
    pub(crate) async fn start(node: AgentNode, canaries: &str) -> Self {
        let broker = node.broker();
        let agent = node.agent(&["--canary-interval-s", canaries]);
        let proxy = Answering::start(&node.node.run_dir().join("proxy.sock"), 0).await;
        let status = node.until("captured", |pod| pod.healthy).await;
        let wanted = &node.pod.options().annotations["millrace.io/capture"];
        assert_eq!(status.capture.to_string(), *wanted, "{status:?}");
        Self {
            proxy,
            agent,
            broker,
            node,
        }
    }

    /// Until a breakage was noticed and repaired, `times` in all.
    pub(crate) async fn repaired(&mut self, cause: Cause, times: u64) -> PodStatus {
        let status = self
            .node
            .until(&format!("{cause} is repaired"), |pod| {
                pod.integrity.repaired_total.get(&cause) == Some(&times) && pod.healthy
            })
            .await;
        assert_eq!(status.integrity.broken_total[&cause], times, "{status:?}");
        self.captures().await;
        status
    }

    /// A connection of the application arrives at the proxy.
    pub(crate) async fn captures(&mut self) {
        let to = SERVICE.parse().unwrap();
        assert_eq!(self.asked_for(to).await, to);
    }

    /// Where the proxy learns that the application wanted to go, which is what the application sees.
    pub(crate) async fn asked_for(&mut self, to: SocketAddr) -> SocketAddr {
        let client = self.node.pod.connect(to).expect("captured");
        let arrived = self.proxy.next().await;
        assert_eq!(arrived.role, ListenerRole::Outbound);
        assert_eq!(client.peer_addr().unwrap(), arrived.to);
        arrived.to
    }

    pub(crate) fn in_pod(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        self.node.pod.stdout(command).expect("it runs")
    }

    pub(crate) async fn metrics(&self) -> String {
        let answer = self.node.ask(Method::GET, "/metrics", "").await.unwrap();
        answer.text()
    }

    pub(crate) fn pin(&self, path: &str) -> std::path::PathBuf {
        self.node.node.bpffs_dir().join("v2").join(path)
    }
}
