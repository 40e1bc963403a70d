//! Which pods this node has: a [`PodSource`] gives the set and every change of it.
//!
//! The local source is a directory of descriptions (`pods/local.rs`); a registry is another
//! implementation of the same trait. Consumers see a whole set each time and plan by comparison,
//! so a missed step in between is never missed.

pub mod describe;
pub mod local;

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_runtime::handoff::{PodSpec, PodUid};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What went wrong with one description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProblem {
    /// Where the description comes from, for example its file.
    pub origin: String,
    /// Line in it, where there is one.
    pub line: Option<u64>,
    /// Field, where there is one.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// Whether an earlier good description from there is still in force.
    pub last_good_kept: bool,
}

/// The pods of this node as a source knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSet {
    /// The source has been read once; before, an empty set means nothing.
    pub synced: bool,
    /// Pods by uid.
    pub pods: BTreeMap<PodUid, Arc<PodSpec>>,
    /// Descriptions that could not be used.
    pub problems: Vec<SourceProblem>,
}

/// Knows the pods of this node.
pub trait PodSource: Send + Sync {
    /// The newest set and every one after it.
    fn watch(&self) -> watch::Receiver<Arc<PodSet>>;

    /// Adds or replaces a pod, where the source takes pods.
    ///
    /// # Errors
    /// Says why the pod is not taken.
    fn put(&self, pod: PodSpec) -> Result<(), PutError>;

    /// Removes a pod that was put; false when there is none of that uid.
    ///
    /// # Errors
    /// Says why the pod cannot be removed.
    fn delete(&self, uid: &PodUid) -> Result<bool, PutError>;
}

/// Why a source does not take a change.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The pod is no usable pod.
    #[error(transparent)]
    Invalid(#[from] millrace_runtime::handoff::InvalidPod),
    /// Another description owns the uid.
    #[error("pod {uid} is described by {origin}, change it there")]
    Owned {
        /// The pod.
        uid: PodUid,
        /// Who describes it.
        origin: String,
    },
    /// The change could not be written.
    #[error("{origin} cannot be written")]
    Write {
        /// What should have been written.
        origin: String,
        /// Why.
        source: std::io::Error,
    },
}
