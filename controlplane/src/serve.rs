//! The mesh as a source of xDS: what a client gets, from the newest snapshot and the cache.
//!
//! Input: snapshots from [`crate::push::writer`], selections from streams; output: encoded resources.
//! The protocol itself is `millrace_xds`'s.

pub(crate) mod admit;
mod allow;
mod cache;
pub(crate) mod client_status;
mod interest;
pub(crate) mod objects;
pub(crate) mod renaming;
mod residents;
pub mod ttl;
mod vhds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use millrace_xds::server::{
    ConfigSource, ConfigView, Connection, ConnectionId, Generation, ProtocolVariant, Report,
};
use millrace_xds::subscription::Selection;
use millrace_xds::{EncodedResource, TypeUrl};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

use self::cache::Cache;
use self::interest::Interest;
use self::objects::{Objects, Services};
use self::renaming::Renamed;
use self::residents::Residents;
use self::ttl::{ResourceTtl, Ttls};
use self::vhds::OnDemandHosts;
use crate::analysis::Origins;
use crate::index::ChangeSet;
use crate::metrics::PilotMetrics;
use crate::model::problem::Problem;
use crate::push::scope::History;
use crate::snapshot::MeshSnapshot;
use crate::translate::{ProxyView, ResourceKind, Translator, inbound_name, is_inbound_name};

/// A snapshot with its place in history.
#[derive(Debug)]
pub struct Published {
    /// The mesh.
    pub snapshot: Arc<MeshSnapshot>,
    /// Its number.
    pub generation: Generation,
    history: History,
    residents: Residents,
    interest: Interest,
}

impl Published {
    /// Whether a resource can differ from what it was in an earlier generation.
    fn touched(&self, view: &ProxyView, resource: (ResourceKind, &str), since: Generation) -> bool {
        self.history.touched(&self.snapshot, view, resource, since)
    }

    /// Those of a selection that may have changed; none where that is not known by name.
    fn changed(
        &self,
        view: &ProxyView,
        kind: ResourceKind,
        since: Generation,
        selection: &Selection,
    ) -> Option<Vec<String>> {
        if self.history.leaves_alone(&self.snapshot, view, kind, since) {
            return Some(Vec::new());
        }
        // What a wildcard stands for may be other names than before, and so may a collection.
        if selection.is_wildcard() || since == Generation::default() {
            return None;
        }
        if kind == ResourceKind::Endpoints && self.history.revisions.moves(view, since) {
            return None;
        }
        let mut collections = selection.glob_prefixes();
        if collections.any(|prefix| self.touched(view, (kind, &format!("{prefix}/*")), since)) {
            return None;
        }
        let touched = |name: &&str| self.touched(view, (kind, name), since);
        let candidates = self.candidates(view, kind, since, selection);
        let names: Vec<&str> = match &candidates {
            Some(candidates) => {
                let names = candidates.iter().map(AsRef::as_ref);
                names.filter(touched).collect()
            }
            None => selection.names().filter(touched).collect(),
        };
        Some(names.into_iter().map(str::to_owned).collect())
    }

    /// Names of a selection among which all are that have changed; none where all have to be looked at.
    fn candidates(
        &self,
        view: &ProxyView,
        kind: ResourceKind,
        since: Generation,
        selection: &Selection,
    ) -> Option<Vec<Arc<str>>> {
        match kind {
            ResourceKind::Cluster | ResourceKind::Endpoints => {
                let hosts = self.history.hosts_since(kind, since)?;
                if hosts.len() > selection.names().len() {
                    return None;
                }
                Some(self.interest.names_of(&hosts, selection))
            }
            ResourceKind::Listener if matches!(view, ProxyView::Node { .. }) => {
                let pods = self.history.pods_since(since)?;
                let pods = pods.into_iter().map(inbound_name);
                let pods = pods.filter_map(|name| selection.shared_name(&name).cloned());
                let others = selection.names().filter(|name| !is_inbound_name(name));
                Some(pods.chain(others.map(Arc::from)).collect())
            }
            _ => None,
        }
    }
}

/// The source.
#[derive(Debug)]
pub struct MeshSource {
    published: ArcSwap<Published>,
    generations: watch::Sender<Generation>,
    cache: Arc<Cache>,
    interest: Interest,
    objects: ArcSwap<Objects>,
    services: Arc<Services>,
    renamed: Arc<Renamed>,
    problems: ArcSwap<Vec<Problem>>,
    origins: Origins,
    waiting: AtomicU64,
    clients: Mutex<BTreeMap<ConnectionId, Arc<Client>>>,
    metrics: PilotMetrics,
}

