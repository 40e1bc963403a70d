//! The broker's operations: what a call of the agent or a message of a proxy does.
//!
//! Namespace work happens on throw-away threads outside the state's lock; operations on one pod
//! take turns by that pod's own lock.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{
    Adopted, BrokerFault, CaptureMode, Families, Family, HEARTBEAT_DEADLINE, IptablesConfig,
    ListenerLabel, OnCaptureLoss, PodSpec, PodUid, SocketKind, ToProxy,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::capture::Applied;
use super::inspect::{Looked, Watched};
use super::netns::{Namespace, NetnsError};
use super::routes;
use super::sockets::{self, LabelledListener, SocketError};
use super::state::{Pod, State};
use super::{capture, guard};
use crate::bpf::Steering;

/// How long the first adoptions wait for a running proxy to return its sockets.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a proxy is not told that it knows every pod where no agent has said so yet.
const AGENT: Duration = Duration::from_secs(15);

/// Why an operation on a pod failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    #[error(transparent)]
    Pod(#[from] millrace_runtime::handoff::InvalidPod),
    #[error("pod {0} is not adopted")]
    Unknown(PodUid),
    #[error("pod {pod}: its network namespace belongs to pod {other}, which is still adopted")]
    Shared { pod: PodUid, other: PodUid },
    #[error("pod {pod}")]
    Netns {
        pod: PodUid,
        #[source]
        source: NetnsError,
    },
    #[error("pod {pod}")]
    Socket {
        pod: PodUid,
        #[source]
        source: SocketError,
    },
    #[error("pod {pod}")]
    Routes {
        pod: PodUid,
        #[source]
        source: routes::RouteError,
    },
    #[error("pod {pod}")]
    Capture {
        pod: PodUid,
        #[source]
        source: capture::CaptureError,
    },
}

impl From<HubError> for BrokerFault {
    fn from(error: HubError) -> Self {
        let retryable = !matches!(
            error,
            HubError::Pod(_)
                | HubError::Netns {
                    source: NetnsError::Own,
                    ..
                }
        );
        Self {
            retryable,
            message: chain(&error),
        }
    }
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The adopted pod as the agent is told: what was found and the descriptors.
pub(super) struct Adoption {
    pub(super) adopted: Adopted,
    pub(super) fds: Vec<Arc<OwnedFd>>,
}

/// The broker's heart, shared by all connections.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) state: Mutex<State>,
    turns: Mutex<HashMap<PodUid, Arc<tokio::sync::Mutex<()>>>>,
    settled: watch::Sender<bool>,
    /// An agent has had every pod adopted that it wants.
    synced: watch::Sender<bool>,
    started: Instant,
    default_workers: u16,
}

impl Hub {
    pub(super) fn new(default_workers: u16) -> Self {
        Self {
            state: Mutex::new(State::new()),
            turns: Mutex::default(),
            settled: watch::Sender::new(false),
            synced: watch::Sender::new(false),
            started: Instant::now(),
            default_workers,
        }
    }

