//! Moves bytes both ways between two connections until both directions have ended.
//!
//! Input: the downstream and the upstream stream. Output: how it ended ([`End`]), or where it was
//! interrupted ([`Progress`]), so that it can go on in another process. A FIN is passed
//! on after the last byte before it, a reset as a reset. Bytes are read into the worker's scratch
//! buffer and written at once; only what the other side does not take is kept, at most one buffer
//! per direction, and until it is gone nothing more is read. An idle connection holds no buffer.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::acceleration::splice::Splicer;
use crate::handover::message::Flow;
use crate::socket::Stream;

#[cfg(test)]
mod tests;

/// Size of a worker's scratch buffer, and so the most that one direction holds back.
pub const BUFFER: usize = 64 * 1024;

/// A worker's buffer, used only within one poll.
pub type Scratch = RefCell<Box<[u8]>>;

/// A new scratch buffer.
pub fn scratch() -> Scratch {
    RefCell::new(vec![0; BUFFER].into_boxed_slice())
}

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Downstream,
    /// The endpoint's.
    Upstream,
}

/// How a pair of connections ended.
#[derive(Debug)]
pub enum End {
    /// Both sides have said all they had to say.
    Finished,
    /// This side failed or was reset; closing the other one will reset it.
    Reset(Side, io::Error),
    /// No byte for as long as the idle timeout.
    Idle,
}

/// What a copy needs besides the streams.
pub struct Terms<'a, F> {
    /// The worker's buffer.
    pub scratch: &'a Scratch,
    /// No byte for this long ends the copy; zero disables.
    pub idle_timeout: Duration,
    /// Hears of every byte that was read, with the side it came from.
    pub passed: F,
}

/// How a copy came to its end.
#[derive(Debug)]
pub enum Copied<T> {
    /// The connections have ended.
    Ended(End),
    /// It was interrupted; nothing is read or written until it goes on from its [`Progress`].
    Parked(T),
}

/// What lies between two connections that are copied into each other.
#[derive(Debug)]
pub struct Progress {
    out: Direction,
    back: Direction,
    splicer: Splicer,
    /// When the last byte came.
    last: Cell<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            out: Direction::new(Side::Downstream),
            back: Direction::new(Side::Upstream),
            splicer: Splicer::default(),
            last: Cell::new(Instant::now()),
        }
    }
}

impl Progress {
    /// Goes on where another process stopped: from downstream, from upstream, each with the bytes that
    /// it had not written, `quiet` after the last byte.
    pub fn resume(flows: [(Flow, &[u8]); 2], quiet: Duration) -> Self {
        let [out, back] = flows;
        let now = Instant::now();
        Self {
            out: Direction::resume(Side::Downstream, out),
            back: Direction::resume(Side::Upstream, back),
            splicer: Splicer::default(),
            last: Cell::new(now.checked_sub(quiet).unwrap_or(now)),
        }
    }

    /// Where it stands: from downstream, from upstream, each with the bytes that are not written.
    pub fn flows(&self) -> [(Flow, &[u8]); 2] {
        [&self.out, &self.back].map(Direction::flow)
    }

    /// Time since the last byte.
    pub fn quiet(&self) -> Duration {
        self.last.get().elapsed()
    }
}

/// Copies until both directions have ended, or until `park` is ready.
pub async fn copy<F: Fn(Side, usize), T>(
    downstream: &mut Stream,
    upstream: &mut Stream,
    progress: &mut Progress,
    terms: &Terms<'_, F>,
    park: impl Future<Output = T>,
) -> Copied<T> {
    let copied = run(downstream, upstream, progress, terms, pin!(park)).await;
    count(
        &progress.splicer,
        downstream,
        upstream,
        terms,
        &progress.last,
    );
    match &copied {
        Copied::Ended(End::Reset(Side::Downstream, _)) => upstream.reset_on_close(),
        Copied::Ended(End::Reset(Side::Upstream, _)) => downstream.reset_on_close(),
        // Nobody noted when the last byte came; whoever goes on with it may have a timeout.
        Copied::Parked(_) if terms.idle_timeout.is_zero() => progress.last.set(Instant::now()),
        Copied::Ended(End::Finished | End::Idle) | Copied::Parked(_) => {}
    }
    copied
}

