//! The state-of-the-world variant of the protocol as sans-IO state machines: [`client`] and
//! [`server`].
//!
//! In: messages of the other side, subscriptions or views. Out: messages to send. The server is
//! driven by [`crate::server`]; the client stands against it in the property tests.

pub mod client;
pub mod server;
