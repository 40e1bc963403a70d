//! A connection of bytes, from either end, as its plan has it.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::counts::Counts;
use super::half::{Half, halves};
use super::plan::{Conduct, Ending, Flow, Hello, Plan, Side};
use super::tag::{BLOCK, Checker, Tag, Way, assemble};

/// The longest nap before a read.
const NAP_MILLIS: u64 = 20;
/// Naps of one direction of a connection.
const NAPS: u32 = 20;

/// Why one direction went no further.
#[derive(Debug)]
enum Stop {
    /// The plan says so.
    Planned,
    /// The other side ended the stream early.
    Ended,
    /// A call failed.
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Takes part in a connection to its end, and counts what came of it.
pub(super) fn converse(
    stream: TcpStream,
    side: Side,
    run: u32,
    hello: Hello,
    plan: &Plan,
    counts: &mut Counts,
) {
    let what = || format!("{side:?} of connection {}, {plan:?}", hello.number);
    let conduct = match side {
        Side::Client => &plan.client,
        Side::Server => &plan.server,
    };
    let (reading, writing) = match halves(stream, conduct.wait) {
        Ok(halves) => halves,
        Err(error) => return counts.failed("error", || format!("{error} at {}", what())),
    };
    let tag = |way| Tag {
        run,
        number: hello.number,
        way,
    };
    let (out, back) = match side {
        Side::Client => (Way::Up, Way::Down),
        Side::Server => (Way::Down, Way::Up),
    };
    let mut end = End {
        side,
        plan,
        sender: Sender::new(
            writing,
            tag(out),
            conduct,
            hello.seed,
            stop_sending(plan, side),
        ),
        receiver: Receiver::new(
            reading,
            tag(back),
            conduct,
            hello.seed,
            stop_reading(plan, side),
        ),
    };
    let result = end.run();
    end.conclude(result, counts, &what);
}

/// What a connection answers whose other end has gone.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
    )
}

fn stop_sending(plan: &Plan, side: Side) -> Option<u64> {
    match plan.ending {
        Ending::Reset(by, at) if by == side => Some(at),
        _ => None,
    }
}

fn stop_reading(plan: &Plan, side: Side) -> Option<u64> {
    match plan.ending {
        Ending::CloseUnread(by, at) if by == side => Some(at),
        _ => None,
    }
}

/// One end of a connection.
struct End<'a> {
    side: Side,
    plan: &'a Plan,
    sender: Sender<'a>,
    receiver: Receiver<'a>,
}

