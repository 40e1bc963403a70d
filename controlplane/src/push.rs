//! From changes to pushes: when to take a snapshot, and which types a client must be told about.
//!
//! [`writer`] is the task, the rest is pure; [`scope`] is asked by [`crate::serve`].

pub mod debounce;
mod problems;
pub mod scope;
pub mod writer;
