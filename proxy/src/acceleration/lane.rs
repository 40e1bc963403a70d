//! The proxy's end of one connection that may be promoted: asks when the connection has earned it,
//! and from then on decides before each message to the application which way it goes.
//!
//! Never both kinds pending at the application: what goes by TCP waits until the application has read
//! what went by the map. On HTTP/1.1 it has, or it pipelines, and then the connection returns to TCP.

mod moved;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use millrace_runtime::handoff::Acceleration;
use millrace_runtime::handoff::accel::{
    AccelState, MAX_REDIRECTED, PRIORITY_BY_TCP, PRIORITY_NORMAL, PRIORITY_WITHDRAWN,
    SOCKOPT_LEVEL, SOCKOPT_STATE,
};
use nix::sys::socket::{GetSockOpt, setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::entry::{Entry, Phase, Returned, Side};
use super::{Accelerator, message};
use crate::http::io::MessageSize;
use crate::pods::LocalPod;
use crate::socket::canonical;

pub use moved::LaneState;

/// Exchanges after which a connection asks: enough to see that it is kept alive and does not pipeline.
pub const EARNED: u32 = 4;
/// A refusal that need not last is tried this often, each time after four times as many exchanges.
const TRIES: u32 = 3;
/// An exchange of more bytes than this, both directions together, gains nothing from the map, and in it
/// costs more than outside: the connection asks no sooner than [`AFTER_LARGE`] exchanges later. It cannot
/// be taken out again, so that one with only large exchanges must not come in.
const LARGE: u64 = 2 * MAX_REDIRECTED as u64;
/// Smaller exchanges that follow a large one before the connection asks.
const AFTER_LARGE: u32 = 64;
/// Pause before the kernel is asked again whether the application has read.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);
/// An application that reads nothing of what was redirected for this long counts as stalled.
const STALLED: Duration = Duration::from_secs(10);
/// The kernel's counters are read at the first, second, fourth ... and every so many messages.
const SAMPLE_EVERY: u32 = 64;

/// What a connection carries, as far as acceleration cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carries {
    /// Nobody has said: the connection never asks.
    Unknown,
    /// HTTP/1.1, whose messages are known.
    Http1,
    /// HTTP/2 or bytes of which the proxy knows nothing; for pods whose operator vouches.
    Bytes,
}

impl Carries {
    /// As the admin port shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Http1 => "http1",
            Self::Bytes => "bytes",
        }
    }

    /// Whether a pod with this setting has connections promoted that carry it.
    pub fn is_allowed(self, setting: Acceleration) -> bool {
        match setting {
            Acceleration::Auto => self == Self::Http1,
            Acceleration::On => self != Self::Unknown,
            Acceleration::Off => false,
        }
    }
}

/// The value of `SO_PRIORITY`, which the kernel programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mark {
    Normal,
    ByTcp,
    Withdrawn,
}

impl Mark {
    fn priority(self) -> i32 {
        let value = match self {
            Self::Normal => PRIORITY_NORMAL,
            Self::ByTcp => PRIORITY_BY_TCP,
            Self::Withdrawn => PRIORITY_WITHDRAWN,
        };
        value.cast_signed()
    }
}

/// Answers the kernel's [`AccelState`] of a promoted connection.
#[derive(Clone, Copy, Debug)]
struct State;

nix::getsockopt_impl!(
    State,
    SOCKOPT_LEVEL,
    SOCKOPT_STATE,
    [u8; AccelState::SIZE],
    sockopt::GetStruct<[u8; AccelState::SIZE]>
);

/// See the module's documentation. Lives in the connection's [`Stream`](crate::socket::Stream), on
/// the connection's worker.
#[derive(Debug)]
pub struct Lane {
    accelerator: Accelerator,
    pod: Arc<LocalPod>,
    side: Side,
    setting: Acceleration,
    carries: Cell<Carries>,
    exchanges: Cell<u32>,
    /// Exchanges after which it asks next.
    ask_at: Cell<u32>,
    tries: Cell<u32>,
    entry: RefCell<Option<Arc<Entry>>>,
    mark: Cell<Mark>,
    /// Length of the message that is about to be written by the map.
    due: Cell<usize>,
    /// What is left of it where the kernel did not take all.
    left: Cell<usize>,
    writes: Cell<u32>,
    /// The last message to the application had a body, or may have had one.
    had_body: Cell<bool>,
    drain: RefCell<Option<Drain>>,
}

/// Waiting for an application to read.
#[derive(Debug)]
struct Drain {
    since: Instant,
    sleep: Pin<Box<Sleep>>,
    stalled: bool,
}

