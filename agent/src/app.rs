//! Wires `millrace-agent run` together and ends it in order.
//!
//! Start: state → programs → pod source → reconciler → API. Stop: API, then the rest; what is in
//! the kernel and in pods stays, so that the next agent adopts it without a gap.

use std::sync::Arc;

use anyhow::Context as _;
use millrace_runtime::admin::Server;
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::handoff::PeerPolicy;
use millrace_runtime::metrics::Metrics;
use millrace_runtime::signal::Signals;
use millrace_runtime::telemetry::LevelHandle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::config::AgentConfig;
use crate::kernel::Kernel;
use crate::pods::PodSource as _;
use crate::pods::local::LocalSource;
use crate::reconcile::Reconciler;
use crate::store::Store;

/// Commands that may wait for the reconciler; callers wait beyond that.
const COMMANDS: usize = 16;

/// Runs the agent until a signal ends it.
///
/// # Errors
/// When a directory or socket of its own cannot be used.
pub async fn run(config: AgentConfig, level: LevelHandle) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("installing signal handlers")?;
    let config = Arc::new(config);
    tracing::info!(build = %BuildInfo::of("millrace-agent"), ?config, "agent starts");
    let store = Store::open(&config.paths.state_dir)
        .with_context(|| format!("opening state in {}", config.paths.state_dir.display()))?;
    let kernel = Kernel::load(&config);
    kernel.follow_logs();
    let source = LocalSource::new(&config.pods_dir, &config.node_name)
        .with_context(|| format!("opening {}", config.pods_dir.display()))?;
    let source = Arc::new(source);
    let reconciler = Reconciler::new(Arc::clone(&config), kernel.clone(), source.watch(), store);
    let metrics = Metrics::new(&BuildInfo::of("millrace-agent"));
    crate::metrics::register(&metrics, reconciler.view(), kernel.clone());
    crate::integrity::register(&metrics, reconciler.view(), reconciler.integrity());
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let api = Api {
        source: Arc::clone(&source) as Arc<dyn crate::pods::PodSource>,
        view: reconciler.view(),
        commands,
        kernel: kernel.clone(),
        integrity: reconciler.integrity(),
        level,
        metrics,
    };
    let socket = config.paths.agent_socket();
    let server = Server::bind_unix(&socket, 0o600)
        .with_context(|| format!("binding {}", socket.display()))?;

    let accel_socket = config.paths.accel_socket();
    let accel = crate::accel::bind(&accel_socket)
        .with_context(|| format!("binding {}", accel_socket.display()))?;
    let proxies = PeerPolicy::users(&[0, config.proxy_uid]);

    let stop = CancellationToken::new();
    let watching = {
        let (source, stop) = (Arc::clone(&source), stop.clone());
        tokio::spawn(async move { source.run(stop).await })
    };
    let checking = tokio::spawn(reconciler.watch().run(stop.clone()));
    let reconciling = tokio::spawn(reconciler.run(inbox, stop.clone()));
    let serving = tokio::spawn(server.serve(api.routes(), stop.clone()));
    let promoting = tokio::spawn(crate::accel::serve(
        accel,
        proxies,
        kernel.clone(),
        stop.clone(),
    ));
    let looking = tokio::spawn(crate::accel::watch(kernel, stop.clone()));
    tracing::info!(socket = %socket.display(), "agent serves");

    let signal = signals.stop().await;
    tracing::info!(%signal, "agent stops, captured pods stay captured");
    stop.cancel();
    for task in [watching, checking, reconciling, serving, promoting, looking] {
        task.await.context("joining a task")?;
    }
    Ok(())
}
