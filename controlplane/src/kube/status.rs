//! Writes statuses back, from the replica that leads.
//!
//! Input: objects of configuration as they are watched here with their statuses ([`watch`]), and the newest mesh; output:
//! writes to `status` subresources. An object is judged in the very generation that its status names, within the mesh of
//! that moment. Nothing is written where nothing differs; a write carries the version that was read, and one that comes
//! too late is made anew when the newer version arrives. Writes have a pace that an API server does not feel.

mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, Error};
use millrace_runtime::backoff::Backoff;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::watch::{Known, Seen};
use crate::analysis::Origins;
use crate::index::Index;
use crate::metrics::PilotMetrics;
use crate::model::analyze::{analyze, takes_at};
use crate::model::api_route::ApiRoute;
use crate::model::names::ObjectName;
use crate::model::problem::{Finding, Problem};
use crate::model::{Kind, ObjectId};
use crate::serve::MeshSource;
use crate::snapshot::MeshSnapshot;
use crate::status::{Moment, gateways, istio, routes};

/// What is seen waits for so long, so that a burst is judged once.
const QUIET: Duration = Duration::from_millis(200);
/// From one write to the next: at most twenty a second.
const PACE: Duration = Duration::from_millis(50);
/// The first wait after a round with a write that failed for another reason than a newer version, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));
/// HTTP's codes for what is not there, for a newer version, and for a server that wants to be left alone.
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const TOO_MANY: u16 = 429;
/// Events that wait to be read; watches wait when it is full.
const EVENTS: usize = 256;

/// The writer.
pub struct StatusWriter {
    client: Client,
    source: Arc<MeshSource>,
    domain: String,
    metrics: PilotMetrics,
    leads: latest::Receiver<bool>,
    known: BTreeMap<ObjectId, Known>,
    /// What was written too late: to be written again when its newer version is seen, whatever differs there.
    late: BTreeSet<ObjectId>,
}

/// A status that is to be written.
struct Write {
    id: ObjectId,
    resource: Arc<ApiResource>,
    version: String,
    status: Value,
}

impl StatusWriter {
    /// A writer for objects of a mesh of this domain.
    pub fn new(
        client: Client,
        source: Arc<MeshSource>,
        domain: &str,
        metrics: PilotMetrics,
        leads: latest::Receiver<bool>,
    ) -> Self {
        Self {
            client,
            source,
            domain: domain.to_owned(),
            metrics,
            leads,
            known: BTreeMap::new(),
            late: BTreeSet::new(),
        }
    }