impl Lane {
    /// A lane of a connection that has not earned anything yet.
    pub fn new(
        accelerator: Accelerator,
        pod: Arc<LocalPod>,
        side: Side,
        setting: Acceleration,
    ) -> Self {
        Self {
            accelerator,
            pod,
            side,
            setting,
            carries: Cell::new(Carries::Unknown),
            exchanges: Cell::new(0),
            ask_at: Cell::new(EARNED),
            tries: Cell::new(0),
            entry: RefCell::default(),
            mark: Cell::new(Mark::Normal),
            due: Cell::new(0),
            left: Cell::new(0),
            writes: Cell::new(0),
            had_body: Cell::new(true),
            drain: RefCell::default(),
        }
    }

    /// Says what the connection carries.
    pub fn carry(&self, carries: Carries) {
        self.carries.set(carries);
    }

    /// Whether the connection is in the map, or may be: only `EAGAIN` then means that nothing is left
    /// to read.
    pub fn reads_all(&self) -> bool {
        let entry = self.entry.borrow();
        entry.as_ref().is_some_and(|entry| !entry.is_refused())
    }

    /// Whether messages may go by the map.
    pub fn is_promoted(&self) -> bool {
        let entry = self.entry.borrow();
        entry.as_ref().is_some_and(|entry| entry.is_promoted())
    }

    /// A request and its response of `bytes` together are over; `pipelined` where the request had come
    /// before the response before it was over.
    pub fn exchanged(&self, tcp: &TcpStream, bytes: u64, pipelined: bool) {
        if pipelined {
            self.ask_at.set(u32::MAX);
            self.give_up(Returned::Pipelining);
            return;
        }
        let exchanges = self.exchanges.get().saturating_add(1);
        self.exchanges.set(exchanges);
        if bytes > LARGE {
            let ask_at = exchanges.saturating_add(AFTER_LARGE);
            self.ask_at.set(self.ask_at.get().max(ask_at));
        }
        if exchanges < self.ask_at.get() || !self.accelerator.is_available() {
            return;
        }
        if self.is_promoted() {
            return;
        }
        let phase = self.entry.borrow().as_ref().map(|entry| entry.phase());
        match phase {
            None => self.ask(tcp),
            Some(Phase::Refused(why)) => {
                self.entry.replace(None);
                let tries = self.tries.get() + 1;
                self.tries.set(tries);
                let again = !why.is_final() && tries < TRIES;
                let next = if again {
                    exchanges.saturating_mul(4)
                } else {
                    u32::MAX
                };
                self.ask_at.set(next);
            }
            Some(Phase::Asked | Phase::Promoted | Phase::Unanswered) => {}
        }
    }

    /// From the next message on everything goes by TCP.
    pub fn give_up(&self, why: Returned) {
        if let Some(entry) = &*self.entry.borrow()
            && entry.give_up(why)
            && entry.is_promoted()
        {
            self.accelerator.stats().returned(why);
        }
    }

    fn ask(&self, tcp: &TcpStream) {
        let carries = self.carries.get();
        if !carries.is_allowed(self.setting) {
            return self.ask_at.set(u32::MAX);
        }
        let (Ok(local), Ok(remote)) = (tcp.local_addr(), tcp.peer_addr()) else {
            return;
        };
        // What is under way when the kernel takes the connection in goes by TCP to its end.
        if let Err(error) = self.set_mark(tcp, Mark::ByTcp) {
            tracing::debug!(%error, "cannot mark a connection, it stays plain TCP");
            return self.ask_at.set(u32::MAX);
        }
        let entry = Arc::new(Entry::new(
            self.accelerator.next_id(),
            self.pod.clone(),
            self.side,
            carries,
            (canonical(local), canonical(remote)),
        ));
        // Before the request is sent: from the answer on, reads go until EAGAIN.
        self.entry.replace(Some(entry.clone()));
        if !self.accelerator.ask(&entry) {
            self.entry.replace(None);
            self.ask_at.set(self.exchanges.get().saturating_mul(2));
        }
    }

    fn set_mark(&self, tcp: &TcpStream, mark: Mark) -> io::Result<()> {
        if self.mark.get() != mark {
            setsockopt(tcp, sockopt::Priority, &mark.priority())?;
            self.mark.set(mark);
        }
        Ok(())
    }

