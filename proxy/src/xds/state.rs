//! What the control plane gave, and when each part of it may serve.
//!
//! Input: updates, removals, the pods of this node, the addresses of DNS clusters and the time.
//! Output: the subscriptions that follow ([`Wanted`]) and the [`Resources`] of the next snapshot.
//! Pure: no clock, no I/O. A resource serves once everything it refers to does (clusters wait
//! for endpoints, routes for clusters, listeners for routes), so that no request meets a half
//! of a change; where it refers to what does not exist, the version before it serves on for a while,
//! since rules come in any order ([`Unknown`]). A removed one serves until nothing that serves refers to it. The way into a pod
//! serves as long as the pod is on this node: other nodes hear later that its endpoint is gone, and
//! what they still send is for the pod to answer. `xds::client` drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use millrace_xds::proto::Any;
use millrace_xds::{RawResource, ResourceError, TypeUrl};
use tokio::time::Instant;

use super::convert::{self, Converted, Invalid, Unsupported};
use super::disk::Saved;
use super::interest::Local;
use super::refs;
use super::table::{Held, Rejected, Table};
use super::unknown::Unknown;
use crate::dns::names::NameTable;
use crate::resource::{Cluster, ClusterKind, ClusterName, Endpoints, Listener, RouteConfiguration};
use crate::snapshot::{Naming, Resources, pod_of_listener};

#[cfg(test)]
pub(super) mod tests;

/// What is asked of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A node proxy: listeners by namespace and pod, everything else as it is referred to.
    Node,
    /// A proxy of one workload: all listeners and clusters that the control plane has for it.
    Wildcard {
        /// Whether listeners come from LDS.
        listeners: bool,
        /// Whether clusters come from CDS.
        clusters: bool,
        /// Whether names come from NDS.
        names: bool,
    },
}

/// Subscription terms by type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// LDS.
    pub listeners: BTreeSet<String>,
    /// RDS.
    pub routes: BTreeSet<String>,
    /// CDS.
    pub clusters: BTreeSet<String>,
    /// EDS.
    pub endpoints: BTreeSet<String>,
    /// NDS.
    pub names: BTreeSet<String>,
}

/// What [`State::settle`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whether the next snapshot differs from the last.
    pub changed: bool,
    /// What is to be subscribed to.
    pub wanted: Wanted,
    /// When waiting ends without news.
    pub deadline: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct State {
    mode: Mode,
    /// From the static file: always served.
    fixed: Resources,
    interest: Option<Local>,
    pub(super) listeners: Table<Listener>,
    pub(super) routes: Table<RouteConfiguration>,
    pub(super) clusters: Table<Cluster>,
    pub(super) endpoints: Table<Endpoints>,
    pub(super) names: Table<NameTable>,
    resolved: BTreeMap<ClusterName, Arc<Endpoints>>,
    /// Clusters that an update names and that do not exist, for now.
    unknown: Unknown,
    /// LDS terms that the control plane has said something of.
    answered: BTreeSet<String>,
    /// Whether CDS has said anything.
    clusters_answered: bool,
    /// Something outside the tables changed since the last settling.
    dirty: bool,
}

/// The one name of NDS.
const NAME_TABLE: &str = "";
/// The subscription to everything.
const EVERYTHING: &str = "*";

impl State {
    /// A state that serves `fixed` alone.
    pub fn new(mode: Mode, mut fixed: Resources) -> Self {
        fixed.naming = match mode {
            Mode::Node => Naming::Node,
            Mode::Wildcard { .. } => Naming::Plain,
        };
        Self {
            mode,
            fixed,
            interest: None,
            listeners: Table::default(),
            routes: Table::default(),
            clusters: Table::default(),
            endpoints: Table::default(),
            names: Table::default(),
            resolved: BTreeMap::new(),
            unknown: Unknown::default(),
            answered: BTreeSet::new(),
            clusters_answered: false,
            dirty: true,
        }
    }

