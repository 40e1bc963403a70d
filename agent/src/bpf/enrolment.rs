//! Who is captured: pods come and go by one write of their policy.
//!
//! Everything that a policy refers to (rules, addresses, listeners, the `sk_lookup` link) is in place before
//! the policy is written and removed only after it is gone, so a connection is captured once or not at all.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use millrace_ebpf_abi::{AF_INET, AF_INET6, PodPolicy};
use nix::sys::stat::fstat;
use socket2::SockRef;

use super::attach::has_program;
use super::loader::Bpf;
use super::pins::unpin;
use super::programs::{LOOKUP, SK_LOOKUP_ATTACH_TYPE};
use super::verify::Decided;
use super::{BpfError, CapturePolicy, sys};

/// What says that a policy has rules besides.
const RULES: u32 =
    PodPolicy::OUTBOUND_PORT_RULES | PodPolicy::INBOUND_PORT_RULES | PodPolicy::OUTBOUND_CIDR_RULES;

/// A pod to be captured.
#[derive(Debug)]
pub struct PodEnrolment<'a> {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// The namespace itself, to attach the inbound program to.
    pub netns: BorrowedFd<'a>,
    /// Its addresses; the first of each family is the source of what it connects.
    pub ips: Vec<IpAddr>,
    /// How it is captured.
    pub policy: CapturePolicy,
    /// Its inbound listeners, of any family; of each `SO_REUSEPORT` group a few suffice.
    pub inbound_listeners: Vec<BorrowedFd<'a>>,
}

/// A captured pod, as the maps have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Enrolled {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its policy.
    pub policy: PodPolicy,
}

impl Bpf {
    /// Captures a pod, or changes how an enrolled one is captured.
    ///
    /// # Errors
    ///
    /// If the pod cannot be captured (host network, an inbound policy without address or listener) or a
    /// map is full. A pod that was not captured before is not captured then, another stays as it was.
    pub fn enroll(&mut self, pod: &PodEnrolment<'_>) -> Result<(), BpfError> {
        self.check(pod)?;
        let before = self.maps.policies.get(pod.netns_cookie)?;
        if let Some(policy) = before
            && policy.flags & RULES == 0
            && policy == pod.policy.words(policy.rule_set, &pod.ips)
        {
            // An agent that starts finds a node full of them.
            self.place(pod)?;
            self.decided
                .insert(pod.netns_cookie, Decided::of(pod, policy));
            return Ok(());
        }
        let rule_set = self.next_rule_set;
        self.next_rule_set += 1;
        let policy = pod.policy.words(rule_set, &pod.ips);
        let written = self
            .prepare(pod, rule_set)
            .and_then(|()| self.maps.policies.insert(pod.netns_cookie, policy));
        if let Err(error) = written {
            self.undo(pod.netns_cookie, rule_set, before.is_some());
            return Err(error);
        }
        self.decided
            .insert(pod.netns_cookie, Decided::of(pod, policy));
        tracing::info!(
            netns_cookie = pod.netns_cookie,
            ips = ?pod.ips,
            again = before.is_some(),
            "pod captured by eBPF"
        );
        if let Some(before) = before {
            self.maps.rules.remove_sets(|set| set == before.rule_set)?;
            self.release_addresses(pod.netns_cookie, &pod.ips)?;
        }
        Ok(())
    }

    /// Ends the capture of a pod; one that is not captured is fine.
    ///
    /// # Errors
    ///
    /// If a map or a pin cannot be changed. The pod is not captured any more unless `POLICIES` is named.
    pub fn withdraw(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        let before = self.maps.policies.get(netns_cookie)?;
        self.decided.remove(&netns_cookie);
        self.maps.policies.remove(netns_cookie)?;
        self.forget(netns_cookie)?;
        if let Some(before) = before {
            self.maps.rules.remove_sets(|set| set == before.rule_set)?;
            tracing::info!(netns_cookie, "pod no longer captured by eBPF");
        }
        Ok(())
    }

