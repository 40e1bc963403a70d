//! One worker's upstream connection pools and load balancers.
//!
//! A pool belongs to a cluster, a host, a source pod and the client address that the host is to
//! see. A sweep closes connections that nothing should use any more: idle for too long, of a host
//! that left its cluster, from or to a pod that left the node. What is under way with such a pod
//! may end within [`PARTING`]: a pod whose network went before its processes cannot say that it
//! has gone.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{ConnectTarget, Connector, Transport};
use super::pool_h1::H1Pool;
use super::pool_h2::H2Pool;
use crate::cluster::host::Active;
use crate::cluster::{ClusterEntry, ClusterId, Host, HostId, Permit};
use crate::http::io::{SharedIo, WeakIo};
use crate::lb::{Balancer, Hosts};
use crate::pods::LocalPod;

/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long requests under way go on with a pod that has left the node.
const PARTING: Duration = Duration::from_secs(5);
/// Balancers kept at most.
const MAX_BALANCERS: usize = 4096;

/// One worker's pools; cloning shares them.
#[derive(Clone, Default)]
pub struct Pools(Rc<Inner>);

#[derive(Default)]
struct Inner {
    h1: RefCell<HashMap<PoolKey, Rc<H1Pool>>>,
    h2: RefCell<HashMap<PoolKey, Rc<H2Pool>>>,
    balancers: RefCell<HashMap<ClusterId, (u64, Balancer)>>,
    live: RefCell<Vec<Live>>,
    sweeping: Cell<bool>,
}

/// An open connection from or to pods of this node.
struct Live {
    io: WeakIo,
    pods: [Option<CancellationToken>; 2],
    left: Option<Instant>,
}

impl Live {
    /// Whether it is to be looked at again. Ends it some time after one of its pods has left.
    fn sweep(&mut self, now: Instant) -> bool {
        let Some(io) = self.io.upgrade() else {
            return false;
        };
        if !self
            .pods
            .iter()
            .flatten()
            .any(CancellationToken::is_cancelled)
        {
            return true;
        }
        let over = now - *self.left.get_or_insert(now) >= PARTING;
        if over {
            io.end();
        }
        !over
    }
}

/// What a pooled connection may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    cluster: ClusterId,
    host: HostId,
    source: u64,
    client: Option<IpAddr>,
}

/// Where a try goes, and as whom.
#[derive(Clone)]
pub struct Target {
    /// The cluster.
    pub entry: Arc<ClusterEntry>,
    /// The host.
    pub host: Arc<Host>,
    /// The pod in whose namespace the downstream connection was accepted.
    pub source: Option<Arc<LocalPod>>,
    /// Number of that pod within the worker; 0 where there is none.
    pub source_key: u64,
    /// The address that the host is to see.
    pub client: Option<SocketAddr>,
}

/// What holds for a pooled connection of either protocol.
pub(super) struct Meta {
    pub(super) host: Arc<Host>,
    pub(super) source: Option<Arc<LocalPod>>,
    /// The pod that it leads into, where that is a pod of this node.
    pub(super) delivery: Option<Arc<LocalPod>>,
    pub(super) local: Option<SocketAddr>,
    pub(super) opened: Instant,
    pub(super) idle_since: Instant,
    pub(super) requests: u32,
    idle_timeout: Duration,
    max_duration: Duration,
    max_requests: u32,
    _active: Active,
    _permit: Option<Permit>,
}

impl Target {
    /// The pool for it.
    pub fn key(&self) -> PoolKey {
        PoolKey {
            cluster: self.entry.id(),
            host: self.host.id(),
            source: self.source_key,
            client: self.client.map(|c| c.ip()),
        }
    }

    /// What to connect to.
    pub fn connect_target(&self) -> ConnectTarget {
        ConnectTarget {
            address: self.host.address(),
            source: self.source.clone(),
            client: self.client,
            keep_port: false,
            connect_timeout: self.entry.config.connect_timeout,
            keepalive: self.entry.config.tcp_keepalive,
            bind_source: self.entry.config.bind_source,
        }
    }
}

impl Meta {
    pub(super) fn new(
        target: &Target,
        transport: &Transport,
        local: Option<SocketAddr>,
        permit: Option<Permit>,
    ) -> Self {
        let config = &target.entry.config;
        let now = Instant::now();
        Self {
            host: target.host.clone(),
            source: target.source.clone(),
            delivery: match transport {
                Transport::Delivery(pod) => Some(pod.clone()),
                _ => None,
            },
            local,
            opened: now,
            idle_since: now,
            requests: 0,
            idle_timeout: config.idle_timeout,
            max_duration: config.max_connection_duration,
            max_requests: config.max_requests_per_connection,
            _active: target.host.connection(),
            _permit: permit,
        }
    }

