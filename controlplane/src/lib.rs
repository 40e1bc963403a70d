//! Millrace's control plane: registries and configuration on one side, xDS on the other.
//!
//! Modules in data-flow order: a [`registry`] reads objects ([`kube`]), which are judged and typed
//! ([`model`]), indexed ([`index`]), frozen ([`snapshot`]), judged together ([`analysis`]), pushed ([`push`]), translated
//! ([`translate`]) and served ([`serve`], to proxies of the seed era [`legacy`]). [`app`] puts them together.
#![forbid(unsafe_code)]

pub mod registry;

pub mod kube;

pub mod model;

pub mod index;

pub mod snapshot;

pub mod analysis;

pub mod push;

pub mod translate;

pub mod serve;

pub mod legacy;

pub mod status;

pub mod tls;

pub mod webhook;

mod admin;
pub mod app;
pub mod config;
pub mod metrics;
