//! Promoted connections for tests: an application's and a proxy's socket in one pod, and a checker that knows
//! every byte of a stream by its place.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    reason = "each test binary uses a part; what a test needs must be there"
)]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use millrace_agent::bpf::{AccelOutcome, Acceleration, Bpf, CapturePolicy, Promotion, nsid};
use millrace_runtime::handoff::accel::{AccelState, SOCKOPT_LEVEL, SOCKOPT_STATE};
use millrace_testkit::{Host, Pod};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, SockaddrStorage, setsockopt, sockopt};

use crate::bpf::{Captured, Fixture, PATIENCE, accept, addr};

/// Ends a test on a kernel that cannot accelerate.
macro_rules! require {
    () => {
        millrace_testkit::require!(cluster);
        if let Err(reason) = millrace_agent::bpf::probe().acceleration() {
            return millrace_testkit::skip::not_applicable("acceleration", &reason);
        }
    };
}
pub(crate) use require;

pub const PROXY_MARK: u32 = 0x539;

/// A policy that captures nothing by itself and accelerates.
pub fn accelerated() -> CapturePolicy {
    CapturePolicy {
        acceleration: Acceleration::Auto,
        ..CapturePolicy::default()
    }
}

/// A pod whose connections may be promoted.
pub struct Place {
    pub captured: Captured,
    pub nsid: u32,
}

impl Place {
    pub fn new(fixture: &mut Fixture, name: &str) -> Self {
        let captured = fixture.captured(name, accelerated());
        let netns = captured.pod.netns().file();
        let nsid = fixture
            .node
            .run(|| Ok(nsid(netns.as_fd())?))
            .expect("a number");
        Self { captured, nsid }
    }

    pub fn pod(&self) -> &Pod {
        &self.captured.pod
    }

    /// A listener as the broker makes it.
    pub fn listener(&self, at: &str) -> TcpListener {
        listener(self.pod(), addr(at), Some(PROXY_MARK))
    }

    /// A connection of the application's to `listener`, both ends non-blocking.
    pub fn connect(&self, listener: &TcpListener) -> Pair {
        let to = listener.local_addr().expect("bound");
        let app = self.pod().connect(to).expect("connected");
        let (proxy, _) = accept(listener);
        Pair::new(app, proxy)
    }

    pub fn promotion(&self, pair: &Pair) -> Promotion {
        let address = |result: io::Result<SocketAddr>| result.expect("an address");
        Promotion {
            netns_cookie: self.captured.cookie,
            nsid: self.nsid,
            local: canonical(address(pair.proxy.local_addr())),
            remote: canonical(address(pair.proxy.peer_addr())),
        }
    }
}

fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// A listener with or without a mark; `[::]` takes IPv4, too.
pub fn listener(host: &Host, at: SocketAddr, mark: Option<u32>) -> TcpListener {
    let domain = if at.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let fd = host.socket(domain, libc::SOCK_STREAM, 0).expect("a socket");
    if let Some(mark) = mark {
        setsockopt(&fd, sockopt::Mark, &mark).expect("SO_MARK");
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).expect("bind");
    socket::listen(&fd, socket::Backlog::MAXALLOWABLE).expect("listen");
    TcpListener::from(fd)
}

/// Runs the promotion program where the agent would: in the node's namespace.
pub fn promote(fixture: &mut Fixture, promotion: Promotion) -> AccelOutcome {
    let (bpf, node) = fixture.bpf_and_node();
    promote_at(bpf, node, promotion)
}

/// Has a connection leave the map as the agent would.
pub fn leave(fixture: &mut Fixture, promotion: Promotion) -> AccelOutcome {
    let (bpf, node) = fixture.bpf_and_node();
    node.run(|| Ok(bpf.leave(&promotion)?))
        .expect("the program runs")
}

/// What came of it is counted, whatever it is.
pub fn promote_at(bpf: &Bpf, node: &Host, promotion: Promotion) -> AccelOutcome {
    let before = bpf.counters().expect("counters");
    let outcome = node
        .run(|| Ok(bpf.promote(&promotion)?))
        .expect("the program runs");
    let after = bpf.counters().expect("counters");
    let index = outcome.counter() as usize;
    assert!(after[index].value > before[index].value, "{outcome:?}");
    outcome
}

/// Both ends of a connection.
pub struct Pair {
    pub app: TcpStream,
    pub proxy: TcpStream,
}

impl Pair {
    pub fn new(app: TcpStream, proxy: TcpStream) -> Self {
        for end in [&app, &proxy] {
            end.set_nonblocking(true).expect("O_NONBLOCK");
            end.set_nodelay(true).expect("TCP_NODELAY");
        }
        Self { app, proxy }
    }

    /// A message in each direction, read at once.
    pub fn exchange(&mut self) {
        say(&mut self.app, b"request");
        hear(&mut self.proxy, b"request");
        say(&mut self.proxy, b"response");
        hear(&mut self.app, b"response");
    }
}

