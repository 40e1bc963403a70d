//! The node's side: one delta ADS stream with reconnects, driven by [`Driver`].
//!
//! In: subscriptions from any task through [`Client`]; responses of the control plane. Out:
//! [`Event`]s, of which each [`Update`] is to be committed or rejected by its consumer; the
//! [`ConnectionState`]. Used by the proxy.

mod config;
mod update;

pub use config::{BackoffConfig, ClientConfig, ConnectionState, KnownResource};
pub use update::{Event, Update};
