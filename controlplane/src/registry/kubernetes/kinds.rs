//! What is watched, and how each kind becomes objects of the model.
//!
//! Kubernetes' own kinds are always there; of those that only exist as a name, a zone or labels, the API server is
//! asked for metadata alone. Kinds of configuration come and go with their definitions, and may be served in several
//! versions that say the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;

use super::Definitions;
use super::watch::{Change, Entry, Update, Watch, What, describe};
use crate::kube::convert;
use crate::kube::document;
use crate::model::names::ObjectName;
use crate::model::validate::Validated;
use crate::model::{Kind, Object};

/// A kind of configuration.
#[derive(Debug)]
pub(crate) struct ConfigKind {
    /// The kind.
    pub(crate) kind: Kind,
    /// Its group.
    pub(crate) group: &'static str,
    plural: &'static str,
    /// The versions that are read, the preferred one first.
    pub(crate) versions: &'static [&'static str],
}

impl ConfigKind {
    const fn istio(kind: Kind, plural: &'static str) -> Self {
        Self {
            kind,
            group: "networking.istio.io",
            plural,
            versions: &["v1", "v1beta1", "v1alpha3"],
        }
    }

    const fn seeds(kind: Kind, plural: &'static str) -> Self {
        Self {
            kind,
            group: "config.istio.io",
            plural,
            versions: &["v1alpha2"],
        }
    }

    const fn gateway_api(
        kind: Kind,
        plural: &'static str,
        versions: &'static [&'static str],
    ) -> Self {
        Self {
            kind,
            group: "gateway.networking.k8s.io",
            plural,
            versions,
        }
    }
}

/// All kinds of configuration.
pub(crate) const CONFIG_KINDS: &[ConfigKind] = &[
    ConfigKind::istio(Kind::VirtualService, "virtualservices"),
    ConfigKind::istio(Kind::DestinationRule, "destinationrules"),
    ConfigKind::istio(Kind::ServiceEntry, "serviceentries"),
    ConfigKind::istio(Kind::WorkloadEntry, "workloadentries"),
    ConfigKind::istio(Kind::Sidecar, "sidecars"),
    ConfigKind::istio(Kind::IstioGateway, "gateways"),
    ConfigKind::seeds(Kind::RouteRule, "routerules"),
    ConfigKind::seeds(Kind::EgressRule, "egressrules"),
    ConfigKind::gateway_api(Kind::HttpRoute, "httproutes", &["v1", "v1beta1"]),
    ConfigKind::gateway_api(Kind::GrpcRoute, "grpcroutes", &["v1", "v1alpha2"]),
    ConfigKind::gateway_api(Kind::TcpRoute, "tcproutes", &["v1", "v1alpha2"]),
    ConfigKind::gateway_api(Kind::TlsRoute, "tlsroutes", &["v1", "v1alpha3", "v1alpha2"]),
    ConfigKind::gateway_api(
        Kind::ReferenceGrant,
        "referencegrants",
        &["v1", "v1beta1", "v1alpha2"],
    ),
    ConfigKind::gateway_api(Kind::Gateway, "gateways", &["v1", "v1beta1"]),
    ConfigKind::gateway_api(Kind::GatewayClass, "gatewayclasses", &["v1", "v1beta1"]),
];

/// All kinds of Kubernetes' own.
pub(super) const OWN_KINDS: [Kind; 7] = [
    Kind::Namespace,
    Kind::Node,
    Kind::ServiceAccount,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::Ingress,
];

/// HTTP's code for what is not there.
const NOT_FOUND: u16 = 404;

/// Pods that have ended have no address and never get one again.
const LIVING: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Starts a watch for every kind.
pub(super) fn start(
    client: &Client,
    domain: &str,
    updates: &mpsc::Sender<Update>,
    definitions: &latest::Receiver<Definitions>,
    watches: &mut JoinSet<()>,
) {
    let starter = Starter {
        client: client.clone(),
        domain: domain.into(),
        updates: updates.clone(),
    };
    starter.names::<Namespace>(watches, Kind::Namespace, |metadata, domain| {
        let namespace = Namespace {
            metadata,
            ..Namespace::default()
        };
        convert::namespace(namespace, domain)
    });
    starter.names::<Node>(watches, Kind::Node, |metadata, domain| {
        let node = Node {
            metadata,
            ..Node::default()
        };
        convert::node(node, domain)
    });
    starter.names::<ServiceAccount>(watches, Kind::ServiceAccount, |metadata, domain| {
        let account = ServiceAccount {
            metadata,
            ..ServiceAccount::default()
        };
        convert::service_account(account, domain)
    });
    starter.whole::<Service>(watches, Kind::Service, "", convert::service);
    starter.whole::<EndpointSlice>(watches, Kind::EndpointSlice, "", convert::endpoint_slice);
    starter.whole::<Pod>(watches, Kind::Pod, LIVING, convert::pod);
    starter.whole::<Ingress>(watches, Kind::Ingress, "", convert::ingress);
    starter.definitions(watches);
    for kind in CONFIG_KINDS {
        watches.spawn(follow(kind, starter.clone(), definitions.clone()));
    }
}

/// What a watch asks of a kind.
trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static
{
}

#[derive(Clone)]
struct Starter {
    client: Client,
    domain: Arc<str>,
    updates: mpsc::Sender<Update>,
}

