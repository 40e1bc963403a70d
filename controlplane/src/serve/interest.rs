//! Which names clients ask for, by the host that they are about.
//!
//! A change says which hosts it touches, and each stream has to find what it has of them. Looking through
//! all that it subscribes to would cost every stream as much as it has, for a change that may not concern
//! it at all. Told by [`super::MeshSource`] what is subscribed to, asked by it at each change.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use millrace_xds::Selection;
use millrace_xds::server::Generation;
use parking_lot::RwLock;

use crate::model::names::Hostname;
use crate::translate::{Part, ProxyView, ResourceKind};

/// Names that nobody has any more are forgotten this often.
const SWEEP: u64 = 256;

/// The names of clusters, of all streams; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Interest(Arc<RwLock<HashMap<Hostname, Vec<Weak<str>>>>>);

impl Interest {
    /// A client asks for these, among what it has selected.
    pub(super) fn add(
        &self,
        view: &ProxyView,
        kind: ResourceKind,
        selection: &Selection,
        added: &[String],
    ) {
        if !matches!(kind, ResourceKind::Cluster | ResourceKind::Endpoints) {
            return;
        }
        for name in added {
            // The text is one for all streams, so that it is known by where it is.
            let Some(name) = selection.shared_name(name) else {
                continue;
            };
            let Part::Cluster(host) = view.part(kind, name) else {
                continue;
            };
            let knows = |names: &Vec<Weak<str>>| names.iter().any(|known| is(known, name));
            if self.0.read().get(&host).is_some_and(knows) {
                continue;
            }
            let mut all = self.0.write();
            let names = all.entry(host).or_default();
            if !knows(names) {
                names.retain(|known| known.strong_count() > 0);
                names.push(Arc::downgrade(name));
            }
        }
    }

    /// What of a selection is about these hosts.
    pub(super) fn names_of(&self, hosts: &[&Hostname], selection: &Selection) -> Vec<Arc<str>> {
        let all = self.0.read();
        let names = hosts.iter().filter_map(|host| all.get(*host)).flatten();
        let names = names.filter_map(Weak::upgrade);
        names.filter(|name| selection.names_exactly(name)).collect()
    }

    pub(super) fn age(&self, now: Generation) {
        if now.0.is_multiple_of(SWEEP) {
            self.0.write().retain(|_, names| {
                names.retain(|known| known.strong_count() > 0);
                !names.is_empty()
            });
        }
    }
}

fn is(known: &Weak<str>, name: &Arc<str>) -> bool {
    std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(name))
}
