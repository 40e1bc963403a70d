//! What the broker knows: adopted pods with their sockets, connected proxies, connected agents.
//!
//! Plain data behind one lock that is never held while a namespace is entered or a peer is
//! waited for. `hub.rs` changes it; messages to peers are queued under the lock, so every peer
//! sees changes in the order in which they happened.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{
    BrokerPod, CaptureMode, Families, IptablesConfig, ListenerLabel, ListenerRole, MAX_FDS,
    OnCaptureLoss, PodSpec, PodUid, ProxyState, ToAgent, ToProxy,
};
use tokio::time::Instant;

use super::netns::Namespace;
use super::outbox::Outbox;
use super::sockets::LabelledListener;

/// An adopted pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) netns: Arc<Namespace>,
    pub(super) families: Families,
    pub(super) capture: CaptureMode,
    pub(super) on_loss: OnCaptureLoss,
    pub(super) iptables: Option<IptablesConfig>,
    pub(super) listeners: Vec<LabelledListener>,
}

/// A connected proxy that has said `Hello`.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) state: ProxyState,
    pub(super) ready: bool,
    pub(super) heard: Instant,
    pub(super) outbox: Outbox<ToProxy>,
}

/// Everything the broker knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pods: BTreeMap<PodUid, Pod>,
    /// Sockets that a proxy gave back for pods that no agent has adopted yet.
    pub(super) returned: HashMap<PodUid, Vec<LabelledListener>>,
    pub(super) proxies: BTreeMap<u64, Proxy>,
    pub(super) agents: BTreeMap<u64, Outbox<ToAgent>>,
    /// When a proxy was last heard of, or the broker's start.
    pub(super) alive: Instant,
    /// No proxy has been heard of for the deadline: nothing listens in any pod.
    pub(super) lost: bool,
    next_peer: u64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            pods: BTreeMap::new(),
            returned: HashMap::new(),
            proxies: BTreeMap::new(),
            agents: BTreeMap::new(),
            alive: Instant::now(),
            lost: false,
            next_peer: 0,
        }
    }

    /// A number for a new peer.
    pub(super) fn next_peer(&mut self) -> u64 {
        self.next_peer += 1;
        self.next_peer
    }

    /// How many sockets each role needs: one per worker of the widest proxy.
    pub(super) fn workers(&self) -> Option<u16> {
        self.proxies
            .values()
            .filter(|proxy| !proxy.state.draining)
            .map(|proxy| proxy.state.workers)
            .max()
    }

    /// Proxies that have said `Hello`, oldest epoch first.
    pub(super) fn proxy_states(&self) -> Vec<ProxyState> {
        let mut states: Vec<_> = self.proxies.values().map(|p| p.state.clone()).collect();
        states.sort_by_key(|state| state.epoch);
        states
    }

    /// Tells every agent which proxies there are.
    pub(super) fn announce_proxies(&self) {
        let proxies = self.proxy_states();
        for agent in self.agents.values() {
            agent.post(
                ToAgent::Proxies {
                    proxies: proxies.clone(),
                    gone: self.lost,
                },
                Vec::new(),
            );
        }
    }

    /// Tells proxies about a pod and agents about its inbound sockets.
    pub(super) fn announce_pod(&self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        for proxy in self.proxies.values() {
            if proxy.ready && !proxy.state.draining {
                pod.announce(&proxy.outbox);
            }
        }
        self.announce_inbound(uid);
    }

    /// Tells agents about a pod's inbound sockets.
    pub(super) fn announce_inbound(&self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        let (inbound, fds) = pod.inbound();
        for agent in self.agents.values() {
            let uid = uid.clone();
            let inbound = inbound.clone();
            agent.post(ToAgent::Listeners { uid, inbound }, fds.clone());
        }
    }

    /// Sends `message` to every proxy that hears of pods.
    pub(super) fn tell_proxies(&self, message: &ToProxy) {
        for proxy in self.proxies.values().filter(|proxy| proxy.ready) {
            proxy.outbox.post(message.clone(), Vec::new());
        }
    }

    /// Marks the moment in which a proxy was heard of.
    pub(super) fn heard(&mut self, peer: u64) {
        let now = Instant::now();
        self.alive = now;
        if let Some(proxy) = self.proxies.get_mut(&peer) {
            proxy.heard = now;
        }
    }

    /// Disconnects proxies that were silent for `limit`; true when none has been heard of for
    /// that long and pods still have sockets.
    pub(super) fn expire(&mut self, limit: Duration) -> bool {
        for proxy in self.proxies.values() {
            if proxy.heard.elapsed() >= limit {
                tracing::warn!(epoch = proxy.state.epoch, "proxy is silent, giving it up");
                proxy.outbox.close();
            }
        }
        !self.lost && self.alive.elapsed() >= limit
    }

    /// A page of adopted pods for the agent.
    pub(super) fn page(&self, after: Option<&PodUid>, size: usize) -> (Vec<BrokerPod>, bool) {
        let mut rest = self
            .pods
            .iter()
            .filter(|(uid, _)| after.is_none_or(|after| *uid > after));
        let pods = rest
            .by_ref()
            .take(size)
            .map(|(uid, pod)| BrokerPod {
                uid: uid.clone(),
                netns_cookie: pod.netns.cookie(),
                capture: pod.capture,
                listeners: pod.listeners.len(),
            })
            .collect();
        (pods, rest.next().is_some())
    }
}

