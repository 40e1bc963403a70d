//! Wires the proxy together and lives its life: start, serve, drain, end.
//!
//! Runs on the control thread's runtime. Order of the start: limits, telemetry, configuration
//! (what was saved serves at once), admin ports (not ready), workers, sockets (broker, capture
//! ports or the file's listeners; those of the epoch before, where there is no broker); ready when the configuration and, on a node, all pods are
//! there. Order of the end: not ready, the next epoch is looked for, the broker is told, accepting
//! stops, connections go to the next epoch or finish within their time, workers end, the last log
//! lines are written.

mod ports;
mod sockets;
mod succession;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use millrace_runtime::ready::Ready;
use millrace_runtime::signal::Signals;
use millrace_runtime::telemetry::LevelHandle;
use millrace_runtime::{drain, limits};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::acceleration::Accelerator;
use crate::acceleration::client::Client;
use crate::acceleration::stats::AccelerationCollector;
use crate::admin::Admin;
use crate::bootstrap::{self, Bootstrap};
use crate::cluster::Manager;
use crate::cluster::dns::SystemLookup;
use crate::config::{Config, Mode};
use crate::handover::Handover;
use crate::handover::estate::Estate;
use crate::handover::stats::HandoverCollector;
use crate::listener::server_first::ServerFirst;
use crate::listener::stats::ListenerStats;
use crate::metrics::{Telemetry, TelemetryCollector};
use crate::pods::LocalPods;
use crate::snapshot::Store;
use crate::worker::{Parts, Workers};
use crate::xds;
use millrace_xds::client::ClientConfig;
use millrace_xds::node::Node;
use succession::{Inheritance, Succession};

/// How long a proxy that has drained waits for a broker, where it has lost it, to give it the listening
/// sockets.
const RELEASE: Duration = Duration::from_secs(5);

/// How long the last DNS questions may take, which every resolver may leave unanswered.
const ANSWERS: Duration = Duration::from_secs(5);

/// What can be asked of a running proxy from its admin port.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Cancelled to stop accepting; what is under way goes on, and so does the process.
    pub drain_listeners: CancellationToken,
    /// Cancelled to drain and end.
    pub quit: CancellationToken,
}

/// Runs the proxy until it is told to end.
///
/// # Errors
/// When it cannot start: a port is taken, the file is refused, a thread cannot be made.
pub async fn run(config: Config, level: LevelHandle) -> anyhow::Result<()> {
    let build = BuildInfo::of("millrace-proxy");
    let open_files = limits::raise_open_files();
    tracing::info!(%build, mode = %config.mode, epoch = config.epoch, workers = config.workers,
        open_files, "starting");
    let mut signals = Signals::install().context("installing signal handlers")?;
    let inheritance = Inheritance::find(&config).await?;
    let accelerator = Accelerator::new();
    let handover = Handover::new(config.epoch);
    let shared = (accelerator.0.clone(), handover.0.clone());
    let app = App::new(&config, &build, shared, inheritance.estate());
    let log_writer = app.parts.telemetry.sinks().start();
    let log_writer = log_writer.context("starting the access log writer")?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(age(app.parts.telemetry.clone()));

    let interest = xds::Interest::new();
    let plan = Plan::new(&config)?;
    let (control, handle) = app.configuration(&plan, &interest)?;
    let control = tokio::spawn(control.run(stop.clone()));
    let admin = app.admin(&plan, build, (handle, level));
    let ports = stop.child_token();
    ports::serve(&app, &config, (admin, plan.admin_addr), &mut tasks, &ports)?;

    let (trigger, watcher) = drain::channel();
    let (workers, threads) = Workers::start(usize::from(config.workers), &app.parts, &watcher)
        .context("starting workers")?;
    drop(watcher);
    let mut succession = Succession::prepare(&app, &config, &workers, inheritance, &mut tasks);
    let left = sockets::serve(&app, &config, workers, interest, &mut tasks).await?;
    if let Mode::Node { run_dir, .. } = &config.mode {
        let pods = app.parts.pods.clone();
        tasks.spawn(Client::new(run_dir.join("accel.sock"), accelerator, pods).run());
    }

    tokio::select! {
        signal = signals.stop() => tracing::info!(%signal, "draining"),
        () = app.lifecycle.quit.cancelled() => tracing::info!("draining, as the admin port asks"),
        successor = succession.replaced() => {
            tracing::info!(epoch = successor.epoch, "draining, another epoch serves");
            ports.cancel();
        }
    }
    let not_ready = app.ready.block("draining");
    // What a predecessor has given is settled first, so that it can be given on.
    let (sessions, limit) = succession.leave(handover, &mut tasks).await;
    app.lifecycle.drain_listeners.cancel();
    let outcome = tokio::select! {
        outcome = drained(trigger, limit, &left) => format!("{outcome:?}"),
        signal = second(&mut signals) => format!("cut short by {signal}"),
    };
    let stats = app.parts.handover.stats();
    tracing::info!(outcome, handed_over = stats.given_total(), "drained");
    drop(sessions);
    tokio::task::spawn_blocking(|| threads.join())
        .await
        .context("waiting for workers")?;
    stop.cancel();
    // The configuration writes its last state; everything else ends with it.
    tokio::time::timeout(Duration::from_secs(2), control)
        .await
        .ok();
    tasks.shutdown().await;
    drop((log_writer, not_ready));
    Ok(())
}

