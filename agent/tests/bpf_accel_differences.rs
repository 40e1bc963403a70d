//! What a program can tell of acceleration all the same, because no hook sees it: the documented list, an
//! entry each. Where a kernel mends one, its test fails and the entry goes.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};

use accel::{Pair, Place, hear, promoted, say, state, wait};
use bpf::Fixture;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};

/// A promoted connection, and its plain twin.
fn twins(fixture: &mut Fixture) -> (Pair, Pair, Place) {
    let place = Place::new(fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let fast = promoted(fixture, &place, &listener);
    let mut plain = place.connect(&listener);
    plain.exchange();
    (fast, plain, place)
}

/// `splice` from a socket moves no redirected bytes.
#[test]
fn splice_does_not_see_redirected_bytes() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (mut fast, mut plain, _place) = twins(&mut fixture);
    let spliced = |pair: &mut Pair| {
        say(&mut pair.proxy, b"response");
        wait(&pair.app, PollFlags::POLLIN);
        let (_read, write) = nix::unistd::pipe().expect("a pipe");
        let (from, to) = (pair.app.as_raw_fd(), write.as_raw_fd());
        let (none, flags) = (std::ptr::null_mut(), libc::SPLICE_F_NONBLOCK);
        // SAFETY: both descriptors are open, and no offsets are given.
        Errno::result(unsafe { libc::splice(from, none, to, none, 64, flags) })
    };
    assert_eq!(spliced(&mut plain), Ok(8));
    assert_eq!(spliced(&mut fast), Err(Errno::EAGAIN));
    hear(&mut fast.app, b"response");
}

/// `TCP_INFO` counts no redirected bytes.
#[test]
fn tcp_info_does_not_count_redirected_bytes() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (mut fast, mut plain, _place) = twins(&mut fixture);
    let counted = |pair: &mut Pair| {
        let before = received(&pair.app);
        pair.exchange();
        received(&pair.app) - before
    };
    assert_eq!((counted(&mut plain), counted(&mut fast)), (8, 0));
}

/// `tcpi_bytes_received`, at its place in `struct tcp_info`.
fn received(end: &TcpStream) -> u64 {
    let mut info = [0_u8; 136];
    let mut length = libc::socklen_t::try_from(info.len()).expect("short");
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    u64::from_ne_bytes(info[128..136].try_into().expect("eight bytes"))
}

/// Urgent data is data: the mark is lost.
#[test]
fn urgent_data_comes_in_line() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (fast, plain, _place) = twins(&mut fixture);
    let in_line = |pair: &Pair| {
        send(pair.app.as_raw_fd(), b"ab!", MsgFlags::MSG_OOB).expect("sent");
        let mut heard = [0; 8];
        wait(&pair.proxy, PollFlags::POLLIN);
        recv(pair.proxy.as_raw_fd(), &mut heard, MsgFlags::empty()).expect("read")
    };
    assert_eq!((in_line(&plain), in_line(&fast)), (2, 3));
}

/// A receiver that closes with redirected bytes unread sends a FIN where TCP sends a reset; the proxy resets by
/// linger 0.
#[test]
fn closing_with_unread_bytes_looks_like_an_end() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (fast, plain, _place) = twins(&mut fixture);
    let end = |mut pair: Pair| {
        say(&mut pair.proxy, b"unread");
        wait(&pair.app, PollFlags::POLLIN);
        drop(pair.app);
        wait(&pair.proxy, PollFlags::POLLIN | PollFlags::POLLHUP);
        pair.proxy.read(&mut [0; 8]).map_err(|error| error.kind())
    };
    assert_eq!(end(plain), Err(ErrorKind::ConnectionReset));
    assert_eq!(end(fast), Ok(0));
}

/// A socket that is made blocking later may see `EAGAIN` where TCP waits: after a FIN was sent it does not.
#[test]
fn a_socket_that_blocks_later_still_reads_everything() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (mut fast, _plain, _place) = twins(&mut fixture);
    fast.app.set_nonblocking(false).expect("O_NONBLOCK");
    std::thread::scope(|scope| {
        let app = &mut fast.app;
        let reading = scope.spawn(move || {
            let mut heard = [0; 16];
            loop {
                match app.read(&mut heard) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    read => return heard[..read.expect("read")].to_vec(),
                }
            }
        });
        say(&mut fast.proxy, b"response");
        assert_eq!(reading.join().expect("reads"), b"response");
    });
    assert!(
        state(&fast.proxy)
            .expect("promoted")
            .sent
            .redirected_messages
            >= 2
    );
}

/// What is not in the list: peeking, and reading in pieces, are as ever.
#[test]
fn peeking_and_reading_in_pieces_are_as_ever() {
    accel::require!();
    let mut fixture = Fixture::new();
    let (fast, plain, _place) = twins(&mut fixture);
    for mut pair in [plain, fast] {
        say(&mut pair.proxy, b"0123456789");
        wait(&pair.app, PollFlags::POLLIN);
        let mut heard = [0; 16];
        let app = pair.app.as_fd().as_raw_fd();
        for _ in 0..2 {
            assert_eq!(recv(app, &mut heard, MsgFlags::MSG_PEEK), Ok(10));
        }
        assert_eq!(recv(app, &mut heard[..4], MsgFlags::empty()), Ok(4));
        assert_eq!(recv(app, &mut heard, MsgFlags::MSG_PEEK), Ok(6));
        assert_eq!(&heard[..6], b"456789");
        assert_eq!(recv(app, &mut heard, MsgFlags::MSG_WAITALL), Ok(6));
        assert_eq!(recv(app, &mut heard, MsgFlags::empty()), Err(Errno::EAGAIN));
    }
}
