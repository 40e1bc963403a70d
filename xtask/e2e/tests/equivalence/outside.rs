//! The world outside the mesh: a server that nobody declares, and the resolver that pods and nodes ask.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Deref;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use millrace_e2e::mounts;
use millrace_testkit::http::Server;
use millrace_testkit::{CLUSTER_DNS, Cluster, FabricHost, Node};
use parking_lot::Mutex;

use crate::dns;
use crate::server::Servers;

/// The resolver's address in the services' range of IPv6.
pub(crate) const CLUSTER_DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10);

/// A host on the fabric with servers and a resolver. It has the resolver's service addresses too.
pub(crate) struct Outside {
    _servers: Servers,
    resolver: Resolver,
    host: FabricHost,
}

impl Deref for Outside {
    type Target = FabricHost;

    fn deref(&self) -> &FabricHost {
        &self.host
    }
}

impl Outside {
    /// Starts the host.
    pub(crate) fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let host = cluster.host("outside")?;
        let services: [IpAddr; 2] = [CLUSTER_DNS.into(), CLUSTER_DNS6.into()];
        for address in services {
            ip(
                &host,
                &["address", "add", &address.to_string(), "dev", "lo"],
            )?;
        }
        let [v4, v6] = services;
        let servers = Servers::start(&host, "outside")?;
        let resolver = Resolver::start(&host, &[host.ip(), v4, v6])?;
        Ok(Self {
            _servers: servers,
            resolver,
            host,
        })
    }

    /// Gives a node routes to the resolver's service addresses, as its service proxy would.
    pub(crate) fn reachable_from(&self, node: &Node) -> anyhow::Result<()> {
        for (address, via) in [
            (IpAddr::from(CLUSTER_DNS), self.host.ip()),
            (CLUSTER_DNS6.into(), self.host.ip6()),
        ] {
            ip(
                node,
                &[
                    "route",
                    "add",
                    &address.to_string(),
                    "via",
                    &via.to_string(),
                ],
            )?;
        }
        Ok(())
    }

    /// A program with arguments that starts another with this resolver as the node's own.
    pub(crate) fn with_resolver(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let file = cluster.id().state_dir().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {}\n", self.host.ip()))
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(mounts::after(&format!(
            "mount --bind {} /etc/resolv.conf",
            file.display()
        )))
    }

    /// The names that the resolver was asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.resolver.asked.lock());
        asked.sort();
        asked.dedup();
        asked
    }
}

fn ip(host: &millrace_testkit::Host, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    host.stdout(command).map(drop)
}

/// A resolver that knows one address for every name.
struct Resolver {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _streams: Vec<Server>,
}

impl Resolver {
    fn start(host: &FabricHost, at: &[IpAddr]) -> anyhow::Result<Self> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut streams = Vec::new();
        for ip in at {
            let address = SocketAddr::new(*ip, 53);
            let socket = host.udp(address)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let (log, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                datagrams(&socket, &log, &stopped);
            }));
            let log = Arc::clone(&asked);
            streams.push(Server::start(
                host.listen(address)?,
                move |mut stream, _| {
                    // RFC 1035, 4.2.2: two bytes of length before each message.
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; u16::from_be_bytes(length).into()];
                        let Ok(()) = stream.read_exact(&mut query) else {
                            return;
                        };
                        let Some(answer) = answered(&query, &log) else {
                            return;
                        };
                        let length = u16::try_from(answer.len()).unwrap_or_default();
                        let whole = [&length.to_be_bytes()[..], &answer].concat();
                        if stream.write_all(&whole).is_err() {
                            return;
                        }
                    }
                },
            )?);
        }
        Ok(Self {
            asked,
            stop,
            threads,
            _streams: streams,
        })
    }
}

fn datagrams(socket: &UdpSocket, log: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(answer) = answered(&buffer[..length], log)
        {
            socket.send_to(&answer, from).ok();
        }
    }
}

fn answered(query: &[u8], log: &Mutex<Vec<String>>) -> Option<Vec<u8>> {
    log.lock().push(dns::name(query)?);
    dns::answer(query)
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// What the resolver says of every name.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// The same over IPv6.
pub(crate) const ELSEWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
