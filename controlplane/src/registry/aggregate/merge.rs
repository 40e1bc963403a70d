//! Whose version of an object counts, where several registries have one.
//!
//! Pure. Objects are shared, so that what is kept here costs their names.

use std::collections::{BTreeMap, BTreeSet};

use crate::kube::document::Sourced;
use crate::model::ObjectId;
use crate::model::problem::{Problem, Reason, Severity};
use crate::registry::RegistryEvent;

/// What all registries have.
#[derive(Debug)]
pub(super) struct Merge {
    members: Vec<Member>,
    /// Objects that several have in versions that differ.
    contested: BTreeSet<ObjectId>,
    told: Vec<Problem>,
    synced: bool,
}

#[derive(Debug)]
struct Member {
    name: &'static str,
    objects: BTreeMap<ObjectId, Sourced>,
    problems: Vec<Problem>,
    synced: bool,
}

impl Merge {
    /// Registries of these names, which have nothing yet.
    pub(super) fn new(names: Vec<&'static str>) -> Self {
        let member = |name| Member {
            name,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            synced: false,
        };
        Self {
            members: names.into_iter().map(member).collect(),
            contested: BTreeSet::new(),
            told: Vec::new(),
            synced: false,
        }
    }

    /// What a registry's event amounts to.
    pub(super) fn take(&mut self, index: usize, event: RegistryEvent) -> Vec<RegistryEvent> {
        let mut events = Vec::new();
        match event {
            RegistryEvent::Changed { applied, deleted } => {
                events.extend(self.change(index, applied, deleted));
            }
            RegistryEvent::Problems(problems) => self.members[index].problems = problems,
            RegistryEvent::Synced => self.members[index].synced = true,
        }
        let problems = self.problems();
        if problems != self.told {
            self.told.clone_from(&problems);
            events.push(RegistryEvent::Problems(problems));
        }
        if !self.synced && self.members.iter().all(|member| member.synced) {
            self.synced = true;
            events.push(RegistryEvent::Synced);
        }
        events
    }

    fn change(
        &mut self,
        index: usize,
        applied: Vec<Sourced>,
        deleted: Vec<ObjectId>,
    ) -> Option<RegistryEvent> {
        let new = applied
            .into_iter()
            .map(|sourced| (sourced.object.id(), Some(sourced)));
        let gone = deleted.into_iter().map(|id| (id, None));
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        for (id, version) in gone.chain(new) {
            let held_before = self.members[..index]
                .iter()
                .any(|member| member.objects.contains_key(&id));
            let objects = &mut self.members[index].objects;
            match version {
                Some(version) => objects.insert(id.clone(), version),
                None => objects.remove(&id),
            };
            self.judge(&id);
            if held_before {
                continue;
            }
            let version = self.versions(&id).next();
            match version.map(|(_, version)| version.clone()) {
                Some(version) => applied.push(version),
                None => deleted.push(id),
            }
        }
        let nothing = applied.is_empty() && deleted.is_empty();
        (!nothing).then_some(RegistryEvent::Changed { applied, deleted })
    }

    /// The versions of an object with the registries that have them; the first counts.
    fn versions(&self, id: &ObjectId) -> impl Iterator<Item = (&'static str, &Sourced)> {
        let versions = self
            .members
            .iter()
            .map(|member| (member.name, member.objects.get(id)));
        versions.filter_map(|(name, version)| Some((name, version?)))
    }

