//! The socket protocol between agent and broker (`broker.sock`), between proxy and broker
//! (`proxy.sock`) and between proxy and agent (`accel.sock`).
//!
//! Unix `SOCK_SEQPACKET` sockets; every message is one JSON document of at most [`MAX_MESSAGE`]
//! bytes with at most [`MAX_FDS`] file descriptors attached by `SCM_RIGHTS`. A message states how
//! many descriptors belong to it ([`Message::fd_count`]); any other number is an error and the
//! descriptors are closed. Nothing here opens or configures a socket of a pod: the broker makes
//! them, this module carries them.

pub mod accel;
pub mod agent;
pub mod canary;
pub mod connection;
pub mod listener;
pub mod pod;
pub mod proxy;

#[cfg(test)]
mod tests;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use accel::{AccelCall, AccelReply, Acceleration, PromotionRequest, PromotionResult, Refusal};
pub use agent::{
    Adopted, AgentAnswer, AgentCall, AgentRequest, Breakage, BrokerFault, BrokerPod, CanarySocket,
    Cause, Inspection, IptablesConfig, OnCaptureLoss, ProgramName, ProxyState, ToAgent,
};
pub use canary::{
    CANARY_ANSWER, CANARY_NAME, CANARY_PORT, canary_address, canary_answer, is_canary,
};
pub use connection::{
    AccelConnection, AgentConnection, BrokerConnection, Connection, HandoffError, Received,
};
pub use listener::{BindOptions, Listener, PeerCred, PeerPolicy};
pub use pod::{CaptureMode, Families, Family, InvalidPod, PodPort, PodSpec, PodUid};
pub use proxy::{
    ListenerFamily, ListenerLabel, ListenerRole, ProxyRequest, SocketKind, ToProxy, sort_listeners,
};

/// Version spoken by this build; both sides put it into their first message and a side that
/// meets another version answers with its own and closes.
pub const PROTOCOL_VERSION: u32 = 1;
/// Largest encoded message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors that one message carries (the kernel's own limit is 253).
pub const MAX_FDS: usize = 200;
/// Most sockets that one `Want` may ask for.
pub const MAX_WANT: u16 = 128;
/// Most workers that a proxy may announce.
pub const MAX_WORKERS: u16 = 256;
/// How often a proxy sends `Heartbeat`.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// A proxy that has been silent for this long is gone.
pub const HEARTBEAT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
/// Mark that every socket of the proxy carries: the loop guard of every capture path.
pub const OUTBOUND_MARK: u32 = 0x539;
/// The bit, besides [`OUTBOUND_MARK`], that routes a delivery socket to loopback in its pod.
pub const DELIVERY_BIT: u32 = 0x1_0000;
/// Mark of a delivery socket.
pub const DELIVERY_MARK: u32 = OUTBOUND_MARK | DELIVERY_BIT;

/// A message of the protocol: serialisable, and sure of how many descriptors travel with it.
pub trait Message: Serialize + DeserializeOwned + Send + Sync {
    /// The number of descriptors that belong to this message.
    fn fd_count(&self) -> usize;
}

/// Why bytes from the other side are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("message of {0} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// Not a JSON document of the expected type.
    #[error("malformed message")]
    Json(#[from] serde_json::Error),
    /// The descriptors that arrived are not those that the message announces.
    #[error("message announces {announced} descriptors and carries {carried}")]
    FdCount {
        /// What the message says.
        announced: usize,
        /// What arrived with it.
        carried: usize,
    },
}

/// Decodes one message that arrived with `fds` descriptors.
///
/// # Errors
/// When the bytes are too long, are not a document of type `M`, or announce another number of
/// descriptors.
pub fn decode<M: Message>(bytes: &[u8], fds: usize) -> Result<M, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let message: M = serde_json::from_slice(bytes)?;
    let announced = message.fd_count();
    if announced != fds {
        return Err(DecodeError::FdCount {
            announced,
            carried: fds,
        });
    }
    Ok(message)
}
