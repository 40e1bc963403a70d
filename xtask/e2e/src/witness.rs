//! A witness on the node's end of a pod's link: sees every frame that leaves the pod, however it was sent, and
//! keeps those that only a leak can explain.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use millrace_testkit::mesh::MeshNode;
use millrace_testkit::{Pod, until};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// How often the witness looks whether it may go.
const TICK: i64 = 20_000;
const SOON: Duration = Duration::from_secs(10);

/// A TCP segment or DNS question on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it comes from.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// 6 or 17.
    pub protocol: u8,
    /// The ports; 0 in fragments without any.
    pub ports: (u16, u16),
    /// The flags of TCP.
    pub flags: u8,
    /// How many bytes follow the headers.
    pub payload: usize,
}

impl Frame {
    /// What of a frame concerns capture: TCP, and UDP to port 53.
    fn parse(frame: &[u8]) -> Option<Self> {
        let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let packet = frame.get(14..)?;
        let (from, to, protocol, rest, first) = match kind {
            0x0800 => {
                let header = usize::from(*packet.first()? & 0xf) * 4;
                let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
                let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
                let address = |at: usize| -> Option<IpAddr> {
                    Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
                };
                let rest = packet.get(header..total.min(packet.len()))?;
                (
                    address(12)?,
                    address(16)?,
                    *packet.get(9)?,
                    rest,
                    offset == 0,
                )
            }
            0x86dd => {
                let address = |at: usize| -> Option<IpAddr> {
                    Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
                };
                let (protocol, rest, first) =
                    behind_extensions(*packet.get(6)?, packet.get(40..)?)?;
                (address(8)?, address(24)?, protocol, rest, first)
            }
            _ => return None,
        };
        let port = |at: usize| -> Option<u16> {
            Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]))
        };
        let ports = if first { (port(0)?, port(2)?) } else { (0, 0) };
        let is_tcp = i32::from(protocol) == libc::IPPROTO_TCP;
        let is_dns = i32::from(protocol) == libc::IPPROTO_UDP && ports.1 == 53;
        if !is_tcp && !is_dns {
            return None;
        }
        let header = if is_tcp && first {
            usize::from(*rest.get(12)? >> 4) * 4
        } else {
            8
        };
        Some(Self {
            from,
            to,
            protocol,
            ports,
            flags: if is_tcp && first { *rest.get(13)? } else { 0 },
            payload: rest.len().saturating_sub(header),
        })
    }
}

/// The protocol behind the extension headers of an IPv6 packet, what follows them, and whether that is its beginning
/// (RFC 8200, 4).
fn behind_extensions(mut next: u8, mut rest: &[u8]) -> Option<(u8, &[u8], bool)> {
    let mut first = true;
    loop {
        let length = match i32::from(next) {
            libc::IPPROTO_HOPOPTS | libc::IPPROTO_ROUTING | libc::IPPROTO_DSTOPTS => {
                8 + usize::from(*rest.get(1)?) * 8
            }
            libc::IPPROTO_FRAGMENT => {
                let offset = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) >> 3;
                first &= offset == 0;
                8
            }
            _ => return Some((next, rest, first)),
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
}

/// Watches until it is asked what it has seen.
#[derive(Debug)]
pub struct Witness {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<anyhow::Result<Vec<Frame>>>>,
    marker: Marker,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: AtomicU64,
    markers: AtomicU64,
}

/// How the witness is shown that it has seen all that left before: a datagram of the pod's that nothing captures.
#[derive(Debug)]
struct Marker {
    socket: std::net::UdpSocket,
    to: std::net::SocketAddr,
}

/// The marker's port: discard.
const MARKER: u16 = 9;

impl Witness {
    /// Watches the link of `pod`, which runs on `node`; keeps frames that satisfy `leaked`.
    pub fn start(
        node: &MeshNode,
        pod: &Pod,
        leaked: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let IpAddr::V4(address) = pod.ip() else {
            return Err(anyhow!("the pod has no IPv4 address"));
        };
        let device = format!("v{}", address.octets()[3]);
        let (socket, index) = node.run(|| {
            let index = nix::net::if_::if_nametoindex(device.as_str())
                .with_context(|| format!("no device {device}"))?;
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .context("a packet socket")?;
            Ok((socket, index))
        })?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, TICK))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || own.watch(&socket, index as usize, leaked));
        let any = std::net::Ipv4Addr::UNSPECIFIED.into();
        let marker = Marker {
            socket: pod.udp(std::net::SocketAddr::new(any, 0))?,
            to: std::net::SocketAddr::new(node.ip(), MARKER),
        };
        Ok(Self {
            shared,
            thread: Some(thread),
            marker,
        })
    }

    /// How many leaked frames were seen so far.
    pub fn leaks(&self) -> u64 {
        self.shared.seen.load(Ordering::Acquire)
    }

    /// Waits until the witness has seen everything that left the pod before this call.
    pub fn catch_up(&self) -> anyhow::Result<()> {
        let before = self.shared.markers.load(Ordering::Acquire);
        self.marker
            .socket
            .send_to(b"marker", self.marker.to)
            .context("a marker leaves the pod")?;
        until(SOON, || {
            let now = self.shared.markers.load(Ordering::Acquire);
            ensure!(now > before, "the witness has not seen the marker");
            Ok(())
        })
    }

    /// The leaked frames.
    pub fn stop(mut self) -> anyhow::Result<Vec<Frame>> {
        self.catch_up()?;
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("stopped once")?;
        thread.join().map_err(|_| anyhow!("the witness panicked"))?
    }

    /// Fails if anything leaked.
    pub fn saw_nothing(self) -> anyhow::Result<()> {
        let leaked = self.stop()?;
        ensure!(
            leaked.is_empty(),
            "{} frames leaked, the first: {:?}",
            leaked.len(),
            leaked.iter().take(5).collect::<Vec<_>>()
        );
        Ok(())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn watch(
        &self,
        socket: &OwnedFd,
        device: usize,
        leaked: impl Fn(&Frame) -> bool,
    ) -> anyhow::Result<Vec<Frame>> {
        let mut kept = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while !self.stop.load(Ordering::Acquire) {
            let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => (length, from),
                Ok((_, None)) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error).context("the witness cannot look"),
            };
            let to_the_pod = from.pkttype() == libc::PACKET_OUTGOING;
            if from.ifindex() != device || to_the_pod {
                continue;
            }
            let frame = &buffer[..length];
            if is_marker(frame) {
                self.markers.fetch_add(1, Ordering::Release);
            }
            if let Some(frame) = Frame::parse(frame)
                && leaked(&frame)
            {
                kept.push(frame);
                self.seen.fetch_add(1, Ordering::Release);
            }
        }
        Ok(kept)
    }
}

fn is_marker(frame: &[u8]) -> bool {
    let udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    udp && frame.get(36..38) == Some(&MARKER.to_be_bytes())
}
