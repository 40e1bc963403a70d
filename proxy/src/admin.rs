//! The admin port: what is served, how it fares, and switches for operators.
//!
//! [`routes`] gives one table for 15000 and for the Unix socket beside it. Paths and formats are
//! Envoy's where Envoy has them. Everything runs on the control thread, so a look never delays
//! a request.

mod acceleration;
mod access_log;
mod clusters;
mod config;
mod control;
mod handover;
mod simulate;
mod stats;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use millrace_runtime::admin::Routes;
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use millrace_runtime::ready::{Blocker, Ready};
use millrace_runtime::telemetry::LevelHandle;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acceleration::Accelerator;
use crate::bootstrap::Bootstrap;
use crate::handover::Handover;
use crate::listener::stats::ListenerStats;
use crate::pods::LocalPods;
use crate::snapshot::Store;
use crate::xds::Handle;
use access_log::AccessLog;

/// What the admin port looks at and acts on.
pub struct Admin {
    /// Served configuration.
    pub store: Arc<Store>,
    /// Where it comes from.
    pub configuration: Handle,
    /// Pods of this node.
    pub pods: Arc<LocalPods>,
    /// Domain of the cluster's names.
    pub domain: String,
    /// The static file, where there is one.
    pub bootstrap: Option<Bootstrap>,
    /// Id that the control plane knows this proxy by.
    pub node_id: String,
    /// Readiness.
    pub ready: Ready,
    /// Log filter; `None` where logging belongs to someone else (tests).
    pub level: Option<LevelHandle>,
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// Counters of connections that no chain took.
    pub listener_stats: ListenerStats,
    /// Connections of applications that are accelerated.
    pub accelerator: Accelerator,
    /// The way to the next epoch.
    pub handover: Handover,
    /// This build.
    pub build: BuildInfo,
    /// Cancelled to stop accepting.
    pub drain_listeners: CancellationToken,
    /// Cancelled to drain and end.
    pub quit: CancellationToken,
}

/// Shared by the handlers.
struct Context {
    admin: Admin,
    started: Instant,
    /// Held while `/healthcheck/fail` is in force.
    failed: Mutex<Option<Blocker>>,
}

/// The admin routes.
pub fn routes(admin: Admin) -> Routes {
    let context = Arc::new(Context {
        admin,
        started: Instant::now(),
        failed: Mutex::new(None),
    });
    let table = clusters::routes(Routes::new(), &context);
    let table = config::routes(table, &context);
    let table = stats::routes(table, &context);
    let table = simulate::routes(table, &context);
    let table = acceleration::routes(table, &context);
    let table = handover::routes(table, &context);
    let table = control::routes(table, &context);
    match context.access_log() {
        Some(log) => table.observed(move |method, uri, status| log.record(method, uri, status)),
        None => table,
    }
}

impl Context {
    fn access_log(&self) -> Option<AccessLog> {
        let admin = self.admin.bootstrap.as_ref()?.admin.as_ref()?;
        AccessLog::open(admin.access_log_path.as_deref()?)
    }
}

/// Path of the admin socket: in the proxy's own directory below the run directory where there is
/// one (the launcher makes it and links `proxy-admin.sock` to the socket), else beside the others.
pub fn socket_path(run_dir: &std::path::Path) -> PathBuf {
    let own = run_dir.join("proxy");
    if own.is_dir() {
        own.join("admin.sock")
    } else {
        run_dir.join("proxy-admin.sock")
    }
}
