//! Everything that is wrong with the configuration now, from all who find problems.
//!
//! Input: the registry's and the mesh settings' problems, and the analysis of each snapshot; output: one
//! sorted list for `/debug/config_errors` and the metric, and a log line for each that is new.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::analysis::Origins;
use crate::index::ChangeSet;
use crate::kube::document::Origin;
use crate::model::ObjectId;
use crate::model::analyze::analyze;
use crate::model::problem::{Finding, Problem, Severity};
use crate::snapshot::MeshSnapshot;

/// All problems, with where objects stand.
#[derive(Debug, Default)]
pub(super) struct Problems {
    mesh: Vec<Problem>,
    registry: Vec<Problem>,
    /// Between objects.
    found: Vec<(ObjectId, Finding)>,
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

    /// Looks for problems between objects, where something changed that makes or mends any: pods and endpoints
    /// do not, which change all the time, unless a `RouteRule` chooses among them.
    pub(super) fn analyze(&mut self, snapshot: &MeshSnapshot, changes: &ChangeSet) {
        let concern = changes.mesh
            || !changes.services.is_empty()
            || changes.routes
            || changes.policies
            || changes.scopes
            || changes.gateways
            || (!changes.workloads.is_empty() && !snapshot.route_rules.is_empty());
        if concern {
            self.found = analyze(snapshot);
        }
    }

    /// The list as it is now; what was not there the last time is logged.
    pub(super) fn current(&mut self) -> Vec<Problem> {
        // Objects that did not change may stand elsewhere than before.
        let analysis = self.origins.locate(self.found.clone());
        let all = [&self.mesh, &self.registry, &analysis];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::kube::document::read;
    use crate::model::mesh::MeshConfig;

    #[test]
    fn pods_are_looked_at_where_a_rule_chooses_among_them() {
        let mut index = Index::new(MeshConfig::default());
        let mut problems = Problems::new(Origins::default());
        let mut found = |yaml: &str| {
            for sourced in read("a.yaml", yaml, "cluster.local").objects {
                index.apply(sourced.object);
            }
            let changes = index.take_changes();
            problems.analyze(&index.snapshot(), &changes);
            problems.current().len()
        };
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.1, \
                       selector: {app: a}, ports: [{name: http, port: 80}]}\n---\n";
        let rule = "apiVersion: config.istio.io/v1alpha2\nkind: RouteRule\nmetadata: {name: r}\n\
                    spec: {destination: {name: a}, precedence: 1, route: [{labels: {version: v1}}]}\n";
        assert_eq!(
            found(&format!("{service}{rule}")),
            1,
            "nobody has the labels"
        );
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, labels: {app: a, version: v1}}\n\
                   spec: {containers: [{name: c}]}\nstatus: {podIP: 10.1.0.1}\n";
        assert_eq!(found(pod), 0);
    }

    #[test]
    fn gateways_are_looked_at_when_they_come() {
        let mut index = Index::new(MeshConfig::default());
        let mut problems = Problems::new(Origins::default());
        let mut found = |yaml: &str| {
            for sourced in read("a.yaml", yaml, "cluster.local").objects {
                index.apply(sourced.object);
            }
            let changes = index.take_changes();
            problems.analyze(&index.snapshot(), &changes);
            problems.current().len()
        };
        let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\n\
                    spec: {hosts: [a.test], gateways: [edge], http: [{redirect: {uri: /}}]}\n";
        assert_eq!(found(rule), 1, "nobody knows the gateway");
        let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\n\
                       spec: {selector: {a: b}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
        assert_eq!(found(gateway), 0);
    }
}
