//! The control plane's side: ADS over tonic, both variants, in front of a [`ConfigSource`].
//!
//! In: request streams of clients, generations of the pilot's configuration. Out: response
//! streams, in push order, one response per type outstanding; reports of ACKs and NACKs; the sync
//! state of every connection. The source owns configuration and encodings, this module owns
//! streams. Served by the pilot: `AdsService::new(source, config).into_server()` goes into a tonic
//! server.

mod body;
mod connections;
mod service;
mod source;
mod stream;

pub use crate::push::{ConfigView, Generation, SessionConfig, SyncState, TypeStatus};
pub use connections::{ConnectionStatus, Connections};
pub use service::{AdsServer, AdsService, ServerConfig, VirtualHostServer};
pub use source::{
    Acked, ConfigSource, Connection, ConnectionId, Guard, Nacked, ProtocolVariant, Report, Stay,
};
