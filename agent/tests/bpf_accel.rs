//! Acceleration on the running kernel: promotion, the rules, and that nothing is lost.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};

use accel::{Pair, Place, Stream, hear, mark_priority, promote, say, state, wait};
use bpf::{Fixture, PATIENCE, accept, addr, connect_marked, node};
use millrace_agent::bpf::{
    AccelOutcome, AcceleratedEnd, Acceleration, Bpf, Counter, Promotion, Replace, experiment,
};
use millrace_runtime::handoff::accel as handoff;
use millrace_testkit::eventually;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[test]
fn a_promoted_connection_redirects_from_the_second_message_on() {
    let mut fixture = node!();
    assert_eq!(fixture.bpf().acceleration(), Ok(()));
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = place.connect(&listener);
    pair.exchange();
    assert_eq!(state(&pair.proxy), None, "plain TCP so far");
    let outcome = promote(&mut fixture, place.promotion(&pair));
    assert_eq!(outcome, AccelOutcome::Done);
    for _ in 0..3 {
        pair.exchange();
    }
    let seen = state(&pair.proxy).expect("promoted");
    assert_eq!(
        (seen.sent.tcp_messages, seen.sent.redirected_messages),
        (1, 2)
    );
    assert_eq!((seen.sent.tcp_bytes, seen.sent.redirected_bytes), (8, 16));
    let of_app = state(&pair.app).expect("promoted");
    assert_eq!(seen.received, of_app.sent);
    assert_eq!(
        (of_app.sent.tcp_messages, of_app.sent.redirected_messages),
        (1, 2)
    );
    assert_eq!(fixture.count(Counter::MessageRedirected), 4);
    assert_eq!(fixture.count(Counter::MessageNotArmed), 2);

    say(&mut pair.app, b"unread");
    let seen = state(&pair.app).expect("promoted");
    assert_eq!((seen.unread_redirected, seen.unread_tcp), (6, 0));
    hear(&mut pair.proxy, b"unread");
    assert_eq!(state(&pair.app).expect("promoted").unread_redirected, 0);
    drop(pair);
}

#[test]
fn every_family_is_promoted() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    for (at, to) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        ("[::]:0", "127.0.0.1"),
    ] {
        let listener = place.listener(at);
        let port = listener.local_addr().expect("bound").port();
        let to = SocketAddr::new(to.parse().expect("an address"), port);
        let app = place.pod().connect(to).expect("connected");
        let mut pair = Pair::new(app, accept(&listener).0);
        let outcome = promote(&mut fixture, place.promotion(&pair));
        assert_eq!(outcome, AccelOutcome::Done, "{at}");
        pair.exchange();
        pair.exchange();
        assert_eq!(redirected(&pair.app), 1, "{at}");
    }
}

/// The proxy connects to an application that accepts, as for a delivery.
#[test]
fn the_accepting_end_may_be_the_application() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = accel::listener(place.pod(), addr("0.0.0.0:0"), None);
    let port = listener.local_addr().expect("bound").port();
    let proxy = connect_marked(place.pod(), place.pod().at(port), 0x1_0539).expect("connected");
    let (app, _) = accept(&listener);
    let mut pair = Pair::new(app, proxy);
    let outcome = promote(&mut fixture, place.promotion(&pair));
    assert_eq!(outcome, AccelOutcome::Done);
    pair.exchange();
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 1));
}

type Spoil = fn(&Pair);

