//! What end-to-end tests share: services with echo servers behind them, and calls that tell where they
//! arrived. The tests themselves are in `tests/`, one file per subject.

#![forbid(unsafe_code)]

pub mod acceleration;
pub mod load;
pub mod mounts;
mod observe;
mod scene;
mod service;
pub mod witness;

pub use observe::{Observed, observe, observe_soon};
pub use scene::{CLIENTS, SUBSETS, Scene, logged};
pub use service::{Backend, Service};

/// The ways of capturing that every behaviour is tested with.
pub const CAPTURES: [&str; 2] = ["ebpf", "iptables"];

/// The annotation that forces one of them.
pub const CAPTURE: &str = "millrace.io/capture";
