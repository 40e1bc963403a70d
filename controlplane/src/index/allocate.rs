//! Addresses for hosts that need one and state none, as Istio gives them out: without an address of its
//! own a TCP service could not be told from any other on its port.
//!
//! An address depends on the host alone, unless two hosts meet at one; then the later in the alphabet
//! moves on. So every pilot comes to the same addresses, and new hosts leave others where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

use crate::model::names::Hostname;
use crate::snapshot::MeshSnapshot;

/// Addresses come from `240.240.0.0/16`, which nobody routes.
const NETWORK: [u8; 2] = [240, 240];

/// The address of each host that is to have one.
pub(super) fn addresses(state: &MeshSnapshot) -> BTreeMap<Hostname, IpAddr> {
    let entries = state.service_entries.values();
    let hosts: BTreeSet<&Hostname> = entries
        .flat_map(|entry| &entry.services)
        .filter(|service| {
            service.addresses.is_empty() && service.entry().is_some_and(|entry| entry.allocate)
        })
        .map(|service| &service.hostname)
        .collect();
    let mut taken = BTreeSet::new();
    let mut result = BTreeMap::new();
    for host in hosts {
        let digest = Sha256::digest(host.as_str());
        let start = u16::from_be_bytes([digest[0], digest[1]]);
        let free = (0..u16::MAX)
            .map(|step| start.wrapping_add(step))
            // The network's own address and its last one are left out.
            .find(|number| ![0, u16::MAX].contains(number) && !taken.contains(number));
        let Some(number) = free else { break };
        taken.insert(number);
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low);
        result.insert(host.clone(), IpAddr::V4(address));
    }
    result
}
