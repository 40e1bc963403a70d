//! Objects in the API server: namespaces of a test's own, YAML applied as `kubectl apply --server-side` does.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, discovery};
use serde_json::{Value, json};

use super::ApiServer;
use crate::kubernetes::documents;

/// Who the tests' writes are by.
const FIELD_MANAGER: &str = "millrace-test";

impl ApiServer {
    /// Makes a namespace that no other test has, and returns its name.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub async fn namespace(&self, client: &Client) -> anyhow::Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = serde_json::from_value::<Namespace>(json!({"metadata": {"name": name}}))
            .context("making a namespace")?;
        Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("creating the namespace {name}"))?;
        Ok(name)
    }
}

/// Applies YAML text by server-side apply, into `namespace` where an object of a namespaced kind names none. A `status`
/// is written too, as a controller would.
///
/// # Errors
///
/// If it is not YAML, or the server refuses an object: the error names it.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> anyhow::Result<()> {
    for object in documents(yaml)? {
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        let shown = format!("{kind} {name}");
        apply_one(client, namespace, object)
            .await
            .with_context(|| format!("applying {shown}"))?;
    }
    Ok(())
}

async fn apply_one(client: &Client, namespace: &str, mut object: Value) -> anyhow::Result<()> {
    let status = object.get("status").cloned();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    let name = object["metadata"]["name"].as_str().context("no name")?;
    let name = name.to_owned();
    let api = api_of(client, namespace, &object).await?;
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&object)).await?;
    if let Some(status) = status {
        let patch = json!({"status": status});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .context("its status")?;
    }
    Ok(())
}

/// The API of an object's kind, in the namespace that it names or is given.
async fn api_of(
    client: &Client,
    namespace: &str,
    object: &Value,
) -> anyhow::Result<Api<DynamicObject>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let version = version.context("no apiVersion")?;
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, &kind.context("no kind")?);
    let (resource, capabilities): (ApiResource, _) = discovery::pinned_kind(client, &kind).await?;
    let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| namespace.to_owned());
    Ok(match capabilities.scope {
        discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
        discovery::Scope::Namespaced => Api::namespaced_with(client.clone(), &namespace, &resource),
    })
}
