//! A worker's view of the newest snapshot: one relaxed load per look, no shared write.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use super::Snapshot;

/// Reads the newest snapshot from one thread.
pub struct Reader {
    state: RefCell<State>,
}

struct State {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    pinned: Pinned,
}

/// A snapshot held by one thread: cloning it touches a counter of this thread alone.
#[expect(
    clippy::redundant_allocation,
    reason = "the outer counter is the thread's own; the inner one is shared by all workers"
)]
#[derive(Clone)]
pub struct Pinned(Rc<Arc<Snapshot>>);

impl Reader {
    pub(super) fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        let mut cache = Cache::new(current);
        let pinned = Pinned(Rc::new(cache.load().clone()));
        Self {
            state: RefCell::new(State { cache, pinned }),
        }
    }

    /// The newest snapshot.
    pub fn load(&self) -> Pinned {
        let mut state = self.state.borrow_mut();
        let State { cache, pinned } = &mut *state;
        let newest = cache.load();
        if !Arc::ptr_eq(newest, &pinned.0) {
            *pinned = Pinned(Rc::new(newest.clone()));
        }
        pinned.clone()
    }
}

impl Deref for Pinned {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
