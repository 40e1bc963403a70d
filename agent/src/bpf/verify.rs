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

    /// How many elements each pod has in `LISTENERS`, for [`Self::verify`]: listing is done once for all.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn listener_elements(&self) -> Result<HashMap<u64, usize>, BpfError> {
        let mut counts = HashMap::new();
        for cookie in self.maps.listeners.cookies()? {
            *counts.entry(cookie).or_default() += 1;
        }
        Ok(counts)
    }

    /// What of an enrolled pod's capture is not as it was written; nothing for a pod that this agent has not
    /// enrolled.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn verify(
        &self,
        netns_cookie: u64,
        netns: BorrowedFd<'_>,
        listeners: &HashMap<u64, usize>,
    ) -> Result<Vec<Breakage>, BpfError> {
        let Some(decided) = self.decided.get(&netns_cookie) else {
            return Ok(Vec::new());
        };
        let mut broken = Vec::new();
        if !self.lookup_ids(netns)?.1 {
            broken.push(Breakage {
                cause: Cause::Lookup,
                detail: format!("program {LOOKUP} is not attached to the pod's namespace"),
            });
        }
        if let Some(detail) = self.difference(netns_cookie, decided, listeners)? {
            broken.push(Breakage {
                cause: Cause::Enrolment,
                detail,
            });
        }
        Ok(broken)
    }

    /// Programs of others that choose sockets in a pod's namespace.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be asked.
    pub fn foreign_lookups(&self, netns: BorrowedFd<'_>) -> Result<Vec<ForeignProgram>, BpfError> {
        let (ids, _) = self.lookup_ids(netns)?;
        let own = self.lookup_id()?;
        let others = ids.iter().filter(|id| **id != own);
        Ok(others
            .map(|id| ForeignProgram {
                id: *id,
                hook: hook_name(SK_LOOKUP_ATTACH_TYPE),
                at: None,
                order: place(&ids, *id, &[own]),
            })
            .collect())
    }

    fn lookup_id(&self) -> Result<u32, BpfError> {
        sys::program_id(self.lookup.as_fd()).map_err(|source| unreadable(source, LOOKUP))
    }

    /// The namespace's programs in order, and whether ours is among them.
    fn lookup_ids(&self, netns: BorrowedFd<'_>) -> Result<(Vec<u32>, bool), BpfError> {
        let ids = sys::query(netns, SK_LOOKUP_ATTACH_TYPE, Attached::Here)
            .map_err(|source| unreadable(source, LOOKUP))?;
        let ours = ids.contains(&self.lookup_id()?);
        Ok((ids, ours))
    }

    /// The first thing in the maps that is not as it was written.
    fn difference(
        &self,
        cookie: u64,
        decided: &Decided,
        listeners: &HashMap<u64, usize>,
    ) -> Result<Option<String>, BpfError> {
        match self.maps.policies.get(cookie)? {
            None => return Ok(Some("its element of POLICIES is gone".to_owned())),
            Some(policy) if plain(policy) != plain(decided.policy) => {
                return Ok(Some("its element of POLICIES was altered".to_owned()));
            }
            Some(_) => {}
        }
        for ip in &decided.ips {
            if self.maps.addresses.owner(*ip)? != Some(cookie) {
                return Ok(Some(format!("ADDRESSES does not give {ip} to the pod")));
            }
        }
        let there = listeners.get(&cookie).copied().unwrap_or_default();
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

/// Whether inbound connections of a namespace are steered by a program of Millrace's, of whatever version.
///
/// # Errors
///
/// If the namespace cannot be asked.
pub fn is_steered(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let ids = sys::query(netns, SK_LOOKUP_ATTACH_TYPE, Attached::Here)?;
    // One that went meanwhile has no name.
    let ours = |id: &u32| sys::program_name(*id).is_ok_and(|name| name == LOOKUP);
    Ok(ids.iter().any(ours))
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