    /// Takes in a response. What is refused is returned by name; the last good version of it
    /// keeps serving.
    pub fn update(
        &mut self,
        type_url: &TypeUrl,
        resources: &[RawResource],
        removed: &[String],
        now: Instant,
    ) -> Vec<ResourceError> {
        self.note_answers(type_url, resources, removed);
        if *type_url == TypeUrl::NAME_TABLE {
            return self.update_names(resources, now);
        }
        let mut rejected = Vec::new();
        for resource in resources {
            if let Err(error) = self.accept(type_url, resource, now) {
                rejected.push(error);
            }
        }
        for name in removed {
            self.remove(type_url, name, now);
        }
        rejected
    }

    /// The control plane said nothing of these names in time.
    pub fn missing(&mut self, type_url: &TypeUrl, names: &[String]) {
        for name in names {
            match type_url {
                t if *t == TypeUrl::LISTENER => {
                    self.answered.insert(name.clone());
                    self.listeners.missing(name);
                }
                t if *t == TypeUrl::ROUTE => self.routes.missing(name),
                t if *t == TypeUrl::CLUSTER => self.clusters.missing(name),
                t if *t == TypeUrl::ENDPOINT => self.endpoints.missing(name),
                _ => {}
            }
        }
    }

    /// The pods of this node changed.
    pub fn set_interest(&mut self, local: Local) {
        self.interest = Some(local);
    }

    /// DNS answered for a cluster.
    pub fn set_resolved(&mut self, cluster: ClusterName, endpoints: Arc<Endpoints>) {
        self.resolved.insert(cluster, endpoints);
        self.dirty = true;
    }

    /// Moves everything that may move into service, drops what is no longer needed.
    pub fn settle(&mut self, now: Instant) -> Settled {
        let mut changed = std::mem::take(&mut self.dirty);
        changed |= self.names.promote(now, |_, _| true);
        changed |= self.endpoints.promote(now, |_, _| true);
        changed |= self.promote_clusters(now);
        self.note_unknown(now);
        changed |= self.promote_routes(now);
        changed |= self.promote_listeners(now);
        changed |= self.bury(now);
        changed |= self.drop_foreign_listeners();
        let wanted = self.wanted();
        changed |= self.drop_unwanted(&wanted);
        let deadlines = [
            self.clusters.deadline(),
            self.routes.deadline(),
            self.listeners.deadline(),
            self.endpoints.deadline(),
            self.unknown.deadline(now),
        ];
        Settled {
            changed,
            wanted,
            deadline: deadlines.into_iter().flatten().min(),
        }
    }

    /// Whether everything first asked for has been answered and serves.
    pub fn is_complete(&self) -> bool {
        let asked = match self.mode {
            Mode::Node => self.interest.is_some(),
            Mode::Wildcard { clusters, .. } => !clusters || self.clusters_answered,
        };
        let terms = self.listener_terms();
        asked
            && terms.iter().all(|term| self.answered.contains(term))
            && self.listeners.is_settled()
            && self.routes.is_settled()
            && self.clusters.is_settled()
    }

    /// What the next snapshot is made of.
    pub fn resources(&self) -> Resources {
        let mut all = self.fixed.clone();
        for (name, held) in self.listeners.all_serving() {
            all.listeners
                .insert(name.as_str().into(), held.value.clone());
        }
        for (name, held) in self.routes.all_serving() {
            all.routes.insert(name.as_str().into(), held.value.clone());
        }
        for (name, held) in self.clusters.all_serving() {
            // A static cluster cannot be replaced by CDS (Envoy).
            all.clusters
                .entry(name.as_str().into())
                .or_insert_with(|| held.value.clone());
        }
        for (name, held) in self.endpoints.all_serving() {
            all.endpoints.insert(name.clone(), held.value.clone());
        }
        if let Some(held) = self.names.serving(NAME_TABLE) {
            all.names = held.value.clone();
        }
        all.resolved.clone_from(&self.resolved);
        all
    }

    /// Everything that serves and came from the control plane, in an order in which it can be
    /// restored.
    pub fn saved(&self) -> Vec<Saved> {
        let mut saved = Vec::new();
        save(&mut saved, &TypeUrl::CLUSTER, &self.clusters);
        save(&mut saved, &TypeUrl::ENDPOINT, &self.endpoints);
        save(&mut saved, &TypeUrl::LISTENER, &self.listeners);
        save(&mut saved, &TypeUrl::ROUTE, &self.routes);
        save(&mut saved, &TypeUrl::NAME_TABLE, &self.names);
        saved
    }

