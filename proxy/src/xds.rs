//! The control plane's side of the configuration: from xDS resources to snapshots.
//!
//! [`client`] runs one delta ADS stream and feeds [`state`], which validates by [`convert`],
//! warms and tells what to subscribe to; each change becomes one snapshot. [`disk`] keeps the
//! last good state over restarts; [`status`] shows all of it to the admin port.

pub mod client;
pub mod convert;
pub mod disk;
pub mod interest;
pub mod refs;
pub mod state;
pub mod status;
pub mod table;
pub mod unknown;

/// What this proxy executes and its first version did not, by the names that pilot gives it; pilot leaves out what is not
/// named. Of faults, hashing and outliers it executes none.
pub const FEATURES: [&str; 0] = [];

pub use client::{Config, Control, Handle};
pub use interest::Interest;
pub use state::Mode;
