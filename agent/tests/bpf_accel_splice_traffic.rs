//! Random traffic between applications of two pods through a proxy that promotes, splices, closes the way again and
//! has applications leave at any moment: nothing is lost, repeated or overtaken.
//!
//! `MILLRACE_ACCEL_SPLICES` and `MILLRACE_ACCEL_SEED` make it longer or another.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "what a test needs must be there; what it measured is told"
)]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;
#[path = "support/splice.rs"]
mod splice;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use accel::{Dice, Pair, Stream, mark_priority};
use bpf::{Fixture, PATIENCE};
use millrace_agent::bpf::{AccelOutcome, Counter};
use millrace_runtime::handoff::accel::{
    MAX_REDIRECTED, PRIORITY_DIRECT, PRIORITY_LEAVING, PRIORITY_NORMAL,
};
use nix::poll::{PollFd, PollFlags, poll};
use splice::{Line, Side, moved, way};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What happened to all connections.
#[derive(Debug, Default)]
struct Tally {
    spliced: AtomicU64,
    left: AtomicU64,
    bytes: AtomicU64,
    moved: AtomicU64,
    faults: parking_lot::Mutex<Vec<String>>,
}

#[test]
fn splices_in_the_middle_of_traffic_change_no_byte() {
    accel::require!();
    let tally = run(number("MILLRACE_ACCEL_SPLICES", 100));
    let faults = tally.faults.into_inner();
    assert!(faults.is_empty(), "{faults:?}");
    assert!(tally.moved.into_inner() > 0, "nothing went past the proxy");
    assert!(tally.left.into_inner() > 0, "nobody left");
}

fn run(connections: u64) -> Tally {
    let mut fixture = Fixture::new();
    let seed = number("MILLRACE_ACCEL_SEED", 1);
    let sides: Vec<[Side; 2]> = ["127.0.0.1", "[::1]"]
        .into_iter()
        .enumerate()
        .map(|(index, host)| {
            ["from", "to"].map(|name| Side::new(&mut fixture, &format!("{name}{index}"), host))
        })
        .collect();
    let tally = Tally::default();
    for index in 0..connections {
        let mut dice = Dice::new(seed.wrapping_mul(1_000_003) + index);
        let [from, to] = &sides[usize::try_from(dice.below(2)).expect("small")];
        let line = Line::new(from, to);
        one(&mut fixture, line, &mut dice, index, &tally);
    }
    let count = |counter| fixture.count(counter);
    println!(
        "seed {seed}: {connections} connections, {} spliced, {} left, {} bytes, {} messages past the proxy; not spliced: \
         unread {} refused {}; ended: marked {} broken {} capped {} gone {}; unsettled {}; {} faults",
        tally.spliced.load(Ordering::Relaxed),
        tally.left.load(Ordering::Relaxed),
        tally.bytes.load(Ordering::Relaxed),
        tally.moved.load(Ordering::Relaxed),
        count(Counter::SpliceUnread),
        count(Counter::SpliceRefused),
        count(Counter::UnspliceMarked),
        count(Counter::UnspliceBroken),
        count(Counter::UnspliceCapped),
        count(Counter::UnspliceGone),
        count(Counter::LeaveUnsettled),
        tally.faults.lock().len(),
    );
    tally
}

