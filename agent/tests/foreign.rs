//! Socket load balancers of others: named, and no matter in which order they were attached, the proxy learns
//! what the application asked for.
//!
//! The stand-in rewrites a service's address at connect4, as Cilium's `cil_sock4_connect` and Calico's
//! `calico_connect_v4` do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/answering.rs"]
mod answering;
#[path = "support/attach.rs"]
mod attach;
#[path = "support/broker.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;

use agent::{AgentNode, PATIENCE};
use answering::Answering;
use http::Method;
use millrace_agent::bpf::Order;
use millrace_agent::integrity::ForeignStatus;

const NAME: &str = "cil_sock4_conne";
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 9080);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 97, 0, 7), 8080);

fn balancer() -> OwnedFd {
    attach::load_balancer(NAME, *SERVICE.ip(), BACKEND)
}

/// Waits until the stand-in is reported in this order.
async fn reported(node: &AgentNode, at: &Path, order: Order) -> ForeignStatus {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let at = at.display().to_string();
    loop {
        // Sooner than the watch would look by itself.
        let refreshed = node.ask(Method::POST, "/refresh", "").await;
        assert_eq!(refreshed.expect("refreshed").status, 200);
        let status = node.status().await;
        let foreign = status.map(|status| status.integrity.foreign);
        let found = foreign
            .iter()
            .flatten()
            .find(|program| program.name == NAME && program.at == at && program.order == order);
        if let Some(found) = found {
            return found.clone();
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{foreign:?}\n{}",
            node.log("agent")
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Where the proxy learns that the application wanted to go, and what the application sees.
async fn asked_for(node: &AgentNode, proxy: &mut Answering) -> SocketAddr {
    let client = node.pod.connect(SERVICE.into()).expect("captured");
    let arrived = proxy.next().await;
    assert_eq!(client.peer_addr().unwrap(), arrived.to);
    arrived.to
}

/// Whether this kernel lets a link say that it comes first.
fn kernel_orders(node: &AgentNode) -> bool {
    attach::attach(&balancer(), node.node.cgroup_root(), attach::FIRST).is_ok()
}

macro_rules! node {
    () => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        let node = AgentNode::new(&[("millrace.io/capture", "ebpf")]);
        node.describe();
        node
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_there_before_is_overtaken_and_named() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    let orders = kernel_orders(&node);
    let _theirs = attach::attach(&balancer(), &root, 0).expect("attached");
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let mut proxy = Answering::start(&node.node.run_dir().join("proxy.sock"), 0).await;
    node.until("captured", |pod| pod.healthy).await;
    let (order, to) = if orders {
        (Order::After, SERVICE)
    } else {
        (Order::Before, BACKEND)
    };
    let found = reported(&node, &root, order).await;
    assert_eq!(found.hook, "connect4");
    assert_eq!(asked_for(&node, &mut proxy).await, SocketAddr::V4(to));

    let metrics = node.ask(Method::GET, "/metrics", "").await.unwrap();
    let line = format!(
        "millrace_node_foreign_program{{hook=\"connect4\",program=\"{NAME}\",id=\"{}\"",
        found.id
    );
    assert!(metrics.text().contains(&line), "{}", metrics.text());
    let probe = node.ask(Method::GET, "/probe", "").await.unwrap();
    assert!(probe.text().contains(NAME), "{}", probe.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_later_above_beside_or_below_runs_after_ours() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    let orders = kernel_orders(&node);
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let mut proxy = Answering::start(&node.node.run_dir().join("proxy.sock"), 0).await;
    node.until("captured", |pod| pod.healthy).await;
    for (at, below) in [
        (root.parent().unwrap(), false),
        (root.as_path(), false),
        (node.pod.cgroup_dir(), true),
    ] {
        let _theirs = attach::attach(&balancer(), at, 0).expect("attached");
        let (order, to) = if below && !orders {
            (Order::Before, BACKEND)
        } else {
            (Order::After, SERVICE)
        };
        reported(&node, at, order).await;
        let asked = asked_for(&node, &mut proxy).await;
        assert_eq!(asked, SocketAddr::V4(to), "attached at {}", at.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_pushes_in_is_overtaken_once_and_reported_if_it_insists() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    if !kernel_orders(&node) {
        return millrace_testkit::skip::not_applicable("cgroup-link-order", "EINVAL");
    }
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let mut proxy = Answering::start(&node.node.run_dir().join("proxy.sock"), 0).await;
    node.until("captured", |pod| pod.healthy).await;
    let program = balancer();
    let first = attach::attach(&program, &root, attach::FIRST).expect("attached");
    // As long as it is first the proxy is told its backend, and that is what the order is about.
    let asked = asked_for(&node, &mut proxy).await;
    assert!([SERVICE, BACKEND].map(SocketAddr::V4).contains(&asked));
    reported(&node, &root, Order::After).await;
    assert_eq!(asked_for(&node, &mut proxy).await, SocketAddr::V4(SERVICE));

    let _again = attach::attach(&program, &root, attach::FIRST).expect("attached");
    drop(first);
    reported(&node, &root, Order::Before).await;
    assert_eq!(asked_for(&node, &mut proxy).await, SocketAddr::V4(BACKEND));
}
