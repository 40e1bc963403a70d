//! Definitions that change under stored objects, and several who write the same object.

use anyhow::ensure;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use millrace_controlplane::model::names::ObjectName;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use serde_json::{Value, json};

use crate::admission::until;
use crate::apply_in_time;
use crate::mesh::Mesh;
use crate::rights::{RIGHTS, account, start_with};

const DEFINITION: &str =
    include_str!("../../../deploy/crds/networking.istio.io_virtualservices.yaml");
const NAME: &str = "virtualservices.networking.istio.io";

fn rules(client: &Client, version: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", version, "VirtualService");
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind))
}

fn rule(version: &str, host: &str) -> Value {
    json!({
        "apiVersion": format!("networking.istio.io/{version}"),
        "kind": "VirtualService",
        "metadata": {"name": "reviews"},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": "reviews"}}]}]},
    })
}

/// Which versions are served, and which one is stored.
async fn define(client: &Client, served: &[&str], stored: &str) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut now = definitions.get(NAME).await?;
    for version in &mut now.spec.versions {
        version.served = served.contains(&version.name.as_str());
        version.storage = version.name == stored;
    }
    definitions
        .replace(NAME, &kube::api::PostParams::default(), &now)
        .await?;
    Ok(())
}

fn routes(mesh: &Mesh, host: &str) -> bool {
    let name = ObjectName::new("default", "reviews");
    let mesh = mesh.snapshot();
    let rule = mesh.virtual_services.get(&name);
    let full = format!("{host}.default.svc.cluster.local");
    rule.is_some_and(|rule| rule.hosts.iter().any(|known| known.as_str() == full))
}

#[tokio::test]
async fn objects_outlive_the_version_that_they_were_stored_in() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "", DEFINITION).await?;
    until("the older version is stored", async || {
        define(&client, &["v1beta1"], "v1beta1").await?;
        Ok(Some(()))
    })
    .await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    apply_in_time(&client, "default", &rule("v1beta1", "one").to_string()).await?;
    mesh.until("the older version is read", |mesh| routes(mesh, "one"))
        .await?;

    // The newer one is stored from now on, and both are served.
    define(&client, &["v1", "v1beta1"], "v1").await?;
    apply_in_time(&client, "default", &rule("v1", "two").to_string()).await?;
    mesh.until("what is written in the newer version is read", |mesh| {
        routes(mesh, "two")
    })
    .await?;

    // The older one goes: the watch on it breaks, and goes on in the newer one.
    define(&client, &["v1"], "v1").await?;
    until("the older version is gone", async || {
        let gone = rules(&client, "v1beta1").get("reviews").await;
        Ok(gone.is_err().then_some(()))
    })
    .await?;
    apply_in_time(&client, "default", &rule("v1", "three").to_string()).await?;
    mesh.until("the newer version is watched", |mesh| routes(mesh, "three"))
        .await?;
    assert_eq!(mesh.deleted, [], "nothing was missing on the way");
    mesh.until("nothing is wrong", |mesh| mesh.problems.is_empty())
        .await?;
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_applies_an_object_never_meets_pilot_in_it() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "", DEFINITION).await?;
    apply(&client, "default", RIGHTS).await?;
    let kubeconfig = account(&server, &client).await?;
    let pilot = start_with(&kubeconfig, &["--lease-duration", "3s"]).await?;
    let rules = rules(&client, "v1");
    let written = async |who: &str, object: &Value| {
        let patch = PatchParams::apply(who);
        rules.patch("reviews", &patch, &Patch::Apply(object)).await
    };
    let judged = async |generation: i64| {
        until("the status is of that generation", async || {
            let object = rules.get("reviews").await?;
            let status = object.data["status"].clone();
            ensure!(status["observedGeneration"] == generation, "{status:#}");
            Ok(Some(object))
        })
        .await
    };
    until("it is applied", async || {
        written("team", &rule("v1", "one")).await?;
        Ok(Some(()))
    })
    .await?;
    let first = judged(1).await?;
    let managers: Vec<_> = first.metadata.managed_fields.iter().flatten().collect();
    let of_pilot = managers
        .iter()
        .filter(|it| it.subresource.as_deref() == Some("status"));
    assert_eq!(of_pilot.count(), 1, "{managers:#?}");

    // Applied anew as it stands: no conflict with what pilot wrote, and nothing of that is lost.
    let again = written("team", &rule("v1", "one")).await?;
    assert_eq!(again.data["status"], first.data["status"]);
    // Changed by its owner: pilot's verdict follows.
    written("team", &rule("v1", "two")).await?;
    judged(2).await?;
    // Another owner of the same field is told so, with the field's name.
    let refused = written("others", &rule("v1", "three")).await;
    let Err(kube::Error::Api(refused)) = refused else {
        anyhow::bail!("it was applied over its owner's: {refused:?}");
    };
    assert_eq!(refused.code, 409);
    assert!(
        refused.message.contains(".spec.hosts"),
        "{}",
        refused.message
    );
    let stands = rules.get("reviews").await?;
    assert_eq!(stands.data["spec"]["hosts"][0], "two");
    pilot.stop().await;
    Ok(())
}
