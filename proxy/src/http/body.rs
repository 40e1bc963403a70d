//! The body of a response on its way to the client.
//!
//! It carries the [`Exchange`] to the end of the stream and, where the upstream connection has no
//! task of its own, polls that connection while the client reads: a slow client slows the upstream
//! down and nothing is buffered in between.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::io::MessageSize;
use crate::cluster::Permit;
use crate::cluster::host::Active;
use crate::flags::{ResponseFlags, details};
use crate::upstream::attempt::Lease;
use crate::upstream::failure::Failure;
use crate::upstream::pool_h1::Driven;

/// A body of a response.
pub struct ResponseBody {
    source: Source,
    /// Dropped when the last byte has been taken, which ends the request.
    exchange: Option<Box<Exchange>>,
    /// Why the body breaks off, told to hyper a turn late: it gives up what it has not written
    /// when it hears of it.
    broken: Option<BodyError>,
}

enum Source {
    /// Bytes at hand.
    Full(Bytes),
    /// From upstream.
    Upstream(Box<Upstream>),
    /// Nothing more.
    Done,
}

struct Upstream {
    /// Taken from `incoming` before the client asked for it.
    first: Option<Bytes>,
    incoming: Incoming,
    lease: Lease,
    active: (Active, Permit),
}

/// Why a response breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The upstream did not send all of it.
    #[error("the upstream broke the response off")]
    Upstream(#[source] hyper::Error),
    /// A timeout passed.
    #[error("the response took too long")]
    Timeout(#[source] Failure),
}

impl ResponseBody {
    /// A body at hand. `bodiless` says that the client gets none whatever is here, as in an
    /// answer to HEAD.
    pub fn full(bytes: Bytes, bodiless: bool, mut exchange: Box<Exchange>) -> Self {
        if bytes.is_empty() || bodiless {
            exchange.complete = true;
        }
        let size = MessageSize::Known(bytes.len() as u64);
        exchange.downstream.io.announce(size);
        Self {
            source: Source::Full(bytes),
            exchange: Some(exchange),
            broken: None,
        }
    }

    /// No body and no exchange: the exchange goes on elsewhere.
    pub fn none() -> Self {
        Self {
            source: Source::Done,
            exchange: None,
            broken: None,
        }
    }

    /// A body from upstream. Where all of it has come with the head, the connection goes back to
    /// its pool at once.
    pub fn upstream(
        mut incoming: Incoming,
        mut lease: Lease,
        active: (Active, Permit),
        exchange: Box<Exchange>,
    ) -> Self {
        if incoming.is_end_stream() {
            release(lease);
            return Self::full(Bytes::new(), true, exchange);
        }
        let mut first = None;
        if let Lease::H1(conn) = &mut lease {
            if !exchange.body.is_ended() {
                // Both directions go on, each at its own pace.
                conn.detach();
            } else if incoming.size_hint().exact().is_some() {
                let mut noop = Context::from_waker(Waker::noop());
                if let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut incoming).poll_frame(&mut noop)
                {
                    first = frame.into_data().ok();
                }
            }
        }
        if incoming.is_end_stream() {
            release(lease);
            return Self::full(first.unwrap_or_default(), false, exchange);
        }
        exchange.downstream.io.announce(MessageSize::Streamed);
        Self {
            source: Source::Upstream(Box::new(Upstream {
                first,
                incoming,
                lease,
                active,
            })),
            exchange: Some(exchange),
            broken: None,
        }
    }

    fn poll_upstream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (Source::Upstream(upstream), Some(exchange)) = (&mut self.source, &mut self.exchange)
        else {
            return Poll::Ready(None);
        };
        match upstream.poll(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                exchange.clock.touch();
                if let Some(data) = frame.data_ref() {
                    exchange.bytes_sent += data.len() as u64;
                }
                if let Some(trailers) = frame.trailers_ref() {
                    exchange.keep_trailers(trailers);
                }
                if frame.is_trailers() || upstream.incoming.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let (flag, text) = broken_off(&error);
                exchange.flags.insert(flag);
                exchange.details = text;
                self.break_off(BodyError::Upstream(error), cx)
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let body = exchange.body.clone();
                let Poll::Ready(failure) = exchange.clock.poll(cx, &body) else {
                    return Poll::Pending;
                };
                exchange.flags.insert(failure.flag());
                exchange.details = failure.details();
                self.break_off(BodyError::Timeout(failure), cx)
            }
        }
    }

    fn break_off<T>(&mut self, error: BodyError, cx: &mut Context<'_>) -> Poll<T> {
        self.exchange = None;
        self.source = Source::Done;
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// All of it has been read.
    fn end(&mut self) {
        if let Source::Upstream(upstream) = std::mem::replace(&mut self.source, Source::Done) {
            drop(upstream.active);
            release(upstream.lease);
        }
        if let Some(mut exchange) = self.exchange.take() {
            exchange.complete = true;
        }
    }
}

impl Upstream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let incoming = Pin::new(&mut self.incoming);
        let Lease::H1(conn) = &mut self.lease else {
            return incoming.poll_frame(cx);
        };
        // Only the connection can bring more, and it is polled below: no waker is needed here.
        let mut noop = Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = incoming.poll_frame(&mut noop) {
            return Poll::Ready(frame);
        }
        let incoming = Pin::new(&mut self.incoming);
        match conn.drive(cx) {
            Driven::Here => incoming.poll_frame(&mut noop),
            Driven::Elsewhere => incoming.poll_frame(cx),
        }
    }
}

fn release(lease: Lease) {
    if let Lease::H1(conn) = lease {
        conn.release();
    }
}

fn broken_off(error: &hyper::Error) -> (ResponseFlags, &'static str) {
    use crate::upstream::pool_h2::h2_error;
    match h2_error(error) {
        Some(h2) if h2.is_reset() && h2.is_remote() => (
            ResponseFlags::UPSTREAM_REMOTE_RESET,
            details::REMOTE_RESET_LATE,
        ),
        _ if error.is_parse() => (
            ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
            "upstream_reset_after_response_started{protocol_error}",
        ),
        _ => (
            ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            details::TERMINATED_LATE,
        ),
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.source = Source::Done;
                if let Some(mut exchange) = this.exchange.take() {
                    exchange.bytes_sent = bytes.len() as u64;
                    exchange.complete = true;
                }
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Upstream(_) => this.poll_upstream(cx),
            Source::Done => Poll::Ready(this.broken.take().map(Err)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_empty(),
            Source::Upstream(_) => false,
            Source::Done => self.broken.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(upstream) => {
                let first = upstream.first.as_ref().map_or(0, Bytes::len) as u64;
                match upstream.incoming.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(rest + first),
                    None => SizeHint::default(),
                }
            }
            Source::Done => SizeHint::with_exact(0),
        }
    }
}
