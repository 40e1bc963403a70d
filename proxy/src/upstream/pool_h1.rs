//! HTTP/1.1 connections to one host, one request at a time on each.
//!
//! A connection has no task of its own: whoever uses it polls it, so a request costs no hop
//! between tasks. Only where the response begins before the request has ended does it get one,
//! because both directions must then make progress alone. An idle connection is polled by nobody;
//! the kernel is asked whether it is alive when it is taken out.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::ConnectError;
use super::failure::Failure;
use super::pool::{Meta, Target};
use super::replay::AttemptBody;
use crate::acceleration::Carries;
use crate::cluster::breaker::Resource;
use crate::http::io::{IdleState, MessageSize, SharedIo};
use crate::worker::Worker;

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// Connections to one host.
#[derive(Default)]
pub struct H1Pool {
    idle: RefCell<Vec<H1Conn>>,
    freed: Notify,
    open: Cell<u32>,
}

/// A connection, idle or in use by one request.
pub struct H1Conn {
    send: http1::SendRequest<AttemptBody>,
    driver: Drive,
    io: SharedIo,
    meta: Meta,
    slot: Slot,
    reused: bool,
}

enum Drive {
    /// Whoever waits for the connection polls it.
    Inline(Driver),
    /// A task of its own polls it.
    Task,
    /// It has ended.
    Done,
}

/// A connection's place in its pool, given back when dropped.
struct Slot(Weak<H1Pool>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.open.set(pool.open.get() - 1);
            pool.freed.notify_one();
        }
    }
}

/// Why a request could not be sent, with the request where nothing of it was.
pub struct SendError {
    /// What happened.
    pub error: hyper::Error,
    /// The request, where no byte of it was written.
    pub unsent: Option<Request<AttemptBody>>,
    /// Whether the upstream cannot have received any of it.
    pub unreceived: bool,
    /// Whether any byte came back.
    pub answered: bool,
}

impl H1Pool {
    /// An idle connection, or a new one where there is none. `fresh` asks for a new one.
    ///
    /// # Errors
    /// Where a circuit breaker is open or connecting fails.
    pub async fn checkout(
        self: &Rc<Self>,
        worker: &Worker,
        target: &Target,
        fresh: bool,
    ) -> Result<H1Conn, Failure> {
        if !fresh && let Some(conn) = self.take_idle(worker, target) {
            return Ok(conn);
        }
        let breakers = target.entry.breakers();
        let _pending = breakers
            .acquire(Resource::Pending)
            .ok_or(Failure::Overflow)?;
        loop {
            let permit = breakers.acquire(Resource::Connection);
            // Without any connection nobody would ever free one: Envoy opens one regardless.
            if permit.is_some() || self.open.get() == 0 {
                self.open.set(self.open.get() + 1);
                let slot = Slot(Rc::downgrade(self));
                let conn = H1Conn::open(worker, target, permit, slot).await;
                return conn.inspect_err(|_| target.host.stats.cx_connect_fail.add(1));
            }
            self.freed.notified().await;
            if let Some(conn) = self.take_idle(worker, target) {
                return Ok(conn);
            }
        }
    }

    fn take_idle(&self, worker: &Worker, target: &Target) -> Option<H1Conn> {
        let now = Instant::now();
        loop {
            let mut conn = self.idle.borrow_mut().pop()?;
            if conn.meta.may_serve(now)
                && conn.meta.leads_to(&worker.connector, target)
                && conn.is_alive()
                && conn.io.is_settled()
            {
                conn.reused = true;
                return Some(conn);
            }
        }
    }

    pub(super) fn close_idle(&self) {
        let closed = std::mem::take(&mut *self.idle.borrow_mut());
        drop(closed);
    }

    /// Closes idle connections that may serve no more.
    pub(super) fn sweep(&self, now: Instant) {
        let (keep, closed): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.idle.borrow_mut())
            .into_iter()
            .partition(|conn| conn.meta.may_serve(now) && conn.is_alive());
        *self.idle.borrow_mut() = keep;
        drop(closed);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.open.get() == 0
    }
}

impl H1Conn {
    async fn open(
        worker: &Worker,
        target: &Target,
        permit: Option<crate::cluster::Permit>,
        slot: Slot,
    ) -> Result<Self, Failure> {
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
        stream.carry(Carries::Http1);
        let io = SharedIo::new(stream);
        let meta = Meta::new(target, &transport, io.local_addr().ok(), permit);
        worker.pools.watch(&io, &meta);
        let (send, conn) = http1::Builder::new()
            .handshake(TokioIo::new(io.clone()))
            .await
            .map_err(|error| {
                let source = std::io::Error::other(error);
                let address = target.host.address();
                Failure::Connect(ConnectError::Io { address, source })
            })?;
        Ok(Self {
            send,
            driver: Drive::Inline(Box::pin(conn.with_upgrades())),
            io,
            meta,
            slot,
            reused: false,
        })
    }

