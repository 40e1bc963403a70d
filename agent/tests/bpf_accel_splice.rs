//! Two pods' applications that send to each other past the proxy: who may, what ends it, and that nothing of what
//! either sends is lost, overtaken or another's.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;
#[path = "support/splice.rs"]
mod splice;

use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, TcpStream};

use accel::{Stream, hear, leave, mark_priority, option, promote, say, state, wait};
use bpf::Fixture;
use millrace_agent::bpf::{AccelOutcome, Acceleration, Counter, experiment};
use millrace_runtime::handoff::accel::{
    Membership, PRIORITY_DIRECT, PRIORITY_LEAVING, PRIORITY_NORMAL, PRIORITY_OUT,
};
use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use splice::{Line, Side, moved, set, way};

fn sides(fixture: &mut Fixture) -> [Side; 2] {
    [("from", "127.0.0.1"), ("to", "127.0.0.1")].map(|(name, host)| Side::new(fixture, name, host))
}

#[test]
fn messages_go_straight_into_the_other_pod_and_are_counted() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    let mut line = Line::spliced(&mut fixture, &from, &to);
    let before = fixture.count(Counter::MessageRedirected);
    for round in 0..10 {
        line.exchange(&round.to_string());
    }
    assert_eq!(fixture.count(Counter::MessageSpliced), 20);
    assert_eq!(fixture.count(Counter::MessageRedirected), before);
    let (there, back) = (moved(&line.from.proxy), moved(&line.to.proxy));
    assert_eq!((there.messages, there.bytes, there.on), (10, 40, true));
    assert_eq!((back.messages, back.bytes, back.on), (10, 60, true));
    let cookie = from.place.captured.cookie;
    let sums = fixture.bpf().pod_acceleration(cookie).expect("sums");
    assert_eq!((sums.spliced, sums.unspliced), (1, 0));
    assert_eq!((sums.spliced_messages, sums.spliced_bytes), (10, 40));
    // The last words, and the end after them, which the proxy passes on.
    say(&mut line.from.app, b"last words");
    line.from.app.shutdown(Shutdown::Write).expect("shutdown");
    wait(&line.from.proxy, PollFlags::POLLIN);
    assert_eq!(line.from.proxy.read(&mut [0; 8]).expect("read"), 0);
    assert_eq!(way(&line.to.proxy).unread_redirected, 10);
    line.to.proxy.shutdown(Shutdown::Write).expect("shutdown");
    hear(&mut line.to.app, b"last words");
    wait(&line.to.app, PollFlags::POLLIN);
    assert_eq!(line.to.app.read(&mut [0; 8]).expect("read"), 0);
    say(&mut line.to.app, b"good bye");
    hear(&mut line.from.app, b"good bye");
    // What was sent is known beyond the sender's life.
    drop(line.from.app);
    assert_eq!(moved(&line.from.proxy).bytes, 50);
}

#[test]
fn what_may_not_be_spliced_is_not() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    let mut line = Line::new(&from, &to);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::NotFound);
    for promotion in line.promotions {
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
    }
    for place in [&from.place, &to.place] {
        for setting in [Acceleration::Auto, Acceleration::Off] {
            set(&mut fixture, place, setting);
            assert_eq!(line.splice(&mut fixture), AccelOutcome::Off);
        }
        set(&mut fixture, place, Acceleration::On);
    }
    // On its way by TCP, then by the map, to either end of the proxy's; then by TCP to the other application.
    for _ in 0..2 {
        say(&mut line.from.app, b"under way");
        assert_eq!(line.splice(&mut fixture), AccelOutcome::Unread);
        hear(&mut line.from.proxy, b"under way");
        say(&mut line.to.app, b"under way");
        assert_eq!(line.splice(&mut fixture), AccelOutcome::Unread);
        hear(&mut line.to.proxy, b"under way");
    }
    mark_priority(&line.to.proxy, PRIORITY_OUT);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Withdrawn);
    say(&mut line.to.proxy, b"by TCP");
    mark_priority(&line.to.proxy, PRIORITY_NORMAL);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Unread);
    hear(&mut line.to.app, b"by TCP");
    mark_priority(&line.from.proxy, PRIORITY_DIRECT);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Withdrawn);
    mark_priority(&line.from.proxy, PRIORITY_NORMAL);
    // Another pod's connection, by mistake.
    let mut other = line.ends;
    other.reverse();
    other[0].cookie = line.ends[0].cookie;
    let outcome = fixture.bpf().splice(other).expect("the program runs");
    assert_eq!(outcome, AccelOutcome::NotFound);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Done);
    line.to.app.set_nonblocking(false).expect("blocking");
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Blocking);
    line.to.app.set_nonblocking(true).expect("blocking");
    lowat(&line.to.app);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::SocketOption);
    assert_eq!(fixture.count(Counter::SpliceOff), 4);
    assert_eq!(fixture.count(Counter::SpliceUnread), 5);
    assert_eq!(fixture.count(Counter::SpliceDone), 1);
    assert_eq!(fixture.count(Counter::SpliceRefused), 6);
}