    /// Takes in what an earlier run saved; returns what this version of the program refuses.
    pub fn restore(&mut self, saved: &[Saved], now: Instant) -> Vec<ResourceError> {
        let mut refused = Vec::new();
        for resource in saved {
            let raw = RawResource {
                name: resource.name.clone(),
                version: resource.version.clone(),
                body: Any {
                    type_url: resource.type_url.as_str().to_owned(),
                    value: resource.body.to_vec(),
                },
            };
            let result = if resource.type_url == TypeUrl::NAME_TABLE {
                self.update_names(&[raw], now).pop().map_or(Ok(()), Err)
            } else {
                self.accept(&resource.type_url, &raw, now)
            };
            if let Err(error) = result {
                refused.push(error);
            }
        }
        refused
    }

    /// Clusters whose addresses DNS gives: served ones and those that wait for it.
    pub fn dns_clusters(&self) -> Vec<Arc<Cluster>> {
        let held = self.clusters.iter().flat_map(|(_, entry)| entry.held());
        self.fixed
            .clusters
            .values()
            .cloned()
            .chain(held.map(|h| h.value.clone()))
            .filter(|c| {
                matches!(
                    c.kind,
                    ClusterKind::StrictDns(_) | ClusterKind::LogicalDns(_)
                )
            })
            .collect()
    }

    fn accept(
        &mut self,
        type_url: &TypeUrl,
        resource: &RawResource,
        now: Instant,
    ) -> Result<(), ResourceError> {
        let name = resource.name.as_str();
        let body = &resource.body.value;
        match type_url {
            t if *t == TypeUrl::LISTENER => {
                take(&mut self.listeners, resource, convert::listener(body), now)
            }
            t if *t == TypeUrl::ROUTE => {
                let mut converted = convert::route_configuration(body);
                if let Ok(c) = &mut converted {
                    self.note_header_clusters(c);
                }
                take(&mut self.routes, resource, converted, now)
            }
            t if *t == TypeUrl::CLUSTER => {
                let converted = convert::cluster(body, true).and_then(|c| self.not_fixed(name, c));
                take(&mut self.clusters, resource, converted, now)
            }
            t if *t == TypeUrl::ENDPOINT => {
                take(&mut self.endpoints, resource, convert::endpoints(body), now)
            }
            other => Err(ResourceError {
                name: name.to_owned(),
                message: format!("resources of type {other} were not asked for"),
            }),
        }
    }

    fn not_fixed(
        &self,
        name: &str,
        converted: Converted<Cluster>,
    ) -> Result<Converted<Cluster>, Invalid> {
        if self.fixed.clusters.contains_key(name) {
            return Err(Invalid {
                resource: format!("cluster {name:?}"),
                field: "name".to_owned(),
                reason: "is that of a static cluster".to_owned(),
            });
        }
        Ok(converted)
    }

    /// With subscriptions on demand only clusters that something names are known.
    fn note_header_clusters(&self, converted: &mut Converted<RouteConfiguration>) {
        if self.mode == Mode::Node && refs::names_clusters_by_header(&converted.value) {
            converted.unsupported.push(Unsupported {
                field: "virtual_hosts[].routes[].route.cluster_header".to_owned(),
                effect: "only clusters that a route names elsewhere are known".to_owned(),
                count: 1,
            });
        }
    }

    fn update_names(&mut self, resources: &[RawResource], now: Instant) -> Vec<ResourceError> {
        let Some(last) = resources.last() else {
            return Vec::new();
        };
        let converted = convert::name_table(&last.body.value);
        let named = RawResource {
            name: NAME_TABLE.to_owned(),
            ..last.clone()
        };
        match take(&mut self.names, &named, converted, now) {
            Ok(()) => Vec::new(),
            Err(error) => vec![ResourceError {
                name: last.name.clone(),
                ..error
            }],
        }
    }

