//! The pods of this node that are enrolled: who they are and the sockets that the broker made
//! in their network namespaces.
//!
//! `pods::broker` writes [`LocalPods`]; accept loops and `upstream::connect` read it. Reading is
//! one `ArcSwap` load, taking a socket one short mutex on the new-connection path.

pub mod broker;
mod pool;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use millrace_runtime::handoff::{CaptureMode, Families, Family, PodSpec, PodUid, SocketKind};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub use pool::{SocketPool, Want, Wants};

/// One enrolled pod of this node.
pub struct LocalPod {
    /// Its description.
    pub spec: PodSpec,
    /// Address families of its namespace.
    pub families: Families,
    /// How its traffic reaches the proxy.
    pub capture: CaptureMode,
    outbound: [SocketPool; 2],
    delivery: [SocketPool; 2],
    datagram: [SocketPool; 2],
    gone: CancellationToken,
    number: u64,
}

/// Number of the last pod that was made.
static LAST: AtomicU64 = AtomicU64::new(0);

impl LocalPod {
    /// A pod whose pools ask through `wants`.
    pub fn new(spec: PodSpec, families: Families, capture: CaptureMode, wants: &Wants) -> Self {
        let pools = |kind| {
            [Family::V4, Family::V6]
                .map(|family| SocketPool::new(spec.uid.clone(), kind, family, wants.clone()))
        };
        Self {
            outbound: pools(SocketKind::Outbound),
            delivery: pools(SocketKind::Delivery),
            datagram: pools(SocketKind::Datagram),
            gone: CancellationToken::new(),
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            families,
            capture,
            spec,
        }
    }

    /// The same pod with another description: pools and state carry over.
    #[must_use]
    pub fn updated(&self, spec: PodSpec, families: Families, capture: CaptureMode) -> Self {
        Self {
            outbound: self.outbound.clone(),
            delivery: self.delivery.clone(),
            datagram: self.datagram.clone(),
            gone: self.gone.clone(),
            number: self.number,
            families,
            capture,
            spec,
        }
    }

    /// Sockets of one kind and family.
    pub fn pool(&self, kind: SocketKind, family: Family) -> &SocketPool {
        let pools = match kind {
            SocketKind::Outbound => &self.outbound,
            SocketKind::Delivery => &self.delivery,
            SocketKind::Datagram => &self.datagram,
        };
        match family {
            Family::V4 => &pools[0],
            Family::V6 => &pools[1],
        }
    }

    /// All its pools.
    pub fn pools(&self) -> impl Iterator<Item = &SocketPool> {
        self.outbound
            .iter()
            .chain(&self.delivery)
            .chain(&self.datagram)
    }

    /// Its first address of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        let mut ips = self.spec.ips.iter();
        ips.find(|ip| ip.is_ipv4() == like.is_ipv4()).copied()
    }

    /// A number that no other pod of this process has, for use in keys; never 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Cancelled when the pod is no longer served: idle connections from and to it are to be
    /// closed, since their sockets keep its network namespace alive.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

impl fmt::Debug for LocalPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPod")
            .field("uid", &self.spec.uid.0)
            .field("pod", &self.spec.qualified_name())
            .finish_non_exhaustive()
    }
}

/// The enrolled pods of this node, by uid and by address.
#[derive(Debug, Default)]
pub struct LocalPods {
    table: ArcSwap<Table>,
    /// Serialises writers; there is one (the broker's client), and tests.
    write: Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    by_uid: HashMap<PodUid, Arc<LocalPod>>,
    by_ip: HashMap<IpAddr, Arc<LocalPod>>,
}

impl LocalPods {
    /// The pod of this uid.
    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<LocalPod>> {
        self.table.load().by_uid.get(uid).cloned()
    }

    /// The pod that has this address.
    pub fn by_ip(&self, ip: IpAddr) -> Option<Arc<LocalPod>> {
        self.table.load().by_ip.get(&ip).cloned()
    }

    /// All pods, in the order of their names.
    pub fn all(&self) -> Vec<Arc<LocalPod>> {
        let mut pods: Vec<_> = self.table.load().by_uid.values().cloned().collect();
        pods.sort_by(|a, b| {
            let key = |p: &LocalPod| (p.spec.namespace.clone(), p.spec.name.clone());
            key(a).cmp(&key(b))
        });
        pods
    }

    /// Every pool of every pod, in no order.
    pub fn each_pool(&self, mut work: impl FnMut(&SocketPool)) {
        let table = self.table.load();
        for pod in table.by_uid.values() {
            pod.pools().for_each(&mut work);
        }
    }

    /// Adds a pod or replaces the one of its uid. Where two pods have one address (one is
    /// leaving, the next got its address), the newer one has it.
    pub fn insert(&self, pod: &Arc<LocalPod>) {
        self.change(|table| {
            table.remove_addresses(&pod.spec.uid);
            for ip in &pod.spec.ips {
                table.by_ip.insert(ip.to_canonical(), pod.clone());
            }
            table.by_uid.insert(pod.spec.uid.clone(), pod.clone());
        });
    }

    /// Takes a pod out, cancels [`LocalPod::gone`] and closes its unused sockets.
    pub fn remove(&self, uid: &PodUid) -> Option<Arc<LocalPod>> {
        let mut removed = None;
        self.change(|table| {
            removed = table.by_uid.remove(uid);
            table.remove_addresses(uid);
        });
        if let Some(pod) = &removed {
            pod.gone.cancel();
            pod.pools().for_each(SocketPool::close);
        }
        removed
    }

    fn change(&self, edit: impl FnOnce(&mut Table)) {
        let _writer = self.write.lock();
        let mut table = Table::clone(&self.table.load());
        edit(&mut table);
        self.table.store(Arc::new(table));
    }
}

impl Table {
    fn remove_addresses(&mut self, uid: &PodUid) {
        self.by_ip.retain(|_, pod| pod.spec.uid != *uid);
    }
}