impl End<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let result = match &self.plan.flow {
            Flow::Turns(pairs) => self.turns(pairs),
            Flow::Both(up, down) => match self.side {
                Side::Client => self.both(*up, *down),
                Side::Server => self.both(*down, *up),
            },
        };
        if let (Ending::Reset(by, _), Err(Stop::Planned)) = (self.plan.ending, &result)
            && by == self.side
        {
            self.reset()?;
        }
        result
    }

    /// Counts what came of the connection.
    fn conclude(
        mut self,
        result: Result<(), Stop>,
        counts: &mut Counts,
        what: &impl Fn() -> String,
    ) {
        self.sender.half.settle();
        counts.add(&self.sender.counts);
        counts.add(&self.receiver.counts);
        let total = self.expected();
        let orderly = self.plan.ending.is_orderly();
        let whole = orderly && matches!(result, Ok(()) | Err(Stop::Ended));
        let checked = self.receiver.checker.finish(whole.then_some(total));
        counts.stream(&checked, what);
        match (result, orderly) {
            (Ok(()), true) => counts.ended("completed"),
            (Ok(()) | Err(Stop::Planned | Stop::Ended), false) => {
                counts.ended("broken off as planned");
            }
            (Err(Stop::Failed(error)), false) if is_end(&error) => {
                counts.ended("broken off as planned");
            }
            (Err(Stop::Failed(error)), _) if error.kind() == io::ErrorKind::TimedOut => {
                counts.failed("stalled", what);
            }
            (Err(Stop::Failed(error)), _) => {
                let outcome = if is_end(&error) { "reset" } else { "error" };
                counts.failed(outcome, || format!("{error} at {}", what()));
            }
            (Err(Stop::Planned | Stop::Ended), true) => counts.failed("truncated", what),
        }
    }

    fn turns(&mut self, pairs: &[(usize, usize)]) -> Result<(), Stop> {
        for (up, down) in pairs {
            match self.side {
                Side::Client => {
                    self.sender.send(*up as u64)?;
                    self.receiver.receive(*down as u64)?;
                }
                Side::Server => {
                    self.receiver.receive(*up as u64)?;
                    self.sender.send(*down as u64)?;
                }
            }
        }
        match self.plan.ending {
            Ending::HalfClose(first) | Ending::LingerAfter(first) => {
                // Who lingers is told last; the other half-closes first.
                let lingers = matches!(self.plan.ending, Ending::LingerAfter(_));
                if (first == self.side) == lingers {
                    self.receiver.read_to_end()?;
                    return self.finish();
                }
                self.shut_down()?;
                self.see_the_last(lingers)
            }
            // Whoever breaks off has not come to its place if the other did first.
            Ending::Reset(by, _) | Ending::CloseUnread(by, _) if by == self.side => {
                Err(Stop::Planned)
            }
            Ending::Reset(..) | Ending::CloseUnread(..) => self.receiver.read_to_end(),
        }
    }

    fn both(&mut self, out: u64, back: u64) -> Result<(), Stop> {
        match self.plan.ending {
            Ending::Reset(by, _) if by == self.side => {
                self.sender.send(out)?;
                return Err(Stop::Planned);
            }
            Ending::CloseUnread(by, _) if by == self.side => {
                self.receiver.receive(back)?;
                return Err(Stop::Planned);
            }
            _ => {}
        }
        let (writer, reader) = (&mut self.sender, &mut self.receiver);
        let (ending, side) = (self.plan.ending, self.side);
        let (sent, received) = thread::scope(|scope| {
            let sending = scope.spawn(move || {
                writer.send(out)?;
                if ending == Ending::HalfClose(side) {
                    writer.half.stream().shutdown(Shutdown::Write)?;
                }
                Ok(())
            });
            let received = match ending {
                Ending::LingerAfter(_) => reader.receive(back),
                _ => reader.read_to_end(),
            };
            let sent = sending
                .join()
                .unwrap_or_else(|_| Err(Stop::Failed(io::Error::other("panicked"))));
            (sent, received)
        });
        received?;
        sent?;
        match ending {
            Ending::HalfClose(first) if first == side => Ok(()),
            Ending::HalfClose(_) => self.shut_down(),
            Ending::LingerAfter(last) if last == side => {
                self.receiver.read_to_end()?;
                self.finish()
            }
            Ending::LingerAfter(_) => {
                self.shut_down()?;
                self.see_the_last(true)
            }
            Ending::Reset(..) | Ending::CloseUnread(..) => Ok(()),
        }
    }

    /// After everything, the other side having half-closed.
    fn finish(&mut self) -> Result<(), Stop> {
        if self.plan.ending == Ending::LingerAfter(self.side) {
            self.reset()
        } else {
            self.shut_down()
        }
    }

    /// Waits for the other side to go: with a FIN, or as it lingers with a reset.
    fn see_the_last(&mut self, reset: bool) -> Result<(), Stop> {
        match self.receiver.read_to_end() {
            Err(Stop::Failed(error)) if reset && is_end(&error) => Ok(()),
            other => other,
        }
    }

    fn shut_down(&self) -> Result<(), Stop> {
        match self.sender.half.stream().shutdown(Shutdown::Write) {
            Err(error) if !is_end(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn reset(&self) -> Result<(), Stop> {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(self.sender.half.stream(), sockopt::Linger, &linger)
            .map_err(|errno| Stop::Failed(errno.into()))
    }

    fn expected(&self) -> u64 {
        let (up, down) = self.plan.flow.totals();
        match self.side {
            Side::Client => down,
            Side::Server => up,
        }
    }
}

/// Sends one direction's bytes.
struct Sender<'a> {
    half: Half,
    tag: Tag,
    conduct: &'a Conduct,
    rng: fastrand::Rng,
    at: u64,
    limit: Option<u64>,
    counts: Counts,
}

impl<'a> Sender<'a> {
    fn new(half: Half, tag: Tag, conduct: &'a Conduct, seed: u64, limit: Option<u64>) -> Self {
        Self {
            half,
            tag,
            conduct,
            rng: fastrand::Rng::with_seed(seed ^ 0x5e4d),
            at: 0,
            limit,
            counts: Counts::default(),
        }
    }

    fn send(&mut self, length: u64) -> Result<(), Stop> {
        let to = self.at + length;
        let end = self.limit.map_or(to, |limit| limit.min(to));
        while self.at < end {
            let most = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let size = self.rng.usize(1..=self.conduct.write).min(most);
            let how = self.conduct.writes[self.rng.usize(..self.conduct.writes.len())];
            let bytes = self.tag.bytes(self.at, size);
            self.counts.call(how.name());
            let mut calls = 0;
            self.half.write_all(how, &bytes, |_| calls += 1)?;
            self.counts.messages += calls;
            self.at += size as u64;
        }
        if end < to { Err(Stop::Planned) } else { Ok(()) }
    }
}

/// Receives and checks one direction's bytes.
struct Receiver<'a> {
    half: Half,
    checker: Checker,
    tag: Tag,
    conduct: &'a Conduct,
    rng: fastrand::Rng,
    limit: Option<u64>,
    taken: u64,
    naps: u32,
    counts: Counts,
}