/// What is kept of a stream.
#[derive(Debug)]
pub struct Client {
    id: ConnectionId,
    node_id: String,
    view: Arc<ProxyView>,
    /// Whether changes are told one by one, as in delta, and not as whole states.
    names_changes: bool,
    /// Whether it is another control plane, which reads objects.
    reads_objects: bool,
    /// Whether it has proven who it is, and is to have its own alone.
    proven: bool,
    /// What makes the names of the seed era, where it is told those.
    renamed: Option<Arc<Renamed>>,
    /// How it asks for virtual hosts, where it does.
    hosts: Option<Arc<OnDemandHosts>>,
    selections: Mutex<BTreeMap<String, Arc<Selection>>>,
}

impl MeshSource {
    /// A source that has nothing yet.
    pub fn new(metrics: PilotMetrics) -> Self {
        let interest = Interest::default();
        let nothing = Published {
            snapshot: Arc::default(),
            generation: Generation::default(),
            history: History::default(),
            residents: Residents::default(),
            interest: interest.clone(),
        };
        Self {
            published: ArcSwap::from_pointee(nothing),
            generations: watch::Sender::new(Generation::default()),
            cache: Arc::new(Cache::new(metrics.clone(), Ttls::default())),
            interest,
            objects: ArcSwap::default(),
            services: Arc::default(),
            renamed: Arc::default(),
            problems: ArcSwap::default(),
            origins: Origins::default(),
            waiting: AtomicU64::new(0),
            clients: Mutex::default(),
            metrics,
        }
    }

    /// The same with times after which clients forget what they hear nothing of.
    #[must_use]
    pub fn with_ttls(mut self, stated: &[ResourceTtl]) -> Self {
        self.cache = Arc::new(Cache::new(self.metrics.clone(), Ttls::of(stated)));
        self
    }

    /// Makes a snapshot the newest and wakes every stream. Called by the writer alone.
    pub fn publish(&self, snapshot: Arc<MeshSnapshot>, changes: &ChangeSet) -> Generation {
        let before = self.published.load_full();
        let generation = Generation(before.generation.0 + 1);
        let mut history = before.history.clone();
        history.record(changes, &snapshot, generation);
        let mut residents = before.residents.clone();
        residents.record(changes, (&before.snapshot, &snapshot), generation);
        self.published.store(Arc::new(Published {
            snapshot,
            generation,
            history,
            residents,
            interest: self.interest.clone(),
        }));
        self.cache.age(generation);
        self.interest.age(generation);
        self.generations.send_replace(generation);
        generation
    }

    /// Whether there has been a snapshot.
    pub fn is_published(&self) -> bool {
        self.published.load().generation > Generation::default()
    }

    /// The newest snapshot.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// What other control planes get; called before the generation that it belongs to is published.
    pub(crate) fn set_objects(&self, objects: Objects) {
        self.objects.store(Arc::new(objects));
    }

    pub(crate) fn set_problems(&self, problems: Vec<Problem>) {
        self.problems.store(Arc::new(problems));
    }

    /// Where the objects of the configuration stand.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Everything that is wrong with the configuration now.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.load_full()
    }

    pub(crate) fn set_waiting(&self, changes: u64) {
        self.waiting.store(changes, Ordering::Relaxed);
    }

    /// Changes that wait for the next snapshot.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What a connected node is given, and its selections, merged over its streams.
    pub fn client_of(&self, node_id: &str) -> Option<(MeshView, BTreeMap<String, Selection>)> {
        let clients = self.clients.lock();
        let mut streams = clients.values().filter(|client| client.node_id == node_id);
        let first = streams.next()?;
        let mut selections: BTreeMap<String, Selection> = BTreeMap::new();
        for stream in std::iter::once(first).chain(streams) {
            for (type_url, more) in stream.selections.lock().iter() {
                let selection = selections.entry(type_url.clone()).or_default();
                for term in more.terms() {
                    selection.insert(&term);
                }
            }
        }
        Some((self.view_for(first), selections))
    }

    /// What a stream has been given of a type, or is about to be.
    pub fn resources_of(&self, id: ConnectionId, type_url: &TypeUrl) -> Vec<Arc<EncodedResource>> {
        let Some(client) = self.clients.lock().get(&id).cloned() else {
            return Vec::new();
        };
        let selection = client.selections.lock().get(type_url.as_str()).cloned();
        let view = self.view_for(&client);
        selection.map_or_else(Vec::new, |selection| view.resources(type_url, &selection))
    }

    /// What a proxy of this view gets of the newest snapshot.
    pub fn view_of(&self, view: Arc<ProxyView>) -> MeshView {
        MeshView {
            published: self.published.load_full(),
            view,
            proven: false,
            cache: Arc::clone(&self.cache),
            objects: None,
            services: Arc::clone(&self.services),
            renamed: None,
            hosts: None,
        }
    }

    fn view_for(&self, client: &Client) -> MeshView {
        MeshView {
            objects: client.reads_objects.then(|| self.objects.load_full()),
            proven: client.proven,
            renamed: client.renamed.clone(),
            hosts: client.hosts.clone(),
            ..self.view_of(Arc::clone(&client.view))
        }
    }
}

