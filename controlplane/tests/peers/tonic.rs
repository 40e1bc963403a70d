//! tonic's `xds-client` against a running pilot: from a target by way of listener, routes and clusters to addresses, also
//! when rules and services change. It knows the state-of-the-world variant alone, and leaves to its user what the
//! resources mean.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millrace_testkit::in_netns;
use millrace_testkit::skip::skip;
use millrace_xds::proto::envoy::config::route::v3 as route;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use millrace_xds::proto::{self, unpack};
use prost::Message;
use serde_json::Value;
use xds_client::message::MetadataValue;
use xds_client::resource::TypeUrl;
use xds_client::{
    ClientConfig, Error, Node, ProstCodec, Resource, ResourceEvent, ResourceWatcher, TokioRuntime,
    TonicTransportBuilder, XdsClient,
};

use crate::grpc::data;
use crate::namespace::Namespace;
use crate::{PATIENCE, pilot};

const TARGET: &str = "greeter.default.svc.cluster.local:9090";

/// A type of resource that is taken as it is.
macro_rules! resource {
    ($name:ident, $message:path, $type_url:literal, $key:ident, $whole:literal) => {
        #[derive(Debug)]
        struct $name($message);

        impl Resource for $name {
            type Message = $message;
            const TYPE_URL: TypeUrl = TypeUrl::new($type_url);
            const ALL_RESOURCES_REQUIRED_IN_SOTW: bool = $whole;

            fn deserialize(bytes: Bytes) -> xds_client::Result<Self::Message> {
                Message::decode(bytes).map_err(Into::into)
            }

            fn name(message: &Self::Message) -> &str {
                &message.$key
            }

            fn validate(message: Self::Message) -> xds_client::Result<Self> {
                Ok(Self(message))
            }
        }
    };
}

resource!(
    Listener,
    proto::Listener,
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    name,
    true
);
resource!(
    Routes,
    proto::RouteConfiguration,
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    name,
    false
);
resource!(
    Cluster,
    proto::Cluster,
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    name,
    true
);
resource!(
    Endpoints,
    proto::ClusterLoadAssignment,
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    cluster_name,
    false
);

/// The next change: the resource, or why there is none.
async fn change<T: Resource>(watcher: &mut ResourceWatcher<T>) -> Result<Arc<T>, Error> {
    loop {
        match watcher.next().await.unwrap() {
            ResourceEvent::ResourceChanged { result, .. } => return result,
            ResourceEvent::AmbientError { .. } => {}
        }
    }
}

/// Watches on for changes until one fits. The client reads on only when every watcher has taken what came for it.
async fn until<T: Resource>(
    watcher: &mut ResourceWatcher<T>,
    fits: impl Fn(&Result<Arc<T>, Error>) -> bool,
) {
    while !fits(&change(watcher).await) {}
}

/// The name under which a listener's routes are.
fn routes_of(listener: &Listener) -> String {
    let api = listener.0.api_listener.clone().unwrap();
    let manager: hcm::HttpConnectionManager = unpack(&api.api_listener.unwrap()).unwrap();
    match manager.route_specifier {
        Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => rds.route_config_name,
        other => panic!("{other:?}"),
    }
}

