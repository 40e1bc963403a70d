//! What the guard is told of programs outside of it: that inbound connections of the pod are steered, and which
//! addresses are the node's own.
//!
//! The programs of a pod captured by eBPF decide who reaches the application; when they are gone with everything
//! else of Millrace's, the guard has to. It cannot see them, so the broker tells it again and again, by a datagram
//! that only rules see.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

use super::script::STEERED_BIT;
use crate::bpf::Steering;

/// Port of the datagrams: discard.
const DISCARD: u16 = 9;
/// Most addresses of the node: a load balancer may give it one for each service.
const MOST: usize = 1024;

/// Tells the guard of one pod.
#[derive(Debug)]
pub struct Steered {
    socket: Socket,
    to: Vec<SocketAddr>,
}

impl Steered {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn open(mark: u32) -> io::Result<Self> {
        let v4 = Ipv4Addr::LOCALHOST;
        let (socket, to) = match Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), None) {
            Ok(socket) => (
                socket,
                vec![v4.to_ipv6_mapped().into(), Ipv6Addr::LOCALHOST.into()],
            ),
            Err(_) => (
                Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None)?,
                vec![IpAddr::from(v4)],
            ),
        };
        socket.set_mark(mark | STEERED_BIT)?;
        let at = |ip| SocketAddr::new(ip, DISCARD);
        Ok(Self {
            socket,
            to: to.into_iter().map(at).collect(),
        })
    }

    /// Tells it, if one of the programs is attached to `netns`.
    pub fn tell(&self, netns: BorrowedFd<'_>, programs: &mut Steering) {
        match programs.is_steered(netns) {
            Ok(true) => {}
            Ok(false) => return,
            // A kernel that does not say is believed to have it: strangers are then judged by the programs alone.
            Err(error) => tracing::debug!(%error, "whether a pod is steered cannot be asked"),
        }
        for to in &self.to {
            // Rules that have heard it drop it, and its sender is told so.
            match self.socket.send_to(&[], &(*to).into()) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                heard => {
                    tracing::debug!(?heard, %to, "the guard has not heard that a pod is steered");
                }
            }
        }
    }
}

/// Addresses from which the node itself reaches its pods: those of this process's own namespace and of the node's
/// first process.
pub(super) fn node_addresses() -> Vec<IpAddr> {
    let own = format!("/proc/{}/ns/net", std::process::id());
    let mut found: Vec<IpAddr> = [own.as_str(), "/proc/1/ns/net"]
        .into_iter()
        .flat_map(addresses_in)
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST);
    found
}

fn addresses_in(namespace: &str) -> Vec<IpAddr> {
    // A thread of its own: what it enters, it does not leave.
    let found = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
            Ok(getifaddrs()?
                .filter_map(|interface| address(&interface))
                .collect())
        });
        asked
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread died")))
    });
    found.unwrap_or_else(|error: io::Error| {
        tracing::debug!(namespace, %error, "addresses of the node are not known");
        Vec::new()
    })
}

fn address(interface: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
    let local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    v4.or(v6).filter(|ip| !local(ip))
}
