//! Routes of the Gateway API, delegates and grants of a cluster, live: what a sidecar gets follows each write, whichever
//! object comes or goes first.

use std::sync::Arc;

use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject};
use kube::core::GroupVersionKind;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::model::near::Place;
use millrace_controlplane::model::node::Features;
use millrace_controlplane::translate::{ProxyView, ResourceKind};
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use millrace_xds::json;
use millrace_xds::server::ConfigSource as _;

use crate::apply_in_time;
use crate::mesh::PATIENCE;
use crate::rights::{kubeconfig, start_with};

const SERVICES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: billing}}
---
{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: default}, spec: {ports: [{name: http, port: 9080}, {name: grpc, port: 9090}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: default}, spec: {ports: [{name: tcp, port: 5432}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: gate, namespace: default}, spec: {ports: [{name: tls, port: 8443}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: ledger, namespace: billing}, spec: {ports: [{name: http, port: 80}, {name: tcp, port: 5432}]}}
";

const HTTP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  rules: [{backendRefs: [{name: ledger, namespace: billing, port: 80}]}]
";

const GRANT: &str = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: ledger, namespace: billing}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: '', kind: Service, name: ledger}]
";

const GRPC: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: reviews, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9090}]
  rules: [{matches: [{method: {service: shop.Reviews, method: List}}], backendRefs: [{name: reviews, port: 9090}]}]
";

const TCP: &str = "
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: db, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: db, port: 5432}]
  rules: [{backendRefs: [{name: gate, port: 8443, weight: 3}, {name: db, port: 5432}]}]
";

const TLS: &str = "
apiVersion: gateway.networking.k8s.io/v1alpha3
kind: TLSRoute
metadata: {name: gate, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: gate}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: db, port: 5432}]}]
";

const ROOT: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: default}
spec: {hosts: [reviews], http: [{match: [{uri: {prefix: /api}}], delegate: {name: part, namespace: billing}}, {route: [{destination: {host: reviews}}]}]}
";

const PART: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part, namespace: billing}
spec: {http: [{match: [{uri: {prefix: /api/v7}}], route: [{destination: {host: ledger}}]}]}
";

/// What the sidecar of a pod gets of a kind, as JSON.
fn served(pilot: &Pilot, kind: ResourceKind) -> String {
    let view = ProxyView::Sidecar {
        namespace: "default".to_owned(),
        pod: "caller".to_owned(),
        addresses: Vec::new(),
        place: Place::default(),
        is_envoy: true,
        features: Features::all(),
    };
    let view = pilot.source().view_of(Arc::new(view));
    let all = view.all(kind).into_iter();
    let shown = all.map(|it| json::any_to_value(&it.to_any()).unwrap().to_string());
    shown.collect::<Vec<_>>().join("\n")
}

/// Waits until something is served, or no longer.
async fn until(pilot: &Pilot, kind: ResourceKind, wanted: &str, there: bool) -> anyhow::Result<()> {
    let mut generations = pilot.source().generations();
    let waiting = async {
        loop {
            generations.borrow_and_update();
            if pilot.source().is_published() && served(pilot, kind).contains(wanted) == there {
                return anyhow::Ok(());
            }
            generations.changed().await?;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(ended) => ended,
        Err(_) => anyhow::bail!(
            "{wanted:?} is {} of {kind:?}: {}\n{:#?}",
            if there { "not part" } else { "still part" },
            served(pilot, kind),
            pilot.source().problems()
        ),
    }
}

fn api(client: &Client, namespace: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_attaches_to_services_is_served_as_it_comes_and_goes() -> anyhow::Result<()>
{
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let pilot = start_with(&kubeconfig, &["--statuses", "false"]).await?;
    apply(&client, "default", SERVICES).await?;

    // A reference to another namespace leads nowhere until that namespace grants it, and again when it does no longer.
    let (to_ledger, refused) = (
        "\"outbound|80||ledger.billing.svc.cluster.local\"",
        "not-granted|",
    );
    apply_in_time(&client, "default", HTTP).await?;
    until(&pilot, ResourceKind::Route, refused, true).await?;
    apply_in_time(&client, "billing", GRANT).await?;
    until(&pilot, ResourceKind::Route, refused, false).await?;
    let grants = api(
        &client,
        "billing",
        "gateway.networking.k8s.io/v1beta1",
        "ReferenceGrant",
    );
    let routes = served(&pilot, ResourceKind::Route);
    assert!(
        routes.contains(&format!("\"cluster\":{to_ledger}")),
        "{routes}"
    );
    grants.delete("ledger", &DeleteParams::default()).await?;
    until(&pilot, ResourceKind::Route, refused, true).await?;
    let http = api(
        &client,
        "default",
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
    );
    http.delete("reviews", &DeleteParams::default()).await?;
    until(&pilot, ResourceKind::Route, refused, false).await?;

    apply_in_time(&client, "default", GRPC).await?;
    until(&pilot, ResourceKind::Route, "/shop.Reviews/List", true).await?;

    let weighted = "\"name\":\"outbound|8443||gate.default.svc.cluster.local\",\"weight\":3";
    apply_in_time(&client, "default", TCP).await?;
    until(&pilot, ResourceKind::Listener, weighted, true).await?;
    let tcp = api(
        &client,
        "default",
        "gateway.networking.k8s.io/v1alpha2",
        "TCPRoute",
    );
    tcp.delete("db", &DeleteParams::default()).await?;
    until(&pilot, ResourceKind::Listener, weighted, false).await?;

    let by_name = "\"server_names\":[\"a.example.com\"]";
    apply_in_time(&client, "default", TLS).await?;
    until(&pilot, ResourceKind::Listener, by_name, true).await?;
    let other = TLS.replace("a.example.com", "b.example.com");
    apply(&client, "default", &other).await?;
    until(&pilot, ResourceKind::Listener, by_name, false).await?;

    // A delegate that comes after its root, in another namespace, and goes before it.
    apply_in_time(&client, "default", ROOT).await?;
    until(&pilot, ResourceKind::Route, "/api/v7", false).await?;
    apply_in_time(&client, "billing", PART).await?;
    until(&pilot, ResourceKind::Route, "/api/v7", true).await?;
    let rules = api(
        &client,
        "billing",
        "networking.istio.io/v1",
        "VirtualService",
    );
    rules.delete("part", &DeleteParams::default()).await?;
    until(&pilot, ResourceKind::Route, "/api/v7", false).await?;
    pilot.stop().await;
    Ok(())
}
