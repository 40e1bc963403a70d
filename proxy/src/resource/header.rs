//! Header mutations of routes, virtual hosts and route configurations.

use http::{HeaderName, HeaderValue};

/// Headers to remove, replace and add, in Envoy's order: removals before additions of the
/// same level, levels from the most specific to the least.
#[derive(Clone, Debug, Default)]
pub struct HeaderMutation {
    /// Headers to set or add.
    pub set: Vec<HeaderSet>,
    /// Headers to remove.
    pub remove: Vec<HeaderName>,
}

/// One header to set or add (`HeaderValueOption`).
#[derive(Clone, Debug)]
pub struct HeaderSet {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// What happens where the header is there already.
    pub action: HeaderAppend,
}

/// `HeaderAppendAction` of `config.core.v3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderAppend {
    /// Add a further value.
    AppendIfExistsOrAdd,
    /// Add only where absent.
    AddIfAbsent,
    /// Replace, or add where absent.
    OverwriteIfExistsOrAdd,
    /// Replace only where present.
    OverwriteIfExists,
}

impl HeaderMutation {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}
