//! Makes listening sockets in the proxy's own network namespace: for the listeners of a file or
//! of LDS when alone, for the capture ports as a sidecar.
//!
//! Runs on the control thread. Each address has one socket per worker (`SO_REUSEPORT`), so the
//! kernel spreads connections and no worker waits for another. Sockets of the epoch before are served in place
//! of new ones. In node mode the broker makes all sockets instead.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use millrace_runtime::handoff::ListenerRole;
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::accepted::Origin;
use crate::handover::estate::{Estate, Place};
use crate::resource::ListenerName;
use crate::snapshot::{Snapshot, Store};
use crate::worker::Workers;

#[cfg(test)]
mod tests;

/// Connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listener {name} cannot bind {address}")]
pub struct BindError {
    /// The listener.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// Listens on `address` with one socket for each of `count` workers. Port 0 is replaced by one
/// that the kernel chooses, the same for all.
///
/// # Errors
/// When a socket cannot be made or bound.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let mut bound = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            // `[::]` and `0.0.0.0` are two listeners in Envoy's configuration.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&bound.into())?;
        socket.listen(BACKLOG)?;
        if bound.port() == 0
            && let Some(chosen) = socket.local_addr()?.as_socket()
        {
            bound = chosen;
        }
        sockets.push(socket.into());
    }
    Ok((bound, sockets))
}

/// As [`bind`], with the sockets of the epoch before as far as there are any. There may be more than
/// `count`, of which each has to be served.
///
/// # Errors
/// When a socket cannot be made, bound or duplicated.
fn open(
    estate: &Estate,
    address: SocketAddr,
    count: usize,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let place = Place::Tcp(address);
    let mut sockets = estate.take(place);
    let (bound, new) = bind(address, count.saturating_sub(sockets.len()))?;
    sockets.extend(new);
    estate.hold(place, &sockets)?;
    Ok((bound, sockets))
}

/// Binds the DNS port of a sidecar: a datagram socket and stream sockets on loopback, where DNS that
/// the namespace's rules redirect arrives.
///
/// # Errors
/// When a socket cannot be made or bound.
pub fn bind_dns(estate: &Estate, ip: std::net::IpAddr) -> io::Result<(OwnedFd, Vec<OwnedFd>)> {
    let address = SocketAddr::new(ip, ListenerRole::DnsUdp.port());
    let place = Place::Udp(address);
    let udp = match estate.take(place).pop() {
        Some(udp) => udp,
        None => std::net::UdpSocket::bind(address)?.into(),
    };
    estate.hold(place, &[&udp])?;
    let (_, tcp) = open(estate, address, 1)?;
    Ok((udp, tcp))
}

/// Binds the capture ports of a sidecar, on both families where the namespace has both; they
/// are let go when `stop` is cancelled.
///
/// # Errors
/// When a capture port cannot be bound on IPv4.
pub fn bind_capture_ports(
    workers: &Workers,
    estate: &Estate,
    stop: &CancellationToken,
) -> Result<(), BindError> {
    for (role, origin) in [
        (ListenerRole::Outbound, Origin::Outbound(None)),
        (ListenerRole::Inbound, Origin::Inbound(None)),
    ] {
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, role.port()));
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, role.port()));
        for address in [v4, v6] {
            match open(estate, address, workers.count()) {
                Ok((_, sockets)) => serve(workers, sockets, &origin, stop),
                Err(error) if address.is_ipv6() => {
                    tracing::info!(%address, %error, "no IPv6 capture in this namespace");
                }
                Err(source) => {
                    return Err(BindError {
                        name: format!("{role:?}").to_lowercase(),
                        address,
                        source,
                    });
                }
            }
        }
    }
    Ok(())
}

fn serve(workers: &Workers, sockets: Vec<OwnedFd>, origin: &Origin, stop: &CancellationToken) {
    for (index, socket) in sockets.into_iter().enumerate() {
        workers.serve(index, socket, origin.clone(), stop.clone());
    }
}

/// Keeps sockets bound for exactly the listeners of the newest snapshot.
pub struct Binder {
    workers: Workers,
    estate: Estate,
    stop: CancellationToken,
    bound: BTreeMap<ListenerName, Bound>,
}

struct Bound {
    asked: SocketAddr,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Binder {
    /// A binder that has bound nothing; `stop` lets everything go.
    pub fn new(workers: Workers, estate: Estate, stop: CancellationToken) -> Self {
        Self {
            workers,
            estate,
            stop,
            bound: BTreeMap::new(),
        }
    }

    /// Binds what is new and lets go what is not there any more; connections go on. A listener
    /// that cannot be bound does not keep the others from it.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Vec<BindError> {
        self.bound.retain(|name, bound| {
            let keep = snapshot
                .listener(name.as_str())
                .is_some_and(|l| l.bind_to_port && l.address == bound.asked);
            if !keep {
                tracing::info!(listener = %name, address = %bound.address, "listener closed");
                bound.stop.cancel();
                self.estate.release(Place::Tcp(bound.asked));
            }
            keep
        });
        let mut errors = Vec::new();
        for listener in snapshot.listeners().filter(|l| l.bind_to_port) {
            let (name, address) = (&listener.name, listener.address);
            if self.bound.contains_key(name) {
                continue;
            }
            match self.open(name, address) {
                Ok(bound) => drop(self.bound.insert(name.clone(), bound)),
                Err(source) => errors.push(BindError {
                    name: name.to_string(),
                    address,
                    source,
                }),
            }
        }
        errors
    }

    /// Where a listener is bound.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.bound.get(name).map(|b| b.address)
    }

    /// Follows the configuration for as long as the process lives.
    pub async fn follow(mut self, store: Arc<Store>) {
        let mut generations = store.subscribe();
        loop {
            // biased: nothing is bound any more once everything was let go.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = generations.changed() => if changed.is_err() { return },
            }
            for error in self.apply(&store.load()) {
                tracing::error!(error = %error.source, "{error}");
            }
        }
    }

    fn open(&self, name: &ListenerName, asked: SocketAddr) -> io::Result<Bound> {
        let (address, sockets) = open(&self.estate, asked, self.workers.count())?;
        let stop = self.stop.child_token();
        let origin = Origin::Listener(name.clone());
        serve(&self.workers, sockets, &origin, &stop);
        tracing::info!(listener = %name, %address, "listening");
        Ok(Bound {
            asked,
            address,
            stop,
        })
    }
}
