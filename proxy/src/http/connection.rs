//! One downstream connection: HTTP/1.1 or HTTP/2, its limits, its timeouts and its end.
//!
//! Input: a stream that a filter chain gave to an HTTP connection manager. hyper reads and frames;
//! [`serve`] watches over what hyper leaves open: who takes too long to send a request's headers,
//! who is idle, and what an over-long or broken request is told.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, Method, Version};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::exchange::Exchange;
use super::farewell::see_off;
use super::io::SharedIo;
use super::{Downstream, stream};
use crate::acceleration::Carries;
use crate::flags::{ResponseFlags, details};
use crate::handover::message::Carried;
use crate::handover::parcel::{self, Contents};
use crate::handover::{Parking, Turn};
use crate::listener::{DownstreamInfo, DownstreamStream};
use crate::resource::{Codec, HttpConnectionManager, RouteSource};
use crate::route::RouteTable;
use crate::upstream::pool_h2::LocalExecutor;
use crate::upstream::replay::Replay;
use crate::worker::Worker;

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What one HTTP/2 stream may have in flight.
const STREAM_WINDOW: u32 = 256 << 10;
/// What all HTTP/2 streams of a connection may have in flight.
const CONNECTION_WINDOW: u32 = 2 << 20;
/// After a refusal the client gets this long to read it before the socket is closed, since
/// closing with unread bytes sends a reset that may overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long an idle connection may bring one more request when the proxy drains, to be answered with
/// `connection: close`: closed at once it would break a request that is on its way.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// Headers that hyper parses without allocating.
const INLINE_HEADERS: u32 = 100;
/// Smallest read buffer that hyper takes.
const MIN_BUFFER: usize = 8192;

/// Serves a connection to its end, or until the next epoch of the proxy takes it.
pub async fn serve(
    worker: Rc<Worker>,
    io: DownstreamStream,
    info: Rc<DownstreamInfo>,
    hcm: Arc<HttpConnectionManager>,
) {
    resume(worker, io, info, hcm, false).await;
}

/// As [`serve`], of a connection that another epoch had; `http1` where it is known to be HTTP/1.
pub async fn resume(
    worker: Rc<Worker>,
    mut io: DownstreamStream,
    info: Rc<DownstreamInfo>,
    hcm: Arc<HttpConnectionManager>,
    mut http1: bool,
) {
    let mut parking = worker.parking();
    loop {
        let (turn, stream) = match once(&worker, io, &info, &hcm, (&mut http1, &parking)).await {
            Served::Ended => return,
            Served::Parked(turn, stream) => (turn, *stream),
        };
        let parcel = parcel::describe(&worker, &info, &stream, Carried::Http { http1 });
        let contents = Contents::of_one(&stream);
        if parking.give(turn, parcel, contents).await {
            return stream.let_go();
        }
        io = stream;
    }
}

/// What became of a connection.
enum Served {
    /// It has ended.
    Ended,
    /// It is silent, between two requests, to be handed over.
    Parked(Turn, Box<DownstreamStream>),
}

/// Serves a connection until it ends or is parked.
async fn once(
    worker: &Rc<Worker>,
    mut io: DownstreamStream,
    info: &Rc<DownstreamInfo>,
    hcm: &Arc<HttpConnectionManager>,
    (http1, parking): (&mut bool, &Parking),
) -> Served {
    let h2 = match hcm.codec {
        Codec::Http1 => false,
        Codec::Http2 => true,
        Codec::Auto if *http1 => false,
        Codec::Auto => match is_h2(&mut io, hcm.request_headers_timeout, parking.turn()).await {
            First::Known { h2 } => h2,
            First::Nothing => return Served::Ended,
            First::Parked(turn) => return Served::Parked(turn, Box::new(io)),
        },
    };
    *http1 = !h2;
    io.carry(if h2 { Carries::Bytes } else { Carries::Http1 });
    let downstream = Rc::new(Downstream::new(
        (worker, info, hcm),
        h2,
        if h2 {
            SharedIo::for_streams(io)
        } else {
            SharedIo::for_requests(io)
        },
    ));
    if h2 {
        serve_h2(downstream).await;
        Served::Ended
    } else {
        serve_h1(downstream, parking).await
    }
}

