//! Agent and broker as processes on a node: capture by either way, switched at run time, and
//! nothing lost when one of them is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/broker.rs"]
mod support;

use std::net::SocketAddr;

use agent::{AgentNode, PATIENCE, original_dst};
use http::Method;
use millrace_runtime::handoff::{CaptureMode, ListenerRole, ProxyRequest};
use millrace_testkit::{Pod, eventually};
use support::{Proxy, accept_any, listeners};

const SERVICE4: &str = "10.96.0.10:9080";
const SERVICE6: &str = "[fd00:96::10]:9080";

macro_rules! node {
    ($($annotation:expr),*) => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        AgentNode::new(&[$($annotation),*])
    }};
}

/// A proxy that keeps its listeners and its heartbeat.
struct Served {
    listeners: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
    alive: tokio::task::JoinHandle<()>,
}

async fn serve(node: &AgentNode, epoch: u32) -> Served {
    let path = node.node.run_dir().join("proxy.sock");
    let proxy = Proxy::greet(&path, epoch, 1).await;
    proxy.say(ProxyRequest::Ready).await;
    let (_, held) = proxy.pod().await;
    Served {
        listeners: listeners(&held, ListenerRole::Outbound),
        inbound: listeners(&held, ListenerRole::Inbound),
        alive: tokio::spawn(async move {
            let mut beats = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                tokio::select! {
                    _ = beats.tick() => proxy.say(ProxyRequest::Heartbeat).await,
                    _ = proxy.hear_or_end() => {}
                }
            }
        }),
    }
}

