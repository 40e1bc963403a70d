//! The manifests in `deploy/crds` are good for a real API server, which then takes what the goldens are made from.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::{documents, require};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(1);

/// The objects of the goldens whose kinds have a manifest here.
fn objects() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/translate");
    let mut all = Vec::new();
    for case in fs::read_dir(root).unwrap() {
        let text = fs::read_to_string(case.unwrap().path().join("in.yaml")).unwrap();
        all.extend(documents(&text).unwrap());
    }
    let custom = |object: &Value| {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        version.contains("istio.io/") || version.contains("gateway.networking")
    };
    all.retain(custom);
    all
}

#[tokio::test]
async fn an_api_server_takes_the_manifests_and_the_objects_of_the_goldens() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for entry in fs::read_dir(crds)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let text = fs::read_to_string(&path)?;
            let what = || format!("{}", path.display());
            apply(&client, "", &text).await.with_context(what)?;
        }
    }
    let objects = objects();
    assert!(objects.len() > 30, "{}", objects.len());
    let names: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| object["metadata"]["namespace"].as_str())
        .collect();
    for name in names {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        apply(&client, "", &namespace.to_string()).await?;
    }
    for object in objects {
        let text = object.to_string();
        let taken = async {
            // A kind is served a moment after its definition is taken.
            loop {
                match apply(&client, "default", &text).await {
                    Ok(()) => return,
                    Err(error) => eprintln!("{error:#}"),
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, taken)
            .await
            .with_context(|| format!("{text} is not taken"))?;
    }
    Ok(())
}
