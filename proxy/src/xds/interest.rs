//! Which pods are on this node, as far as subscriptions care.
//!
//! The side that learns of pods (the broker's client) holds an [`Interest`] and says what is
//! local; `xds::client` follows.

use std::collections::BTreeSet;

use tokio::sync::watch;

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Namespace and name of each.
    pub pods: BTreeSet<PodName>,
}

impl Local {
    /// The listeners that these pods need: those of their namespaces and each pod's own.
    pub(super) fn terms(&self) -> BTreeSet<String> {
        let namespaces = self.pods.iter().map(|(ns, _)| format!("{ns}/*"));
        let own = self.pods.iter();
        let own = own.map(|(ns, name)| crate::snapshot::pod_listener_name(ns, name));
        namespaces.chain(own).collect()
    }

    /// Whether this pod is on the node.
    pub(super) fn has(&self, (namespace, name): (&str, &str)) -> bool {
        self.pods.contains(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Says which pods are local; cheap to clone.
#[derive(Clone, Debug)]
pub struct Interest {
    sender: watch::Sender<Option<Local>>,
}

impl Default for Interest {
    fn default() -> Self {
        Self::new()
    }
}

impl Interest {
    /// Nothing is known yet: what an earlier run saved keeps serving.
    pub fn new() -> Self {
        Self {
            sender: watch::Sender::new(None),
        }
    }

    /// These pods, and no others, are on this node. To be called first when the broker has told
    /// of all pods there are, then at each change.
    pub fn pods(&self, pods: impl IntoIterator<Item = PodName>) {
        let local = Local {
            pods: pods.into_iter().collect(),
        };
        self.sender.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&local);
            if changed {
                *current = Some(local);
            }
            changed
        });
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Local>> {
        self.sender.subscribe()
    }
}