#[test]
fn what_a_program_could_notice_is_refused() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let spoil: [(&str, Spoil, AccelOutcome); 8] = [
        (
            "blocking application",
            |p| blocking(&p.app),
            AccelOutcome::Blocking,
        ),
        (
            "blocking proxy",
            |p| blocking(&p.proxy),
            AccelOutcome::Blocking,
        ),
        (
            "SO_RCVLOWAT",
            |p| option(&p.app, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 2),
            AccelOutcome::SocketOption,
        ),
        (
            "SO_PEEK_OFF",
            |p| option(&p.app, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0),
            AccelOutcome::SocketOption,
        ),
        (
            "SO_ZEROCOPY",
            |p| option(&p.app, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1),
            AccelOutcome::SocketOption,
        ),
        (
            "SO_TIMESTAMPING",
            |p| option(&p.app, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, 16),
            AccelOutcome::SocketOption,
        ),
        (
            "TCP_INQ",
            |p| option(&p.app, libc::SOL_TCP, 36, 1),
            AccelOutcome::SocketOption,
        ),
        (
            "SO_OOBINLINE",
            |p| option(&p.app, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1),
            AccelOutcome::SocketOption,
        ),
    ];
    for (what, spoil, outcome) in spoil {
        let mut pair = place.connect(&listener);
        pair.exchange();
        spoil(&pair);
        let promotion = place.promotion(&pair);
        assert_eq!(promote(&mut fixture, promotion), outcome, "{what}");
        assert_eq!(state(&pair.proxy), None, "{what}");
        pair.app.set_nonblocking(true).expect("O_NONBLOCK");
        pair.proxy.set_nonblocking(true).expect("O_NONBLOCK");
        option(&pair.app, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1);
        pair.exchange();
    }
    assert_eq!(fixture.count(Counter::PromoteSocketOption), 6);
}

fn blocking(end: &TcpStream) {
    end.set_nonblocking(false).expect("O_NONBLOCK");
}

fn option(end: &TcpStream, level: i32, name: i32, value: i32) {
    assert_eq!(
        set_option(end, level, name, &value.to_ne_bytes()),
        Ok(()),
        "{level} {name}"
    );
}

fn set_option(end: &TcpStream, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).expect("short");
    // SAFETY: the value is as long as `length` says and outlives the call.
    let result =
        unsafe { libc::setsockopt(end.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    nix::errno::Errno::result(result).map(drop)
}

#[test]
fn connections_that_are_not_there_or_not_the_proxys_are_refused() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let waiting = place
        .pod()
        .connect(listener.local_addr().expect("bound"))
        .expect("connected");
    waiting.set_nonblocking(true).expect("O_NONBLOCK");
    let promotion = Promotion {
        netns_cookie: place.captured.cookie,
        nsid: place.nsid,
        local: waiting.peer_addr().expect("connected"),
        remote: waiting.local_addr().expect("bound"),
    };
    // Established for the kernel, accepted by nobody.
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::NotAccepted);
    let (proxy, _) = accept(&listener);
    let mut pair = Pair::new(waiting, proxy);

    let reversed = Promotion {
        local: promotion.remote,
        remote: promotion.local,
        ..promotion
    };
    assert_eq!(promote(&mut fixture, reversed), AccelOutcome::NotProxys);
    let elsewhere = Promotion {
        remote: addr("127.0.0.1:1"),
        ..promotion
    };
    assert!(matches!(
        promote(&mut fixture, elsewhere),
        AccelOutcome::NotFound | AccelOutcome::NotEstablished
    ));
    let nowhere = Promotion {
        nsid: 1_000_000,
        ..promotion
    };
    assert_eq!(promote(&mut fixture, nowhere), AccelOutcome::NotFound);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::InUse);
    pair.exchange();
    pair.app.shutdown(Shutdown::Write).expect("shutdown");
    let half_closed = place.connect(&listener);
    half_closed.app.shutdown(Shutdown::Write).expect("shutdown");
    wait(&half_closed.proxy, PollFlags::POLLIN);
    let promotion = place.promotion(&half_closed);
    assert_eq!(
        promote(&mut fixture, promotion),
        AccelOutcome::NotEstablished
    );
}

#[test]
fn multipath_tcp_is_left_alone() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let to = listener.local_addr().expect("bound");
    let socket = place
        .pod()
        .socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
    let app = bpf::connect(socket.expect("an MPTCP socket"), to).expect("connected");
    let (proxy, _) = accept(&listener);
    let mut pair = Pair::new(app, proxy);
    let promotion = place.promotion(&pair);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Mptcp);
    pair.exchange();
    assert_eq!(state(&pair.proxy), None);
}