/// The pod connects to both families of the service and arrives at the proxy, knowing where to.
fn captured(pod: &Pod, served: &Served) {
    for (service, v6) in [(SERVICE4, false), (SERVICE6, true)] {
        let service: SocketAddr = service.parse().unwrap();
        let _client = pod.connect(service).expect("captured");
        let (stream, peer) = accept_any(&served.listeners);
        assert_eq!(original_dst(&stream, v6), service);
        assert_eq!(peer.ip(), if v6 { pod.ip6() } else { pod.ip() });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_is_switched_in_both_directions_without_touching_the_pod() {
    let node = node!();
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let status = node.until("captured", |pod| pod.healthy).await;
    assert_eq!(status.capture, CaptureMode::Ebpf, "{status:?}");
    assert_eq!(status.reason, "every eBPF feature is available");
    captured(&node.pod, &served);

    let status = node.switch("iptables").await;
    assert_eq!(status.capture, CaptureMode::Iptables, "{status:?}");
    assert!(status.healthy, "{status:?}");
    captured(&node.pod, &served);

    let status = node.switch("ebpf").await;
    assert_eq!(status.capture, CaptureMode::Ebpf, "{status:?}");
    captured(&node.pod, &served);

    let status = node.switch("none").await;
    assert_eq!(status.capture, CaptureMode::None, "{status:?}");
    let service = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    let direct = node
        .pod
        .connect(service.local_addr().unwrap())
        .expect("direct");
    assert_eq!(service.accept().unwrap().1.ip(), node.pod.ip());
    drop(direct);

    let status = node.switch("auto").await;
    assert_eq!(status.capture, CaptureMode::Ebpf, "{status:?}");
    captured(&node.pod, &served);
}

#[tokio::test(flavor = "multi_thread")]
async fn inbound_connections_reach_the_proxy_in_both_modes() {
    let node = node!();
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let other = node.node.pod("other").expect("pod");
    for mode in ["ebpf", "iptables"] {
        node.until("captured", |pod| pod.healthy).await;
        node.switch(mode).await;
        let to = node.pod.at(9080);
        let _client = other.connect(to).expect("captured inbound");
        let (stream, peer) = accept_any(&served.inbound);
        assert_eq!(peer.ip(), other.ip());
        if mode == "iptables" {
            assert_eq!(original_dst(&stream, false), to);
        } else {
            let local = support::canonical(stream.local_addr().unwrap());
            assert_eq!(local, to, "the local address is the original destination");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_adopted_without_a_gap() {
    let node = node!();
    node.describe();
    let _broker = node.broker();
    let mut agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let before = node.until("captured", |pod| pod.healthy).await;
    agent.kill().expect("killed");
    captured(&node.pod, &served);
    let _agent = node.agent(&[]);
    let after = node.until("captured again", |pod| pod.healthy).await;
    assert_eq!(after.since, before.since);
    assert_eq!(after.netns_cookie, before.netns_cookie);
    captured(&node.pod, &served);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_annotation_and_the_node_setting_choose_the_mode() {
    let node = node!(("millrace.io/capture", "iptables"));
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let status = node.until("captured", |pod| pod.healthy).await;
    assert_eq!(status.capture, CaptureMode::Iptables);
    assert_eq!(status.reason, "annotation millrace.io/capture: iptables");
    captured(&node.pod, &served);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_rules_come_back() {
    let node = node!(("millrace.io/capture", "iptables"));
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    node.until("captured", |pod| pod.healthy).await;
    let mut flush = std::process::Command::new("iptables");
    flush.args(["-t", "nat", "-F", "ISTIO_OUTPUT"]);
    node.pod.stdout(flush).expect("flushed");
    node.ask(Method::POST, "/refresh", "")
        .await
        .expect("refreshed");
    captured(&node.pod, &served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pod_is_refused_without_a_proxy_and_an_open_one_goes_direct() {
    let node = node!();
    let service = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    let to = service.local_addr().unwrap();
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    node.until("captured", |pod| pod.healthy).await;
    served.alive.abort();
    drop(served.listeners);
    drop(served.inbound);
    eventually(PATIENCE, "the loss is noticed", || {
        node.pod.connect(to).is_err()
    });
    let text = std::fs::read_to_string(node.description()).unwrap();
    let open = text.replace(
        "\"annotations\":{",
        "\"annotations\":{\"millrace.io/on-capture-loss\":\"open\"",
    );
    for (mode, loss) in [
        ("iptables", "closed"),
        ("ebpf", "open"),
        ("iptables", "open"),
    ] {
        std::fs::write(
            node.description(),
            if loss == "open" { &open } else { &text },
        )
        .unwrap();
        node.switch(mode).await;
        node.until("the description is read", |pod| {
            pod.on_capture_loss.to_string() == loss
        })
        .await;
        eventually(PATIENCE, &format!("{mode} {loss}"), || {
            node.pod.connect(to).is_ok() == (loss == "open")
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_leaves_is_released() {
    let node = node!();
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let _served = serve(&node, 0).await;
    node.until("captured", |pod| pod.healthy).await;
    std::fs::remove_file(node.description()).unwrap();
    let service = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    let to = service.local_addr().unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node
        .status()
        .await
        .is_none_or(|status| status.pods.known > 0)
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{}",
            node.log("agent")
        );
    }
    eventually(PATIENCE, "direct", || node.pod.connect(to).is_ok());
    let mut nft = std::process::Command::new("nft");
    nft.args(["list", "ruleset"]);
    let left = node.pod.stdout(nft).unwrap();
    assert!(
        !left.contains("ISTIO") && !left.contains("millrace"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_names_what_is_wrong() {
    let node = node!();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.status().await.is_none() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{}",
            node.log("agent")
        );
    }
    let answer = node
        .ask(Method::POST, "/pods", "name: a\nnetnz: /x\n")
        .await
        .unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("\"line\": 2"), "{}", answer.text());
    let answer = node
        .ask(Method::PUT, "/pods/none/capture", "{\"mode\": \"ebpf\"}")
        .await
        .unwrap();
    assert_eq!(answer.status, 404);
    let answer = node
        .ask(Method::PUT, "/pods/none/capture", "{\"mode\": \"magic\"}")
        .await
        .unwrap();
    assert_eq!(answer.status, 400);
    let answer = node
        .ask(
            Method::PUT,
            "/log",
            "{\"bpf\": \"debug\", \"level\": \"warn\"}",
        )
        .await
        .unwrap();
    assert!(
        answer.text().contains("\"bpf\": \"debug\""),
        "{}",
        answer.text()
    );
    let answer = node.ask(Method::GET, "/metrics", "").await.unwrap();
    assert!(
        answer
            .text()
            .contains("millrace_agent_pods{state=\"known\"} 0"),
        "{}",
        answer.text()
    );
    assert!(
        answer.text().contains("millrace_ebpf_outcomes_total{"),
        "{}",
        answer.text()
    );
    let answer = node.ask(Method::GET, "/probe", "").await.unwrap();
    assert!(answer.text().contains("\"summary\""));
}

/// Adds an annotation to the pod's description.
fn annotate(node: &AgentNode, key: &str, value: &str) {
    let text = std::fs::read_to_string(node.description()).unwrap();
    let mut pod: serde_json::Value = serde_json::from_str(&text).unwrap();
    pod["annotations"][key] = value.into();
    std::fs::write(node.description(), pod.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_passes_the_guard_of_a_closed_pod_in_both_modes() {
    let node = node!();
    let by_port = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    let other = node.node.pod("other").expect("pod");
    let by_cidr = other.listen(SocketAddr::new(other.ip(), 0)).unwrap();
    node.describe();
    let port = by_port.local_addr().unwrap().port().to_string();
    annotate(
        &node,
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        &port,
    );
    annotate(
        &node,
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        &format!("{}/32", other.ip()),
    );
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let status = node.until("captured", |pod| pod.healthy).await;
    assert!(status.detail.contains("guarded"), "{status:?}");
    for mode in ["ebpf", "iptables", "ebpf"] {
        let status = node.switch(mode).await;
        assert!(status.healthy, "{status:?}");
        captured(&node.pod, &served);
        for direct in [&by_port, &by_cidr] {
            let to = direct.local_addr().unwrap();
            let _client = node
                .pod
                .connect(to)
                .unwrap_or_else(|error| panic!("{mode}: {to} is excluded: {error}"));
            assert_eq!(direct.accept().unwrap().1.ip(), node.pod.ip());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_adopted_does_not_keep_vanished_ones_enrolled() {
    let node = node!();
    let service = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    service.set_nonblocking(true).unwrap();
    let to = service.local_addr().unwrap();
    node.describe();
    let _broker = node.broker();
    let mut agent = node.agent(&[]);
    let _served = serve(&node, 0).await;
    let status = node.until("captured", |pod| pod.healthy).await;
    assert_eq!(status.capture, CaptureMode::Ebpf, "{status:?}");
    agent.kill().expect("killed");
    std::fs::remove_file(node.description()).unwrap();
    let older = node.node.bpffs_dir().join("v0");
    std::fs::create_dir_all(older.join("links")).unwrap();
    std::fs::write(
        node.node.pods_dir().join("bad.yaml"),
        "name: bad\nlabels: {millrace.io/dataplane-mode: node}\nnetns: /run/netns/no-such\n",
    )
    .unwrap();
    let _agent = node.agent(&[]);
    eventually(PATIENCE, "the vanished pod goes direct", || {
        node.pod.connect(to).is_ok() && service.accept().is_ok()
    });
    eventually(PATIENCE, "older programs are let go", || !older.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pod_without_a_guard_is_unhealthy_and_says_why() {
    let node = node!();
    node.describe();
    let tools = node.node.run_dir().join("tools");
    std::fs::create_dir_all(&tools).unwrap();
    for dir in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let known = name.to_string_lossy().contains("tables") || name == "ip";
            if known && !tools.join(&name).exists() {
                std::os::unix::fs::symlink(entry.path(), tools.join(&name)).unwrap();
            }
        }
    }
    let _broker = node.broker_with(&[("PATH", &tools.display().to_string())]);
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    for mode in ["ebpf", "iptables"] {
        node.switch(mode).await;
        let status = node
            .until("captured without a guard", |pod| {
                let problem = pod.problem.as_deref().unwrap_or_default();
                pod.capture.to_string() == mode && problem.contains("nft is not installed")
            })
            .await;
        assert!(!status.healthy, "{status:?}");
        captured(&node.pod, &served);
    }
    annotate(&node, "millrace.io/on-capture-loss", "open");
    node.until("an open pod needs no guard", |pod| pod.healthy)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_could_not_capture_is_in_the_pods_status() {
    let node = node!(("millrace.io/on-capture-loss", "open"));
    let service = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    let to = service.local_addr().unwrap();
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node, 0).await;
    let before = node.until("captured", |pod| pod.healthy).await;
    assert_eq!(before.capture_events.last, None, "{before:?}");
    served.alive.abort();
    drop(served.listeners);
    drop(served.inbound);
    service.set_nonblocking(true).unwrap();
    eventually(PATIENCE, "the pod goes direct", || {
        node.pod.connect(to).is_ok() && service.accept().is_ok()
    });
    let status = node
        .until("counted", |pod| pod.capture_events.went_direct > 0)
        .await;
    let events = status.capture_events;
    assert!(events.last.is_some(), "{events:?}");
    let reason = events.last_reason.unwrap();
    assert!(reason.contains(&to.to_string()), "{reason}");
    let maps = node.status().await.unwrap().maps;
    let policies = maps.iter().find(|map| map.map == "POLICIES").unwrap();
    assert!(policies.used == 1 && policies.capacity > 1, "{policies:?}");
    let metrics = node.ask(Method::GET, "/metrics", "").await.unwrap().text();
    for line in [
        "millrace_pod_capture_events_total{namespace=\"default\",pod=\"app\",event=\"went_direct\"}",
        "millrace_ebpf_map_elements{map=\"POLICIES\"} 1",
        "millrace_ebpf_map_capacity{map=\"POLICIES\"}",
        "millrace_pod_tcp_rtt_microseconds_total{",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}