    /// Works until stopped, whenever this replica leads.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut leads = self.leads.clone();
        loop {
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                led = leads.wait_for(|leads| *leads) => if led.is_err() { return },
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                lost = leads.wait_for(|leads| !*leads) => if lost.is_err() { return },
                () = self.lead() => {}
            }
        }
    }

    /// Watches and writes. Dropped when another replica leads: a write under way may still arrive, and is refused where
    /// the other one was faster.
    async fn lead(&mut self) {
        self.known.clear();
        self.late.clear();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1).with_jitter();
        let (events, mut received) = mpsc::channel(EVENTS);
        let mut watches = JoinSet::new();
        watch::start(&self.client, &self.domain, &events, &mut watches);
        let mut generations = {
            use millrace_xds::server::ConfigSource as _;
            self.source.generations()
        };
        let mut due = None;
        loop {
            let far = Instant::now() + Duration::from_hours(1);
            let at = due.unwrap_or(far);
            // biased: what is due first, so that a flood of changes cannot put it off for ever.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(at), if due.is_some() => {
                    due = match self.write_all().await {
                        Ok(()) => {
                            backoff.reset();
                            None
                        }
                        Err(()) => Some(Instant::now() + backoff.next_delay().unwrap_or(RETRY.1)),
                    };
                }
                seen = received.recv() => match seen {
                    Some(seen) => if self.take(seen) {
                        due.get_or_insert_with(|| Instant::now() + QUIET);
                    },
                    None => return,
                },
                changed = generations.changed() => match changed {
                    Ok(()) => { due.get_or_insert_with(|| Instant::now() + QUIET); }
                    Err(_) => return,
                },
            }
        }
    }

    /// Notes what a watch has seen, and says whether something is to be judged anew.
    fn take(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Object(id, known) => {
                let judged = (known.generation, known.status.clone());
                let late = self.late.remove(&id);
                let before = self.known.insert(id, *known);
                late || before.is_none_or(|before| (before.generation, before.status) != judged)
            }
            Seen::Gone(id) => {
                self.known.remove(&id);
                false
            }
            Seen::Listed(kind, ids) => {
                self.known
                    .retain(|id, _| id.kind != kind || ids.contains(id));
                false
            }
        }
    }

    /// Writes every status that differs.
    async fn write_all(&mut self) -> Result<(), ()> {
        if !self.source.is_published() {
            return Ok(());
        }
        let snapshot = Arc::clone(&self.source.published().snapshot);
        let mut complete = Ok(());
        for write in self.writes(&snapshot) {
            match self.write(&write).await {
                Ok(written) => self.settle(&write.id, &written),
                Err(Error::Api(status)) if status.code == CONFLICT => {
                    self.metrics.status_written("conflict");
                    self.late.insert(write.id);
                }
                // It is gone, or its kind has no status: nothing to be done until it is seen again.
                Err(Error::Api(status)) if status.code == NOT_FOUND => {
                    self.known.remove(&write.id);
                }
                Err(error) => {
                    self.metrics.status_written("failed");
                    if complete.is_ok() {
                        tracing::warn!(object = %write.id, %error, "a status cannot be written");
                    }
                    complete = Err(());
                    let of_all = match &error {
                        Error::Api(status) => status.code >= 500 || status.code == TOO_MANY,
                        _ => true,
                    };
                    if of_all {
                        return complete;
                    }
                }
            }
            tokio::time::sleep(PACE).await;
        }
        complete
    }

    /// What is to be written, as the mesh is now.
    fn writes(&self, snapshot: &MeshSnapshot) -> Vec<Write> {
        let mut index = Index::over(snapshot.clone());
        let objects = self.known.values().filter_map(|known| known.object.clone());
        for object in objects {
            index.apply(object);
        }
        let mut between: BTreeMap<ObjectId, Vec<(ObjectId, Finding)>> = BTreeMap::new();
        let judged = index.snapshot();
        for (id, finding) in analyze(&judged) {
            between.entry(id.clone()).or_default().push((id, finding));
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut writes = Vec::new();
        for (id, known) in &self.known {
            let mut problems = known.problems.clone();
            let found = between.remove(id).unwrap_or_default();
            problems.extend(Origins::default().locate(found));
            if let Some(status) = status_of(id, known, &problems, &now, &judged) {
                writes.push(Write {
                    id: id.clone(),
                    resource: Arc::clone(&known.resource),
                    version: known.version.clone(),
                    status,
                });
            }
        }
        writes
    }

    async fn write(&self, write: &Write) -> Result<DynamicObject, Error> {
        let namespace = &write.id.name.namespace;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &*write.resource);
        let patch = json!({
            "metadata": {"resourceVersion": write.version},
            "status": write.status,
        });
        api.patch_status(
            &write.id.name.name,
            &PatchParams::default(),
            &Patch::Merge(&patch),
        )
        .await
    }

    /// What was written is what is there now, before the watch says so.
    fn settle(&mut self, id: &ObjectId, written: &DynamicObject) {
        self.metrics.status_written("written");
        if let Some(known) = self.known.get_mut(id) {
            known.version = written
                .metadata
                .resource_version
                .clone()
                .unwrap_or_default();
            known.status = written.data["status"].clone();
        }
    }
}

fn status_of(
    id: &ObjectId,
    known: &Known,
    problems: &[Problem],
    now: &str,
    mesh: &MeshSnapshot,
) -> Option<Value> {
    let moment = Moment {
        generation: known.generation,
        now,
    };
    match id.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
            let is_ours = |reference: &Value| is_gateway(mesh, &id.name.namespace, reference);
            routes::status(&known.parents, &is_ours, problems, &known.status, moment)
        }
        Kind::Gateway if known.listeners.is_null() => None,
        Kind::Gateway => {
            let attached = attached(mesh, id, &known.listeners);
            let (listeners, before) = (&known.listeners, &known.status);
            gateways::status(listeners, &attached, problems, before, moment)
        }
        _ => istio::status(problems, &known.status, moment),
    }
}

/// Whether a parent of a route is a gateway of the mesh.
fn is_gateway(mesh: &MeshSnapshot, namespace: &str, reference: &Value) -> bool {
    let part = |key: &str| reference[key].as_str();
    let group = part("group").unwrap_or("gateway.networking.k8s.io");
    let kind = part("kind").unwrap_or("Gateway");
    let name = part("name").unwrap_or_default();
    let gateway = ObjectId {
        kind: Kind::Gateway,
        name: ObjectName::new(part("namespace").unwrap_or(namespace), name),
    };
    (group, kind) == ("gateway.networking.k8s.io", "Gateway")
        && mesh.gateways.contains_key(&gateway)
}

/// How many routes each listener of a gateway takes.
fn attached(mesh: &MeshSnapshot, id: &ObjectId, listeners: &Value) -> Vec<usize> {
    let gateway = mesh.gateways.get(id);
    let names = listeners.as_array().into_iter().flatten();
    let names = names.map(|listener| listener["name"].as_str().unwrap_or_default());
    let count = |name: &str| {
        let routes = mesh.api_routes.values();
        let taken = |route: &&Arc<ApiRoute>| {
            gateway.is_some_and(|gateway| {
                let mut parents = route.parents.iter();
                route.is_http() && parents.any(|parent| takes_at(gateway, name, route, parent))
            })
        };
        routes.filter(taken).count()
    };
    names.map(count).collect()
}

#[cfg(test)]
mod tests;
