//! A request's body that can be sent more than once.
//!
//! Chunks that went upstream are kept, up to a bound, until a response has begun; a further try
//! sends them again and goes on where the first one stopped. Back-pressure is the client's: a
//! chunk is taken from downstream only when a try asks for it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Bytes that are kept for another try.
pub const REPLAY_LIMIT: usize = 256 << 10;

/// A request's body, for all tries.
#[derive(Clone, Debug)]
pub struct Replay(Option<Rc<RefCell<State>>>);

#[derive(Debug)]
struct State {
    source: Incoming,
    total: Option<u64>,
    received: u64,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// Whether `kept` is all that was received.
    replayable: bool,
    ended: bool,
    failed: bool,
    on_end: Option<Waker>,
}

/// The body of one try.
#[derive(Debug)]
pub struct AttemptBody {
    replay: Replay,
    /// Chunks of `kept` sent by this try.
    next: usize,
    sent: u64,
    done: bool,
}

impl Replay {
    /// Wraps a request's body; one without content costs nothing.
    pub fn new(source: Incoming) -> Self {
        if source.is_end_stream() {
            return Self(None);
        }
        Self(Some(Rc::new(RefCell::new(State {
            total: source.size_hint().exact(),
            source,
            received: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            replayable: true,
            ended: false,
            failed: false,
            on_end: None,
        }))))
    }

    /// No body.
    pub fn empty() -> Self {
        Self(None)
    }

    /// Whether there is no body at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the whole request has been received.
    pub fn is_ended(&self) -> bool {
        self.state(|s| s.ended).unwrap_or(true)
    }

    /// As [`Replay::is_ended`]; otherwise wakes the task when it is.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.state(|s| {
            if s.ended {
                return Poll::Ready(());
            }
            s.on_end = Some(cx.waker().clone());
            Poll::Pending
        })
        .unwrap_or(Poll::Ready(()))
    }

    /// Whether another try can be given the whole body.
    pub fn is_replayable(&self) -> bool {
        self.state(|s| s.replayable && !s.failed).unwrap_or(true)
    }

    /// Whether reading the request failed: the client is to blame, not the upstream.
    pub fn has_failed(&self) -> bool {
        self.state(|s| s.failed).unwrap_or(false)
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.state(|s| s.received).unwrap_or(0)
    }

    /// No further try will come: forgets what is kept.
    pub fn release(&self) {
        self.state(|s| {
            s.replayable = false;
            s.kept = Vec::new();
        });
    }

    /// The body for one more try.
    pub fn attempt(&self) -> AttemptBody {
        AttemptBody {
            replay: self.clone(),
            next: 0,
            sent: 0,
            done: self.is_empty(),
        }
    }

    fn state<R>(&self, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.0.as_ref().map(|state| f(&mut state.borrow_mut()))
    }
}

impl State {
    fn end(&mut self) {
        self.ended = true;
        if let Some(waker) = self.on_end.take() {
            waker.wake();
        }
    }

    fn keep(&mut self, chunk: &Bytes) {
        self.received += chunk.len() as u64;
        if !self.replayable {
            return;
        }
        self.kept_bytes += chunk.len();
        if self.kept_bytes > REPLAY_LIMIT {
            self.replayable = false;
            self.kept = Vec::new();
        } else {
            self.kept.push(chunk.clone());
        }
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    let chunk = chunk.clone();
                    self.keep(&chunk);
                    if self.source.is_end_stream() {
                        self.end();
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.failed = true;
                self.end();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }
}

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(state) = this.replay.0.as_ref().filter(|_| !this.done) else {
            return Poll::Ready(None);
        };
        let mut state = state.borrow_mut();
        if let Some(chunk) = state.kept.get(this.next) {
            let chunk = chunk.clone();
            this.next += 1;
            this.sent += chunk.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if state.ended {
            this.done = true;
            let trailers = state.trailers.clone();
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        let frame = ready!(state.poll_source(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    this.sent += chunk.len() as u64;
                }
                if frame.is_trailers() {
                    this.done = true;
                }
                this.next = state.kept.len();
            }
            _ => this.done = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.done
            || self.replay.state(|s| {
                s.ended && self.next >= s.kept.len() && s.trailers.is_none() && !s.failed
            }) != Some(false)
    }

    fn size_hint(&self) -> SizeHint {
        match self.replay.state(|s| s.total) {
            None => SizeHint::with_exact(0),
            Some(Some(total)) => SizeHint::with_exact(total.saturating_sub(self.sent)),
            Some(None) => SizeHint::default(),
        }
    }
}
