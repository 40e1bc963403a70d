//! Clusters at run time: what outlives a configuration.
//!
//! Input: validated clusters and endpoints of a snapshot. Output: [`ClusterEntry`], what the
//! data path holds while it forwards to a cluster: its hosts, their statistics and the circuit
//! breakers. [`Manager`] keeps hosts and breakers across updates, so that a configuration change
//! neither forgets a count nor resets a limit.

pub mod breaker;
pub mod dns;
pub mod host;
pub mod manager;

pub use breaker::{Breakers, Permit};
pub use host::{Host, HostId, HostStats};
pub use manager::{ClusterEntry, ClusterId, Manager};
