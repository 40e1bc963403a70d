//! Whether the kernel still has what was decided: programs attached, a pod's elements in the maps.
//!
//! Reads only. `integrity` asks every few seconds and lets the reconciler repair what is named here.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use millrace_ebpf_abi::{ABI_VERSION, Acceleration, CidrKey, LISTENER_SLOTS, PodPolicy, PortKey};
use millrace_runtime::handoff::{Breakage, Cause};

use super::enrolment::{PodEnrolment, by_family};
use super::foreign::{ForeignProgram, place};
use super::loader::Bpf;
use super::programs::{LOOKUP, SK_LOOKUP_ATTACH_TYPE, hook_name};
use super::sys::Attached;
use super::{BpfError, sys};

/// What was written for a pod.
pub(super) struct Decided {
    policy: PodPolicy,
    ips: Vec<IpAddr>,
    ports: Vec<(PortKey, u8)>,
    cidrs: Vec<(u32, CidrKey, u8)>,
    listeners: usize,
}

/// What the maps hold of all pods, and the program that is to choose sockets in each.
pub struct Listing {
    own_lookup: u32,
    /// How many elements each pod has in `LISTENERS`.
    listeners: HashMap<u64, usize>,
    policies: HashMap<u64, PodPolicy>,
    addresses: HashMap<IpAddr, u64>,
}

impl Decided {
    pub(super) fn of(pod: &PodEnrolment<'_>, policy: PodPolicy) -> Self {
        let slots = usize::from(LISTENER_SLOTS);
        let listeners = by_family(pod.netns_cookie, &pod.inbound_listeners)
            .map(|(v4, v6)| v4.len().min(slots) + v6.len().min(slots))
            .unwrap_or_default();
        Self {
            policy,
            ips: pod.ips.clone(),
            ports: pod.policy.port_elements(policy.rule_set),
            cidrs: pod.policy.cidr_elements(policy.rule_set, &pod.ips),
            listeners,
        }
    }
}