    fn judge(&mut self, id: &ObjectId) {
        let differs = {
            let mut versions = self.versions(id).map(|(_, version)| &version.object);
            let first = versions.next();
            versions.any(|other| Some(other) != first)
        };
        if differs {
            self.contested.insert(id.clone());
        } else {
            self.contested.remove(id);
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let own = self.members.iter().flat_map(|member| &member.problems);
        let contested = self.contested.iter().filter_map(|id| {
            let names: Vec<_> = self.versions(id).map(|(name, _)| name).collect();
            let (first, others) = names.split_first()?;
            Some(Problem {
                severity: Severity::Warning,
                reason: Reason::Conflict,
                file: None,
                line: None,
                object: Some(id.to_string()),
                field: String::new(),
                message: format!(
                    "the registries {first} and {} say different things of it; {first} counts",
                    others.join(" and ")
                ),
            })
        });
        own.cloned().chain(contested).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::kube::document::read;
    use crate::model::mesh::MeshConfig;
    use crate::model::names::ObjectName;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
        spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n";

    fn slice(name: &str, address: &str) -> String {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n---\n"
        )
    }

    struct Two {
        merge: Merge,
        index: Index,
        problems: Vec<String>,
        synced: bool,
        /// How often something was told to have changed.
        told: usize,
    }

    impl Two {
        fn new() -> Self {
            Self {
                merge: Merge::new(vec!["kubernetes", "file"]),
                index: Index::new(MeshConfig::default()),
                problems: Vec::new(),
                synced: false,
                told: 0,
            }
        }

        fn take(&mut self, from: usize, event: RegistryEvent) {
            for event in self.merge.take(from, event) {
                match event {
                    RegistryEvent::Changed { applied, deleted } => {
                        self.told += 1;
                        for id in &deleted {
                            self.index.delete(id);
                        }
                        for sourced in applied {
                            self.index.apply(sourced.object);
                        }
                    }
                    RegistryEvent::Problems(problems) => {
                        self.problems = problems.iter().map(ToString::to_string).collect();
                    }
                    RegistryEvent::Synced => self.synced = true,
                }
            }
        }

        fn applied(&mut self, from: usize, yaml: &str) {
            let applied = read("a.yaml", yaml, "cluster.local").objects;
            let deleted = Vec::new();
            self.take(from, RegistryEvent::Changed { applied, deleted });
        }

        fn gone(&mut self, from: usize, yaml: &str) {
            let objects = read("a.yaml", yaml, "cluster.local").objects;
            let deleted = objects.iter().map(|sourced| sourced.object.id()).collect();
            let applied = Vec::new();
            self.take(from, RegistryEvent::Changed { applied, deleted });
        }

        /// The port of the service that counts, and its endpoints.
        fn web(&self) -> Option<(u16, Vec<String>)> {
            let snapshot = self.index.snapshot();
            let name = ObjectName::new("default", "web");
            let port = snapshot.services.get(&name)?.ports[0].port;
            let endpoints = snapshot.endpoints_of(&name, port).iter();
            let addresses = endpoints.map(|endpoint| endpoint.address.to_string());
            Some((port, addresses.collect()))
        }
    }

    #[test]
    fn a_service_of_two_registries_is_the_firsts_with_the_endpoints_of_both() {
        let mut two = Two::new();
        let other = SERVICE.replace("port: 80}", "port: 8080}");
        two.applied(1, &(other.clone() + &slice("file-1", "10.9.0.2")));
        assert_eq!(two.web(), Some((8080, vec!["10.9.0.2".to_owned()])));
        two.applied(0, &(SERVICE.to_owned() + &slice("web-x", "10.9.0.1")));
        let both = vec!["10.9.0.1".to_owned(), "10.9.0.2".to_owned()];
        assert_eq!(two.web(), Some((80, both)));
        assert_eq!(
            two.problems,
            [
                "Service default/web: the registries kubernetes and file say different things of it; kubernetes counts"
            ]
        );
        // A later registry's change of what does not count changes nothing; when the first lets go, it counts.
        let told = two.told;
        two.applied(1, &SERVICE.replace("port: 80}", "port: 9090}"));
        assert_eq!((two.web().unwrap().0, two.told), (80, told));
        two.gone(0, SERVICE);
        assert_eq!(two.web().unwrap().0, 9090);
        assert_eq!(two.problems, [""; 0]);
        two.gone(1, SERVICE);
        assert_eq!(two.web(), None);
    }

    #[test]
    fn what_both_say_alike_is_no_conflict() {
        let mut two = Two::new();
        two.applied(0, SERVICE);
        two.applied(1, SERVICE);
        assert_eq!(two.problems, [""; 0]);
        two.gone(1, SERVICE);
        assert_eq!(two.web().unwrap().0, 80);
    }

    #[test]
    fn all_must_have_told_everything() {
        let mut two = Two::new();
        two.take(1, RegistryEvent::Synced);
        assert!(!two.synced);
        two.take(0, RegistryEvent::Synced);
        assert!(two.synced);
    }
}
