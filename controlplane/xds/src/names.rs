//! Names of resources that many streams hold, each once in the process.
//!
//! In: a name as a request spells it. Out: the one text that all share. A node asks for some thousand
//! names, and a thousand nodes ask for much the same ones. Called by [`crate::subscription`].

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

static SHARED: LazyLock<Mutex<Names>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Names {
    known: HashSet<Arc<str>>,
    /// How many there may be before those that nobody holds are looked for.
    sweep_at: usize,
}

/// Below this number nobody looks.
const FEW: usize = 1024;

/// The text of a name, shared with all who have asked for it.
pub(crate) fn share(name: &str) -> Arc<str> {
    SHARED.lock().share(name)
}

impl Names {
    fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.known.shrink_to(FEW);
            self.sweep_at = (2 * self.known.len()).max(FEW);
        }
        let shared: Arc<str> = name.into();
        self.known.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_once_and_goes_with_its_last_holder() {
        let mut names = Names::default();
        let first = names.share("a");
        assert!(Arc::ptr_eq(&first, &names.share("a")));
        for number in 0..4 * FEW {
            drop(names.share(&number.to_string()));
        }
        assert!(names.known.len() <= 2 * FEW, "{}", names.known.len());
        assert!(Arc::ptr_eq(&first, &names.share("a")));
    }
}
