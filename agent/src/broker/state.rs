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
    MAX_WORKERS, OnCaptureLoss, PodSpec, PodUid, ProxyState, ToAgent, ToProxy,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::creator;
use super::guard::Steered;
use super::inspect::Watched;
use super::netns::Namespace;
use super::outbox::Outbox;
use super::sockets::LabelledListener;
use crate::iptables::Pulse;

/// Most pods for which returned sockets wait to be adopted: more than a node runs.
const MAX_RETURNED_PODS: usize = 1024;
/// Most listening sockets of one pod, and most returned ones that wait for it: those of the widest proxy.
const MAX_RETURNED_OF_POD: usize = ListenerRole::ALL.len() * MAX_WORKERS as usize;
/// Most returned sockets that wait, over all pods.
const MAX_RETURNED: usize = 32 * 1024;
/// Longest uid that a pod can have; see `PodSpec::validate`.
const MAX_UID: usize = 128;

/// An adopted pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) netns: Arc<Namespace>,
    pub(super) families: Families,
    pub(super) capture: CaptureMode,
    pub(super) on_loss: OnCaptureLoss,
    pub(super) iptables: Option<IptablesConfig>,
    /// Renewed while a proxy serves; only rules of open pods need it.
    pub(super) pulse: Option<Arc<Pulse>>,
    /// Told again and again; only guards of pods that eBPF captures listen.
    pub(super) steered: Option<Arc<Steered>>,
    pub(super) listeners: Vec<LabelledListener>,
    /// What was found when its namespace was last looked into.
    pub(super) watched: Watched,
}

