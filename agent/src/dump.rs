//! `millrace-agent dump`: everything that a running agent tells, as one JSON object.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Method;
use millrace_runtime::admin::client::{Target, call};
use serde_json::{Map, Value};

const LIMIT: Duration = Duration::from_secs(10);

/// Asks the agent at `socket` for each of its reports.
///
/// # Errors
/// When no agent answers there.
pub async fn collect(socket: &Path) -> anyhow::Result<Value> {
    let target = Target::Unix(socket.to_owned());
    let mut all = Map::new();
    for report in ["status", "pods", "probe", "log", "counters", "version"] {
        let path = format!("/{report}");
        let answer = call(&target, Method::GET, &path, Bytes::new(), LIMIT)
            .await
            .with_context(|| format!("asking the agent for {path}"))?;
        let value =
            serde_json::from_slice(&answer.body).unwrap_or_else(|_| Value::String(answer.text()));
        all.insert(report.to_owned(), value);
    }
    Ok(Value::Object(all))
}
