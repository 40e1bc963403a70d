//! What the writer of statuses sees: objects of configuration with generation, version and status, judged by themselves.
//!
//! Input: an API server; output: [`Seen`] to the writer. Only the replica that leads watches, so that the others keep
//! nothing of this in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, TypeMeta};
use kube::runtime::watcher::{self, Event};
use millrace_runtime::backoff::Backoff;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::analysis::judge;
use crate::model::gateway::CLASSES;
use crate::model::names::ObjectName;
use crate::model::problem::Problem;
use crate::model::{Kind, Object, ObjectId};
use crate::registry::kubernetes::{CONFIG_KINDS, ConfigKind, served};

/// The first wait after a failure, and the longest: also how long a kind that comes late may be overlooked.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// An object as it was seen.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) resource: Arc<ApiResource>,
    pub(super) generation: i64,
    pub(super) version: String,
    pub(super) status: Value,
    /// `spec.parentRefs`, which routes' statuses repeat.
    pub(super) parents: Value,
    /// `spec.listeners` of a gateway of the mesh's class, whose status has one of each.
    pub(super) listeners: Value,
    /// What it comes to, if it can be used.
    pub(super) object: Option<Object>,
    /// What is wrong with it alone.
    pub(super) problems: Vec<Problem>,
}

/// Something seen.
#[derive(Debug)]
pub(super) enum Seen {
    /// An object is new or different.
    Object(ObjectId, Box<Known>),
    /// One is gone.
    Gone(ObjectId),
    /// Of a kind there are these and no others.
    Listed(Kind, BTreeSet<ObjectId>),
}

/// Starts a watch for every kind that has a status.
pub(super) fn start(
    client: &Client,
    domain: &str,
    events: &mpsc::Sender<Seen>,
    watches: &mut JoinSet<()>,
) {
    for kind in CONFIG_KINDS.iter().filter(|kind| has_status(kind.kind)) {
        let watch = Watch {
            kind,
            client: client.clone(),
            domain: domain.to_owned(),
            events: events.clone(),
        };
        watches.spawn(watch.run());
    }
}

/// Classes are others' to accept; a `ReferenceGrant` has no status.
fn has_status(kind: Kind) -> bool {
    !matches!(kind, Kind::GatewayClass | Kind::ReferenceGrant)
}

struct Watch {
    kind: &'static ConfigKind,
    client: Client,
    domain: String,
    events: mpsc::Sender<Seen>,
}

impl Watch {
    async fn run(self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter();
        loop {
            match served(self.kind, &self.client).await {
                Ok(Some(resource)) => self.follow(resource, &mut backoff).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(kind = self.kind.kind.as_str(), %error, "not watched for statuses");
                }
            }
            tokio::time::sleep(backoff.next_delay().unwrap_or(BACKOFF.1)).await;
        }
    }

    /// Follows a kind until its watch breaks.
    async fn follow(&self, resource: ApiResource, backoff: &mut Backoff) {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let resource = Arc::new(resource);
        let mut stream = watcher::watcher(api, watcher::Config::default()).boxed();
        let mut listed = BTreeSet::new();
        while let Some(event) = stream.next().await {
            let seen = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed.insert(self.id(&object));
                    self.seen(object, &resource)
                }
                Ok(Event::Apply(object)) => self.seen(object, &resource),
                Ok(Event::Delete(object)) => Seen::Gone(self.id(&object)),
                Ok(Event::InitDone) => {
                    backoff.reset();
                    Seen::Listed(self.kind.kind, std::mem::take(&mut listed))
                }
                Err(error) => {
                    tracing::debug!(kind = self.kind.kind.as_str(), %error, "not watched for statuses");
                    return;
                }
            };
            if self.events.send(seen).await.is_err() {
                return;
            }
        }
    }

    fn id(&self, object: &DynamicObject) -> ObjectId {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
        ObjectId {
            kind: self.kind.kind,
            name: ObjectName::new(&part(namespace), &part(name)),
        }
    }

    fn seen(&self, mut object: DynamicObject, resource: &Arc<ApiResource>) -> Seen {
        let id = self.id(&object);
        object.metadata.managed_fields = None;
        object.types = Some(TypeMeta {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
        });
        let (generation, version) = (
            object.metadata.generation.unwrap_or_default(),
            object.metadata.resource_version.clone().unwrap_or_default(),
        );
        let status = object.data["status"].take();
        let spec = &object.data["spec"];
        let parents = spec["parentRefs"].clone();
        let class = spec["gatewayClassName"].as_str().unwrap_or_default();
        let listeners = if CLASSES.contains(&class) {
            spec["listeners"].clone()
        } else {
            Value::Null
        };
        let value = serde_json::to_value(object).unwrap_or_default();
        let (object, problems) = judge(value, None, &self.domain);
        let known = Known {
            resource: Arc::clone(resource),
            generation,
            version,
            status,
            parents,
            listeners,
            object,
            problems,
        };
        Seen::Object(id, Box::new(known))
    }
}
