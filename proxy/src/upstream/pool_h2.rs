//! HTTP/2 connections to one host, many requests at a time on each.
//!
//! A connection is polled by a task of its own. Requests that find no room wait for the one
//! connection that is being opened rather than each opening its own.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::ConnectError;
use super::failure::Failure;
use super::pool::{Meta, Target};
use super::pool_h1::SendError;
use super::replay::AttemptBody;
use crate::acceleration::Carries;
use crate::cluster::Permit;
use crate::cluster::breaker::Resource;
use crate::http::io::SharedIo;
use crate::pods::LocalPod;
use crate::worker::Worker;

/// What one stream may have in flight.
const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams of a connection may have in flight.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Connections to one host.
#[derive(Default)]
pub struct H2Pool {
    conns: RefCell<Vec<Rc<H2Conn>>>,
    connecting: Cell<bool>,
    changed: Notify,
}

struct H2Conn {
    send: http2::SendRequest<AttemptBody>,
    streams: Cell<u32>,
    max_streams: u32,
    io: SharedIo,
    meta: RefCell<Meta>,
    ended: Rc<Cell<bool>>,
    pool: Weak<H2Pool>,
}

/// One stream's part of a connection.
pub struct H2Lease {
    conn: Rc<H2Conn>,
    reused: bool,
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get() - 1);
        self.conn.meta.borrow_mut().idle_since = Instant::now();
        if let Some(pool) = self.conn.pool.upgrade() {
            pool.changed.notify_one();
        }
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

impl H2Pool {
    /// A stream on a connection with room, or on a new one.
    ///
    /// # Errors
    /// Where a circuit breaker is open or connecting fails.
    pub async fn checkout(
        self: &Rc<Self>,
        worker: &Worker,
        target: &Target,
    ) -> Result<H2Lease, Failure> {
        if let Some(lease) = self.take(worker, target) {
            return Ok(lease);
        }
        let breakers = target.entry.breakers();
        let _pending = breakers
            .acquire(Resource::Pending)
            .ok_or(Failure::Overflow)?;
        loop {
            if let Some(lease) = self.take(worker, target) {
                return Ok(lease);
            }
            let permit = breakers.acquire(Resource::Connection);
            let may_open = permit.is_some() || self.conns.borrow().is_empty();
            if may_open && !self.connecting.get() {
                let conn = self.open(worker, target, permit).await;
                let conn = conn.inspect_err(|_| target.host.stats.cx_connect_fail.add(1))?;
                return Ok(H2Conn::lease(conn, false));
            }
            drop(permit);
            self.changed.notified().await;
        }
    }

    fn take(&self, worker: &Worker, target: &Target) -> Option<H2Lease> {
        let now = Instant::now();
        let conns = self.conns.borrow();
        let conn = conns.iter().find(|conn| {
            conn.has_room()
                && conn.meta.borrow().may_serve(now)
                && conn.meta.borrow().leads_to(&worker.connector, target)
        })?;
        Some(H2Conn::lease(conn.clone(), true))
    }

    async fn open(
        self: &Rc<Self>,
        worker: &Worker,
        target: &Target,
        permit: Option<Permit>,
    ) -> Result<Rc<H2Conn>, Failure> {
        self.connecting.set(true);
        let _connecting = Connecting(self);
        let connect = target.connect_target();
        let transport = worker
            .connector
            .transport(&connect)
            .map_err(Failure::Connect)?;
        let stream = worker
            .connector
            .connect(&connect)
            .await
            .map_err(Failure::Connect)?;
        stream.carry(Carries::Bytes);
        let io = SharedIo::new(stream);
        let meta = Meta::new(target, &transport, io.local_addr().ok(), permit);
        worker.pools.watch(&io, &meta);
        let conn = H2Conn::start(io, meta, target, Rc::downgrade(self)).await?;
        self.conns.borrow_mut().push(conn.clone());
        Ok(conn)
    }

    /// Closes connections without streams that may serve no more; all without streams where
    /// `now` is `None`. What is taken out ends when its last stream does.
    pub(super) fn sweep(&self, now: Option<Instant>) {
        self.conns.borrow_mut().retain(|conn| {
            let serves = now.is_some_and(|now| conn.meta.borrow().may_serve(now));
            !conn.ended.get() && (serves || conn.streams.get() > 0)
        });
    }

    pub(super) fn is_unused(&self) -> bool {
        self.conns.borrow().is_empty() && !self.connecting.get()
    }
}

/// Wakes those who wait for a connection that is being opened, however that ends.
struct Connecting<'a>(&'a Rc<H2Pool>);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

impl H2Conn {
    async fn start(
        io: SharedIo,
        meta: Meta,
        target: &Target,
        pool: Weak<H2Pool>,
    ) -> Result<Rc<Self>, Failure> {
        let max_streams = target.entry.config.max_concurrent_streams;
        let (send, conn) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io.clone()))
            .await
            .map_err(|error| {
                let source = std::io::Error::other(error);
                let address = target.host.address();
                Failure::Connect(ConnectError::Io { address, source })
            })?;
        let ended = Rc::new(Cell::new(false));
        let flag = ended.clone();
        let waiting = pool.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = conn.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            flag.set(true);
            if let Some(pool) = waiting.upgrade() {
                pool.sweep(Some(Instant::now()));
                pool.changed.notify_waiters();
            }
        });
        Ok(Rc::new(Self {
            send,
            streams: Cell::new(0),
            max_streams: if max_streams == 0 {
                u32::MAX
            } else {
                max_streams
            },
            io,
            meta: RefCell::new(meta),
            ended,
            pool,
        }))
    }

    fn has_room(&self) -> bool {
        !self.ended.get() && self.send.is_ready() && self.streams.get() < self.max_streams
    }

    fn lease(conn: Rc<Self>, reused: bool) -> H2Lease {
        conn.streams.set(conn.streams.get() + 1);
        conn.meta.borrow_mut().requests += 1;
        H2Lease { conn, reused }
    }
}

impl H2Lease {
    /// Whether the connection had served a request before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// This end's address.
    pub fn local(&self) -> Option<std::net::SocketAddr> {
        self.conn.meta.borrow().local
    }

    /// The pod of this node that it leads into.
    pub fn delivery(&self) -> Option<Arc<LocalPod>> {
        self.conn.meta.borrow().delivery.clone()
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(
        &mut self,
        request: Request<AttemptBody>,
    ) -> Result<Response<Incoming>, Box<SendError>> {
        let mut send = self.conn.send.clone();
        let read = self.conn.io.bytes_read();
        match send.try_send_request(request).await {
            Ok(response) => Ok(response),
            Err(mut failed) => {
                let unsent = failed.take_message();
                let error = failed.into_error();
                Err(Box::new(SendError {
                    unreceived: unsent.is_some() || is_refused(&error),
                    unsent,
                    answered: self.conn.io.bytes_read() != read,
                    error,
                }))
            }
        }
    }

    /// No further stream is to be opened on this connection.
    pub fn retire(&self) {
        self.conn.ended.set(true);
    }
}

/// Whether the peer says that it has not looked at the stream (RFC 9113 sections 5.4.1, 6.8).
pub fn is_refused(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|h2| {
        h2.reason() == Some(h2::Reason::REFUSED_STREAM) || (h2.is_go_away() && h2.is_remote())
    })
}

/// The HTTP/2 error below hyper's.
pub fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
