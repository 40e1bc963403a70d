//! Two threads that read one socket while it is promoted. A `recv` that one of them began before may look at the
//! socket after the other has armed the direction: if it then saw the FIN before what was redirected, an end would
//! come before the last bytes, which no socket of TCP's shows.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use accel::{Pair, Place, promote, redirected, say};
use bpf::Fixture;
use millrace_agent::bpf::AccelOutcome;
use millrace_testkit::eventually;

/// What the proxy sends after the promotion, before the end; it waits until the first is read.
const FIRST: &[u8] = b"first words";
const LAST: &[u8] = b"last words";

/// What the readers of one connection share.
#[derive(Debug, Default)]
struct Shared {
    read: AtomicU64,
    ended: AtomicBool,
    /// Calls that began after an end was seen and brought bytes.
    after: AtomicU64,
}

/// Reads until the end, and from then on until everything that was sent has come.
fn reads(app: &TcpStream, all: u64, shared: &Shared) {
    let mut app = app;
    let mut heard = [0; 64];
    loop {
        let ended = shared.ended.load(Ordering::SeqCst);
        match app.read(&mut heard) {
            Ok(0) => {
                shared.ended.store(true, Ordering::SeqCst);
                if shared.read.load(Ordering::SeqCst) == all {
                    return;
                }
            }
            Ok(length) => {
                shared.after.fetch_add(u64::from(ended), Ordering::SeqCst);
                shared.read.fetch_add(length as u64, Ordering::SeqCst);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// Whether an end came before the last bytes, and whether those were redirected.
fn one(fixture: &mut Fixture, place: &Place, pair: Pair) -> (bool, bool) {
    let promotion = place.promotion(&pair);
    let Pair { app, mut proxy } = pair;
    let shared = Shared::default();
    let all = (FIRST.len() + LAST.len()) as u64;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| reads(&app, all, &shared));
        }
        assert_eq!(promote(fixture, promotion), AccelOutcome::Done);
        say(&mut proxy, FIRST);
        eventually(bpf::PATIENCE, "the first bytes are read", || {
            shared.read.load(Ordering::SeqCst) == FIRST.len() as u64
        });
        say(&mut proxy, LAST);
        proxy.shutdown(Shutdown::Write).expect("shutdown");
    });
    assert_eq!(shared.read.load(Ordering::SeqCst), all, "every byte came");
    (shared.after.into_inner() > 0, redirected(&proxy) > 0)
}

#[test]
fn an_end_comes_after_the_last_bytes_whoever_reads() {
    accel::require!();
    let connections = std::env::var("MILLRACE_ACCEL_PROMOTIONS");
    let connections = connections.map_or(200, |text| text.parse::<u32>().expect("a number"));
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let (mut early, mut past) = (0, 0);
    for _ in 0..connections {
        let mut pair = place.connect(&listener);
        pair.exchange();
        let (ended_early, redirected) = one(&mut fixture, &place, pair);
        early += u32::from(ended_early);
        past += u32::from(redirected);
    }
    println!("{connections} connections, {past} redirected, {early} ended early");
    assert!(past > 0, "nothing was redirected");
    assert_eq!(early, 0, "of {connections}");
}
