//! `cargo xtask backend`: the server behind every path of the bench. One thread answers fixed bodies
//! over HTTP/1.1 and HTTP/2 (without TLS), and echoes TCP, so that what is measured is the path; streams
//! have threads of their own.

mod connection;
mod http1;
mod http2;
pub(crate) mod stream;

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use connection::{Connection, Protocol};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where HTTP/1.1 is served: `/1k`, `/1mib` and `/bytes/N`.
    #[arg(long)]
    http: SocketAddr,
    /// Where HTTP/2 is served, with prior knowledge.
    #[arg(long)]
    http2: SocketAddr,
    /// Where bytes are echoed.
    #[arg(long)]
    tcp: SocketAddr,
    /// Where the first bytes are echoed and the connection is closed.
    #[arg(long)]
    once: SocketAddr,
    /// Where bytes are read and forgotten.
    #[arg(long)]
    sink: SocketAddr,
    /// Where bytes are written without end.
    #[arg(long)]
    source: SocketAddr,
}

/// Body lengths of the two resources that have a name.
const SMALL: usize = 1024;
const LARGE: usize = 1024 * 1024;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let listen = |at: SocketAddr, protocol: NewProtocol| {
        let listener = TcpListener::bind(at).with_context(|| format!("binding {at}"))?;
        listener.set_nonblocking(true).context("non-blocking")?;
        anyhow::Ok(Service { listener, protocol })
    };
    stream::sink(args.sink)?;
    stream::source(args.source)?;
    let services = [
        listen(args.http, || Protocol::Http1(http1::Http1::default()))?,
        listen(args.http2, || Protocol::Http2(http2::Http2::default()))?,
        listen(args.tcp, || Protocol::Echo)?,
        listen(args.once, || Protocol::Once)?,
    ];
    serve(&services)
}

/// Makes the state of a new connection.
type NewProtocol = fn() -> Protocol;

struct Service {
    listener: TcpListener,
    protocol: NewProtocol,
}

fn serve(services: &[Service]) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    for (index, service) in services.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        epoll
            .add(&service.listener, event)
            .context("adding a listener to epoll")?;
    }
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("epoll_wait")?,
        };
        for event in &events[..ready] {
            let token = usize::try_from(event.data()).unwrap_or_default();
            if let Some(service) = services.get(token) {
                while let Ok((stream, _)) = service.listener.accept() {
                    let slot = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    let token = (slot + services.len()) as u64;
                    connections[slot] =
                        Connection::start(&epoll, stream, token, (service.protocol)()).ok();
                }
                continue;
            }
            let slot = token - services.len();
            let open = connections[slot]
                .as_mut()
                .is_some_and(|it| it.progress(&mut buffer).is_ok());
            if !open && connections[slot].take().is_some() {
                free.push(slot);
            }
        }
    }
}