    /// Takes a pod on, or refreshes one that is known.
    pub(super) async fn adopt(&self, spec: PodSpec) -> Result<Adoption, HubError> {
        spec.validate()?;
        let uid = spec.uid.clone();
        let _turn = self.turn(&uid).await;
        self.settle().await;
        let netns = Arc::new(Namespace::open(&spec.netns).map_err(in_pod(&uid))?);
        self.give_up_predecessor(&uid, &netns).await?;
        let known = {
            let state = self.state.lock();
            state.pods.contains_key(&uid)
        };
        let families = self.prepare(&uid, &netns, known).await?;
        {
            let mut state = self.state.lock();
            // Another one may have been taken on meanwhile.
            alone(&state, &uid, &netns)?;
            let returned = state.returned.remove(&uid).unwrap_or_default();
            let pod = state.pods.entry(uid.clone()).or_insert_with(|| Pod {
                spec: spec.clone(),
                netns: Arc::clone(&netns),
                families,
                capture: CaptureMode::None,
                on_loss: OnCaptureLoss::default(),
                iptables: None,
                pulse: None,
                steered: None,
                listeners: Vec::new(),
                watched: Watched::default(),
            });
            pod.spec = spec;
            pod.families = families;
            pod.drop_dead();
            pod.take_on(of_namespace(returned, netns.cookie()));
        }
        self.fill(&uid).await?;
        let state = self.state.lock();
        state.announce_pod(&uid);
        let pod = state
            .pods
            .get(&uid)
            .ok_or_else(|| HubError::Unknown(uid.clone()))?;
        let (inbound, mut fds) = pod.inbound();
        let own = pod.netns_fd().map_err(|source| HubError::Netns {
            pod: uid.clone(),
            source: NetnsError::Enter(source),
        })?;
        fds.insert(0, Arc::new(own));
        Ok(Adoption {
            adopted: Adopted {
                uid,
                netns_cookie: netns.cookie(),
                families,
                inbound,
            },
            fds,
        })
    }

    /// Gives a pod up; one that is not known is fine.
    pub(super) async fn release(&self, uid: &PodUid) {
        let _turn = self.turn(uid).await;
        self.drop_pod(uid).await;
    }

    /// Changes how a pod is captured.
    pub(super) async fn capture(
        &self,
        uid: &PodUid,
        mode: CaptureMode,
        on_loss: OnCaptureLoss,
        iptables: Option<IptablesConfig>,
    ) -> Result<Applied, HubError> {
        let _turn = self.turn(uid).await;
        let (netns, families, addresses, lost) = {
            let state = self.state.lock();
            let pod = state
                .pods
                .get(uid)
                .ok_or_else(|| HubError::Unknown(uid.clone()))?;
            let addresses = pod.spec.ips.clone();
            (Arc::clone(&pod.netns), pod.families, addresses, state.lost)
        };
        // In every mode: the guard of a closed pod has to let pass what capture leaves alone.
        let rules = (mode != CaptureMode::None).then(|| {
            let mut rules = iptables.unwrap_or_default();
            rules.ipv6 &= families.v6;
            rules
        });
        let plan = capture::Plan::new(mode, on_loss, rules.clone(), addresses, lost);
        if let Some(applied) = self.in_place(uid, &plan) {
            return Ok(applied);
        }
        let (applying, inside) = (plan.clone(), Arc::clone(&netns));
        let (applied, looked) = netns
            .run_async(move || {
                let applied = applying.apply()?;
                if let Some(steered) = &applied.steered {
                    steered.tell(inside.as_fd(), &mut Steering::default());
                }
                Ok((applied, Looked::now(&applying)))
            })
            .await
            .map_err(in_pod(uid))?
            .map_err(|source| HubError::Capture {
                pod: uid.clone(),
                source,
            })?;
        let mut state = self.state.lock();
        if let Some(pod) = state.pods.get_mut(uid) {
            let changed = pod.capture != mode;
            pod.capture = mode;
            pod.on_loss = on_loss;
            pod.iptables = rules;
            pod.watched.put(plan, applied.clone(), looked);
            pod.pulse.clone_from(&applied.pulse);
            pod.steered.clone_from(&applied.steered);
            if changed {
                tracing::info!(pod = %pod.spec.qualified_name(), %mode, detail = applied.detail, problem = applied.problem, "capture changed");
                state.tell_proxies(&ToProxy::CaptureChanged {
                    uid: uid.clone(),
                    capture: mode,
                });
            }
        }
        Ok(applied)
    }

    /// Drops what proxies returned for pods that the agent does not want.
    pub(super) fn agent_synced(&self) {
        let mut state = self.state.lock();
        for (uid, _) in std::mem::take(&mut state.returned) {
            tracing::info!(%uid, "pod of an earlier broker is gone");
            state.tell_proxies(&ToProxy::PodDown { uid });
        }
        drop(state);
        self.synced.send_replace(true);
    }

