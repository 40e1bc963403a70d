//! Many pods whose promoted connections have the same loopback tuples, in every family, with messages that name
//! their connection: none is ever another's. Pods come and go, and connections take the tuples of closed ones.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use accel::{Pair, Place, hear, promote, redirected, say};
use bpf::{Fixture, accept, addr};
use millrace_agent::bpf::AccelOutcome;
use nix::sys::socket::{self, SockaddrStorage, setsockopt, sockopt};

/// Where the proxy listens, where the application connects from and to: alike in all pods. The last is an IPv4
/// client of an IPv6 listener.
const FAMILIES: [(&str, &str, &str); 3] = [
    ("127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7000"),
    ("[::1]:7100", "[::1]:7101", "[::1]:7100"),
    ("[::]:7200", "127.0.0.1:7201", "127.0.0.1:7200"),
];

/// A pod and a connection of each family in it.
struct Tenant {
    name: String,
    place: Place,
    listeners: Vec<TcpListener>,
    pairs: Vec<Pair>,
    /// Connections that it had before.
    generation: u32,
}

impl Tenant {
    fn new(fixture: &mut Fixture, name: String) -> Self {
        let place = Place::new(fixture, &name);
        let listeners = FAMILIES.map(|(at, ..)| place.listener(at));
        let mut tenant = Self {
            name,
            place,
            listeners: listeners.into(),
            pairs: Vec::new(),
            generation: 0,
        };
        tenant.connect(fixture);
        tenant
    }

    /// Makes all connections, with the tuples of those before, and has them promoted.
    fn connect(&mut self, fixture: &mut Fixture) {
        for pair in self.pairs.drain(..) {
            // A reset leaves no tuple behind.
            for end in [&pair.app, &pair.proxy] {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(end, sockopt::Linger, &linger).expect("SO_LINGER");
            }
        }
        self.generation += 1;
        for (listener, (_, from, to)) in self.listeners.iter().zip(FAMILIES) {
            let pair = self.pair(listener, addr(from), addr(to));
            let promotion = self.place.promotion(&pair);
            assert_eq!(promotion.remote, addr(from));
            assert_eq!(promote(fixture, promotion), AccelOutcome::Done);
            self.pairs.push(pair);
        }
    }

    fn pair(&self, listener: &TcpListener, from: SocketAddr, to: SocketAddr) -> Pair {
        let family = if from.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let socket = self.place.pod().socket(family, libc::SOCK_STREAM, 0);
        let socket = socket.expect("a socket");
        setsockopt(&socket, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).expect("bind");
        let app = bpf::connect(socket, to).expect("connected");
        Pair::new(app, accept(listener).0)
    }

    /// What each of its connections says, which nothing else says.
    fn words(&self, way: &str, round: u32) -> Vec<Vec<u8>> {
        let words = |family| format!("{way} {} {} {family} {round}", self.name, self.generation);
        (0..self.pairs.len())
            .map(|family| words(family).into_bytes())
            .collect()
    }

    fn say(&mut self, round: u32) {
        let (to, from) = (self.words("to", round), self.words("from", round));
        for ((pair, to), from) in self.pairs.iter_mut().zip(to).zip(from) {
            say(&mut pair.app, &to);
            say(&mut pair.proxy, &from);
        }
    }

    fn hear(&mut self, round: u32) {
        let (to, from) = (self.words("to", round), self.words("from", round));
        for ((pair, to), from) in self.pairs.iter_mut().zip(to).zip(from) {
            hear(&mut pair.proxy, &to);
            hear(&mut pair.app, &from);
        }
    }
}

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn identical_tuples_of_many_pods_do_not_meet() {
    accel::require!();
    let (pods, rounds) = (
        number("MILLRACE_ACCEL_PODS", 40),
        number("MILLRACE_ACCEL_ROUNDS", 60),
    );
    let mut fixture = Fixture::new();
    let mut tenants: Vec<Tenant> = (0..pods)
        .map(|index| Tenant::new(&mut fixture, format!("app{index}")))
        .collect();
    let mut moved = 0;
    for round in 0..rounds {
        // All of them have something under way before any is read.
        for tenant in &mut tenants {
            tenant.say(round);
        }
        for tenant in &mut tenants {
            tenant.hear(round);
        }
        let index = usize::try_from(round % pods).expect("small");
        if round % 20 == 19 {
            // A pod goes, and another comes.
            drop(tenants.remove(index));
            tenants.push(Tenant::new(&mut fixture, format!("later{round}")));
        } else if round % 3 == 2 {
            let pairs = &tenants[index].pairs;
            moved += pairs.iter().map(|pair| redirected(&pair.app)).sum::<u64>();
            tenants[index].connect(&mut fixture);
        }
    }
    for pair in tenants.iter().flat_map(|tenant| &tenant.pairs) {
        moved += redirected(&pair.app) + redirected(&pair.proxy);
    }
    println!("{pods} pods, {rounds} rounds, {moved} messages redirected");
    assert!(moved > u64::from(pods * rounds), "{moved} redirected");
}
