//! Acceleration on the running kernel: who is promoted and who is not, and what ends it.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use accel::{
    Pair, Place, hear, mark_priority, option, promote, promoted, redirected, say, set_option,
    state, wait,
};
use bpf::{Fixture, PATIENCE, accept, addr, connect_marked};
use millrace_agent::bpf::{
    AccelOutcome, AcceleratedEnd, Acceleration, Bpf, Counter, Promotion, Replace,
};
use millrace_runtime::handoff::accel as handoff;
use millrace_testkit::eventually;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

#[test]
fn a_promoted_connection_redirects_at_once_and_the_application_from_its_second_message_on() {
    accel::require!();
    let mut fixture = Fixture::new();
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
        (0, 3),
        "nothing reaches the application by TCP"
    );
    assert_eq!((seen.sent.tcp_bytes, seen.sent.redirected_bytes), (0, 24));
    let of_app = state(&pair.app).expect("promoted");
    assert_eq!(seen.received, of_app.sent);
    assert_eq!(
        (of_app.sent.tcp_messages, of_app.sent.redirected_messages),
        (1, 2)
    );
    assert_eq!(fixture.count(Counter::MessageRedirected), 5);
    assert_eq!(fixture.count(Counter::MessageNotArmed), 1);

    say(&mut pair.app, b"unread");
    let seen = state(&pair.app).expect("promoted");
    assert_eq!((seen.unread_redirected, seen.unread_tcp), (6, 0));
    hear(&mut pair.proxy, b"unread");
    assert_eq!(state(&pair.app).expect("promoted").unread_redirected, 0);
    drop(pair);
}

#[test]
fn every_family_is_promoted() {
    accel::require!();
    let mut fixture = Fixture::new();
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
    accel::require!();
    let mut fixture = Fixture::new();
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
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 2));
}

type Spoil = fn(&Pair);

#[test]
fn what_a_program_could_notice_is_refused() {
    accel::require!();
    let mut fixture = Fixture::new();
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

#[test]
fn connections_that_are_not_there_or_not_the_proxys_are_refused() {
    accel::require!();
    let mut fixture = Fixture::new();
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
    // The number of the namespace, but another pod's cookie.
    let anothers = Promotion {
        netns_cookie: 1,
        ..promotion
    };
    assert_eq!(promote(&mut fixture, anothers), AccelOutcome::NotFound);
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

/// Nobody made a cookie for a connection that was there before the programs, or outside their cgroup.
#[test]
fn a_connection_that_sockops_never_saw_is_refused() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let unseen = place.pod().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        setsockopt(&listener, sockopt::Mark, &accel::PROXY_MARK)?;
        let app = TcpStream::connect(listener.local_addr()?)?;
        Ok(Pair::new(app, listener.accept()?.0))
    });
    let mut pair = unseen.expect("connected");
    let promotion = place.promotion(&pair);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::NoCookie);
    pair.exchange();
    assert_eq!(state(&pair.proxy), None);
}

#[test]
fn multipath_tcp_is_left_alone() {
    accel::require!();
    let mut fixture = Fixture::new();
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
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    // TCP_ULP: refused while promoted, and to anybody else whatever the kernel says.
    let ulp = set_option(&pair.app, libc::SOL_TCP, 31, b"tls");
    assert_eq!(ulp, Err(nix::errno::Errno::EPERM));
    // Zero-copy sends would never be told that they are done, not even by TCP.
    let zero_copy = set_option(
        &pair.app,
        libc::SOL_SOCKET,
        libc::SO_ZEROCOPY,
        &[1, 0, 0, 0],
    );
    assert_eq!(zero_copy, Err(nix::errno::Errno::EPERM));
    assert_eq!(fixture.count(Counter::SetsockoptRefused), 2);
    pair.exchange();
    let before = (redirected(&pair.app), redirected(&pair.proxy));
    option(&pair.app, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4);
    for _ in 0..3 {
        pair.exchange();
    }
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), before);
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