fn one(fixture: &mut Fixture, line: Line, dice: &mut Dice, index: u64, tally: &Tally) {
    let messages = 20 + dice.below(200);
    // Half of them are small requests, answered one by one; the others are any bytes at any time.
    let is_asked = dice.below(2) == 0;
    let seeds = [0; 3].map(|_| dice.below(u64::MAX));
    let failed = AtomicBool::new(false);
    let (bpf, node) = fixture.bpf_and_node();
    let Line {
        from: Pair { app, proxy },
        to,
        promotions,
        ends,
    } = line;
    let proxy = Proxy {
        lanes: [proxy, to.proxy].map(Lane::new),
        pipes: [Pipe::default(), Pipe::default()],
        dice: Dice::new(seeds[2]),
        tally,
        command: |what| {
            match what {
                What::Promote(at) => node.run(|| Ok(bpf.promote(&promotions[at])?)),
                What::Leave(at) => node.run(|| Ok(bpf.leave(&promotions[at])?)),
                What::Splice => node.run(|| Ok(bpf.splice(ends)?)),
            }
            .expect("the program runs")
        },
    };
    thread::scope(|scope| {
        let (says, answers) = (2 * index, 2 * index + 1);
        let applications = [(app, says, answers, true), (to.app, answers, says, false)];
        for ((socket, own, other, is_first), seed) in applications.into_iter().zip(seeds) {
            let failed = &failed;
            scope.spawn(move || {
                let end = End {
                    socket,
                    sending: Stream::new(own),
                    receiving: Stream::new(other),
                    dice: Dice::new(seed),
                };
                let result = if is_asked {
                    end.talk(messages, is_first, failed)
                } else {
                    end.drive(messages, failed)
                };
                match result {
                    Ok(bytes) => drop(tally.bytes.fetch_add(bytes, Ordering::Relaxed)),
                    Err(fault) => {
                        failed.store(true, Ordering::Relaxed);
                        tally
                            .faults
                            .lock()
                            .push(format!("connection {index}: {fault}"));
                    }
                }
            });
        }
        if let Err(fault) = proxy.run(&failed) {
            failed.store(true, Ordering::Relaxed);
            tally
                .faults
                .lock()
                .push(format!("proxy of {index}: {fault}"));
        }
    });
}

/// An application.
struct End {
    socket: TcpStream,
    sending: Stream,
    receiving: Stream,
    dice: Dice,
}

impl End {
    /// Sends messages of any size at any time, reads at any time, until both have said all.
    fn drive(mut self, messages: u64, failed: &AtomicBool) -> Result<u64, String> {
        let (mut left, mut rest, mut ended) = (messages, 0, false);
        let since = Instant::now();
        loop {
            check(failed, since)?;
            let mut idle = true;
            if left > 0 && self.dice.below(3) > 0 {
                if rest == 0 {
                    rest = self.dice.size();
                }
                let taken = self.sending.send(&mut self.socket, rest)?;
                rest -= taken;
                idle = taken == 0;
                if rest == 0 {
                    left -= 1;
                }
                if left == 0 {
                    let end = self.socket.shutdown(Shutdown::Write);
                    end.map_err(|error| error.to_string())?;
                }
            }
            if !ended && self.dice.below(3) > 0 {
                let length = self.dice.size();
                match self.receiving.receive(&mut self.socket, length) {
                    None => ended = true,
                    Some(read) => idle &= read? == 0,
                }
            }
            if ended && left == 0 {
                return self.finish();
            }
            if idle {
                let mut events = PollFlags::empty();
                events.set(PollFlags::POLLIN, !ended);
                events.set(PollFlags::POLLOUT, left > 0);
                doze(&[(&self.socket, events)]);
            }
        }
    }