impl Downstream {
    /// What the requests of a connection share before the first has come.
    pub(crate) fn new(
        (worker, info, hcm): (
            &Rc<Worker>,
            &Rc<DownstreamInfo>,
            &Arc<HttpConnectionManager>,
        ),
        h2: bool,
        io: SharedIo,
    ) -> Self {
        Self {
            inline_routes: inline_routes(worker, hcm),
            pod_key: info.pod.as_ref().map_or(0, |pod| pod.number()),
            loggers: worker.telemetry.loggers(hcm, &hcm.access_log),
            worker: worker.clone(),
            info: info.clone(),
            h2,
            io,
            active: Cell::new(0),
            read_mark: Cell::new(0),
            hcm: hcm.clone(),
        }
    }

    /// Whether an HTTP/1 connection carries nothing: no request has begun, no answer is being written.
    fn is_between_requests(&self) -> bool {
        self.active.get() == 0
            && self.io.bytes_read() == self.read_mark.get()
            && self.io.is_flushed()
    }
}

fn inline_routes(worker: &Worker, hcm: &HttpConnectionManager) -> Option<Arc<RouteTable>> {
    let RouteSource::Inline(config) = &hcm.routes else {
        return None;
    };
    let snapshot = worker.snapshot.load();
    let built = snapshot.routes_of(&hcm.routes).cloned();
    // The listener may be of an older snapshot than the one that is current by now.
    Some(built.unwrap_or_else(|| Arc::new(RouteTable::new(config.clone()))))
}

/// What the first bytes of a connection tell.
enum First<T> {
    /// Which version the client speaks.
    Known { h2: bool },
    /// The client went away or sent nothing in time.
    Nothing,
    /// The connection is to be handed over before anything is known.
    Parked(T),
}

/// Which version the client speaks, as its first bytes tell. Every byte read is put back.
async fn is_h2<T>(
    io: &mut DownstreamStream,
    limit: Duration,
    park: impl Future<Output = T>,
) -> First<T> {
    let mut first = BytesMut::with_capacity(2048);
    let reading = async {
        loop {
            let n = io.read_buf(&mut first).await.ok().filter(|n| *n > 0);
            let known = first.len().min(PREFACE.len());
            if n.is_none() || first[..known] != PREFACE[..known] {
                return (!first.is_empty()).then_some(false);
            }
            if known == PREFACE.len() {
                return Some(true);
            }
        }
    };
    let bounded = async {
        if limit.is_zero() {
            reading.await
        } else {
            tokio::time::timeout(limit, reading).await.ok().flatten()
        }
    };
    // biased: what has arrived decides; it need not be handed over undecided.
    let decided = tokio::select! {
        biased;
        known = bounded => known.map_or(First::Nothing, |h2| First::Known { h2 }),
        turn = park => First::Parked(turn),
    };
    io.unread(first.freeze());
    decided
}

/// How hyper reads HTTP/1 requests under the limits of `hcm`.
fn http1_builder(hcm: &HttpConnectionManager) -> http1::Builder {
    let header_bytes = hcm.max_request_headers_kb as usize * 1024;
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(header_bytes)
        .max_buf_size(header_bytes.max(MIN_BUFFER) + 1024)
        .timer(TokioTimer::new());
    if hcm.max_request_headers_count != INLINE_HEADERS {
        builder.max_headers(hcm.max_request_headers_count as usize);
    }
    builder
}

async fn serve_h1(downstream: Rc<Downstream>, parking: &Parking) -> Served {
    let handler = downstream.clone();
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(stream::handle(handler, request).await) }
    });
    let io = TokioIo::new(downstream.io.clone());
    let mut conn = http1_builder(&downstream.hcm)
        .serve_connection(io, service)
        .with_upgrades();
    let mut watch = Watch::new(&downstream);
    let mut leaving = pin!(downstream.worker.leaving.cancelled());
    let mut departure = None;
    let stopped = poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut conn).poll(cx) {
            return Poll::Ready(Stopped::Ended(End::of(result)));
        }
        if departure.is_some() || leaving.as_mut().poll(cx).is_ready() {
            let departure = departure.get_or_insert_with(|| Departure::new(&downstream, parking));
            match departure.poll(&downstream, cx) {
                Poll::Pending => {}
                Poll::Ready(Leave::Drain) => {
                    Pin::new(&mut conn).graceful_shutdown();
                    if let Poll::Ready(result) = Pin::new(&mut conn).poll(cx) {
                        return Poll::Ready(Stopped::Ended(End::of(result)));
                    }
                }
                Poll::Ready(Leave::Park(turn)) => {
                    downstream.io.stay_open(true);
                    Pin::new(&mut conn).graceful_shutdown();
                    if let Poll::Ready(result) = Pin::new(&mut conn).poll(cx) {
                        return Poll::Ready(match result {
                            Ok(()) => Stopped::Parked(turn),
                            Err(error) => Stopped::Ended(End::of(Err(error))),
                        });
                    }
                    // It was not idle after all: it says `connection: close` and ends here.
                    downstream.io.stay_open(false);
                }
            }
        }
        watch.poll(&downstream, cx).map(Stopped::Ended)
    })
    .await;
    match stopped {
        Stopped::Ended(end) => {
            drop(conn);
            finish_h1(&downstream, end).await;
            Served::Ended
        }
        Stopped::Parked(turn) => {
            let rest = conn.into_parts().map(|parts| parts.read_buf);
            let Some(mut stream) = downstream.io.take_stream() else {
                return Served::Ended;
            };
            stream.unread(rest.unwrap_or_default());
            Served::Parked(turn, Box::new(stream))
        }
    }
}

