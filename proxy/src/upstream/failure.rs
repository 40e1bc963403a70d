//! Why a request got no response from upstream, and what that means for client, log and retries.
//!
//! The one place that maps an upstream failure to a status, a response flag and its details.

use http::StatusCode;

use super::connect::ConnectError;
use crate::flags::{ResponseFlags, details};
use crate::route::retry::Outcome;

/// Why a try failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No host of the cluster can be used.
    #[error("no healthy upstream")]
    NoHost,
    /// A circuit breaker is open.
    #[error("overflow")]
    Overflow,
    /// The connection could not be opened.
    #[error("remote connection failure")]
    Connect(#[source] ConnectError),
    /// The connection ended before a response began.
    #[error("connection termination")]
    Terminated {
        /// Whether any of the request may have been received.
        sent: bool,
    },
    /// The upstream reset the stream.
    #[error("remote reset")]
    RemoteReset,
    /// The upstream refused the stream without looking at it.
    #[error("remote refused stream reset")]
    Refused,
    /// What the upstream sent is not HTTP.
    #[error("protocol error")]
    Protocol(#[source] hyper::Error),
    /// The try's timeout passed.
    #[error("upstream per try timeout")]
    PerTryTimeout,
    /// The route's timeout passed.
    #[error("upstream request timeout")]
    Timeout,
    /// The stream was idle for too long.
    #[error("stream timeout")]
    Idle,
    /// The request did not come to its end in time.
    #[error("request timeout")]
    RequestTimeout,
    /// The request itself broke off or was not valid.
    #[error("downstream request failed")]
    Downstream,
}

impl Failure {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoHost
            | Self::Overflow
            | Self::Connect(_)
            | Self::Terminated { .. }
            | Self::RemoteReset
            | Self::Refused => StatusCode::SERVICE_UNAVAILABLE,
            Self::Protocol(_) => StatusCode::BAD_GATEWAY,
            Self::PerTryTimeout | Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Idle | Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Downstream => StatusCode::BAD_REQUEST,
        }
    }

    /// The response flag.
    pub fn flag(&self) -> ResponseFlags {
        match self {
            Self::NoHost => ResponseFlags::NO_HEALTHY_UPSTREAM,
            Self::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            Self::Connect(_) => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            Self::Terminated { .. } => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            Self::RemoteReset | Self::Refused => ResponseFlags::UPSTREAM_REMOTE_RESET,
            Self::Protocol(_) => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
            Self::PerTryTimeout | Self::Timeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
            Self::Idle => ResponseFlags::STREAM_IDLE_TIMEOUT,
            Self::RequestTimeout => ResponseFlags::NONE,
            Self::Downstream => ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`.
    pub fn details(&self) -> &'static str {
        match self {
            Self::NoHost => details::NO_HEALTHY_UPSTREAM,
            Self::Overflow => details::OVERFLOW,
            Self::Connect(ConnectError::Timeout { .. }) => details::CONNECT_TIMEOUT,
            Self::Connect(_) => details::CONNECT_FAILURE,
            Self::Terminated { .. } => details::TERMINATED,
            Self::RemoteReset | Self::Refused => details::REMOTE_RESET,
            Self::Protocol(_) => details::PROTOCOL_ERROR,
            Self::PerTryTimeout => details::PER_TRY_TIMEOUT,
            Self::Timeout => details::RESPONSE_TIMEOUT,
            Self::Idle => details::STREAM_IDLE_TIMEOUT,
            Self::RequestTimeout => details::REQUEST_OVERALL_TIMEOUT,
            Self::Downstream => details::HTTP1_CODEC_ERROR,
        }
    }

    /// What retries know it as; `None` where no retry can help.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Connect(ConnectError::Loop { .. })
            | Self::NoHost
            | Self::Timeout
            | Self::Idle
            | Self::RequestTimeout
            | Self::Downstream => None,
            Self::Overflow => Some(Outcome::Overflow),
            Self::Connect(_) => Some(Outcome::ConnectFailure),
            Self::Terminated { sent } => Some(Outcome::Reset { sent: *sent }),
            Self::RemoteReset | Self::Protocol(_) => Some(Outcome::Reset { sent: true }),
            Self::Refused => Some(Outcome::RefusedStream),
            Self::PerTryTimeout => Some(Outcome::PerTryTimeout),
        }
    }

    /// The body of the answer, in Envoy's words.
    pub fn body(&self) -> String {
        match self {
            Self::NoHost | Self::Timeout | Self::Idle | Self::RequestTimeout => self.to_string(),
            Self::PerTryTimeout => Self::Timeout.to_string(),
            Self::Downstream => String::new(),
            Self::Connect(error) => {
                let reason = match error {
                    ConnectError::Timeout { .. } => "connection timeout",
                    _ => "remote connection failure",
                };
                format!(
                    "upstream connect error or disconnect/reset before headers. reset reason: \
                     {reason}, transport failure reason: {error}"
                )
            }
            _ => format!(
                "upstream connect error or disconnect/reset before headers. reset reason: {self}"
            ),
        }
    }
}
