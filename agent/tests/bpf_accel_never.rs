//! What never comes into the map, exact and counted: Multipath TCP on either side, datagrams. And what is easily
//! taken for different but is not: `io_uring`, whose calls on a promoted socket end as on any other.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use accel::{Pair, Place, hear, promote, promoted, redirected, say, state};
use bpf::{Fixture, accept, addr};
use io_uring::{IoUring, opcode, squeue, types};
use millrace_agent::bpf::{AccelOutcome, Counter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, SockaddrStorage, setsockopt, sockopt};

/// A listener of Multipath TCP with the proxy's mark or without.
fn multipath_listener(place: &Place, mark: Option<u32>) -> TcpListener {
    let socket = place
        .pod()
        .socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
    let socket = socket.expect("an MPTCP socket");
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark).expect("SO_MARK");
    }
    let at = SockaddrStorage::from(addr("127.0.0.1:0"));
    socket::bind(socket.as_raw_fd(), &at).expect("bind");
    socket::listen(&socket, socket::Backlog::MAXALLOWABLE).expect("listen");
    TcpListener::from(socket)
}

#[test]
fn a_multipath_listener_and_its_client_stay_outside() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = multipath_listener(&place, Some(accel::PROXY_MARK));
    let to = listener.local_addr().expect("bound");
    let socket = place
        .pod()
        .socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
    let app = bpf::connect(socket.expect("an MPTCP socket"), to).expect("connected");
    let mut pair = Pair::new(app, accept(&listener).0);
    let before = fixture.count(Counter::PromoteMptcp);
    let promotion = place.promotion(&pair);
    assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Mptcp);
    assert_eq!(fixture.count(Counter::PromoteMptcp), before + 1);
    for _ in 0..20 {
        pair.exchange();
    }
    assert_eq!(state(&pair.proxy), None);
    assert_eq!(fixture.count(Counter::MessageRedirected), 0);
}

/// The application listens by Multipath TCP, as Go's net package does; the proxy comes by plain TCP.
#[test]
fn a_plain_client_of_a_multipath_listener_is_exact_either_way() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = multipath_listener(&place, None);
    let to = listener.local_addr().expect("bound");
    let socket = place.pod().socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let socket = socket.expect("a socket");
    setsockopt(&socket, sockopt::Mark, &accel::PROXY_MARK).expect("SO_MARK");
    let proxy = bpf::connect(socket, to).expect("connected");
    let mut pair = Pair::new(accept(&listener).0, proxy);
    pair.exchange();
    let promotion = place.promotion(&pair);
    let outcome = promote(&mut fixture, promotion);
    for _ in 0..20 {
        pair.exchange();
    }
    // The kernel may have made the accepted socket a plain one, as no more than one path was asked for.
    match outcome {
        AccelOutcome::Done => assert!(redirected(&pair.app) > 0),
        other => assert_eq!(
            (other, fixture.count(Counter::MessageRedirected)),
            (AccelOutcome::Mptcp, 0)
        ),
    }
}

#[test]
fn datagrams_are_nothing_to_it() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let [a, b] = [0, 1].map(|_| bpf::udp(place.pod(), "127.0.0.1:0"));
    a.connect(b.local_addr().expect("bound")).expect("connect");
    b.connect(a.local_addr().expect("bound")).expect("connect");
    let listener = place.listener("127.0.0.1:0");
    let mut beside = promoted(&mut fixture, &place, &listener);
    for round in 0..200_u32 {
        a.send(&round.to_le_bytes()).expect("sent");
        beside.exchange();
        let mut heard = [0; 8];
        assert_eq!(b.recv(&mut heard).expect("received"), 4);
        assert_eq!(heard[..4], round.to_le_bytes());
    }
    let inspector = fixture.bpf().inspector().expect("opened");
    assert_eq!(
        inspector.ends().expect("listed").len(),
        2,
        "the connection beside"
    );
}

/// Hands a call to the kernel.
fn begin(ring: &mut IoUring, call: &squeue::Entry) {
    // SAFETY: what the entry points to outlives the call, whose end every caller waits for.
    unsafe { ring.submission().push(call) }.expect("room");
    ring.submit().expect("submitted");
}

/// Waits for what was begun, not without end.
fn end(ring: &mut IoUring) -> i32 {
    // SAFETY: the ring's descriptor, which lives as long as the ring.
    let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    let patience = PollTimeout::try_from(bpf::PATIENCE).expect("a timeout");
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, patience).expect("poll"), 1, "nothing ended");
    ring.completion().next().expect("a completion").result()
}

/// A `recv` that the ring holds until there is something waits across the promotion, too.
#[test]
fn calls_by_io_uring_end_as_on_a_plain_socket() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut ring = IoUring::new(8).expect("a ring");
    for accelerated in [false, true] {
        let mut pair = place.connect(&listener);
        pair.exchange();
        let app = types::Fd(pair.app.as_raw_fd());
        let mut buffer = [0_u8; 64];
        let length = u32::try_from(buffer.len()).expect("small");
        let recv = opcode::Recv::new(app, buffer.as_mut_ptr(), length).build();
        begin(&mut ring, &recv);
        if accelerated {
            let promotion = place.promotion(&pair);
            assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
        }
        for round in 0..100 {
            let words = format!("response {round}");
            say(&mut pair.proxy, words.as_bytes());
            assert_eq!(usize::try_from(end(&mut ring)), Ok(words.len()));
            assert_eq!(&buffer[..words.len()], words.as_bytes());
            let words = format!("request {round}");
            let length = u32::try_from(words.len()).expect("small");
            let send = opcode::Send::new(app, words.as_ptr(), length).build();
            begin(&mut ring, &send);
            assert_eq!(end(&mut ring).cast_unsigned(), length);
            hear(&mut pair.proxy, words.as_bytes());
            begin(&mut ring, &recv);
        }
        pair.proxy
            .shutdown(std::net::Shutdown::Write)
            .expect("shutdown");
        assert_eq!(end(&mut ring), 0, "the end");
    }
    assert!(fixture.count(Counter::MessageRedirected) >= 190);
}
