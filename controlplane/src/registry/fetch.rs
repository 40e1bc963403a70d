//! Documents over HTTP, for registries that are asked.
//!
//! Input: a base address and a path; output: JSON. Plain HTTP to an agent or server near by; where TLS is needed, a
//! local agent speaks it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Longer than any registry's list ought to be.
const LONGEST: usize = 64 * 1024 * 1024;
/// Of what a server says to a request that it refuses.
const LONGEST_REASON: usize = 200;

/// Why an address cannot be asked.
#[derive(Debug, Error)]
#[error("{address:?} is not of the form http://host:port{hint}")]
pub struct InvalidAddress {
    address: String,
    hint: &'static str,
}

/// Why there is no document.
#[derive(Debug, Error)]
pub(super) enum FetchError {
    #[error("{0} is not a path")]
    Path(String, #[source] http::Error),
    #[error("no connection")]
    Connect(#[source] legacy::Error),
    #[error("the answer ended early")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is longer than {LONGEST} bytes")]
    TooLong,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("status {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the answer is not as expected")]
    Json(#[source] serde_json::Error),
}

/// A server that is asked.
#[derive(Clone, Debug)]
pub(super) struct Server {
    base: String,
    headers: HeaderMap,
    client: legacy::Client<HttpConnector, Empty<bytes::Bytes>>,
}

impl Server {
    /// The server at `http://host:port/path`.
    ///
    /// # Errors
    /// When that is no such address.
    pub(super) fn new(address: &str) -> Result<Self, InvalidAddress> {
        let invalid = |hint| InvalidAddress {
            address: address.to_owned(),
            hint,
        };
        let uri: Uri = address.parse().map_err(|_| invalid(""))?;
        match uri.scheme_str() {
            Some("http") if uri.query().is_none() => {}
            Some("https") => return Err(invalid("; TLS is for an agent on this machine to speak")),
            _ => return Err(invalid("")),
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        Ok(Self {
            base: address.trim_end_matches('/').to_owned(),
            headers: HeaderMap::new(),
            client: legacy::Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// The same with a header on every request.
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Where it is.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The document at a path, with the answer's headers.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<(T, HeaderMap), FetchError> {
        tokio::time::timeout(within, self.ask(path))
            .await
            .map_err(|_| FetchError::Late(within))?
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<(T, HeaderMap), FetchError> {
        let mut request = Request::get(format!("{}{path}", self.base))
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|error| FetchError::Path(path.to_owned(), error))?;
        request.headers_mut().extend(self.headers.clone());
        let answer = self
            .client
            .request(request)
            .await
            .map_err(FetchError::Connect)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => FetchError::TooLong,
            Err(error) => FetchError::Broken(error),
        })?;
        let body = body.to_bytes();
        if head.status != StatusCode::OK {
            let reason: String = String::from_utf8_lossy(&body)
                .trim()
                .chars()
                .take(LONGEST_REASON)
                .collect();
            return Err(FetchError::Refused {
                status: head.status,
                reason,
            });
        }
        let document = serde_json::from_slice(&body).map_err(FetchError::Json)?;
        Ok((document, head.headers))
    }
}

/// An error with its causes, for an operator's eyes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let own = cause.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        next = cause.source();
    }
    text
}

/// A part of a path: everything but letters, digits, `-`, `.`, `_` and `~` escaped.
pub(super) fn segment(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_parts_of_a_path() {
        assert_eq!(segment("reviews-v1.x_y~"), "reviews-v1.x_y~");
        assert_eq!(segment("a b/../c?d"), "a%20b%2F..%2Fc%3Fd");
    }

    #[test]
    fn only_plain_addresses_are_taken() {
        assert_eq!(
            Server::new("http://a:8500/").unwrap().base(),
            "http://a:8500"
        );
        for wrong in ["a:8500", "ftp://a", "", "http://a?b"] {
            assert!(Server::new(wrong).is_err(), "{wrong}");
        }
        let refused = Server::new("https://a:8501").unwrap_err().to_string();
        assert!(refused.contains("an agent on this machine"), "{refused}");
    }
}
