//! Millrace's per-node L7 proxy.
//!
//! Modules stand in the order a connection meets them.
#![forbid(unsafe_code)]

pub mod resource;

pub mod worker;

pub mod pods;

pub mod socket;

pub mod listener;

pub mod upstream;
