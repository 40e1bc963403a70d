//! The control plane's side: ADS over tonic, both variants, in front of a [`ConfigSource`].
//!
//! In: request streams of clients, generations of the pilot's configuration. Out: response
//! streams, in push order, one response per type outstanding; reports of ACKs and NACKs; the sync
//! state of every connection. The source owns configuration and encodings, this module owns
//! streams. Served by the pilot; called through [`AdsService`].

mod source;

pub use source::{
    Acked, ConfigSource, ConfigView, Connection, ConnectionId, Generation, Nacked, ProtocolVariant,
    Report,
};
