//! Events for the agent.

use millrace_ebpf_abi::{Counter, Direction, Event, EventKind};

use crate::count::count;
use crate::log::Subject;
use crate::maps::EVENTS;

/// Tells the agent what became of a connection; a full ring is counted.
#[inline(always)]
pub fn send(kind: EventKind, counter: Counter, direction: Direction, subject: &Subject) {
    let event = Event {
        netns_cookie: subject.netns_cookie,
        kind: kind as u32,
        counter: counter as u32,
        addr: subject.destination.addr,
        port: subject.destination.port,
        direction: direction as u8,
        reserved: [0; 5],
    };
    if EVENTS.output(event, 0).is_err() {
        count(Counter::EventLost);
    }
}