    /// Makes unconnected sockets for a proxy.
    pub(super) async fn want(
        &self,
        uid: &PodUid,
        kind: SocketKind,
        family: Family,
        count: u16,
    ) -> Result<Vec<OwnedFd>, HubError> {
        let (netns, families) = {
            let state = self.state.lock();
            let pod = state
                .pods
                .get(uid)
                .ok_or_else(|| HubError::Unknown(uid.clone()))?;
            (Arc::clone(&pod.netns), pod.families)
        };
        netns
            .run_async(move || sockets::unconnected(kind, family, families, count))
            .await
            .map_err(in_pod(uid))?
            .map_err(|source| HubError::Socket {
                pod: uid.clone(),
                source,
            })
    }

    /// Takes listening sockets back from a proxy.
    pub(super) fn give_back(&self, uid: &PodUid, labels: Vec<ListenerLabel>, fds: Vec<OwnedFd>) {
        let mut state = self.state.lock();
        let wanted = state.pods.get(uid).map(|pod| pod.netns.cookie());
        let mut kept = Vec::with_capacity(fds.len());
        for (label, fd) in labels.into_iter().zip(fds) {
            match sockets::examine(label, fd, wanted) {
                Ok(listener) => kept.push(listener),
                Err(reason) => {
                    tracing::warn!(%uid, ?label, reason, "returned socket is not taken");
                }
            }
        }
        if let Some(pod) = state.pods.get_mut(uid) {
            if pod.take_on(kept) {
                state.announce_pod(uid);
            }
            return;
        }
        let let_go = state.keep_returned(uid, kept);
        if let_go > 0 {
            tracing::warn!(%uid, let_go, "returned sockets are not kept, too many or known");
        }
    }