/// A connected proxy that has said `Hello`.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) state: ProxyState,
    /// It has asked for its pods, which it does once.
    pub(super) asked: bool,
    /// It hears of pods.
    pub(super) ready: bool,
    /// Cancelled when it says that it drains.
    pub(super) draining: CancellationToken,
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

    /// The cgroups of this broker and its proxies; none unless this broker has one of its own.
    fn trusted(&self) -> Vec<u64> {
        let Some(own) = creator::own() else {
            return Vec::new();
        };
        let proxies = self.proxies.values();
        let mut ids: Vec<u64> = proxies
            .filter_map(|proxy| creator::of(proxy.state.pid))
            .map(|creator| creator.id)
            .chain([own.id])
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Keeps what a proxy gave back for a pod that no agent has adopted yet, as far as there is
    /// room; says how many sockets were let go.
    pub(super) fn keep_returned(&mut self, uid: &PodUid, sockets: Vec<LabelledListener>) -> usize {
        let waiting: usize = self.returned.values().map(Vec::len).sum();
        let given = sockets.len();
        let known = self.returned.contains_key(uid);
        let no_room = !known && self.returned.len() >= MAX_RETURNED_PODS;
        if given == 0 || no_room || uid.0.len() > MAX_UID {
            return given;
        }
        if waiting >= MAX_RETURNED {
            return given;
        }
        let held = self.returned.entry(uid.clone()).or_default();
        let before = held.len();
        for socket in sockets {
            let again = held.iter().any(|l| l.label.cookie == socket.label.cookie);
            let room = (MAX_RETURNED_OF_POD - held.len())
                .min(MAX_RETURNED + before - waiting - held.len());
            if !again && room > 0 {
                held.push(socket);
            }
        }
        given - (held.len() - before)
    }

    /// Tells every agent which proxies there are.
    pub(super) fn announce_proxies(&self) {
        let proxies = self.proxy_states();
        let trusted = self.trusted();
        for agent in self.agents.values() {
            agent.post(
                ToAgent::Proxies {
                    proxies: proxies.clone(),
                    gone: self.lost,
                    trusted: trusted.clone(),
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

    /// Sockets that do not listen any more: somebody ended them behind the broker's back.
    pub(super) fn dead(&self) -> impl Iterator<Item = &LabelledListener> {
        self.listeners
            .iter()
            .filter(|listener| !listener.is_alive())
    }

    /// Lets such sockets go, so that new ones take their places.
    pub(super) fn drop_dead(&mut self) {
        self.listeners.retain(LabelledListener::is_alive);
    }

    /// Takes sockets on, as many as the widest proxy has; one that is already held is dropped, one whose number is
    /// taken gets the next free one. True when anything was new.
    pub(super) fn take_on(&mut self, sockets: Vec<LabelledListener>) -> bool {
        take_on(&mut self.listeners, sockets)
    }
}

fn take_on(held: &mut Vec<LabelledListener>, sockets: Vec<LabelledListener>) -> bool {
    let before = held.len();
    for mut socket in sockets {
        let known = |l: &LabelledListener| l.label.cookie == socket.label.cookie;
        if held.iter().any(known) || held.len() >= MAX_RETURNED_OF_POD {
            continue;
        }
        let taken = |index: u16| {
            held.iter()
                .any(|l| l.label.role == socket.label.role && l.label.index == index)
        };
        if taken(socket.label.index) {
            socket.label.index = (0..u16::MAX)
                .find(|index| !taken(*index))
                .unwrap_or(u16::MAX);
        }
        held.push(socket);
    }
    held.sort_by_key(|l| l.label);
    held.len() != before
}

fn unzip(listeners: &[LabelledListener]) -> (Vec<ListenerLabel>, Vec<Arc<OwnedFd>>) {
    listeners
        .iter()
        .map(|listener| (listener.label, Arc::clone(&listener.socket)))
        .unzip()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use millrace_runtime::handoff::ListenerFamily;

    use super::*;

    fn sockets(file: &Arc<OwnedFd>, cookies: std::ops::Range<u64>) -> Vec<LabelledListener> {
        cookies
            .map(|cookie| LabelledListener {
                label: ListenerLabel {
                    role: ListenerRole::Inbound,
                    index: 0,
                    family: ListenerFamily::Dual,
                    cookie,
                },
                socket: Arc::clone(file),
            })
            .collect()
    }

    #[test]
    fn what_a_proxy_gives_back_is_kept_once_and_within_bounds() {
        let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        let mut state = State::new();
        let mut give =
            |uid: &str, cookies| state.keep_returned(&uid.into(), sockets(&file, cookies));
        assert_eq!(give("a", 0..4), 0);
        assert_eq!(give("a", 2..6), 2, "two are known");
        assert_eq!(give("none", 0..0), 0);
        assert_eq!(give(&"x".repeat(200), 0..1), 1);
        let of_pod = MAX_RETURNED_OF_POD as u64;
        assert_eq!(give("a", 0..of_pod + 2), 6 + 2, "no pod has so many");
        let full = MAX_RETURNED / MAX_RETURNED_OF_POD;
        for pod in 1..full {
            assert_eq!(give(&format!("pod-{pod}"), 0..of_pod), 0);
        }
        assert_eq!(give("more", 0..3), 3);
        let kept: usize = state.returned.values().map(Vec::len).sum();
        assert_eq!(kept, MAX_RETURNED);
        state.returned.clear();
        for pod in 0..MAX_RETURNED_PODS {
            assert_eq!(give_one(&mut state, &format!("pod-{pod}"), &file), 0);
        }
        assert_eq!(give_one(&mut state, "one-too-many", &file), 1);
    }

    #[test]
    fn an_adopted_pod_takes_no_more_sockets_than_the_widest_proxy_has() {
        let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        let most = MAX_RETURNED_OF_POD as u64;
        let mut held = Vec::new();
        assert!(take_on(&mut held, sockets(&file, 0..most + 8)));
        assert_eq!(held.len(), MAX_RETURNED_OF_POD);
        assert!(!take_on(&mut held, sockets(&file, most..most + 8)));
    }

    fn give_one(state: &mut State, uid: &str, file: &Arc<OwnedFd>) -> usize {
        state.keep_returned(&uid.into(), sockets(file, 0..1))
    }
}
