//! What becomes of the watches when the API server goes, forgets, or cannot be reached.

use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, WatchEvent, WatchParams,
};
use kube::core::GroupVersionKind;
use millrace_controlplane::model::names::ObjectName;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use tokio_stream::StreamExt as _;

use crate::mesh::Mesh;
use crate::relay::Relay;
use crate::{DEFINITIONS, apply_in_time};

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}], selector: {{app: {name}}}}}\n"
    )
}

fn account(name: &str) -> String {
    format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n")
}

fn has(name: &str) -> impl Fn(&Mesh) -> bool {
    let name = ObjectName::new("default", name);
    move |mesh| mesh.snapshot().services.contains_key(&name)
}

fn broken(mesh: &Mesh) -> bool {
    let problems = mesh.problems.iter();
    problems
        .filter(|problem| problem.message.contains("cannot be watched"))
        .count()
        > 0
}

#[tokio::test]
async fn an_api_server_that_restarts_loses_nothing() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "default", &service("before")).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    assert!(has("before")(&mesh));
    let known = mesh.snapshot();

    server.kill()?;
    mesh.until("the broken watches are a problem", broken)
        .await?;
    assert_eq!(mesh.snapshot(), known);

    server.resume()?;
    apply(&client, "default", &service("after")).await?;
    mesh.until("a new service is known", has("after")).await?;
    mesh.until("nothing is broken any more", |mesh| !broken(mesh))
        .await?;
    assert_eq!(mesh.deleted, [], "nothing was deleted");
    mesh.end().await
}

#[tokio::test]
async fn what_went_while_the_api_server_forgot_goes_with_the_next_list() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "default", DEFINITIONS).await?;
    apply_in_time(&client, "default", RULE).await?;
    for name in ["stays", "goes"] {
        apply(&client, "default", &service(name)).await?;
        apply(&client, "default", &account(name)).await?;
    }
    let relay = Relay::start(server.addr()).await?;
    let kubeconfig = server.kubeconfig_at("relayed", server.admin_token(), relay.at())?;
    let mut mesh = Mesh::of_cluster(kubeconfig);
    mesh.synced().await?;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let seen = services.list(&ListParams::default()).await?;
    let seen = seen.metadata.resource_version.unwrap_or_default();

    relay.cut();
    mesh.until("the broken watches are a problem", broken)
        .await?;
    services.delete("goes", &DeleteParams::default()).await?;
    // One of whole objects, one of metadata, one of configuration.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    accounts.delete("goes", &DeleteParams::default()).await?;
    let kind = GroupVersionKind::gvk("config.istio.io", "v1alpha2", "RouteRule");
    let resource = ApiResource::from_gvk(&kind);
    let rules: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    rules.delete("reviews", &DeleteParams::default()).await?;
    apply(&client, "default", &service("comes")).await?;
    // A new process has no history, and etcd is made to forget its own.
    server.kill()?;
    server.compact()?;
    server.resume()?;
    assert!(
        is_forgotten(&services, &seen).await?,
        "the API server still knows {seen}"
    );
    assert!(has("goes")(&mesh), "what is known keeps serving");
    assert_eq!(mesh.deleted, []);

    relay.heal();
    mesh.until("the new service is known", has("comes")).await?;
    let gone = [
        "RouteRule default/reviews",
        "Service default/goes",
        "ServiceAccount default/goes",
    ];
    let deleted = |mesh: &Mesh| -> Vec<String> {
        let mut deleted: Vec<_> = mesh.deleted.iter().map(ToString::to_string).collect();
        deleted.sort();
        deleted
    };
    mesh.until("what has gone is gone", |mesh| deleted(mesh) == gone)
        .await?;
    assert!(has("stays")(&mesh) && !has("goes")(&mesh));
    mesh.until("nothing is broken any more", |mesh| !broken(mesh))
        .await?;
    mesh.end().await
}

/// Whether a watch from this version is answered with 410.
async fn is_forgotten(services: &Api<Service>, version: &str) -> anyhow::Result<bool> {
    let params = WatchParams::default().timeout(5);
    let mut events = match services.watch(&params, version).await {
        Ok(events) => Box::pin(events),
        Err(kube::Error::Api(status)) => return Ok(status.code == 410),
        Err(error) => return Err(error.into()),
    };
    Ok(match events.next().await {
        Some(Ok(WatchEvent::Error(status)) | Err(kube::Error::Api(status))) => status.code == 410,
        _ => false,
    })
}

const RULE: &str = "
apiVersion: config.istio.io/v1alpha2
kind: RouteRule
metadata: {name: reviews}
spec: {destination: {name: reviews}, route: [{labels: {version: v1}}]}
";

#[tokio::test]
async fn kinds_come_and_go_with_their_definitions() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    assert_eq!(mesh.problems, [], "a kind that is not there is no problem");
    for _ in 0..2 {
        apply(&client, "default", DEFINITIONS).await?;
        apply_in_time(&client, "default", RULE).await?;
        mesh.until("the rule is known", |mesh| {
            mesh.snapshot().route_rules.len() == 1
        })
        .await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        definitions
            .delete("routerules.config.istio.io", &DeleteParams::default())
            .await?;
        mesh.until("the rule is gone", |mesh| {
            mesh.snapshot().route_rules.is_empty()
        })
        .await?;
        kube::runtime::wait::await_condition(
            definitions,
            "routerules.config.istio.io",
            |found: Option<&CustomResourceDefinition>| found.is_none(),
        )
        .await?;
    }
    mesh.end().await
}

#[tokio::test]
async fn a_rule_that_is_wrong_is_named_and_its_last_good_version_serves() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "default", DEFINITIONS).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    apply_in_time(&client, "default", RULE).await?;
    mesh.until("the rule is known", |mesh| {
        mesh.snapshot().route_rules.len() == 1
    })
    .await?;
    let good = mesh.snapshot().route_rules;
    apply(
        &client,
        "default",
        &RULE.replace("version: v1}", "version: v1}, weight: heavy"),
    )
    .await?;
    let said = |mesh: &Mesh| -> Vec<String> {
        let said = mesh.problems.iter().map(ToString::to_string);
        said.filter(|problem| problem.starts_with("RouteRule default/reviews"))
            .collect()
    };
    mesh.until("the problem is known", |mesh| !said(mesh).is_empty())
        .await?;
    let problem = said(&mesh).join("\n");
    assert!(problem.contains(": spec.route[0].weight: "), "{problem}");
    assert_eq!(mesh.snapshot().route_rules, good);
    apply(&client, "default", RULE).await?;
    mesh.until("nothing is wrong any more", |mesh| mesh.problems.is_empty())
        .await?;
    mesh.end().await
}
