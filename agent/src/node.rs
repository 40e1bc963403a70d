//! The launcher of a node outside Kubernetes (`millrace-agent node`): starts broker, agent and
//! proxy as siblings, each with the privileges it needs and no more, and starts again what ends.
//!
//! It keeps the capabilities because it has to give some to its children; it opens no socket and
//! parses nothing. SIGTERM and SIGINT end all, the proxy first; SIGHUP starts a new proxy beside the old one and
//! lets the old one drain.

mod child;
mod digest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, StatusCode};
use millrace_runtime::admin::client::{Target, call};
use millrace_runtime::handoff::{ProxyState, ToAgent};
use millrace_runtime::signal::{Signal, Signals};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::broker_client::BrokerClient;
use crate::supervise::{Epoch, Event, Order, READY_WITHIN, Supervisor};
use child::{Child, Role};

/// Exits and readiness reports that may wait: a handful of processes.
const NEWS: usize = 64;
/// Longest delay between restarts of agent and broker.
const SIBLING_DELAY: Duration = Duration::from_secs(10);
/// How often files that the proxy's configuration depends on are looked at.
const LOOK: Duration = Duration::from_secs(2);
const RECONNECT: Duration = Duration::from_millis(100);

/// Settings of the launcher.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The program of agent and broker; whatever is there at the moment is started.
    pub agent_bin: PathBuf,
    /// Where sockets are.
    pub run_dir: PathBuf,
    /// Where state is.
    pub state_dir: PathBuf,
    /// Where the agent pins its programs; bpffs is mounted there before the agent starts, as the
    /// agent itself may not.
    pub bpffs_dir: PathBuf,
    /// Arguments of `millrace-agent run`.
    pub agent_args: Vec<String>,
    /// Arguments of `millrace-agent broker`.
    pub broker_args: Vec<String>,
    /// The proxy's program.
    pub proxy_bin: PathBuf,
    /// Its arguments, without `--epoch`.
    pub proxy_args: Vec<String>,
    /// Its user.
    pub proxy_uid: u32,
    /// Its group.
    pub proxy_gid: u32,
    /// Certificates and other files: a change starts a new epoch.
    pub proxy_watch: Vec<PathBuf>,
    /// How long broker and agent may take to end.
    pub stop_within: Duration,
    /// How long the proxy may take, which drains first.
    pub proxy_stop_within: Duration,
    /// How long a proxy may take that another one has taken over from.
    pub parent_shutdown_within: Duration,
}

/// What the launcher hears from its children.
#[derive(Debug)]
enum News {
    Exited(Role, Epoch, bool),
    Proxies(Vec<ProxyState>),
    Ready(Epoch),
}

struct Launcher {
    config: NodeConfig,
    supervisors: BTreeMap<Role, Supervisor>,
    children: BTreeMap<(Role, Epoch), Child>,
    /// Proxies that the broker knows, and those of ours that are asked whether they are ready.
    known: Vec<ProxyState>,
    asked: BTreeSet<Epoch>,
    news: mpsc::Sender<News>,
    failed: bool,
    left: usize,
}

/// Runs until every process has ended.
///
/// # Errors
/// When a directory cannot be prepared, or a process failed too often.
pub async fn run(config: NodeConfig) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("installing signal handlers")?;
    child::prepare(&config)?;
    let (news, mut inbox) = mpsc::channel(NEWS);
    tokio::spawn(watch_proxies(
        config.run_dir.join("broker.sock"),
        news.clone(),
    ));
    let mut launcher = Launcher::new(config, news);
    launcher.event(Role::Broker, Event::Desired(0));
    launcher.event(Role::Agent, Event::Desired(0));
    launcher.look();
    let mut looks = tokio::time::interval(LOOK);
    while !launcher.is_done() {
        let deadline = launcher.deadline();
        tokio::select! {
            signal = signals.next() => launcher.signal(signal),
            Some(news) = inbox.recv() => launcher.hear(news),
            () = sleep_until(deadline) => launcher.tick(),
            _ = looks.tick() => launcher.look(),
        }
    }
    anyhow::ensure!(!launcher.failed, "a process failed too often, see the log");
    tracing::info!("all processes have ended");
    Ok(())
}

impl Launcher {
    fn new(config: NodeConfig, news: mpsc::Sender<News>) -> Self {
        let supervisors = BTreeMap::from([
            (Role::Broker, Supervisor::tireless(SIBLING_DELAY)),
            (Role::Agent, Supervisor::tireless(SIBLING_DELAY)),
            (Role::Proxy, Supervisor::new()),
        ]);
        Self {
            config,
            supervisors,
            children: BTreeMap::new(),
            known: Vec::new(),
            asked: BTreeSet::new(),
            news,
            failed: false,
            left: 0,
        }
    }

    fn is_done(&self) -> bool {
        self.left == self.supervisors.len()
    }

    fn deadline(&self) -> Option<Instant> {
        let rules = self.supervisors.values().filter_map(Supervisor::deadline);
        let kills = self.children.values().filter_map(|child| child.kill_at);
        rules.chain(kills).min()
    }

    fn signal(&mut self, signal: Signal) {
        tracing::info!(%signal, "signal");
        match signal {
            Signal::Hangup => self.event(Role::Proxy, Event::Upgrade),
            Signal::Interrupt | Signal::Terminate => self.stop(),
        }
    }

