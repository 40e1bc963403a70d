//! Which service a host means, and for whom: several objects may claim one host, and each says which
//! namespaces may use it.

use std::net::IpAddr;
use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::names::{Hostname, ObjectName};
use crate::model::route::ExportTo;
use crate::model::service::{Service, ServicePort};

impl MeshSnapshot {
    /// The services with this host, in the order in which they claim it: the cluster's own before
    /// `ServiceEntries`, older ones before younger ones.
    pub fn services_with(&self, host: &Hostname) -> impl Iterator<Item = &Arc<Service>> {
        let names = self.hosts.get(host).into_iter().flatten();
        names.filter_map(|name| self.services.get(name))
    }

    /// Some service with this host, whoever may use it.
    pub fn service(&self, host: &Hostname) -> Option<&Arc<Service>> {
        self.services_with(host).next()
    }

    /// The service that clients of `client` reach at a host's port: one of their own namespace, else
    /// the first that they may use. Without a client the first of all.
    pub fn service_on(
        &self,
        host: &Hostname,
        port: u16,
        client: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let on_port = |service: &&Arc<Service>| service.port(port).is_some();
        let Some(client) = client else {
            return self.services_with(host).find(on_port);
        };
        let visible = |service: &&Arc<Service>| self.may_use(client, service);
        let mut candidates = self.services_with(host).filter(on_port).filter(visible);
        let first = candidates.next()?;
        if &*first.name.namespace == client {
            return Some(first);
        }
        candidates
            .find(|service| &*service.name.namespace == client)
            .or(Some(first))
    }

    /// The ports that clients of a namespace may be routed to, each with the service meant there: what
    /// a `Sidecar` does not let them call a route may still name.
    pub fn ports_exported_to<'a>(
        &'a self,
        client: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<Service>, &'a ServicePort)> {
        let visible = self
            .services
            .values()
            .filter(move |service| self.may_use(client, service));
        visible.flat_map(move |service| {
            let alone = self
                .hosts
                .get(&service.hostname)
                .is_none_or(|all| all.len() == 1);
            let meant = move |port: &&ServicePort| {
                alone
                    || self
                        .service_on(&service.hostname, port.port, Some(client))
                        .is_some_and(|meant| meant.name == service.name)
            };
            let ports = service.ports.iter().filter(meant);
            ports.map(move |port| (service, port))
        })
    }

    /// Whether pods of a namespace may use a service.
    pub fn may_use(&self, client: &str, service: &Service) -> bool {
        service.export_to.includes(client)
    }

    /// The addresses that clients know a service by: its own, else the one that was allocated.
    pub fn addresses_of(&self, service: &Service) -> Vec<IpAddr> {
        if !service.addresses.is_empty() {
            return service.addresses.clone();
        }
        let may_have_one = service.entry().is_some_and(|entry| entry.allocate);
        let allocated = may_have_one.then(|| self.allocated.get(&service.hostname));
        allocated.flatten().copied().into_iter().collect()
    }

    /// The order in which services claim a host. One that everybody may use comes before others, so that
    /// what pods of a node share is what most of them mean.
    pub(crate) fn claim_order(service: &Service) -> (bool, bool, bool, Option<String>, ObjectName) {
        (
            service.entry().is_some(),
            service.export_to != ExportTo::Everyone,
            service.created.is_none(),
            service.created.clone(),
            service.name.clone(),
        )
    }
}
