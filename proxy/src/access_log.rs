//! Access logs: one record per request and per TCP connection.
//!
//! `format` compiles Envoy's format strings and renders a [`Record`] into bytes on the worker;
//! `sink` takes the lines off the workers and writes them. Called from one place of each path:
//! the end of an HTTP stream and of a TCP connection.

pub mod command;
pub mod format;
pub mod sink;
pub mod span;
pub mod time;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::flags::ResponseFlags;
use crate::resource::AccessLog;
pub use format::{Compiled, InvalidFormat};
pub use sink::{Line, Sinks};

/// What a record is made of. An absent value prints as `-`.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the request or connection began.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// From its beginning until the request had been received.
    pub request_duration: Option<Duration>,
    /// From its beginning until the first byte came from upstream.
    pub response_duration: Option<Duration>,
    /// `:method`.
    pub method: Option<&'a str>,
    /// `:path`.
    pub path: Option<&'a str>,
    /// `:authority`.
    pub authority: Option<&'a str>,
    /// `:scheme`.
    pub scheme: Option<&'a str>,
    /// `HTTP/1.1`.
    pub protocol: Option<&'a str>,
    /// Headers of the request.
    pub request: Headers<'a>,
    /// Headers of the response.
    pub response: Headers<'a>,
    /// Trailers of the response.
    pub trailers: Headers<'a>,
    /// Status; 0 where no response was sent.
    pub status: u16,
    /// `grpc-status` of a gRPC call.
    pub grpc_status: Option<u32>,
    /// Flags.
    pub flags: ResponseFlags,
    /// Details of the status.
    pub details: Option<&'a str>,
    /// Why the connection was ended.
    pub termination_details: Option<&'a str>,
    /// Why the upstream connection failed.
    pub transport_failure: Option<&'a str>,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// This end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Statistics name of the cluster.
    pub upstream_cluster: Option<&'a str>,
    /// Name of the cluster.
    pub upstream_cluster_raw: Option<&'a str>,
    /// Tries.
    pub attempts: u32,
    /// Where the client wanted to go.
    pub downstream_local: SocketAddr,
    /// The client.
    pub downstream_remote: SocketAddr,
    /// The other end of the downstream connection.
    pub downstream_direct_remote: SocketAddr,
    /// SNI.
    pub server_name: Option<&'a str>,
    /// Name of the route.
    pub route_name: Option<&'a str>,
    /// Name of the filter chain.
    pub filter_chain: Option<&'a str>,
    /// Number of the downstream connection.
    pub connection_id: u64,
}

/// Headers, wherever they are kept.
#[derive(Clone, Copy, Debug, Default)]
pub enum Headers<'a> {
    /// There are none.
    #[default]
    None,
    /// All of them.
    Map(&'a HeaderMap),
    /// Those that the formats ask for.
    Kept(&'a [(HeaderName, HeaderValue)]),
}

impl<'a> Headers<'a> {
    /// The first value of a header.
    pub fn get(&self, name: &HeaderName) -> Option<&'a HeaderValue> {
        match self {
            Self::None => None,
            Self::Map(map) => map.get(name),
            Self::Kept(list) => list.iter().find(|(n, _)| n == name).map(|(_, value)| value),
        }
    }
}

impl Record<'_> {
    /// A record of nothing yet, for `connection`.
    pub fn new(started: SystemTime, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            started,
            duration: Duration::ZERO,
            request_duration: None,
            response_duration: None,
            method: None,
            path: None,
            authority: None,
            scheme: None,
            protocol: None,
            request: Headers::None,
            response: Headers::None,
            trailers: Headers::None,
            status: 0,
            grpc_status: None,
            flags: ResponseFlags::NONE,
            details: None,
            termination_details: None,
            transport_failure: None,
            bytes_received: 0,
            bytes_sent: 0,
            upstream_host: None,
            upstream_local: None,
            upstream_cluster: None,
            upstream_cluster_raw: None,
            attempts: 0,
            downstream_local: local,
            downstream_remote: remote,
            downstream_direct_remote: remote,
            server_name: None,
            route_name: None,
            filter_chain: None,
            connection_id: 0,
        }
    }
}

/// The compiled logs of one listener filter, with where their lines go.
#[derive(Clone, Debug, Default)]
pub struct Loggers(Arc<[Logger]>);

#[derive(Debug)]
struct Logger {
    format: Arc<Compiled>,
    line: Line,
}

impl Loggers {
    /// Opens the logs for one worker. A log that cannot be opened is reported and left out; what
    /// its format says was checked when the configuration was accepted.
    pub fn open(logs: &[AccessLog], sinks: &Sinks, worker: usize) -> Self {
        let open = |log: &AccessLog| match Compiled::new(log.format.as_ref()) {
            Ok(format) => Some(Logger {
                format: Arc::new(format),
                line: sinks.line(&log.path, worker),
            }),
            Err(error) => {
                tracing::warn!(path = log.path, %error, "an access log is left out");
                None
            }
        };
        Self(logs.iter().filter_map(open).collect())
    }

    /// Whether nothing is logged.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes the record to every log.
    pub fn record(&self, record: &Record<'_>) {
        for logger in self.0.iter() {
            logger.line.write(|out| logger.format.render(record, out));
        }
    }

    /// Keeps those headers that a format of these logs asks for.
    pub fn keep(
        &self,
        which: Which,
        headers: &HeaderMap,
        kept: &mut Vec<(HeaderName, HeaderValue)>,
    ) {
        for logger in self.0.iter() {
            for name in logger.format.headers(which) {
                if let Some(value) = headers.get(name)
                    && !kept.iter().any(|(n, _)| n == name)
                {
                    kept.push((name.clone(), value.clone()));
                }
            }
        }
    }
}

/// Headers of which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The request.
    Request,
    /// The response.
    Response,
    /// The response's trailers.
    Trailers,
}