    /// Every captured pod.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn enrolled(&self) -> Result<Vec<Enrolled>, BpfError> {
        let addresses = self.maps.addresses.all()?;
        let policies = self.maps.policies.all()?;
        Ok(policies
            .into_iter()
            .map(|(netns_cookie, policy)| Enrolled {
                netns_cookie,
                ips: addresses
                    .iter()
                    .filter(|(_, owner)| *owner == netns_cookie)
                    .map(|(ip, _)| *ip)
                    .collect(),
                policy,
            })
            .collect())
    }

    /// Removes what a killed agent left half done: everything that no policy refers to.
    pub(super) fn sweep(&mut self) -> Result<(), BpfError> {
        let policies = self.maps.policies.all()?;
        let enrolled: HashSet<u64> = policies.iter().map(|(cookie, _)| *cookie).collect();
        let rule_sets: HashSet<u64> = policies.iter().map(|(_, it)| it.rule_set).collect();
        let mut strays = self.pins.lookup_cookies()?;
        strays.extend(
            self.maps
                .addresses
                .all()?
                .into_iter()
                .map(|(_, cookie)| cookie),
        );
        strays.extend(self.maps.listeners.cookies()?);
        strays.extend(self.maps.acceleration.cookies()?);
        strays.extend(
            self.maps
                .telemetry
                .all()?
                .into_iter()
                .map(|traffic| traffic.netns_cookie),
        );
        strays.retain(|cookie| !enrolled.contains(cookie));
        strays.sort_unstable();
        strays.dedup();
        for cookie in strays {
            self.forget(cookie)?;
        }
        self.maps
            .rules
            .remove_sets(|set| !rule_sets.contains(&set))?;
        self.next_rule_set = policies
            .iter()
            .map(|(_, policy)| policy.rule_set)
            .max()
            .unwrap_or(0)
            + 1;
        Ok(())
    }

    /// Replaces the inbound program of every enrolled pod; links of vanished namespaces are removed.
    pub(super) fn refresh_lookups(&self) -> Result<u32, BpfError> {
        let mut replaced = 0;
        for cookie in self.pins.lookup_cookies()? {
            let path = self.pins.lookup(cookie);
            let link = sys::get(&path).map_err(BpfError::bpffs("opening", &path))?;
            let info = sys::link_info(link.as_fd()).map_err(BpfError::bpffs("examining", &path))?;
            if info.netns_inode() == 0 {
                unpin(&path)?;
                continue;
            }
            if !has_program(info, self.lookup.as_fd()) {
                sys::link_update(link.as_fd(), self.lookup.as_fd())
                    .map_err(attach_error(cookie))?;
                replaced += 1;
            }
        }
        Ok(replaced)
    }

    fn check(&self, pod: &PodEnrolment<'_>) -> Result<(), BpfError> {
        let reason = if pod.netns_cookie == 0 {
            "its cookie is zero"
        } else if pod.netns_cookie == self.host_netns_cookie {
            "it is the host's own namespace (host-network pods cannot be captured)"
        } else if pod.policy.inbound && pod.ips.is_empty() {
            "inbound capture needs the pod's addresses"
        } else if pod.policy.inbound && pod.inbound_listeners.is_empty() {
            "inbound capture needs the pod's inbound listeners"
        } else {
            return Ok(());
        };
        Err(refused(pod.netns_cookie, reason.to_owned()))
    }

    /// Puts everything in place that the policy will refer to.
    fn prepare(&mut self, pod: &PodEnrolment<'_>, rule_set: u64) -> Result<(), BpfError> {
        self.maps
            .rules
            .insert_ports(&pod.policy.port_elements(rule_set))?;
        self.maps
            .rules
            .insert_cidrs(&pod.policy.cidr_elements(rule_set, &pod.ips))?;
        self.place(pod)
    }

    /// The same but for rules; what is there already is left alone.
    fn place(&mut self, pod: &PodEnrolment<'_>) -> Result<(), BpfError> {
        let cookie = pod.netns_cookie;
        self.maps.telemetry.start(cookie)?;
        self.maps.acceleration.start(cookie)?;
        let (v4, v6) = by_family(cookie, &pod.inbound_listeners)?;
        self.maps.listeners.replace(cookie, family(AF_INET), &v4)?;
        self.maps.listeners.replace(cookie, family(AF_INET6), &v6)?;
        for ip in &pod.ips {
            self.maps.addresses.assign(*ip, cookie)?;
        }
        self.ensure_lookup(pod)
    }

    /// Attaches the inbound program to the pod's namespace, unless it is.
    fn ensure_lookup(&self, pod: &PodEnrolment<'_>) -> Result<(), BpfError> {
        let path = self.pins.lookup(pod.netns_cookie);
        let inode = fstat(pod.netns)
            .map_err(|error| {
                refused(
                    pod.netns_cookie,
                    format!("its namespace descriptor cannot be examined: {error}"),
                )
            })?
            .st_ino;
        match sys::get(&path) {
            Ok(link) if is_attached_to(&link, inode) => return Ok(()),
            // A pin of a namespace that is gone.
            Ok(_) => unpin(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BpfError::bpffs("opening", path)(error)),
        }
        let link = sys::link_create(self.lookup.as_fd(), pod.netns, SK_LOOKUP_ATTACH_TYPE)
            .map_err(attach_error(pod.netns_cookie))?;
        sys::pin(link.as_fd(), &path).map_err(BpfError::bpffs("pinning", path))
    }

    /// After a failed preparation: an enrolled pod keeps what it had, a new one leaves nothing.
    fn undo(&mut self, netns_cookie: u64, rule_set: u64, was_enrolled: bool) {
        let rules = self.maps.rules.remove_sets(|set| set == rule_set);
        let rest = if was_enrolled {
            Ok(())
        } else {
            self.forget(netns_cookie)
        };
        for error in [rules.err(), rest.err()].into_iter().flatten() {
            tracing::warn!(netns_cookie, %error, "could not clean up after a failed enrolment");
        }
    }

    /// Removes all of a pod but its policy and rules.
    fn forget(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        unpin(&self.pins.lookup(netns_cookie))?;
        self.release_addresses(netns_cookie, &[])?;
        self.maps
            .listeners
            .replace(netns_cookie, family(AF_INET), &[])?;
        self.maps
            .listeners
            .replace(netns_cookie, family(AF_INET6), &[])?;
        self.maps.acceleration.stop(netns_cookie)?;
        self.maps.telemetry.stop(netns_cookie)
    }

    fn release_addresses(&mut self, netns_cookie: u64, keep: &[IpAddr]) -> Result<(), BpfError> {
        for ip in self.maps.addresses.of(netns_cookie)? {
            if !keep.iter().any(|kept| kept.to_canonical() == ip) {
                self.maps.addresses.release(ip, netns_cookie)?;
            }
        }
        Ok(())
    }
}

