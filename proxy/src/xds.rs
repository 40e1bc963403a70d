//! The control plane's side of the configuration: from xDS resources to snapshots.

pub mod convert;
