//! The ports that people and machines look at the proxy through: admin, metrics, readiness.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use http::StatusCode;
use millrace_runtime::admin::{Reply, Response, Routes, Server};
use millrace_runtime::metrics::{self, Metrics};
use millrace_runtime::ready::Ready;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::App;
use crate::admin::{self, Admin};
use crate::config::{Config, Mode};

/// Binds the ports and serves them until `stop` is cancelled. The admin port is served on a
/// Unix socket in the run directory too.
pub(super) fn serve(
    app: &App,
    config: &Config,
    (admin, admin_addr): (Admin, Option<SocketAddr>),
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let ports = [
        (
            "metrics",
            config.metrics_addr,
            metrics_routes(app.metrics.clone()),
        ),
        (
            "readiness",
            config.ready_addr,
            ready_routes(app.ready.clone()),
        ),
    ];
    let admin = Arc::new(admin::routes(admin));
    if let Mode::Node { run_dir, .. } = &config.mode {
        let path = admin::socket_path(run_dir);
        match Server::bind_unix(&path, 0o660) {
            Ok(server) => drop(tasks.spawn(server.serve(admin.clone(), stop.clone()))),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no admin socket");
            }
        }
    }
    if let Some(address) = admin_addr {
        let server = bind("admin", address)?;
        tasks.spawn(server.serve(admin, stop.clone()));
    }
    for (name, address, routes) in ports {
        if let Some(address) = address {
            let server = bind(name, address)?;
            tasks.spawn(server.serve(routes, stop.clone()));
        }
    }
    Ok(())
}

/// Binds one port.
pub(super) fn bind(name: &str, address: SocketAddr) -> anyhow::Result<Server> {
    // Shared: the next epoch binds the same ports before this one has drained.
    let server = Server::bind_tcp_shared(address)
        .with_context(|| format!("binding the {name} port at {address}"))?;
    let address = server.local_addr().unwrap_or(address);
    tracing::info!(port = name, %address, "listening");
    Ok(server)
}

fn metrics_routes(metrics: Metrics) -> Routes {
    let page = move |metrics: Metrics| async move {
        Reply::with_type(200, metrics::CONTENT_TYPE, metrics.encode())
    };
    let other = metrics.clone();
    Routes::new()
        .get("/stats/prometheus", "metrics", move |_| {
            page(metrics.clone())
        })
        .get("/metrics", "metrics", move |_| page(other.clone()))
}

fn ready_routes(ready: Ready) -> Routes {
    Routes::new().get("/healthz/ready", "200 when ready", move |_| {
        let answer = readiness(&ready);
        async move { answer }
    })
}

/// 200 when nothing holds readiness back, else 503 with what does.
fn readiness(ready: &Ready) -> Response {
    if ready.is_ready() {
        return Reply::text(200, "LIVE\n");
    }
    let pending = ready.pending().join(", ");
    Reply::text(
        StatusCode::SERVICE_UNAVAILABLE.as_u16(),
        format!("waiting for {pending}\n"),
    )
}
