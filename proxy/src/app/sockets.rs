//! Where the workers' listening sockets come from, by mode: the broker, the sidecar's own
//! capture ports, or the listeners of a file.

use anyhow::Context;
use millrace_runtime::handoff::ListenerRole;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::App;
use crate::config::{Config, Mode};
use crate::listener::accept::Origin;
use crate::listener::bind::{self, Binder};
use crate::pods::LocalPods;
use crate::pods::broker::{BrokerClient, Identity, Listening, Socket};
use crate::worker::Workers;
use crate::xds::Interest;

/// Starts to serve sockets; returns when those that the proxy binds itself are bound.
pub(super) async fn serve(
    app: &App,
    config: &Config,
    workers: Workers,
    interest: Interest,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let drain = app.lifecycle.drain_listeners.clone();
    match &config.mode {
        Mode::Node { run_dir, .. } => {
            let identity = Identity {
                epoch: config.epoch,
                workers: config.workers,
            };
            let client = BrokerClient::new(
                run_dir.join("proxy.sock"),
                identity,
                app.parts.pods.clone(),
                ToWorkers(workers),
                (app.ready.block("pods"), drain),
            );
            let follow = follow(client.changes(), app.parts.pods.clone(), interest);
            tasks.spawn(follow);
            tasks.spawn(client.run());
        }
        Mode::Sidecar { .. } => {
            let ready = app.ready.block("listeners");
            configured(app).await;
            bind::bind_capture_ports(&workers, &drain).context("binding the capture ports")?;
            drop(ready);
        }
        Mode::File { path, .. } => {
            let ready = app.ready.block("listeners");
            configured(app).await;
            let mut binder = Binder::new(workers, drain);
            let errors = binder.apply(&app.parts.store.load());
            if let Some(error) = errors.into_iter().next() {
                return Err(error).with_context(|| format!("serving {}", path.display()));
            }
            drop(ready);
            tasks.spawn(binder.follow(app.parts.store.clone()));
        }
    }
    Ok(())
}

/// Waits for the first configuration.
async fn configured(app: &App) {
    let mut generations = app.parts.store.subscribe();
    // The store lives as long as `app`, so the channel cannot close here.
    drop(generations.wait_for(|generation| *generation > 0).await);
}

/// Tells the configuration's owner which pods are local, whenever that changes.
async fn follow(
    mut changes: watch::Receiver<u64>,
    pods: std::sync::Arc<LocalPods>,
    interest: Interest,
) {
    while changes.changed().await.is_ok() {
        let names = pods.all();
        interest.pods(
            names
                .iter()
                .map(|pod| (pod.spec.namespace.clone(), pod.spec.name.clone())),
        );
    }
}

/// Sends each socket of a pod to the worker that its index says.
struct ToWorkers(Workers);

impl Listening for ToWorkers {
    fn serve(&self, socket: Socket, stop: CancellationToken) {
        let Socket {
            uid,
            role,
            index,
            fd,
        } = socket;
        let origin = match role {
            ListenerRole::Outbound => Origin::Outbound(Some(uid)),
            ListenerRole::Inbound => Origin::Inbound(Some(uid)),
            ListenerRole::DnsUdp | ListenerRole::DnsTcp => return,
        };
        self.0.serve(usize::from(index), fd, origin, stop);
    }
}
