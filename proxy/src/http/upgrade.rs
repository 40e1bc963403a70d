//! Upgraded connections: WebSocket and other protocols, and CONNECT.
//!
//! Once both sides have agreed, their streams are copied into each other until both directions
//! have ended. The request's record is written then, with the bytes that went through.

use std::io;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::exchange::Exchange;
use crate::cluster::Permit;
use crate::cluster::host::Active;
use crate::flags::ResponseFlags;
use crate::resource::HttpConnectionManager;
use crate::resource::RouteAction;
use crate::upstream::attempt::Lease;
use crate::upstream::connect::UpstreamStream;

/// Bytes in flight in each direction.
const BUFFER: usize = 16 << 10;

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

/// Runs a tunnel to its end on a task of its own.
pub fn spawn(near: OnUpgrade, far: Far, mut exchange: Box<Exchange>) {
    if !exchange.downstream.h2 {
        exchange.downstream.io.upgraded();
    }
    tokio::task::spawn_local(async move {
        let near = match near.await {
            Ok(near) => TokioIo::new(near),
            Err(error) => {
                tracing::debug!(%error, "the client went away before the upgrade");
                return;
            }
        };
        let result = match far {
            Far::Plain(far) => {
                let (stream, _connection, _request) = *far;
                run(near, stream, &mut exchange).await
            }
            Far::Upgraded(far) => {
                let (upgrade, mut lease, _active) = *far;
                if let Lease::H1(conn) = &mut lease {
                    conn.upgrade();
                }
                match upgrade.await {
                    Ok(far) => run(near, TokioIo::<Upgraded>::new(far), &mut exchange).await,
                    Err(error) => Err(io::Error::other(error)),
                }
            }
        };
        exchange.complete = true;
        if let Err(error) = result {
            tracing::debug!(%error, "a tunnel broke off");
            exchange
                .flags
                .insert(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
        }
    });
}

async fn run(
    near: impl AsyncRead + AsyncWrite + Unpin,
    far: impl AsyncRead + AsyncWrite + Unpin,
    exchange: &mut Exchange,
) -> io::Result<()> {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let idle = exchange.clock.idle();
    let last = std::cell::Cell::new(Instant::now());
    let (up, down) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let both = async {
        tokio::try_join!(
            copy(&mut near_read, &mut far_write, &up, &last),
            copy(&mut far_read, &mut near_write, &down, &last),
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

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &std::cell::Cell<u64>,
    last: &std::cell::Cell<Instant>,
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
async fn quiet(idle: Duration, last: &std::cell::Cell<Instant>) {
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
