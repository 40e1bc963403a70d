//! Connections that are promoted in the middle of random traffic, and leave the map again, lose, repeat and
//! mix up nothing.
//!
//! `MILLRACE_ACCEL_PROMOTIONS` and `MILLRACE_ACCEL_SEED` make it longer or another.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "what a test needs must be there; what it measured is told"
)]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use accel::{Dice, Pair, Place, Stream, mark_priority, promote_at, state, wait};
use bpf::{Fixture, PATIENCE, accept, addr};
use millrace_agent::bpf::{AccelOutcome, Counter};
use millrace_runtime::handoff::accel::PRIORITY_LEAVING;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What happened to a number of connections.
#[derive(Debug, Default)]
struct Tally {
    promoted: AtomicU64,
    left: AtomicU64,
    bytes: AtomicU64,
    redirected: AtomicU64,
    faults: parking_lot::Mutex<Vec<String>>,
}

#[test]
fn promotion_in_the_middle_of_traffic_changes_no_byte() {
    accel::require!();
    let mut fixture = Fixture::new();
    let tally = run(&mut fixture, number("MILLRACE_ACCEL_PROMOTIONS", 600));
    let faults = tally.faults.into_inner();
    assert!(faults.is_empty(), "{faults:?}");
    assert!(tally.redirected.into_inner() > 0, "nothing was redirected");
    assert!(tally.left.into_inner() > 0, "nobody left");
}

#[test]
fn the_last_message_before_the_end_is_read_by_whoever_was_reading() {
    accel::require!();
    let mut fixture = Fixture::new();
    let tally = last_words(&mut fixture, number("MILLRACE_ACCEL_PROMOTIONS", 300));
    let faults = tally.faults.into_inner();
    assert!(faults.is_empty(), "{faults:?}");
}

/// Random traffic both ways over many connections of three families, each promoted at a random moment.
fn run(fixture: &mut Fixture, connections: u64) -> Tally {
    let seed = number("MILLRACE_ACCEL_SEED", 1);
    let place = Place::new(fixture, "app");
    let listeners = [
        place.listener("127.0.0.1:0"),
        place.listener("[::1]:0"),
        place.listener("[::]:0"),
    ];
    let tally = Tally::default();
    for index in 0..connections {
        let mut dice = Dice::new(seed.wrapping_mul(1_000_003) + index);
        let pair = connect(&place, &listeners, &mut dice);
        one(fixture, &place, pair, &mut dice, index, &tally);
    }
    let count = |counter| fixture.count(counter);
    println!(
        "seed {seed}: {} promoted of {connections}, {} of them left, {} bytes, {} messages redirected; by TCP: unread {} \
         not armed {} capped {} too large {} shut down {} peer gone {} mixed {}; {} faults",
        tally.promoted.load(Ordering::Relaxed),
        tally.left.load(Ordering::Relaxed),
        tally.bytes.load(Ordering::Relaxed),
        tally.redirected.load(Ordering::Relaxed),
        count(Counter::MessageUnreadTcp),
        count(Counter::MessageNotArmed),
        count(Counter::MessageCapped),
        count(Counter::MessageTooLarge),
        count(Counter::MessageShutDown),
        count(Counter::MessagePeerGone),
        count(Counter::MessageMixed),
        tally.faults.lock().len(),
    );
    tally
}

/// IPv4, IPv6, or an IPv6 listener that an IPv4 client comes to.
fn connect(place: &Place, listeners: &[TcpListener; 3], dice: &mut Dice) -> Pair {
    let chosen = usize::try_from(dice.below(3)).expect("small");
    let bound = listeners[chosen].local_addr().expect("bound");
    let to = match chosen {
        2 => addr(&format!("127.0.0.1:{}", bound.port())),
        _ => bound,
    };
    let app = place.pod().connect(to).expect("connected");
    let (proxy, _) = accept(&listeners[chosen]);
    Pair::new(app, proxy)
}