impl Pod {
    /// Tells one proxy about this pod, in as many messages as its sockets need.
    pub(super) fn announce(&self, proxy: &Outbox<ToProxy>) {
        let total = self.listeners.len();
        let mut chunks = self.listeners.chunks(MAX_FDS);
        let (listeners, fds) = unzip(chunks.next().unwrap_or_default());
        proxy.post(
            ToProxy::PodUp {
                pod: Box::new(self.spec.clone()),
                families: self.families,
                capture: self.capture,
                listeners,
                total,
            },
            fds,
        );
        for chunk in chunks {
            let (listeners, fds) = unzip(chunk);
            let uid = self.spec.uid.clone();
            proxy.post(ToProxy::Listeners { uid, listeners }, fds);
        }
    }

    /// A descriptor of the pod's namespace, for the agent.
    pub(super) fn netns_fd(&self) -> std::io::Result<OwnedFd> {
        self.netns.as_fd().try_clone_to_owned()
    }

    /// The inbound sockets, for the agent.
    pub(super) fn inbound(&self) -> (Vec<ListenerLabel>, Vec<Arc<OwnedFd>>) {
        self.listeners
            .iter()
            .filter(|listener| listener.label.role == ListenerRole::Inbound)
            .take(MAX_FDS - 1)
            .map(|listener| (listener.label, Arc::clone(&listener.socket)))
            .unzip()
    }

    /// Indexes below `workers` for which a role has no socket yet.
    pub(super) fn missing(&self, workers: u16) -> Vec<(ListenerRole, u16)> {
        let mut missing = Vec::new();
        for role in ListenerRole::ALL {
            for index in 0..workers {
                let there = self
                    .listeners
                    .iter()
                    .any(|l| l.label.role == role && l.label.index == index);
                if !there {
                    missing.push((role, index));
                }
            }
        }
        missing
    }

    /// Takes sockets on; one that is already held is dropped, one whose number is taken gets the
    /// next free one. True when anything was new.
    pub(super) fn take_on(&mut self, sockets: Vec<LabelledListener>) -> bool {
        let before = self.listeners.len();
        for mut socket in sockets {
            let known = |l: &LabelledListener| l.label.cookie == socket.label.cookie;
            if self.listeners.iter().any(known) {
                continue;
            }
            let taken = |index: u16| {
                self.listeners
                    .iter()
                    .any(|l| l.label.role == socket.label.role && l.label.index == index)
            };
            if taken(socket.label.index) {
                socket.label.index = (0..u16::MAX)
                    .find(|index| !taken(*index))
                    .unwrap_or(u16::MAX);
            }
            self.listeners.push(socket);
        }
        self.listeners.sort_by_key(|l| l.label);
        self.listeners.len() != before
    }
}

fn unzip(listeners: &[LabelledListener]) -> (Vec<ListenerLabel>, Vec<Arc<OwnedFd>>) {
    listeners
        .iter()
        .map(|listener| (listener.label, Arc::clone(&listener.socket)))
        .unzip()
}
