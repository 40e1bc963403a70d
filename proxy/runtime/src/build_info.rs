//! What this build is, for `version` commands, admin routes and the build-info metric.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::handoff::PROTOCOL_VERSION;

/// Identity of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// Binary, for example `millrace-proxy`.
    pub component: String,
    /// Workspace version.
    pub version: String,
    /// Commit, where the build named one in `MILLRACE_BUILD_COMMIT`.
    pub commit: String,
    /// `debug` or `release`.
    pub profile: String,
    /// Version of the hand-off protocol.
    pub handoff_protocol: u32,
}

impl BuildInfo {
    /// Describes the running build of `component`.
    pub fn of(component: &str) -> Self {
        Self {
            component: component.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("MILLRACE_BUILD_COMMIT")
                .unwrap_or("unknown")
                .to_owned(),
            profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .to_owned(),
            handoff_protocol: PROTOCOL_VERSION,
        }
    }
}

impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({}, {})",
            self.component, self.version, self.commit, self.profile
        )
    }
}