    /// Ready when `parts` may be written now, with the socket marked for the way that they go.
    ///
    /// # Errors
    /// When the socket cannot be marked; it must not be written then.
    pub fn poll_way(
        &self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        size: MessageSize,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<()>> {
        self.due.set(0);
        self.had_body.set(size != MessageSize::Known(0));
        let entry = self.entry.borrow();
        let Some(entry) = entry.as_ref().filter(|entry| entry.is_promoted()) else {
            return Poll::Ready(Ok(()));
        };
        if self.left.get() > 0 {
            return Poll::Ready(Ok(()));
        }
        let total = message::length(parts);
        let by_map = entry.returned().is_none()
            && match self.carries.get() {
                Carries::Http1 => message::is_whole(size, parts),
                Carries::Bytes => total <= MAX_REDIRECTED && self.is_read(tcp, entry),
                Carries::Unknown => false,
            };
        if by_map {
            self.due.set(total);
            return Poll::Ready(self.set_mark(tcp, Mark::Normal));
        }
        if self.mark.get() == Mark::Normal && self.poll_drained(cx, tcp, entry).is_pending() {
            return Poll::Pending;
        }
        let mark = if entry.returned().is_some() {
            Mark::Withdrawn
        } else {
            Mark::ByTcp
        };
        Poll::Ready(self.set_mark(tcp, mark))
    }

    /// Whether an application that is sent bytes has read what it was sent before. One that has not
    /// is streamed to, and that is for TCP.
    fn is_read(&self, tcp: &TcpStream, entry: &Entry) -> bool {
        let read = sample(tcp, entry).unread_redirected == 0;
        if !read {
            self.give_up(Returned::Streaming);
        }
        read
    }

    /// Ready when the application has read what went by the map.
    fn poll_drained(&self, cx: &mut Context<'_>, tcp: &TcpStream, entry: &Entry) -> Poll<()> {
        let mut drain = self.drain.borrow_mut();
        while sample(tcp, entry).unread_redirected > 0 {
            let drain = drain.get_or_insert_with(|| Drain {
                since: Instant::now(),
                sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
                stalled: false,
            });
            if !drain.stalled && drain.since.elapsed() >= STALLED {
                drain.stalled = true;
                entry.set_stalled();
                self.accelerator.stats().stalled();
                tracing::warn!(pod = %self.pod.spec.qualified_name(),
                    "an application reads nothing of an accelerated connection");
            }
            drain.sleep.as_mut().reset(Instant::now() + DRAIN_PAUSE);
            if drain.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        *drain = None;
        Poll::Ready(())
    }

    /// So many bytes were written of what was last asked about.
    pub fn wrote(&self, tcp: &TcpStream, count: usize) {
        let left = if self.left.get() > 0 {
            self.left.get()
        } else {
            self.due.get()
        };
        self.left.set(left.saturating_sub(count));
        self.due.set(0);
        if self.carries.get() == Carries::Bytes && count <= MAX_REDIRECTED && !self.is_promoted() {
            return self.exchanged(tcp, count as u64, false);
        }
        let writes = self.writes.get().wrapping_add(1);
        self.writes.set(writes);
        if (writes.is_power_of_two() || writes.is_multiple_of(SAMPLE_EVERY))
            && let Some(entry) = &*self.entry.borrow()
            && entry.is_promoted()
        {
            sample(tcp, entry);
        }
    }

    /// Whether the application that has answered has read everything that it was sent, as far as the
    /// kernel knows of a promoted connection. Who answers a request without a body and keeps the
    /// connection has read its head, so that the kernel need not be asked.
    pub fn is_settled(&self, tcp: &TcpStream) -> bool {
        if !self.had_body.get() {
            return true;
        }
        let entry = self.entry.borrow();
        let Some(entry) = entry.as_ref().filter(|entry| entry.is_promoted()) else {
            return true;
        };
        let state = sample(tcp, entry);
        state.unread_redirected == 0 && state.unread_tcp == 0
    }

    /// The connection is about to be closed: with a reset where bytes are unread, as TCP does, which
    /// does not see those that were redirected.
    pub fn close(&self, tcp: &TcpStream) {
        let Some(entry) = self.entry.take() else {
            return;
        };
        if !entry.is_refused() {
            let mut byte = [MaybeUninit::uninit()];
            let socket = SockRef::from(tcp);
            if matches!(socket.peek(&mut byte), Ok(1..))
                && let Err(error) = tcp.set_zero_linger()
            {
                tracing::trace!(%error, "cannot set SO_LINGER");
            }
        }
        if entry.is_promoted() {
            self.accelerator.stats().closed(&sample(tcp, &entry));
        }
        self.accelerator.forget(entry.id());
    }
}

/// What the kernel knows now. Where it tells nothing, as of a connection whose other end is closed,
/// the counters stay what they were and nobody is left to read anything.
fn sample(tcp: &TcpStream, entry: &Entry) -> AccelState {
    let state = match State.get(tcp) {
        Ok(bytes) => AccelState::from_bytes(&bytes),
        Err(error) => {
            tracing::trace!(%error, "the kernel tells nothing of a promoted connection");
            AccelState {
                unread_redirected: 0,
                unread_tcp: 0,
                ..entry.state()
            }
        }
    };
    entry.set_state(state);
    state
}