    /// A proxy has returned what it had: gives every pod enough sockets, then tells it of all.
    pub(super) async fn proxy_ready(&self, peer: u64) {
        let was_lost = {
            let mut state = self.state.lock();
            state.heard(peer);
            std::mem::replace(&mut state.lost, false)
        };
        self.settled.send_replace(true);
        let uids: Vec<PodUid> = self.state.lock().pods.keys().cloned().collect();
        for uid in &uids {
            let _turn = self.turn(uid).await;
            match self.fill(uid).await {
                Ok(true) => self.state.lock().announce_pod(uid),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%uid, error = %chain(&error), "pod lacks listening sockets");
                }
            }
            if was_lost {
                self.refresh_rules(uid).await;
            }
        }
        let (outbox, draining) = {
            let mut state = self.state.lock();
            let Some(proxy) = state.proxies.get_mut(&peer) else {
                return;
            };
            proxy.ready = true;
            let (outbox, draining) = (proxy.outbox.clone(), proxy.draining.clone());
            for pod in state.pods.values() {
                pod.announce(&outbox);
            }
            state.announce_proxies();
            (outbox, draining)
        };
        tokio::select! {
            () = self.synced() => {}
            // Nobody waits for this one to serve.
            () = draining.cancelled() => {}
        }
        outbox.post(ToProxy::Synced, Vec::new());
    }

    /// Waits until an agent has had its pods adopted: a proxy that comes to a new broker before that
    /// would be taken for one that serves them, and its predecessor be told to end. Without an agent there
    /// are no pods to wait for.
    async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`; running out of time is the other way to go on.
        drop(tokio::time::timeout_at(self.started + AGENT, synced.wait_for(|s| *s)).await);
    }

    /// Called now and then: when every proxy has been silent for too long nothing listens in any
    /// pod any more, so that a connection fails (or, in open pods, goes direct) instead of
    /// waiting for ever.
    pub(super) async fn expire(&self) {
        let uids: Vec<PodUid> = {
            let mut state = self.state.lock();
            if !state.expire(HEARTBEAT_DEADLINE) {
                return;
            }
            state.lost = true;
            tracing::warn!(
                pods = state.pods.len(),
                "no proxy is left, closing listeners"
            );
            let uids: Vec<PodUid> = state.pods.keys().cloned().collect();
            for pod in state.pods.values_mut() {
                for listener in pod.listeners.drain(..) {
                    listener.shut_down();
                }
            }
            for uid in &uids {
                state.announce_inbound(uid);
            }
            state.returned.clear();
            state.announce_proxies();
            uids
        };
        for uid in &uids {
            let _turn = self.turn(uid).await;
            self.refresh_rules(uid).await;
        }
    }

    /// Renews the rules of open pods while a proxy serves: without it they let go.
    pub(super) fn refresh_open(&self) {
        let pulses: Vec<_> = {
            let state = self.state.lock();
            if state.lost {
                return;
            }
            let pulse = |(uid, pod): (&PodUid, &Pod)| Some((uid.clone(), pod.pulse.clone()?));
            state.pods.iter().filter_map(pulse).collect()
        };
        for (uid, pulse) in pulses {
            if let Err(error) = pulse.beat() {
                tracing::debug!(%uid, %error, "rules of an open pod cannot be refreshed");
            }
        }
    }

    /// Tells the guards of pods whose programs steer that they do.
    pub(super) fn refresh_steered(&self) {
        let told: Vec<_> = {
            let state = self.state.lock();
            let told = |pod: &Pod| Some((Arc::clone(&pod.netns), pod.steered.clone()?));
            state.pods.values().filter_map(told).collect()
        };
        let mut programs = Steering::default();
        for (netns, steered) in told {
            steered.tell(netns.as_fd(), &mut programs);
        }
    }

    /// Waits until a proxy is there or the time for one to appear has passed.
    async fn settle(&self) {
        let mut settled = self.settled.subscribe();
        // The sender lives in `self`; running out of time is the other way to go on.
        drop(tokio::time::timeout_at(self.started + SETTLE, settled.wait_for(|s| *s)).await);
    }

    /// The pod's turn: operations on one pod do not overlap.
    pub(super) async fn turn(&self, uid: &PodUid) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut turns = self.turns.lock();
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(turns.entry(uid.clone()).or_default())
        };
        lock.lock_owned().await
    }

    async fn give_up_predecessor(&self, uid: &PodUid, netns: &Namespace) -> Result<(), HubError> {
        let replaced = {
            let state = self.state.lock();
            alone(&state, uid, netns)?;
            state
                .pods
                .get(uid)
                .is_some_and(|pod| pod.netns.cookie() != netns.cookie())
        };
        if replaced {
            tracing::info!(%uid, "pod has a new network namespace");
            self.drop_pod(uid).await;
        }
        Ok(())
    }

    /// Prepares the namespace; that of a pod which is `known` has heard of this broker.
    async fn prepare(
        &self,
        uid: &PodUid,
        netns: &Namespace,
        known: bool,
    ) -> Result<Families, HubError> {
        netns
            .run_async(move || {
                let families = routes::families();
                // Before a socket of this broker is used.
                if !known {
                    guard::admit();
                }
                routes::prepare(families).map(|()| families)
            })
            .await
            .map_err(in_pod(uid))?
            .map_err(|source| HubError::Routes {
                pod: uid.clone(),
                source,
            })
    }

    /// Makes the listening sockets that the pod lacks, unless proxies are given up; true when
    /// there are new ones.
    async fn fill(&self, uid: &PodUid) -> Result<bool, HubError> {
        let (netns, families, missing) = {
            let state = self.state.lock();
            if state.lost {
                return Ok(false);
            }
            let workers = state.workers().unwrap_or(self.default_workers);
            let Some(pod) = state.pods.get(uid) else {
                return Ok(false);
            };
            (Arc::clone(&pod.netns), pod.families, pod.missing(workers))
        };
        if missing.is_empty() {
            return Ok(false);
        }
        let made = netns
            .run_async(move || sockets::listeners(families, &missing))
            .await
            .map_err(in_pod(uid))?
            .map_err(|source| HubError::Socket {
                pod: uid.clone(),
                source,
            })?;
        let mut state = self.state.lock();
        Ok(state.pods.get_mut(uid).is_some_and(|pod| pod.take_on(made)))
    }

    /// Brings the pod's rules in line with whether a proxy is there.
    async fn refresh_rules(&self, uid: &PodUid) {
        let (netns, plan) = {
            let state = self.state.lock();
            let Some(pod) = state.pods.get(uid) else {
                return;
            };
            if pod.on_loss == OnCaptureLoss::Closed || pod.capture != CaptureMode::Iptables {
                return;
            }
            let plan = capture::Plan::new(
                pod.capture,
                pod.on_loss,
                pod.iptables.clone(),
                pod.spec.ips.clone(),
                state.lost,
            );
            (Arc::clone(&pod.netns), plan)
        };
        let then = plan.clone();
        let applied = netns.run_async(move || plan.apply()).await;
        if let Some(pod) = self.state.lock().pods.get_mut(uid) {
            // Also where it failed: the next look finds that and has it repaired.
            pod.watched.forget();
        }
        match applied {
            Ok(Ok(applied)) => {
                if let Some(pod) = self.state.lock().pods.get_mut(uid) {
                    pod.watched.put(then, applied.clone(), None);
                    pod.pulse.clone_from(&applied.pulse);
                }
                tracing::info!(%uid, detail = applied.detail, "rules follow the proxy");
            }
            Ok(Err(error)) => tracing::warn!(%uid, error = %chain(&error), "rules not changed"),
            Err(error) => tracing::warn!(%uid, error = %chain(&error), "rules not changed"),
        }
    }

    async fn drop_pod(&self, uid: &PodUid) {
        let pod = {
            let mut state = self.state.lock();
            state.returned.remove(uid);
            let pod = state.pods.remove(uid);
            if pod.is_some() {
                state.tell_proxies(&ToProxy::PodDown { uid: uid.clone() });
            }
            pod
        };
        let Some(pod) = pod else { return };
        let families = pod.families;
        let cleaned = pod
            .netns
            .run_async(move || {
                let undone = capture::remove();
                routes::remove(families);
                undone
            })
            .await;
        match cleaned {
            Ok(Ok(())) => {
                tracing::info!(pod = %pod.spec.qualified_name(), "pod released");
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = %pod.spec.qualified_name(), error = %chain(&error), "rules not removed");
            }
            Err(error) => {
                tracing::warn!(pod = %pod.spec.qualified_name(), error = %chain(&error), "namespace not cleaned");
            }
        }
    }
}

/// Refuses a namespace that is another pod's.
fn alone(state: &State, uid: &PodUid, netns: &Namespace) -> Result<(), HubError> {
    let shares = |(_, pod): &(&PodUid, &Pod)| pod.netns.cookie() == netns.cookie();
    match state.pods.iter().find(|pod| shares(pod) && pod.0 != uid) {
        Some((other, _)) => Err(HubError::Shared {
            pod: uid.clone(),
            other: other.clone(),
        }),
        None => Ok(()),
    }
}

pub(super) fn in_pod(uid: &PodUid) -> impl Fn(NetnsError) -> HubError {
    let pod = uid.clone();
    move |source| HubError::Netns {
        pod: pod.clone(),
        source,
    }
}

fn of_namespace(returned: Vec<LabelledListener>, cookie: u64) -> Vec<LabelledListener> {
    use std::os::fd::AsFd;
    returned
        .into_iter()
        .filter(|listener| {
            super::netns::cookie_of(listener.socket.as_fd()).is_ok_and(|own| own == cookie)
        })
        .collect()
}
