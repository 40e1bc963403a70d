//! What a server has said, type by type: the last good version of every object, and what a response changes.
//!
//! Pure. A response has all objects of its type. An object that a server has under several versions of its kind is the
//! newest version's; older versions are only asked for where the newest has nothing, since servers differ in the version
//! that they know.

use std::collections::{BTreeMap, BTreeSet};

use millrace_xds::mcp;
use millrace_xds::sotw::client::ResponseUpdate;
use millrace_xds::{RawResource, ResourceError, TypeUrl, Version};
use serde_json::{Value, json};

use crate::kube::document::{self, Contents, Sourced};
use crate::model::ObjectId;
use crate::model::problem::{Problem, Reason, Severity};
use crate::registry::RegistryEvent;
use crate::registry::kubernetes::CONFIG_KINDS;

/// Everything a server has said.
#[derive(Debug)]
pub(super) struct Catalog {
    source: String,
    domain: String,
    /// All versions of all kinds, of each kind the newest first.
    types: Vec<Type>,
    broken: Option<String>,
    told: Vec<Problem>,
}

#[derive(Debug)]
struct Type {
    url: TypeUrl,
    /// Whether an older version of the kind stands next in the list.
    older: usize,
    state: State,
    objects: BTreeMap<String, Held>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only asked for where newer versions have nothing.
    Spare,
    Wanted,
    Asked,
    Answered,
}

/// An object under the name that the server gives it.
#[derive(Debug)]
struct Held {
    content: Version,
    good: Option<Sourced>,
    problems: Vec<Problem>,
    rejected: Option<ResourceError>,
}

impl Catalog {
    /// Nothing yet of a server of this address.
    pub(super) fn new(source: &str, domain: &str) -> Self {
        let types = CONFIG_KINDS.iter().flat_map(|kind| {
            let versions = kind.versions.iter().enumerate();
            versions.map(|(index, version)| Type {
                url: TypeUrl::from(&*format!("{}/{version}/{}", kind.group, kind.kind.as_str())),
                older: kind.versions.len() - 1 - index,
                state: if index == 0 {
                    State::Wanted
                } else {
                    State::Spare
                },
                objects: BTreeMap::new(),
            })
        });
        Self {
            source: source.to_owned(),
            domain: domain.to_owned(),
            types: types.collect(),
            broken: None,
            told: Vec::new(),
        }
    }

    /// The types to ask for that have not been asked for yet.
    pub(super) fn take_wanted(&mut self) -> Vec<TypeUrl> {
        let wanted = self.types.iter_mut().filter(|it| it.state == State::Wanted);
        wanted
            .map(|it| {
                it.state = State::Asked;
                it.url.clone()
            })
            .collect()
    }

    /// Whether everything that was asked for was answered.
    pub(super) fn is_synced(&self) -> bool {
        let done = |it: &Type| matches!(it.state, State::Spare | State::Answered);
        self.types.iter().all(done)
    }

    /// There is no connection, for this reason, or there is one again.
    pub(super) fn set_broken(&mut self, error: Option<String>) {
        self.broken = error;
    }

    /// A response: what it changes, and what of it is refused.
    pub(super) fn take(
        &mut self,
        update: &ResponseUpdate,
    ) -> (Option<RegistryEvent>, Vec<ResourceError>) {
        let Some(index) = self.types.iter().position(|it| it.url == update.type_url) else {
            return (None, Vec::new());
        };
        let before = self.ids_of(index);
        let mut held = std::mem::take(&mut self.types[index].objects);
        let mut now = BTreeMap::new();
        let mut touched = BTreeSet::new();
        for resource in &update.resources {
            let content = Version::of(&resource.body.value);
            let last = held.remove(&resource.name);
            let object = match last {
                Some(last) if last.content == content => last,
                last => {
                    let read = self.read(&update.type_url, resource, content, last);
                    touched.extend(read.good.iter().map(|good| good.object.id()));
                    read
                }
            };
            now.insert(resource.name.clone(), object);
        }
        let rejected: Vec<_> = now.values().filter_map(|it| it.rejected.clone()).collect();
        let empty = now.is_empty();
        self.types[index].objects = now;
        self.types[index].state = State::Answered;
        if empty {
            let older = self.types[index].older;
            for spare in &mut self.types[index + 1..=index + older] {
                if spare.state == State::Spare {
                    spare.state = State::Wanted;
                }
            }
        }
        let after = self.ids_of(index);
        touched.extend(before.symmetric_difference(&after).cloned());
        (self.changed(touched), rejected)
    }

