//! DNS over UDP. An answer must leave from the address that the question came to, which on a
//! socket bound to every address only the packet's own information tells (`IP_PKTINFO`).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::forward::Transport;
use super::message::{self, Decision, Limit};
use super::{Client, Dns, MAX_PER_SOCKET, Outcome};

/// Largest question that is read; real ones have a few hundred bytes.
const MAX_QUERY: usize = 4096;

/// A bound datagram socket.
pub(super) struct Socket {
    io: UdpSocket,
}

/// A question as it came in.
struct Received {
    bytes: Vec<u8>,
    peer: SockaddrStorage,
    /// The address it was sent to.
    to: Option<IpAddr>,
}

impl Socket {
    /// Prepares a bound socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let domain = socket2::SockRef::from(&fd).domain()?;
        if domain == socket2::Domain::IPV6 {
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        }
        let socket = std::net::UdpSocket::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self {
            io: UdpSocket::from_std(socket)?,
        })
    }

    async fn receive(&self) -> io::Result<Received> {
        let read = || receive(self.io.as_raw_fd());
        self.io.async_io(Interest::READABLE, read).await
    }

    async fn send(&self, bytes: &[u8], to: &Received) -> io::Result<()> {
        let write = || send(self.io.as_raw_fd(), bytes, to);
        self.io.async_io(Interest::WRITABLE, write).await
    }
}

/// Serves a socket.
pub(super) async fn serve(dns: Arc<Dns>, socket: Socket, client: Client, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let own = Arc::new(Semaphore::new(MAX_PER_SOCKET));
    loop {
        // biased: a stop must not lose against a busy socket.
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = socket.receive() => received,
        };
        match received {
            Ok(received) => question(&dns, &socket, &client, received, &own).await,
            Err(error) => {
                // An ICMP error of an earlier answer; the socket itself goes on.
                tracing::debug!(%error, "question not received");
            }
        }
    }
}

async fn question(
    dns: &Arc<Dns>,
    socket: &Arc<Socket>,
    client: &Client,
    received: Received,
    own: &Arc<Semaphore>,
) {
    match dns.decide(&received.bytes, client, Limit::Datagram) {
        Decision::Drop => {}
        Decision::Refuse(answer) | Decision::Answer(answer) => {
            reply(socket, &answer, &received).await;
        }
        Decision::Forward => {
            let Some(permits) = dns.admit(own) else {
                dns.stats.count(Outcome::Overloaded);
                reply(socket, &message::failure(&received.bytes), &received).await;
                return;
            };
            let tasks = dns.tasks.clone();
            let (dns, socket, client) = (dns.clone(), socket.clone(), client.clone());
            // Ends by itself within the time that `forward` allows.
            tasks.spawn(async move {
                let query = &received.bytes;
                let answer = dns.forward(query, &client, None, Transport::Udp).await;
                reply(&socket, &answer, &received).await;
                drop(permits);
            });
        }
    }
}

async fn reply(socket: &Socket, answer: &[u8], to: &Received) {
    if let Err(error) = socket.send(answer, to).await {
        tracing::debug!(%error, "answer not sent");
    }
}

fn receive(fd: RawFd) -> io::Result<Received> {
    let mut bytes = vec![0; MAX_QUERY];
    // The broker asks for both: a dual-stack socket then tells of an IPv4 datagram twice.
    let mut space = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let (length, peer, to) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut space), MsgFlags::empty())?;
        let to = message.cmsgs()?.find_map(|cmsg| match cmsg {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::V4(Ipv4Addr::from(
                u32::from_be(info.ipi_addr.s_addr),
            ))),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
            }
            _ => None,
        });
        (message.bytes, message.address, to)
    };
    let peer = peer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    bytes.truncate(length);
    Ok(Received { bytes, peer, to })
}

fn send(fd: RawFd, bytes: &[u8], to: &Received) -> io::Result<()> {
    let slices = [IoSlice::new(bytes)];
    let v4 = match to.to {
        Some(IpAddr::V4(ip)) => Some(libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from(ip).to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        }),
        _ => None,
    };
    let v6 = match to.to {
        Some(IpAddr::V6(ip)) => Some(libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: ip.octets(),
            },
            ipi6_ifindex: 0,
        }),
        _ => None,
    };
    let v4 = v4.as_ref().map(ControlMessage::Ipv4PacketInfo);
    let source = v6.as_ref().map(ControlMessage::Ipv6PacketInfo).or(v4);
    sendmsg(
        fd,
        &slices,
        source.as_slice(),
        MsgFlags::empty(),
        Some(&to.peer),
    )?;
    Ok(())
}
