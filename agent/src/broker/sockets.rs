//! The sockets that the broker makes inside a pod: listening ones for capture, unconnected ones
//! for the proxy to connect from.
//!
//! Every function works in the calling thread's network namespace. Whatever needs a capability
//! (marks, transparency) is set here, so the proxy needs none.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use millrace_runtime::handoff::{
    DELIVERY_MARK, Families, Family, ListenerFamily, ListenerLabel, ListenerRole, OUTBOUND_MARK,
    SocketKind,
};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::cookie_of;

/// Connections that wait while no proxy accepts.
const BACKLOG: i32 = 4096;

/// A listening socket with its label.
#[derive(Debug)]
pub struct LabelledListener {
    /// What it is.
    pub label: ListenerLabel,
    /// The broker's own duplicate, which keeps the backlog alive.
    pub socket: Arc<OwnedFd>,
}

impl LabelledListener {
    /// Whether the kernel still has it listening, a datagram socket bound, to its port.
    pub fn is_alive(&self) -> bool {
        let socket = socket2::SockRef::from(&*self.socket);
        if !self.label.role.is_datagram() {
            return socket.is_listener().unwrap_or(false);
        }
        let address = socket.local_addr().ok().and_then(|a| a.as_socket());
        address.is_some_and(|address| address.port() == self.label.role.port())
    }

    /// Ends the socket for every holder: pending connections are reset, new ones refused.
    pub fn shut_down(&self) {
        let socket = socket2::SockRef::from(&*self.socket);
        // An unconnected UDP socket answers ENOTCONN and has no backlog to end.
        if let Err(error) = socket.shutdown(std::net::Shutdown::Both) {
            tracing::trace!(%error, label = ?self.label, "listener shut down");
        }
    }
}

/// Which of a pod's sockets failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A listening socket.
    #[error("listening socket on port {port} cannot be made in the pod")]
    Listen {
        /// The port.
        port: u16,
        /// Why; `AddrInUse` means that the pod listens there itself.
        source: io::Error,
    },
    /// An unconnected socket.
    #[error("{kind:?} socket cannot be made in the pod")]
    Make {
        /// What for.
        kind: SocketKind,
        /// Why.
        source: io::Error,
    },
    /// The pod has no addresses of the family.
    #[error("the pod has no {0:?}")]
    Family(Family),
}

/// The bound family of every listening socket in a namespace with `families`.
pub fn listener_family(families: Families) -> ListenerFamily {
    if families.v6 {
        ListenerFamily::Dual
    } else {
        ListenerFamily::V4
    }
}

/// Makes the named sockets, all or none.
///
/// # Errors
/// Names the port that could not be listened on.
pub fn listeners(
    families: Families,
    wanted: &[(ListenerRole, u16)],
) -> Result<Vec<LabelledListener>, SocketError> {
    let family = listener_family(families);
    wanted
        .iter()
        .map(|&(role, index)| {
            listener(role, index, family).map_err(|source| SocketError::Listen {
                port: role.port(),
                source,
            })
        })
        .collect()
}

/// Examines a socket that a proxy gave back: it must be what its label says, in the namespace of
/// `netns_cookie`. The cookie in the label is replaced by the kernel's.
///
/// # Errors
/// Says what is wrong with the socket.
pub fn examine(
    label: ListenerLabel,
    socket: OwnedFd,
    netns_cookie: Option<u64>,
) -> Result<LabelledListener, String> {
    let check = || -> io::Result<Result<ListenerLabel, String>> {
        let reference = socket2::SockRef::from(&socket);
        let namespace = cookie_of(socket.as_fd())?;
        if netns_cookie.is_some_and(|wanted| wanted != namespace) {
            return Ok(Err("it is of another network namespace".to_owned()));
        }
        let datagram = reference.r#type()? == Type::DGRAM;
        if datagram != label.role.is_datagram() {
            return Ok(Err("it is of another type".to_owned()));
        }
        if !datagram && !reference.is_listener()? {
            return Ok(Err("it does not listen".to_owned()));
        }
        let address = reference.local_addr()?.as_socket();
        let Some(address) = address.filter(|a| a.port() == label.role.port()) else {
            return Ok(Err(format!(
                "it is not bound to port {}",
                label.role.port()
            )));
        };
        let family = if address.is_ipv4() {
            ListenerFamily::V4
        } else {
            ListenerFamily::Dual
        };
        let cookie = rustix::net::sockopt::socket_cookie(socket.as_fd())?;
        Ok(Ok(ListenerLabel {
            family,
            cookie,
            ..label
        }))
    };
    let label = check().map_err(|error| error.to_string())??;
    Ok(LabelledListener {
        label,
        socket: Arc::new(socket),
    })
}

