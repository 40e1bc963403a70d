//! The configuration's one owner: takes in what the control plane, DNS and the broker say, and
//! publishes snapshots.
//!
//! [`Config::start`] gives a [`Control`] to run on the control runtime and a [`Handle`] for
//! whoever looks on (admin). The control plane is optional: a static file alone works the same.
//! A response is answered as soon as it is validated; what it holds serves once it is warm.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::ready::Blocker;
use millrace_xds::TypeUrl;
use millrace_xds::client::{
    Client, ClientConfig, ConnectionState, Driver, Event, Events, InvalidServer, KnownResource,
    Update, client,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::disk::{self, Saved};
use super::interest::{Interest, Local};
use super::state::{Mode, State, Wanted};
use super::table::WARMING_TIMEOUT;
use crate::cluster::Manager;
use crate::cluster::dns::{DnsClusters, Lookup, Resolution};
use crate::snapshot::{Resources, Store};

#[cfg(test)]
mod tests;

/// Time between a change and its being written to disk, so that a burst is written once. Short:
/// a proxy that dies before it was written and finds no control plane serves the rules before it.
const SAVE_AFTER: Duration = Duration::from_millis(20);
/// Time between two writes, so that constant change does not keep the disk busy.
const SAVE_EVERY: Duration = Duration::from_millis(100);
/// Events taken into one change at most; more wait for the next.
const BURST: usize = 64;

/// What the owner of the configuration is made from.
pub struct Config {
    /// Whether this is a node's proxy.
    pub mode: Mode,
    /// Served besides what the control plane gives.
    pub fixed: Resources,
    /// The control plane; `None` serves `fixed` alone.
    pub server: Option<ClientConfig>,
    /// File of the last good state; `None` keeps none.
    pub state_file: Option<PathBuf>,
    /// Which pods are local.
    pub interest: Interest,
    /// Who resolves DNS clusters.
    pub lookup: Arc<dyn Lookup>,
    /// Where snapshots go.
    pub store: Arc<Store>,
    /// Run-time state of clusters.
    pub manager: Arc<Manager>,
    /// Dropped when the first configuration serves.
    pub ready: Option<Blocker>,
}

/// A look at the configuration's state, from any task.
#[derive(Clone)]
pub struct Handle {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) connection: Option<watch::Receiver<ConnectionState>>,
    pub(super) freshness: Arc<Mutex<Freshness>>,
}

/// How new the served state is.
#[derive(Clone, Debug, Default)]
pub struct Freshness {
    /// Whether what serves is still what an earlier run saved.
    pub restored: bool,
    /// Last message of the control plane.
    pub last_update: Option<std::time::SystemTime>,
    /// Last write of the state file.
    pub last_saved: Option<std::time::SystemTime>,
    /// Changes of what is served so far.
    pub changes: u64,
    /// How many of them the state file has.
    pub saved_changes: u64,
}

/// The owner; to be run.
#[must_use = "nothing is served until it runs"]
pub struct Control {
    handle: Handle,
    store: Arc<Store>,
    manager: Arc<Manager>,
    stream: Option<Stream>,
    interest: watch::Receiver<Option<Local>>,
    dns: DnsClusters,
    resolutions: mpsc::Receiver<Resolution>,
    disk: Option<Disk>,
    ready: Option<Blocker>,
    /// Until when what is missing is waited for; none once that has passed.
    patience: Option<Instant>,
    /// What is subscribed to.
    wanted: Wanted,
    /// When settling is due without news.
    deadline: Option<Instant>,
}

struct Stream {
    client: Client,
    events: Events,
    driver: Option<Driver>,
}

struct Disk {
    path: PathBuf,
    node: String,
    /// When the next write is due.
    due: Option<Instant>,
    /// No write begins earlier.
    not_before: Instant,
    writing: Option<JoinHandle<()>>,
}

impl Config {
    /// Restores the saved state and prepares the stream.
    ///
    /// # Errors
    /// When the control plane's address is malformed.
    pub fn start(self) -> Result<(Control, Handle), InvalidServer> {
        let mut state = State::new(self.mode, self.fixed);
        let node = self.server.as_ref().map(|s| s.node.id.clone());
        let mut freshness = Freshness::default();
        let mut known = Vec::new();
        let disk = self.state_file.zip(node).map(|(path, node)| {
            known = restore(&mut state, &path, &node);
            freshness.restored = !known.is_empty();
            Disk {
                path,
                node,
                due: None,
                not_before: Instant::now(),
                writing: None,
            }
        });
        let stream = match self.server {
            Some(mut server) => {
                server.known = known;
                let (client, events, driver) = client(server)?;
                Some(Stream {
                    client,
                    events,
                    driver: Some(driver),
                })
            }
            None => None,
        };
        let handle = Handle {
            state: Arc::new(Mutex::new(state)),
            connection: stream.as_ref().map(|s| s.client.state()),
            freshness: Arc::new(Mutex::new(freshness)),
        };
        let (dns, resolutions) = DnsClusters::new(self.lookup);
        let control = Control {
            handle: handle.clone(),
            store: self.store,
            manager: self.manager,
            stream,
            interest: self.interest.watch(),
            dns,
            resolutions,
            disk,
            ready: self.ready,
            patience: Some(Instant::now() + WARMING_TIMEOUT),
            wanted: Wanted::default(),
            deadline: None,
        };
        Ok((control, handle))
    }
}