/// Every cluster that a route leads to.
fn clusters_of(routes: &Routes) -> BTreeSet<String> {
    use route::route::Action;
    use route::route_action::ClusterSpecifier;
    let mut clusters = BTreeSet::new();
    for route in routes.0.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Some(Action::Route(action)) = &route.action else {
            continue;
        };
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(only)) => {
                clusters.insert(only.clone());
            }
            Some(ClusterSpecifier::WeightedClusters(several)) => {
                clusters.extend(several.clusters.iter().map(|to| to.name.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
    clusters
}

/// The endpoints of a locality each, as messages say them.
fn addresses_of(endpoints: &Endpoints) -> Vec<String> {
    use proto::envoy::config::core::v3::address::Address;
    use proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let all = endpoints.0.endpoints.iter();
    let address = |host: &Option<HostIdentifier>| match host {
        Some(HostIdentifier::Endpoint(endpoint)) => {
            match endpoint.address.clone().unwrap().address {
                Some(Address::SocketAddress(socket)) => socket.address,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    };
    all.flat_map(|locality| &locality.lb_endpoints)
        .map(|endpoint| address(&endpoint.host_identifier))
        .collect()
}

fn client() -> XdsClient {
    let node = Node::new("tonic", "0.1")
        .with_id("sidecar~10.244.1.9~caller.default~default.svc.cluster.local");
    let generator = MetadataValue::String("grpc".to_owned());
    let node = node.with_metadata([("GENERATOR".to_owned(), generator)].into());
    XdsClient::builder(
        ClientConfig::new(node, "http://127.0.0.1:15010"),
        TonicTransportBuilder::new(),
        ProstCodec,
        TokioRuntime,
    )
    .build()
}

/// Follows a target, then what changes behind it.
async fn follow(config: &Path, namespace: &Namespace) {
    let cluster =
        |subset: &str| format!("outbound|9090|{subset}|greeter.default.svc.cluster.local");
    let client = client();
    let mut listener = client.watch::<Listener>(TARGET).await;
    let found = change(&mut listener).await.unwrap();
    let mut routes = client.watch::<Routes>(&routes_of(&found)).await;
    let both: BTreeSet<String> = ["v1", "v2"].map(cluster).into();
    // What is pushed while the configuration is still being read may be less.
    until(&mut routes, |found| {
        found
            .as_ref()
            .is_ok_and(|found| both.is_subset(&clusters_of(found)))
    })
    .await;
    let mut subset = client.watch::<Cluster>(&cluster("v1")).await;
    let found = change(&mut subset).await.unwrap();
    let source = found.0.eds_cluster_config.clone().unwrap();
    let mut endpoints = client.watch::<Endpoints>(&source.service_name).await;
    let found = change(&mut endpoints).await.unwrap();
    assert_eq!(addresses_of(&found), ["10.244.1.1"]);
    // From here on each change is waited for where it shows, and the others are passed over.
    tokio::spawn(async move { while subset.next().await.is_some() {} });
    tokio::spawn(async move { while endpoints.next().await.is_some() {} });

    fs::remove_file(config.join("routes.yaml")).unwrap();
    let whole: BTreeSet<String> = [cluster("")].into();
    until(&mut routes, |found| {
        found
            .as_ref()
            .is_ok_and(|found| clusters_of(found).is_superset(&whole))
    })
    .await;
    tokio::spawn(async move { while routes.next().await.is_some() {} });

    fs::remove_file(config.join("greeter.yaml")).unwrap();
    until(&mut listener, |found| {
        matches!(found, Err(Error::ResourceDoesNotExist))
    })
    .await;
    fs::copy(data("greeter.yaml"), config.join("greeter.yaml")).unwrap();
    until(&mut listener, Result::is_ok).await;
    let sync = namespace.page("/debug/syncz").unwrap();
    for kind in sync[0]["types"].as_array().unwrap() {
        assert_eq!(kind["last_error"], Value::Null, "{kind:#}");
    }
}

#[test]
fn tonics_xds_client_follows_a_target_to_its_endpoints() {
    if !Namespace::possible() {
        return skip("no network namespace can be made here");
    }
    let config = tempfile::tempdir().unwrap();
    for name in ["greeter.yaml", "subsets.yaml", "routes.yaml"] {
        fs::copy(data(name), config.path().join(name)).unwrap();
    }
    let namespace = Namespace::with(&[]);
    let _pilot = pilot(&namespace, config.path());
    in_netns(namespace.file(), || {
        // One thread: the others would be elsewhere.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let done =
            async { tokio::time::timeout(PATIENCE, follow(config.path(), &namespace)).await };
        Ok(runtime.block_on(done)?)
    })
    .unwrap();
}
