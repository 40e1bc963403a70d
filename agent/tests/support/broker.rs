//! A broker in this process, a pod to adopt, and hand-written peers for it.
#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test binary uses its part, and helpers of tests may panic"
)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use millrace_agent::broker::{self, BrokerConfig};
use millrace_agent::broker_client::BrokerClient;
use millrace_runtime::handoff::{
    Adopted, AgentAnswer, AgentRequest, BrokerConnection, CaptureMode, Family, HEARTBEAT_INTERVAL,
    IptablesConfig, ListenerLabel, ListenerRole, OnCaptureLoss, PROTOCOL_VERSION, PodSpec, PodUid,
    ProxyRequest, Received, SocketKind, ToProxy,
};
use millrace_testkit::{Cluster, Node, Pod};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Skips where namespaces cannot be made.
#[allow(unused_macros, reason = "each test binary uses its part")]
macro_rules! fixture {
    () => {
        match crate::support::Fixture::new() {
            Some(fixture) => fixture,
            None => return millrace_testkit::skip::skip("network namespaces need root"),
        }
    };
}

#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use fixture;

/// A cluster with one node and one pod.
pub(crate) struct Fixture {
    pub(crate) node: Node,
    pub(crate) pod: Pod,
    _cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Option<Self> {
        if !millrace_testkit::skip::is_root() {
            return None;
        }
        let cluster = Cluster::new().expect("cluster");
        let node = cluster.node("n1").expect("node");
        let pod = node.pod("app").expect("pod");
        Some(Self {
            node,
            pod,
            _cluster: cluster,
            dir: tempfile::tempdir().expect("directory"),
        })
    }