async fn run<F: Fn(Side, usize), T>(
    downstream: &mut Stream,
    upstream: &mut Stream,
    progress: &mut Progress,
    terms: &Terms<'_, F>,
    mut park: Pin<&mut impl Future<Output = T>>,
) -> Copied<T> {
    let Progress {
        out,
        back,
        splicer,
        last,
    } = progress;
    let idle = Idle {
        timeout: terms.idle_timeout,
        last,
    };
    let mut timer = pin!(idle.timer());
    let first = std::future::poll_fn(|cx| {
        let ends = (&mut *downstream, &mut *upstream);
        if let Err(end) = advance_both(cx, (out, back), ends, splicer, &idle, terms) {
            return Poll::Ready(Some(Copied::Ended(end)));
        }
        if !splicer.is_asking() && (out.is_over() || back.is_over()) {
            return Poll::Ready(None);
        }
        if let Poll::Ready(parked) = park.as_mut().poll(cx) {
            return Poll::Ready(Some(Copied::Parked(parked)));
        }
        while splicer.poll_count(cx, downstream, upstream).is_ready() {
            count(splicer, downstream, upstream, terms, last);
        }
        let count = || count(splicer, downstream, upstream, terms, last);
        idle.poll(cx, timer.as_mut(), count)
            .map(|end| Some(Copied::Ended(end)))
    });
    if let Some(copied) = first.await {
        return copied;
    }
    splicer.give_up();
    // One direction is over, so nothing is read from its source any more: a reset of it
    // would go unnoticed if it were not watched for.
    let watched = (&idle, timer, terms, park, splicer);
    let last = if out.is_over() {
        finish(back, upstream, downstream, watched).await
    } else {
        finish(out, downstream, upstream, watched).await
    };
    match (last, out.broken.take(), back.broken.take()) {
        (Some(copied), out_broken, back_broken) => {
            (out.broken, back.broken) = (out_broken, back_broken);
            copied
        }
        (None, Some(error), _) => Copied::Ended(End::Reset(Side::Upstream, error)),
        (None, None, Some(error)) => Copied::Ended(End::Reset(Side::Downstream, error)),
        (None, None, None) => Copied::Ended(End::Finished),
    }
}

/// Moves what can be moved now, both ways; nothing while the agent's word on a splice is waited for.
fn advance_both<F: Fn(Side, usize)>(
    cx: &mut Context<'_>,
    (out, back): (&mut Direction, &mut Direction),
    (downstream, upstream): (&mut Stream, &mut Stream),
    splicer: &mut Splicer,
    idle: &Idle<'_>,
    terms: &Terms<'_, F>,
) -> Result<(), End> {
    loop {
        if splicer.is_asking() {
            let Poll::Ready(granted) = splicer.poll_answer(cx, downstream) else {
                return Ok(());
            };
            if granted {
                let written = out.flush(cx, upstream) & back.flush(cx, downstream);
                splicer.open(written, downstream, upstream);
            }
        }
        out.advance(cx, downstream, upstream, splicer, idle, terms)?;
        if !splicer.is_asking() {
            back.advance(cx, upstream, downstream, splicer, idle, terms)?;
        }
        if !splicer.is_asking() {
            return Ok(());
        }
    }
}

/// What the direction that is left is run with.
type Watched<'a, 'b, F, P> = (
    &'a Idle<'b>,
    Pin<&'a mut Option<Sleep>>,
    &'a Terms<'b, F>,
    Pin<&'a mut P>,
    &'a mut Splicer,
);

/// Runs the direction that is left until it is over (`None`) or the pair has to end.
async fn finish<F: Fn(Side, usize), T, P: Future<Output = T>>(
    direction: &mut Direction,
    from: &mut Stream,
    to: &Stream,
    (idle, mut timer, terms, mut park, splicer): Watched<'_, '_, F, P>,
) -> Option<Copied<T>> {
    let mut failed = pin!(to.failed());
    std::future::poll_fn(|cx| {
        if let Err(end) = direction.advance(cx, from, to, splicer, idle, terms) {
            return Poll::Ready(Some(Copied::Ended(end)));
        }
        if direction.is_over() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(error) = failed.as_mut().poll(cx) {
            let end = End::Reset(direction.sink(), error);
            return Poll::Ready(Some(Copied::Ended(end)));
        }
        if let Poll::Ready(parked) = park.as_mut().poll(cx) {
            return Poll::Ready(Some(Copied::Parked(parked)));
        }
        let (downstream, upstream) = match direction.from {
            Side::Downstream => (&*from, to),
            Side::Upstream => (to, &*from),
        };
        while splicer.poll_count(cx, downstream, upstream).is_ready() {
            count(splicer, downstream, upstream, terms, idle.last);
        }
        let count = || count(splicer, downstream, upstream, terms, idle.last);
        idle.poll(cx, timer.as_mut(), count)
            .map(|end| Some(Copied::Ended(end)))
    })
    .await
}

