//! Priorities, health and panic, as Envoy computes them.
//!
//! A priority that is not healthy enough passes load on to the next; degraded hosts are used
//! where healthy ones do not suffice; below the panic threshold health is left out of account
//! (Envoy's `LoadBalancerBase`, "Priority levels", "Panic threshold").

use crate::resource::HealthStatus;

/// What hosts and their health amount to.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Groups of hosts that share a percentage of the load.
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    /// Percent of the load; all groups together have 100, or there is no group.
    load: u32,
    members: Vec<usize>,
}

/// Hosts of one priority.
#[derive(Clone, Debug, Default)]
struct Level {
    all: Vec<usize>,
    healthy: Vec<usize>,
    degraded: Vec<usize>,
}

impl Level {
    /// Share that counts as available, overrated by `factor` percent, at most 100.
    fn availability(&self, count: usize, factor: u32) -> u32 {
        if self.all.is_empty() {
            return 0;
        }
        let percent = u64::from(factor) * count as u64 / self.all.len() as u64;
        u32::try_from(percent.min(100)).unwrap_or(100)
    }

    fn in_panic(&self, threshold: u32) -> bool {
        let usable = (self.healthy.len() + self.degraded.len()) as u64;
        match self.all.len() as u64 {
            0 => threshold > 0,
            all => usable * 100 / all < u64::from(threshold),
        }
    }
}

impl Plan {
    /// The plan for hosts given by priority and health, in the order of the cluster's list.
    pub fn new(
        hosts: impl Iterator<Item = (u32, HealthStatus)>,
        overprovisioning_factor: u32,
        panic_threshold: u8,
    ) -> Self {
        let levels = levels(hosts);
        let factor = overprovisioning_factor.max(100);
        let threshold = u32::from(panic_threshold.min(100));
        let healthy: Vec<u32> = levels
            .iter()
            .map(|l| l.availability(l.healthy.len(), factor))
            .collect();
        let degraded: Vec<u32> = levels
            .iter()
            .map(|l| l.availability(l.degraded.len(), factor))
            .collect();
        let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
        let panics: Vec<bool> = levels
            .iter()
            .map(|l| available < 100 && l.in_panic(threshold))
            .collect();
        if threshold > 0 && panics.iter().all(|p| *p) {
            return Self::total_panic(levels);
        }
        Self::spread(levels, &healthy, &degraded, available, &panics)
    }

    /// The group that a point in `0..100` falls into.
    pub fn choose(&self, point: u32) -> Option<usize> {
        if let [_only] = self.groups.as_slice() {
            return Some(0);
        }
        let mut end = 0;
        for (index, group) in self.groups.iter().enumerate() {
            end += group.load;
            if point < end {
                return Some(index);
            }
        }
        self.groups.len().checked_sub(1)
    }

    /// The hosts of a group.
    pub fn members(&self, group: usize) -> &[usize] {
        &self.groups[group].members
    }

    /// No priority has enough healthy hosts: load goes to all hosts, by their number.
    fn total_panic(levels: Vec<Level>) -> Self {
        let total: usize = levels.iter().map(|l| l.all.len()).sum();
        let mut left = 100;
        let mut groups: Vec<Group> = Vec::new();
        for level in levels.into_iter().filter(|l| !l.all.is_empty()) {
            let share = u32::try_from(level.all.len() * 100 / total).unwrap_or(100);
            left -= share;
            groups.push(Group {
                load: share,
                members: level.all,
            });
        }
        if let Some(first) = groups.first_mut() {
            first.load += left;
        }
        Self { groups }
    }

    /// Load flows down the priorities, healthy hosts of all of them before degraded ones.
    fn spread(
        levels: Vec<Level>,
        healthy: &[u32],
        degraded: &[u32],
        available: u32,
        panics: &[bool],
    ) -> Self {
        if available == 0 {
            return Self::default();
        }
        let mut left = 100;
        let mut share = |availability: &u32| {
            let load = (availability * 100 / available).min(left);
            left -= load;
            load
        };
        let mut healthy: Vec<u32> = healthy.iter().map(&mut share).collect();
        let mut degraded: Vec<u32> = degraded.iter().map(&mut share).collect();
        // What rounding left over goes to the first that has any.
        if let Some(load) = healthy.iter_mut().chain(&mut degraded).find(|l| **l > 0) {
            *load += left;
        }
        let mut groups = Vec::new();
        for (index, level) in levels.into_iter().enumerate() {
            let (healthy, degraded) = (healthy[index], degraded[index]);
            if panics[index] {
                push(&mut groups, healthy + degraded, level.all);
            } else {
                push(&mut groups, healthy, level.healthy);
                push(&mut groups, degraded, level.degraded);
            }
        }
        Self { groups }
    }
}

fn push(groups: &mut Vec<Group>, load: u32, members: Vec<usize>) {
    if load > 0 {
        groups.push(Group { load, members });
    }
}

fn levels(hosts: impl Iterator<Item = (u32, HealthStatus)>) -> Vec<Level> {
    let mut levels: Vec<Level> = Vec::new();
    for (index, (priority, health)) in hosts.enumerate() {
        let priority = priority as usize;
        if levels.len() <= priority {
            levels.resize(priority + 1, Level::default());
        }
        let level = &mut levels[priority];
        level.all.push(index);
        match health {
            HealthStatus::Unknown | HealthStatus::Healthy => level.healthy.push(index),
            HealthStatus::Degraded => level.degraded.push(index),
            HealthStatus::Unhealthy | HealthStatus::Draining => {}
        }
    }
    levels
}
