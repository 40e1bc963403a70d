//! The configuration that the data path reads: immutable, swapped as one.
//!
//! Input: validated resources from `xds` or `bootstrap`, as [`Resources`]. Output: a
//! [`Snapshot`] with every index a connection or request needs. [`Store`] holds the newest
//! and wakes whoever must react; each worker reads through its own [`Reader`], which costs
//! no shared atomic write.

mod build;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::cluster::{ClusterEntry, Manager};
use crate::dns::names::NameTable;
use crate::resource::endpoint::WorkloadRef;
use crate::resource::{
    Cluster, ClusterName, Endpoints, Listener, ListenerName, RouteConfigName, RouteConfiguration,
    RouteSource,
};
use crate::route::RouteTable;

pub use build::{Naming, Resources};
pub use reader::{Pinned, Reader};

/// Counts swaps; the first published snapshot has 1, the empty one before it 0.
pub type Generation = u64;

/// One consistent configuration.
#[derive(Default)]
pub struct Snapshot {
    generation: Generation,
    listeners: HashMap<ListenerName, Arc<Listener>>,
    /// Outbound listeners of a proxy that serves one workload (sidecar, static file).
    outbound: OutboundIndex,
    /// The workload that such a proxy serves, as its inbound listener says.
    own_workload: Option<WorkloadRef>,
    /// Outbound listeners of a node proxy.
    outbound_of: HashMap<Arc<str>, OutboundIndex>,
    routes: HashMap<RouteConfigName, Table>,
    /// Tables of inline route configurations, by the address of the configuration (which the
    /// table's entry keeps alive).
    inline_routes: HashMap<usize, Table>,
    clusters: HashMap<ClusterName, BuiltCluster>,
    names: Arc<NameTable>,
}

/// A route table and what it was built from.
#[derive(Clone)]
struct Table {
    config: Arc<RouteConfiguration>,
    table: Arc<RouteTable>,
}

/// A cluster's entry and what it was built from.
#[derive(Clone)]
struct BuiltCluster {
    config: Arc<Cluster>,
    endpoints: Option<Arc<Endpoints>>,
    entry: Arc<ClusterEntry>,
}

/// Where connections with an original destination go within one namespace.
#[derive(Default)]
struct OutboundIndex {
    virtual_outbound: Option<Arc<Listener>>,
    exact: HashMap<SocketAddr, Arc<Listener>>,
    wildcard_v4: HashMap<u16, Arc<Listener>>,
    wildcard_v6: HashMap<u16, Arc<Listener>>,
}

impl Snapshot {
    /// Which swap this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    /// All listeners, in no order.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// The listener that stands for a connection to `orig_dst` from a pod of `namespace`:
    /// the one at that very address, else the one at that port of any address, else
    /// `virtualOutbound` itself (Envoy's `use_original_dst`). `namespace` is `None` for
    /// sidecars and static files. `orig_dst` must be canonical (no v4-mapped address).
    pub fn outbound(
        &self,
        namespace: Option<&str>,
        orig_dst: SocketAddr,
    ) -> Option<&Arc<Listener>> {
        let index = match namespace {
            Some(namespace) => self.outbound_of.get(namespace)?,
            None => &self.outbound,
        };
        index.find(orig_dst).or(index.virtual_outbound.as_ref())
    }

    /// The workload of a proxy that serves one; `None` in a node's proxy, whose pods are known otherwise.
    pub fn own_workload(&self) -> Option<&WorkloadRef> {
        self.own_workload.as_ref()
    }

    /// The inbound listener of a local pod (`pod/<namespace>/<name>`).
    pub fn inbound(&self, namespace: &str, pod: &str) -> Option<&Arc<Listener>> {
        self.listeners
            .get(pod_listener_name(namespace, pod).as_str())
    }