/// Why an HTTP/1 connection is no longer served.
enum Stopped {
    Ended(End),
    Parked(Turn),
}

/// What an HTTP/1 connection of a leaving worker is to do now.
enum Leave {
    /// Close once it is idle, and say so.
    Drain,
    /// Fall silent, to be handed over.
    Park(Turn),
}

/// The last part of an HTTP/1 connection's life on a worker that leaves: it is handed over between two
/// requests, or drains where nobody takes it.
struct Departure<'a> {
    parking: &'a Parking,
    turn: Option<Pin<Box<dyn Future<Output = Turn> + 'a>>>,
    /// Ends some time after it is known that the connection stays.
    alone: Pin<Box<dyn Future<Output = ()> + 'a>>,
    /// The connection has been told to close.
    closing: bool,
}

impl<'a> Departure<'a> {
    fn new(downstream: &'a Downstream, parking: &'a Parking) -> Self {
        let drain = &downstream.worker.drain;
        Self {
            parking,
            turn: None,
            alone: Box::pin(async {
                if !parking.stays() {
                    drain.cancelled().await;
                }
                tokio::time::sleep(LAST_REQUEST).await;
            }),
            closing: false,
        }
    }

    fn poll(&mut self, downstream: &Downstream, cx: &mut Context<'_>) -> Poll<Leave> {
        if self.closing {
            return Poll::Pending;
        }
        if self.parking.is_due() && downstream.is_between_requests() {
            let parking = self.parking;
            let turn = self.turn.get_or_insert_with(|| Box::pin(parking.turn()));
            if let Poll::Ready(turn) = turn.as_mut().poll(cx) {
                self.closing = true;
                return Poll::Ready(Leave::Park(turn));
            }
        } else {
            // Others need the room meanwhile.
            self.turn = None;
        }
        let stays = downstream.worker.drain.is_cancelled() || self.parking.stays();
        if self.alone.as_mut().poll(cx).is_ready() || (stays && downstream.active.get() > 0) {
            self.closing = true;
            return Poll::Ready(Leave::Drain);
        }
        Poll::Pending
    }
}

/// How a connection ended.
enum End {
    /// As it should.
    Closed,
    /// The client went away.
    Gone,
    /// What the client sent is not HTTP.
    Malformed,
    /// The headers of a request are too large; hyper has said so.
    TooLarge,
    /// The headers of a request did not come in time.
    HeadersTimeout,
    /// Nothing happened for too long.
    Idle,
}

impl End {
    fn of(result: hyper::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Closed,
            Err(error) => {
                tracing::debug!(%error, "downstream connection ended");
                if error.is_parse_too_large() {
                    Self::TooLarge
                } else if error.is_parse() {
                    Self::Malformed
                } else {
                    Self::Gone
                }
            }
        }
    }
}

async fn finish_h1(downstream: &Rc<Downstream>, end: End) {
    match end {
        End::Closed | End::Gone | End::Idle => {}
        End::Malformed => {
            log_broken(downstream, 400, details::HTTP1_CODEC_ERROR);
            linger(&downstream.io, b"").await;
        }
        End::TooLarge => {
            log_broken(downstream, 431, details::HEADERS_TOO_LARGE);
            linger(&downstream.io, b"").await;
        }
        End::HeadersTimeout => {
            log_broken(downstream, 408, details::REQUEST_HEADERS_TIMEOUT);
            let answer = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\
                connection: close\r\n\r\n";
            linger(&downstream.io, answer).await;
        }
    }
}

