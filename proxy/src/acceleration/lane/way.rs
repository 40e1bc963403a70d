//! Before a message to the application: which way it goes, and what has to happen first.
//!
//! By the map goes what is small, to an application that has read everything. For anything else the
//! application's end leaves the map: it reads what is left, the agent takes it out, and everything goes by
//! TCP. Nothing is sent while the agent is asked. Where it does not answer in time the lane takes its mark
//! back and asks the kernel what has been done; a connection that nobody takes out goes on by the map, in
//! pieces, each when the one before it is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use millrace_runtime::handoff::Refusal;
use millrace_runtime::handoff::accel::{AccelWay, MAX_REDIRECTED, Membership};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::super::entry::{Entry, Phase, Returned};
use super::super::sockopt::{self, Mark};
use super::Lane;
use crate::http::io::MessageSize;

/// How long the agent may take to answer. It takes tenths of a millisecond; a message waits for it.
const ANSWER: Duration = Duration::from_millis(50);
/// Pause before the kernel is asked again whether the application has read.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);
/// Pause before an agent that did not take a connection out is asked again.
const FORCED: Duration = Duration::from_secs(1);
/// An application that reads nothing of what was redirected for this long counts as stalled.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// As many bytes as there are.
const ANY: usize = usize::MAX;

/// Waiting for the application or for the agent.
#[derive(Debug)]
pub(super) struct Wait {
    since: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

/// What a round of [`Lane::poll_way`] came to.
enum Step {
    /// So many bytes may be written.
    Write(usize),
    /// Look again.
    Again,
}

impl Lane {
    /// Ready when `parts` of a message of this size may be written: how many bytes of them, at most.
    ///
    /// # Errors
    /// When the socket cannot be marked; it must not be written then.
    pub fn poll_way(
        &self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        size: MessageSize,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.had_body.set(size != MessageSize::Known(0));
        let entry = self.entry.borrow();
        let Some(entry) = entry.as_ref().filter(|entry| !entry.is_out()) else {
            return Poll::Ready(Ok(ANY));
        };
        let is_large = length > MAX_REDIRECTED
            || matches!(size, MessageSize::Known(body) if body > MAX_REDIRECTED as u64);
        loop {
            match ready!(self.poll_step(cx, tcp, entry, is_large))? {
                Step::Write(bytes) => {
                    self.wait.take();
                    return Poll::Ready(Ok(bytes));
                }
                Step::Again => {}
            }
        }
    }

    fn poll_step(
        &self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        entry: &Arc<Entry>,
        is_large: bool,
    ) -> Poll<io::Result<Step>> {
        match entry.phase() {
            Phase::Refused(_) | Phase::Left => return Poll::Ready(Ok(Step::Write(ANY))),
            Phase::Promoted => return self.poll_promoted(cx, tcp, entry, is_large),
            asked @ (Phase::Asked | Phase::Leaving) => {
                if entry.poll_phase(cx) == asked {
                    ready!(self.poll_pause(cx, ANSWER));
                    self.revoke(tcp, entry)?;
                }
            }
            Phase::Stays(Refusal::Unsettled) if self.is_unsettled_for_long() => {
                self.revoke(tcp, entry)?;
            }
            // It has read since, or will.
            Phase::Stays(Refusal::Unread | Refusal::Withdrawn | Refusal::Unsettled) => {
                entry.set_phase(Phase::Promoted);
                ready!(self.poll_pause(cx, DRAIN_PAUSE));
            }
            Phase::Stays(_) | Phase::Unanswered => self.revoke(tcp, entry)?,
        }
        Poll::Ready(Ok(Step::Again))
    }

    fn poll_promoted(
        &self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        entry: &Arc<Entry>,
        is_large: bool,
    ) -> Poll<io::Result<Step>> {
        let way = sockopt::way(tcp);
        self.was_in.set(way.membership != Membership::Out);
        self.look(&way);
        if entry.returned().is_none() {
            let Some(why) = obstacle(&way, is_large) else {
                self.set_mark(tcp, Mark::Normal)?;
                self.redirects.set(true);
                return Poll::Ready(Ok(Step::Write(MAX_REDIRECTED)));
            };
            self.give_up_entry(entry, why);
        }
        if way.membership != Membership::In {
            // The kernel knows better: another process of the proxy's had it taken out.
            self.believe(entry, phase_of(way.membership));
            return Poll::Ready(Ok(Step::Again));
        }
        let forced = self
            .forced_until
            .get()
            .is_some_and(|until| Instant::now() < until);
        self.set_mark(tcp, if forced { Mark::Forced } else { Mark::Leaving })?;
        if !way.is_read() {
            self.note_stalled(entry);
            ready!(self.poll_pause(cx, DRAIN_PAUSE));
            return Poll::Ready(Ok(Step::Again));
        }
        if forced {
            if way.obstacles & AccelWay::PRESSURE != 0 {
                ready!(self.poll_pause(cx, DRAIN_PAUSE));
                return Poll::Ready(Ok(Step::Again));
            }
            self.redirects.set(true);
            return Poll::Ready(Ok(Step::Write(MAX_REDIRECTED)));
        }
        self.wait.take();
        if !self.accelerator.ask_to_leave(entry) {
            self.force();
        }
        Poll::Ready(Ok(Step::Again))
    }