    /// The route table of this name.
    pub fn route_table(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name).map(|t| &t.table)
    }

    /// The route table of a connection manager of a listener *of this snapshot*. For an inline
    /// source ask once per connection, of the snapshot that gave the listener; for RDS ask the
    /// newest snapshot once per request.
    pub fn routes_of(&self, source: &RouteSource) -> Option<&Arc<RouteTable>> {
        match source {
            RouteSource::Rds(name) => self.route_table(name.as_str()),
            RouteSource::Inline(config) => {
                let key = Arc::as_ptr(config).addr();
                self.inline_routes.get(&key).map(|t| &t.table)
            }
        }
    }

    /// All route tables that came by RDS, in no order.
    pub fn route_tables(&self) -> impl Iterator<Item = (&RouteConfigName, &Arc<RouteTable>)> {
        self.routes.iter().map(|(name, t)| (name, &t.table))
    }

    /// All route configurations, inline ones included, in no order.
    pub fn route_configs(&self) -> impl Iterator<Item = &Arc<RouteConfiguration>> {
        let inline = self.inline_routes.values();
        self.routes.values().chain(inline).map(|t| &t.config)
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<ClusterEntry>> {
        self.clusters.get(name).map(|c| &c.entry)
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<ClusterEntry>> {
        self.clusters.values().map(|c| &c.entry)
    }

    /// Mesh names for DNS.
    pub fn names(&self) -> &NameTable {
        &self.names
    }
}

impl OutboundIndex {
    fn find(&self, orig_dst: SocketAddr) -> Option<&Arc<Listener>> {
        let port = orig_dst.port();
        let (same, other) = match orig_dst.ip() {
            IpAddr::V4(_) => (&self.wildcard_v4, &self.wildcard_v6),
            IpAddr::V6(_) => (&self.wildcard_v6, &self.wildcard_v4),
        };
        self.exact
            .get(&orig_dst)
            .or_else(|| same.get(&port))
            .or_else(|| other.get(&port))
    }

    fn insert(&mut self, listener: &Arc<Listener>) {
        if listener.use_original_dst {
            self.virtual_outbound = Some(listener.clone());
            return;
        }
        let (address, port) = (listener.address, listener.address.port());
        let listener = listener.clone();
        match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => self.wildcard_v4.insert(port, listener),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => self.wildcard_v6.insert(port, listener),
            _ => self.exact.insert(address, listener),
        };
    }
}

/// Name of a pod's inbound listener.
pub fn pod_listener_name(namespace: &str, pod: &str) -> String {
    format!("pod/{namespace}/{pod}")
}

/// Namespace and name of the pod that an inbound listener of a node leads into.
pub fn pod_of_listener(listener: &str) -> Option<(&str, &str)> {
    listener.strip_prefix("pod/")?.split_once('/')
}

/// Holds the newest snapshot.
pub struct Store {
    current: Arc<ArcSwap<Snapshot>>,
    generation: watch::Sender<Generation>,
    open: watch::Sender<bool>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            generation: watch::Sender::new(0),
            open: watch::Sender::new(false),
        }
    }
}

impl Store {
    /// A store with an empty snapshot.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `resources` the newest snapshot in one swap and wakes the subscribers.
    ///
    /// Only one task publishes; readers never wait for it.
    pub fn publish(&self, resources: &Resources, manager: &Manager) -> Arc<Snapshot> {
        let snapshot = Arc::new(self.current.load().next(resources, manager));
        let next = snapshot.generation;
        self.current.store(snapshot.clone());
        self.generation.send_replace(next);
        manager.retain(|name| snapshot.clusters.contains_key(name));
        snapshot
    }

    /// The newest snapshot. Workers use a [`Reader`] instead.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A reader for one worker.
    pub fn reader(&self) -> Reader {
        Reader::new(self.current.clone())
    }

    /// Changes at every swap.
    pub fn subscribe(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    /// Says that the first configuration is in place: pods' connections may be accepted.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Whether the first configuration is in place.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits for the first configuration; cancel-safe.
    pub async fn opened(&self) {
        let mut open = self.open.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        drop(open.wait_for(|open| *open).await);
    }
}