/// Waits until connections have finished, at most `limit`, until somebody has the listening sockets and
/// until questions are answered.
async fn drained(
    trigger: drain::Trigger,
    limit: Duration,
    left: &sockets::Leftovers,
) -> drain::Outcome {
    let outcome = trigger.drain(limit).await;
    if tokio::time::timeout(RELEASE, left.released.cancelled())
        .await
        .is_err()
    {
        tracing::warn!("no broker takes the listening sockets, who waits in them is reset");
    }
    if let Some(dns) = &left.dns
        && tokio::time::timeout(ANSWERS, dns.settled()).await.is_err()
    {
        tracing::warn!("questions are left without an answer");
    }
    outcome
}

/// Lets metrics age for as long as the process lives.
async fn age(telemetry: Arc<Telemetry>) {
    loop {
        tokio::time::sleep(crate::metrics::AGE).await;
        telemetry.age();
    }
}

/// A signal while draining ends the wait.
async fn second(signals: &mut Signals) -> millrace_runtime::signal::Signal {
    signals.stop().await
}

/// What the parts of the proxy share on the control thread.
struct App {
    parts: Parts,
    manager: Arc<Manager>,
    ready: Ready,
    lifecycle: Lifecycle,
    metrics: Metrics,
    /// The listening sockets of a proxy that has no broker.
    estate: Estate,
}

impl App {
    fn new(
        config: &Config,
        build: &BuildInfo,
        (accelerator, handover): (Accelerator, Handover),
        estate: Estate,
    ) -> Self {
        let own: Vec<IpAddr> = match &config.mode {
            Mode::Sidecar { ip, .. } => sockets::interface_addresses().chain(*ip).collect(),
            Mode::Node { .. } | Mode::File { .. } => Vec::new(),
        };
        let telemetry = Telemetry::new();
        let metrics = Metrics::new(build);
        metrics.register(|registry| {
            registry.register_collector(Box::new(TelemetryCollector(telemetry.clone())));
            registry.register_collector(Box::new(AccelerationCollector(accelerator.clone())));
            registry.register_collector(Box::new(HandoverCollector(handover.clone())));
        });
        Self {
            parts: Parts {
                store: Arc::new(Store::new()),
                pods: Arc::new(LocalPods::default()),
                own_addresses: own.into(),
                telemetry,
                stats: ListenerStats::default(),
                server_first: ServerFirst::default(),
                accelerator,
                handover,
            },
            manager: Arc::new(Manager::new()),
            ready: Ready::new(),
            lifecycle: Lifecycle::default(),
            metrics,
            estate,
        }
    }

    /// The owner of the configuration, with what an earlier run saved.
    fn configuration(
        &self,
        plan: &Plan,
        interest: &xds::Interest,
    ) -> anyhow::Result<(xds::Control, xds::Handle)> {
        let fixed = plan.bootstrap.as_ref().map(|b| b.resources.clone());
        xds::Config {
            mode: plan.mode,
            fixed: fixed.unwrap_or_default(),
            server: plan.server.clone(),
            state_file: plan.state_file.clone(),
            interest: interest.clone(),
            lookup: Arc::new(SystemLookup::default()),
            store: self.parts.store.clone(),
            manager: self.manager.clone(),
            ready: Some(self.ready.block("configuration")),
        }
        .start()
        .context("preparing the stream to the control plane")
    }