    /// Whether the other application has been sending, or this one receiving, for longer than a message takes: a
    /// system call that waits keeps the kernel from saying that nothing is on its way.
    fn is_unsettled_for_long(&self) -> bool {
        let since = self.unsettled.get().unwrap_or_else(Instant::now);
        let is_long = since.elapsed() >= ANSWER;
        self.unsettled.set((!is_long).then_some(since));
        is_long
    }

    /// Takes the mark back, so that the programs begin nothing any more, and asks the kernel what they have
    /// done.
    fn revoke(&self, tcp: &TcpStream, entry: &Arc<Entry>) -> io::Result<()> {
        self.wait.take();
        self.set_mark(tcp, Mark::Out)?;
        let phase = phase_of(sockopt::settled(tcp));
        if phase == Phase::Promoted && entry.returned().is_some() {
            self.force();
        }
        self.believe(entry, phase);
        Ok(())
    }

    fn believe(&self, entry: &Entry, phase: Phase) {
        entry.set_phase(phase);
        if matches!(phase, Phase::Refused(_)) {
            self.accelerator.forget(entry.id());
        }
    }

    /// Nobody takes the connection out for now.
    fn force(&self) {
        self.accelerator.stats().forced();
        self.forced_until.set(Some(Instant::now() + FORCED));
    }

    /// Where the connection is, asked by whoever cannot wait for the agent.
    pub(super) fn membership(&self, tcp: &TcpStream) -> Membership {
        let entry = self.entry.borrow();
        let out = if self.was_in.get() {
            Membership::Left
        } else {
            Membership::Out
        };
        let Some(entry) = entry.as_ref() else {
            return out;
        };
        let is_open = matches!(
            entry.phase(),
            Phase::Asked | Phase::Leaving | Phase::Unanswered
        );
        if is_open && let Err(error) = self.revoke(tcp, entry) {
            tracing::debug!(%error, "cannot mark a connection");
        }
        match entry.phase() {
            Phase::Refused(_) => out,
            Phase::Left => Membership::Left,
            // Where it is not, the kernel says so before the next message.
            _ => Membership::In,
        }
    }

    fn note_stalled(&self, entry: &Entry) {
        if let Some(wait) = &mut *self.wait.borrow_mut()
            && !wait.stalled
            && wait.since.elapsed() >= STALLED
        {
            wait.stalled = true;
            entry.set_stalled();
            self.accelerator.stats().stalled();
            tracing::warn!(pod = %self.pod.spec.qualified_name(),
                "an application reads nothing of an accelerated connection");
        }
    }

    /// Ready when so much time has passed since this was asked first.
    fn poll_pause(&self, cx: &mut Context<'_>, pause: Duration) -> Poll<()> {
        let mut wait = self.wait.borrow_mut();
        let wait = wait.get_or_insert_with(|| Wait {
            since: Instant::now(),
            sleep: None,
            stalled: false,
        });
        let sleep = wait
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        ready!(sleep.as_mut().poll(cx));
        wait.sleep = None;
        Poll::Ready(())
    }
}

/// Why a message cannot go by the map, if so.
fn obstacle(way: &AccelWay, is_large: bool) -> Option<Returned> {
    if is_large {
        return Some(Returned::Large);
    }
    if way.is_clear() {
        return None;
    }
    Some(if way.obstacles & AccelWay::OFF != 0 {
        Returned::Setting
    } else if way.obstacles != 0 {
        Returned::Obstacle
    } else {
        Returned::Unread
    })
}

fn phase_of(membership: Membership) -> Phase {
    match membership {
        Membership::Out | Membership::Changing => Phase::Refused(Refusal::Withdrawn),
        Membership::In => Phase::Promoted,
        Membership::Left => Phase::Left,
    }
}
