//! Where the workers' listening sockets come from, by mode: the broker, the sidecar's own
//! capture ports, or the listeners of a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Context;
use millrace_runtime::handoff::ListenerRole;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::App;
use crate::config::{Config, Mode};
use crate::dns::{Client, Dns, Upstreams};
use crate::handover::estate::Estate;
use crate::listener::accepted::Origin;
use crate::listener::bind::{self, Binder};
use crate::pods::LocalPods;
use crate::pods::broker::{BrokerClient, Identity, Listening, Socket};
use crate::snapshot::Store;
use crate::worker::Workers;
use crate::xds::Interest;

/// What is left of the sockets of a proxy that drains.
#[derive(Default)]
pub(super) struct Leftovers {
    /// Cancelled when somebody else has the listening sockets.
    pub(super) released: CancellationToken,
    /// Answers the questions that were taken.
    pub(super) dns: Option<Arc<Dns>>,
}

/// Starts to serve sockets; returns when those that the proxy binds itself are bound.
pub(super) async fn serve(
    app: &App,
    config: &Config,
    workers: Workers,
    interest: Interest,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Leftovers> {
    let drain = app.lifecycle.drain_listeners.clone();
    let mut left = Leftovers {
        released: drain.clone(),
        dns: None,
    };
    match &config.mode {
        Mode::Node { run_dir, xds } => {
            let identity = Identity {
                epoch: config.epoch,
                workers: config.workers,
            };
            let dns = dns(app, &xds.cluster_domain);
            left.dns = Some(dns.clone());
            let client = BrokerClient::new(
                run_dir.join("proxy.sock"),
                identity,
                app.parts.pods.clone(),
                Gate {
                    store: app.parts.store.clone(),
                    serving: Arc::new(Serving { workers, dns }),
                },
                (app.ready.block("pods"), drain),
            );
            let follow = follow(client.changes(), app.parts.pods.clone(), interest);
            tasks.spawn(follow);
            left.released = client.released();
            tasks.spawn(client.run());
        }
        Mode::Sidecar { namespace, xds, .. } => {
            let ready = app.ready.block("listeners");
            configured(app).await;
            let dns = dns(app, &xds.cluster_domain);
            serve_dns(&dns, &app.estate, namespace.as_deref(), &drain)?;
            left.dns = Some(dns);
            bind::bind_capture_ports(&workers, &app.estate, &drain)
                .context("binding the capture ports")?;
            drop(ready);
            tasks.spawn(let_go(app.estate.clone(), drain));
        }
        Mode::File { path, .. } => {
            let ready = app.ready.block("listeners");
            configured(app).await;
            let mut binder = Binder::new(workers, app.estate.clone(), drain.clone());
            let errors = binder.apply(&app.parts.store.load());
            if let Some(error) = errors.into_iter().next() {
                return Err(error).with_context(|| format!("serving {}", path.display()));
            }
            drop(ready);
            tasks.spawn(binder.follow(app.parts.store.clone()));
            tasks.spawn(let_go(app.estate.clone(), drain));
        }
    }
    Ok(left)
}

/// Lets the duplicates of listening sockets go with the sockets.
async fn let_go(estate: Estate, drain: CancellationToken) {
    drain.cancelled().await;
    estate.release_ports();
}

/// The addresses of this network namespace, loopback included: the capture ports are on each.
pub(super) fn interface_addresses() -> impl Iterator<Item = IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().inspect_err(|error| {
        tracing::warn!(%error, "cannot list this namespace's addresses");
    });
    let addresses = interfaces.into_iter().flatten().filter_map(|i| i.address);
    let interface = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    loopback.into_iter().chain(interface)
}

/// Whether others reach this pod at an address of it.
pub(super) fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        // `::1`, and `::6`, from where a sidecar delivers.
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && ip.segments()[..7] != [0; 7],
    }
}

/// Waits for the first configuration.
async fn configured(app: &App) {
    let mut generations = app.parts.store.subscribe();
    // The store lives as long as `app`, so the channel cannot close here.
    drop(generations.wait_for(|generation| *generation > 0).await);
}

/// Tells the configuration's owner which pods are local, whenever that changes.
async fn follow(mut changes: watch::Receiver<u64>, pods: Arc<LocalPods>, interest: Interest) {
    while changes.changed().await.is_ok() {
        let names = pods.all();
        interest.pods(
            names
                .iter()
                .map(|pod| (pod.spec.namespace.clone(), pod.spec.name.clone())),
        );
    }
}

/// The DNS server; what is no mesh name goes to the resolvers of this process.
fn dns(app: &App, domain: &str) -> Arc<Dns> {
    let dns = Dns::new(
        app.parts.store.clone(),
        app.parts.pods.clone(),
        Upstreams::file("/etc/resolv.conf".into()),
        domain.to_owned(),
    );
    dns.stats.register(&app.metrics);
    dns
}

/// Serves a sidecar's DNS on loopback, on IPv6 where the namespace has it.
fn serve_dns(
    dns: &Arc<Dns>,
    estate: &Estate,
    namespace: Option<&str>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let client = Client {
        pod: None,
        namespace: namespace.map(str::to_owned),
    };
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        let (udp, tcp) = match bind::bind_dns(estate, ip) {
            Ok(sockets) => sockets,
            Err(error) if ip.is_ipv6() => {
                tracing::info!(%error, "no DNS over IPv6 in this namespace");
                continue;
            }
            Err(error) => return Err(error).context("binding the DNS port"),
        };
        dns.serve_udp(udp, client.clone(), stop.clone())
            .context("serving DNS")?;
        for tcp in tcp {
            dns.serve_tcp(tcp, client.clone(), stop.clone())
                .context("serving DNS")?;
        }
    }
    Ok(())
}

/// Holds sockets back until the first configuration is in place. An older epoch accepts from the
/// same sockets meanwhile; where there is none, connections wait in the backlog.
struct Gate<L> {
    store: Arc<Store>,
    serving: Arc<L>,
}

impl<L: Listening + Send + Sync + 'static> Listening for Gate<L> {
    fn serve(&self, socket: Socket, stop: CancellationToken) {
        if self.store.is_open() {
            return self.serving.serve(socket, stop);
        }
        let (store, serving) = (self.store.clone(), self.serving.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = store.opened() => serving.serve(socket, stop.clone()),
            }
        });
    }
}

/// Sends each socket of a pod to the worker that its index says, DNS to the DNS server.
struct Serving {
    workers: Workers,
    dns: Arc<Dns>,
}

impl Listening for Serving {
    fn serve(&self, socket: Socket, stop: CancellationToken) {
        let Socket {
            uid,
            role,
            index,
            fd,
        } = socket;
        let client = || Client {
            pod: Some(uid.clone()),
            namespace: None,
        };
        let served = match role {
            ListenerRole::DnsUdp => self.dns.serve_udp(fd, client(), stop),
            ListenerRole::DnsTcp => self.dns.serve_tcp(fd, client(), stop),
            ListenerRole::Outbound | ListenerRole::Inbound => {
                let origin = if role == ListenerRole::Outbound {
                    Origin::Outbound(Some(uid.clone()))
                } else {
                    Origin::Inbound(Some(uid.clone()))
                };
                self.workers.serve(usize::from(index), fd, origin, stop);
                Ok(())
            }
        };
        if let Err(error) = served {
            tracing::error!(pod = %uid, ?role, %error, "cannot serve a socket");
        }
    }
}

#[cfg(test)]
mod tests;