/// What both ends of a connection and who promotes it tell each other.
#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    promoted: AtomicBool,
    /// The proxy's end has marked its socket and sends nothing.
    leaving: AtomicBool,
    /// It need not wait any longer.
    left: AtomicBool,
    /// Ends that are done.
    done: AtomicU64,
    failed: AtomicBool,
}

fn one(
    fixture: &mut Fixture,
    place: &Place,
    pair: Pair,
    dice: &mut Dice,
    index: u64,
    tally: &Tally,
) {
    let promotion = place.promotion(&pair);
    let messages = 8 + dice.below(60);
    let moment = dice.below(messages);
    let seeds = [dice.below(u64::MAX), dice.below(u64::MAX)];
    // Half of the connections leave, at a moment after the promotion.
    let leave_at = (dice.below(2) == 0).then(|| dice.below(messages.div_ceil(2)));
    let shared = Shared::default();
    let (bpf, node) = fixture.bpf_and_node();
    let Pair { app, proxy } = pair;
    let outcome = thread::scope(|scope| {
        let (app_says, proxy_says) = (2 * index, 2 * index + 1);
        let ends = [
            (app, app_says, proxy_says, None),
            (proxy, proxy_says, app_says, leave_at),
        ];
        for ((socket, own, other, leave_at), seed) in ends.into_iter().zip(seeds) {
            let shared = &shared;
            scope.spawn(move || {
                let end = End {
                    socket,
                    sending: Stream::new(own),
                    receiving: Stream::new(other),
                    dice: Dice::new(seed),
                    leave_at,
                };
                match end.drive(messages, shared) {
                    Ok((bytes, redirected)) => {
                        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
                        tally.redirected.fetch_add(redirected, Ordering::Relaxed);
                    }
                    Err(fault) => {
                        shared.failed.store(true, Ordering::Relaxed);
                        let fault = format!("connection {index}: {fault}");
                        tally.faults.lock().push(fault);
                    }
                }
                shared.done.fetch_add(1, Ordering::Relaxed);
            });
        }
        while shared.sent.load(Ordering::Relaxed) < moment && !shared.failed.load(Ordering::Relaxed)
        {
            thread::yield_now();
        }
        let outcome = promote_at(bpf, node, promotion);
        shared.promoted.store(true, Ordering::Relaxed);
        while shared.done.load(Ordering::Relaxed) < 2 {
            if shared.leaving.load(Ordering::Relaxed) && !shared.left.load(Ordering::Relaxed) {
                let left = node.run(|| Ok(bpf.leave(&promotion)?));
                match left.expect("the program runs") {
                    AccelOutcome::Unread => {}
                    AccelOutcome::Done => {
                        tally.left.fetch_add(1, Ordering::Relaxed);
                        shared.left.store(true, Ordering::Relaxed);
                    }
                    other => panic!("leaving: {other:?}"),
                }
            }
            thread::yield_now();
        }
        outcome
    });
    if outcome == AccelOutcome::Done {
        tally.promoted.fetch_add(1, Ordering::Relaxed);
    } else {
        tally.faults.lock().push(format!("refused: {outcome:?}"));
    }
}

struct End {
    socket: TcpStream,
    sending: Stream,
    receiving: Stream,
    dice: Dice,
    /// With so many messages left the connection leaves the map.
    leave_at: Option<u64>,
}

