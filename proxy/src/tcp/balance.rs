//! One worker's load balancers, made when a cluster is first used.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::cluster::{ClusterEntry, ClusterId, Host};
use crate::lb::{Balancer, Hosts};

/// Balancers kept at most; those of clusters that are gone are forgotten with the rest.
const MAX_BALANCERS: usize = 4096;

/// Balancers by cluster; a new entry of a cluster starts anew.
#[derive(Debug, Default)]
pub struct Balancers {
    known: RefCell<HashMap<ClusterId, (u64, Balancer)>>,
}

impl Balancers {
    /// The next host of a cluster.
    pub fn pick(&self, cluster: &ClusterEntry) -> Option<Arc<Host>> {
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_BALANCERS {
            known.clear();
        }
        let fresh = || {
            let balancer = Balancer::new(cluster.config.lb_policy, fastrand::u64(..));
            (cluster.version, balancer)
        };
        let (version, balancer) = known.entry(cluster.id()).or_insert_with(fresh);
        if *version != cluster.version {
            (*version, *balancer) = fresh();
        }
        let host = balancer.pick(&cluster.plan, &Connections(cluster))?;
        cluster.hosts.get(host).cloned()
    }
}

/// Least request counts connections where there are no requests.
struct Connections<'a>(&'a ClusterEntry);

impl Hosts for Connections<'_> {
    fn weight(&self, host: usize) -> u32 {
        self.0.hosts[host].endpoint.weight
    }

    fn active(&self, host: usize) -> u64 {
        self.0.hosts[host].stats.cx_active.get()
    }
}
