//! The cluster manager: makes [`ClusterEntry`]s and keeps what must survive an update.
//!
//! `snapshot` calls [`Manager::entry`] for each cluster of a new configuration and
//! [`Manager::retain`] after the swap. The data path only reads entries; nothing here is on the
//! path of a request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::breaker::Breakers;
use super::host::{Host, HostId, HostStats};
use crate::lb;
use crate::resource::endpoint::WorkloadRef;
use crate::resource::{
    Cluster, ClusterKind, ClusterName, Endpoint, Endpoints, HealthStatus, Locality,
};

/// Identity of a cluster's run-time state: the same for as long as a cluster of this name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u64);

/// Owner of run-time state that outlives a snapshot.
#[derive(Default)]
pub struct Manager {
    clusters: Mutex<HashMap<ClusterName, Arc<Runtime>>>,
    next: AtomicU64,
}

/// A cluster as the data path uses it.
pub struct ClusterEntry {
    /// Its configuration.
    pub config: Arc<Cluster>,
    /// The endpoints it was made from.
    pub endpoints: Option<Arc<Endpoints>>,
    /// Its hosts, priorities one after the other.
    pub hosts: Vec<Arc<Host>>,
    /// Which hosts are picked, by priority and health.
    pub plan: lb::Plan,
    /// Distinguishes this entry from every other of the process.
    pub version: u64,
    runtime: Arc<Runtime>,
}

/// What all entries of one cluster share.
struct Runtime {
    id: ClusterId,
    default: Arc<Breakers>,
    high: Arc<Breakers>,
    hosts: Mutex<HashMap<SocketAddr, Known>>,
    /// Hosts of an `ORIGINAL_DST` cluster, made as they are asked for.
    original: Mutex<HashMap<SocketAddr, Arc<Host>>>,
    ids: AtomicU64,
}

/// A host of the newest configuration.
struct Known {
    stats: Arc<HostStats>,
    workload: Option<WorkloadRef>,
}

/// An `ORIGINAL_DST` cluster forgets the hosts that nobody uses once it has this many.
const ORIGINAL_DST_SWEEP: usize = 1024;

impl Manager {
    /// A manager without clusters.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry of a cluster with its endpoints (those of EDS or DNS; a static cluster has its
    /// own). Counters and breakers continue where an earlier entry of this name left them.
    pub fn entry(
        &self,
        config: Arc<Cluster>,
        endpoints: Option<Arc<Endpoints>>,
    ) -> Arc<ClusterEntry> {
        let runtime = self.runtime(&config);
        runtime.default.configure(&config.default_thresholds);
        runtime.high.configure(&config.high_thresholds);
        let endpoints = match &config.kind {
            ClusterKind::Static(own) => Some(own.clone()),
            _ => endpoints,
        };
        let hosts = runtime.update_hosts(endpoints.as_deref());
        let plan = lb::Plan::new(
            hosts.iter().map(|h| (h.priority, h.endpoint.health)),
            endpoints
                .as_ref()
                .map_or(140, |e| e.overprovisioning_factor),
            config.panic_threshold,
        );
        Arc::new(ClusterEntry {
            config,
            endpoints,
            hosts,
            plan,
            version: self.next.fetch_add(1, Ordering::Relaxed),
            runtime,
        })
    }

    /// Forgets the clusters that `live` refuses; their hosts are gone.
    pub fn retain(&self, live: impl Fn(&ClusterName) -> bool) {
        self.clusters.lock().retain(|name, runtime| {
            let keep = live(name);
            if !keep {
                runtime.forget_hosts();
            }
            keep
        });
    }

    fn runtime(&self, config: &Cluster) -> Arc<Runtime> {
        self.clusters
            .lock()
            .entry(config.name.clone())
            .or_insert_with(|| {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                Arc::new(Runtime::new(id, config))
            })
            .clone()
    }
}

impl ClusterEntry {
    /// Identity of the run-time state.
    pub fn id(&self) -> ClusterId {
        self.runtime.id
    }

    /// The cluster's name.
    pub fn name(&self) -> &ClusterName {
        &self.config.name
    }

    /// Breakers of default priority.
    pub fn breakers(&self) -> &Arc<Breakers> {
        &self.runtime.default
    }

    /// Breakers of high priority.
    pub fn high_breakers(&self) -> &Arc<Breakers> {
        &self.runtime.high
    }

    /// The host at a connection's original destination (`ORIGINAL_DST` clusters).
    pub fn original_dst(&self, address: SocketAddr) -> Arc<Host> {
        self.runtime.original_dst(address)
    }

    /// Hosts of an `ORIGINAL_DST` cluster that are in use or were lately, for `/clusters`.
    pub fn original_dst_hosts(&self) -> Vec<Arc<Host>> {
        self.runtime.original.lock().values().cloned().collect()
    }
}

impl Runtime {
    fn new(id: u64, config: &Cluster) -> Self {
        Self {
            id: ClusterId(id),
            default: Arc::new(Breakers::new(&config.default_thresholds)),
            high: Arc::new(Breakers::new(&config.high_thresholds)),
            hosts: Mutex::default(),
            original: Mutex::default(),
            ids: AtomicU64::new(0),
        }
    }

    /// A host that comes back, or whose address another workload has now, gets new counters and
    /// a new identity: what was pooled for the old one must not serve the new one.
    fn update_hosts(&self, endpoints: Option<&Endpoints>) -> Vec<Arc<Host>> {
        let mut known = self.hosts.lock();
        let mut next = HashMap::with_capacity(known.len());
        let mut hosts = Vec::new();
        for (locality, endpoint) in endpoints.iter().flat_map(|e| e.iter()) {
            let host = next.entry(endpoint.address).or_insert_with(|| {
                let same = known
                    .get(&endpoint.address)
                    .is_some_and(|old| old.workload == endpoint.workload);
                let kept = if same {
                    known.remove(&endpoint.address)
                } else {
                    None
                };
                kept.unwrap_or_else(|| Known {
                    stats: Arc::new(HostStats::new(self.next_host())),
                    workload: endpoint.workload.clone(),
                })
            });
            hosts.push(Arc::new(Host {
                endpoint: endpoint.clone(),
                locality: locality.locality.clone(),
                priority: locality.priority,
                stats: host.stats.clone(),
            }));
        }
        for old in known.values() {
            old.stats.set_gone(true);
        }
        *known = next;
        hosts.sort_by_key(|h| h.priority);
        hosts
    }

    fn forget_hosts(&self) {
        for host in self.hosts.lock().values() {
            host.stats.set_gone(true);
        }
        for host in self.original.lock().values() {
            host.stats.set_gone(true);
        }
    }

    fn original_dst(&self, address: SocketAddr) -> Arc<Host> {
        let mut hosts = self.original.lock();
        if hosts.len() >= ORIGINAL_DST_SWEEP && !hosts.contains_key(&address) {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        hosts
            .entry(address)
            .or_insert_with(|| {
                Arc::new(Host {
                    endpoint: Arc::new(Endpoint {
                        address,
                        hostname: None,
                        weight: 1,
                        health: HealthStatus::Healthy,
                        canary: false,
                        workload: None,
                    }),
                    locality: Locality::default(),
                    priority: 0,
                    stats: Arc::new(HostStats::new(self.next_host())),
                })
            })
            .clone()
    }

    /// Unique within the process: the cluster's own number stands in the upper half.
    fn next_host(&self) -> HostId {
        HostId((self.id.0 << 32) | (self.ids.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff))
    }
}

#[cfg(test)]
mod tests;