#[test]
fn an_option_set_later_returns_a_connection_to_tcp() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    // TCP_ULP: refused while promoted, and to anybody else whatever the kernel says.
    let ulp = set_option(&pair.app, libc::SOL_TCP, 31, b"tls");
    assert_eq!(ulp, Err(nix::errno::Errno::EPERM));
    pair.exchange();
    let before = redirected(&pair.app);
    option(&pair.app, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4);
    for _ in 0..3 {
        pair.exchange();
    }
    assert_eq!(redirected(&pair.app), before);
    assert_eq!(redirected(&pair.proxy), before);
    assert_eq!(fixture.count(Counter::SetsockoptReturned), 1);
    assert_eq!(fixture.count(Counter::MessageOption), 6);
    // SO_RCVLOWAT counts again: three bytes are not worth waking up for.
    say(&mut pair.proxy, b"abc");
    assert!(!is_readable(&pair.app));
    say(&mut pair.proxy, b"d");
    wait(&pair.app, PollFlags::POLLIN);
    hear(&mut pair.app, b"abcd");
}

fn is_readable(end: &TcpStream) -> bool {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
}

fn redirected(end: &TcpStream) -> u64 {
    state(end).expect("promoted").sent.redirected_messages
}

/// A connection that redirects in both directions.
fn promoted(fixture: &mut Fixture, place: &Place, listener: &TcpListener) -> Pair {
    let mut pair = place.connect(listener);
    pair.exchange();
    let promotion = place.promotion(&pair);
    assert_eq!(promote(fixture, promotion), AccelOutcome::Done);
    pair.exchange();
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 1));
    pair
}

#[test]
fn the_proxys_marks_choose_the_way() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    mark_priority(&pair.proxy, handoff::PRIORITY_BY_TCP);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 1));
    mark_priority(&pair.proxy, handoff::PRIORITY_WITHDRAWN);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 1));
    mark_priority(&pair.proxy, handoff::PRIORITY_NORMAL);
    // What an application does with its own means nothing.
    mark_priority(&pair.app, 6);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (3, 2));

    let large = vec![7; handoff::MAX_REDIRECTED + 1];
    say(&mut pair.proxy, &large);
    hear(&mut pair.app, &large);
    assert_eq!(redirected(&pair.proxy), 2);
    let largest = vec![8; handoff::MAX_REDIRECTED];
    say(&mut pair.proxy, &largest);
    let seen = state(&pair.proxy).expect("promoted");
    assert_eq!(seen.sent.redirected_messages, 3, "whole, in one message");
    assert_eq!(seen.unread_redirected as usize, handoff::MAX_REDIRECTED);
    hear(&mut pair.app, &largest);
}

#[test]
fn the_pods_setting_counts_for_live_connections() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    let cookie = place.captured.cookie;
    let set = |fixture: &mut Fixture, setting| {
        let set = fixture.bpf().set_acceleration(cookie, setting);
        set.expect("written");
    };
    set(&mut fixture, Acceleration::Off);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 1));
    set(&mut fixture, Acceleration::On);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 2));
    fixture.bpf().withdraw(cookie).expect("withdrawn");
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 2));
}

#[test]
fn promoted_connections_go_on_without_an_agent_and_with_the_next() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    fixture.kill_agent();
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 2));
    for replace in [Replace::Changed, Replace::Always] {
        fixture.restart_agent(replace);
        pair.exchange();
        let promotion = place.promotion(&pair);
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::InUse);
    }
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (4, 4));
    let ends = inspected(&mut fixture);
    assert_eq!(ends.len(), 2);
    let proxy = ends
        .iter()
        .find(|end| end.is_proxy)
        .expect("the proxy's end");
    assert_eq!(proxy.local, pair.proxy.local_addr().expect("bound"));
    assert_eq!(proxy.sent.redirected_messages, 4);
    assert_eq!(proxy.netns_cookie, place.captured.cookie);
    let mut other = promoted(&mut fixture, &place, &listener);
    drop(pair);
    assert_eq!(inspected(&mut fixture).len(), 2, "closed ends leave");

    // Clean-up takes nothing that waits to be read, and ends acceleration.
    say(&mut other.app, b"waits");
    fixture.kill_agent();
    Bpf::clean(&fixture.node.bpffs_dir()).expect("cleaned");
    say(&mut other.app, b" and goes on");
    hear(&mut other.proxy, b"waits and goes on");
    other.exchange();
    assert_eq!(state(&other.app), None, "no program answers any more");
}

