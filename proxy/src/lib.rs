//! Millrace's per-node L7 proxy.
//!
//! Modules stand in the order a connection meets them.
#![forbid(unsafe_code)]

pub mod resource;

pub mod app;

pub mod config;

pub mod worker;

pub mod pods;

pub mod socket;

pub mod listener;

pub mod tcp;

pub mod handover;
pub mod http;

pub mod acceleration;

pub mod upstream;

pub mod route;

pub mod cluster;

pub mod lb;

pub mod flags;

pub mod access_log;

pub mod metrics;

pub mod trace;

pub mod snapshot;

pub mod dns;

pub mod xds;

#[cfg(test)]
mod fixture;

pub mod bootstrap;

pub mod admin;

pub mod simulate;
