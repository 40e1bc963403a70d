//! Everything that is wrong with the configuration now, from all who find problems.
//!
//! Input: the registry's and the mesh settings' problems, and the analysis of each snapshot; output: one
//! sorted list for `/debug/config_errors` and the metric, and a log line for each that is new.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::analysis::Origins;
use crate::kube::document::Origin;
use crate::model::ObjectId;
use crate::model::analyze::analyze;
use crate::model::problem::{Problem, Severity};
use crate::snapshot::MeshSnapshot;

/// All problems, with where objects stand.
#[derive(Debug, Default)]
pub(super) struct Problems {
    mesh: Vec<Problem>,
    registry: Vec<Problem>,
    analysis: Vec<Problem>,
    origins: Origins,
    logged: BTreeSet<Problem>,
}

impl Problems {
    /// None yet, of objects that stand where `origins` says.
    pub(super) fn new(origins: Origins) -> Self {
        Self {
            origins,
            ..Self::default()
        }
    }

    pub(super) fn set_mesh(&mut self, problems: Vec<Problem>) {
        self.mesh = problems;
    }

    pub(super) fn set_registry(&mut self, problems: Vec<Problem>) {
        self.registry = problems;
    }

    pub(super) fn set_origin(&mut self, id: ObjectId, origin: Option<Arc<Origin>>) {
        self.origins.set(id, origin);
    }

    /// Looks for problems between objects.
    pub(super) fn analyze(&mut self, snapshot: &MeshSnapshot) {
        self.analysis = self.origins.locate(analyze(snapshot));
    }

    /// The list as it is now; what was not there the last time is logged.
    pub(super) fn current(&mut self) -> Vec<Problem> {
        let all = [&self.mesh, &self.registry, &self.analysis];
        let now: BTreeSet<Problem> = all.into_iter().flatten().cloned().collect();
        for problem in now.difference(&self.logged) {
            match problem.severity {
                Severity::Error => tracing::error!(reason = problem.reason.as_str(), "{problem}"),
                Severity::Warning => tracing::warn!(reason = problem.reason.as_str(), "{problem}"),
                Severity::Info => tracing::info!(reason = problem.reason.as_str(), "{problem}"),
            }
        }
        for problem in self.logged.difference(&now) {
            tracing::info!("no longer: {problem}");
        }
        self.logged = now;
        self.logged.iter().cloned().collect()
    }
}
