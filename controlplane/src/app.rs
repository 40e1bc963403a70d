//! The process put together: registry → writer → source → xDS and admin servers, started in that order
//! and stopped in the other.

mod cluster;
mod mesh_file;
mod secure;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_runtime::admin;
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use millrace_runtime::ready::{Blocker, Ready};
use millrace_runtime::telemetry::LevelHandle;
use millrace_xds::server::{AdsService, Connections, Generation, ServerConfig};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;

use self::cluster::Parts;
use self::secure::{Handshaken, Secure};
use crate::admin::{Admin, routes};

use crate::config::Config;
use crate::legacy::server::Discovery;
use crate::metrics::PilotMetrics;
use crate::model::mesh::MeshConfig;
use crate::push::debounce::DebounceConfig;
use crate::push::writer::{Input, Writer};
use crate::registry::consul::Agent;
use crate::registry::kubernetes::Access;
use crate::registry::{Places, RegistryEvent};
use crate::serve::MeshSource;
use crate::serve::client_status::ClientStatuses;
use crate::tls::serving::Serving;

/// Inputs that wait for the writer; registries wait when it is full.
const INPUTS: usize = 64;
/// Streams get this long to end by themselves.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// HTTP/2 pings find a dead client after twice this time.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where a pilot is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// xDS.
    pub xds: SocketAddr,
    /// Metrics and debug pages.
    pub http: SocketAddr,
    /// The admission webhook, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SocketAddr>,
    /// xDS over TLS, where it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_xds: Option<SocketAddr>,
    /// Seed-era discovery, where it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legacy: Option<SocketAddr>,
}

/// A running pilot.
#[derive(Debug)]
pub struct Pilot {
    addresses: Addresses,
    source: Arc<MeshSource>,
    serving: Option<Arc<Serving>>,
    connections: Connections,
    tasks: JoinSet<()>,
    /// Servers go last: clients keep what they have until the very end.
    stop_inputs: CancellationToken,
    stop_servers: CancellationToken,
    failure: Option<oneshot::Receiver<anyhow::Error>>,
}

impl Pilot {
    /// Starts everything. xDS connections are taken from the first moment and answered as soon as the
    /// registry has said what there is.
    ///
    /// # Errors
    /// When an address cannot be bound, or the mesh settings' file is wrong.
    pub async fn start(config: Config, level: Option<LevelHandle>) -> anyhow::Result<Self> {
        let build = BuildInfo::of("pilot");
        let metrics = Metrics::new(&build);
        let pilot_metrics = PilotMetrics::new(&metrics);
        let source = MeshSource::new(pilot_metrics.clone()).with_ttls(&config.resource_ttl);
        let source = Arc::new(source);
        let ready = Ready::new();
        let doors = Doors::bind(&config).await?;
        let (stop_inputs, stop_servers) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let cluster = Parts {
            config: &config,
            source: &source,
            metrics: &pilot_metrics,
            stop_inputs: &stop_inputs,
            stop_servers: &stop_servers,
        };
        let webhook = cluster.start(&mut tasks).await?;
        let legacy = Discovery::new(Arc::clone(&source), pilot_metrics.clone())
            .start(config.legacy_addr, &mut tasks, &stop_servers)
            .await?;
        let addresses = Addresses {
            legacy,
            ..doors.addresses(webhook)?
        };
        announce(&config, &addresses)?;
        let service = AdsService::new(Arc::clone(&source), ServerConfig::default());
        let connections = service.connections();
        let admin = Admin {
            source: Arc::clone(&source),
            connections: connections.clone(),
            metrics,
            ready: ready.clone(),
            build,
            level,
        };
        let failure = start_inputs(&config, &source, pilot_metrics, &mut tasks, &stop_inputs)?;
        let serving = doors.secure.as_ref().map(Secure::serving);
        doors.open(
            service,
            &Arc::new(admin),
            ready.block("registry"),
            &mut tasks,
            &stop_servers,
        )?;
        tracing::info!(xds = %addresses.xds, http = %addresses.http, registries = %config.registries, "listening");
        let failure = Some(failure);
        Ok(Self {
            addresses,
            source,
            serving,
            connections,
            tasks,
            stop_inputs,
            stop_servers,
            failure,
        })
    }

    /// Where it is reached.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What it serves.
    pub fn source(&self) -> &Arc<MeshSource> {
        &self.source
    }

    /// What it serves TLS with, where it does.
    pub fn serving(&self) -> Option<&Arc<Serving>> {
        self.serving.as_ref()
    }

    /// Waits for something that cannot be mended to happen.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.failure.take() {
            Some(failure) => match failure.await {
                Ok(error) => error,
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Ends all streams and all tasks.
    pub async fn stop(mut self) {
        self.stop_inputs.cancel();
        self.connections.drain();
        self.stop_servers.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, all).await.is_err() {
            tracing::warn!(limit = ?STOP_LIMIT, "some tasks did not end in time");
        }
        tracing::info!("stopped");
    }
}

/// The ports that clients and people come to, bound and not served yet.
struct Doors {
    xds: TcpListener,
    http: admin::Server,
    secure: Option<Secure>,
}

