//! `/acceleration`: whether connections can be accelerated here, and each that has asked.

use std::sync::Arc;

use millrace_runtime::admin::{Reply, Routes};
use serde_json::json;

use super::Context;
use crate::acceleration::Agent;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let context = context.clone();
    let help = "connections of applications that are accelerated (JSON)";
    table.get("/acceleration", help, move |_| {
        let accelerator = &context.admin.accelerator;
        let (state, reason) = match accelerator.agent() {
            Agent::Absent => ("absent", None),
            Agent::Unavailable(reason) => ("unavailable", Some(reason)),
            Agent::Ready => ("ready", None),
        };
        let entries = accelerator.entries();
        let connections: Vec<_> = entries.iter().map(|entry| entry.json()).collect();
        let response = Reply::json(
            200,
            &json!({
                "agent": { "state": state, "reason": reason },
                "connections": connections,
            }),
        );
        async move { response }
    })
}