/// Until the proxy opens the way everything comes to it, and whatever does ends the splice before it has begun.
#[test]
fn a_message_before_the_way_is_open_keeps_it_shut() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    let mut line = Line::promoted(&mut fixture, &from, &to);
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Done);
    say(&mut line.from.app, b"first");
    line.open();
    say(&mut line.from.app, b" second");
    hear(&mut line.from.proxy, b"first second");
    say(&mut line.to.app, b"the other direction is open");
    hear(&mut line.from.app, b"the other direction is open");
    assert_eq!(fixture.count(Counter::UnspliceMarked), 1);
    line.close();
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Done);
    line.open();
    line.exchange("again");
    assert_eq!(fixture.count(Counter::MessageSpliced), 3);
}

/// What asking for an empty way is for.
#[test]
fn without_that_rule_a_message_overtakes_those_under_way() {
    accel::require!();
    let mut fixture = Fixture::with_experiment(experiment::SPLICE_ANYHOW);
    let [from, to] = sides(&mut fixture);
    let mut line = Line::promoted(&mut fixture, &from, &to);
    say(&mut line.from.app, b"first");
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Done);
    line.open();
    say(&mut line.from.app, b"second");
    hear(&mut line.to.app, b"second");
    hear(&mut line.from.proxy, b"first");
}

#[test]
fn the_first_message_that_may_not_pass_ends_it_for_good() {
    type Spoil = fn(&mut Fixture, &[Side; 2], &mut Line);
    accel::require!();
    let cases: [(&str, Spoil, Counter); 8] = [
        (
            "own setting",
            |fixture, sides, _| set(fixture, &sides[0].place, Acceleration::Auto),
            Counter::UnspliceOff,
        ),
        (
            "other setting",
            |fixture, sides, _| set(fixture, &sides[1].place, Acceleration::Auto),
            Counter::UnspliceOff,
        ),
        (
            "near mark",
            |_, _, line| mark_priority(&line.from.proxy, PRIORITY_NORMAL),
            Counter::UnspliceMarked,
        ),
        (
            "far mark",
            |_, _, line| mark_priority(&line.to.proxy, PRIORITY_LEAVING),
            Counter::UnspliceMarked,
        ),
        (
            "other option",
            |_, _, line| lowat(&line.to.app),
            Counter::UnspliceOption,
        ),
        (
            "by TCP to the other",
            |_, _, line| {
                mark_priority(&line.to.proxy, PRIORITY_OUT);
                say(&mut line.to.proxy, b"not to be overtaken");
                mark_priority(&line.to.proxy, PRIORITY_DIRECT);
            },
            Counter::UnspliceBroken,
        ),
        (
            "unread messages",
            |_, _, line| {
                for _ in 0..64 {
                    say(&mut line.from.app, b"x");
                }
            },
            Counter::UnspliceCapped,
        ),
        (
            "other proxy end gone",
            |_, _, line| {
                let near = line.from.proxy.try_clone().expect("dup");
                drop(std::mem::replace(&mut line.to.proxy, near));
                until_at_the_proxy(line);
            },
            Counter::UnspliceGone,
        ),
    ];
    for (what, spoil, why) in cases {
        let mut fixture = Fixture::new();
        let sides = sides(&mut fixture);
        let mut line = Line::spliced(&mut fixture, &sides[0], &sides[1]);
        line.exchange(what);
        spoil(&mut fixture, &sides, &mut line);
        println!("{what}");
        say(&mut line.from.app, b"to the proxy");
        hear(&mut line.from.proxy, b"to the proxy");
        assert_eq!(fixture.count(why), 1, "{what}");
        assert!(!moved(&line.from.proxy).on, "{what}");
        for side in &sides {
            set(&mut fixture, &side.place, Acceleration::On);
        }
        line.open();
        say(&mut line.from.app, b"and so does this");
        hear(&mut line.from.proxy, b"and so does this");
        assert_eq!(fixture.count(why), 1, "{what}");
    }
}