/// A connection that redirects in both directions.
pub fn promoted(fixture: &mut Fixture, place: &Place, listener: &TcpListener) -> Pair {
    let mut pair = place.connect(listener);
    pair.exchange();
    let promotion = place.promotion(&pair);
    assert_eq!(promote(fixture, promotion), AccelOutcome::Done);
    pair.exchange();
    pair.exchange();
    assert_eq!((redirected(&pair.app), redirected(&pair.proxy)), (1, 2));
    pair
}

/// Messages that an end of a promoted connection redirected.
pub fn redirected(end: &TcpStream) -> u64 {
    state(end).expect("promoted").sent.redirected_messages
}

pub fn say(from: &mut TcpStream, what: &[u8]) {
    let sent = from.write(what).expect("write");
    assert_eq!(sent, what.len(), "sent whole");
}

pub fn hear(at: &mut TcpStream, what: &[u8]) {
    let mut heard = vec![0; what.len()];
    let mut length = 0;
    while length < what.len() {
        wait(at, PollFlags::POLLIN);
        match at.read(&mut heard[length..]) {
            Ok(0) => panic!("closed after {length} of {} bytes", what.len()),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("read: {error}"),
        }
    }
    assert_eq!(heard, what);
}

/// Waits until a socket is ready for one of `events`, not without end.
pub fn wait(at: &TcpStream, events: PollFlags) {
    let mut fds = [PollFd::new(at.as_fd(), events)];
    let patience = PollTimeout::try_from(PATIENCE).expect("a timeout");
    let ready = poll(&mut fds, patience).expect("poll");
    assert_eq!(ready, 1, "not ready for {events:?}: {at:?}");
}

/// What the programs count of this end.
pub fn state(end: &TcpStream) -> Option<AccelState> {
    let mut bytes = [0_u8; AccelState::SIZE];
    let mut length = libc::socklen_t::try_from(bytes.len()).expect("short");
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            end.as_raw_fd(),
            SOCKOPT_LEVEL,
            SOCKOPT_STATE,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then(|| AccelState::from_bytes(&bytes))
}

/// `SO_PRIORITY`, by which the proxy says how its messages go.
pub fn mark_priority(end: &impl std::os::fd::AsFd, priority: u32) {
    let priority = i32::try_from(priority).expect("small");
    setsockopt(end, sockopt::Priority, &priority).expect("SO_PRIORITY");
}

/// Sets an option of a socket to a number.
pub fn option(end: &TcpStream, level: i32, name: i32, value: i32) {
    assert_eq!(
        set_option(end, level, name, &value.to_ne_bytes()),
        Ok(()),
        "{level} {name}"
    );
}

/// Sets an option of a socket.
pub fn set_option(end: &TcpStream, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).expect("short");
    // SAFETY: the value is as long as `length` says and outlives the call.
    let result =
        unsafe { libc::setsockopt(end.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    nix::errno::Errno::result(result).map(drop)
}

/// The byte at a place of a stream.
pub fn tag(stream: u64, at: u64) -> u8 {
    let mixed =
        (at ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed.to_le_bytes()[4]
}

/// Writes or reads one direction of a connection; every byte is known by its place.
pub struct Stream {
    pub tag: u64,
    pub sent: u64,
    pub read: u64,
}

impl Stream {
    pub fn new(tag: u64) -> Self {
        Self {
            tag,
            sent: 0,
            read: 0,
        }
    }

    pub fn bytes(&self, length: usize) -> Vec<u8> {
        (0..length as u64)
            .map(|offset| tag(self.tag, self.sent + offset))
            .collect()
    }

    /// Sends `length` bytes in one call; how many the kernel took.
    pub fn send(&mut self, to: &mut TcpStream, length: usize) -> Result<usize, String> {
        let bytes = self.bytes(length);
        let taken = match to.write(&bytes) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(format!("write at {}: {error}", self.sent)),
        };
        self.sent += taken as u64;
        Ok(taken)
    }

    /// Reads once, with a buffer of `length`; `None` for the end of the stream.
    pub fn receive(
        &mut self,
        from: &mut TcpStream,
        length: usize,
    ) -> Option<Result<usize, String>> {
        let mut buffer = vec![0; length];
        match from.read(&mut buffer) {
            Ok(0) => None,
            Ok(read) => {
                for (offset, byte) in buffer[..read].iter().enumerate() {
                    let at = self.read + offset as u64;
                    if *byte != tag(self.tag, at) {
                        return Some(Err(format!("wrong byte at {at}, {} were sent", self.sent)));
                    }
                }
                self.read += read as u64;
                Some(Ok(read))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Ok(0)),
            Err(error) => Some(Err(format!("read at {}: {error}", self.read))),
        }
    }
}

/// A duplicate of a socket under another number.
pub fn duplicate(end: &TcpStream) -> OwnedFd {
    end.as_fd().try_clone_to_owned().expect("dup")
}

/// Pseudo-random numbers from a printed seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    /// A size as programs have them: mostly small, sometimes more than any cap.
    pub fn size(&mut self) -> usize {
        let most = match self.below(20) {
            0..8 => 16,
            8..14 => 300,
            14..18 => 1500,
            18 => 16_384,
            _ => 100_000,
        };
        usize::try_from(1 + self.below(most)).expect("small")
    }
}
