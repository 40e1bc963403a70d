//! What a node's proxy says of acceleration.

use std::time::Duration;

use anyhow::ensure;
use millrace_testkit::mesh::MeshNode;
use millrace_testkit::{skip, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// The admin page of acceleration.
pub fn page(node: &MeshNode) -> anyhow::Result<Value> {
    node.admin("/acceleration")?.json()
}

/// Waits until the agent has told the proxy whether this kernel accelerates; where it does not, the test is skipped.
pub fn is_possible(node: &MeshNode) -> anyhow::Result<bool> {
    let agent = until(SOON, || {
        let agent = page(node)?["agent"].clone();
        ensure!(agent["state"] != "absent", "{agent}");
        anyhow::Ok(agent)
    })?;
    let possible = agent["state"] != "unavailable";
    if !possible {
        skip::skip::<()>(&format!(
            "this kernel does not accelerate: {}",
            agent["reason"]
        ));
    }
    Ok(possible)
}
