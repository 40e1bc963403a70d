//! `accel.sock` of a real agent: a proxy's connections are promoted, refused with the reason, and shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/broker.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use agent::{AgentNode, PATIENCE};
use http::Method;
use millrace_runtime::handoff::accel::{ACCEL_VERSION, PRIORITY_LEAVING};
use millrace_runtime::handoff::{
    AccelCall, AccelConnection, AccelReply, Acceleration, HEARTBEAT_INTERVAL, ListenerRole,
    PromotionRequest, ProxyRequest, Refusal,
};
use millrace_testkit::eventually;
use nix::sys::socket::{setsockopt, sockopt};
use support::{Proxy, accept_any, canonical, listeners};

const SERVICE: &str = "10.96.0.10:9080";

macro_rules! node {
    ($($annotation:expr),*) => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        if let Err(reason) = millrace_agent::bpf::probe().acceleration() {
            return millrace_testkit::skip::not_applicable("acceleration", &reason);
        }
        AgentNode::new(&[$($annotation),*])
    }};
}

/// A proxy that keeps its heartbeat, and what it was told and given of the pod.
struct Served {
    acceleration: Acceleration,
    outbound: Vec<std::net::TcpListener>,
    alive: tokio::task::JoinHandle<()>,
}

async fn serve(node: &AgentNode) -> Served {
    let proxy = Proxy::greet(&node.node.run_dir().join("proxy.sock"), 0, 1).await;
    proxy.say(ProxyRequest::Ready).await;
    let (spec, held) = proxy.pod().await;
    Served {
        acceleration: Acceleration::of(&spec),
        outbound: listeners(&held, ListenerRole::Outbound),
        alive: tokio::spawn(async move {
            let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
            loop {
                tokio::select! {
                    _ = beats.tick() => proxy.say(ProxyRequest::Heartbeat).await,
                    _ = proxy.hear_or_end() => {}
                }
            }
        }),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

/// A captured connection: the application's end, the proxy's, both non-blocking.
struct Captured {
    app: TcpStream,
    proxy: TcpStream,
}

impl Captured {
    fn new(node: &AgentNode, listeners: &[std::net::TcpListener]) -> Self {
        let service: SocketAddr = SERVICE.parse().unwrap();
        let app = node.pod.connect(service).expect("captured");
        let (proxy, _) = accept_any(listeners);
        for end in [&app, &proxy] {
            end.set_nonblocking(true).unwrap();
        }
        Self { app, proxy }
    }

    fn request(&self, node: &AgentNode, id: u64) -> PromotionRequest {
        PromotionRequest {
            id,
            uid: node.pod.uid().into(),
            local: canonical(self.proxy.local_addr().unwrap()),
            remote: canonical(self.proxy.peer_addr().unwrap()),
        }
    }

    fn exchange(&mut self) {
        say(&mut self.app, &mut self.proxy, b"request");
        say(&mut self.proxy, &mut self.app, b"response");
    }
}

fn say(from: &mut TcpStream, to: &mut TcpStream, what: &[u8]) {
    from.write_all(what).unwrap();
    let mut heard = Vec::new();
    eventually(PATIENCE, "the message arrives", || {
        let mut buffer = [0; 64];
        if let Ok(length) = to.read(&mut buffer) {
            heard.extend_from_slice(&buffer[..length]);
        }
        heard.len() == what.len()
    });
    assert_eq!(heard, what);
}

/// A proxy's end of `accel.sock`, greeted.
async fn greet(node: &AgentNode) -> AccelConnection {
    let path = node.node.run_dir().join("accel.sock");
    let accel = AccelConnection::connect(&path).expect("the agent serves");
    let hello = AccelCall::Hello {
        version: ACCEL_VERSION,
        pid: std::process::id(),
    };
    accel.send(&hello, &[]).await.unwrap();
    let welcome = accel.recv().await.unwrap().unwrap().message;
    let expected = AccelReply::Welcome {
        version: ACCEL_VERSION,
        unavailable: None,
    };
    assert_eq!(welcome, expected);
    accel
}

async fn promote(
    accel: &AccelConnection,
    requests: Vec<PromotionRequest>,
) -> Vec<(u64, Option<Refusal>)> {
    let call = AccelCall::Promote { requests };
    accel.send(&call, &[]).await.unwrap();
    match accel.recv().await.unwrap().unwrap().message {
        AccelReply::Promoted { results } => results.iter().map(|r| (r.id, r.refused)).collect(),
        other => panic!("{other:?}"),
    }
}

async fn leave(accel: &AccelConnection, request: PromotionRequest) -> Option<Refusal> {
    let call = AccelCall::Leave {
        requests: vec![request],
    };
    accel.send(&call, &[]).await.unwrap();
    match accel.recv().await.unwrap().unwrap().message {
        AccelReply::Left { results } => results[0].refused,
        other => panic!("{other:?}"),
    }
}

async fn ends(node: &AgentNode) -> Vec<serde_json::Value> {
    let answer = node.ask(Method::GET, "/acceleration", "").await.unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    shown["ends"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_its_connections_promoted_and_everybody_sees_it() {
    let node = node!(("millrace.io/acceleration", "auto"));
    node.describe();
    let _broker = node.broker();
    let mut agent = node.agent(&[]);
    let served = serve(&node).await;
    assert_eq!(served.acceleration, Acceleration::Auto);
    let outbound = &served.outbound;
    node.until("captured", |pod| pod.healthy).await;
    assert!(node.status().await.unwrap().acceleration.available);

    let accel = greet(&node).await;
    let mut captured = Captured::new(&node, outbound);
    let mut blocking = Captured::new(&node, outbound);
    blocking.app.set_nonblocking(false).unwrap();
    let stranger = PromotionRequest {
        uid: "nobody".into(),
        ..captured.request(&node, 3)
    };
    let requests = vec![
        captured.request(&node, 1),
        blocking.request(&node, 2),
        stranger,
    ];
    let results = promote(&accel, requests).await;
    assert_eq!(
        results,
        [
            (1, None),
            (2, Some(Refusal::Blocking)),
            (3, Some(Refusal::UnknownPod))
        ]
    );
    for _ in 0..3 {
        captured.exchange();
    }
    blocking.app.set_nonblocking(true).unwrap();
    blocking.exchange();

    let counts = node.pod_status().await.unwrap().accelerated;
    assert_eq!((counts.promoted, counts.redirected_messages), (1, 5));
    assert_eq!((counts.tcp_messages, counts.redirected_bytes), (1, 38));
    assert_eq!(counts.refused["blocking"], 1);
    let shown = ends(&node).await;
    assert_eq!(shown.len(), 2, "{shown:?}");
    let app = shown
        .iter()
        .find(|end| end["end"] == "application")
        .unwrap();
    assert_eq!(app["redirected_messages"], 2);
    assert_eq!(app["pod"], "default/app");
    let metrics = node.ask(Method::GET, "/metrics", "").await.unwrap();
    let metrics = metrics.text();
    for line in [
        "millrace_pod_acceleration_promoted_total{namespace=\"default\",pod=\"app\"} 1",
        "millrace_pod_acceleration_refused_total{namespace=\"default\",pod=\"app\",reason=\"blocking\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }

    agent.kill().unwrap();
    captured.exchange();
    let _agent = node.agent(&[]);
    node.until("captured again", |pod| pod.healthy).await;
    let accel = greet(&node).await;
    let results = promote(&accel, vec![captured.request(&node, 4)]).await;
    assert_eq!(results, [(4, Some(Refusal::InUse))]);
    captured.exchange();
    assert_eq!(ends(&node).await.len(), 2);
    let request = captured.request(&node, 6);
    assert_eq!(
        leave(&accel, request.clone()).await,
        Some(Refusal::Withdrawn)
    );
    let leaving = i32::try_from(PRIORITY_LEAVING).unwrap();
    setsockopt(&captured.proxy, sockopt::Priority, &leaving).unwrap();
    let nobodys = PromotionRequest {
        uid: "nobody".into(),
        ..request.clone()
    };
    assert_eq!(leave(&accel, nobodys).await, Some(Refusal::UnknownPod));
    assert_eq!(leave(&accel, request).await, None);
    assert_eq!(ends(&node).await.len(), 1, "the proxy's");
    captured.exchange();
    let results = promote(&accel, vec![blocking.request(&node, 5)]).await;
    assert_eq!(results, [(5, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_off_is_not_promoted() {
    let node = node!(("millrace.io/acceleration", "off"));
    node.describe();
    let _broker = node.broker();
    let _agent = node.agent(&[]);
    let served = serve(&node).await;
    assert_eq!(served.acceleration, Acceleration::Off);
    node.until("captured", |pod| pod.healthy).await;
    let accel = greet(&node).await;
    let captured = Captured::new(&node, &served.outbound);
    let results = promote(&accel, vec![captured.request(&node, 1)]).await;
    assert_eq!(results, [(1, Some(Refusal::Off))]);
    assert!(ends(&node).await.is_empty());
}