    fn admin(
        &self,
        plan: &Plan,
        build: BuildInfo,
        (configuration, level): (xds::Handle, LevelHandle),
    ) -> Admin {
        Admin {
            store: self.parts.store.clone(),
            configuration,
            pods: self.parts.pods.clone(),
            domain: plan.domain.clone(),
            bootstrap: plan.bootstrap.clone(),
            node_id: plan.node.id.clone(),
            ready: self.ready.clone(),
            level: Some(level),
            metrics: self.metrics.clone(),
            listener_stats: self.parts.stats.clone(),
            accelerator: self.parts.accelerator.clone(),
            handover: self.parts.handover.clone(),
            build,
            drain_listeners: self.lifecycle.drain_listeners.clone(),
            quit: self.lifecycle.quit.clone(),
        }
    }
}

/// Where the configuration comes from, by mode.
struct Plan {
    mode: xds::Mode,
    node: Node,
    server: Option<ClientConfig>,
    state_file: Option<PathBuf>,
    bootstrap: Option<Bootstrap>,
    admin_addr: Option<SocketAddr>,
    /// Domain of the cluster's names; empty for a proxy from a file, which knows none.
    domain: String,
}

impl Plan {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let (mode, xds) = match &config.mode {
            Mode::Node { xds, .. } => (xds::Mode::Node, xds),
            Mode::Sidecar { xds, .. } => {
                let everything = xds::Mode::Wildcard {
                    listeners: true,
                    clusters: true,
                    names: true,
                };
                (everything, xds)
            }
            Mode::File {
                path,
                node_id,
                node_cluster,
            } => {
                let node = node(node_id.as_deref(), node_cluster.as_deref());
                return Self::alone(config, path, node);
            }
        };
        let mut node = node(Some(&xds.node_id), Some(&xds.node_cluster));
        if let Some(name) = &xds.node_name {
            node = node.with_metadata("NODE_NAME", name.as_str());
        }
        if matches!(config.mode, Mode::Sidecar { .. }) {
            // The id has room for one address, and pilot has to know of both families.
            let addresses = sockets::interface_addresses().filter(sockets::is_reachable);
            let addresses: Vec<String> = addresses.map(|ip| ip.to_string()).collect();
            node = node.with_metadata("INSTANCE_IPS", addresses.join(","));
        }
        node = node.with_features(&xds::FEATURES);
        let mut server = ClientConfig::new(xds.address.clone(), node.clone());
        server.roots.clone_from(&xds.roots);
        server.server_name.clone_from(&xds.server_name);
        server.token.clone_from(&xds.token);
        Ok(Self {
            mode,
            server: Some(server),
            node,
            state_file: Some(xds.state_dir.join("xds-state")),
            bootstrap: None,
            admin_addr: config.admin_addr,
            domain: xds.cluster_domain.clone(),
        })
    }

    fn alone(config: &Config, path: &Path, node: Node) -> anyhow::Result<Self> {
        let bootstrap = bootstrap::load(path, &node)?;
        for (resource, fields) in &bootstrap.unsupported {
            tracing::warn!(
                resource,
                ?fields,
                "the file asks for what this proxy does not do"
            );
        }
        let file_admin = bootstrap.admin.as_ref().map(|admin| admin.address);
        Ok(Self {
            mode: bootstrap.mode,
            node: bootstrap.server.as_ref().map_or(node, |s| s.node.clone()),
            server: bootstrap.server.clone(),
            state_file: None,
            admin_addr: config.admin_addr.or(file_admin),
            domain: String::new(),
            bootstrap: Some(bootstrap),
        })
    }
}

fn node(id: Option<&str>, cluster: Option<&str>) -> Node {
    Node {
        id: id.unwrap_or_default().to_owned(),
        cluster: cluster.unwrap_or_default().to_owned(),
        user_agent_name: "millrace-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Node::default()
    }
}
