//! One call in all its aspects, so that two ways of capturing it can be compared.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Client, Request};
use millrace_testkit::raw::{End, exchange_half_closed};
use millrace_testkit::{Host, until};

const SOON: Duration = Duration::from_secs(10);

/// What can be seen of calls to a service, by the client and by the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The address that the client's socket says it is connected to.
    pub peer: SocketAddr,
    /// The HTTP status.
    pub status: u16,
    /// The pod that answered.
    pub server: String,
    /// The client's address as the server sees it.
    pub source: IpAddr,
    /// The server's own address and port, as the server sees them.
    pub destination: SocketAddr,
    /// The `host` that the server was asked for.
    pub host: Option<String>,
    /// Whether the proxy gave the request an id.
    pub request_id: bool,
    /// What came back over TCP after the client had half-closed.
    pub echoed: Vec<u8>,
    /// How the TCP connection ended.
    pub end: End,
}

/// Calls the HTTP port and the TCP echo port of a service from `client`.
pub fn observe(
    client: &Host,
    http: SocketAddr,
    host: &str,
    tcp: SocketAddr,
) -> anyhow::Result<Observed> {
    let stream = client.connect(http)?;
    let peer = stream.peer_addr().context("the peer's address")?;
    let response = Client::over(stream)?.send(&Request::get(host, "/observe"))?;
    ensure!(
        response.status == 200,
        "status {}: {}",
        response.status,
        response.text()
    );
    let seen = Seen::of(&response)?;
    let (echoed, end) = exchange_half_closed(&mut client.connect(tcp)?, b"to the end", SOON)?;
    Ok(Observed {
        peer,
        status: response.status,
        request_id: seen.header("x-request-id").is_some(),
        host: seen.header("host").map(str::to_owned),
        server: seen.server,
        source: seen.remote.ip().to_canonical(),
        destination: SocketAddr::new(seen.local.ip().to_canonical(), seen.local.port()),
        echoed,
        end,
    })
}

/// As [`observe`], again until the configuration has arrived and the call succeeds.
pub fn observe_soon(
    client: &Host,
    http: SocketAddr,
    host: &str,
    tcp: SocketAddr,
) -> anyhow::Result<Observed> {
    until(SOON, || observe(client, http, host, tcp))
}
