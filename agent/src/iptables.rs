//! The classic capture path: nat rules in a pod's network namespace that redirect its TCP (and
//! DNS) to the same in-pod listeners that the eBPF path uses.
//!
//! `rules.rs` turns a configuration into rule sets, `apply.rs` puts them into the calling
//! thread's namespace and takes them out again, `check.rs` compares what is there with what
//! should be, `pulse.rs` lets the rules of open pods go when nobody refreshes them, `tables.rs` tells
//! where there can be nothing to take out. Used by
//! `millrace-agent init` and, for enrolled pods, by the broker.

pub mod apply;
pub mod check;
pub mod pulse;
pub mod rules;
mod tables;

#[cfg(test)]
mod tests;

pub use apply::{
    Applied, IptablesError, Listing, available, disarm, install, listings, remove, verify,
};
pub use check::{Drift, intact, rules_of};
pub use pulse::{BEAT, HELD, Pulse, held};
pub use rules::{CHAINS, Ruleset, rulesets, rulesets_at};
pub use tables::{has_any_legacy, has_table};