    /// Whether it had served a request before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// This end's address.
    pub fn local(&self) -> Option<std::net::SocketAddr> {
        self.meta.local
    }

    /// Whether it leads into a pod of this node.
    pub fn delivery(&self) -> Option<&std::sync::Arc<crate::pods::LocalPod>> {
        self.meta.delivery.as_ref()
    }

    fn is_alive(&self) -> bool {
        !self.send.is_closed()
            && !matches!(self.driver, Drive::Done)
            && self.io.idle_state() == IdleState::Alive
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// See [`SendError`]; the connection is then of no more use.
    pub async fn send(
        &mut self,
        request: Request<AttemptBody>,
    ) -> Result<Response<Incoming>, Box<SendError>> {
        self.meta.requests += 1;
        let size = request.body().size_hint().exact();
        self.io
            .announce(size.map_or(MessageSize::Streamed, MessageSize::Known));
        let (read, written) = (self.io.bytes_read(), self.io.bytes_written());
        let mut response = pin!(self.send.try_send_request(request));
        let driver = &mut self.driver;
        let result = std::future::poll_fn(|cx| {
            // Nobody but the driver can complete the response, so there is nothing to be woken
            // for while it is polled here.
            match driver.poll(cx) {
                Driven::Here => response
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop())),
                Driven::Elsewhere => response.as_mut().poll(cx),
            }
        })
        .await;
        result.map_err(|failed| Box::new(self.explain(failed, read, written)))
    }

    fn explain(
        &self,
        mut failed: TrySendError<Request<AttemptBody>>,
        read: u64,
        written: u64,
    ) -> SendError {
        let unsent = failed
            .take_message()
            .filter(|_| self.io.bytes_written() == written);
        SendError {
            unreceived: unsent.is_some() || self.io.is_unread_after(written),
            unsent,
            answered: self.io.bytes_read() != read,
            error: failed.into_error(),
        }
    }

    /// Lets the connection go on by itself: the request has not ended although the response has
    /// begun.
    pub fn detach(&mut self) {
        if let Drive::Inline(driver) = std::mem::replace(&mut self.driver, Drive::Task) {
            tokio::task::spawn_local(async move {
                if let Err(error) = driver.await {
                    tracing::debug!(%error, "upstream connection ended");
                }
            });
        }
    }

    /// The connection becomes a tunnel.
    pub fn upgrade(&mut self) {
        self.io.upgraded();
        self.detach();
    }

    /// Polls the connection if nobody else does. Returns whether a body read from it must be
    /// polled with a waker of its own.
    pub fn drive(&mut self, cx: &mut Context<'_>) -> Driven {
        self.driver.poll(cx)
    }

    /// Gives the connection back after its response has been read to the end.
    pub fn release(mut self) {
        // The connection notices the end of the exchange when it is polled once more.
        let mut noop = Context::from_waker(Waker::noop());
        self.driver.poll(&mut noop);
        if self.send.is_ready() {
            self.put_back();
        } else if matches!(self.driver, Drive::Task) {
            // The request is still being sent; nobody waits for that but the pool.
            tokio::task::spawn_local(async move {
                if self.send.ready().await.is_ok() {
                    self.put_back();
                }
            });
        }
    }

    fn put_back(mut self) {
        let now = Instant::now();
        self.meta.idle_since = now;
        self.io.exchanged(false);
        if self.send.is_closed() || !self.meta.may_serve(now) {
            return;
        }
        if let Some(pool) = self.slot.0.upgrade() {
            pool.idle.borrow_mut().push(self);
            pool.freed.notify_one();
        }
    }
}

/// Who polls a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// The caller just did.
    Here,
    /// A task of its own.
    Elsewhere,
}

impl Drive {
    fn poll(&mut self, cx: &mut Context<'_>) -> Driven {
        match self {
            Self::Inline(driver) => {
                if let Poll::Ready(result) = driver.as_mut().poll(cx) {
                    if let Err(error) = result {
                        tracing::debug!(%error, "upstream connection ended");
                    }
                    *self = Self::Done;
                }
                Driven::Here
            }
            Self::Task => Driven::Elsewhere,
            Self::Done => Driven::Here,
        }
    }
}