#[test]
fn the_proxys_marks_choose_the_way() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    for (mark, withdrawn) in [(handoff::PRIORITY_OUT, 1), (handoff::PRIORITY_LEAVING, 2)] {
        mark_priority(&pair.proxy, mark);
        pair.exchange();
        assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 2));
        assert_eq!(fixture.count(Counter::MessageMarked), withdrawn);
        let of_app = fixture.count(Counter::MessageWithdrawn);
        assert_eq!(of_app, withdrawn, "the application's");
    }
    mark_priority(&pair.proxy, handoff::PRIORITY_NORMAL);
    // What an application does with its own means nothing.
    mark_priority(&pair.app, 6);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 3));

    let large = vec![7; handoff::MAX_REDIRECTED + 1];
    say(&mut pair.proxy, &large);
    hear(&mut pair.app, &large);
    assert_eq!(redirected(&pair.proxy), 3);
    assert!(fixture.count(Counter::MessageTooLarge) > 0);
    let largest = vec![8; handoff::MAX_REDIRECTED];
    say(&mut pair.proxy, &largest);
    let seen = state(&pair.proxy).expect("promoted");
    assert_eq!(seen.sent.redirected_messages, 4, "whole, in one message");
    assert_eq!(seen.unread_redirected as usize, handoff::MAX_REDIRECTED);
    hear(&mut pair.app, &largest);
}

#[test]
fn the_pods_setting_counts_for_live_connections() {
    accel::require!();
    let mut fixture = Fixture::new();
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
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 2));
    assert_eq!(fixture.count(Counter::MessageOff), 2);
    set(&mut fixture, Acceleration::On);
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 3));
    fixture.bpf().withdraw(cookie).expect("withdrawn");
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 3));
}

#[test]
fn promoted_connections_go_on_without_an_agent_and_with_the_next() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    fixture.kill_agent();
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (2, 3));
    for replace in [Replace::Changed, Replace::Always] {
        fixture.restart_agent(replace);
        pair.exchange();
        let promotion = place.promotion(&pair);
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::InUse);
    }
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (4, 5));
    let ends = inspected(&mut fixture);
    assert_eq!(ends.len(), 2);
    let proxy = ends
        .iter()
        .find(|end| end.is_proxy)
        .expect("the proxy's end");
    assert_eq!(proxy.local, pair.proxy.local_addr().expect("bound"));
    assert_eq!(proxy.sent.redirected_messages, 5);
    assert_eq!(proxy.netns_cookie, place.captured.cookie);
    let mut other = promoted(&mut fixture, &place, &listener);
    drop(pair);
    // A process that another test is just starting may hold copies of the descriptors for a moment.
    eventually(PATIENCE, "closed ends leave", || {
        inspected(&mut fixture).len() == 2
    });

    // Clean-up takes nothing that waits to be read, and ends acceleration.
    say(&mut other.app, b"waits");
    fixture.kill_agent();
    Bpf::clean(&fixture.node.bpffs_dir()).expect("cleaned");
    say(&mut other.app, b" and goes on");
    hear(&mut other.proxy, b"waits and goes on");
    other.exchange();
    // The kernel takes the programs off after the call that let go of them.
    eventually(PATIENCE, "no program answers any more", || {
        state(&other.app).is_none()
    });
}

fn inspected(fixture: &mut Fixture) -> Vec<AcceleratedEnd> {
    let inspector = fixture.bpf().inspector().expect("opened");
    inspector.ends().expect("listed")
}

#[test]
fn what_is_sent_to_an_end_that_is_gone_goes_by_tcp() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let Pair { mut app, proxy } = promoted(&mut fixture, &place, &listener);
    drop(proxy);
    wait(&app, PollFlags::POLLIN);
    say(&mut app, b"nobody hears this");
    // The memory of a socket that is gone keeps its cookie until another one has it; the map does not.
    let reused = fixture.count(Counter::MessagePeerGone);
    assert_eq!(reused + fixture.count(Counter::MessageRedirectFailed), 1);
    wait(&app, PollFlags::POLLERR);
}
