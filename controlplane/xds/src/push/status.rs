//! How far a client is with each type, for `/debug/syncz` and `millctl`.
//!
//! In: what was sent and answered. Out: [`TypeStatus`], serializable. Kept by [`super::Session`].

use serde::Serialize;
use tokio::time::Instant;

use super::{Generation, InFlight, Phase, TypeState};
use crate::{TypeUrl, Version};

/// Whether a client has what it should have of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// Subscribed, and nothing was sent: it has nothing, or still has all from before.
    NotSent,
    /// It acknowledged the newest configuration.
    Synced,
    /// Something is to be sent or awaits its answer.
    Stale,
    /// It rejected the newest response, at least in part.
    Error,
}

/// One type of one client.
#[derive(Clone, Debug, Serialize)]
pub struct TypeStatus {
    /// The type.
    pub type_url: TypeUrl,
    /// Its short name, such as `CDS`.
    pub short_name: String,
    /// Whether it is in sync.
    pub state: SyncState,
    /// Whether it subscribes to everything.
    pub wildcard: bool,
    /// Names and collections it subscribes to.
    pub subscribed: usize,
    /// Resources it has.
    pub resources: usize,
    /// Generation of the newest response.
    pub sent_generation: Option<Generation>,
    /// Version and nonce of the newest response.
    pub sent: Option<ResponseId>,
    /// Version and nonce of the newest response that was accepted.
    pub acked: Option<ResponseId>,
    /// Time since the newest response, while it is unanswered.
    pub unanswered_ms: Option<u64>,
    /// What the client said when it last rejected a response; none once it accepted a later one.
    pub last_error: Option<String>,
    /// Responses sent, accepted and rejected on this stream.
    pub counts: Counts,
}

/// Names one response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResponseId {
    /// Its version.
    pub version: String,
    /// Its nonce.
    pub nonce: String,
}

/// Responses by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// Accepted.
    pub acked: u64,
    /// Rejected.
    pub nacked: u64,
}

#[derive(Debug, Default)]
pub(super) struct History {
    last_sent: Option<(ResponseId, Generation)>,
    last_acked: Option<ResponseId>,
    last_error: Option<String>,
    counts: Counts,
}

impl History {
    pub(super) fn sent(&mut self, response: &InFlight, generation: Generation) {
        self.last_sent = Some((id(&response.nonce, &response.version), generation));
        self.counts.sent += 1;
    }

    /// Version of the newest response that was accepted, or of the newest at all.
    pub(super) fn known_version(&self) -> Version {
        let sent = self.last_sent.as_ref().map(|(sent, _)| sent);
        let known = self.last_acked.as_ref().or(sent);
        Version::from(known.map_or("", |response| response.version.as_str()))
    }

    pub(super) fn acked(&mut self, response: &InFlight) {
        self.last_acked = Some(id(&response.nonce, &response.version));
        self.last_error = None;
        self.counts.acked += 1;
    }

    pub(super) fn nacked(&mut self, message: &str) {
        self.last_error = Some(message.to_owned());
        self.counts.nacked += 1;
    }

    pub(super) fn has_sent(&self) -> bool {
        self.last_sent.is_some()
    }

    pub(super) fn is_last(&self, nonce: &str) -> bool {
        self.last_sent
            .as_ref()
            .is_some_and(|(response, _)| response.nonce == nonce)
    }
}

impl TypeState {
    pub(super) fn status(&self, type_url: &TypeUrl, now: Instant) -> TypeStatus {
        let selection = self.subscription.selection();
        let history = &self.history;
        let state = if self.in_flight.is_some() || self.phase != Phase::Clean || self.owes_answer()
        {
            SyncState::Stale
        } else if history.last_error.is_some() {
            SyncState::Error
        } else if history.has_sent() {
            SyncState::Synced
        } else {
            SyncState::NotSent
        };
        TypeStatus {
            type_url: type_url.clone(),
            short_name: type_url.short_name().to_owned(),
            state,
            wildcard: selection.is_wildcard(),
            subscribed: selection.names().len() + selection.glob_prefixes().len(),
            resources: self.held().count(),
            sent_generation: history
                .last_sent
                .as_ref()
                .map(|(_, generation)| *generation),
            sent: history
                .last_sent
                .as_ref()
                .map(|(response, _)| response.clone()),
            acked: history.last_acked.clone(),
            unanswered_ms: self.in_flight.as_ref().map(|in_flight| {
                let waited = now.saturating_duration_since(in_flight.sent_at);
                u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)
            }),
            last_error: history.last_error.clone(),
            counts: history.counts,
        }
    }
}

fn id(nonce: &str, version: &Version) -> ResponseId {
    ResponseId {
        version: version.as_str().to_owned(),
        nonce: nonce.to_owned(),
    }
}
