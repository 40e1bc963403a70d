//! The proxy's end of one connection that may be promoted: asks when the connection has earned it,
//! and from then on decides before each message to the application which way it goes.
//!
//! `way` is that decision, `ending` what the end of a connection needs, `moved` what another process does, `direct`
//! its part in a splice.

mod direct;
mod ending;
mod moved;
mod way;

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use millrace_runtime::handoff::Acceleration;
use millrace_runtime::handoff::accel::{AccelSpliced, AccelState, AccelWay, MAX_REDIRECTED};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Accelerator;
use super::entry::{Entry, Phase, Returned, Side};
use super::sockopt::{self, Mark};
use crate::pods::LocalPod;
use crate::socket::canonical;

pub use moved::LaneState;
use way::Wait;

/// Exchanges after which a connection asks: enough to see that it is kept alive and does not pipeline.
pub const EARNED: u32 = 4;
/// A refusal that need not last is tried this often, each time after four times as many exchanges.
const TRIES: u32 = 3;
/// An exchange of more bytes than this, both directions together, gains nothing from the map, and leaving
/// it costs a wait: the connection asks no sooner than [`AFTER_LARGE`] exchanges later.
const LARGE: u64 = 2 * MAX_REDIRECTED as u64;
/// Smaller exchanges that follow a large one before the connection asks.
const AFTER_LARGE: u32 = 64;
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
    /// Times that a connection of bytes has returned to TCP.
    returns: Cell<u32>,
    entry: RefCell<Option<Arc<Entry>>>,
    mark: Cell<Mark>,
    writes: Cell<u32>,
    /// The last message to the application had a body, or may have had one.
    had_body: Cell<bool>,
    /// The proxy's end is in the map for as long as it lives.
    was_in: Cell<bool>,
    /// A message went by the map since the promotion.
    redirects: Cell<bool>,
    /// The application has read one: no `recv` of its from before the promotion is under way.
    proved: Cell<bool>,
    /// Until then nobody is asked to take the connection out of the map.
    forced_until: Cell<Option<Instant>>,
    /// Since when a message of a spliced application may be on its way.
    unsettled: Cell<Option<Instant>>,
    /// What the application sent straight into another pod, as far as it is counted; `None` if it never did.
    moved: Cell<Option<AccelSpliced>>,
    wait: RefCell<Option<Wait>>,
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
            returns: Cell::new(0),
            entry: RefCell::default(),
            mark: Cell::new(Mark::Normal),
            writes: Cell::new(0),
            had_body: Cell::new(true),
            was_in: Cell::new(false),
            redirects: Cell::new(false),
            proved: Cell::new(false),
            forced_until: Cell::new(None),
            unsettled: Cell::new(None),
            moved: Cell::new(None),
            wait: RefCell::default(),
        }
    }

    /// Says what the connection carries.
    pub fn carry(&self, carries: Carries) {
        self.carries.set(carries);
    }

    /// Whether the proxy's end is in the map, or may be: only `EAGAIN` then means that nothing is left
    /// to read.
    pub fn reads_all(&self) -> bool {
        let entry = self.entry.borrow();
        self.was_in.get() || entry.as_ref().is_some_and(|entry| !entry.is_refused())
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
            self.ask_later(AFTER_LARGE);
        }
        if exchanges < self.ask_at.get() || !self.accelerator.is_available() {
            return;
        }
        if self.is_promoted() {
            return;
        }
        let phase = self.entry.borrow().as_ref().map(|entry| entry.phase());
        match phase {
            None | Some(Phase::Left) => self.ask(tcp),
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
            Some(_) => {}
        }
    }

    /// From the next message on everything goes by TCP.
    pub fn give_up(&self, why: Returned) {
        if let Some(entry) = &*self.entry.borrow() {
            self.give_up_entry(entry, why);
        }
    }

    fn give_up_entry(&self, entry: &Entry, why: Returned) {
        if !entry.give_up(why) {
            return;
        }
        if entry.is_promoted() {
            self.accelerator.stats().returned(why);
        }
        if !why.passes() {
            self.ask_at.set(u32::MAX);
        } else if self.carries.get() == Carries::Http1 {
            self.ask_later(AFTER_LARGE);
        } else {
            // Nobody says where a message ends, so that what comes of it may differ each time.
            let returns = self.returns.get();
            self.returns.set(returns + 1);
            self.ask_later(AFTER_LARGE.saturating_mul(4_u32.saturating_pow(returns)));
        }
    }

    fn ask_later(&self, exchanges: u32) {
        let ask_at = self.exchanges.get().saturating_add(exchanges);
        self.ask_at.set(self.ask_at.get().max(ask_at));
    }

    fn ask(&self, tcp: &TcpStream) {
        let carries = self.carries.get();
        if !carries.is_allowed(self.setting) {
            return self.ask_at.set(u32::MAX);
        }
        let (Ok(local), Ok(remote)) = (tcp.local_addr(), tcp.peer_addr()) else {
            return;
        };
        // Nothing is sent from here on until the answer is there.
        if let Err(error) = self.set_mark(tcp, Mark::Normal) {
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
        if !self.accelerator.ask(&entry) {
            return self.ask_at.set(self.exchanges.get().saturating_mul(2));
        }
        self.redirects.set(false);
        self.proved.set(false);
        // The wait for an earlier answer may have ended between two messages.
        self.wait.take();
        // Reads go until EAGAIN from now on; they are this thread's, as asking is.
        if let Some(left) = self.entry.replace(Some(entry)) {
            self.accelerator.forget(left.id());
        }
    }

    fn set_mark(&self, tcp: &TcpStream, mark: Mark) -> io::Result<()> {
        if self.mark.get() != mark {
            mark.set(tcp)?;
            self.mark.set(mark);
        }
        Ok(())
    }

    /// So many bytes were written of what was last asked about.
    pub fn wrote(&self, tcp: &TcpStream, count: usize) {
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

    /// Notes what the kernel has just said.
    fn look(&self, way: &AccelWay) {
        if self.redirects.get() && way.unread_redirected == 0 {
            self.proved.set(true);
        }
    }
}

/// What the kernel knows now. Where it tells nothing, the counters stay what they were and nobody is left to
/// read anything.
fn sample(tcp: &TcpStream, entry: &Entry) -> AccelState {
    let state = sockopt::state(tcp).unwrap_or_else(|| AccelState {
        unread_redirected: 0,
        unread_tcp: 0,
        ..entry.state()
    });
    entry.set_state(state);
    state
}