fn inspected(fixture: &mut Fixture) -> Vec<AcceleratedEnd> {
    fixture.bpf().accelerated().expect("listed")
}

#[test]
fn identical_tuples_of_many_pods_do_not_meet() {
    let mut fixture = node!();
    let places: Vec<Place> = (0..12)
        .map(|index| Place::new(&mut fixture, &format!("app{index}")))
        .collect();
    let mut pairs: Vec<Pair> = places
        .iter()
        .map(|place| {
            let listener = place.listener("127.0.0.1:7000");
            let socket = place.pod().socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let socket = socket.expect("a socket");
            let from = nix::sys::socket::SockaddrStorage::from(addr("127.0.0.1:7001"));
            nix::sys::socket::bind(socket.as_raw_fd(), &from).expect("bind");
            let app = bpf::connect(socket, addr("127.0.0.1:7000")).expect("connected");
            Pair::new(app, accept(&listener).0)
        })
        .collect();
    for (place, pair) in places.iter().zip(&pairs) {
        let promotion = place.promotion(pair);
        assert_eq!(promotion.remote, addr("127.0.0.1:7001"));
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
    }
    for round in 0..200_u32 {
        // All of them have something under way before any is read.
        for (index, pair) in pairs.iter_mut().enumerate() {
            say(&mut pair.app, format!("to {index} {round}").as_bytes());
            say(&mut pair.proxy, format!("from {index} {round}").as_bytes());
        }
        for (index, pair) in pairs.iter_mut().enumerate() {
            hear(&mut pair.proxy, format!("to {index} {round}").as_bytes());
            hear(&mut pair.app, format!("from {index} {round}").as_bytes());
        }
    }
    for pair in &pairs {
        assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (199, 199));
    }
}

#[test]
fn a_reader_that_never_reads_holds_the_sender_back_as_tcp_does() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    for size in [1, 100, 65_536] {
        let mut plain = place.connect(&listener);
        let by_tcp = fill(&mut plain.app, size);
        let mut pair = promoted(&mut fixture, &place, &listener);
        let taken = fill(&mut pair.app, size);
        let seen = state(&pair.app).expect("promoted");
        assert!(seen.unread_redirected <= 65_536, "{size}: {seen:?}");
        assert!(
            taken <= by_tcp + 65_536,
            "{size}: {taken} bytes were taken, {by_tcp} by TCP alone"
        );
        let mut heard = vec![0; taken];
        let mut length = 0;
        while length < taken {
            wait(&pair.proxy, PollFlags::POLLIN);
            length += pair.proxy.read(&mut heard[length..]).expect("read");
        }
        let expected: Vec<u8> = (0..taken as u64).map(|at| accel::tag(9, at)).collect();
        assert!(heard == expected, "{size}: bytes differ");
    }
    assert!(fixture.count(Counter::MessageCapped) > 0);
}

/// Sends messages of `size` bytes until the kernel takes no more, at most 64 MiB.
fn fill(to: &mut TcpStream, size: usize) -> usize {
    let mut stream = Stream::new(9);
    while stream.sent < 64 << 20 {
        if stream.send(to, size).expect("sent") == 0 {
            break;
        }
    }
    usize::try_from(stream.sent).expect("fits")
}

/// Without rule 3 nothing holds the sender back.
#[test]
fn without_rule_3_a_sender_is_not_held_back() {
    millrace_testkit::require!(cluster);
    let mut fixture = Fixture::with_experiment(experiment::NO_RULE_3);
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    assert_eq!(fill(&mut pair.app, 16_384), 64 << 20);
}