    fn remove(&mut self, type_url: &TypeUrl, name: &str, now: Instant) {
        match type_url {
            t if *t == TypeUrl::LISTENER && self.leads_into_local_pod(name) => {
                self.listeners.orphan(name);
            }
            t if *t == TypeUrl::CLUSTER && self.orphans_need(name) => self.clusters.orphan(name),
            t if *t == TypeUrl::LISTENER => self.listeners.remove(name, now),
            t if *t == TypeUrl::ROUTE => self.routes.remove(name, now),
            t if *t == TypeUrl::CLUSTER => self.clusters.remove(name, now),
            t if *t == TypeUrl::ENDPOINT => self.endpoints.remove(name, now),
            _ => {}
        }
    }

    /// Whether a listener is the way into a pod that is on this node; any pod may be while the pods
    /// are not known yet.
    fn leads_into_local_pod(&self, listener: &str) -> bool {
        let local = |pod| self.interest.as_ref().is_none_or(|local| local.has(pod));
        self.mode == Mode::Node && pod_of_listener(listener).is_some_and(local)
    }

    /// Whether the way into a pod that the control plane has forgotten leads through a cluster.
    fn orphans_need(&self, cluster: &str) -> bool {
        let mut orphans = self.listeners.orphans();
        orphans.any(|held| refs::clusters_of_listener(&held.value).contains(cluster))
    }

    fn note_answers(&mut self, type_url: &TypeUrl, resources: &[RawResource], removed: &[String]) {
        self.clusters_answered |= *type_url == TypeUrl::CLUSTER;
        if *type_url != TypeUrl::LISTENER {
            return;
        }
        self.answered.insert(EVERYTHING.to_owned());
        for name in resources.iter().map(|r| &r.name).chain(removed) {
            self.answered.insert(name.clone());
            if let Some((prefix, _)) = name.rsplit_once('/') {
                self.answered.insert(format!("{prefix}/*"));
            }
        }
    }

    /// A cluster whose endpoints the control plane says do not exist is about to be removed itself: EDS knows first.
    fn promote_clusters(&mut self, now: Instant) -> bool {
        let (endpoints, resolved) = (&self.endpoints, &self.resolved);
        self.clusters
            .promote(now, |cluster, _| match &cluster.kind {
                ClusterKind::Eds(name) => endpoints.serves(name),
                ClusterKind::StrictDns(_) | ClusterKind::LogicalDns(_) => {
                    resolved.contains_key(&cluster.name)
                }
                ClusterKind::Static(_) | ClusterKind::OriginalDst => true,
            })
    }

    /// Notes which clusters that do not exist new versions name, and the versions that serve do not.
    fn note_unknown(&mut self, now: Instant) {
        let routes = self.routes.updates();
        let routes = routes.map(|(new, old)| refs::newly_routed(new, old));
        let listeners = self.listeners.updates();
        let listeners = listeners.map(|(new, old)| newly_named(new, old));
        let named = routes.chain(listeners).flatten();
        let exists = |name: &String| {
            let entry = self.clusters.get(name);
            self.fixed.clusters.contains_key(name.as_str())
                || entry.is_some_and(|entry| entry.held().next().is_some())
        };
        let told = |name: &String| self.mode != Mode::Node || self.clusters.is_absent(name);
        let unknown = named.filter(|name| told(name) && !exists(name)).collect();
        self.unknown.set(unknown, now);
    }

    fn promote_routes(&mut self, now: Instant) -> bool {
        let ready = cluster_ready(self.mode, &self.fixed, &self.clusters);
        let unknown = &self.unknown;
        self.routes.promote(now, |config, serving| {
            let new = serving.map(|serving| refs::newly_routed(config, serving));
            let awaited = |name: &String| unknown.is_awaited(name, now);
            refs::clusters_of_routes(config).iter().all(|c| ready(c))
                && !new.is_some_and(|new| new.iter().any(awaited))
        })
    }