/// Counts what went past the proxy since that was done last.
fn count<F: Fn(Side, usize)>(
    splicer: &Splicer,
    downstream: &Stream,
    upstream: &Stream,
    terms: &Terms<'_, F>,
    last: &Cell<Instant>,
) {
    for (side, stream) in [(Side::Downstream, downstream), (Side::Upstream, upstream)] {
        let (bytes, at) = splicer.moved(stream);
        let Some(at) = at else { continue };
        (terms.passed)(side, usize::try_from(bytes).unwrap_or(usize::MAX));
        if !terms.idle_timeout.is_zero() {
            last.set(last.get().max(at));
        }
    }
}

/// Bytes on their way from one side to the other.
#[derive(Debug)]
struct Direction {
    from: Side,
    /// What was read and not yet written.
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    /// The source has ended.
    ended: bool,
    /// ... and the sink knows.
    told: bool,
    /// The sink takes nothing any more. What it sent before is still delivered, so this ends
    /// one direction alone.
    broken: Option<io::Error>,
}

impl Direction {
    fn new(from: Side) -> Self {
        Self {
            from,
            pending: Vec::new(),
            written: 0,
            ended: false,
            told: false,
            broken: None,
        }
    }

    fn resume(from: Side, (flow, pending): (Flow, &[u8])) -> Self {
        Self {
            pending: pending.to_vec(),
            ended: flow.ended,
            told: flow.told,
            broken: flow.broken.map(io::Error::from_raw_os_error),
            ..Self::new(from)
        }
    }

    fn flow(&self) -> (Flow, &[u8]) {
        let pending = &self.pending[self.written..];
        let broken = self.broken.as_ref();
        let flow = Flow {
            pending: pending.len(),
            ended: self.ended,
            told: self.told,
            broken: broken.map(|error| error.raw_os_error().unwrap_or(libc::EPIPE)),
        };
        (flow, pending)
    }

    fn is_over(&self) -> bool {
        self.told || self.broken.is_some()
    }

    fn sink(&self) -> Side {
        match self.from {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        }
    }

    /// Moves what can be moved now.
    fn advance<F: Fn(Side, usize)>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &Stream,
        splicer: &mut Splicer,
        idle: &Idle<'_>,
        terms: &Terms<'_, F>,
    ) -> Result<(), End> {
        while !self.is_over() && self.flush(cx, to) {
            if self.ended {
                match to.end_writing() {
                    Ok(()) => self.told = true,
                    Err(error) => self.broken = Some(error),
                }
                continue;
            }
            let mut scratch = terms.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(End::Reset(self.from, error)),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.ended = true;
                continue;
            }
            idle.touch();
            (terms.passed)(self.from, bytes.len());
            if splicer.heard(from, to, bytes.len()) {
                self.pending = bytes.to_vec();
                self.written = 0;
                break;
            }
            self.send(cx, to, bytes);
        }
        Ok(())
    }

    /// Writes bytes just read and keeps what is not taken.
    fn send(&mut self, cx: &mut Context<'_>, to: &Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match to.poll_write_shared(cx, bytes) {
                Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    return;
                }
                Poll::Pending => {
                    self.pending = bytes.to_vec();
                    self.written = 0;
                    return;
                }
            }
        }
    }

    /// Whether everything that was read is written.
    fn flush(&mut self, cx: &mut Context<'_>, to: &Stream) -> bool {
        while self.written < self.pending.len() {
            match to.poll_write_shared(cx, &self.pending[self.written..]) {
                Poll::Ready(Ok(n)) => self.written += n,
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    self.pending = Vec::new();
                    return false;
                }
                Poll::Pending => return false,
            }
        }
        self.pending = Vec::new();
        self.written = 0;
        true
    }
}

/// The idle timeout: bytes only note the time, the timer looks at the note when it fires.
struct Idle<'a> {
    timeout: Duration,
    last: &'a Cell<Instant>,
}

impl Idle<'_> {
    fn timer(&self) -> Option<Sleep> {
        (!self.timeout.is_zero()).then(|| tokio::time::sleep_until(self.deadline()))
    }

    fn deadline(&self) -> Instant {
        self.last.get() + self.timeout
    }

    fn touch(&self) {
        if !self.timeout.is_zero() {
            self.last.set(Instant::now());
        }
    }

    /// `count` notes what came without the proxy's seeing it.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        timer: Pin<&mut Option<Sleep>>,
        count: impl Fn(),
    ) -> Poll<End> {
        let Some(mut timer) = timer.as_pin_mut() else {
            return Poll::Pending;
        };
        while timer.as_mut().poll(cx).is_ready() {
            count();
            if self.deadline() <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(self.deadline());
        }
        Poll::Pending
    }
}
