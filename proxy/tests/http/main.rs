//! The HTTP data path, with real sockets on both sides.
#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod breakers;
mod draining;
mod flow;
mod forwarding;
mod keep_alive;
mod limits;
mod pods;
mod protocols;
mod smuggling;
mod support;
