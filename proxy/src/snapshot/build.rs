//! Resources to snapshot: the indexes, built once per swap.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BuiltCluster, Snapshot, Table};
use crate::cluster::Manager;
use crate::dns::names::NameTable;
use crate::resource::{
    Cluster, ClusterKind, ClusterName, Endpoints, Listener, ListenerName, NetworkFilter,
    RouteConfigName, RouteConfiguration, RouteSource, TrafficDirection,
};
use crate::route::RouteTable;

/// How listener names are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// One set of listeners (sidecar, static file).
    #[default]
    Plain,
    /// `<namespace>/<name>` for outbound listeners, `pod/<namespace>/<pod>` for inbound ones.
    Node,
}

/// Everything that a snapshot is made of. Cloning copies no resource.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// How the names of `listeners` are to be read.
    pub naming: Naming,
    /// Listeners.
    pub listeners: BTreeMap<ListenerName, Arc<Listener>>,
    /// Route configurations that RDS gave.
    pub routes: BTreeMap<RouteConfigName, Arc<RouteConfiguration>>,
    /// Clusters.
    pub clusters: BTreeMap<ClusterName, Arc<Cluster>>,
    /// Endpoints by EDS resource name.
    pub endpoints: BTreeMap<String, Arc<Endpoints>>,
    /// Addresses that DNS gave, by cluster.
    pub resolved: BTreeMap<ClusterName, Arc<Endpoints>>,
    /// Mesh names.
    pub names: Arc<NameTable>,
}

impl Snapshot {
    /// The snapshot after this one. What did not change is taken over, so that a change of one
    /// cluster's endpoints rebuilds nothing else.
    pub(super) fn next(&self, from: &Resources, manager: &Manager) -> Self {
        let mut next = Self {
            generation: self.generation + 1,
            names: from.names.clone(),
            ..Self::default()
        };
        for (name, config) in &from.routes {
            let table = reuse_table(self.routes.get(name), config);
            next.routes.insert(name.clone(), table);
        }
        for listener in from.listeners.values() {
            next.add_inline_routes(self, listener);
            next.add_listener(from.naming, listener);
        }
        for (name, cluster) in &from.clusters {
            let endpoints = from.endpoints_of(cluster);
            let built = match self.clusters.get(name) {
                Some(old) if old.is_of(cluster, endpoints) => old.clone(),
                _ => BuiltCluster {
                    config: cluster.clone(),
                    endpoints: endpoints.cloned(),
                    entry: manager.entry(cluster.clone(), endpoints.cloned()),
                },
            };
            next.clusters.insert(name.clone(), built);
        }
        next
    }

    fn add_inline_routes(&mut self, previous: &Self, listener: &Listener) {
        let chains = listener.filter_chains.iter();
        for chain in chains.chain(&listener.default_filter_chain) {
            if let NetworkFilter::Http(hcm) = &chain.filter
                && let RouteSource::Inline(config) = &hcm.routes
            {
                let key = Arc::as_ptr(config).addr();
                let table = reuse_table(previous.inline_routes.get(&key), config);
                self.inline_routes.insert(key, table);
            }
        }
    }

    fn add_listener(&mut self, naming: Naming, listener: &Arc<Listener>) {
        self.listeners
            .insert(listener.name.clone(), listener.clone());
        if listener.direction == TrafficDirection::Inbound {
            if matches!(naming, Naming::Plain) && listener.workload.is_some() {
                self.own_workload.clone_from(&listener.workload);
            }
            return;
        }
        match naming {
            Naming::Plain => self.outbound.insert(listener),
            Naming::Node => {
                if let Some(namespace) = outbound_namespace(listener.name.as_str()) {
                    let index = self.outbound_of.entry(namespace.into()).or_default();
                    index.insert(listener);
                }
            }
        }
    }
}

impl BuiltCluster {
    fn is_of(&self, config: &Arc<Cluster>, endpoints: Option<&Arc<Endpoints>>) -> bool {
        let same_endpoints = match (&self.endpoints, endpoints) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        same_endpoints && Arc::ptr_eq(&self.config, config)
    }
}

fn reuse_table(old: Option<&Table>, config: &Arc<RouteConfiguration>) -> Table {
    match old {
        Some(old) if Arc::ptr_eq(&old.config, config) => old.clone(),
        _ => Table {
            config: config.clone(),
            table: Arc::new(RouteTable::new(config.clone())),
        },
    }
}

impl Resources {
    /// The endpoints that a cluster has now, wherever they come from; `None` while they are
    /// not known.
    pub fn endpoints_of<'a>(&'a self, cluster: &'a Cluster) -> Option<&'a Arc<Endpoints>> {
        match &cluster.kind {
            ClusterKind::Static(endpoints) => Some(endpoints),
            ClusterKind::Eds(name) => self.endpoints.get(name),
            ClusterKind::StrictDns(_) | ClusterKind::LogicalDns(_) => {
                self.resolved.get(&cluster.name)
            }
            ClusterKind::OriginalDst => None,
        }
    }
}

/// The namespace in `<namespace>/<name>`; `None` for a pod's listener, which no original
/// destination leads to.
fn outbound_namespace(name: &str) -> Option<&str> {
    let (namespace, rest) = name.split_once('/')?;
    (!rest.contains('/')).then_some(namespace)
}
