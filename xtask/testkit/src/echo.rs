//! Servers that tell what reached them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::http::{Request, Response, Server};

/// What an HTTP echo server saw of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The name given to the server.
    pub server: String,
    /// The request's method.
    pub method: String,
    /// The request's target.
    pub path: String,
    /// The request's headers in order.
    pub headers: Vec<(String, String)>,
    /// The length of the request's body.
    pub body_length: usize,
    /// The client's address.
    pub remote: SocketAddr,
    /// The server's own address.
    pub local: SocketAddr,
}

impl Seen {
    /// Reads what an echo server answered.
    pub fn of(response: &Response) -> anyhow::Result<Self> {
        serde_json::from_slice(&response.body)
            .with_context(|| format!("{}: {}", response.status, response.text()))
    }

    /// The first value of a request header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Answers every request with a [`Seen`] in JSON and its name in `x-server`.
///
/// A request may choose the answer: `x-echo-status` its status, `x-echo-bytes` a body of that many
/// bytes instead.
pub fn http(listener: TcpListener, name: &str) -> anyhow::Result<Server> {
    let name = name.to_owned();
    Server::http(listener, move |request, peer| {
        let seen = Seen {
            server: name.clone(),
            method: request.method.clone(),
            path: request.path.clone(),
            headers: request.headers.0.clone(),
            body_length: request.body.len(),
            remote: peer.remote,
            local: peer.local,
        };
        let asked = |header| {
            request
                .headers
                .first(header)
                .and_then(|value| value.parse().ok())
        };
        let status = asked("x-echo-status").and_then(|s: usize| u16::try_from(s).ok());
        let body = match asked("x-echo-bytes") {
            Some(length) => vec![b'x'; length],
            None => serde_json::to_vec(&seen).unwrap_or_default(),
        };
        Response::new(status.unwrap_or(200), body).header("x-server", &name)
    })
}

/// Sends back every byte; the end of its input ends its output.
pub fn tcp(listener: TcpListener) -> anyhow::Result<Server> {
    Server::start(listener, |mut stream, _| {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
        stream.shutdown(Shutdown::Write).ok();
    })
}

/// Speaks first, as a mail server does, and then echoes.
pub fn banner(listener: TcpListener, banner: &str) -> anyhow::Result<Server> {
    let banner = banner.to_owned();
    Server::start(listener, move |mut stream, _| {
        if stream.write_all(banner.as_bytes()).is_err() {
            return;
        }
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    })
}

/// A request to an echo server, and what that saw of it.
pub fn ask(
    client: &mut crate::http::Client,
    request: &Request,
) -> anyhow::Result<(Response, Seen)> {
    let response = client.send(request)?;
    let seen = Seen::of(&response)?;
    Ok((response, seen))
}