impl ConfigSource for MeshSource {
    type Client = Arc<Client>;
    type View = MeshView;

    fn connect(&self, connection: &Connection) -> Result<Arc<Client>, Status> {
        let view = ProxyView::of_node(&connection.node)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let is_legacy = renaming::is_asked_for(&connection.node, &view);
        let client = Arc::new(Client {
            id: connection.id,
            node_id: connection.node.id.clone(),
            view: Arc::new(view),
            reads_objects: objects::are_read_by(&connection.node),
            proven: connection.proven,
            // The history knows today's names.
            names_changes: connection.variant == ProtocolVariant::Delta && !is_legacy,
            renamed: is_legacy.then(|| Arc::clone(&self.renamed)),
            hosts: OnDemandHosts::of_node(&connection.node).map(Arc::new),
            selections: Mutex::default(),
        });
        self.clients
            .lock()
            .insert(connection.id, Arc::clone(&client));
        self.metrics.connected();
        tracing::info!(
            connection = connection.id.0,
            node = %connection.node.id,
            agent = %connection.node.user_agent_name,
            variant = ?connection.variant,
            "connected"
        );
        Ok(client)
    }

    fn generations(&self) -> watch::Receiver<Generation> {
        self.generations.subscribe()
    }

    fn view(&self, client: &Arc<Client>) -> MeshView {
        self.view_for(client)
    }

    fn affects(&self, client: &Arc<Client>, since: Generation, type_url: &TypeUrl) -> bool {
        if type_url.object_kind().is_some() {
            return true;
        }
        let published = self.published.load();
        let revisions = &published.history.revisions;
        if client.proven && published.allows_others(&client.view, since) {
            return true;
        }
        let in_routes = *type_url == TypeUrl::VIRTUAL_HOST;
        let type_url = if in_routes { &TypeUrl::ROUTE } else { type_url };
        let elsewhere = || *type_url == TypeUrl::ENDPOINT && revisions.moves(&client.view, since);
        if !revisions.affect(type_url, since) && !elsewhere() {
            return false;
        }
        let by_name = client.names_changes && !in_routes;
        let Some(kind) = ResourceKind::of(type_url).filter(|_| by_name) else {
            return true;
        };
        let selections = client.selections.lock();
        let Some(selection) = selections.get(type_url.as_str()) else {
            return true;
        };
        let changed = published.changed(&client.view, kind, since, selection);
        changed.is_none_or(|names| !names.is_empty())
    }

    fn report(&self, client: &Arc<Client>, report: Report<'_>) {
        match report {
            Report::Acked(acked) => {
                self.metrics.acked(acked.type_url.short_name());
                tracing::debug!(
                    connection = client.id.0,
                    node = %client.node_id,
                    r#type = acked.type_url.short_name(),
                    version = %acked.version,
                    latency_us = u64::try_from(acked.latency.as_micros()).unwrap_or(u64::MAX),
                    "accepted"
                );
            }
            Report::Nacked(nacked) => {
                self.metrics.nacked(nacked.type_url.short_name());
                let named: Vec<&str> = nacked
                    .rejected
                    .iter()
                    .map(|bad| bad.name.as_str())
                    .collect();
                tracing::error!(
                    connection = client.id.0,
                    node = %client.node_id,
                    r#type = nacked.type_url.short_name(),
                    version = %nacked.version,
                    rejected = ?named,
                    message = nacked.message,
                    "a proxy rejects its configuration"
                );
            }
            Report::Subscribed {
                type_url,
                selection,
                added,
            } => {
                if let Some(kind) = ResourceKind::of(type_url).filter(|_| client.names_changes) {
                    self.interest.add(&client.view, kind, selection, added);
                }
                client
                    .selections
                    .lock()
                    .insert(type_url.as_str().to_owned(), Arc::clone(selection));
            }
        }
    }

