//! Two fixed services, `hello` and `world`, with two versions each: Istio's mock registry.

use tokio_util::sync::CancellationToken;

use super::{Registry, RegistryError, RegistryEvent, Running, Sink};
use crate::kube::document::{self, Contents};

const OBJECTS: &str = include_str!("mock.yaml");
const NAME: &str = "mock";

/// The registry.
#[derive(Debug)]
pub(super) struct MockRegistry {
    contents: Contents,
}

impl MockRegistry {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            contents: document::read("mock.yaml", OBJECTS, domain),
        }
    }
}

impl Registry for MockRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let applied = self.contents.objects;
            for event in [
                RegistryEvent::Changed {
                    applied,
                    deleted: Vec::new(),
                },
                RegistryEvent::Synced,
            ] {
                sink.send(event)
                    .await
                    .map_err(|_| RegistryError::Closed { name: NAME })?;
            }
            stop.cancelled().await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::model::mesh::MeshConfig;
    use crate::model::names::ObjectName;

    #[test]
    fn both_services_have_two_versions_on_every_port() {
        let registry = MockRegistry::new("cluster.local");
        assert_eq!(registry.contents.problems, []);
        let mut index = Index::new(MeshConfig::default());
        for object in registry.contents.objects {
            index.apply(object.object);
        }
        let snapshot = index.snapshot();
        for name in ["hello", "world"] {
            let name = ObjectName::new("default", name);
            let service = &snapshot.services[&name];
            assert_eq!(service.ports.len(), 6);
            for port in &service.ports {
                assert_eq!(snapshot.endpoints_of(&name, port.port).len(), 2);
            }
        }
    }
}
