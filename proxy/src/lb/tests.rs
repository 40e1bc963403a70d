use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::resource::HealthStatus;

struct Table(Vec<(u32, u64)>);

impl Hosts for Table {
    fn weight(&self, host: usize) -> u32 {
        self.0[host].0
    }

    fn active(&self, host: usize) -> u64 {
        self.0[host].1
    }
}

fn healthy(count: usize) -> Plan {
    Plan::new(vec![(0, HealthStatus::Healthy); count].into_iter(), 140, 50)
}

fn counts(policy: LbPolicy, plan: &Plan, table: &Table, picks: u32) -> HashMap<usize, u32> {
    let mut balancer = Balancer::new(policy, 42);
    let mut counts = HashMap::new();
    for _ in 0..picks {
        *counts
            .entry(balancer.pick(plan, table).unwrap())
            .or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_takes_each_in_turn() {
    let table = Table(vec![(1, 0); 3]);
    let mut balancer = Balancer::new(LbPolicy::RoundRobin, 7);
    let plan = healthy(3);
    let picks: Vec<_> = (0..6)
        .map(|_| balancer.pick(&plan, &table).unwrap())
        .collect();
    assert_eq!(picks[..3], picks[3..]);
    let mut sorted = picks[..3].to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2]);
}

#[test]
fn weighted_round_robin_is_exact_and_smooth() {
    let mut cursor = RoundRobin::new([5, 1, 1].into_iter(), 0);
    let picks: Vec<_> = (0..7).map(|_| cursor.turn()).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn least_request_avoids_the_busy_and_follows_weights_when_idle() {
    let busy = Table(vec![(1, 100), (1, 0), (1, 0)]);
    let policy = LbPolicy::LeastRequest { choices: 2 };
    let seen = counts(policy, &healthy(3), &busy, 9000);
    // Only where it is drawn twice: one in nine.
    assert!((800..1200).contains(&seen[&0]), "{seen:?}");

    let idle = Table(vec![(3, 0), (1, 0)]);
    let seen = counts(policy, &healthy(2), &idle, 8000);
    assert!((5700..6300).contains(&seen[&0]), "{seen:?}");
}

#[test]
fn random_follows_weights() {
    let table = Table(vec![(1, 0), (9, 0)]);
    let seen = counts(LbPolicy::Random, &healthy(2), &table, 10_000);
    assert!((850..1150).contains(&seen[&0]), "{seen:?}");
}

#[test]
fn previous_hosts_are_avoided_while_attempts_last() {
    let table = Table(vec![(1, 0); 2]);
    let mut balancer = Balancer::new(LbPolicy::RoundRobin, 1);
    let plan = healthy(2);
    for _ in 0..10 {
        let host = balancer.pick_avoiding(&plan, &table, |h| h == 0, 5);
        assert_eq!(host, Some(1));
    }
    assert!(balancer.pick_avoiding(&plan, &table, |_| true, 5).is_some());
}

/// The share of each priority, in percent, by exhaustion of the points.
fn shares(hosts: &[(u32, HealthStatus)], panic: u8) -> Vec<(Vec<usize>, u32)> {
    let plan = Plan::new(hosts.iter().copied(), 140, panic);
    let mut shares: Vec<(Vec<usize>, u32)> = Vec::new();
    for point in 0..100 {
        let Some(group) = plan.choose(point) else {
            return Vec::new();
        };
        let members = plan.members(group).to_vec();
        match shares.iter_mut().find(|(m, _)| *m == members) {
            Some((_, count)) => *count += 1,
            None => shares.push((members, 1)),
        }
    }
    shares
}

#[test]
fn load_flows_to_the_next_priority_as_envoy_says() {
    use HealthStatus::{Healthy, Unhealthy};
    // "Priority levels": 50 % healthy at P0 gives 70 % of the load there.
    let half = [(0, Healthy), (0, Unhealthy), (1, Healthy)];
    assert_eq!(shares(&half, 0), [(vec![0], 70), (vec![2], 30)]);
    // 72 % healthy counts as 100 %.
    let mut most = vec![(0, Healthy); 8];
    most.extend([(0, Unhealthy), (0, Unhealthy), (1, Healthy)]);
    assert_eq!(shares(&most, 0), [((0..8).collect(), 100)]);
    // None at all: everything goes down.
    let none = [(0, Unhealthy), (1, Healthy)];
    assert_eq!(shares(&none, 0), [(vec![1], 100)]);
}

#[test]
fn panic_leaves_health_out_of_account_and_zero_forbids_it() {
    use HealthStatus::{Draining, Healthy, Unhealthy};
    let few = [(0, Healthy), (0, Unhealthy), (0, Unhealthy), (0, Draining)];
    assert_eq!(shares(&few, 50), [(vec![0, 1, 2, 3], 100)]);
    assert_eq!(shares(&few, 0), [(vec![0], 100)]);
    let none = [(0, Unhealthy)];
    assert_eq!(shares(&none, 50), [(vec![0], 100)]);
    assert_eq!(shares(&none, 0), []);
    assert_eq!(shares(&[], 50), []);
}

#[test]
fn degraded_hosts_take_what_healthy_ones_cannot() {
    use HealthStatus::{Degraded, Healthy, Unhealthy};
    let mixed = [(0, Healthy), (0, Degraded), (0, Unhealthy), (0, Unhealthy)];
    assert_eq!(shares(&mixed, 0), [(vec![0], 50), (vec![1], 50)]);
}

fn any_health() -> impl Strategy<Value = HealthStatus> {
    prop_oneof![
        Just(HealthStatus::Unknown),
        Just(HealthStatus::Healthy),
        Just(HealthStatus::Unhealthy),
        Just(HealthStatus::Draining),
        Just(HealthStatus::Degraded),
    ]
}

proptest! {
    /// Every point has a host, and without panic that host is usable.
    #[test]
    fn a_usable_host_is_picked_wherever_there_is_one(
        hosts in prop::collection::vec((0u32..4, any_health(), 1u32..10, 0u64..5), 0..20),
        panic in 0u8..=100,
        seed: u64,
        policy in prop_oneof![
            Just(LbPolicy::RoundRobin),
            Just(LbPolicy::Random),
            Just(LbPolicy::LeastRequest { choices: 2 }),
        ],
    ) {
        let plan = Plan::new(hosts.iter().map(|h| (h.0, h.1)), 140, panic);
        let table = Table(hosts.iter().map(|h| (h.2, h.3)).collect());
        let mut balancer = Balancer::new(policy, seed);
        let usable = |host: usize| !matches!(
            hosts[host].1,
            HealthStatus::Unhealthy | HealthStatus::Draining
        );
        for _ in 0..50 {
            match balancer.pick(&plan, &table) {
                Some(host) => prop_assert!(panic > 0 || usable(host)),
                None => prop_assert!(
                    hosts.is_empty() || (panic == 0 && !(0..hosts.len()).any(usable))
                ),
            }
        }
    }

    /// Over a full cycle each host has exactly its weight in turns.
    #[test]
    fn round_robin_is_fair(weights in prop::collection::vec(1u32..50, 1..12), start: usize) {
        let mut cursor = RoundRobin::new(weights.iter().copied(), start);
        let equal = weights.iter().all(|w| *w == weights[0]);
        let cycle = if equal { u32::try_from(weights.len()).unwrap() } else { weights.iter().sum() };
        let mut seen = vec![0; weights.len()];
        for _ in 0..cycle {
            seen[cursor.turn()] += 1;
        }
        let expected = if equal { vec![1; weights.len()] } else { weights };
        prop_assert_eq!(seen, expected);
    }
}
