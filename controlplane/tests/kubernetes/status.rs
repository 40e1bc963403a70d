//! Statuses as the API server keeps them, written by the replica that leads.

use anyhow::ensure;
use bytes::Bytes;
use http::Method;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use millrace_controlplane::app::Pilot;
use millrace_runtime::admin::client::{Target, call};
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use serde_json::{Value, json};

use crate::admission::until;
use crate::mesh::PATIENCE;
use crate::rights::{RIGHTS, account, kubeconfig, start_with};

const VIRTUAL_SERVICES: &str =
    include_str!("../../../deploy/crds/networking.istio.io_virtualservices.yaml");
const HTTP_ROUTES: &str =
    include_str!("../../../deploy/crds/gateway.networking.k8s.io_httproutes.yaml");

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{port: 9080, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [ratings]
  http:
  - fault: {abort: {httpStatus: 500, percentage: {value: 1}}}
    route: [{destination: {host: nobody}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs:
  - {group: '', kind: Service, name: reviews, port: 9080}
  - {group: '', kind: Service, name: nobody, port: 80}
  - {name: edge}
  rules: [{backendRefs: [{name: nobody, port: 80}]}]
";

const WITNESS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: witness}
spec: {hosts: [witness], http: [{route: [{destination: {host: reviews}}]}]}
";

fn api(client: &Client, group: &str, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, "v1", kind);
    let plural = format!("{}s", kind.kind.to_ascii_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    Api::namespaced_with(client.clone(), "default", &resource)
}

/// How many statuses this pilot has written.
async fn written(pilot: &Pilot) -> anyhow::Result<u64> {
    let target = Target::Tcp(pilot.addresses().http);
    let answer = call(&target, Method::GET, "/metrics", Bytes::new(), PATIENCE).await?;
    let name = "millrace_pilot_status_writes_total{outcome=\"written\"} ";
    let text = answer.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.map(str::parse).transpose()?.unwrap_or_default())
}

fn told(conditions: &Value) -> Vec<String> {
    let part = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let all = conditions.as_array().into_iter().flatten();
    all.map(|it| {
        ["type", "status", "reason", "message"]
            .map(|key| part(it, key))
            .join(" ")
    })
    .collect()
}

/// The object once its status is of its present generation and says this.
async fn with(
    api: &Api<DynamicObject>,
    says: impl Fn(&Value) -> bool,
) -> anyhow::Result<DynamicObject> {
    until("the status says it", async || {
        let object = api.get("reviews").await?;
        ensure!(says(&object.data["status"]), "{:#}", object.data["status"]);
        Ok(Some(object))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pilot_made_of_objects_stands_in_their_statuses() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "default", VIRTUAL_SERVICES).await?;
    apply(&client, "default", HTTP_ROUTES).await?;
    apply(&client, "default", RIGHTS).await?;
    let kubeconfig = account(&server, &client).await?;
    crate::apply_in_time(&client, "default", OBJECTS).await?;
    let pilot = start_with(&kubeconfig, &["--lease-duration", "3s"]).await?;

    let rules = api(&client, "networking.istio.io", "VirtualService");
    let rule = with(&rules, |status| status["observedGeneration"] == 1).await?;
    let host = "spec.http[0].route[0].destination.host: no service nobody.default.svc.cluster.local is known: requests get 503 (NC)";
    let conditions = told(&rule.data["status"]["conditions"]);
    assert_eq!(
        conditions[0],
        format!("PassedAnalysis False ErrorsFound {host}")
    );
    assert!(
        conditions[1].starts_with("millrace.io/Executed False NotExecuted spec.http[0].fault: "),
        "{conditions:?}"
    );

    let routes = api(&client, "gateway.networking.k8s.io", "HTTPRoute");
    let route = with(&routes, |status| status["parents"][1].is_object()).await?;
    let parents = &route.data["status"]["parents"];
    assert_eq!(parents.as_array().map(Vec::len), Some(2), "{parents:#}");
    assert_eq!(parents[0]["parentRef"]["name"], "reviews");
    let missing = "spec.rules[0].backendRefs[0].name: no service nobody.default.svc.cluster.local is known: requests get 500";
    assert_eq!(
        told(&parents[0]["conditions"]),
        [
            "Accepted True Accepted ".to_owned(),
            format!("ResolvedRefs False BackendNotFound {missing}"),
            "millrace.io/Executed True Executed ".to_owned(),
        ]
    );
    assert!(told(&parents[1]["conditions"])[0].starts_with("Accepted False NoMatchingParent "));

    // What is missing comes: only the statuses change, and only once.
    let before = with(&rules, |status| status["observedGeneration"] == 1).await?;
    apply(&client, "default", "{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {ports: [{port: 80, name: http}]}}").await?;
    let after = with(&rules, |status| status["conditions"][0]["status"] == "True").await?;
    let route = with(&routes, |status| {
        told(&status["parents"][1]["conditions"])
            .iter()
            .take(2)
            .all(|it| it.contains(" True "))
    })
    .await?;
    assert_eq!(before.metadata.generation, after.metadata.generation);

    // Somebody else's condition stays, and what pilot wrote comes back.
    let foreign = json!({"status": {"conditions": [{"type": "Mine", "status": "True"}]}});
    rules
        .patch_status("reviews", &PatchParams::default(), &Patch::Merge(&foreign))
        .await?;
    let both = with(&rules, |status| {
        status["conditions"][1]["type"] == "PassedAnalysis"
    })
    .await?;
    assert_eq!(both.data["status"]["conditions"][0]["type"], "Mine");

    // The generation that a status names is the one that was judged.
    let good = json!({"spec": {"http": [{"route": [{"destination": {"host": "reviews"}}]}]}});
    rules
        .patch("reviews", &PatchParams::default(), &Patch::Merge(&good))
        .await?;
    let judged = with(&rules, |status| status["observedGeneration"] == 2).await?;
    let conditions = told(&judged.data["status"]["conditions"]);
    assert_eq!(conditions[2], "millrace.io/Executed True Executed ");

    // Nothing is written that is there already: a restart and a change elsewhere leave versions alone.
    pilot.stop().await;
    let pilot = start_with(&kubeconfig, &["--lease-duration", "3s"]).await?;
    apply(&client, "default", WITNESS).await?;
    until("the witness has a status", async || {
        let witness = rules.get("witness").await?;
        Ok(witness.data["status"]["observedGeneration"]
            .is_i64()
            .then_some(()))
    })
    .await?;
    // It counts a write once that is answered.
    until("the write is counted", async || {
        Ok((written(&pilot).await? > 0).then_some(()))
    })
    .await?;
    assert_eq!(written(&pilot).await?, 1, "the witness's");
    assert_eq!(
        rules.get("reviews").await?.metadata.resource_version,
        judged.metadata.resource_version
    );
    assert_eq!(
        routes.get("reviews").await?.metadata.resource_version,
        route.metadata.resource_version
    );
    pilot.stop().await;
    Ok(())
}

const GATEWAYS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: reviews}
spec:
  gatewayClassName: millrace
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.example.com'}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs}
spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{name: reviews, sectionName: http}, {name: theirs}]
  hostnames: [shop.example.com]
  rules: [{backendRefs: [{name: kubernetes, port: 443}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_the_mesh_says_what_it_takes_and_others_are_left_alone() -> anyhow::Result<()>
{
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    crate::apply_in_time(&client, "default", GATEWAYS).await?;
    let pilot = start_with(&kubeconfig, &["--lease-duration", "3s"]).await?;
    let gateways = api(&client, "gateway.networking.k8s.io", "Gateway");
    let gateway = with(&gateways, |status| {
        status["listeners"][0]["attachedRoutes"] == 1
    })
    .await?;
    let status = &gateway.data["status"];
    let conditions = told(&status["conditions"]);
    for wanted in ["Accepted True Accepted ", "Programmed True Programmed "] {
        assert!(
            conditions.iter().any(|told| told == wanted),
            "{conditions:?}"
        );
    }
    let listeners = &status["listeners"];
    assert_eq!(listeners[0]["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(listeners[1]["attachedRoutes"], 0);
    let https = told(&listeners[1]["conditions"]);
    assert!(
        https[0].starts_with("Accepted False UnsupportedProtocol "),
        "{https:?}"
    );
    assert!(
        conditions
            .iter()
            .any(|told| told.contains("spec.listeners[1].protocol: ")),
        "{conditions:?}"
    );
    let routes = api(&client, "gateway.networking.k8s.io", "HTTPRoute");
    let route = with(&routes, |status| status["parents"][0].is_object()).await?;
    let parents = &route.data["status"]["parents"];
    assert_eq!(parents.as_array().map(Vec::len), Some(1), "{parents:#}");
    assert_eq!(
        told(&parents[0]["conditions"])[0],
        "Accepted True Accepted "
    );

    // A route that goes is no longer counted, and nobody else's gateway is written to.
    routes.delete("reviews", &DeleteParams::default()).await?;
    with(&gateways, |status| {
        status["listeners"][0]["attachedRoutes"] == 0
    })
    .await?;
    let theirs = gateways.get("theirs").await?;
    let told_there = told(&theirs.data["status"]["conditions"]);
    let ours = told_there
        .iter()
        .any(|told| told.starts_with("millrace.io/"));
    assert!(!ours, "{told_there:?}");
    pilot.stop().await;
    Ok(())
}
