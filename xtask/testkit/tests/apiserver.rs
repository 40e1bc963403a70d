//! The API server that tests get is a real one: what only a real one does.
#![cfg(feature = "apiserver")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::GroupVersionKind;
use kube::runtime::wait::{await_condition, conditions};
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::{require, until};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

const CRD: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: splits.test.millrace.io}
spec:
  group: test.millrace.io
  scope: Namespaced
  names: {kind: Split, plural: splits, singular: split}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              weights: {type: array, maxItems: 10, items: {type: integer, minimum: 0}}
            x-kubernetes-validations:
            - {rule: 'self.weights.sum() == 100', message: weights must sum to 100}
";

fn split(name: &str, weights: &[u32]) -> Value {
    json!({
        "apiVersion": "test.millrace.io/v1", "kind": "Split", "metadata": {"name": name}, "spec": {"weights": weights},
    })
}

#[tokio::test]
async fn a_custom_resource_is_held_to_the_rules_of_its_definition() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    apply(&client, &namespace, CRD).await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let established = conditions::is_crd_established();
    await_condition(definitions, "splits.test.millrace.io", established).await?;
    let kind = GroupVersionKind::gvk("test.millrace.io", "v1", "Split");
    let resource = ApiResource::from_gvk(&kind);
    let splits: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource);
    let by = PatchParams::apply("test");
    splits
        .patch("good", &by, &Patch::Apply(split("good", &[99, 1])))
        .await?;
    let refused = splits
        .patch("bad", &by, &Patch::Apply(split("bad", &[99, 2])))
        .await;
    let refused = refused.expect_err("weights of 101 were taken").to_string();
    assert!(refused.contains("weights must sum to 100"), "{refused}");
    Ok(())
}

fn settings(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": value}})
}

#[tokio::test]
async fn two_appliers_of_one_field_are_in_conflict() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &server.namespace(&client).await?);
    let by = |manager: &str| PatchParams::apply(manager);
    maps.patch("settings", &by("one"), &Patch::Apply(settings("a")))
        .await?;
    let refused = maps
        .patch("settings", &by("two"), &Patch::Apply(settings("b")))
        .await;
    let kube::Error::Api(status) = refused.expect_err("the second took the first one's field")
    else {
        panic!("no answer of the API server's");
    };
    assert_eq!(status.code, 409, "{status:?}");
    let forced = maps
        .patch("settings", &by("two").force(), &Patch::Apply(settings("b")))
        .await?;
    assert_eq!(forced.data.unwrap_or_default()["key"], "b");
    Ok(())
}

#[tokio::test]
async fn a_watch_sees_what_happens_in_its_namespace_in_order() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let other = server.namespace(&client).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &server.namespace(&client).await?);
    let elsewhere: Api<ConfigMap> = Api::namespaced(client, &other);
    let mut watched = Box::pin(maps.watch(&WatchParams::default(), "0").await?);
    let by = PatchParams::apply("test");
    elsewhere
        .patch("settings", &by, &Patch::Apply(settings("elsewhere")))
        .await?;
    for value in ["a", "b"] {
        maps.patch("settings", &by, &Patch::Apply(settings(value)))
            .await?;
    }
    maps.delete("settings", &kube::api::DeleteParams::default())
        .await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = watched.next().await.context("the watch has ended")??;
        let value = |map: ConfigMap| map.data.unwrap_or_default().remove("key");
        seen.push(match event {
            WatchEvent::Added(map) => ("added", value(map)),
            WatchEvent::Modified(map) => ("modified", value(map)),
            WatchEvent::Deleted(map) => ("deleted", value(map)),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => anyhow::bail!("{error:?}"),
        });
    }
    let expected = [("added", "a"), ("modified", "b"), ("deleted", "b")];
    assert_eq!(
        seen,
        expected.map(|(what, value)| (what, Some(value.to_owned())))
    );
    Ok(())
}

#[tokio::test]
async fn a_review_knows_a_service_accounts_token_and_no_other() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let account = serde_json::from_value(json!({"metadata": {"name": "node-proxy"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": ["millrace"]}}))?;
    let token = accounts
        .create_token_request("node-proxy", &PostParams::default(), &request)
        .await?;
    let token = token.status.and_then(|status| status.token);
    let token = token.context("no token")?;
    let reviews: Api<TokenReview> = Api::all(client);
    let review = async |token: &str, audience: &str| -> anyhow::Result<_> {
        let spec = json!({"spec": {"token": token, "audiences": [audience]}});
        let review = serde_json::from_value(spec)?;
        let review = reviews.create(&PostParams::default(), &review).await?;
        Ok(review.status.unwrap_or_default())
    };
    let known = review(&token, "millrace").await?;
    let name = known.user.unwrap_or_default().username;
    assert_eq!(
        name,
        Some(format!("system:serviceaccount:{namespace}:node-proxy"))
    );
    assert!(known.authenticated.unwrap_or_default());
    for (token, audience) in [(token.as_str(), "another"), ("made-up", "millrace")] {
        let unknown = review(token, audience).await?;
        assert!(!unknown.authenticated.unwrap_or_default(), "{audience}");
    }
    Ok(())
}

/// Not a test: what [`nothing_outlives_a_killed_test`] kills.
#[test]
#[ignore = "runs until it is killed"]
fn victim() -> anyhow::Result<()> {
    let _server = ApiServer::start()?;
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_outlives_a_killed_test() -> anyhow::Result<()> {
    require!(apiserver);
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "victim"])
        .stdout(Stdio::null())
        .spawn()?;
    let directory = std::env::temp_dir().join(format!("millrace-apiserver-{}x1", victim.id()));
    let limit = Duration::from_mins(1);
    let servers = || -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| names(*id, &directory)).collect()
    };
    // etcd, kube-apiserver and the shell that keeps the directory.
    until(limit, || match servers().len() {
        3 => Ok(()),
        count => Err(format!("{count} processes")),
    })?;
    victim.kill()?;
    victim.wait()?;
    until(limit, || match (servers().len(), directory.exists()) {
        (0, false) => Ok(()),
        left => Err(format!("{left:?} are left")),
    })
}

/// Whether a process was started with this directory in its arguments.
fn names(process: u32, directory: &Path) -> bool {
    let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let directory = directory.to_string_lossy();
    String::from_utf8_lossy(&arguments).contains(&*directory)
}