/// Puts what an earlier run saved into `state`; returns what the control plane need not send.
fn restore(state: &mut State, path: &std::path::Path, node: &str) -> Vec<KnownResource> {
    let saved = match disk::load(path, node) {
        Ok(Some(saved)) => saved,
        Ok(None) => return Vec::new(),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(path = %path.display(), error, "saved state is not used");
            return Vec::new();
        }
    };
    let refused = state.restore(&saved, Instant::now());
    for error in &refused {
        tracing::warn!(%error, "saved resource is not used");
    }
    tracing::info!(
        path = %path.display(),
        resources = saved.len() - refused.len(),
        "serving the saved state until the control plane answers"
    );
    let is_refused = |s: &Saved| refused.iter().any(|r| r.name == s.name);
    saved
        .into_iter()
        .filter(|s| !is_refused(s))
        .map(|s| KnownResource {
            type_url: s.type_url,
            name: s.name,
            version: s.version,
        })
        .collect()
}

/// What woke the loop.
enum News {
    Event(Option<Event>),
    Interest,
    Resolved(Resolution),
    Tick,
    Stop,
}

impl Control {
    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let driver = self.stream.as_mut().and_then(|s| s.driver.take());
        let driver = driver.map(|driver| tokio::spawn(driver.run()));
        self.interest.mark_changed();
        self.settle();
        loop {
            match self.next(&stop).await {
                News::Event(Some(event)) => self.take_events(event),
                News::Event(None) => self.stream = None,
                News::Interest => {
                    let local = self.interest.borrow_and_update().clone();
                    if let Some(local) = local {
                        self.handle.state.lock().set_interest(local);
                    }
                }
                News::Resolved(resolution) => self.take_resolutions(resolution),
                News::Tick => {}
                News::Stop => break,
            }
            self.settle();
            self.save_if_due();
        }
        if let Some(driver) = driver {
            driver.abort();
        }
        self.save_last().await;
    }

    async fn next(&mut self, stop: &CancellationToken) -> News {
        let save = self.disk.as_ref().and_then(|d| d.due);
        let due = [self.deadline, save, self.patience]
            .into_iter()
            .flatten()
            .min();
        // biased: a stop must not wait behind a busy control plane.
        tokio::select! {
            biased;
            () = stop.cancelled() => News::Stop,
            event = next_event(self.stream.as_mut()) => News::Event(event),
            Ok(()) = self.interest.changed() => News::Interest,
            Some(resolution) = self.resolutions.recv() => News::Resolved(resolution),
            () = sleep_until(due) => News::Tick,
        }
    }

    fn take_events(&mut self, first: Event) {
        let mut next = Some(first);
        for _ in 0..BURST {
            let Some(event) = next else { return };
            self.take_event(event);
            next = self.stream.as_mut().and_then(|s| s.events.try_next());
        }
        if let Some(event) = next {
            self.take_event(event);
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Update(update) => self.take_update(update),
            Event::Missing { type_url, names } => {
                tracing::warn!(?type_url, ?names, "control plane does not know resources");
                self.handle.state.lock().missing(&type_url, &names);
            }
            Event::Connected => tracing::info!("connected to the control plane"),
        }
    }

    fn take_update(&mut self, update: Update) {
        let rejected = self.handle.state.lock().update(
            &update.type_url,
            &update.resources,
            &update.removed,
            Instant::now(),
        );
        let mut freshness = self.handle.freshness.lock();
        freshness.last_update = Some(std::time::SystemTime::now());
        freshness.restored = false;
        drop(freshness);
        if rejected.is_empty() {
            update.commit();
            return;
        }
        for error in &rejected {
            tracing::warn!(type_url = ?update.type_url, %error, "resource refused");
        }
        update.reject(rejected);
    }

    fn take_resolutions(&mut self, first: Resolution) {
        let mut state = self.handle.state.lock();
        let mut next = Some(first);
        while let Some(resolution) = next {
            state.set_resolved(resolution.cluster, resolution.endpoints);
            next = self.resolutions.try_recv().ok();
        }
    }

    /// Moves what may move, publishes, subscribes.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut state = self.handle.state.lock();
        let settled = state.settle(now);
        let resources = settled.changed.then(|| state.resources());
        let dns = state.dns_clusters();
        let complete = state.is_complete();
        drop(state);
        self.deadline = settled.deadline;
        self.dns.set(&dns);
        if let Some(resources) = resources {
            let snapshot = self.store.publish(&resources, &self.manager);
            tracing::debug!(generation = snapshot.generation(), "configuration swapped");
            self.handle.freshness.lock().changes += 1;
            if let Some(disk) = &mut self.disk {
                let due = (now + SAVE_AFTER).max(disk.not_before);
                disk.due.get_or_insert(due);
            }
        }
        self.subscribe(settled.wanted);
        self.report_ready(complete, now);
    }

    /// Lets connections in once there is a configuration for them: a whole one, an earlier
    /// run's, or, where the control plane does not complete it, what there is after a while. One
    /// that has said nothing leaves them to an older epoch, or in the backlog.
    fn report_ready(&mut self, complete: bool, now: Instant) {
        if self.patience.is_some_and(|until| now >= until) {
            self.patience = None;
        }
        if self.store.is_open() {
            return;
        }
        let freshness = self.handle.freshness.lock();
        let restored = freshness.restored;
        let incomplete = self.patience.is_none() && freshness.last_update.is_some();
        drop(freshness);
        if self.stream.is_none() || complete || restored || incomplete {
            tracing::info!(complete, restored, "first configuration serves");
            self.store.open();
            self.ready = None;
        }
    }

    fn subscribe(&mut self, wanted: Wanted) {
        if self.wanted == wanted && !wanted.listeners.is_empty() {
            return;
        }
        if let Some(stream) = &self.stream {
            let types = [
                (TypeUrl::CLUSTER, &self.wanted.clusters, &wanted.clusters),
                (TypeUrl::ENDPOINT, &self.wanted.endpoints, &wanted.endpoints),
                (TypeUrl::LISTENER, &self.wanted.listeners, &wanted.listeners),
                (TypeUrl::ROUTE, &self.wanted.routes, &wanted.routes),
                (TypeUrl::NAME_TABLE, &self.wanted.names, &wanted.names),
            ];
            for (type_url, old, new) in types {
                // Nothing wanted, before and after: what was restored may have been dropped meanwhile, and
                // must not be claimed when it is wanted again.
                if old != new || new.is_empty() {
                    stream.client.set_subscription(&type_url, new);
                }
            }
        }
        self.wanted = wanted;
    }

    fn save_if_due(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        if disk.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        if disk.writing.as_ref().is_some_and(|w| !w.is_finished()) {
            disk.due = Some(Instant::now() + SAVE_AFTER);
            return;
        }
        disk.due = None;
        disk.not_before = Instant::now() + SAVE_EVERY;
        let (path, node) = (disk.path.clone(), disk.node.clone());
        let handle = self.handle.clone();
        let saved = handle.to_save();
        disk.writing = Some(tokio::task::spawn_blocking(move || {
            write(&path, &node, &saved, &handle.freshness);
        }));
    }

    async fn save_last(&mut self) {
        let Some(mut disk) = self.disk.take() else {
            return;
        };
        if let Some(writing) = disk.writing.take()
            && let Err(error) = writing.await
        {
            tracing::warn!(%error, "writing the state file was interrupted");
        }
        if disk.due.is_some() {
            let saved = self.handle.to_save();
            write(&disk.path, &disk.node, &saved, &self.handle.freshness);
        }
    }
}

/// What the state file is to hold, and how many changes that includes.
struct ToSave {
    resources: Vec<Saved>,
    changes: u64,
}

impl Handle {
    /// Called by the owner alone, so no change comes between the two reads.
    fn to_save(&self) -> ToSave {
        ToSave {
            resources: self.state.lock().saved(),
            changes: self.freshness.lock().changes,
        }
    }
}

fn write(path: &std::path::Path, node: &str, save: &ToSave, freshness: &Mutex<Freshness>) {
    match disk::save(path, node, &save.resources) {
        Ok(()) => {
            let mut freshness = freshness.lock();
            freshness.last_saved = Some(std::time::SystemTime::now());
            freshness.saved_changes = save.changes;
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(path = %path.display(), error, "state is not saved");
        }
    }
}

async fn next_event(stream: Option<&mut Stream>) -> Option<Event> {
    match stream {
        Some(stream) => stream.events.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
