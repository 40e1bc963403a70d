//! Which file says what: the last good version of every object, and what a file's new contents change.
//!
//! Pure. An object that two files have belongs to the first of them by name; a file that cannot be
//! understood keeps what it last said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::kube::document::{Contents, Sourced};
use crate::model::ObjectId;
use crate::model::problem::{Problem, Reason, Severity};

/// What all files say.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    files: BTreeMap<Arc<str>, FileObjects>,
    /// The files that have an object, by name; the first one's version counts.
    holders: BTreeMap<ObjectId, Vec<Arc<str>>>,
    /// The objects that several files have.
    contested: BTreeSet<ObjectId>,
    /// The files that something is wrong with by themselves.
    faulty: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct FileObjects {
    objects: BTreeMap<ObjectId, Sourced>,
    problems: Vec<Problem>,
}

/// What is different now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    changed: BTreeMap<ObjectId, Option<Sourced>>,
}

impl Changes {
    /// Adds later changes, which win.
    pub(super) fn merge(&mut self, later: Self) {
        self.changed.extend(later.changed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// New and different objects, and gone ones.
    pub(crate) fn into_parts(self) -> (Vec<Sourced>, Vec<ObjectId>) {
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        for (id, object) in self.changed {
            match object {
                Some(object) => applied.push(object),
                None => deleted.push(id),
            }
        }
        (applied, deleted)
    }
}

impl Catalog {
    /// A file has new contents.
    pub(crate) fn put(&mut self, name: &str, contents: Contents) -> Changes {
        let mut problems = contents.problems;
        let mut objects = BTreeMap::new();
        for sourced in contents.objects {
            let id = sourced.object.id();
            if objects.insert(id.clone(), sourced).is_some() {
                problems.push(conflict(
                    name,
                    &id,
                    "is in this file twice: the last one counts".to_owned(),
                ));
            }
        }
        let before = self.files.get(name).map(|file| &file.objects);
        for (id, last_good) in before.into_iter().flatten() {
            let kept = contents.unidentified || contents.refused.contains(id);
            if kept && !objects.contains_key(id) {
                objects.insert(id.clone(), last_good.clone());
            }
        }
        self.replace(name, Some(FileObjects { objects, problems }))
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, name: &str) -> Changes {
        self.replace(name, None)
    }

    /// All that is wrong now, in the order of files.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut conflicts: BTreeMap<&str, Vec<Problem>> = BTreeMap::new();
        for id in &self.contested {
            let mut holders = self.holders.get(id).into_iter().flatten();
            let Some(first) = holders.next() else {
                continue;
            };
            for other in holders {
                let message = format!("is in {first} too, which counts");
                let problem = conflict(other, id, message);
                conflicts.entry(other).or_default().push(problem);
            }
        }
        let faulty = self.faulty.iter().map(|name| &**name);
        let names: BTreeSet<&str> = faulty.chain(conflicts.keys().copied()).collect();
        let mut problems = Vec::new();
        for name in names {
            let own = self.files.get(name).into_iter();
            problems.extend(own.flat_map(|file| file.problems.iter().cloned()));
            problems.extend(conflicts.remove(name).into_iter().flatten());
        }
        problems
    }

    fn replace(&mut self, name: &str, new: Option<FileObjects>) -> Changes {
        let ids = |file: Option<&FileObjects>| -> BTreeSet<ObjectId> {
            file.into_iter()
                .flat_map(|file| file.objects.keys().cloned())
                .collect()
        };
        let (had, has) = (ids(self.files.get(name)), ids(new.as_ref()));
        let touched: BTreeSet<&ObjectId> = had.union(&has).collect();
        let before: BTreeMap<&ObjectId, Option<Sourced>> = touched
            .iter()
            .map(|id| (*id, self.effective(id).cloned()))
            .collect();
        if new.as_ref().is_some_and(|file| !file.problems.is_empty()) {
            self.faulty.insert(name.into());
        } else {
            self.faulty.remove(name);
        }
        let known = self.files.get_key_value(name);
        let shared: Arc<str> = known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name));
        match new {
            Some(file) => self.files.insert(Arc::clone(&shared), file),
            None => self.files.remove(name),
        };
        for id in had.difference(&has) {
            if let Some(holders) = self.holders.get_mut(id) {
                holders.retain(|holder| **holder != *name);
                if holders.is_empty() {
                    self.holders.remove(id);
                }
            }
        }
        for id in &has {
            let holders = self.holders.entry(id.clone());
            let holders = holders.or_insert_with(|| Vec::with_capacity(1));
            if let Err(at) = holders.binary_search(&shared) {
                holders.insert(at, Arc::clone(&shared));
            }
        }
        for id in &touched {
            if self.holders.get(*id).is_some_and(|all| all.len() > 1) {
                self.contested.insert((*id).clone());
            } else {
                self.contested.remove(*id);
            }
        }
        let mut changes = Changes::default();
        for (id, before) in before {
            let now = self.effective(id);
            if now != before.as_ref() {
                changes.changed.insert(id.clone(), now.cloned());
            }
        }
        changes
    }

    fn effective(&self, id: &ObjectId) -> Option<&Sourced> {
        let file = self.holders.get(id)?.first()?;
        self.files.get(file)?.objects.get(id)
    }
}

