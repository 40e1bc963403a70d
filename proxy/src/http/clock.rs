//! The time that a request may take: to arrive, in all, and without activity. Kept by its [`Exchange`](super::exchange),
//! polled by whoever waits for the upstream or for the client, and answered with the [`Failure`] whose bound has passed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::upstream::failure::Failure;
use crate::upstream::replay::Replay;

/// Timeouts that run over the whole stream.
pub struct Clock {
    idle: Duration,
    idle_sleep: Option<Pin<Box<Sleep>>>,
    last: Instant,
    received: u64,
    global: Option<Duration>,
    global_sleep: Option<Pin<Box<Sleep>>>,
    /// Bound of the request's arrival; zero once there is none.
    request: Duration,
    request_sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Timeouts of a stream; zero is unbounded.
    pub fn new(now: Instant, idle: Duration, request: Duration) -> Self {
        Self {
            idle,
            idle_sleep: None,
            last: now,
            received: 0,
            global: None,
            global_sleep: None,
            request,
            request_sleep: None,
        }
    }

    /// The route's own bounds.
    pub fn set_route(&mut self, idle: Option<Duration>, global: Option<Duration>) {
        if let Some(idle) = idle {
            self.idle = idle;
            self.idle_sleep = None;
        }
        self.global = global;
    }

    /// Something happened on the stream.
    pub fn touch(&mut self) {
        self.last = Instant::now();
    }

    /// The response has begun, whether or not all of the request has come.
    pub fn responding(&mut self) {
        self.touch();
        self.request = Duration::ZERO;
        self.request_sleep = None;
    }

    /// Bound of the time without activity; zero is unbounded.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// The bound that has passed, if one has.
    pub fn poll(&mut self, cx: &mut Context<'_>, body: &Replay) -> Poll<Failure> {
        if let Some(limit) = self.global
            && (self.global_sleep.is_some() || body.poll_ended(cx).is_ready())
        {
            let sleep = self
                .global_sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Failure::Timeout);
            }
        }
        if !self.request.is_zero() && !body.is_ended() {
            // `last` is when the request came until something else happens, and by then this
            // timer runs.
            let until = self.last + self.request;
            let sleep = self
                .request_sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Failure::RequestTimeout);
            }
        }
        if self.idle.is_zero() {
            return Poll::Pending;
        }
        let sleep = self
            .idle_sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.idle)));
        while sleep.as_mut().poll(cx).is_ready() {
            let received = body.received();
            if received != self.received {
                self.received = received;
                self.last = Instant::now();
            }
            let deadline = self.last + self.idle;
            if deadline <= Instant::now() {
                return Poll::Ready(Failure::Idle);
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