    /// Small messages, each answered before the next; every now and then one that is larger than any cap.
    fn talk(mut self, messages: u64, is_first: bool, failed: &AtomicBool) -> Result<u64, String> {
        let since = Instant::now();
        // Both know how long each message is.
        let mut sizes = Dice::new(self.sending.tag / 2 + 7);
        for turn in 0..2 * messages {
            let most = if sizes.below(40) == 0 { 100_000 } else { 200 };
            let mut left = usize::try_from(1 + sizes.below(most)).expect("small");
            let is_mine = (turn % 2 == 0) == is_first;
            while left > 0 {
                check(failed, since)?;
                let done = if is_mine {
                    self.sending.send(&mut self.socket, left)?
                } else {
                    let read = self.receiving.receive(&mut self.socket, left);
                    read.ok_or("the end before the last message")??
                };
                left -= done;
                if done == 0 {
                    let events = if is_mine {
                        PollFlags::POLLOUT
                    } else {
                        PollFlags::POLLIN
                    };
                    doze(&[(&self.socket, events)]);
                }
            }
        }
        let end = self.socket.shutdown(Shutdown::Write);
        end.map_err(|error| error.to_string())?;
        while let Some(read) = self.receiving.receive(&mut self.socket, 100) {
            check(failed, since)?;
            if read? == 0 {
                doze(&[(&self.socket, PollFlags::POLLIN)]);
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Result<u64, String> {
        match self.socket.read(&mut [0]) {
            Ok(0) => Ok(self.receiving.read),
            other => Err(format!("after the end: {other:?}")),
        }
    }
}

fn check(failed: &AtomicBool, since: Instant) -> Result<(), String> {
    if failed.load(Ordering::Relaxed) {
        return Err("the other end failed".to_owned());
    }
    if since.elapsed() > 4 * PATIENCE {
        return Err("nothing happens".to_owned());
    }
    Ok(())
}

/// Until something happens, or a millisecond has passed.
fn doze(sockets: &[(&TcpStream, PollFlags)]) {
    let fds = sockets
        .iter()
        .map(|(socket, events)| PollFd::new(socket.as_fd(), *events));
    let mut fds: Vec<_> = fds.collect();
    poll(&mut fds, 1_u8).expect("poll");
}

enum What {
    Promote(usize),
    Leave(usize),
    Splice,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Membership {
    Out,
    In,
    Leaving,
    Left,
}

/// The proxy's end of one of the two connections.
struct Lane {
    socket: TcpStream,
    membership: Membership,
    mark: u32,
}

impl Lane {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            membership: Membership::Out,
            mark: PRIORITY_NORMAL,
        }
    }

    fn mark(&mut self, mark: u32) {
        if self.mark != mark {
            mark_priority(&self.socket, mark);
            self.mark = mark;
        }
    }
}

/// What was read from one lane and is not written to the other.
#[derive(Default)]
struct Pipe {
    pending: Vec<u8>,
    ended: bool,
    told: bool,
}

/// Passes bytes on as the real one does, and splices whenever it likes.
struct Proxy<'a, F> {
    lanes: [Lane; 2],
    /// From the first lane to the second, and back.
    pipes: [Pipe; 2],
    dice: Dice,
    tally: &'a Tally,
    command: F,
}

impl<F: Fn(What) -> AccelOutcome> Proxy<'_, F> {
    fn run(mut self, failed: &AtomicBool) -> Result<(), String> {
        let since = Instant::now();
        while self.pipes.iter().any(|pipe| !pipe.told) {
            check(failed, since)?;
            let mut idle = true;
            for at in 0..2 {
                idle &= !self.change(at);
                idle &= !self.pass_on(at)?;
            }
            if idle {
                let sockets = [0, 1].map(|at| {
                    let mut events = PollFlags::empty();
                    events.set(
                        PollFlags::POLLIN,
                        !self.pipes[at].ended && self.pipes[at].pending.is_empty(),
                    );
                    (&self.lanes[at].socket, events)
                });
                doze(&sockets);
            }
        }
        let moved = self
            .lanes
            .each_ref()
            .map(|lane| moved(&lane.socket).messages);
        self.tally
            .moved
            .fetch_add(moved.iter().sum(), Ordering::Relaxed);
        Ok(())
    }

    /// At some moment or other: promotes, splices, closes the way, has an application leave.
    fn change(&mut self, at: usize) -> bool {
        match self.lanes[at].membership {
            Membership::Out | Membership::Left if self.dice.below(8) == 0 => {
                self.lanes[at].mark(PRIORITY_NORMAL);
                if (self.command)(What::Promote(at)) == AccelOutcome::Done {
                    self.lanes[at].membership = Membership::In;
                }
            }
            Membership::In if self.is_spliced() => match self.dice.below(4000) {
                0 => self.close(),
                1 => self.leave(at),
                _ => return false,
            },
            Membership::In if self.dice.below(4) == 0 => self.splice(),
            Membership::In if self.dice.below(300) == 0 => self.leave(at),
            _ => return false,
        }
        true
    }

    fn is_spliced(&self) -> bool {
        self.lanes.iter().all(|lane| lane.mark == PRIORITY_DIRECT)
    }

    fn leave(&mut self, at: usize) {
        self.lanes[at].mark(PRIORITY_LEAVING);
        self.lanes[at].membership = Membership::Leaving;
    }

