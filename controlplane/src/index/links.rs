//! Who is concerned by an object, without looking through all others.
//!
//! Kept by the index beside its tables, and changed with every object: which slices a service has, which
//! slices name a pod or an address, which pods claim an address, which services may select a pod.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::Kind;
use crate::model::endpoint::EndpointSlice;
use crate::model::names::ObjectName;
use crate::model::service::Service;
use crate::model::workload::{Labels, Workload};
use crate::snapshot::Table;

/// An `EndpointSlice`'s or Endpoints object's kind and name.
pub(super) type SliceId = (Kind, ObjectName);

/// The links.
#[derive(Debug, Default)]
pub(super) struct Links {
    of_service: Table<ObjectName, Vec<SliceId>>,
    of_pod: Table<ObjectName, Vec<SliceId>>,
    /// By addresses whose pod a slice does not name.
    of_address: Table<IpAddr, Vec<SliceId>>,
    claims: Table<IpAddr, Vec<ObjectName>>,
    /// Services by their namespace and the first pair of their selector.
    selecting: Table<Pair, Vec<ObjectName>>,
}

/// A namespace and a label.
type Pair = (Arc<str>, String, String);

impl Links {
    /// A slice is new, different or gone.
    pub(super) fn set_slice(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) {
        let id = (kind, name.clone());
        let service = |slice: Option<&EndpointSlice>| slice.map(|slice| slice.service.clone());
        refile(&mut self.of_service, service(old), service(new), &id);
        refile(&mut self.of_pod, pods_in(old), pods_in(new), &id);
        refile(
            &mut self.of_address,
            addresses_in(old),
            addresses_in(new),
            &id,
        );
    }

    /// A pod is new, different or gone.
    pub(super) fn set_workload(
        &mut self,
        name: &ObjectName,
        old: Option<&Workload>,
        new: Option<&Workload>,
    ) {
        let claims = |workload: Option<&Workload>| {
            let own = workload.filter(|workload| !workload.host_network);
            own.map(|own| own.addresses.clone()).unwrap_or_default()
        };
        refile(&mut self.claims, claims(old), claims(new), name);
    }

    /// A service is new, different or gone.
    pub(super) fn set_service(
        &mut self,
        name: &ObjectName,
        old: Option<&Service>,
        new: Option<&Service>,
    ) {
        let pair = |service: Option<&Service>| {
            let (key, value) = service?.selector.first_key_value()?;
            Some((Arc::clone(&name.namespace), key.clone(), value.clone()))
        };
        refile(&mut self.selecting, pair(old), pair(new), name);
    }

    /// The slices of a service, in the order of their names, `Endpoints` objects apart.
    pub(super) fn slices_of(&self, service: &ObjectName, kind: Kind) -> Vec<&ObjectName> {
        let all = self.of_service.get(service).into_iter().flatten();
        all.filter(|(of, _)| *of == kind)
            .map(|(_, name)| name)
            .collect()
    }

    /// Whether anything states the endpoints of a service.
    pub(super) fn are_stated(&self, service: &ObjectName) -> bool {
        self.of_service.contains_key(service)
    }

    /// The slices that name a pod or one of these addresses.
    pub(super) fn slices_naming<'a>(
        &'a self,
        pod: &ObjectName,
        addresses: impl Iterator<Item = &'a IpAddr>,
    ) -> BTreeSet<&'a SliceId> {
        let by_name = self.of_pod.get(pod).into_iter().flatten();
        let by_address = addresses.filter_map(|address| self.of_address.get(address));
        by_name.chain(by_address.flatten()).collect()
    }

    /// The pods that claim an address.
    pub(super) fn claimants(&self, address: &IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.claims.get(address).into_iter().flatten()
    }

    /// Services of a namespace whose selector may match these labels.
    pub(super) fn may_select<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a ObjectName> {
        let pairs = labels.iter().filter_map(move |(key, value)| {
            let pair = (Arc::clone(namespace), key.clone(), value.clone());
            self.selecting.get(&pair)
        });
        pairs.flatten()
    }
}

fn pods_in(slice: Option<&EndpointSlice>) -> BTreeSet<ObjectName> {
    let groups = slice.into_iter().flat_map(|slice| &slice.groups);
    let endpoints = groups.flat_map(|group| &group.endpoints);
    endpoints.filter_map(|stated| stated.pod.clone()).collect()
}

fn addresses_in(slice: Option<&EndpointSlice>) -> BTreeSet<IpAddr> {
    let groups = slice.into_iter().flat_map(|slice| &slice.groups);
    let endpoints = groups.flat_map(|group| &group.endpoints);
    let unnamed = endpoints.filter(|stated| stated.pod.is_none());
    unnamed.map(|stated| stated.address).collect()
}

/// Takes a value from where it was filed, and files it where it belongs now.
fn refile<K: Ord + Clone, V: Ord + Clone>(
    table: &mut Table<K, Vec<V>>,
    old: impl IntoIterator<Item = K>,
    new: impl IntoIterator<Item = K>,
    value: &V,
) {
    for key in old {
        if let Some(values) = table.get_mut(&key) {
            values.retain(|other| other != value);
            if values.is_empty() {
                table.remove(&key);
            }
        }
    }
    for key in new {
        match table.get_mut(&key) {
            Some(values) => {
                if let Err(at) = values.binary_search(value) {
                    values.insert(at, value.clone());
                }
            }
            None => {
                table.insert(key, vec![value.clone()]);
            }
        }
    }
}
