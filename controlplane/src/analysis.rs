//! A configuration judged as a whole, before or instead of being served: what `millctl analyze` shows.
//!
//! Input: files, and what a registry has; output: problems, each with object, field, reason and place. The judges are
//! those of a running pilot: the readers and [`crate::model::validate`] for each object, [`crate::model::analyze`] for
//! what is between them. Beside them stand hints, which no running pilot gives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::index::Index;
use crate::kube::document::{self, Origin, Sourced};
use crate::model::analyze::{analyze, analyze_object, hints};
use crate::model::mesh::MeshConfig;
use crate::model::problem::{Finding, Problem, Reason, Severity};
use crate::model::{Object, ObjectId};
use crate::registry::RegistryEvent;
use crate::registry::file::catalog::Catalog;
use crate::snapshot::MeshSnapshot;

/// Where objects stand, for what is found when nobody looks at their text any more. Cloning shares it: the writer
/// keeps it, the admin port asks it.
#[derive(Clone, Debug, Default)]
pub struct Origins(Arc<RwLock<BTreeMap<ObjectId, Arc<Origin>>>>);

impl Origins {
    /// An object stands there, or nowhere.
    pub fn set(&self, id: ObjectId, origin: Option<Arc<Origin>>) {
        let mut all = self.0.write();
        match origin {
            Some(origin) => all.insert(id, origin),
            None => all.remove(&id),
        };
    }

    /// Where an object stands, if that is known.
    pub fn of(&self, id: &ObjectId) -> Option<Arc<Origin>> {
        self.0.read().get(id).cloned()
    }

    /// Findings with their places.
    pub fn locate(&self, found: Vec<(ObjectId, Finding)>) -> Vec<Problem> {
        let one = |(id, finding): (ObjectId, Finding)| {
            let origin = self.of(&id);
            let origin = origin.as_deref();
            Problem {
                severity: finding.severity,
                reason: finding.reason,
                file: origin.and_then(Origin::file).map(str::to_owned),
                line: origin.and_then(|origin| origin.line_of(&finding.field)),
                object: Some(id.to_string()),
                field: finding.field,
                message: finding.message,
            }
        };
        found.into_iter().map(one).collect()
    }
}

/// A configuration under judgement.
#[derive(Debug)]
pub struct Analysis {
    index: Index,
    origins: Origins,
    files: Catalog,
    unreadable: Vec<Problem>,
    /// What a registry says of its own objects.
    registry: Vec<Problem>,
    synced: bool,
}

impl Analysis {
    /// Nothing yet, for a mesh with these settings.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            index: Index::new(mesh),
            origins: Origins::default(),
            files: Catalog::default(),
            unreadable: Vec::new(),
            registry: Vec::new(),
            synced: false,
        }
    }

    /// What a registry has to say. Files come after it, as what they say holds instead.
    pub fn take(&mut self, event: RegistryEvent) {
        match event {
            RegistryEvent::Changed { applied, deleted } => self.change(applied, &deleted),
            RegistryEvent::Problems(problems) => self.registry = problems,
            RegistryEvent::Synced => self.synced = true,
        }
    }

    /// Whether the registry has said everything that there is.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What a registry says is wrong with it or its objects.
    pub fn registry_problems(&self) -> &[Problem] {
        &self.registry
    }

    /// Reads a file. `name` is what problems call it.
    pub fn read(&mut self, name: &str, text: &str) {
        let domain = self.index.snapshot().mesh.domain.clone();
        let changes = self.files.put(name, document::read(name, text, &domain));
        let (applied, deleted) = changes.into_parts();
        let refers = applied
            .iter()
            .map(|sourced| sourced.object.id().to_string());
        let replaced: BTreeSet<String> = refers.collect();
        self.registry.retain(|problem| {
            problem
                .object
                .as_ref()
                .is_none_or(|id| !replaced.contains(id))
        });
        self.change(applied, &deleted);
    }

    /// A file cannot be read.
    pub fn unreadable(&mut self, name: &str, error: &std::io::Error) {
        self.unreadable.push(Problem {
            severity: Severity::Error,
            reason: Reason::Unreadable,
            file: Some(name.to_owned()),
            line: None,
            object: None,
            field: String::new(),
            message: error.to_string(),
        });
    }

    /// Everything that is wrong, the worst first.
    pub fn problems(&self) -> BTreeSet<Problem> {
        let snapshot = self.index.snapshot();
        let mut found = analyze(&snapshot);
        found.extend(hints(&snapshot));
        let all = self.origins.locate(found);
        all.into_iter()
            .chain(self.files.problems())
            .chain(self.unreadable.iter().cloned())
            .chain(self.registry.iter().cloned())
            .collect()
    }

    fn change(&mut self, applied: Vec<Sourced>, deleted: &[ObjectId]) {
        for id in deleted {
            self.index.delete(id);
            self.origins.set(id.clone(), None);
        }
        for sourced in applied {
            self.origins.set(sourced.object.id(), sourced.origin);
            self.index.apply(sourced.object);
        }
    }
}

/// Judges one object as if it were applied to a mesh; without a mesh, by itself alone.
pub fn judge(
    object: serde_json::Value,
    mesh: Option<&MeshSnapshot>,
    domain: &str,
) -> (Option<Object>, Vec<Problem>) {
    let contents = document::read_value(object, domain);
    let mut problems = contents.problems;
    let object = contents.objects.into_iter().next();
    let object = object.map(|sourced| sourced.object);
    if let (Some(object), Some(mesh)) = (&object, mesh) {
        let mut index = Index::over(mesh.clone());
        index.apply(object.clone());
        let id = object.id();
        let found = analyze_object(&index.snapshot(), &id).into_iter();
        let found = found.map(|finding| (id.clone(), finding)).collect();
        problems.extend(Origins::default().locate(found));
    }
    (object, problems)
}

#[cfg(test)]
mod tests;
