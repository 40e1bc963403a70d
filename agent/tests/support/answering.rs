//! A proxy written by hand that answers canaries, sends questions back as they are and keeps every other
//! connection for the test.
#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test binary uses its part, and helpers of tests may panic"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use millrace_runtime::handoff::{
    CANARY_PORT, HEARTBEAT_INTERVAL, ListenerLabel, ListenerRole, PodUid, ProxyRequest, ToProxy,
    canary_answer, is_canary,
};
use nix::sys::socket::{getsockopt, sockopt};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{Proxy, canonical};

/// A connection that is no canary.
pub(crate) struct Arrived {
    /// Where it was going.
    pub(crate) to: SocketAddr,
    /// Outbound or inbound.
    pub(crate) role: ListenerRole,
    pub(crate) stream: TcpStream,
}

/// The proxy; it ends with the value.
pub(crate) struct Answering {
    /// Everything but canaries.
    pub(crate) arrived: mpsc::UnboundedReceiver<Arrived>,
    held: Held,
    alive: JoinHandle<()>,
}

type Held = Arc<Mutex<HashMap<u64, (ListenerLabel, OwnedFd)>>>;

impl Answering {
    pub(crate) async fn start(socket: &Path, epoch: u32) -> Self {
        let proxy = Proxy::greet(socket, epoch, 1).await;
        proxy.say(ProxyRequest::Ready).await;
        let (sender, arrived) = mpsc::unbounded_channel();
        let held = Held::default();
        let alive = tokio::spawn(serve(proxy, sender, Arc::clone(&held)));
        Self {
            arrived,
            held,
            alive,
        }
    }

    /// The next connection of an application.
    pub(crate) async fn next(&mut self) -> Arrived {
        let next = self.arrived.recv();
        let next = tokio::time::timeout(crate::agent::PATIENCE, next).await;
        next.expect("a connection arrives").expect("served")
    }

    /// Ends the listening sockets of a role for every holder, as `ss -K` would; says how many.
    pub(crate) fn end(&self, role: ListenerRole) -> usize {
        let held = self.held.lock();
        let listening = held.values().filter(|(label, fd)| {
            label.role == role
                && !role.is_datagram()
                && getsockopt(fd, sockopt::AcceptConn).expect("state")
        });
        let ended = listening.map(|(_, fd)| {
            let fd = fd.try_clone().expect("duplicate");
            nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&fd),
                nix::sys::socket::Shutdown::Both,
            )
            .expect("ended");
        });
        ended.count()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

async fn serve(proxy: Proxy, sender: mpsc::UnboundedSender<Arrived>, held: Held) {
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    let mut accepting = JoinSet::new();
    loop {
        let received = tokio::select! {
            _ = beats.tick() => {
                proxy.say(ProxyRequest::Heartbeat).await;
                continue;
            }
            received = proxy.hear_or_end() => received,
        };
        let Some(received) = received else { return };
        let (uid, labels) = match received.message {
            ToProxy::PodUp { pod, listeners, .. } => (pod.uid, listeners),
            ToProxy::Listeners { uid, listeners } => (uid, listeners),
            _ => continue,
        };
        for (label, fd) in labels.into_iter().zip(received.fds) {
            let mut held = held.lock();
            if held.contains_key(&label.cookie) {
                continue;
            }
            let listener = fd.try_clone().expect("duplicate");
            held.insert(label.cookie, (label, fd));
            if label.role.is_datagram() {
                let socket = UdpSocket::from_std(listener.into()).expect("socket");
                accepting.spawn(echo(socket));
                continue;
            }
            let listener = std::net::TcpListener::from(listener);
            let listener = TcpListener::from_std(listener).expect("listener");
            accepting.spawn(accept(listener, label.role, uid.clone(), sender.clone()));
        }
    }
}

async fn echo(socket: UdpSocket) {
    let mut bytes = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
        // Who has asked may be gone.
        socket.send_to(&bytes[..length], from).await.ok();
    }
}

async fn accept(
    listener: TcpListener,
    role: ListenerRole,
    uid: PodUid,
    sender: mpsc::UnboundedSender<Arrived>,
) {
    // An error means that the socket was ended.
    while let Ok((mut stream, _)) = listener.accept().await {
        let Some(to) = destination(&stream) else {
            continue;
        };
        let canary = match role {
            ListenerRole::Outbound => is_canary(to.ip()),
            _ => to.port() == CANARY_PORT,
        };
        if canary {
            let answer = canary_answer(&uid);
            // The agent may have given up.
            stream.write_all(answer.as_bytes()).await.ok();
        } else {
            sender.send(Arrived { to, role, stream }).ok();
        }
    }
}

/// The local address of a steered connection, else what it was redirected from.
fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    if ![15001, 15006, 15053].contains(&local.port()) {
        return Some(local);
    }
    let stream = stream.as_fd();
    if local.is_ipv4() {
        let raw = getsockopt(&stream, sockopt::OriginalDst).ok()?;
        let ip = std::net::Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        Some(SocketAddr::new(ip.into(), u16::from_be(raw.sin_port)))
    } else {
        let raw = getsockopt(&stream, sockopt::Ip6tOriginalDst).ok()?;
        let ip = std::net::Ipv6Addr::from(raw.sin6_addr.s6_addr);
        Some(SocketAddr::new(ip.into(), u16::from_be(raw.sin6_port)))
    }
}
