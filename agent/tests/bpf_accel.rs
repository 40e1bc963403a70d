//! Acceleration on the running kernel: promotion, the rules, and that nothing is lost.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use accel::{Place, hear, promote, say, state};
use bpf::node;
use millrace_agent::bpf::{AccelOutcome, Counter};

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
