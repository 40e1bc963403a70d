//! The incremental variant of the protocol as sans-IO state machines: [`client`] and [`server`].
//!
//! In: messages of the other side, subscriptions or views. Out: messages to send. Driven by
//! [`crate::client`] and [`crate::server`], and against each other by the property tests.

pub mod client;
pub mod server;