    /// Whether a further request may be sent on the connection.
    pub(super) fn may_serve(&self, now: Instant) -> bool {
        let within = |limit: Duration, since| limit.is_zero() || now - since < limit;
        (self.max_requests == 0 || self.requests < self.max_requests)
            && within(self.max_duration, self.opened)
            && within(self.idle_timeout, self.idle_since)
            && !self.host.is_gone()
            && !self.pods_gone()
    }

    /// Whether it leads where a new connection would: another pod may have got the address since.
    pub(super) fn leads_to(&self, connector: &Connector, target: &Target) -> bool {
        if target.source.is_none() && self.delivery.is_none() {
            return true;
        }
        match (
            connector.transport(&target.connect_target()),
            &self.delivery,
        ) {
            (Ok(Transport::Delivery(now)), Some(then)) => now.spec.uid == then.spec.uid,
            (Ok(Transport::Delivery(_)), None) | (Err(_), _) => false,
            (Ok(_), then) => then.is_none(),
        }
    }

    fn pods_gone(&self) -> bool {
        let gone =
            |pod: &Option<Arc<LocalPod>>| pod.as_ref().is_some_and(|pod| pod.gone().is_cancelled());
        gone(&self.source) || gone(&self.delivery)
    }
}

impl Pools {
    /// Pools without a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next host of a cluster by requests under way, avoiding those already tried as often
    /// as the retry policy says.
    pub fn pick(&self, entry: &ClusterEntry, tried: &[HostId], attempts: u32) -> Option<Arc<Host>> {
        let mut balancers = self.0.balancers.borrow_mut();
        if balancers.len() >= MAX_BALANCERS {
            balancers.clear();
        }
        let fresh = || {
            let balancer = Balancer::new(entry.config.lb_policy, fastrand::u64(..));
            (entry.version, balancer)
        };
        let (version, balancer) = balancers.entry(entry.id()).or_insert_with(fresh);
        if *version != entry.version {
            (*version, *balancer) = fresh();
        }
        let avoid = |host: usize| tried.contains(&entry.hosts[host].id());
        let index = balancer.pick_avoiding(&entry.plan, &Requests(entry), avoid, attempts)?;
        entry.hosts.get(index).cloned()
    }

    pub(super) fn h1(&self, key: PoolKey) -> Rc<H1Pool> {
        self.start_sweep();
        let mut pools = self.0.h1.borrow_mut();
        pools.entry(key).or_default().clone()
    }

    pub(super) fn h2(&self, key: PoolKey) -> Rc<H2Pool> {
        self.start_sweep();
        let mut pools = self.0.h2.borrow_mut();
        pools.entry(key).or_default().clone()
    }

    /// Ends this connection soon after one of its pods has left the node.
    pub(super) fn watch(&self, io: &SharedIo, meta: &Meta) {
        let token = |pod: &Option<Arc<LocalPod>>| pod.as_ref().map(|pod| pod.gone().clone());
        let pods = [token(&meta.source), token(&meta.delivery)];
        if pods.iter().any(Option::is_some) {
            self.0.live.borrow_mut().push(Live {
                io: io.downgrade(),
                pods,
                left: None,
            });
        }
    }

    /// Closes every idle connection.
    pub fn close_idle(&self) {
        for pool in self.0.h1.borrow().values() {
            pool.close_idle();
        }
        for pool in self.0.h2.borrow().values() {
            pool.sweep(None);
        }
    }

    /// The sweep ends when the pools are dropped.
    fn start_sweep(&self) {
        if self.0.sweeping.replace(true) {
            return;
        }
        let pools = Rc::downgrade(&self.0);
        tokio::task::spawn_local(async move {
            let mut tick = tokio::time::interval(SWEEP);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(inner) = Weak::upgrade(&pools) else {
                    return;
                };
                inner.sweep(Instant::now());
            }
        });
    }
}

impl Inner {
    fn sweep(&self, now: Instant) {
        self.live.borrow_mut().retain_mut(|live| live.sweep(now));
        self.h1.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            Rc::strong_count(pool) > 1 || !pool.is_unused()
        });
        self.h2.borrow_mut().retain(|_, pool| {
            pool.sweep(Some(now));
            Rc::strong_count(pool) > 1 || !pool.is_unused()
        });
    }
}

/// Hosts by requests under way.
struct Requests<'a>(&'a ClusterEntry);

impl Hosts for Requests<'_> {
    fn weight(&self, host: usize) -> u32 {
        self.0.hosts[host].endpoint.weight
    }

    fn active(&self, host: usize) -> u64 {
        self.0.hosts[host].stats.rq_active.get()
    }
}