impl Doors {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            xds: TcpListener::bind(config.xds_addr)
                .await
                .with_context(|| format!("binding xDS to {}", config.xds_addr))?,
            http: admin::Server::bind_tcp(config.http_addr)
                .await
                .with_context(|| format!("binding the debug server to {}", config.http_addr))?,
            secure: Secure::bind(config).await?,
        })
    }

    fn addresses(&self, webhook: Option<SocketAddr>) -> anyhow::Result<Addresses> {
        let tls_xds = self.secure.as_ref().map(Secure::local_addr).transpose();
        Ok(Addresses {
            legacy: None,
            webhook,
            xds: self.xds.local_addr().context("reading the xDS address")?,
            http: self
                .http
                .local_addr()
                .context("the debug server has no address")?,
            tls_xds: tls_xds.context("reading the TLS address")?,
        })
    }

    fn open(
        self,
        service: AdsService<MeshSource>,
        admin: &Arc<Admin>,
        not_ready: Blocker,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let source = Arc::clone(&admin.source);
        tasks.spawn(self.http.serve(routes(admin), stop.clone()));
        if let Some(secure) = self.secure {
            let guarded = service.guarded(secure.guard());
            let connections = secure.start(tasks, stop)?;
            let source = Arc::clone(&source);
            tasks.spawn(serve_guarded(connections, guarded, source, stop.clone()));
        }
        tasks.spawn(serve_xds(
            self.xds,
            service,
            not_ready,
            source,
            stop.clone(),
        ));
        Ok(())
    }
}

/// Starts the registry, the reader of the mesh settings, and the writer that both tell.
fn start_inputs(
    config: &Config,
    source: &Arc<MeshSource>,
    metrics: PilotMetrics,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> anyhow::Result<oneshot::Receiver<anyhow::Error>> {
    let (inputs, received) = mpsc::channel(INPUTS);
    let mut mesh = MeshConfig {
        domain: config.domain.clone(),
        ..MeshConfig::default()
    };
    if let Some(path) = &config.mesh_config {
        let mut file = mesh_file::MeshFile::new(path.clone(), &config.domain);
        mesh = file.read_at_start()?;
        tasks.spawn(file.watch(inputs.clone(), stop.clone()));
    }
    let named = config.config_sources.iter().chain(&mesh.config_sources);
    let sources = named.cloned().collect();
    let writer = Writer::new(mesh, DebounceConfig::default(), Arc::clone(source), metrics);
    tasks.spawn(writer.run(received, stop.clone()));
    let (events, mut from_registry) = mpsc::channel::<RegistryEvent>(INPUTS);
    tasks.spawn(async move {
        while let Some(event) = from_registry.recv().await {
            if inputs.send(Input::Registry(event)).await.is_err() {
                return;
            }
        }
    });
    let places = Places {
        directory: config.config_dir.clone(),
        cluster: Access {
            kubeconfig: config.kubeconfig.clone(),
            context: config.context.clone(),
        },
        consul: Agent {
            address: config.consul_addr.clone(),
            token: config.consul_token.clone(),
        },
        eureka: config.eureka_addr.clone(),
        sources,
    };
    ensure!(
        !(config.registries.is_empty() && places.sources.is_empty()),
        "--registries none needs --config-sources, or configSources in the mesh settings"
    );
    let registry = config.registries.build(&places, &config.domain);
    let (failed, failure) = oneshot::channel();
    let running: JoinHandle<_> = tokio::spawn(registry.run(events, stop.clone()));
    tasks.spawn(async move {
        let error = match running.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => anyhow::Error::new(error),
            Err(error) => anyhow::Error::new(error).context("the registry panicked"),
        };
        // Nobody waits any more when the process is stopping anyway.
        drop(failed.send(error));
    });
    Ok(failure)
}

/// Serves xDS once there is something to serve; until then clients wait in the listener's backlog.
async fn serve_xds(
    listener: TcpListener,
    service: AdsService<MeshSource>,
    not_ready: Blocker,
    source: Arc<MeshSource>,
    stop: CancellationToken,
) {
    if !has_something(&source, &stop).await {
        return;
    }
    drop(not_ready);
    let statuses = ClientStatuses::service(source, service.connections());
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_service(service.virtual_hosts())
        .add_service(service.into_server())
        .add_service(statuses)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the xDS server has ended");
    }
}

/// Writes the addresses where the flags say.
fn announce(config: &Config, addresses: &Addresses) -> anyhow::Result<()> {
    let Some(path) = &config.print_addrs_to else {
        return Ok(());
    };
    write_addresses(path, addresses).with_context(|| format!("writing {}", path.display()))
}

/// Waits for the first snapshot; false when stopped before.
async fn has_something(source: &MeshSource, stop: &CancellationToken) -> bool {
    use millrace_xds::server::ConfigSource as _;
    let mut generations = source.generations();
    tokio::select! {
        () = stop.cancelled() => false,
        first = generations.wait_for(|generation| *generation > Generation::default()) => first.is_ok(),
    }
}

/// Serves xDS over TLS, and nothing else: what every node has is for people to see.
async fn serve_guarded(
    connections: ReceiverStream<std::io::Result<Handshaken>>,
    service: AdsService<MeshSource>,
    source: Arc<MeshSource>,
    stop: CancellationToken,
) {
    if !has_something(&source, &stop).await {
        return;
    }
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(service.virtual_hosts())
        .add_service(service.into_server())
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the xDS server over TLS has ended");
    }
}

/// Writes the file beside its place first, so that whoever waits for it reads all of it.
fn write_addresses(path: &std::path::Path, addresses: &Addresses) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, serde_json::to_vec(addresses)?)?;
    std::fs::rename(&beside, path)?;
    Ok(())
}
