//! Two promoted connections between applications of two pods, with the proxy's ends in between, and a proxy that
//! passes their bytes on as the real one does.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    reason = "each test binary uses a part; what a test needs must be there"
)]

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use millrace_agent::bpf::{AccelOutcome, Acceleration, Promotion, SpliceEnd};
use millrace_runtime::handoff::accel::{
    AccelSpliced, AccelWay, PRIORITY_DIRECT, PRIORITY_NORMAL, SOCKOPT_LEVEL, SOCKOPT_SPLICED,
    SOCKOPT_WAY,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::accel::{PROXY_MARK, Pair, Place, hear, listener, mark_priority, promote, say};
use crate::bpf::{Fixture, accept, addr, connect};

/// A pod whose operator vouches, with a port of the proxy's for its application and one of the application's.
pub struct Side {
    pub place: Place,
    proxys: TcpListener,
    applications: TcpListener,
}

impl Side {
    /// `host` is a loopback address.
    pub fn new(fixture: &mut Fixture, name: &str, host: &str) -> Self {
        Self::at(fixture, name, [&format!("{host}:0"), &format!("{host}:0")])
    }

    /// The proxy's port and the application's.
    pub fn at(fixture: &mut Fixture, name: &str, at: [&str; 2]) -> Self {
        let place = Place::new(fixture, name);
        set(fixture, &place, Acceleration::On);
        Self {
            proxys: place.listener(at[0]),
            applications: listener(place.pod(), addr(at[1]), None),
            place,
        }
    }

    /// A connection that the proxy makes to the application.
    fn delivery(&self) -> Pair {
        let to = self.applications.local_addr().expect("bound");
        let family = if to.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let socket = self.place.pod().socket(family, libc::SOCK_STREAM, 0);
        let socket = socket.expect("a socket");
        setsockopt(&socket, sockopt::Mark, &PROXY_MARK).expect("SO_MARK");
        let proxy = connect(socket, to).expect("connected");
        Pair::new(accept(&self.applications).0, proxy)
    }
}

pub fn set(fixture: &mut Fixture, place: &Place, setting: Acceleration) {
    let cookie = place.captured.cookie;
    let set = fixture.bpf().set_acceleration(cookie, setting);
    set.expect("written");
}

/// A connection from an application of one pod to one of another, through the proxy.
pub struct Line {
    pub from: Pair,
    pub to: Pair,
    pub promotions: [Promotion; 2],
    pub ends: [SpliceEnd; 2],
}

impl Line {
    /// Nothing of it is promoted.
    pub fn new(from: &Side, to: &Side) -> Self {
        let pairs = [from.place.connect(&from.proxys), to.delivery()];
        let promotions = [
            from.place.promotion(&pairs[0]),
            to.place.promotion(&pairs[1]),
        ];
        let ends = [(from, &pairs[0]), (to, &pairs[1])].map(|(side, pair)| SpliceEnd {
            netns_cookie: side.place.captured.cookie,
            cookie: cookie(&pair.proxy),
        });
        let [from, to] = pairs;
        Self {
            from,
            to,
            promotions,
            ends,
        }
    }

    /// Both connections redirect in both directions.
    pub fn promoted(fixture: &mut Fixture, from: &Side, to: &Side) -> Self {
        let mut line = Self::new(from, to);
        for promotion in line.promotions {
            assert_eq!(promote(fixture, promotion), AccelOutcome::Done);
        }
        for pair in [&mut line.from, &mut line.to] {
            pair.exchange();
            pair.exchange();
        }
        line
    }

    /// The applications send to each other.
    pub fn spliced(fixture: &mut Fixture, from: &Side, to: &Side) -> Self {
        let line = Self::promoted(fixture, from, to);
        assert_eq!(line.splice(fixture), AccelOutcome::Done);
        line.open();
        line
    }

    pub fn splice(&self, fixture: &mut Fixture) -> AccelOutcome {
        fixture.bpf().splice(self.ends).expect("the program runs")
    }

    /// Opens the way.
    pub fn open(&self) {
        for pair in [&self.from, &self.to] {
            mark_priority(&pair.proxy, PRIORITY_DIRECT);
        }
    }

    /// Closes it.
    pub fn close(&self) {
        for pair in [&self.from, &self.to] {
            mark_priority(&pair.proxy, PRIORITY_NORMAL);
        }
    }

    /// A message in each direction, straight from one application to the other.
    pub fn exchange(&mut self, words: &str) {
        let (to, back) = (format!("to {words}"), format!("back {words}"));
        say(&mut self.from.app, to.as_bytes());
        hear(&mut self.to.app, to.as_bytes());
        say(&mut self.to.app, back.as_bytes());
        hear(&mut self.from.app, back.as_bytes());
    }
}

fn cookie(end: &TcpStream) -> u64 {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).expect("short");
    // SAFETY: the number is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    cookie
}

fn option<const SIZE: usize>(end: &TcpStream, name: i32) -> Option<[u8; SIZE]> {
    let mut bytes = [0_u8; SIZE];
    let mut length = libc::socklen_t::try_from(SIZE).expect("short");
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            SOCKOPT_LEVEL,
            name,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(bytes)
}

/// What the application at the other end of the proxy's sent straight to the other one.
pub fn moved(proxy: &TcpStream) -> AccelSpliced {
    let bytes = option::<{ AccelSpliced::SIZE }>(proxy, SOCKOPT_SPLICED);
    bytes.map_or_else(AccelSpliced::default, |bytes| {
        AccelSpliced::from_bytes(&bytes)
    })
}

/// What is in the way of a message to the application.
pub fn way(proxy: &TcpStream) -> AccelWay {
    let bytes = option::<{ AccelWay::SIZE }>(proxy, SOCKOPT_WAY);
    bytes.map_or_else(AccelWay::default, |bytes| AccelWay::from_bytes(&bytes))
}
