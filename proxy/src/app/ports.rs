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
use crate::handover::estate::{Estate, Place};

/// Binds the ports and serves them until `stop` is cancelled; those that the epoch before serves too
/// only once this one is ready. The admin port is served on a Unix socket in the run directory too.
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
            Arc::new(metrics_routes(app.metrics.clone())),
        ),
        (
            "readiness",
            config.ready_addr,
            Arc::new(ready_routes(app.ready.clone())),
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
    let admin = ("admin", admin_addr, admin);
    for (name, address, routes) in ports.into_iter().chain([admin]) {
        let Some(address) = address else { continue };
        let (server, inherited) = bind(name, address, &app.estate)?;
        let (ready, stop) = (app.ready.clone(), stop.clone());
        tasks.spawn(async move {
            if inherited {
                stop.run_until_cancelled(ready.wait()).await;
            }
            server.serve(routes, stop).await;
        });
    }
    Ok(())
}

/// Binds one port; true where the epoch before has it too.
fn bind(name: &str, address: SocketAddr, estate: &Estate) -> anyhow::Result<(Server, bool)> {
    let binding = || format!("binding the {name} port at {address}");
    let place = Place::Tcp(address);
    let inherited = estate.take(place).pop();
    let is_inherited = inherited.is_some();
    let socket = match inherited {
        Some(socket) => socket.into(),
        // Shared: the next epoch binds the same ports before this one has drained.
        None => Server::listen_shared(address).with_context(binding)?,
    };
    estate.hold(place, &[&socket]).with_context(binding)?;
    let server = Server::over(socket).with_context(binding)?;
    let address = server.local_addr().unwrap_or(address);
    tracing::info!(port = name, %address, "listening");
    Ok((server, is_inherited))
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
