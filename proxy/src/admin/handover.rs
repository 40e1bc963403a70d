//! `/handover`: this epoch, what it took from the one before and gave to the one after.

use std::sync::Arc;

use millrace_runtime::admin::{Reply, Routes};

use super::Context;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let context = context.clone();
    let help = "this epoch, connections taken from the one before and given to the next (JSON)";
    table.get("/handover", help, move |_| {
        let response = Reply::json(200, &context.admin.handover.json());
        async move { response }
    })
}
