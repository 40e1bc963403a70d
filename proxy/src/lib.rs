//! Millrace's per-node L7 proxy.
//!
//! Modules stand in the order a connection meets them.
#![forbid(unsafe_code)]

pub mod resource;
