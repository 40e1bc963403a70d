//! Process skeleton shared by Millrace's binaries: telemetry, signals, draining, readiness, the
//! admin server, metrics, backoff and the socket protocol between agent, broker and proxy.
//!
//! Order here is the order in which a process uses them: it starts its telemetry, learns its
//! build, hears signals, serves its admin routes, becomes ready, hands sockets over, drains.

#![forbid(unsafe_code)]

pub mod admin;
pub mod backoff;
pub mod build_info;
pub mod drain;
pub mod duration;
pub mod handoff;
pub mod limits;
pub mod metrics;
pub mod ready;
pub mod signal;
pub mod telemetry;