    /// All that is wrong, if it is not what was said before.
    pub(super) fn problems(&mut self) -> Option<RegistryEvent> {
        let broken = self.broken.iter().map(|error| {
            let message = format!(
                "{} cannot be read, what is known of it keeps serving: {error}",
                self.source
            );
            problem(Severity::Warning, Reason::Unreadable, None, message)
        });
        let objects = self.types.iter().flat_map(|it| it.objects.values());
        let objects = objects.flat_map(|held| held.problems.iter().cloned());
        let problems: Vec<Problem> = broken.chain(objects).collect();
        if problems == self.told {
            return None;
        }
        self.told.clone_from(&problems);
        Some(RegistryEvent::Problems(problems))
    }

    fn ids_of(&self, index: usize) -> BTreeSet<ObjectId> {
        let good = self.types[index].objects.values();
        good.filter_map(|held| Some(held.good.as_ref()?.object.id()))
            .collect()
    }

    /// These objects as they count now.
    fn changed(&self, touched: BTreeSet<ObjectId>) -> Option<RegistryEvent> {
        let mut found: BTreeMap<ObjectId, &Sourced> = BTreeMap::new();
        for held in self.types.iter().flat_map(|it| it.objects.values()) {
            if let Some(good) = &held.good {
                let id = good.object.id();
                if touched.contains(&id) {
                    found.entry(id).or_insert(good);
                }
            }
        }
        let applied: Vec<Sourced> = found.values().map(|good| (*good).clone()).collect();
        let deleted: Vec<ObjectId> = touched
            .into_iter()
            .filter(|id| !found.contains_key(id))
            .collect();
        let nothing = applied.is_empty() && deleted.is_empty();
        (!nothing).then_some(RegistryEvent::Changed { applied, deleted })
    }

    /// Reads an object; one that is refused keeps its last good version.
    fn read(
        &self,
        url: &TypeUrl,
        resource: &RawResource,
        content: Version,
        last: Option<Held>,
    ) -> Held {
        let kind = url.object_kind().map_or("", |(_, _, kind)| kind);
        let title = format!("{kind} {}", resource.name);
        let contents = match mcp::unpack(&resource.body) {
            Ok(object) => self.judge(url, &title, object),
            Err(error) => Contents {
                problems: vec![problem(
                    Severity::Error,
                    Reason::Unreadable,
                    Some(title.clone()),
                    error.to_string(),
                )],
                ..Contents::default()
            },
        };
        let good = contents.objects.into_iter().next();
        let rejected = good.is_none().then(|| {
            let errors = contents.problems.iter();
            let errors = errors.filter(|problem| problem.severity == Severity::Error);
            let reasons: Vec<String> = errors
                .map(|problem| match problem.field.as_str() {
                    "" => problem.message.clone(),
                    field => format!("{field}: {}", problem.message),
                })
                .collect();
            ResourceError {
                name: resource.name.clone(),
                message: format!("{title}: {}", reasons.join("; ")),
            }
        });
        Held {
            content,
            good: good.or_else(|| last.and_then(|last| last.good)),
            problems: contents.problems,
            rejected,
        }
    }

    fn judge(&self, url: &TypeUrl, title: &str, object: mcp::Object) -> Contents {
        let unknown = object.unknown.clone();
        let mut contents = document::read_value(yaml(url, object), &self.domain);
        contents.problems.extend(unknown.into_iter().map(|path| {
            let (field, what) = path.split_once(": ").unwrap_or(("", &path));
            Problem {
                field: field.to_owned(),
                ..problem(
                    Severity::Warning,
                    Reason::UnknownField,
                    Some(title.to_owned()),
                    format!("this release does not know {what}; it has no effect"),
                )
            }
        }));
        contents
    }
}

/// The object as its YAML would say it.
fn yaml(url: &TypeUrl, object: mcp::Object) -> Value {
    let (group, version, kind) = url.object_kind().unwrap_or_default();
    let mut metadata = json!({
        "name": object.name,
        "labels": object.labels,
        "annotations": object.annotations,
    });
    for (field, text) in [
        ("namespace", object.namespace),
        ("creationTimestamp", object.created),
        ("resourceVersion", object.version),
    ] {
        if !text.is_empty() {
            metadata[field] = text.into();
        }
    }
    json!({
        "apiVersion": format!("{group}/{version}"),
        "kind": kind,
        "metadata": metadata,
        "spec": object.spec,
    })
}

fn problem(severity: Severity, reason: Reason, object: Option<String>, message: String) -> Problem {
    Problem {
        severity,
        reason,
        file: None,
        line: None,
        object,
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests;
