use std::net::TcpListener;

use super::*;
use crate::stress::plan::Spare;

/// Both ends of a connection without anything between them.
fn direct(seed: u64) -> Counts {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let plan = Plan::draw(seed, Spare::default());
    let hello = Hello { number: 9, seed };
    let mut sums = Counts::default();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut counts = Counts::default();
            converse(server, Side::Server, 5, hello, &plan, &mut counts);
            counts
        });
        converse(client, Side::Client, 5, hello, &plan, &mut sums);
        sums.add(&serving.join().unwrap());
    });
    sums
}

#[test]
fn plain_tcp_carries_every_plan() {
    thread::scope(|scope| {
        for first in 0..8 {
            scope.spawn(move || {
                for seed in (first..40).step_by(8) {
                    let counts = direct(seed);
                    assert!(counts.ok(), "seed {seed}: {:#?}", counts.notes);
                }
            });
        }
    });
}