#[test]
fn connections_that_the_map_has_no_room_for_stay_with_the_proxy() {
    accel::require!();
    // Room for both directions of one line and for one of another.
    let mut fixture = Fixture::with_max_entries(&[("SPLICED", 3)]);
    let [from, to] = sides(&mut fixture);
    let mut first = Line::spliced(&mut fixture, &from, &to);
    let mut second = Line::promoted(&mut fixture, &from, &to);
    assert_eq!(second.splice(&mut fixture), AccelOutcome::Full);
    second.open();
    say(&mut second.from.app, b"to the proxy");
    hear(&mut second.from.proxy, b"to the proxy");
    say(&mut second.to.app, b"to the proxy, too");
    hear(&mut second.to.proxy, b"to the proxy, too");
    second.close();
    first.exchange("as before");
    assert_eq!(fixture.count(Counter::MessageSpliced), 2);
    let gone = |fixture: &mut Fixture| {
        let inspector = fixture.bpf().inspector().expect("maps");
        inspector.gone().expect("listed")
    };
    assert!(gone(&mut fixture).is_empty());
    drop(first);
    millrace_testkit::eventually(bpf::PATIENCE, "the first one's are gone", || {
        gone(&mut fixture).len() == 2
    });
    for cookie in gone(&mut fixture) {
        let inspector = fixture.bpf().inspector().expect("maps");
        inspector.forget(cookie).expect("forgotten");
    }
    assert_eq!(second.splice(&mut fixture), AccelOutcome::Done);
    second.open();
    second.exchange("past the proxy");
    assert_eq!(fixture.count(Counter::MessageSpliced), 4);
}

#[test]
fn an_application_that_leaves_is_sent_nothing_past_the_proxy() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    let mut line = Line::spliced(&mut fixture, &from, &to);
    line.exchange("before");
    say(&mut line.from.app, b"unread");
    mark_priority(&line.to.proxy, PRIORITY_LEAVING);
    assert_eq!(
        leave(&mut fixture, line.promotions[1]),
        AccelOutcome::Unread
    );
    hear(&mut line.to.app, b"unread");
    assert_eq!(leave(&mut fixture, line.promotions[1]), AccelOutcome::Done);
    for side in [&from, &to] {
        let sums = fixture.bpf().pod_acceleration(side.place.captured.cookie);
        assert_eq!(sums.expect("sums").unspliced, 1);
    }
    let place = state(&line.to.proxy).expect("told").membership;
    assert_eq!(place, Membership::Left);
    line.open();
    say(&mut line.from.app, b"to the proxy");
    hear(&mut line.from.proxy, b"to the proxy");
    say(&mut line.to.app, b"to the proxy, too");
    hear(&mut line.to.proxy, b"to the proxy, too");
    line.close();
    assert_eq!(line.splice(&mut fixture), AccelOutcome::NotFound);
    assert_eq!(
        promote(&mut fixture, line.promotions[1]),
        AccelOutcome::Done
    );
    assert_eq!(line.splice(&mut fixture), AccelOutcome::Done);
    line.open();
    line.exchange("after");
}

/// Nobody reads: the sender is held back by the cap, then by TCP to the proxy, and nothing grows.
#[test]
fn a_reader_that_never_reads_holds_the_sender_back() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    for size in [1, 100, 30_000] {
        let mut line = Line::spliced(&mut fixture, &from, &to);
        for end in [&line.from.app, &line.from.proxy] {
            setsockopt(end, sockopt::SndBuf, &32_768).expect("SO_SNDBUF");
            setsockopt(end, sockopt::RcvBuf, &131_072).expect("SO_RCVBUF");
        }
        let mut stream = Stream::new(9);
        while stream.send(&mut line.from.app, size).expect("sent") > 0 {
            assert!(stream.sent < 8 << 20, "{size}: nobody holds it back");
        }
        let direct = moved(&line.from.proxy);
        assert!(direct.bytes <= 65_536, "{size}: {direct:?}");
        assert!((1..=64).contains(&direct.messages), "{size}: {direct:?}");
        assert_eq!(
            u64::from(way(&line.to.proxy).unread_redirected),
            direct.bytes
        );
        // All of it, in its order: first what is in the other pod, the rest at the proxy.
        let mut hearing = Stream::new(9);
        let ends = [
            (&mut line.to.app, direct.bytes),
            (&mut line.from.proxy, stream.sent),
        ];
        for (end, until) in ends {
            while hearing.read < until {
                wait(end, PollFlags::POLLIN);
                let heard = hearing.receive(end, 65_536).expect("not the end");
                heard.expect("the bytes that were sent");
            }
        }
    }
    assert_eq!(fixture.count(Counter::UnspliceCapped), 3);
}

