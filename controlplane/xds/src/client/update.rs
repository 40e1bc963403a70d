//! What a client's consumer receives, and its answer.

use std::fmt;
use std::sync::Arc;

use crate::TypeUrl;
use crate::client::Shared;
use crate::delta::client::{Received, ResponseUpdate};
use crate::resource::{Decoded, RawResource, ResourceError, WireResource, decode_all};

/// News from the control plane.
#[derive(Debug)]
pub enum Event {
    /// A response: to be committed or rejected.
    Update(Update),
    /// The server has said nothing of these subscribed names in time; whoever waits for them
    /// should go on as if they did not exist. They may still come.
    Missing {
        /// Their type.
        type_url: TypeUrl,
        /// The names.
        names: Vec<String>,
    },
    /// A stream was opened, the first or a new one. Resources that vanished while there was no
    /// stream are told as removed by the updates that follow.
    Connected,
}

/// One response. The server learns of its fate when it is finished by [`Update::commit`],
/// [`Update::reject`] or [`Update::reject_all`]; dropped without that, it is rejected whole.
#[must_use = "an update that is dropped is rejected"]
pub struct Update {
    /// Type of all its resources.
    pub type_url: TypeUrl,
    /// The server's version of the whole, for display.
    pub system_version: String,
    /// New and changed resources.
    pub resources: Vec<RawResource>,
    /// Resources that are gone, or that were subscribed to and do not exist. A collection
    /// (`<prefix>/*`) in this list has no members.
    pub removed: Vec<String>,
    answer: Option<Answer>,
}

struct Answer {
    received: Received,
    session: Arc<Shared>,
}

impl Update {
    pub(super) fn new(update: ResponseUpdate, session: Arc<Shared>) -> Self {
        Self {
            type_url: update.type_url,
            system_version: update.system_version,
            resources: update.resources,
            removed: update.removed,
            answer: Some(Answer {
                received: update.received,
                session,
            }),
        }
    }

    /// Resources that the server has not renewed in time; nobody waits for an answer.
    pub(super) fn lapsed(type_url: TypeUrl, names: Vec<String>) -> Self {
        Self {
            type_url,
            system_version: String::new(),
            resources: Vec::new(),
            removed: names,
            answer: None,
        }
    }

    /// Decodes all resources in two phases; `validate` is the second.
    pub fn decode<M, T, E>(&self, validate: impl FnMut(M) -> Result<T, E>) -> Decoded<T>
    where
        M: WireResource,
        E: fmt::Display,
    {
        decode_all(&self.resources, validate)
    }

    /// Everything was applied: ACK.
    pub fn commit(self) {
        self.finish(Vec::new());
    }

    /// Everything but these resources was applied: NACK that names them, or ACK if there are none.
    /// Rejected resources keep their last good version here and at the server.
    pub fn reject(self, rejected: Vec<ResourceError>) {
        self.finish(rejected);
    }

    /// Nothing was applied: NACK.
    pub fn reject_all(self, message: &str) {
        let rejected = self.all_rejected(message);
        self.finish(rejected);
    }

    fn all_rejected(&self, message: &str) -> Vec<ResourceError> {
        let names = self.resources.iter().map(|resource| &resource.name);
        names
            .chain(&self.removed)
            .map(|name| ResourceError {
                name: name.clone(),
                message: message.to_owned(),
            })
            .collect()
    }

    fn finish(mut self, rejected: Vec<ResourceError>) {
        self.send(rejected);
    }

    fn send(&mut self, rejected: Vec<ResourceError>) {
        if let Some(Answer { received, session }) = self.answer.take() {
            session.finish(received.verdict(rejected));
        }
    }
}

impl Drop for Update {
    fn drop(&mut self) {
        if self.answer.is_some() {
            let rejected = self.all_rejected("the update was dropped unprocessed");
            self.send(rejected);
        }
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("type_url", &self.type_url)
            .field("resources", &self.resources.len())
            .field("removed", &self.removed)
            .finish_non_exhaustive()
    }
}
