//! Upgraded connections: WebSocket and other protocols, and CONNECT.
//!
//! Once both sides have agreed, their streams are copied into each other until both directions
//! have ended. The request's record is written then, with the bytes that went through. Between two
//! HTTP/1 connections a tunnel is two sockets like raw TCP, and is handed to the next epoch like it; one
//! that is a stream of an HTTP/2 connection ends with that.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::io::SharedIo;
use crate::cluster::Permit;
use crate::cluster::host::Active;
use crate::flags::ResponseFlags;
use crate::handover::message::{Carried, Parcel};
use crate::handover::parcel::{self, Contents};
use crate::resource::HttpConnectionManager;
use crate::resource::RouteAction;
use crate::socket::Stream;
use crate::tcp::copy::{Copied, End, Progress, Side, Terms, copy};
use crate::upstream::attempt::{Lease, Outgoing};
use crate::upstream::connect::UpstreamStream;

/// Bytes in flight in each direction.
const BUFFER: usize = 16 << 10;

/// The protocol that a request wants to change to; CONNECT counts as one.
pub fn asked(head: &Outgoing) -> Option<String> {
    match &head.upgrade {
        Some(value) => Some(value.to_str().unwrap_or_default().to_owned()),
        None if head.method == Method::CONNECT => Some("connect".to_owned()),
        None => None,
    }
}

/// Whether a request may switch to `protocol` (lower case; `connect` for CONNECT): the route
/// decides, else the connection manager.
pub fn is_allowed(protocol: &str, hcm: &HttpConnectionManager, route: &RouteAction) -> bool {
    route
        .upgrades
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(protocol))
        .map_or_else(
            || {
                hcm.upgrades
                    .iter()
                    .any(|name| name.eq_ignore_ascii_case(protocol))
            },
            |(_, enabled)| *enabled,
        )
}

/// The upstream end of a tunnel.
pub enum Far {
    /// An HTTP connection that has switched protocols.
    Upgraded(Box<(OnUpgrade, Lease, (Active, Permit))>),
    /// A plain connection, for CONNECT.
    Plain(Box<(UpstreamStream, Active, Active)>),
}

/// Runs a tunnel to its end on a task of its own, which the worker waits for.
pub fn spawn(near: OnUpgrade, far: Far, exchange: Box<Exchange>) {
    let downstream = exchange.downstream.clone();
    if !downstream.h2 {
        downstream.io.upgraded();
    }
    downstream.worker.tasks.spawn_local(async move {
        let near = match near.await {
            Ok(near) => bare(near),
            Err(error) => {
                tracing::debug!(%error, "the client went away before the upgrade");
                return;
            }
        };
        match far {
            Far::Plain(far) => {
                let (stream, connection, request) = *far;
                tie(
                    near,
                    Bare::Socket(Box::new(stream)),
                    exchange,
                    (connection, request),
                )
                .await;
            }
            Far::Upgraded(far) => {
                let (upgrade, mut lease, active) = *far;
                if let Lease::H1(conn) = &mut lease {
                    conn.upgrade();
                }
                match upgrade.await {
                    Ok(far) => tie(near, bare(far), exchange, (lease, active)).await,
                    Err(error) => finish(exchange, Err(io::Error::other(error))),
                }
            }
        }
    });
}

/// One end of a tunnel.
enum Bare {
    /// A socket, with what was read of it put back.
    Socket(Box<Stream>),
    /// A stream of an HTTP/2 connection.
    Framed(Upgraded),
    /// A connection that somebody else has taken.
    Gone,
}

fn bare(upgraded: Upgraded) -> Bare {
    let parts = match upgraded.downcast::<TokioIo<SharedIo>>() {
        Ok(parts) => parts,
        Err(upgraded) => return Bare::Framed(upgraded),
    };
    let io = parts.io.into_inner();
    match io.take_stream() {
        Some(mut stream) => {
            stream.unread(parts.read_buf);
            Bare::Socket(Box::new(stream))
        }
        None => Bare::Gone,
    }
}

/// Copies two streams into each other; `guard` is held for as long as that takes.
async fn tie<G>(near: Bare, far: Bare, mut exchange: Box<Exchange>, guard: G) {
    match (near, far) {
        (Bare::Socket(near), Bare::Socket(far)) => {
            let tunnel = Tunnel {
                near,
                far,
                exchange,
                progress: Progress::default(),
                counts: (Cell::new(0), Cell::new(0)),
            };
            tunnel.run(guard).await;
        }
        (near, far) => {
            let result = match (any(near), any(far)) {
                (Some(near), Some(far)) => run(near, far, &mut exchange).await,
                _ => Err(io::ErrorKind::NotConnected.into()),
            };
            drop(guard);
            finish(exchange, result);
        }
    }
}

/// Something to read and write, whatever it is.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