fn listener(
    role: ListenerRole,
    index: u16,
    family: ListenerFamily,
) -> io::Result<LabelledListener> {
    let domain = match family {
        ListenerFamily::V4 => Domain::IPV4,
        ListenerFamily::Dual => Domain::IPV6,
    };
    let socket = new_socket(domain, role.is_datagram())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_mark(OUTBOUND_MARK)?;
    let address = match family {
        ListenerFamily::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, role.port())),
        ListenerFamily::Dual => {
            socket.set_only_v6(false)?;
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, role.port()))
        }
    };
    if role == ListenerRole::Inbound {
        set_transparent(&socket, domain)?;
    }
    if role.is_datagram() {
        // The answer must leave from the address that was asked.
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        if family == ListenerFamily::Dual {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
    }
    socket.bind(&address.into())?;
    if !role.is_datagram() {
        socket.listen(BACKLOG)?;
    }
    let cookie = rustix::net::sockopt::socket_cookie(socket.as_fd())?;
    Ok(LabelledListener {
        label: ListenerLabel {
            role,
            index,
            family,
            cookie,
        },
        socket: Arc::new(socket.into()),
    })
}

/// Makes up to `count` unconnected sockets; at least one, or an error.
///
/// # Errors
/// When the pod lacks the family or not even one socket can be made.
pub fn unconnected(
    kind: SocketKind,
    family: Family,
    families: Families,
    count: u16,
) -> Result<Vec<OwnedFd>, SocketError> {
    let present = match family {
        Family::V4 => families.v4,
        Family::V6 => families.v6,
    };
    if !present {
        return Err(SocketError::Family(family));
    }
    let mut made = Vec::with_capacity(usize::from(count));
    for _ in 0..count.max(1) {
        match one_unconnected(kind, family) {
            Ok(socket) => made.push(socket),
            Err(source) if made.is_empty() => return Err(SocketError::Make { kind, source }),
            Err(_) => break,
        }
    }
    Ok(made)
}

fn one_unconnected(kind: SocketKind, family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = new_socket(domain, kind == SocketKind::Datagram)?;
    match kind {
        SocketKind::Outbound | SocketKind::Datagram => socket.set_mark(OUTBOUND_MARK)?,
        SocketKind::Delivery => {
            socket.set_mark(DELIVERY_MARK)?;
            set_transparent(&socket, domain)?;
            socket.set_reuse_address(true)?;
        }
    }
    if kind != SocketKind::Datagram {
        // Bound to an address alone, the port is chosen at connect: it need only be unique per
        // destination. The option is of level IP for IPv6 sockets too.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    }
    Ok(socket.into())
}

fn new_socket(domain: Domain, datagram: bool) -> io::Result<Socket> {
    let (kind, protocol) = if datagram {
        (Type::DGRAM, Protocol::UDP)
    } else {
        (Type::STREAM, Protocol::TCP)
    };
    Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
}

fn set_transparent(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 {
        socket.set_ip_transparent_v6(true)?;
    }
    // Also on IPv6 sockets, for v4-mapped addresses.
    socket.set_ip_transparent_v4(true)
}