    /// The proxy drains first: until it has ended the broker makes the sockets that its remaining
    /// streams need, and holds those in which new connections wait. A second signal is passed on,
    /// upon which the proxy ends at once.
    fn stop(&mut self) {
        self.event(Role::Proxy, Event::Stop);
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Exited(role, epoch, clean) => {
                self.children.remove(&(role, epoch));
                self.event(role, Event::Exited { epoch, clean });
            }
            News::Proxies(proxies) => self.proxies(proxies),
            News::Ready(epoch) => self.ready(epoch),
        }
    }

    /// A proxy of ours that the broker knows is asked until it is ready.
    fn proxies(&mut self, proxies: Vec<ProxyState>) {
        self.known = proxies;
        for proxy in &self.known {
            let epoch = Epoch(proxy.epoch);
            if !proxy.draining && self.is_ours(proxy) && self.asked.insert(epoch) {
                let socket = self.config.run_dir.join("proxy/admin.sock");
                tokio::spawn(ask_until_ready(socket, epoch, self.news.clone()));
            }
        }
    }

    /// A proxy serves: its predecessors may go, also one that an earlier launcher left behind.
    fn ready(&mut self, epoch: Epoch) {
        if !self.children.contains_key(&(Role::Proxy, epoch)) {
            return;
        }
        for proxy in self.known.iter().filter(|proxy| !proxy.draining) {
            if !self.is_ours(proxy) {
                child::drain_stranger(proxy.pid, self.config.proxy_uid);
            }
        }
        self.event(Role::Proxy, Event::Ready(epoch));
    }

    fn is_ours(&self, proxy: &ProxyState) -> bool {
        let child = self.children.get(&(Role::Proxy, Epoch(proxy.epoch)));
        child.is_some_and(|child| u32::try_from(child.pid()) == Ok(proxy.pid))
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for ((role, epoch), child) in &mut self.children {
            if child.kill_at.is_some_and(|at| at <= now) {
                tracing::warn!(?role, %epoch, "process does not end, killing it");
                child.kill();
            }
        }
        let roles: Vec<Role> = self.supervisors.keys().copied().collect();
        for role in roles {
            self.event(role, Event::Tick);
        }
    }

    /// Compares what the proxy should run with; a change starts a new epoch.
    fn look(&mut self) {
        let digest = digest::of(&self.config.proxy_args, &self.config.proxy_watch);
        self.event(Role::Proxy, Event::Desired(digest));
    }

    fn event(&mut self, role: Role, event: Event) {
        let Some(supervisor) = self.supervisors.get_mut(&role) else {
            return;
        };
        for order in supervisor.handle(event) {
            self.carry_out(role, order);
        }
    }

    fn carry_out(&mut self, role: Role, order: Order) {
        match order {
            Order::Start(epoch) => match Child::start(role, epoch, &self.config, &self.news) {
                Ok(child) => {
                    tracing::info!(?role, %epoch, pid = child.pid(), "process started");
                    self.children.insert((role, epoch), child);
                }
                Err(error) => {
                    tracing::error!(?role, %epoch, error = %crate::broker::chain(&error), "process not started");
                    self.event(role, Event::NotStarted(epoch));
                }
            },
            Order::Drain(epoch) => {
                // The proxy hands over and drains on SIGTERM and knows its own limit.
                if let Some(child) = self.children.get_mut(&(role, epoch)) {
                    tracing::info!(?role, %epoch, "process drains");
                    child.terminate(Some(self.config.parent_shutdown_within));
                }
            }
            Order::End(epoch) => {
                if let Some(child) = self.children.get_mut(&(role, epoch)) {
                    child.terminate(Some(match role {
                        Role::Proxy => self.config.proxy_stop_within,
                        Role::Broker | Role::Agent => self.config.stop_within,
                    }));
                }
            }
            Order::Leave { failed } => {
                self.left += 1;
                self.failed |= failed;
                if role == Role::Proxy {
                    self.event(Role::Agent, Event::Stop);
                    self.event(Role::Broker, Event::Stop);
                }
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Reports which proxies the broker knows, whenever that changes.
async fn watch_proxies(socket: PathBuf, news: mpsc::Sender<News>) {
    loop {
        if let Ok((_client, mut events)) = BrokerClient::connect(&socket).await {
            while let Some(received) = events.recv().await {
                if let ToAgent::Proxies { proxies, .. } = received.message
                    && news.send(News::Proxies(proxies)).await.is_err()
                {
                    return;
                }
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Asks the newest proxy (it has taken the admin socket's path over before it connected to the
/// broker) until it is ready; the supervisor gives it up if that takes too long.
async fn ask_until_ready(socket: PathBuf, epoch: Epoch, news: mpsc::Sender<News>) {
    let target = Target::Unix(socket);
    let end = Instant::now() + READY_WITHIN;
    while Instant::now() < end {
        let answer = call(&target, Method::GET, "/ready", Bytes::new(), LOOK).await;
        if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
            // The launcher is gone only when everything has ended.
            news.send(News::Ready(epoch)).await.ok();
            return;
        }
        tokio::time::sleep(RECONNECT).await;
    }
}
