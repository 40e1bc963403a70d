//! Many pods at once: all of them end captured, also when the broker is killed in the middle, and nothing is left
//! when they leave. What is in place already is taken over as it is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/broker.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agent::{AgentNode, original_dst};
use http::Method;
use millrace_agent::integrity::Generations;
use millrace_agent::status::PodStatus;
use millrace_runtime::handoff::{
    BrokerConnection, CaptureMode, HEARTBEAT_INTERVAL, ListenerLabel, ListenerRole,
    PROTOCOL_VERSION, PodUid, ProxyRequest, ToProxy,
};
use millrace_testkit::{Pod, PodOptions, eventually, require, until};
use parking_lot::Mutex;
use support::{accept_any, listeners};
use tokio::task::JoinHandle;

/// More than are worked on at a time.
const PODS: usize = 40;
/// Captured before the others come.
const FIRST: usize = 4;
const SERVICE: &str = "10.96.0.10:9080";
const SOON: Duration = Duration::from_mins(1);

type Sockets = Vec<(ListenerLabel, OwnedFd)>;

/// A proxy that keeps the sockets of every pod and brings them to each new broker.
struct Keeper {
    held: Arc<Mutex<BTreeMap<PodUid, Sockets>>>,
    task: JoinHandle<()>,
}

impl Keeper {
    fn start(path: PathBuf) -> Self {
        let held: Arc<Mutex<BTreeMap<PodUid, Sockets>>> = Arc::default();
        let keeping = Arc::clone(&held);
        let task = tokio::spawn(async move {
            loop {
                if keep(&path, &keeping).await.is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        Self { held, task }
    }

    fn pods(&self) -> usize {
        self.held.lock().len()
    }

    /// The pod connects, and arrives at its own listener, knowing where to.
    fn takes(&self, pod: &Pod) {
        let service: SocketAddr = SERVICE.parse().unwrap();
        let _client = pod.connect(service).expect("captured");
        let own = {
            let held = self.held.lock();
            listeners(&held[&PodUid(pod.uid().to_owned())], ListenerRole::Outbound)
        };
        let (stream, peer) = accept_any(&own);
        assert_eq!(original_dst(&stream, false), service);
        assert_eq!(peer.ip(), pod.ip());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One session with a broker, until it ends.
async fn keep(path: &Path, held: &Mutex<BTreeMap<PodUid, Sockets>>) -> Option<()> {
    let connection = BrokerConnection::connect(path).ok()?;
    let hello = ProxyRequest::Hello {
        version: PROTOCOL_VERSION,
        epoch: 0,
        workers: 1,
        pid: std::process::id(),
    };
    connection.send(&hello, &[]).await.ok()?;
    connection.recv().await.ok()??;
    let returned: Vec<(PodUid, Sockets)> = {
        let copy = |(label, fd): &(ListenerLabel, OwnedFd)| (*label, fd.try_clone().unwrap());
        let held = held.lock();
        let all = held
            .iter()
            .map(|(uid, sockets)| (uid.clone(), sockets.iter().map(copy).collect()));
        all.collect()
    };
    for (uid, sockets) in returned {
        let (listeners, fds): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
        let back = ProxyRequest::Return { uid, listeners };
        connection.send(&back, &fds).await.ok()?;
    }
    connection.send(&ProxyRequest::Ready, &[]).await.ok()?;
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        let received = tokio::select! {
            _ = beats.tick() => {
                connection.send(&ProxyRequest::Heartbeat, &[]).await.ok()?;
                continue;
            }
            received = connection.recv() => received.ok()??,
        };
        let (uid, listeners) = match received.message {
            ToProxy::PodUp { pod, listeners, .. } => (pod.uid, listeners),
            ToProxy::Listeners { uid, listeners } => (uid, listeners),
            ToProxy::PodDown { uid } => {
                held.lock().remove(&uid);
                continue;
            }
            _ => continue,
        };
        let mut held = held.lock();
        let sockets = held.entry(uid).or_default();
        for (label, fd) in listeners.into_iter().zip(received.fds) {
            if sockets
                .iter()
                .all(|(known, _)| known.cookie != label.cookie)
            {
                sockets.push((label, fd));
            }
        }
    }
}

fn crowd(node: &AgentNode) -> Vec<Pod> {
    let made = (0..PODS).map(|at| {
        let options = PodOptions::named(&format!("p{at}"));
        let options = options.label("millrace.io/dataplane-mode", "node");
        node.node.pod_with(options).expect("pod")
    });
    made.collect()
}

fn description(node: &AgentNode, pod: &Pod) -> PathBuf {
    node.node.pods_dir().join(format!("{}.json", pod.uid()))
}

fn describe(node: &AgentNode, pods: &[Pod]) {
    for pod in pods {
        let options = pod.options();
        let text = serde_json::json!({
            "uid": pod.uid(),
            "name": options.name,
            "labels": options.labels,
            "ips": [pod.ip(), pod.ip6()],
            "netns": pod.netns().path(),
        });
        std::fs::write(description(node, pod), text.to_string()).expect("described");
    }
}

/// Waits until that many pods are captured and nothing is wrong with them.
fn captured(node: &AgentNode, count: usize) {
    let found = agent::wait_for(SOON, async || {
        let answer = node.ask(Method::GET, "/pods", "").await;
        let pods: Vec<PodStatus> = answer
            .and_then(|answer| serde_json::from_slice(&answer.body).ok())
            .unwrap_or_default();
        let good = |pod: &&PodStatus| pod.healthy && pod.capture == CaptureMode::Ebpf;
        let there = pods.iter().filter(good).count();
        let all = (there == count).then_some(());
        all.ok_or_else(|| format!("{there} of {count}: {pods:#?}"))
    });
    found.unwrap_or_else(|error| panic!("{error}\n{}\n{}", node.log("agent"), node.log("broker")));
}

/// Links of the inbound program: one for each pod that the kernel captures.
fn links(node: &AgentNode) -> usize {
    let lookups = node.node.bpffs_dir().join("v2/lookup");
    std::fs::read_dir(lookups).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_together_are_all_captured_though_the_broker_is_killed() {
    require!(cluster);
    let node = AgentNode::new(&[]);
    let pods = crowd(&node);
    let direct = node
        .node
        .listen(SocketAddr::new(node.node.ip(), 0))
        .unwrap();
    direct.set_nonblocking(true).unwrap();
    let mut broker = node.broker();
    let _agent = node.agent(&[]);
    let keeper = Keeper::start(node.node.run_dir().join("proxy.sock"));
    describe(&node, &pods[..FIRST]);
    captured(&node, FIRST);

    describe(&node, &pods[FIRST..]);
    eventually(SOON, "some are adopted", || keeper.pods() > FIRST + 2);
    broker.kill().expect("killed");
    for pod in &pods[..FIRST] {
        keeper.takes(pod);
    }
    let _broker = node.broker();
    captured(&node, PODS);
    assert_eq!(links(&node), PODS);
    for pod in &pods {
        let _client = pod.connect(direct.local_addr().unwrap()).expect("captured");
        let held = keeper.held.lock();
        let own = listeners(&held[&PodUid(pod.uid().to_owned())], ListenerRole::Outbound);
        let (stream, peer) = accept_any(&own);
        assert_eq!(original_dst(&stream, false), direct.local_addr().unwrap());
        assert_eq!(peer.ip(), pod.ip());
    }
    assert!(direct.accept().is_err(), "nobody passes the proxy by");

    for pod in &pods {
        std::fs::remove_file(description(&node, pod)).unwrap();
    }
    eventually(SOON, "the kernel lets them go", || links(&node) == 0);
    eventually(SOON, "so does the broker", || keeper.pods() == 0);
    for pod in &pods {
        pod.connect(direct.local_addr().unwrap()).expect("direct");
        let arrived = until(SOON, || direct.accept());
        assert_eq!(arrived.unwrap().1.ip(), pod.ip());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_anew_has_no_rule_written_that_is_in_place() {
    require!(cluster);
    require!(tool "nft");
    let node = AgentNode::new(&[]);
    let mut add = Command::new("nft");
    // By this the reading of the pod's rules can be seen.
    let foreign = "table inet other { chain c { type nat hook output priority 0; tcp dport 9 dnat ip to 10.0.0.5; }; }";
    add.arg(foreign);
    node.pod.stdout(add).expect("added");
    node.describe();
    let _broker = node.broker();
    let mut agent = node.agent(&[]);
    let keeper = Keeper::start(node.node.run_dir().join("proxy.sock"));
    let read = |pod: &PodStatus| pod.healthy && !pod.integrity.foreign.is_empty();
    node.until("captured, and its rules are read", read).await;
    let generation = || node.pod.run(|| Ok(Generations::open().now())).unwrap();
    let before = generation();

    agent.kill().expect("killed");
    let mut agent = node.agent(&[]);
    node.until("captured again", read).await;
    assert_eq!(generation(), before);
    keeper.takes(&node.pod);

    // What is not in place is written, all the same.
    agent.kill().expect("killed");
    let mut flush = Command::new("nft");
    flush.args(["delete", "table", "inet", "millrace_guard"]);
    node.pod.stdout(flush).expect("deleted");
    let _agent = node.agent(&[]);
    node.until("captured again", read).await;
    let list = || {
        let mut list = Command::new("nft");
        list.args(["list", "table", "inet", "millrace_guard"]);
        node.pod.stdout(list).is_ok()
    };
    eventually(SOON, "the guard is back", list);
}