impl Bpf {
    /// Programs of the node's cgroup that are not attached there, by name; none while those of another ABI
    /// version are in charge.
    ///
    /// # Errors
    ///
    /// If the cgroup cannot be asked.
    pub fn detached(&self) -> Result<Vec<&'static str>, BpfError> {
        if self.is_waiting() {
            return Ok(Vec::new());
        }
        let error = |source| BpfError::Cgroup {
            path: self.cgroup.clone(),
            source,
        };
        let cgroup = File::open(&self.cgroup).map_err(error)?;
        let mut detached = Vec::new();
        for (program, fd) in &self.programs {
            let id = sys::program_id(fd.as_fd()).map_err(error)?;
            let there = sys::query(cgroup.as_fd(), program.attach_type, Attached::Here);
            if !there.map_err(error)?.contains(&id) {
                detached.push(program.name);
            }
        }
        Ok(detached)
    }

    /// Attaches what is detached and writes the node's own element anew.
    ///
    /// # Errors
    ///
    /// If a program cannot be attached.
    pub fn restore(&mut self) -> Result<(), BpfError> {
        self.attach_all()?;
        let node = self.maps.node.read()?;
        self.maps.node.write(millrace_ebpf_abi::NodeConfig {
            host_netns_cookie: self.host_netns_cookie,
            abi_version: ABI_VERSION,
            ..node
        })
    }

    /// Lets the programs of these hooks run before all that are attached now, where the kernel can do that.
    ///
    /// # Errors
    ///
    /// If one cannot be attached.
    pub fn go_first(&self, hooks: &[&str]) -> Result<(), BpfError> {
        hooks.iter().try_for_each(|hook| self.attach_first(hook))
    }

    /// What the maps hold of all pods, for [`Self::verify`]: listing is done once for all.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn listing(&self) -> Result<Listing, BpfError> {
        let mut listeners = HashMap::new();
        for cookie in self.maps.listeners.cookies()? {
            *listeners.entry(cookie).or_default() += 1;
        }
        Ok(Listing {
            own_lookup: sys::program_id(self.lookup.as_fd())
                .map_err(|source| unreadable(source, LOOKUP))?,
            listeners,
            policies: self.maps.policies.all()?.into_iter().collect(),
            addresses: self.maps.addresses.all()?.into_iter().collect(),
        })
    }

    /// What of an enrolled pod's capture is not as it was written, nothing for a pod that this agent has not
    /// enrolled; and programs of others that choose sockets in its namespace.
    ///
    /// # Errors
    ///
    /// If a map cannot be read, or the namespace not be asked.
    pub fn verify(
        &self,
        netns_cookie: u64,
        netns: BorrowedFd<'_>,
        listing: &Listing,
    ) -> Result<(Vec<Breakage>, Vec<ForeignProgram>), BpfError> {
        let ids = sys::query(netns, SK_LOOKUP_ATTACH_TYPE, Attached::Here)
            .map_err(|source| unreadable(source, LOOKUP))?;
        let own = listing.own_lookup;
        let others = ids.iter().filter(|id| **id != own);
        let foreign = others.map(|id| ForeignProgram {
            id: *id,
            hook: hook_name(SK_LOOKUP_ATTACH_TYPE),
            at: None,
            order: place(&ids, *id, &[own]),
        });
        let mut broken = Vec::new();
        if let Some(decided) = self.decided.get(&netns_cookie) {
            if !ids.contains(&own) {
                broken.push(Breakage {
                    cause: Cause::Lookup,
                    detail: format!("program {LOOKUP} is not attached to the pod's namespace"),
                });
            }
            if let Some(detail) = self.difference(netns_cookie, decided, listing)? {
                broken.push(Breakage {
                    cause: Cause::Enrolment,
                    detail,
                });
            }
        }
        Ok((broken, foreign.collect()))
    }

    /// The first thing in the maps that is not as it was written.
    fn difference(
        &self,
        cookie: u64,
        decided: &Decided,
        listing: &Listing,
    ) -> Result<Option<String>, BpfError> {
        match listing.policies.get(&cookie) {
            None => return Ok(Some("its element of POLICIES is gone".to_owned())),
            Some(policy) if plain(*policy) != plain(decided.policy) => {
                return Ok(Some("its element of POLICIES was altered".to_owned()));
            }
            Some(_) => {}
        }
        for ip in &decided.ips {
            if listing.addresses.get(&ip.to_canonical()) != Some(&cookie) {
                return Ok(Some(format!("ADDRESSES does not give {ip} to the pod")));
            }
        }
        let there = listing.listeners.get(&cookie).copied().unwrap_or_default();
        if there < decided.listeners {
            return Ok(Some(format!(
                "LISTENERS has {there} of its {} sockets",
                decided.listeners
            )));
        }
        for (key, rule) in &decided.ports {
            // An excluded port may be included as well, and wins.
            let wins = decided.ports.iter().rev().find(|(other, _)| other == key);
            let rule = wins.map_or(*rule, |(_, rule)| *rule);
            if !self.maps.rules.has_port(key, rule)? {
                return Ok(Some("an element of PORT_RULES is missing".to_owned()));
            }
        }
        for (prefix, key, rule) in &decided.cidrs {
            let same = |other: &&(u32, CidrKey, u8)| other.0 == *prefix && other.1 == *key;
            let wins = decided.cidrs.iter().rev().find(same);
            let rule = wins.map_or(*rule, |(_, _, rule)| *rule);
            if !self.maps.rules.has_cidr(*prefix, *key, rule)? {
                return Ok(Some("an element of CIDR_RULES is missing".to_owned()));
            }
        }
        Ok(None)
    }
}

/// Which programs that choose sockets are Millrace's, of whatever version; each is asked for its name once. To be
/// kept no longer than one round over the pods takes: a number means another program some day.
#[derive(Debug, Default)]
pub struct Steering(HashMap<u32, bool>);

impl Steering {
    /// Whether inbound connections of a namespace are steered by one of them.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be asked.
    pub fn is_steered(&mut self, netns: BorrowedFd<'_>) -> io::Result<bool> {
        let ids = sys::query(netns, SK_LOOKUP_ATTACH_TYPE, Attached::Here)?;
        // One that went meanwhile has no name.
        let is_ours = |id: u32| sys::program_name(id).is_ok_and(|name| name == LOOKUP);
        let mut known = ids
            .iter()
            .map(|id| *self.0.entry(*id).or_insert_with(|| is_ours(*id)));
        Ok(known.any(|ours| ours))
    }
}

/// Acceleration may be suspended meanwhile.
fn plain(policy: PodPolicy) -> PodPolicy {
    policy.with_acceleration(Acceleration::Off)
}

fn unreadable(source: io::Error, program: &'static str) -> BpfError {
    BpfError::Attach {
        program,
        target: "a pod's namespace".to_owned(),
        source,
    }
}