    fn close(&mut self) {
        for lane in &mut self.lanes {
            if lane.mark == PRIORITY_DIRECT {
                lane.mark(PRIORITY_NORMAL);
            }
        }
    }

    /// With what it has read in its hands, if that is little.
    fn splice(&mut self) {
        let is_in = |lane: &Lane| lane.membership == Membership::In;
        if !self.lanes.iter().all(is_in) || self.pipes.iter().any(|pipe| pipe.ended) {
            return;
        }
        self.close();
        if (self.command)(What::Splice) != AccelOutcome::Done {
            return;
        }
        for (pipe, sink) in self.pipes.iter_mut().zip([1, 0]) {
            let lane = &mut self.lanes[sink];
            if pipe.pending.is_empty() {
                continue;
            }
            if pipe.pending.len() > MAX_REDIRECTED || !way(&lane.socket).is_clear() {
                return;
            }
            let written = lane.socket.write(&pipe.pending).expect("write");
            pipe.pending.drain(..written);
            if !pipe.pending.is_empty() {
                return;
            }
        }
        for lane in &mut self.lanes {
            lane.mark(PRIORITY_DIRECT);
        }
        self.tally.spliced.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads from one lane and writes to the other; whether anything was done.
    fn pass_on(&mut self, at: usize) -> Result<bool, String> {
        let sink = 1 - at;
        if self.pipes[at].told {
            return Ok(false);
        }
        if !self.pipes[at].pending.is_empty() || self.lanes[sink].membership == Membership::Leaving
        {
            return self.write(at);
        }
        if self.pipes[at].ended {
            // No FIN before what comes past the proxy is read.
            let lane = &self.lanes[sink];
            if way(&lane.socket).unread_redirected > 0 {
                return Ok(false);
            }
            let end = lane.socket.shutdown(Shutdown::Write);
            end.map_err(|error| error.to_string())?;
            self.pipes[at].told = true;
            return Ok(true);
        }
        // A slow one, while they need it least.
        let patience = if self.is_spliced() { 40 } else { 2 };
        if self.dice.below(patience) > 0 {
            return Ok(false);
        }
        let mut buffer = vec![0; self.dice.size()];
        let mut seen = 0;
        loop {
            match self.lanes[at].socket.read(&mut buffer) {
                Ok(0) if seen == 0 => seen = 1,
                Ok(0) => {
                    self.pipes[at].ended = true;
                    return Ok(true);
                }
                Ok(read) => {
                    // As the real one: it asks before it writes, or closes the way.
                    self.pipes[at].pending.extend_from_slice(&buffer[..read]);
                    if self.is_spliced() {
                        self.close();
                    } else if self.dice.below(3) == 0 {
                        self.splice();
                    }
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(format!("proxy's read: {error}")),
            }
        }
    }

    fn write(&mut self, at: usize) -> Result<bool, String> {
        let sink = 1 - at;
        let lane = &mut self.lanes[sink];
        let pending = &mut self.pipes[at].pending;
        let most = match lane.membership {
            Membership::Out | Membership::Left => usize::MAX,
            Membership::In => {
                if pending.len() > MAX_REDIRECTED || !way(&lane.socket).is_clear() {
                    self.leave(sink);
                    return Ok(true);
                }
                lane.mark(PRIORITY_NORMAL);
                MAX_REDIRECTED
            }
            Membership::Leaving => {
                return match (self.command)(What::Leave(sink)) {
                    AccelOutcome::Done => {
                        self.lanes[sink].membership = Membership::Left;
                        self.tally.left.fetch_add(1, Ordering::Relaxed);
                        Ok(true)
                    }
                    AccelOutcome::Unread | AccelOutcome::Unsettled => Ok(false),
                    other => Err(format!("leaving: {other:?}")),
                };
            }
        };
        let length = pending.len().min(most);
        match lane.socket.write(&pending[..length]) {
            Ok(written) => {
                pending.drain(..written);
                Ok(written > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(format!("proxy's write: {error}")),
        }
    }
}