/// The record of a request that never became one.
fn log_broken(downstream: &Rc<Downstream>, status: u16, details: &'static str) {
    let empty = HeaderValue::from_static("");
    let mut exchange = Exchange::new(
        downstream.clone(),
        Method::GET,
        empty.clone(),
        empty,
        if downstream.h2 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        },
        Replay::empty(),
    );
    exchange
        .flags
        .insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    exchange.details = details;
    exchange.status = status;
    exchange.complete = true;
}

/// Sends a last answer and reads what is still coming, so that the answer is not lost.
async fn linger(io: &SharedIo, answer: &[u8]) {
    let mut io = io.clone();
    let last = async {
        if !answer.is_empty() {
            io.write_all(answer).await?;
        }
        io.shutdown().await?;
        let mut sink = [0; 4096];
        while io.read(&mut sink).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(LINGER, last).await {
        tracing::trace!(%error, "the client did not wait for the answer");
    }
}

/// Watches for requests whose headers take too long and for idle connections. One timer serves
/// both; over HTTP/1 it is armed only while there is no request.
struct Watch {
    headers: Duration,
    idle: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
    /// Whether the deadline is that of headers.
    partial: bool,
    mark: u64,
}

impl Watch {
    fn new(downstream: &Downstream) -> Self {
        Self {
            headers: downstream.hcm.request_headers_timeout,
            idle: downstream.hcm.idle_timeout,
            sleep: None,
            deadline: None,
            partial: false,
            mark: u64::MAX,
        }
    }

    fn poll(&mut self, downstream: &Downstream, cx: &mut Context<'_>) -> Poll<End> {
        let block = downstream.io.unfinished_block();
        if downstream.active.get() > 0 && block.is_none() {
            self.deadline = None;
            return Poll::Pending;
        }
        let read = downstream.read_mark.get();
        let mark = block.unwrap_or(read);
        let partial = block.is_some() || (!downstream.h2 && downstream.io.bytes_read() > read);
        if self.deadline.is_none() || mark != self.mark || partial != self.partial {
            self.mark = mark;
            self.partial = partial;
            let limit = if partial { self.headers } else { self.idle };
            self.deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
        }
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // A timer that is too early is put right when it fires; only an earlier deadline must
        // be set at once.
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(if self.partial {
                    End::HeadersTimeout
                } else {
                    End::Idle
                });
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// Ends an HTTP/2 connection that was told to go away, has no request and does not answer: hyper waits for
/// the answer to its PING for as long as that takes. The limit is a stream's, as the end of a response may
/// still wait for the client's window.
struct Parting {
    /// Zero is none.
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Parting {
    fn poll(&mut self, downstream: &Downstream, cx: &mut Context<'_>) -> Poll<()> {
        if downstream.active.get() > 0 || self.limit.is_zero() {
            self.sleep = None;
            return Poll::Pending;
        }
        let limit = self.limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        sleep.as_mut().poll(cx)
    }
}

async fn serve_h2(downstream: Rc<Downstream>) {
    let hcm = &downstream.hcm;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(hcm.max_request_headers_kb * 1024)
        .enable_connect_protocol();
    if hcm.max_concurrent_streams > 0 {
        builder.max_concurrent_streams(hcm.max_concurrent_streams);
    }
    let handler = downstream.clone();
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(stream::handle(handler, request).await) }
    });
    let io = TokioIo::new(downstream.io.clone());
    let mut conn = pin!(builder.serve_connection(io, service));
    let mut watch = Watch::new(&downstream);
    let mut draining = pin!(downstream.worker.leaving.cancelled());
    let mut parting = None;
    let in_order = poll_fn(|cx| {
        if let Poll::Ready(result) = conn.as_mut().poll(cx) {
            if let Err(error) = &result {
                tracing::debug!(%error, "downstream connection ended");
            }
            return Poll::Ready(result.is_ok());
        }
        let end = watch.poll(&downstream, cx);
        if let Poll::Ready(End::HeadersTimeout) = end {
            log_broken(&downstream, 408, details::REQUEST_HEADERS_TIMEOUT);
            return Poll::Ready(false);
        }
        if parting.is_none() && (end.is_ready() || draining.as_mut().poll(cx).is_ready()) {
            parting = Some(Parting {
                limit: hcm.stream_idle_timeout,
                sleep: None,
            });
            conn.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        let Some(parting) = &mut parting else {
            return Poll::Pending;
        };
        parting.poll(&downstream, cx).map(|()| true)
    })
    .await;
    if in_order && let Some(stream) = downstream.io.take_stream() {
        see_off(stream).await;
    }
}