    fn promote_listeners(&mut self, now: Instant) -> bool {
        let ready = cluster_ready(self.mode, &self.fixed, &self.clusters);
        let (routes, unknown) = (&self.routes, &self.unknown);
        let warm = |listener: &Listener, serving: Option<&Listener>| {
            let known = |name: &String| routes.serves(name) || routes.is_absent(name);
            let new = serving.map(|serving| newly_named(listener, serving));
            let awaited = |name: &String| unknown.is_awaited(name, now);
            refs::clusters_of_listener(listener)
                .iter()
                .all(|c| ready(c))
                && !new.is_some_and(|new| new.iter().any(awaited))
                && refs::routes_of_listener(listener).iter().all(known)
        };
        let changed = self.listeners.promote(now, |listener, serving| {
            !listener.use_original_dst && warm(listener, serving)
        });
        // What takes the connections that no other listener stands for comes last: it would take
        // those of listeners that came with it and are not warm yet.
        let nascent: BTreeSet<String> = self
            .listeners
            .iter()
            .filter(|(_, entry)| entry.serving.is_none())
            .filter_map(|(_, entry)| entry.warming.as_ref())
            .filter(|(held, _)| !held.value.use_original_dst)
            .map(|(held, _)| namespace(&held.value).to_owned())
            .collect();
        self.listeners.promote(now, |listener, serving| {
            listener.use_original_dst
                && !nascent.contains(namespace(listener))
                && warm(listener, serving)
        }) || changed
    }

    /// Removed listeners go at once, but for orphans, which nobody buries; what they and served routes refer to
    /// goes after them.
    fn bury(&mut self, now: Instant) -> bool {
        let mut changed = self.listeners.bury(now, |_| false);
        let needed = self.references(true);
        changed |= self.routes.bury(now, |n| needed.routes.contains(n));
        let needed = self.references(true);
        changed |= self.clusters.bury(now, |n| needed.clusters.contains(n));
        let needed = self.references(true);
        changed |= self.endpoints.bury(now, |n| needed.endpoints.contains(n));
        changed
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = self.references(false);
        wanted.listeners = self.listener_terms();
        match self.mode {
            Mode::Node => {
                wanted.names.insert(EVERYTHING.to_owned());
            }
            Mode::Wildcard {
                clusters, names, ..
            } => {
                wanted.clusters.clear();
                if clusters {
                    wanted.clusters.insert(EVERYTHING.to_owned());
                }
                if names {
                    wanted.names.insert(EVERYTHING.to_owned());
                }
            }
        }
        wanted
    }

    fn listener_terms(&self) -> BTreeSet<String> {
        match self.mode {
            Mode::Node => self.interest.as_ref().map(Local::terms).unwrap_or_default(),
            Mode::Wildcard { listeners, .. } => listeners
                .then(|| EVERYTHING.to_owned())
                .into_iter()
                .collect(),
        }
    }

    /// What served resources refer to, and unless `serving_only` what accepted ones do. Only
    /// what a listener leads to counts in node mode; a proxy of one workload uses all it has.
    fn references(&self, serving_only: bool) -> Wanted {
        let mut found = Wanted::default();
        let fixed = self.fixed.listeners.values().map(AsRef::as_ref);
        for listener in fixed.chain(versions(&self.listeners, serving_only, |_| true)) {
            found.routes.extend(refs::routes_of_listener(listener));
            found.clusters.extend(refs::clusters_of_listener(listener));
        }
        let routes = std::mem::take(&mut found.routes);
        for config in versions(&self.routes, serving_only, |n| routes.contains(n)) {
            found.clusters.extend(refs::clusters_of_routes(config));
        }
        found.routes = routes;
        let on_demand = self.mode == Mode::Node;
        let fixed = self.fixed.clusters.values().map(AsRef::as_ref);
        let named = versions(&self.clusters, serving_only, |n| {
            !on_demand || found.clusters.contains(n)
        });
        let endpoints = fixed.chain(named).filter_map(refs::endpoints_of_cluster);
        found.endpoints = endpoints.map(str::to_owned).collect();
        found
            .clusters
            .retain(|name| !self.fixed.clusters.contains_key(name.as_str()));
        found
    }

    /// Whether the pods are not known yet: what an earlier run saved then stays.
    fn is_blind(&self) -> bool {
        self.mode == Mode::Node && self.interest.is_none()
    }

