//! Two connections of raw TCP, copied into each other, whose applications are to send to each other.
//!
//! Input: what `tcp::copy` reads and writes, and the lanes of both streams. Output: what it may do. A message that
//! was read, and not written yet, is the moment to ask: where requests are answered one by one nothing else is on
//! its way then. From then on neither connection is read or written until the agent has answered; then the message
//! goes on, and only when that is done is the way past the proxy opened. The first message that comes to the
//! proxy all the same closes it, and after a while, longer each time, this asks anew.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use millrace_runtime::handoff::Refusal;
use millrace_runtime::handoff::accel::MAX_REDIRECTED;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::Lane;
use crate::socket::Stream;

/// Messages of a pair, both promoted, before it asks first.
const FIRST: u32 = 4;
/// Messages after a splice that came to nothing, or ended, before it asks again; four times as many each time.
const AGAIN: u32 = 16;
/// How long the agent may take to answer. It takes tenths of a millisecond; a message waits for it.
const ANSWER: Duration = Duration::from_millis(50);
/// How often it is counted what goes past the proxy.
const COUNT: Duration = Duration::from_secs(5);
/// A splice that moved so many bytes was worth it: the next one is asked for as if it were the first.
const WORTH: u64 = 64 * 1024;

type Ends<'a> = [(&'a Lane, &'a TcpStream); 2];

/// See the module's documentation.
#[derive(Debug)]
pub struct Splicer {
    /// Messages that came to the proxy while it could ask.
    messages: u32,
    ask_at: u32,
    tries: u32,
    /// Bytes moved since the splice began.
    worth: Cell<u64>,
    asking: Option<Asking>,
    count: Option<Pin<Box<Sleep>>>,
    /// The way was closed, and what went it since it was counted last is not counted yet.
    uncounted: bool,
}

#[derive(Debug)]
struct Asking {
    answer: oneshot::Receiver<Result<(), Refusal>>,
    patience: Pin<Box<Sleep>>,
}

impl Default for Splicer {
    fn default() -> Self {
        Self {
            messages: 0,
            ask_at: FIRST,
            tries: 0,
            worth: Cell::new(0),
            asking: None,
            count: None,
            uncounted: false,
        }
    }
}

/// The lanes of both, where both have one.
fn ends<'a>(one: &'a Stream, other: &'a Stream) -> Option<Ends<'a>> {
    Some([one.lane()?, other.lane()?])
}

impl Splicer {
    /// A message of so many bytes was read and is not written yet. True where it has to wait: nothing may be read
    /// or written until [`Self::poll_answer`] is ready.
    pub fn heard(&mut self, from: &Stream, to: &Stream, bytes: usize) -> bool {
        let Some(ends) = ends(from, to) else {
            return false;
        };
        if is_open(&ends) {
            self.close(&ends);
            return false;
        }
        if !ends.iter().all(|(lane, _)| lane.may_be_direct()) {
            return false;
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages < self.ask_at || bytes > MAX_REDIRECTED {
            return false;
        }
        let [(lane, tcp), other] = ends;
        let Some(answer) = lane.ask_to_splice(tcp, other) else {
            self.put_off();
            return false;
        };
        self.asking = Some(Asking {
            answer,
            patience: Box::pin(tokio::time::sleep(ANSWER)),
        });
        true
    }

    /// Whether it waits for the agent.
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Nothing can be spliced any more.
    pub fn give_up(&mut self) {
        self.asking = None;
        self.ask_at = u32::MAX;
    }

    /// Ready when nothing is waited for: with true if the way may be opened, once nothing is left to be written.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>, one: &Stream) -> Poll<bool> {
        let Some(asking) = &mut self.asking else {
            return Poll::Ready(false);
        };
        let refused = match Pin::new(&mut asking.answer).poll(cx) {
            Poll::Ready(Ok(Ok(()))) => None,
            Poll::Ready(Ok(Err(why))) => Some(why),
            Poll::Ready(Err(_)) => Some(Refusal::Unavailable),
            Poll::Pending => {
                ready!(asking.patience.as_mut().poll(cx));
                // Whatever the agent does yet has no force: the way is not open.
                Some(Refusal::Withdrawn)
            }
        };
        self.asking = None;
        if let Some(why) = refused {
            self.refused(one, why);
        }
        Poll::Ready(refused.is_none())
    }

    /// What had been read is written, or is not: opens the way in the first case.
    pub fn open(&mut self, is_written: bool, one: &Stream, other: &Stream) {
        let Some(ends) = ends(one, other) else {
            return;
        };
        if !is_written {
            return self.refused(one, Refusal::Unread);
        }
        for (lane, tcp) in ends {
            lane.open(tcp);
        }
        self.worth.set(0);
        one.lane().inspect(|(lane, _)| lane.stats().spliced());
    }

    fn refused(&mut self, one: &Stream, why: Refusal) {
        if let Some((lane, _)) = one.lane() {
            lane.stats().not_spliced(why);
        }
        if why.is_final() {
            self.ask_at = u32::MAX;
        } else {
            self.put_off();
        }
    }

    fn put_off(&mut self) {
        let more = AGAIN.saturating_mul(4_u32.saturating_pow(self.tries));
        self.tries = self.tries.saturating_add(1);
        self.ask_at = self.messages.saturating_add(more);
    }

    /// The first message since has come to the proxy.
    fn close(&mut self, ends: &Ends<'_>) {
        for (lane, tcp) in ends {
            lane.close_way(tcp);
        }
        ends[0].0.stats().unspliced();
        self.count = None;
        self.uncounted = true;
        if self.worth.get() >= WORTH {
            self.tries = 0;
        }
        if self.ask_at != u32::MAX {
            self.put_off();
        }
    }

    /// Ready every now and then while the way is open, and when it was closed: it is time to count what went it.
    pub fn poll_count(&mut self, cx: &mut Context<'_>, one: &Stream, other: &Stream) -> Poll<()> {
        if std::mem::take(&mut self.uncounted) {
            return Poll::Ready(());
        }
        if !ends(one, other).is_some_and(|ends| is_open(&ends)) {
            return Poll::Pending;
        }
        let count = self
            .count
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(COUNT)));
        ready!(count.as_mut().poll(cx));
        count.as_mut().reset(Instant::now() + COUNT);
        Poll::Ready(())
    }

    /// Bytes of this stream's application that went past the proxy since this was asked last; and when the last of
    /// all did, if any did.
    pub fn moved(&self, stream: &Stream) -> (u64, Option<Instant>) {
        let moved = stream.lane().and_then(|(lane, tcp)| lane.moved(tcp));
        let Some(moved) = moved else {
            return (0, None);
        };
        self.worth.set(self.worth.get().saturating_add(moved.bytes));
        let at = (moved.bytes > 0).then(|| Instant::now().checked_sub(moved.quiet));
        (moved.bytes, at.flatten())
    }
}

fn is_open(ends: &Ends<'_>) -> bool {
    ends.iter().all(|(lane, _)| lane.is_direct())
}

#[cfg(test)]
mod tests;