impl Starter {
    fn watch(&self, kind: Kind) -> Watch {
        Watch::new(What::Objects(kind), self.updates.clone())
    }

    /// Watches a kind of which the metadata is enough.
    fn names<K: Watched>(
        &self,
        watches: &mut JoinSet<()>,
        kind: Kind,
        convert: fn(ObjectMeta, &str) -> Validated<Object>,
    ) {
        let api = Api::<PartialObjectMeta<K>>::all(self.client.clone());
        let start = move || watcher(api.clone(), watcher::Config::default());
        let (watch, domain) = (self.watch(kind), Arc::clone(&self.domain));
        watches.spawn(watch.drive_on(start, move |object: PartialObjectMeta<K>| {
            let name = name_of(kind, &object.metadata);
            Entry::judged(kind, name, convert(object.metadata, &domain))
        }));
    }

    /// Watches a kind of which more than the metadata is needed. What the model has no place for is dropped at once.
    fn whole<K: Watched>(
        &self,
        watches: &mut JoinSet<()>,
        kind: Kind,
        fields: &str,
        convert: fn(K, &str) -> Validated<Object>,
    ) {
        let config = watcher::Config::default();
        let config = if fields.is_empty() {
            config
        } else {
            config.fields(fields)
        };
        let api = Api::<K>::all(self.client.clone());
        let start = move || watcher(api.clone(), config.clone());
        let (watch, domain) = (self.watch(kind), Arc::clone(&self.domain));
        watches.spawn(watch.drive_on(start, move |object: K| {
            let name = name_of(kind, object.meta());
            Entry::judged(kind, name, convert(object, &domain))
        }));
    }

    /// Watches the names of the definitions of custom resources.
    fn definitions(&self, watches: &mut JoinSet<()>) {
        let api = Api::<PartialObjectMeta<CustomResourceDefinition>>::all(self.client.clone());
        let start = move || watcher(api.clone(), watcher::Config::default());
        let watch = Watch::new(What::Definitions, self.updates.clone());
        watches.spawn(watch.drive_on(start, |object| {
            Entry::name_only(ObjectName::new(
                "",
                object.metadata.name.as_deref().unwrap_or_default(),
            ))
        }));
    }
}

/// Watches a kind of configuration while the API server has its definition.
async fn follow(
    kind: &'static ConfigKind,
    starter: Starter,
    mut definitions: latest::Receiver<Definitions>,
) {
    let name = format!("{}.{}", kind.plural, kind.group);
    let defined = |known: &Definitions| known.as_ref().map(|known| known.contains(&name));
    let mut watch = starter.watch(kind.kind);
    loop {
        let Ok(known) = definitions
            .wait_for(Option::is_some)
            .await
            .map(|known| defined(&known))
        else {
            return;
        };
        if known != Some(true) {
            // Objects went with their definition.
            watch.stands().await;
            watch.tell(Change::Replaced(Vec::new())).await;
            if definitions
                .wait_for(|known| defined(known) == Some(true))
                .await
                .is_err()
            {
                return;
            }
        }
        tokio::select! {
            () = watch_served(kind, &starter, &mut watch) => {}
            gone = definitions.wait_for(|known| defined(known) == Some(false)) => {
                if gone.is_err() {
                    return;
                }
            }
        }
    }
}

/// Watches a kind in the version that the API server has, until it has that no longer.
async fn watch_served(kind: &ConfigKind, starter: &Starter, watch: &mut Watch) {
    let resource = match served(kind, &starter.client).await {
        Ok(Some(resource)) => resource,
        Ok(None) => {
            let versions = kind.versions.join(", ");
            let message = format!("the API server has none of the versions {versions} of it");
            return watch.broken(message).await;
        }
        Err(error) => return watch.broken(describe(&error)).await,
    };
    let api = Api::<DynamicObject>::all_with(starter.client.clone(), &resource);
    let stream = watcher(api, watcher::Config::default());
    let domain = Arc::clone(&starter.domain);
    let read = move |mut object: DynamicObject| {
        let name = name_of(kind.kind, &object.metadata);
        object.metadata.managed_fields = None;
        object.types = Some(kube::api::TypeMeta {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
        });
        let contents = serde_json::to_value(object)
            .map(|object| document::read_value(object, &domain))
            .unwrap_or_default();
        Entry::read(name, contents)
    };
    watch.drive(stream, &read).await;
}

/// The kind in the best version that the API server has.
pub(crate) async fn served(
    kind: &ConfigKind,
    client: &Client,
) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions {
        let listed = match client
            .list_api_group_resources(&format!("{}/{version}", kind.group))
            .await
        {
            Ok(listed) => listed,
            // A version that no kind of the group has is answered without a reason.
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND => continue,
            Err(error) => return Err(error),
        };
        let names: BTreeSet<&str> = listed
            .resources
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        if names.contains(kind.plural) {
            let gvk = GroupVersionKind::gvk(kind.group, version, kind.kind.as_str());
            return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, kind.plural)));
        }
    }
    Ok(None)
}

/// Namespace and name, without a namespace for kinds that have none.
fn name_of(kind: Kind, metadata: &ObjectMeta) -> ObjectName {
    let name = metadata.name.as_deref().unwrap_or_default();
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|_| !kind.is_cluster_scoped());
    ObjectName::new(namespace.unwrap_or_default(), name)
}

#[cfg(test)]
mod tests;
