//! What the broker gave: pods, and of every listening socket a duplicate.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use millrace_runtime::handoff::{
    BrokerConnection, CaptureMode, Families, Family, ListenerLabel, MAX_FDS, PodSpec, PodUid,
    ProxyRequest, SocketKind, sort_listeners,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{BrokerError, Listening, Socket};
use crate::pods::{LocalPod, LocalPods, SocketPool, Wants};

/// Pods and listening sockets that this proxy holds.
pub(super) struct Held<L> {
    pods: Arc<LocalPods>,
    listening: L,
    wants: Wants,
    entries: HashMap<PodUid, Entry>,
    changes: watch::Sender<u64>,
    /// The broker has announced every pod.
    synced: bool,
    /// Set when the proxy drains: sockets that still come are let go at once.
    stopped: bool,
}

/// Sockets of one pod.
#[derive(Default)]
struct Entry {
    /// How many sockets the newest `PodUp` announced ...
    total: usize,
    /// ... and the cookies of those that have come since.
    seen: HashSet<u64>,
    sockets: BTreeMap<u64, HeldSocket>,
}

struct HeldSocket {
    label: ListenerLabel,
    fd: OwnedFd,
    stop: CancellationToken,
}

impl<L: Listening> Held<L> {
    pub(super) fn new(pods: Arc<LocalPods>, listening: L, wants: Wants) -> Self {
        Self {
            pods,
            listening,
            wants,
            entries: HashMap::new(),
            changes: watch::Sender::new(0),
            synced: false,
            stopped: false,
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A pod is there or has changed; `total` listening sockets follow.
    pub(super) fn pod_up(
        &mut self,
        spec: PodSpec,
        families: Families,
        capture: CaptureMode,
        total: usize,
    ) {
        let uid = spec.uid.clone();
        let pod = match self.pods.by_uid(&uid) {
            Some(known) => known.updated(spec, families, capture),
            None => LocalPod::new(spec, families, capture, &self.wants),
        };
        tracing::info!(pod = %pod.spec.qualified_name(), %uid, %capture, "pod is up");
        let pod = Arc::new(pod);
        self.pods.insert(&pod);
        prefetch(&pod);
        let entry = self.entries.entry(uid).or_default();
        entry.total = total;
        entry.seen.clear();
        self.announce();
    }

    /// The broker has announced every pod.
    pub(super) fn synced(&mut self) {
        self.synced = true;
        // What was asked too early and is waited for.
        self.reconnected();
        self.announce();
    }

    /// Half a list of pods would make subscriptions end that are needed again at once.
    fn announce(&self) {
        if self.synced {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Listening sockets of a pod. Those that are held already stay as they are; once all that
    /// were announced have come, those that were not are let go.
    pub(super) fn listeners(
        &mut self,
        uid: &PodUid,
        labels: Vec<ListenerLabel>,
        fds: Vec<OwnedFd>,
    ) {
        let Some(entry) = self.entries.get_mut(uid) else {
            tracing::warn!(pod = %uid, "sockets of a pod that was not announced");
            return;
        };
        for (label, fd) in labels.into_iter().zip(fds) {
            entry.seen.insert(label.cookie);
            if self.stopped || entry.sockets.contains_key(&label.cookie) {
                continue;
            }
            match serve(&self.listening, uid, label, fd) {
                Ok(held) => drop(entry.sockets.insert(label.cookie, held)),
                Err(error) => {
                    tracing::error!(pod = %uid, ?label, %error, "cannot duplicate a socket");
                }
            }
        }
        if entry.seen.len() >= entry.total {
            let seen = &entry.seen;
            entry.sockets.retain(|cookie, socket| {
                let keep = seen.contains(cookie);
                if !keep {
                    socket.stop.cancel();
                }
                keep
            });
        }
    }

    /// A pod is gone or no longer enrolled.
    pub(super) fn pod_down(&mut self, uid: &PodUid) {
        if let Some(entry) = self.entries.remove(uid) {
            entry.sockets.values().for_each(|s| s.stop.cancel());
        }
        if let Some(pod) = self.pods.remove(uid) {
            tracing::info!(pod = %pod.spec.qualified_name(), %uid, "pod is down");
            self.announce();
        }
    }

    pub(super) fn capture_changed(&mut self, uid: &PodUid, capture: CaptureMode) {
        if let Some(pod) = self.pods.by_uid(uid) {
            tracing::info!(pod = %pod.spec.qualified_name(), %uid, %capture, "capture changed");
            let changed = pod.updated(pod.spec.clone(), pod.families, capture);
            self.pods.insert(&Arc::new(changed));
        }
    }

    /// Sockets that a pool asked for; those of a pod that went away meanwhile are closed.
    pub(super) fn sockets(
        &self,
        uid: &PodUid,
        kind: SocketKind,
        family: Family,
        fds: Vec<OwnedFd>,
    ) {
        if let Some(pod) = self.pods.by_uid(uid) {
            pod.pool(kind, family).fill(fds);
        }
    }

    pub(super) fn want_failed(&self, uid: &PodUid, kind: SocketKind, family: Family) {
        if let Some(pod) = self.pods.by_uid(uid) {
            pod.pool(kind, family).failed();
        }
    }

    /// The broker is new and does not know the pod yet: it will, or will say that it has named every
    /// pod, and then the pool asks anew.
    pub(super) fn want_postponed(&self, uid: &PodUid, kind: SocketKind, family: Family) {
        if let Some(pod) = self.pods.by_uid(uid) {
            pod.pool(kind, family).postponed();
        }
    }

    /// About once a second.
    pub(super) fn tick(&self) {
        self.pods.each_pool(SocketPool::tick);
    }

    /// A new session: pools ask anew.
    pub(super) fn reconnected(&self) {
        self.pods.each_pool(SocketPool::reconnected);
    }

    /// Lets all listening sockets go: who connects now waits in the broker's duplicates.
    pub(super) fn stop_listening(&mut self) {
        self.stopped = true;
        for entry in self.entries.values_mut() {
            entry.sockets.values().for_each(|s| s.stop.cancel());
            entry.sockets.clear();
        }
    }

    /// Gives a new broker the sockets that an earlier one made.
    pub(super) async fn give_back(&self, connection: &BrokerConnection) -> Result<(), BrokerError> {
        for (uid, entry) in &self.entries {
            let mut sockets: Vec<_> = entry.sockets.values().map(|s| (s.label, &s.fd)).collect();
            sort_listeners(&mut sockets);
            for batch in sockets.chunks(MAX_FDS) {
                let message = ProxyRequest::Return {
                    uid: uid.clone(),
                    listeners: batch.iter().map(|(label, _)| *label).collect(),
                };
                let fds: Vec<_> = batch.iter().map(|(_, fd)| fd.as_fd()).collect();
                connection.send(&message, &fds).await?;
            }
        }
        Ok(())
    }
}

/// Gives a worker a duplicate of a socket.
fn serve(
    listening: &impl Listening,
    uid: &PodUid,
    label: ListenerLabel,
    fd: OwnedFd,
) -> std::io::Result<HeldSocket> {
    let stop = CancellationToken::new();
    let socket = Socket {
        uid: uid.clone(),
        role: label.role,
        index: label.index,
        fd: fd.try_clone()?,
    };
    listening.serve(socket, stop.clone());
    Ok(HeldSocket { label, fd, stop })
}

/// Fills the pools that the first connections of a pod take from.
fn prefetch(pod: &LocalPod) {
    for (family, v4) in [(Family::V4, true), (Family::V6, false)] {
        if pod.spec.ips.iter().any(|ip| ip.is_ipv4() == v4) {
            pod.pool(SocketKind::Outbound, family).prefetch();
            pod.pool(SocketKind::Delivery, family).prefetch();
        }
    }
}