    fn disconnect(&self, client: Arc<Client>) {
        self.clients.lock().remove(&client.id);
        self.metrics.disconnected();
        tracing::info!(connection = client.id.0, node = %client.node_id, "disconnected");
    }
}

/// A snapshot as one client sees it.
#[derive(Debug)]
pub struct MeshView {
    published: Arc<Published>,
    view: Arc<ProxyView>,
    proven: bool,
    cache: Arc<Cache>,
    /// Where this client reads them.
    objects: Option<Arc<Objects>>,
    services: Arc<Services>,
    /// For clients that are told the names of the seed era.
    renamed: Option<Arc<Renamed>>,
    /// For clients that ask for virtual hosts.
    hosts: Option<Arc<OnDemandHosts>>,
}

impl MeshView {
    /// Everything of a type that this proxy is meant to have without asking by name.
    pub fn all(&self, kind: ResourceKind) -> Vec<Arc<EncodedResource>> {
        self.resources(&kind.type_url(), &Selection::everything())
    }

    fn made(&self, kind: ResourceKind, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let names = self.names(kind, selection).into_iter();
        let resource = |name: String| {
            self.cache
                .resource(&self.published, &self.view, kind, &name)
        };
        names.filter_map(resource).collect()
    }

    fn names(&self, kind: ResourceKind, selection: &Selection) -> Vec<String> {
        let translator = Translator::new(&self.published.snapshot, &self.view);
        let everything = if selection.is_wildcard() {
            translator.names(kind)
        } else {
            Vec::new()
        };
        let members = selection
            .glob_prefixes()
            .flat_map(|prefix| translator.collection(kind, prefix));
        let asked = selection.names().map(str::to_owned);
        let allowed = |name: &String| !self.proven || self.published.allows(&self.view, kind, name);
        let named = members.chain(asked).filter(allowed);
        let mut seen = BTreeSet::new();
        let all = everything.into_iter().chain(named);
        all.filter(|name| seen.insert(name.clone())).collect()
    }
}

impl ConfigView for MeshView {
    fn generation(&self) -> Generation {
        self.published.generation
    }

    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        if *type_url == TypeUrl::VIRTUAL_HOST && self.hosts.is_some() {
            return self.virtual_hosts(selection);
        }
        let Some(kind) = ResourceKind::of(type_url) else {
            let Some(objects) = &self.objects else {
                return Vec::new();
            };
            let mesh = &self.published.snapshot;
            return objects::resources(type_url, objects, mesh, &self.services);
        };
        let resources = self.named(kind, selection);
        let Some(hosts) = &self.hosts else {
            return resources;
        };
        let adapted = resources.iter().map(|resource| match kind {
            ResourceKind::Route => hosts.routes(resource),
            ResourceKind::Listener => OnDemandHosts::listener(resource),
            _ => Arc::clone(resource),
        });
        adapted.collect()
    }

    fn changed(
        &self,
        type_url: &TypeUrl,
        since: Generation,
        selection: &Selection,
    ) -> Option<Vec<String>> {
        let kind = ResourceKind::of(type_url).filter(|_| self.renamed.is_none())?;
        if self.proven && self.published.allows_others(&self.view, since) {
            return None;
        }
        self.published.changed(&self.view, kind, since, selection)
    }
}

impl MeshView {
    /// Each virtual host once, by whatever names it is asked for.
    fn virtual_hosts(&self, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let mut seen = BTreeSet::new();
        let mut hosts = Vec::new();
        for (routes, host) in selection.names().filter_map(vhds::asked) {
            let asked: Selection = [routes].into_iter().collect();
            let routes = self.named(ResourceKind::Route, &asked);
            let found = routes
                .first()
                .and_then(|routes| vhds::virtual_host(routes, host));
            hosts.extend(
                found
                    .filter(|found| seen.insert(found.shared_name().clone()))
                    .map(Arc::new),
            );
        }
        hosts
    }

    /// Resources under the names that the client knows.
    fn named(&self, kind: ResourceKind, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let (Some(renamed), ProxyView::Sidecar { namespace, .. }) = (&self.renamed, &*self.view)
        else {
            return self.made(kind, selection);
        };
        let names = renaming::Names {
            snapshot: &self.published.snapshot,
            namespace,
        };
        let resources = self.made(kind, &names.modern(kind, selection));
        renamed.all(names, self.published.generation, (kind, resources))
    }
}

#[cfg(test)]
mod tests;
