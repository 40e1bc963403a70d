//! DNS over TCP: several questions on one connection, answered in their order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::forward::{Transport, read_message, write_message};
use super::message::{self, Decision, Limit};
use super::{Client, Dns, Outcome};
use crate::socket::canonical;

/// A connection without a question for this long is closed (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Connections of one socket at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Port of DNS.
const PORT: u16 = 53;

/// Serves a listening socket; returns when the last question that came by then is answered.
pub(super) async fn serve(
    dns: Arc<Dns>,
    listener: TcpListener,
    client: Client,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            break;
        };
        while connections.try_join_next().is_some() {}
        // biased: a stop must not lose against a busy listener.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (dns, client, stop) = (dns.clone(), client.clone(), stop.clone());
                connections.spawn(async move {
                    if let Err(error) = connection(&dns, stream, &client, &stop).await {
                        tracing::debug!(%error, "DNS connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    dns: &Dns,
    mut stream: TcpStream,
    client: &Client,
    stop: &CancellationToken,
) -> io::Result<()> {
    let asked = original_destination(&stream)?;
    let own = Arc::new(Semaphore::new(1));
    loop {
        // biased: a question that is there is answered. Who is idle asks anew elsewhere.
        let query = tokio::select! {
            biased;
            query = timeout(IDLE, read_message(&mut stream)) => query,
            () = stop.cancelled() => return Ok(()),
        };
        let Ok(query) = query else { return Ok(()) };
        let Some(query) = query? else { return Ok(()) };
        let answer = match dns.decide(&query, client, Limit::Stream) {
            Decision::Drop => return Ok(()),
            Decision::Refuse(answer) | Decision::Answer(answer) => answer,
            Decision::Forward => {
                if let Some(_permits) = dns.admit(&own) {
                    dns.forward(&query, client, asked, Transport::Tcp).await
                } else {
                    dns.stats.count(Outcome::Overloaded);
                    message::failure(&query)
                }
            }
        };
        write_message(&mut stream, &answer).await?;
    }
}

/// The resolver that the client meant, where the connection was redirected from one.
fn original_destination(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let local = canonical(stream.local_addr()?);
    let socket = SockRef::from(stream);
    let found = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let address = found.ok().and_then(|address| address.as_socket());
    Ok(address
        .map(canonical)
        .filter(|a| *a != local && a.port() == PORT && !a.ip().is_loopback()))
}
