//! Opens one upstream connection: chooses the network namespace to connect from and the source
//! address, and never connects the proxy to itself.
//!
//! Called by the HTTP pools and `tcp::upstream` with a [`ConnectTarget`]. The transport is a
//! [`Transport`]: `Delivery` into the namespace of a pod of this node, with the client's address;
//! `Direct` out of the namespace of the source pod; `Own` from the proxy's own namespace (alone
//! from a file, or as a sidecar).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{Family, ListenerRole, SocketKind};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::TcpSocket;

use crate::acceleration::{Accelerator, Side};
use crate::pods::{LocalPod, LocalPods};
use crate::resource::BindSource;
use crate::resource::cluster::TcpKeepalive;
use crate::socket::Stream;

#[cfg(test)]
mod tests;

/// The upstream side of a connection.
pub type UpstreamStream = Stream;

/// What to connect to, and as whom.
#[derive(Clone, Debug)]
pub struct ConnectTarget {
    /// The endpoint, canonical.
    pub address: SocketAddr,
    /// The pod in whose namespace the downstream connection was accepted.
    pub source: Option<Arc<LocalPod>>,
    /// The address that the endpoint is to see.
    pub client: Option<SocketAddr>,
    /// Whether it is to see the client's port too, where possible (raw TCP).
    pub keep_port: bool,
    /// Bound of everything: the wait for a socket and the handshake.
    pub connect_timeout: Duration,
    /// Keep-alive probes.
    pub keepalive: Option<TcpKeepalive>,
    /// Source addresses where the proxy makes its own sockets.
    pub bind_source: BindSource,
}

/// How an upstream connection travels.
#[derive(Clone, Debug)]
pub enum Transport {
    /// From within the destination pod's namespace, bound to the client's address.
    Delivery(Arc<LocalPod>),
    /// From the source pod's namespace.
    Direct(Arc<LocalPod>),
    /// From the proxy's own namespace.
    Own,
}

/// Why an upstream connection could not be opened. Always the upstream's or our own fault, and
/// always before a byte was sent, so every variant but `Loop` may be retried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither socket nor handshake within the connect timeout.
    #[error("connecting to {address} timed out")]
    Timeout {
        /// The endpoint.
        address: SocketAddr,
    },
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    Refused {
        /// The endpoint.
        address: SocketAddr,
    },
    /// No route, or the network says that nobody is there.
    #[error("{address} is unreachable")]
    Unreachable {
        /// The endpoint.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pod whose socket was needed is gone, or the broker cannot make one.
    #[error("no socket in the namespace of pod {pod} to connect to {address}")]
    NoSocket {
        /// The endpoint.
        address: SocketAddr,
        /// `namespace/name`.
        pod: String,
    },
    /// The endpoint is the proxy itself.
    #[error("{address} is a port of the proxy itself")]
    Loop {
        /// The endpoint.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("connecting to {address}")]
    Io {
        /// The endpoint.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ConnectError {
    /// The kernel's answer to a connect.
    pub fn from_io(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address },
            io::ErrorKind::TimedOut => Self::Timeout { address },
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable { address, source },
            _ => Self::Io { address, source },
        }
    }
}

/// Probes of connections from and to pods, unless the cluster has others. A pod whose network is
/// taken away before its processes end sends neither FIN nor reset; without probes the proxy would
/// wait for it as long as for one that thinks.
const VANISHED: TcpKeepalive = TcpKeepalive {
    time: Duration::from_secs(10),
    interval: Duration::from_secs(5),
    probes: 3,
};

/// Opens upstream connections for one worker.
#[derive(Clone, Debug)]
pub struct Connector {
    pods: Arc<LocalPods>,
    /// Addresses on which the proxy itself listens with its capture ports (sidecar).
    own_addresses: Arc<[IpAddr]>,
    accelerator: Accelerator,
}

impl Connector {
    /// A connector that knows the node's pods (none when alone) and the proxy's own addresses.
    pub fn new(pods: Arc<LocalPods>, own_addresses: Arc<[IpAddr]>) -> Self {
        Self {
            pods,
            own_addresses,
            accelerator: Accelerator::none(),
        }
    }