    /// Drops the listeners of pods that are not on this node any more.
    fn drop_foreign_listeners(&mut self) -> bool {
        if self.mode != Mode::Node || self.is_blind() {
            return false;
        }
        let terms = self.listener_terms();
        self.answered.retain(|term| terms.contains(term));
        self.listeners.keep(|name| covers(&terms, name))
    }

    /// Drops what no listener leads to any more.
    fn drop_unwanted(&mut self, wanted: &Wanted) -> bool {
        if self.is_blind() {
            return false;
        }
        let mut changed = false;
        if self.mode == Mode::Node {
            changed |= self.clusters.keep(|n| wanted.clusters.contains(n));
        }
        changed |= self.routes.keep(|n| wanted.routes.contains(n));
        changed |= self.endpoints.keep(|n| wanted.endpoints.contains(n));
        let live: BTreeSet<_> = self.dns_clusters().iter().map(|c| c.name.clone()).collect();
        self.resolved.retain(|name, _| live.contains(name));
        changed
    }
}

fn save<T>(saved: &mut Vec<Saved>, type_url: &TypeUrl, table: &Table<T>) {
    saved.extend(table.all_serving().map(|(name, held)| Saved {
        type_url: type_url.clone(),
        name: name.clone(),
        version: held.version.clone(),
        body: held.body.clone(),
    }));
}

/// The namespace whose traffic a listener takes; empty in a sidecar.
fn namespace(listener: &Listener) -> &str {
    let name = listener.name.as_str();
    name.rsplit_once('/').map_or("", |(namespace, _)| namespace)
}

/// Whether a term, by name or by collection, asks for `name`.
fn covers(terms: &BTreeSet<String>, name: &str) -> bool {
    terms.contains(name)
        || name
            .rsplit_once('/')
            .is_some_and(|(prefix, _)| terms.contains(&format!("{prefix}/*")))
}

/// Whether a route may refer to a cluster: it serves, or it is known not to exist. Where all
/// clusters are subscribed to, those come before routes, so one that has not come does not exist.
fn cluster_ready<'a>(
    mode: Mode,
    fixed: &'a Resources,
    clusters: &'a Table<Cluster>,
) -> impl Fn(&str) -> bool + 'a {
    move |name| {
        fixed.clusters.contains_key(name)
            || clusters.serves(name)
            || clusters.is_absent(name)
            || (mode != Mode::Node && clusters.get(name).is_none_or(|e| e.warming.is_none()))
    }
}

/// The clusters that a listener names itself and did not name in an earlier version.
fn newly_named(listener: &Listener, earlier: &Listener) -> BTreeSet<String> {
    let before = refs::clusters_of_listener(earlier);
    let names = refs::clusters_of_listener(listener);
    names.difference(&before).cloned().collect()
}

fn versions<'a, T>(
    table: &'a Table<T>,
    serving_only: bool,
    named: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = &'a T> {
    table
        .iter()
        .filter(move |(name, _)| named(name))
        .flat_map(move |(_, entry)| {
            let warming = entry.warming.iter().filter(move |_| !serving_only);
            entry.serving.iter().chain(warming.map(|(held, _)| held))
        })
        .map(|held| held.value.as_ref())
}

fn take<T>(
    table: &mut Table<T>,
    resource: &RawResource,
    converted: Result<Converted<T>, Invalid>,
    now: Instant,
) -> Result<(), ResourceError> {
    match converted {
        Ok(converted) => {
            let held = Held {
                value: Arc::new(converted.value),
                version: resource.version.clone(),
                updated: SystemTime::now(),
                body: Bytes::from(resource.body.value.clone()),
                unsupported: converted.unsupported,
            };
            table.accept(&resource.name, held, now);
            Ok(())
        }
        Err(error) => {
            let message = error.to_string();
            table.reject(
                &resource.name,
                Rejected {
                    version: resource.version.clone(),
                    message: message.clone(),
                    at: SystemTime::now(),
                },
            );
            Err(ResourceError {
                name: resource.name.clone(),
                message,
            })
        }
    }
}