    pub(crate) fn spec(&self) -> PodSpec {
        PodSpec {
            uid: PodUid(self.pod.uid().to_owned()),
            name: "app".to_owned(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            ips: vec![self.pod.ip(), self.pod.ip6()],
            netns: self.pod.netns().path(),
            ..PodSpec::default()
        }
    }

    pub(crate) fn uid(&self) -> PodUid {
        PodUid(self.pod.uid().to_owned())
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a broker; it stops when the guard is dropped.
    pub(crate) fn broker(&self) -> Running {
        let stop = CancellationToken::new();
        let config = BrokerConfig {
            agent_socket: self.socket("broker.sock"),
            proxy_socket: self.socket("proxy.sock"),
            proxy_uid: 0,
            proxy_gid: 0,
            workers: 2,
        };
        let task = tokio::spawn(broker::run(config, stop.clone()));
        Running { stop, task }
    }

    pub(crate) async fn agent(&self) -> BrokerClient {
        loop {
            match BrokerClient::connect(&self.socket("broker.sock")).await {
                Ok((client, mut events)) => {
                    tokio::spawn(async move { while events.recv().await.is_some() {} });
                    return client;
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    pub(crate) async fn proxy(&self, epoch: u32, workers: u16) -> Proxy {
        let proxy = Proxy::greet(&self.socket("proxy.sock"), epoch, workers).await;
        proxy.say(ProxyRequest::Ready).await;
        proxy
    }
}

pub(crate) struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), millrace_runtime::handoff::HandoffError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("joined").expect("served");
    }
}

pub(crate) async fn adopt(agent: &BrokerClient, spec: PodSpec) -> (Adopted, Vec<OwnedFd>) {
    let answer = agent
        .call(AgentRequest::Adopt {
            pod: Box::new(spec),
        })
        .await
        .expect("adopted");
    match answer.answer {
        AgentAnswer::Adopted(adopted) => (adopted, answer.fds),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn capture(
    agent: &BrokerClient,
    uid: &PodUid,
    mode: CaptureMode,
    loss: OnCaptureLoss,
) {
    let answer = agent
        .call(AgentRequest::Capture {
            uid: uid.clone(),
            mode,
            on_loss: loss,
            iptables: Some(Box::new(IptablesConfig::default())),
        })
        .await
        .expect("captured");
    assert!(matches!(answer.answer, AgentAnswer::Captured { .. }));
}

/// A proxy that speaks by hand.
pub(crate) struct Proxy {
    connection: BrokerConnection,
}

impl Proxy {
    pub(crate) async fn greet(path: &std::path::Path, epoch: u32, workers: u16) -> Self {
        let connection = loop {
            match BrokerConnection::connect(path) {
                Ok(connection) => break connection,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let proxy = Self { connection };
        proxy
            .say(ProxyRequest::Hello {
                version: PROTOCOL_VERSION,
                epoch,
                workers,
                pid: std::process::id(),
            })
            .await;
        assert!(matches!(
            proxy.hear().await.message,
            ToProxy::Welcome { .. }
        ));
        proxy
    }

    pub(crate) async fn say(&self, message: ProxyRequest) {
        self.connection.send(&message, &[]).await.expect("sent");
    }

    pub(crate) async fn give_back(&self, uid: &PodUid, held: &[(ListenerLabel, OwnedFd)]) {
        let fds: Vec<_> = held.iter().map(|(_, fd)| fd.as_fd()).collect();
        let listeners = held.iter().map(|(label, _)| *label).collect();
        let uid = uid.clone();
        self.connection
            .send(&ProxyRequest::Return { uid, listeners }, &fds)
            .await
            .expect("returned");
    }

    pub(crate) async fn hear(&self) -> Received<ToProxy> {
        timeout(PATIENCE, self.connection.recv())
            .await
            .expect("in time")
            .expect("received")
            .expect("open")
    }

    /// As `hear`, but waits for ever, and ends with the connection.
    pub(crate) async fn hear_or_end(&self) -> Option<Received<ToProxy>> {
        match self.connection.recv().await {
            Ok(Some(received)) => Some(received),
            _ => std::future::pending().await,
        }
    }

    /// Hears until the broker ends the connection.
    pub(crate) async fn ended(&self) {
        let end = async { while let Ok(Some(_)) = self.connection.recv().await {} };
        timeout(PATIENCE, end).await.expect("in time");
    }

    /// Hears until a pod with sockets is announced, and lives meanwhile: an agent may take a while to start.
    pub(crate) async fn pod(&self) -> (PodSpec, Vec<(ListenerLabel, OwnedFd)>) {
        let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
        let announced = async {
            loop {
                let received = tokio::select! {
                    received = self.hear() => received,
                    _ = beats.tick() => {
                        self.say(ProxyRequest::Heartbeat).await;
                        continue;
                    }
                };
                if let ToProxy::PodUp { pod, listeners, .. } = received.message {
                    let held = listeners.into_iter().zip(received.fds).collect();
                    return (*pod, held);
                }
            }
        };
        timeout(PATIENCE * 3, announced).await.expect("in time")
    }

    /// Hears until `wanted` arrives.
    pub(crate) async fn until(&self, wanted: impl Fn(&ToProxy) -> bool) -> ToProxy {
        loop {
            let received = self.hear().await;
            if wanted(&received.message) {
                return received.message;
            }
        }
    }

    pub(crate) async fn want(&self, uid: &PodUid, kind: SocketKind, family: Family) -> OwnedFd {
        self.say(ProxyRequest::Want {
            uid: uid.clone(),
            kind,
            family,
            count: 1,
        })
        .await;
        loop {
            let mut received = self.hear().await;
            match received.message {
                ToProxy::Sockets { .. } => return received.fds.remove(0),
                ToProxy::WantFailed { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
    }
}

/// The held sockets of one role as std listeners that block.
pub(crate) fn listeners(held: &[(ListenerLabel, OwnedFd)], role: ListenerRole) -> Vec<TcpListener> {
    held.iter()
        .filter(|(label, _)| label.role == role)
        .map(|(_, fd)| TcpListener::from(fd.try_clone().expect("duplicate")))
        .collect()
}

/// Accepts from whichever socket of the group has a connection.
pub(crate) fn accept_any(listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
    let mut accepted = None;
    millrace_testkit::eventually(PATIENCE, "a connection arrives", || {
        accepted = listeners.iter().find_map(|l| l.accept().ok());
        accepted.is_some()
    });
    let (stream, peer) = accepted.expect("accepted");
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    (stream, canonical(peer))
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