/// Which listeners take IPv4 and which IPv6 packets; a dual-stack one takes both.
pub(super) fn by_family<'a>(
    netns_cookie: u64,
    listeners: &[BorrowedFd<'a>],
) -> Result<(Vec<BorrowedFd<'a>>, Vec<BorrowedFd<'a>>), BpfError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for listener in listeners {
        let unusable = |error: io::Error| {
            refused(
                netns_cookie,
                format!("an inbound listener is unusable: {error}"),
            )
        };
        let made_in = sys::socket_netns_cookie(*listener).map_err(unusable)?;
        if made_in != netns_cookie {
            return Err(refused(
                netns_cookie,
                format!("an inbound listener belongs to network namespace {made_in}"),
            ));
        }
        let socket = SockRef::from(listener);
        if socket.domain().map_err(unusable)? == socket2::Domain::IPV4 {
            v4.push(*listener);
        } else {
            v6.push(*listener);
            if !socket.only_v6().map_err(unusable)? {
                v4.push(*listener);
            }
        }
    }
    Ok((v4, v6))
}

fn is_attached_to(link: &OwnedFd, netns_inode: u64) -> bool {
    sys::link_info(link.as_fd()).is_ok_and(|info| info.netns_inode() == netns_inode)
}

fn attach_error(netns_cookie: u64) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Attach {
        program: LOOKUP,
        target: format!("network namespace {netns_cookie}"),
        source,
    }
}

fn refused(netns_cookie: u64, reason: String) -> BpfError {
    BpfError::Enrolment {
        netns_cookie,
        reason,
    }
}

fn family(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