fn any(end: Bare) -> Option<Box<dyn Duplex>> {
    match end {
        Bare::Socket(stream) => Some(stream),
        Bare::Framed(upgraded) => Some(Box::new(TokioIo::new(upgraded))),
        Bare::Gone => None,
    }
}

fn finish(mut exchange: Box<Exchange>, result: io::Result<()>) {
    exchange.complete = true;
    if let Err(error) = result {
        tracing::debug!(%error, "a tunnel broke off");
        exchange
            .flags
            .insert(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
    }
}

/// A tunnel between two sockets, which may go on in the next epoch of the proxy.
pub struct Tunnel {
    /// The client's.
    pub near: Box<Stream>,
    /// The endpoint's.
    pub far: Box<Stream>,
    /// The request that asked for it.
    pub exchange: Box<Exchange>,
    /// What lies between.
    pub progress: Progress,
    /// Bytes from the client and to it.
    pub counts: (Cell<u64>, Cell<u64>),
}

impl Tunnel {
    /// Runs until the tunnel has ended or is handed over; `guard` is held for as long.
    pub async fn run<G>(mut self, guard: G) {
        let worker = self.exchange.downstream.worker.clone();
        let mut parking = worker.parking();
        let end = loop {
            let (received, sent) = &self.counts;
            let terms = Terms {
                scratch: &worker.scratch,
                idle_timeout: self.exchange.clock.idle(),
                passed: |side, n: usize| {
                    let count = match side {
                        Side::Downstream => received,
                        Side::Upstream => sent,
                    };
                    count.set(count.get() + n as u64);
                },
            };
            let park = parking.turn();
            let (near, far) = (&mut self.near, &mut self.far);
            match copy(near, far, &mut self.progress, &terms, park).await {
                Copied::Ended(end) => break end,
                Copied::Parked(turn) => {
                    let (parcel, contents) = self.pack();
                    if parking.give(turn, parcel, contents).await {
                        self.near.let_go();
                        self.far.let_go();
                        return self.exchange.hand_over();
                    }
                }
            }
        };
        drop((self.near, self.far, guard));
        let mut exchange = self.exchange;
        exchange.tunnelled(self.counts.0.get(), self.counts.1.get());
        exchange.flags.insert(match &end {
            End::Finished => ResponseFlags::NONE,
            End::Idle => ResponseFlags::STREAM_IDLE_TIMEOUT,
            End::Reset(Side::Downstream, _) => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            End::Reset(Side::Upstream, _) => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        });
        tracing::debug!(?end, "a tunnel ended");
        finish(exchange, Ok(()));
    }

    /// The tunnel as the next epoch gets it.
    fn pack(&self) -> (Parcel, Option<Contents>) {
        let exchange = &self.exchange;
        let cluster = exchange.cluster.as_ref().map(|c| c.name().to_string());
        let host = exchange.host.as_ref().map(|host| host.address());
        // A tunnel has both; without them nobody could go on with it.
        let contents = (cluster.is_some() && host.is_some())
            .then(|| Contents::of_pair(&self.near, &self.far, &self.progress));
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let to = (
            cluster.unwrap_or_default(),
            host.unwrap_or(unknown),
            exchange.attempts,
        );
        let counts = (self.counts.0.get(), self.counts.1.get());
        let pair = parcel::pair(to, &self.far, &self.progress, counts);
        let request = Box::new(exchange.tunnel());
        let downstream = &exchange.downstream;
        let carried = Carried::Tunnel { pair, request };
        let parcel = parcel::describe(&downstream.worker, &downstream.info, &self.near, carried);
        (parcel, contents.flatten())
    }
}

async fn run(
    near: impl AsyncRead + AsyncWrite + Unpin,
    far: impl AsyncRead + AsyncWrite + Unpin,
    exchange: &mut Exchange,
) -> io::Result<()> {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let idle = exchange.clock.idle();
    let last = Cell::new(Instant::now());
    let (up, down) = (Cell::new(0), Cell::new(0));
    let both = async {
        tokio::try_join!(
            forward(&mut near_read, &mut far_write, &up, &last),
            forward(&mut far_read, &mut near_write, &down, &last),
        )
    };
    // biased: what has arrived counts before the time that has passed.
    let result = tokio::select! {
        biased;
        result = both => result.map(|_| ()),
        () = quiet(idle, &last) => {
            exchange.flags.insert(ResponseFlags::STREAM_IDLE_TIMEOUT);
            Ok(())
        }
    };
    exchange.tunnelled(up.get(), down.get());
    result
}

async fn forward(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &Cell<u64>,
    last: &Cell<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        last.set(Instant::now());
        to.write_all(&buffer[..n]).await?;
        count.set(count.get() + n as u64);
    }
}

/// Completes when nothing has happened for `idle`; never where that is zero.
async fn quiet(idle: Duration, last: &Cell<Instant>) {
    if idle.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let deadline = last.get() + idle;
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}