/// Pods alike in every address and port, each spliced with its neighbour, and the next connections take the tuples
/// of those before.
#[test]
fn identical_tuples_of_many_pods_do_not_meet() {
    accel::require!();
    let pods =
        std::env::var("MILLRACE_ACCEL_PODS").map_or(24, |text| text.parse().expect("a number"));
    let mut fixture = Fixture::new();
    let sides: Vec<Side> = (0..pods)
        .map(|index| {
            let at = ["127.0.0.1:7000", "127.0.0.1:7001"];
            Side::at(&mut fixture, &format!("app{index}"), at)
        })
        .collect();
    let mut moved_in_all = 0;
    for generation in 0..3 {
        let mut lines: Vec<Line> = (0..pods)
            .map(|index| {
                let to = &sides[(index + 1 + generation) % pods];
                Line::spliced(&mut fixture, &sides[index], to)
            })
            .collect();
        for round in 0..20 {
            let words = |way: &str, index| format!("{way} {index} {generation} {round}");
            // All of them have something under way before any is read.
            for (index, line) in lines.iter_mut().enumerate() {
                say(&mut line.from.app, words("to", index).as_bytes());
                say(&mut line.to.app, words("back", index).as_bytes());
            }
            for (index, line) in lines.iter_mut().enumerate() {
                hear(&mut line.to.app, words("to", index).as_bytes());
                hear(&mut line.from.app, words("back", index).as_bytes());
            }
        }
        for line in &lines {
            moved_in_all += moved(&line.from.proxy).messages + moved(&line.to.proxy).messages;
            for end in [
                &line.from.app,
                &line.from.proxy,
                &line.to.app,
                &line.to.proxy,
            ] {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(end, sockopt::Linger, &linger).expect("SO_LINGER");
            }
        }
    }
    assert_eq!(moved_in_all, pods as u64 * 3 * 20 * 2);
}

/// A reset of the one, passed on by the proxy, is one of the other; and so it is when the proxy ends.
#[test]
fn the_end_of_one_is_the_end_of_the_other() {
    accel::require!();
    let mut fixture = Fixture::new();
    let [from, to] = sides(&mut fixture);
    let mut line = Line::spliced(&mut fixture, &from, &to);
    line.exchange("before");
    let near = line.from.proxy.try_clone().expect("dup");
    drop(std::mem::replace(&mut line.to.proxy, near));
    until_at_the_proxy(&mut line);
    drop((line.from.proxy, line.to.proxy));
    for app in [&mut line.from.app, &mut line.to.app] {
        ended(app);
    }
    let mut line = Line::spliced(&mut fixture, &from, &to);
    line.exchange("before");
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&line.from.app, sockopt::Linger, &linger).expect("SO_LINGER");
    drop(line.from.app);
    wait(&line.from.proxy, PollFlags::POLLIN);
    assert!(line.from.proxy.read(&mut [0; 8]).is_err(), "reset");
    // Who is gone is sent nothing, and nothing breaks.
    say(&mut line.to.app, b"to the proxy");
    hear(&mut line.to.proxy, b"to the proxy");
    assert_eq!(fixture.count(Counter::UnspliceGone), 2);
}

/// Sends until a message comes to the proxy: a child process of another test's may have what was closed open for a
/// moment yet.
fn until_at_the_proxy(line: &mut Line) {
    while moved(&line.from.proxy).on {
        say(&mut line.from.app, b"x");
    }
    hear(&mut line.from.proxy, b"x");
}

/// Reads to the end, which comes.
fn ended(at: &mut TcpStream) {
    loop {
        wait(at, PollFlags::POLLIN);
        match at.read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// Which acceleration cannot honour.
fn lowat(end: &TcpStream) {
    option(end, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4);
}