fn conflict(file: &str, id: &ObjectId, message: String) -> Problem {
    Problem {
        severity: Severity::Warning,
        reason: Reason::Conflict,
        file: Some(file.to_owned()),
        line: None,
        object: Some(id.to_string()),
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::document::read;

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.0.0.1\n  \
             ports: [{{port: {port}}}]\n---\n"
        )
    }

    fn put(catalog: &mut Catalog, file: &str, text: &str) -> (Vec<String>, Vec<String>) {
        let (applied, deleted) = catalog
            .put(file, read(file, text, "cluster.local"))
            .into_parts();
        let applied = applied
            .into_iter()
            .map(|sourced| sourced.object.id().to_string())
            .collect();
        (applied, deleted.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_what_differs_is_told() {
        let mut catalog = Catalog::default();
        let (applied, _) = put(
            &mut catalog,
            "a.yaml",
            &(service("x", 1) + &service("w", 1)),
        );
        assert_eq!(applied, ["Service default/w", "Service default/x"]);
        let (applied, deleted) = put(
            &mut catalog,
            "a.yaml",
            &(service("x", 1) + &service("z", 1)),
        );
        assert_eq!(
            (applied, deleted),
            (
                vec!["Service default/z".to_owned()],
                vec!["Service default/w".to_owned()]
            )
        );
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_version_and_nothing_else_waits_for_it() {
        let mut catalog = Catalog::default();
        put(
            &mut catalog,
            "a.yaml",
            &(service("x", 1) + &service("w", 1)),
        );
        let broken = service("x", 1).replace("port: 1", "port: eighty") + &service("w", 2);
        let (applied, deleted) = put(&mut catalog, "a.yaml", &broken);
        assert_eq!(
            (applied, deleted),
            (vec!["Service default/w".to_owned()], vec![])
        );
        assert_eq!(catalog.problems().len(), 1);
        let (_, deleted) = put(&mut catalog, "a.yaml", &service("w", 2));
        assert_eq!(deleted, ["Service default/x"]);
        assert_eq!(catalog.problems(), []);
    }

    #[test]
    fn a_file_that_is_not_yaml_keeps_everything_it_said() {
        let mut catalog = Catalog::default();
        put(
            &mut catalog,
            "a.yaml",
            &(service("x", 1) + &service("w", 1)),
        );
        let (applied, deleted) = put(&mut catalog, "a.yaml", &(service("x", 2) + "a: [\n"));
        assert_eq!(
            (applied, deleted),
            (vec!["Service default/x".to_owned()], vec![])
        );
        let problem = &catalog.problems()[0];
        assert_eq!(
            (problem.reason, problem.severity),
            (Reason::Unreadable, Severity::Error)
        );
    }

    #[test]
    fn an_object_in_two_files_is_the_first_ones_until_that_is_gone() {
        let mut catalog = Catalog::default();
        put(&mut catalog, "b.yaml", &service("x", 2));
        let (applied, _) = put(&mut catalog, "a.yaml", &service("x", 1));
        assert_eq!(applied.len(), 1);
        let (applied, _) = put(&mut catalog, "b.yaml", &service("x", 3));
        assert_eq!(applied.len(), 0);
        assert_eq!(catalog.problems()[0].reason, Reason::Conflict);
        let (applied, deleted) = catalog.remove("a.yaml").into_parts();
        assert_eq!((applied.len(), deleted.len()), (1, 0));
        assert_eq!(catalog.problems(), []);
    }
}
