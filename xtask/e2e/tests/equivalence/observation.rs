//! What a behaviour was seen to be: aspects and their values, as text that can be compared and printed.

use std::collections::BTreeMap;
use std::fmt::Display;

/// What was seen of one behaviour, by aspect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observation(pub BTreeMap<String, String>);

impl Observation {
    /// Notes what was seen of an aspect.
    pub(crate) fn see(&mut self, aspect: impl Into<String>, value: impl Display) {
        self.0.insert(aspect.into(), value.to_string());
    }

    /// Notes what was seen, or what kept it from being seen.
    pub(crate) fn see_result<T: Display>(
        &mut self,
        aspect: impl Into<String>,
        value: anyhow::Result<T>,
    ) {
        match value {
            Ok(value) => self.see(aspect, value),
            Err(error) => self.see(aspect, format!("failed: {error:#}")),
        }
    }
}