impl<'a> Receiver<'a> {
    fn new(half: Half, tag: Tag, conduct: &'a Conduct, seed: u64, limit: Option<u64>) -> Self {
        Self {
            half,
            checker: Checker::new(tag),
            tag,
            conduct,
            rng: fastrand::Rng::with_seed(seed ^ 0xeec1),
            limit,
            taken: 0,
            naps: NAPS,
            counts: Counts::default(),
        }
    }

    /// Reads exactly so many bytes.
    fn receive(&mut self, length: u64) -> Result<(), Stop> {
        let to = self.taken + length;
        let end = self.limit.map_or(to, |limit| limit.min(to));
        while self.taken < end {
            let most = usize::try_from(end - self.taken).unwrap_or(usize::MAX);
            if self.read(most)? == 0 {
                return Err(Stop::Ended);
            }
        }
        if end < to { Err(Stop::Planned) } else { Ok(()) }
    }

    /// Reads until the stream ends.
    fn read_to_end(&mut self) -> Result<(), Stop> {
        if self.conduct.two_readers {
            return self.read_by_two();
        }
        while self.read(usize::MAX)? > 0 {}
        Ok(())
    }

    fn read(&mut self, most: usize) -> Result<usize, Stop> {
        nap(&mut self.rng, self.conduct, &mut self.naps);
        let size = self.rng.usize(1..=self.conduct.read).min(most);
        let how = self.conduct.reads[self.rng.usize(..self.conduct.reads.len())];
        let mut buffer = vec![0; size];
        self.counts.call(how.name());
        let count = self.half.read(how, &mut buffer)?;
        self.checker.take(&buffer[..count]);
        self.taken += count as u64;
        Ok(count)
    }

    /// Two threads read until each has seen the end; what they read is put in order afterwards.
    fn read_by_two(&mut self) -> Result<(), Stop> {
        let mut second = self.half.again()?;
        let first = &mut self.half;
        let (conduct, mut rng) = (self.conduct, self.rng.fork());
        self.counts.call("two readers");
        let (mine, theirs) = thread::scope(|scope| {
            let other = scope.spawn(move || collect(&mut second, conduct, &mut rng));
            let mine = collect(first, conduct, &mut self.rng);
            let theirs = other
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("panicked")));
            (mine, theirs)
        });
        let mut chunks = mine?;
        chunks.extend(theirs?);
        for chunk in assemble(self.tag, chunks) {
            self.checker.take(&chunk);
            self.taken += chunk.len() as u64;
        }
        Ok(())
    }
}

fn collect(
    half: &mut Half,
    conduct: &Conduct,
    rng: &mut fastrand::Rng,
) -> io::Result<Vec<Vec<u8>>> {
    let mut chunks = Vec::new();
    let mut naps = NAPS;
    loop {
        nap(rng, conduct, &mut naps);
        // Long enough that most of what is read says where it belongs.
        let mut buffer = vec![0; rng.usize(2 * BLOCK..=conduct.read.max(8 * BLOCK))];
        let how = conduct.reads[rng.usize(..conduct.reads.len())];
        let count = half.read(how, &mut buffer)?;
        if count == 0 {
            return Ok(chunks);
        }
        buffer.truncate(count);
        chunks.push(buffer);
    }
}

fn nap(rng: &mut fastrand::Rng, conduct: &Conduct, left: &mut u32) {
    if conduct.naps > 0 && *left > 0 && rng.u32(..100) < conduct.naps {
        *left -= 1;
        thread::sleep(Duration::from_millis(rng.u64(..NAP_MILLIS)));
    }
}

#[cfg(test)]
mod tests;