    /// ... and may have deliveries accelerated.
    #[must_use]
    pub fn accelerating(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// Opens a connection. The result has `TCP_NODELAY` set and carries the proxy's marks where
    /// the broker made the socket.
    ///
    /// # Errors
    /// See [`ConnectError`]; no socket is left behind.
    pub async fn connect(&self, target: &ConnectTarget) -> Result<UpstreamStream, ConnectError> {
        let address = target.address;
        let transport = self.transport(target)?;
        let attempt = open(&transport, target, self.ports(&transport));
        let Ok(result) = tokio::time::timeout(target.connect_timeout, attempt).await else {
            return Err(ConnectError::Timeout { address });
        };
        let mut stream = result?;
        if let Transport::Delivery(pod) = &transport {
            stream.set_lane(self.accelerator.lane(pod, Side::Upstream));
        }
        let inside = (!matches!(transport, Transport::Own)).then_some(VANISHED);
        if let Some(keepalive) = target.keepalive.or(inside)
            && let Err(error) = stream.set_keepalive(keepalive)
        {
            tracing::debug!(%address, %error, "cannot set keep-alive probes");
        }
        Ok(stream)
    }

    /// Which way a connection goes. Delivery needs an enrolled pod at the address (its own
    /// loopback included); everything else leaves from where the client is.
    ///
    /// # Errors
    /// [`ConnectError::Loop`] where the endpoint is a capture port of the proxy.
    pub fn transport(&self, target: &ConnectTarget) -> Result<Transport, ConnectError> {
        let source = target.source.as_ref();
        let here = self.pod_at(source, target.address.ip());
        if self.is_capture_port(source, target.address) {
            return Err(ConnectError::Loop {
                address: target.address,
            });
        }
        Ok(match (here, source) {
            (Some(pod), _) => Transport::Delivery(pod),
            (None, Some(pod)) => Transport::Direct(pod.clone()),
            (None, None) => Transport::Own,
        })
    }

    /// Source ports of a connection that leaves a namespace in which iptables translate what the
    /// application connects; see [`DIRECT_PORTS`].
    fn ports(&self, transport: &Transport) -> Option<RangeInclusive<u16>> {
        let translated = match transport {
            Transport::Delivery(_) => false,
            Transport::Direct(pod) => pod.capture.is_by_rules(),
            Transport::Own => !self.own_addresses.is_empty(),
        };
        translated.then_some(DIRECT_PORTS)
    }

    /// Whether `address`, as `source` knows it, is a capture port of this proxy: a connection
    /// to it that was forwarded would come back for ever.
    pub fn is_capture_port(&self, source: Option<&Arc<LocalPod>>, address: SocketAddr) -> bool {
        let roles = [ListenerRole::Outbound, ListenerRole::Inbound];
        let (ip, port) = (address.ip(), address.port());
        roles.iter().any(|role| role.port() == port)
            && (self.own_addresses.contains(&ip) || self.pod_at(source, ip).is_some())
    }

    /// The enrolled pod that has this address; a pod's loopback is its own.
    fn pod_at(&self, source: Option<&Arc<LocalPod>>, ip: IpAddr) -> Option<Arc<LocalPod>> {
        match source {
            Some(pod) if ip.is_loopback() => Some(pod.clone()),
            _ => self.pods.by_ip(ip),
        }
    }
}

/// Source ports of deliveries that do not keep the client's. In the destination's namespace a
/// delivery has the client's address, as the client's own captured connections have: with one port
/// in common the kernel takes a SYN of the one for a packet of the other. So they stay above the
/// range that clients take theirs from (`net.ipv4.ip_local_port_range`, 32768 to 60999).
const DELIVERY_PORTS: RangeInclusive<u16> = 61_000..=65_535;

/// Source ports of the proxy's own connections out of a namespace with nat rules. Conntrack decides
/// once per tuple whether it is translated and remembers that for minutes: a port that the proxy
/// has tried a destination from would let the application's next connection from it go there
/// untranslated, past the proxy. So they stay out of the range that applications take theirs
/// from, and out of that of deliveries. (`IP_LOCAL_PORT_RANGE` cannot name them: the kernel ignores
/// bounds outside the namespace's own range.)
const DIRECT_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Tries before the kernel chooses a port; more than one connection in two would have to be taken
/// for all of them to fail once in sixteen times.
const OWN_PORT_TRIES: usize = 4;

/// The source address that the endpoint is to see, in its own family.
fn source_address(transport: &Transport, target: &ConnectTarget) -> Option<SocketAddr> {
    if matches!(transport, Transport::Own) {
        return target.bind_source.towards(target.address.ip());
    }
    let client = target.client?;
    let to = target.address.ip();
    if client.is_ipv4() == to.is_ipv4() {
        return Some(client);
    }
    // The client reached us over the other family; its pod may have an address of this one.
    let pod = target.source.as_ref()?;
    let is_its_own = pod.spec.ips.contains(&client.ip());
    let ip = pod.address_like(to).filter(|_| is_its_own)?;
    Some(SocketAddr::new(ip, client.port()))
}

async fn open(
    transport: &Transport,
    target: &ConnectTarget,
    ports: Option<RangeInclusive<u16>>,
) -> Result<Stream, ConnectError> {
    let address = target.address;
    let source = source_address(transport, target);
    if let (Some(source), true) = (source, target.keep_port) {
        let socket = unconnected(transport, address).await?;
        match connect_from(socket, Some(source), address).await {
            Err(error) if is_taken(&error) => {
                tracing::trace!(%address, %source, "source port is taken, another is used");
            }
            Err(error) => return Err(ConnectError::from_io(address, error)),
            Ok(stream) => return Ok(stream),
        }
    }
    let chosen = match transport {
        Transport::Delivery(_) => source.map(|source| (source.ip(), DELIVERY_PORTS)),
        Transport::Direct(_) => ports.map(|ports| (any(address), ports)),
        Transport::Own => ports.map(|p| (source.map_or(any(address), |s| s.ip()), p)),
    };
    if let Some((ip, ports)) = chosen {
        for _ in 0..OWN_PORT_TRIES {
            let source = SocketAddr::new(ip, fastrand::u16(ports.clone()));
            let socket = unconnected(transport, address).await?;
            match connect_from(socket, Some(source), address).await {
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(ConnectError::from_io(address, error)),
                Ok(stream) => return Ok(stream),
            }
        }
    }
    // Direct connections get the pod's address from routing; binding would only cost ports.
    let source = match transport {
        Transport::Direct(_) => None,
        Transport::Delivery(_) => source.map(|s| SocketAddr::new(s.ip(), 0)),
        Transport::Own => source,
    };
    let socket = unconnected(transport, address).await?;
    connect_from(socket, source, address)
        .await
        .map_err(|error| ConnectError::from_io(address, error))
}

/// The unspecified address of the family of `like`.
fn any(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether the port, or the whole tuple, belongs to another connection.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

async fn unconnected(
    transport: &Transport,
    address: SocketAddr,
) -> Result<TcpSocket, ConnectError> {
    let (pod, kind) = match transport {
        Transport::Delivery(pod) => (pod, SocketKind::Delivery),
        Transport::Direct(pod) => (pod, SocketKind::Outbound),
        Transport::Own => {
            let made = if address.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            };
            return made.map_err(|source| ConnectError::Io { address, source });
        }
    };
    let family = if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let Some(fd) = pod.pool(kind, family).take().await else {
        return Err(ConnectError::NoSocket {
            address,
            pod: pod.spec.qualified_name(),
        });
    };
    adopt(fd).map_err(|source| ConnectError::Io { address, source })
}

/// A broker-made socket as one of this runtime's.
fn adopt(fd: OwnedFd) -> io::Result<TcpSocket> {
    SockRef::from(&fd).set_nonblocking(true)?;
    Ok(TcpSocket::from_std_stream(fd.into()))
}

async fn connect_from(
    socket: TcpSocket,
    source: Option<SocketAddr>,
    address: SocketAddr,
) -> io::Result<Stream> {
    if let Some(source) = source {
        if source.port() == 0 {
            // Else bind() takes a port of its own for every connection of this address, and
            // 28,000 of them exhaust it whatever the destinations are.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        } else {
            socket.set_reuseaddr(true)?;
        }
        socket.bind(source)?;
    }
    socket.connect(address).await.map(Stream::new)
}
