//! What is there, by what the watches say: which objects are gone after a list, what is wrong, what is known yet.
//!
//! Pure. It holds names and problems only; the objects are the index's.

use std::collections::{BTreeMap, BTreeSet};

use super::kinds::{CONFIG_KINDS, OWN_KINDS};
use super::watch::{Change, Entry, Update, What};
use crate::kube::document::Sourced;
use crate::model::names::ObjectName;
use crate::model::problem::{Problem, Reason, Severity};
use crate::model::{Kind, ObjectId};

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    kinds: BTreeMap<Kind, BTreeSet<ObjectName>>,
    definitions: Option<BTreeSet<String>>,
    problems: BTreeMap<(Kind, ObjectName), Vec<Problem>>,
    broken: BTreeMap<What, String>,
    changed: BTreeMap<ObjectId, Option<Sourced>>,
}

impl Catalog {
    /// A watch has something to say.
    pub(super) fn take(&mut self, update: Update) {
        let what = update.what;
        match (update.change, what) {
            (Change::Broken(message), _) => {
                self.broken.insert(what, message);
            }
            (Change::Stands, _) => {
                self.broken.remove(&what);
            }
            (change, What::Definitions) => self.define(change),
            (Change::Replaced(entries), What::Objects(kind)) => self.replace(kind, entries),
            (Change::Applied(entry), What::Objects(kind)) => self.put(kind, *entry),
            (Change::Deleted(name), What::Objects(kind)) => self.delete(kind, &name),
        }
    }

    /// What is different since the last call.
    pub(super) fn take_changes(&mut self) -> (Vec<Sourced>, Vec<ObjectId>) {
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        for (id, object) in std::mem::take(&mut self.changed) {
            match object {
                Some(object) => applied.push(object),
                None => deleted.push(id),
            }
        }
        (applied, deleted)
    }

    /// All that is wrong now.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let broken = self.broken.iter().map(|(what, message)| Problem {
            severity: Severity::Warning,
            reason: Reason::Unreadable,
            file: None,
            line: None,
            object: None,
            field: String::new(),
            message: format!(
                "{} objects cannot be watched, what is known of them keeps serving: {message}",
                what.as_str()
            ),
        });
        let objects = self.problems.values().flatten().cloned();
        broken.chain(objects).collect()
    }

    /// The names of all definitions of custom resources, once they are known.
    pub(super) fn definitions(&self) -> Option<&BTreeSet<String>> {
        self.definitions.as_ref()
    }

    /// Whether every kind was listed once.
    pub(super) fn is_synced(&self) -> bool {
        let configuration = CONFIG_KINDS.iter().map(|kind| kind.kind);
        OWN_KINDS
            .into_iter()
            .chain(configuration)
            .all(|kind| self.kinds.contains_key(&kind))
    }

    fn define(&mut self, change: Change) {
        let name = |name: &ObjectName| name.name.to_string();
        match change {
            Change::Replaced(entries) => {
                self.definitions = Some(entries.iter().map(|entry| name(&entry.name)).collect());
            }
            Change::Applied(entry) => {
                self.definitions
                    .get_or_insert_default()
                    .insert(name(&entry.name));
            }
            Change::Deleted(gone) => {
                self.definitions
                    .get_or_insert_default()
                    .remove(&name(&gone));
            }
            Change::Broken(_) | Change::Stands => {}
        }
    }

    /// After a list: whatever was there and is not in it went meanwhile.
    fn replace(&mut self, kind: Kind, entries: Vec<Entry>) {
        let now: BTreeSet<ObjectName> = entries.iter().map(|entry| entry.name.clone()).collect();
        let before = self.kinds.entry(kind).or_default();
        let gone: Vec<ObjectName> = before.difference(&now).cloned().collect();
        for name in gone {
            self.delete(kind, &name);
        }
        for entry in entries {
            self.put(kind, entry);
        }
    }

    /// An object that is refused keeps its last good version, which the index has.
    fn put(&mut self, kind: Kind, entry: Entry) {
        let Entry {
            name,
            object,
            problems,
        } = entry;
        if let Some(object) = object {
            let id = ObjectId {
                kind,
                name: name.clone(),
            };
            self.changed.insert(id, Some(object));
        }
        let key = (kind, name);
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key.clone(), problems);
        }
        self.kinds.entry(kind).or_default().insert(key.1);
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(known) = self.kinds.get_mut(&kind) {
            known.remove(name);
        }
        let key = (kind, name.clone());
        self.problems.remove(&key);
        let (kind, name) = key;
        self.changed.insert(ObjectId { kind, name }, None);
    }
}

#[cfg(test)]
mod tests;
