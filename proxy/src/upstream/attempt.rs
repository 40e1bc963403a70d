//! One try: a connection, the request in the form of its protocol, the head of the response.
//!
//! A request is not lost because the upstream closed an idle connection. When a reused connection
//! dies before a byte of the response, the request is sent again on a new one if the upstream
//! cannot have read it: hyper gives back what it has not written, and of what was written the
//! kernel knows whether the upstream had closed the connection before it came. Where that is not
//! certain, only a request that may be executed twice is repeated (RFC 9110 section 9.2.2).

use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use hyper::body::{Body, Incoming};
use hyper::ext::Protocol;

use super::failure::Failure;
use super::pool::Target;
use super::pool_h1::{H1Conn, SendError};
use super::pool_h2::{H2Lease, h2_error, is_refused};
use super::replay::{AttemptBody, Replay};
use crate::pods::LocalPod;
use crate::route::Head;
use crate::route::retry::is_idempotent;
use crate::worker::Worker;

/// How often a request is sent again of which the upstream received nothing.
const MAX_RESENDS: u32 = 2;

/// A request's head in the form that both protocols can be made from.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// `:method`.
    pub method: Method,
    /// `:path`.
    pub path: PathAndQuery,
    /// `:authority`.
    pub authority: HeaderValue,
    /// `:scheme`.
    pub scheme: Scheme,
    /// All other headers, none of them hop-by-hop.
    pub headers: HeaderMap,
    /// The protocol to change to.
    pub upgrade: Option<HeaderValue>,
}

impl Outgoing {
    /// What routing looks at.
    pub fn to_route(&self) -> Head<'_> {
        Head {
            method: &self.method,
            path: self.path.as_str(),
            authority: self.authority.to_str().unwrap_or_default(),
            scheme: self.scheme.as_str(),
            headers: &self.headers,
        }
    }
}

/// A connection, or a stream's part of one, for as long as a response is read from it.
pub enum Lease {
    /// A whole HTTP/1.1 connection.
    H1(Box<H1Conn>),
    /// A stream of an HTTP/2 connection.
    H2(H2Lease),
}

impl Lease {
    /// This end's address.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(conn) => conn.local(),
            Self::H2(lease) => lease.local(),
        }
    }

    /// The pod of this node that it leads into.
    pub fn delivery(&self) -> Option<Arc<LocalPod>> {
        match self {
            Self::H1(conn) => conn.delivery().cloned(),
            Self::H2(lease) => lease.delivery(),
        }
    }

    fn is_reused(&self) -> bool {
        match self {
            Self::H1(conn) => conn.is_reused(),
            Self::H2(lease) => lease.is_reused(),
        }
    }

    async fn send(
        &mut self,
        request: Request<AttemptBody>,
    ) -> Result<Response<Incoming>, Box<SendError>> {
        match self {
            Self::H1(conn) => conn.send(request).await,
            Self::H2(lease) => lease.send(request).await,
        }
    }
}

/// Sends the request to a host and waits for the head of the response.
///
/// # Errors
/// Where no response begins; what was reserved is given back.
pub async fn attempt(
    worker: &Worker,
    target: &Target,
    h2: bool,
    head: &Outgoing,
    body: &Replay,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let mut fresh = false;
    let mut left = MAX_RESENDS;
    loop {
        let mut lease = checkout(worker, target, h2, fresh).await?;
        let request = request(head, h2, body.attempt())?;
        let failed = match lease.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(failed) => failed,
        };
        tracing::debug!(
            upstream = %target.host.address(), reused = lease.is_reused(), error = %failed.error,
            unreceived = failed.unreceived, "upstream gave no response"
        );
        if let Lease::H2(lease) = &lease {
            lease.retire();
        }
        if left == 0 || !may_resend(&failed, lease.is_reused(), head, body) {
            return Err(classify(*failed, body));
        }
        left -= 1;
        fresh = true;
    }
}

async fn checkout(
    worker: &Worker,
    target: &Target,
    h2: bool,
    fresh: bool,
) -> Result<Lease, Failure> {
    if h2 {
        let pool = worker.pools.h2(target.key());
        return Ok(Lease::H2(pool.checkout(worker, target).await?));
    }
    let pool = worker.pools.h1(target.key());
    let conn = pool.checkout(worker, target, fresh).await?;
    Ok(Lease::H1(Box::new(conn)))
}

fn may_resend(failed: &SendError, reused: bool, head: &Outgoing, body: &Replay) -> bool {
    if failed.answered || body.has_failed() || !body.is_replayable() {
        return false;
    }
    failed.unreceived || (reused && body.is_empty() && is_idempotent(&head.method))
}

fn classify(failed: SendError, body: &Replay) -> Failure {
    let error = failed.error;
    if body.has_failed() {
        return Failure::Downstream;
    }
    if is_refused(&error) {
        return Failure::Refused;
    }
    if error.is_parse() {
        return Failure::Protocol(error);
    }
    match h2_error(&error) {
        Some(h2) if h2.is_reset() && h2.is_remote() => Failure::RemoteReset,
        Some(h2) if !h2.is_io() && h2.is_library() => Failure::Protocol(error),
        _ => Failure::Terminated {
            sent: !failed.unreceived,
        },
    }
}

/// The request as its protocol has it. HTTP/1.1 carries the host as a header and the path as its
/// target; HTTP/2 knows no connection headers, and its upgrade is a CONNECT (RFC 8441).
fn request(head: &Outgoing, h2: bool, body: AttemptBody) -> Result<Request<AttemptBody>, Failure> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    let mut headers = head.headers.clone();
    if h2 {
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = absolute(head)?;
        if let Some(protocol) = &head.upgrade {
            let protocol = protocol.to_str().map_err(|_| Failure::Downstream)?;
            *request.method_mut() = Method::CONNECT;
            request
                .extensions_mut()
                .insert(Protocol::from(protocol.to_ascii_lowercase().as_str()));
        }
    } else {
        *request.uri_mut() = Uri::from(head.path.clone());
        headers.insert(header::HOST, head.authority.clone());
        if let Some(protocol) = &head.upgrade {
            headers.insert(header::UPGRADE, protocol.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
                headers
                    .entry(header::SEC_WEBSOCKET_KEY)
                    .or_insert_with(websocket_key);
            }
        }
        let body = request.body();
        if !body.is_end_stream() && body.size_hint().exact().is_none() {
            // Else hyper takes a GET of unknown length for one without a body.
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
    }
    *request.headers_mut() = headers;
    Ok(request)
}

/// A nonce of 16 bytes in base64, which HTTP/1.1 demands and WebSocket over HTTP/2 has not.
fn websocket_key() -> HeaderValue {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // Of the last character four bits are beyond the 128.
    const LAST: &[u8] = b"AQgw";
    let mut key = *b"========================";
    for character in &mut key[..21] {
        *character = ALPHABET[fastrand::usize(..ALPHABET.len())];
    }
    key[21] = LAST[fastrand::usize(..LAST.len())];
    HeaderValue::from_bytes(&key).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn absolute(head: &Outgoing) -> Result<Uri, Failure> {
    let authority =
        Authority::try_from(head.authority.as_bytes()).map_err(|_| Failure::Downstream)?;
    Uri::builder()
        .scheme(head.scheme.clone())
        .authority(authority)
        .path_and_query(head.path.clone())
        .build()
        .map_err(|_| Failure::Downstream)
}