#[test]
fn nothing_overtakes_bytes_that_went_by_tcp() {
    let said = |experiment| {
        let mut fixture = Fixture::with_experiment(experiment);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = place.connect(&listener);
        pair.exchange();
        let promotion = place.promotion(&pair);
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
        say(&mut pair.app, b"first ");
        say(&mut pair.app, b"second");
        let mut heard = [0; 12];
        for half in heard.chunks_mut(6) {
            wait(&pair.proxy, PollFlags::POLLIN);
            pair.proxy.read_exact(half).expect("read");
        }
        heard
    };
    millrace_testkit::require!(cluster);
    assert_eq!(&said(0), b"first second");
    assert_eq!(&said(experiment::NO_RULE_1), b"secondfirst ");
}

#[test]
fn a_side_that_is_shut_down_sends_no_more() {
    let sends = |experiment| {
        let mut fixture = Fixture::with_experiment(experiment);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = promoted(&mut fixture, &place, &listener);
        pair.app.shutdown(Shutdown::Write).expect("shutdown");
        pair.app.write(b"too late").map_err(|error| error.kind())
    };
    millrace_testkit::require!(cluster);
    assert_eq!(sends(0), Err(ErrorKind::BrokenPipe));
    // A FIN counts like a byte by TCP, so that rule 1 is in the way as long as it is unread.
    let without = experiment::NO_RULE_1 | experiment::NO_RULE_2;
    assert_eq!(sends(experiment::NO_RULE_1), Err(ErrorKind::BrokenPipe));
    assert_eq!(sends(without), Ok(8));
}

/// A `recv` that sleeps since before the promotion: for blocking sockets it is easy to have, and why they are
/// refused; for others it lasts a moment.
#[test]
fn a_read_that_began_before_promotion_loses_nothing() {
    let heard = |experiment| {
        let mut fixture = Fixture::with_experiment(experiment | experiment::BLOCKING);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = place.connect(&listener);
        pair.exchange();
        let promotion = place.promotion(&pair);
        let Pair { mut app, mut proxy } = pair;
        blocking(&proxy);
        let (told, reader) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                told.send(nix::unistd::gettid()).expect("somebody listens");
                let mut heard = [0; 16];
                let length = proxy.read(&mut heard).expect("read");
                heard[..length].to_vec()
            });
            sleeps_in_recv(reader.recv().expect("a thread"));
            assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
            say(&mut app, b"last words");
            app.shutdown(Shutdown::Write).expect("shutdown");
            reading.join().expect("reads")
        })
    };
    millrace_testkit::require!(cluster);
    assert_eq!(heard(0), b"last words");
    assert_eq!(heard(experiment::NO_RULE_4), b"", "the end came first");
}

/// Waits until a thread of this process sleeps in `recvfrom(2)` (number 45 on x86-64) or `read(2)`.
fn sleeps_in_recv(thread: nix::unistd::Pid) {
    let path = format!("/proc/self/task/{thread}/syscall");
    eventually(PATIENCE, "the reader sleeps", || {
        std::fs::read_to_string(&path)
            .is_ok_and(|text| text.starts_with("45 ") || text.starts_with("0 "))
    });
}

#[test]
fn fionread_counts_redirected_bytes() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.proxy, b"0123456789");
    let waiting = || {
        let mut count = 0_i32;
        // SAFETY: writes one integer that outlives the call.
        let result = unsafe { libc::ioctl(pair.app.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        assert_eq!(result, 0);
        count
    };
    assert_eq!(waiting(), 10);
    (&pair.app).read_exact(&mut [0; 4]).expect("read");
    assert_eq!(waiting(), 6);
}

/// What the proxy must not do, and why: an edge-triggered reader that takes a short read for the last one.
#[test]
fn both_kinds_pending_are_two_reads_and_counted() {
    let mut fixture = node!();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.proxy, b"small");
    mark_priority(&pair.proxy, handoff::PRIORITY_BY_TCP);
    say(&mut pair.proxy, b"by TCP");
    assert_eq!(fixture.count(Counter::MessageMixed), 1);
    let mut buffer = [0; 64];
    wait(&pair.app, PollFlags::POLLIN);
    assert_eq!(pair.app.read(&mut buffer).expect("read"), 5);
    wait(&pair.app, PollFlags::POLLIN);
    assert_eq!(pair.app.read(&mut buffer).expect("read"), 6);
}