impl End {
    /// Sends `messages` messages, a good half of them not before the promotion, and reads what the other end
    /// sends, until both have said all.
    fn drive(mut self, messages: u64, shared: &Shared) -> Result<(u64, u64), String> {
        let (mut left, mut rest) = (messages, 0);
        let (mut redirected, mut ended) = (0, false);
        loop {
            if shared.failed.load(Ordering::Relaxed) {
                return Err("the other end failed".to_owned());
            }
            let promoted = shared.promoted.load(Ordering::Relaxed);
            if promoted && rest == 0 && self.leave_at.is_some_and(|at| left <= at && left > 0) {
                self.leave_at = None;
                mark_priority(&self.socket, PRIORITY_LEAVING);
                shared.leaving.store(true, Ordering::Relaxed);
            }
            let leaves = self.leaves(shared);
            let held = left <= messages.div_ceil(2) && !promoted || leaves;
            let mut idle = true;
            if left > 0 && !held && (rest > 0 || self.dice.below(3) > 0) {
                if rest == 0 {
                    rest = self.dice.size();
                }
                let taken = self.sending.send(&mut self.socket, rest)?;
                rest -= taken;
                idle = taken == 0;
                if rest == 0 {
                    left -= 1;
                    shared.sent.fetch_add(1, Ordering::Relaxed);
                }
                if left == 0 {
                    redirected = state(&self.socket).map_or(0, |s| s.sent.redirected_messages);
                    let end = self.socket.shutdown(Shutdown::Write);
                    end.map_err(|error| error.to_string())?;
                }
            }
            if !ended && (left == 0 || self.dice.below(3) > 0) {
                let length = self.dice.size();
                match self.receiving.receive(&mut self.socket, length) {
                    None => ended = true,
                    Some(read) => idle &= read? == 0,
                }
            }
            if ended && left == 0 {
                return finish(&mut self.socket, &self.receiving, redirected);
            }
            if idle {
                self.wait(ended, left > 0, held)?;
            }
        }
    }

    /// Whether this is the proxy's end, and the connection is leaving.
    fn leaves(&self, shared: &Shared) -> bool {
        self.sending.tag % 2 == 1
            && shared.leaving.load(Ordering::Relaxed)
            && !shared.left.load(Ordering::Relaxed)
    }

    fn wait(&self, ended: bool, wants_to_send: bool, held: bool) -> Result<(), String> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !ended);
        events.set(PollFlags::POLLOUT, wants_to_send && !held);
        let mut fds = [PollFd::new(self.socket.as_fd(), events)];
        // Whoever waits for the promotion looks again by and by.
        let patience = if held {
            PollTimeout::from(1_u8)
        } else {
            PollTimeout::try_from(PATIENCE).expect("a timeout")
        };
        if poll(&mut fds, patience) != Ok(1) && !held {
            return Err(format!(
                "nothing happens: {} bytes read",
                self.receiving.read
            ));
        }
        Ok(())
    }
}

/// The other end's count comes last, over TCP or not: its bytes are all there.
fn finish(end: &mut TcpStream, receiving: &Stream, redirected: u64) -> Result<(u64, u64), String> {
    let again = end.read(&mut [0]).map_err(|error| error.to_string())?;
    if again != 0 {
        return Err("bytes after the end".to_owned());
    }
    Ok((receiving.read, redirected))
}

/// A reader in a tight loop, a promotion, one message, the end: the reader must have the message first.
fn last_words(fixture: &mut Fixture, connections: u64) -> Tally {
    let place = Place::new(fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let tally = Tally::default();
    for index in 0..connections {
        let mut pair = place.connect(&listener);
        pair.exchange();
        let promotion = place.promotion(&pair);
        let (bpf, node) = fixture.bpf_and_node();
        let Pair { mut app, mut proxy } = pair;
        let reading = AtomicBool::new(false);
        thread::scope(|scope| {
            let (reading, tally) = (&reading, &tally);
            scope.spawn(move || {
                let mut heard = Vec::new();
                let mut buffer = [0; 64];
                loop {
                    match proxy.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(read) => heard.extend_from_slice(&buffer[..read]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => panic!("read: {error}"),
                    }
                    reading.store(true, Ordering::Relaxed);
                }
                if heard != b"last words" {
                    tally.faults.lock().push(format!("{index}: {heard:?}"));
                }
            });
            while !reading.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            assert_eq!(promote_at(bpf, node, promotion), AccelOutcome::Done);
            app.write_all(b"last words").expect("write");
            app.shutdown(Shutdown::Write).expect("shutdown");
            wait(&app, PollFlags::POLLIN);
        });
        tally.promoted.fetch_add(1, Ordering::Relaxed);
    }
    println!("{connections} promoted, {} lost", tally.faults.lock().len());
    tally
}
