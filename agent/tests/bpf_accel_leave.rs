//! A promoted connection that leaves the map: the application's socket is an ordinary one again, and nothing
//! of what either end sent is lost or overtaken.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::Read as _;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use accel::{
    Place, hear, leave, mark_priority, option, promote, promoted, redirected, say, state, wait,
};
use bpf::Fixture;
use millrace_agent::bpf::{AccelOutcome, Acceleration, Counter};
use millrace_runtime::handoff::accel::{
    AccelWay, MAX_REDIRECTED, Membership, PRIORITY_FORCED, PRIORITY_LEAVING, PRIORITY_NORMAL,
    SOCKOPT_LEVEL, SOCKOPT_WAY,
};
use nix::poll::PollFlags;

fn waiting(at: &TcpStream) -> i32 {
    let mut count = 0_i32;
    // SAFETY: writes one integer that outlives the call.
    let result = unsafe { libc::ioctl(at.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(result, 0);
    count
}

fn membership(end: &TcpStream) -> Membership {
    state(end).expect("told").membership
}

#[test]
fn an_application_that_has_read_everything_leaves_and_may_come_again() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    let promotion = place.promotion(&pair);
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Withdrawn);
    mark_priority(&pair.proxy, PRIORITY_LEAVING);
    assert_eq!(membership(&pair.proxy), Membership::In);
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Done);
    assert_eq!(membership(&pair.proxy), Membership::Left);
    assert_eq!(state(&pair.app), None, "an ordinary socket");
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::NotFound);
    assert_eq!(fixture.count(Counter::LeaveDone), 1);
    assert_eq!(fixture.count(Counter::LeaveRefused), 2);
    let before = (
        fixture.count(Counter::MessageRedirected),
        redirected(&pair.proxy),
    );
    for _ in 0..3 {
        pair.exchange();
    }
    let large = vec![7; 5 * MAX_REDIRECTED];
    say(&mut pair.proxy, &large);
    wait(&pair.app, PollFlags::POLLIN);
    assert!(waiting(&pair.app) > 0, "its kernel counts what came by TCP");
    hear(&mut pair.app, &large);
    let after = (
        fixture.count(Counter::MessageRedirected),
        redirected(&pair.proxy),
    );
    assert_eq!(after, before);

    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Withdrawn);
    assert_eq!(fixture.count(Counter::PromoteWithdrawn), 1);
    mark_priority(&pair.proxy, PRIORITY_NORMAL);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
    assert_eq!(membership(&pair.proxy), Membership::In);
    for _ in 0..3 {
        pair.exchange();
    }
    assert_eq!(redirected(&pair.proxy), before.1 + 3);
    assert_eq!(
        redirected(&pair.app),
        3,
        "one by TCP, counted from its first promotion"
    );
    pair.app
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    wait(&pair.proxy, PollFlags::POLLIN);
    assert_eq!(pair.proxy.read(&mut [0; 8]).expect("read"), 0);
}

/// What the application redirected before it left is read before what it sends by TCP after.
#[test]
fn what_was_redirected_before_is_read_first() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.app, b"by the map, ");
    mark_priority(&pair.proxy, PRIORITY_LEAVING);
    let promotion = place.promotion(&pair);
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Done);
    say(&mut pair.app, b"then by TCP");
    hear(&mut pair.proxy, b"by the map, then by TCP");
    pair.exchange();
}

#[test]
fn unread_bytes_keep_an_application_in() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.proxy, b"unread");
    mark_priority(&pair.proxy, PRIORITY_LEAVING);
    let promotion = place.promotion(&pair);
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Unread);
    hear(&mut pair.app, b"unr");
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Unread);
    assert_eq!(membership(&pair.proxy), Membership::In);
    assert_eq!(fixture.count(Counter::LeaveUnread), 2);
    hear(&mut pair.app, b"ead");
    assert_eq!(leave(&mut fixture, promotion), AccelOutcome::Done);
    pair.exchange();
}

/// What the proxy asks before each message.
#[test]
fn the_kernel_says_what_is_in_the_way_of_a_message() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    assert!(way(&pair.proxy).is_clear());
    say(&mut pair.proxy, b"unread");
    let seen = way(&pair.proxy);
    assert_eq!((seen.unread_redirected, seen.is_clear()), (6, false));
    hear(&mut pair.app, b"unread");
    assert!(way(&pair.proxy).is_clear());
    let cookie = place.captured.cookie;
    for (setting, is_clear) in [(Acceleration::Off, false), (Acceleration::On, true)] {
        fixture
            .bpf()
            .set_acceleration(cookie, setting)
            .expect("written");
        assert_eq!(way(&pair.proxy).is_clear(), is_clear, "{setting:?}");
    }
    lowat(&pair.app);
    assert_eq!(way(&pair.proxy).obstacles, AccelWay::OPTION);
    // Where nobody is there to take the connection out, everything goes by the map all the same.
    mark_priority(&pair.proxy, PRIORITY_FORCED);
    let before = redirected(&pair.proxy);
    say(&mut pair.proxy, b"forced");
    assert_eq!(redirected(&pair.proxy), before + 1);
    hear(&mut pair.app, b"forced");
    assert_eq!(state(&pair.proxy).expect("promoted").sent.tcp_messages, 0);
}

fn way(end: &TcpStream) -> AccelWay {
    let mut bytes = [0_u8; AccelWay::SIZE];
    let mut length = libc::socklen_t::try_from(bytes.len()).expect("short");
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            SOCKOPT_LEVEL,
            SOCKOPT_WAY,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    AccelWay::from_bytes(&bytes)
}

/// Which acceleration cannot honour.
fn lowat(end: &TcpStream) {
    option(end, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4);
}
