//! xDS for Millrace: the protocol, its messages and its two ends.
//!
//! Everything that the pilot and the proxies say to each other, and what the pilot says to stock
//! Envoys and gRPC clients, goes through this crate.

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod delta;
mod nack;
pub mod node;
pub mod proto;
pub mod resource;
#[cfg(feature = "server")]
pub mod server;
pub mod subscription;
mod type_url;
mod version;

pub use resource::{EncodedResource, RawResource, ResourceError, WireResource};
pub use subscription::Selection;
pub use type_url::TypeUrl;
pub use version::Version;
