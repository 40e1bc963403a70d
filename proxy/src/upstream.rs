//! Upstream connections: how they are opened, pooled and tried.

pub mod connect;
