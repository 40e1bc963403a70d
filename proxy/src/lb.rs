//! Load balancing: which host of a cluster gets the next request.
//!
//! Pure and seeded. [`Plan`] is what a cluster's hosts and their health amount to (priorities,
//! their loads, panic), computed once per configuration. [`Balancer`] is one worker's state for
//! one cluster: a cursor and a random generator. Hosts are indexes into the cluster's list.

pub mod priority;
pub mod round_robin;

use crate::resource::LbPolicy;
pub use priority::Plan;
use round_robin::RoundRobin;

/// What a balancer must know of the hosts.
pub trait Hosts {
    /// The weight of a host, at least 1.
    fn weight(&self, host: usize) -> u32;
    /// Requests under way at a host.
    fn active(&self, host: usize) -> u64;
}

/// One worker's balancer of one cluster.
#[derive(Debug)]
pub struct Balancer {
    policy: LbPolicy,
    rng: fastrand::Rng,
    /// One cursor per group of the plan, made when the group is first used.
    cursors: Vec<Option<RoundRobin>>,
}

impl Balancer {
    /// A balancer whose choices follow from `seed` alone.
    pub fn new(policy: LbPolicy, seed: u64) -> Self {
        Self {
            policy,
            rng: fastrand::Rng::with_seed(seed),
            cursors: Vec::new(),
        }
    }

    /// The next host, or `None` where the plan has none to give.
    pub fn pick(&mut self, plan: &Plan, hosts: &impl Hosts) -> Option<usize> {
        let group = plan.choose(self.rng.u32(0..100))?;
        let members = plan.members(group);
        match (members, self.policy) {
            ([], _) => None,
            ([only], _) => Some(*only),
            (_, LbPolicy::Random) => Some(random(&mut self.rng, members, hosts)),
            (_, LbPolicy::LeastRequest { choices }) => {
                Some(least_request(&mut self.rng, members, hosts, choices))
            }
            (_, LbPolicy::RoundRobin | LbPolicy::ClusterProvided) => {
                Some(self.in_turn(group, members, hosts))
            }
        }
    }

    /// As [`Balancer::pick`], trying up to `attempts` times more for a host that `avoid` lets
    /// pass (Envoy's `host_selection_retry_max_attempts`).
    pub fn pick_avoiding(
        &mut self,
        plan: &Plan,
        hosts: &impl Hosts,
        avoid: impl Fn(usize) -> bool,
        attempts: u32,
    ) -> Option<usize> {
        let mut host = self.pick(plan, hosts)?;
        for _ in 0..attempts {
            if !avoid(host) {
                break;
            }
            host = self.pick(plan, hosts)?;
        }
        Some(host)
    }

    fn in_turn(&mut self, group: usize, members: &[usize], hosts: &impl Hosts) -> usize {
        if self.cursors.len() <= group {
            self.cursors.resize_with(group + 1, || None);
        }
        let start = &mut self.rng;
        let cursor = self.cursors[group].get_or_insert_with(|| {
            let weights = members.iter().map(|&m| hosts.weight(m));
            RoundRobin::new(weights, start.usize(..))
        });
        members[cursor.turn()]
    }
}

/// Any host, by weight.
fn random(rng: &mut fastrand::Rng, members: &[usize], hosts: &impl Hosts) -> usize {
    let total: u64 = members.iter().map(|&m| u64::from(hosts.weight(m))).sum();
    let mut point = rng.u64(0..total.max(1));
    for &member in members {
        let weight = u64::from(hosts.weight(member));
        if point < weight {
            return member;
        }
        point -= weight;
    }
    members[0]
}

/// The host with the fewest requests for its weight among `choices` random ones; the first of
/// those where they are equal, so that an idle cluster is balanced by weight.
fn least_request(
    rng: &mut fastrand::Rng,
    members: &[usize],
    hosts: &impl Hosts,
    choices: u32,
) -> usize {
    let weighted = members
        .iter()
        .any(|&m| hosts.weight(m) != hosts.weight(members[0]));
    let mut sample = || {
        if weighted {
            random(rng, members, hosts)
        } else {
            members[rng.usize(0..members.len())]
        }
    };
    let mut best = sample();
    for _ in 1..choices.max(2) {
        let other = sample();
        let busier = u128::from(hosts.active(best)) * u128::from(hosts.weight(other));
        let calmer = u128::from(hosts.active(other)) * u128::from(hosts.weight(best));
        if calmer < busier {
            best = other;
        }
    }
    best
}

#[cfg(test)]
mod tests;
