//! The agent's heart: one task that brings what is in line with what should be.
//!
//! Input: pod sets of the source, events of the broker, requests through the API. Output: calls
//! to the broker, writes into the eBPF maps, and a [`View`] for everyone who asks. It alone
//! changes anything, and a pod's changes are one piece of work, so no two of them overlap; several
//! pods are worked on side by side (`side_by_side.rs`).

mod carry_out;
mod side_by_side;
mod sweep;
mod view;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::backoff::Backoff;
use millrace_runtime::handoff::{
    CaptureMode, Cause, Families, ListenerLabel, PodSpec, PodUid, ProxyState, Received, ToAgent,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::chain;
use crate::broker_client::{BrokerClient, CallError};
use crate::config::AgentConfig;
use crate::enroll::{Actual, Desired};
use crate::integrity::{self, Integrity, Notice, Subjects, Watch};
use crate::kernel::Kernel;
use crate::pods::PodSet;
use crate::redirect::{self, CaptureSettings, Choice, NodeAbilities, Wish};
use crate::status::View;
use crate::store::Store;

/// How often what pods go without is looked for again.
const RECHECK: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(30);
const RECONNECT: Duration = Duration::from_millis(100);

/// A request through the API.
#[derive(Debug)]
pub enum Command {
    /// Capture a pod in another way, or, with `None`, as its annotations say.
    Request {
        /// The pod.
        uid: PodUid,
        /// What is asked for.
        wish: Option<Wish>,
        /// Whether the pod is known; answered when the change is carried out.
        done: oneshot::Sender<bool>,
    },
    /// Look at everything now.
    Refresh {
        /// Answered when that is done.
        done: oneshot::Sender<()>,
    },
}

/// A pod as the agent has it.
#[derive(Debug)]
struct Tracked {
    pod: Arc<PodSpec>,
    adopted: bool,
    handle: Option<Handle>,
    applied: Option<(CaptureMode, CaptureSettings)>,
    /// What captures it now, whether or not the last change was carried out completely.
    in_force: CaptureMode,
    /// Why eBPF failed for this pod.
    refused: Option<String>,
    detail: String,
    /// What it goes without although it is captured.
    lacks: Option<String>,
    problem: Option<String>,
    retry: Backoff,
    not_before: Option<Instant>,
}

/// What the broker gave for a pod.
#[derive(Debug)]
struct Handle {
    cookie: u64,
    netns: Arc<OwnedFd>,
    families: Families,
    labels: Vec<ListenerLabel>,
    inbound: Vec<OwnedFd>,
}

/// An enrolled pod with everything decided about it.
#[derive(Clone)]
struct Decided {
    desired: Desired,
    choice: Choice,
}

/// The task's state.
pub struct Reconciler {
    config: Arc<AgentConfig>,
    kernel: Kernel,
    sets: watch::Receiver<Arc<PodSet>>,
    store: Store,
    broker: Option<Arc<BrokerClient>>,
    events: Option<mpsc::Receiver<Received<ToAgent>>>,
    told_synced: bool,
    /// Nothing of an earlier agent is left in the maps.
    swept: bool,
    pods: BTreeMap<PodUid, Tracked>,
    proxies: Vec<ProxyState>,
    proxy_gone: bool,
    started: String,
    integrity: Integrity,
    /// What the watch over capture works on ...
    subjects: watch::Sender<Arc<Subjects>>,
    /// ... and asks for.
    notices: (mpsc::Sender<Notice>, mpsc::Receiver<Notice>),
    view: watch::Sender<Arc<View>>,
}

impl Reconciler {
    /// A reconciler that has not looked at anything yet.
    pub fn new(
        config: Arc<AgentConfig>,
        kernel: Kernel,
        sets: watch::Receiver<Arc<PodSet>>,
        store: Store,
    ) -> Self {
        let started = crate::status::rfc3339(std::time::SystemTime::now());
        let empty = view::empty(&config, &kernel, &started);
        Self {
            config,
            kernel,
            sets,
            store,
            broker: None,
            events: None,
            told_synced: false,
            swept: false,
            pods: BTreeMap::new(),
            proxies: Vec::new(),
            proxy_gone: false,
            started,
            integrity: Integrity::default(),
            subjects: watch::Sender::default(),
            notices: integrity::notices(),
            view: watch::Sender::new(Arc::new(empty)),
        }
    }

    /// What is shown to others.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// What is known of capture's integrity.
    pub fn integrity(&self) -> Integrity {
        self.integrity.clone()
    }

    /// The task that watches over what this one does.
    pub fn watch(&self) -> Watch {
        Watch::new(
            self.integrity.clone(),
            self.kernel.clone(),
            self.subjects.subscribe(),
            self.notices.0.clone(),
            self.config.canary_interval,
        )
    }

    /// Works until `stop`.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut recheck = tokio::time::interval(RECHECK);
        let mut answers: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        loop {
            if self.broker.is_none() {
                self.connect().await;
            }
            self.take_in_what_waits();
            let again = self.reconcile().await;
            self.publish();
            for answer in answers.drain(..) {
                answer();
            }
            let wake = self.wake(again);
            // Not biased: no arm can starve the others, each is rare.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.sets.changed() => if changed.is_err() { return },
                event = next_event(&mut self.events) => self.event(event),
                Some(command) = commands.recv() => answers.push(self.command(command)),
                Some(notice) = self.notices.1.recv() => self.notice(notice),
                _ = recheck.tick() => self.recheck(false),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// When to look again without being asked.
    fn wake(&self, again: bool) -> Instant {
        let now = Instant::now();
        if again {
            return now;
        }
        let mut wake = now + RETRY_MOST;
        if self.broker.is_none() {
            wake = now + RECONNECT;
        }
        for pod in self.pods.values() {
            if let Some(not_before) = pod.not_before {
                wake = wake.min(not_before);
            }
        }
        wake
    }

    async fn connect(&mut self) {
        let path = self.config.paths.broker_socket();
        match BrokerClient::connect(&path).await {
            Ok((client, mut events)) => {
                tracing::info!(socket = %path.display(), "broker connected");
                self.broker = Some(Arc::new(client));
                // What came before the greeting says whose sockets are the proxy's.
                while let Ok(event) = events.try_recv() {
                    self.event(Some(event));
                }
                self.events = Some(events);
                self.told_synced = false;
                self.swept = false;
                for pod in self.pods.values_mut() {
                    pod.adopted = false;
                    pod.not_before = None;
                }
            }
            Err(error) => {
                tracing::debug!(socket = %path.display(), error = %chain(&error), "no broker");
            }
        }
    }

    fn disconnect(&mut self, why: &CallError) {
        tracing::warn!(error = %chain(why), "broker lost");
        self.broker = None;
        self.events = None;
        for pod in self.pods.values_mut() {
            pod.adopted = false;
        }
    }

    fn event(&mut self, event: Option<Received<ToAgent>>) {
        let Some(received) = event else {
            self.disconnect(&CallError::Closed);
            return;
        };
        match received.message {
            ToAgent::Reply { .. } => {}
            ToAgent::Proxies {
                proxies,
                gone,
                trusted,
            } => {
                if gone != self.proxy_gone {
                    tracing::info!(gone, "proxy presence changed");
                }
                self.proxies = proxies;
                self.proxy_gone = gone;
                self.kernel.set_proxy_gone(gone);
                self.kernel.set_trusted(&trusted);
            }
            ToAgent::Listeners { uid, inbound } => {
                if let Some(pod) = self.pods.get_mut(&uid)
                    && let Some(handle) = &mut pod.handle
                    && handle.labels != inbound
                {
                    handle.labels = inbound;
                    handle.inbound = received.fds;
                    pod.capture_anew();
                }
            }
        }
    }

    /// Takes in what came together, so that many changes are one round of work.
    fn take_in_what_waits(&mut self) {
        while let Some(Ok(event)) = self.events.as_mut().map(mpsc::Receiver::try_recv) {
            self.event(Some(event));
        }
        while let Ok(notice) = self.notices.1.try_recv() {
            self.notice(notice);
        }
    }

    fn command(&mut self, command: Command) -> Box<dyn FnOnce() + Send> {
        match command {
            Command::Request { uid, wish, done } => {
                let known = self.sets.borrow().pods.contains_key(&uid);
                if known {
                    tracing::info!(%uid, ?wish, "capture requested");
                    self.store.request(&uid, wish);
                    if let Some(pod) = self.pods.get_mut(&uid) {
                        pod.refused = None;
                        pod.not_before = None;
                    }
                }
                // A caller that has gone needs no answer.
                Box::new(move || {
                    done.send(known).ok();
                })
            }
            Command::Refresh { done } => {
                self.recheck(true);
                self.integrity.repaired();
                Box::new(move || {
                    done.send(()).ok();
                })
            }
        }
    }

    /// Carries out what the watch asks for; the next round of the loop captures anew.
    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Changed => return,
            Notice::Programs => self.kernel.restore(),
            Notice::Overtaken(hooks) => {
                tracing::info!(?hooks, "programs of others ran before Millrace's");
                self.kernel.go_first(&hooks);
            }
            Notice::Pod(uid, causes) => {
                let Some(pod) = self.pods.get_mut(&uid) else {
                    return;
                };
                tracing::info!(pod = %pod.pod.qualified_name(), ?causes, "capture is repaired");
                let sockets = [Cause::Listener, Cause::Canary];
                if causes.iter().any(|cause| sockets.contains(cause)) {
                    // The broker then makes what is gone.
                    pod.adopted = false;
                }
                pod.capture_anew();
            }
        }
        self.integrity.repaired();
    }

    /// Lets what pods go without be looked for again; with `rules` also what is inside those that
    /// are captured by them, without waiting for the watch to find a difference.
    fn recheck(&mut self, rules: bool) {
        for pod in self.pods.values_mut() {
            if (rules && pod.in_force.is_by_rules()) || pod.lacks.is_some() {
                pod.applied = None;
            }
        }
    }

    /// Decides about every enrolled pod.
    fn decide(&self) -> BTreeMap<PodUid, Decided> {
        let node = NodeAbilities {
            wish: self.config.capture,
            ebpf: self.kernel.ability(),
        };
        let set = self.sets.borrow();
        let enrolled = set
            .pods
            .values()
            .filter(|pod| redirect::enrolled(pod).is_ok());
        enrolled
            .map(|pod| {
                let (settings, _) = CaptureSettings::read(pod);
                let refused = self
                    .pods
                    .get(&pod.uid)
                    .and_then(|tracked| tracked.refused.as_deref());
                let requested = self.store.requested(&pod.uid);
                let choice = redirect::choose(requested, &settings, &node, refused);
                let desired = Desired {
                    pod: Arc::clone(pod),
                    mode: choice.mode,
                    settings,
                };
                (pod.uid.clone(), Decided { desired, choice })
            })
            .collect()
    }

    /// Plans and carries out; true when it should be done again at once.
    async fn reconcile(&mut self) -> bool {
        if !self.sets.borrow_and_update().synced {
            return false;
        }
        let decided = self.decide();
        let desired = decided
            .iter()
            .map(|(uid, decided)| (uid.clone(), decided.desired.clone()))
            .collect();
        let again = self.work_off(&decided, &desired).await;
        self.finish_sync(&desired).await;
        self.sweep_kernel(&desired);
        again
    }

    fn actual(&self) -> BTreeMap<PodUid, Actual> {
        self.pods
            .iter()
            .map(|(uid, tracked)| {
                let actual = Actual {
                    pod: Arc::clone(&tracked.pod),
                    adopted: tracked.adopted,
                    applied: tracked.applied.clone(),
                };
                (uid.clone(), actual)
            })
            .collect()
    }
}

async fn next_event(
    events: &mut Option<mpsc::Receiver<Received<ToAgent>>>,
) -> Option<Received<ToAgent>> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

impl Tracked {
    fn new(pod: Arc<PodSpec>) -> Self {
        Self {
            pod,
            adopted: false,
            handle: None,
            applied: None,
            in_force: CaptureMode::None,
            refused: None,
            detail: String::new(),
            lacks: None,
            problem: None,
            retry: Backoff::new(RETRY_FIRST, RETRY_MOST),
            not_before: None,
        }
    }

    fn capture_anew(&mut self) {
        self.applied = None;
        self.not_before = None;
    }

    fn failed(&mut self, problem: String) {
        self.problem = Some(problem);
        self.not_before = self.retry.next_delay().map(|delay| Instant::now() + delay);
    }

    fn succeeded(&mut self) {
        self.problem = None;
        self.not_before = None;
        self.retry.reset();
    }

    fn waits(&self) -> bool {
        self.not_before.is_some_and(|at| at > Instant::now())
    }
}
