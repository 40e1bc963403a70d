//! Which service ports clients of a namespace reach, found once for each namespace of a mesh.
//!
//! Every listener and every route configuration of a namespace asks, and looking through all services
//! each time is what would make a push dearer with the size of the mesh.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::MeshSnapshot;
use crate::model::names::ObjectName;
use crate::model::service::{Service, ServicePort};

/// What has been found so far; shared by all snapshots with the same services, `Sidecars` and settings.
#[derive(Debug, Default)]
pub struct Reach(Mutex<HashMap<String, Found>>);

/// Services with the place of a port among theirs.
type Found = Arc<[(ObjectName, usize)]>;

impl PartialEq for Reach {
    /// It follows from the rest of a snapshot.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl MeshSnapshot {
    /// The ports that clients of a namespace reach, each with the service that they mean there.
    pub fn ports_for<'a>(
        &'a self,
        client: &str,
    ) -> impl Iterator<Item = (&'a Arc<Service>, &'a ServicePort)> {
        let found = self.reached_from(client);
        (0..found.len()).filter_map(move |at| {
            let (name, port) = &found[at];
            let service = self.services.get(name)?;
            Some((service, service.ports.get(*port)?))
        })
    }

    fn reached_from(&self, client: &str) -> Found {
        if let Some(found) = self.reach.0.lock().get(client) {
            return Arc::clone(found);
        }
        let sidecar = self.sidecar_of(client);
        let imported = self.ports_exported_to(client).filter(|(service, port)| {
            sidecar.is_none_or(|sidecar| {
                let namespace = &service.name.namespace;
                sidecar.imports(client, namespace, &service.hostname, port.port)
            })
        });
        let places = imported.filter_map(|(service, port)| {
            let mut ports = service.ports.iter();
            let at = ports.position(|other| std::ptr::eq(other, port))?;
            Some((service.name.clone(), at))
        });
        let found: Found = places.collect();
        self.reach
            .0
            .lock()
            .insert(client.to_owned(), Arc::clone(&found));
        found
    }
}
