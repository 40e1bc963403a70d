//! The Kubernetes registry against a real API server.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test binary has no callers"
)]

use millrace_testkit::apiserver::apply;

#[path = "kubernetes/door.rs"]
mod door;
#[path = "kubernetes/mesh.rs"]
mod mesh;
#[path = "kubernetes/relay.rs"]
mod relay;

#[path = "kubernetes/admission.rs"]
mod admission;
#[path = "kubernetes/aggregate.rs"]
mod aggregate;
#[path = "kubernetes/attached.rs"]
mod attached;
#[path = "kubernetes/configuration.rs"]
mod configuration;
#[path = "kubernetes/equality.rs"]
mod equality;
#[path = "kubernetes/features.rs"]
mod features;
#[path = "kubernetes/nodes.rs"]
mod nodes;
#[path = "kubernetes/rights.rs"]
mod rights;
#[path = "kubernetes/status.rs"]
mod status;
#[path = "kubernetes/survival.rs"]
mod survival;
#[path = "kubernetes/upgrade.rs"]
mod upgrade;

const DEFINITIONS: &str = include_str!("../testdata/kubernetes/definitions.yaml");

/// Applies objects of kinds that the API server may not serve yet.
async fn apply_in_time(client: &kube::Client, namespace: &str, yaml: &str) -> anyhow::Result<()> {
    let mut last = None;
    let tries = async {
        while let Err(error) = apply(client, namespace, yaml).await {
            last = Some(error);
            tokio::task::yield_now().await;
        }
    };
    match (tokio::time::timeout(mesh::PATIENCE, tries).await, last) {
        (Err(_), Some(error)) => Err(error),
        _ => Ok(()),
    }
}
