//! `/ready`, `/logging` and the switches: failing health checks, draining, ending.

use std::sync::Arc;

use http::Method;
use millrace_runtime::admin::{Reply, Request, Response, Routes};
use serde_json::json;

use super::Context;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    type Act = fn(&Context, &Request) -> Response;
    let pages: [(Method, &str, &str, Act); 8] = [
        (Method::GET, "/ready", "LIVE when ready", ready),
        (Method::GET, "/version", "this build", version),
        (Method::GET, "/logging", "the log filter", logging),
        (
            Method::POST,
            "/logging",
            "set the log filter (?level=debug or ?level=info,millrace_proxy::http=trace)",
            set_logging,
        ),
        (
            Method::POST,
            "/drain_listeners",
            "accept nothing new; what is under way goes on",
            drain_listeners,
        ),
        (
            Method::POST,
            "/healthcheck/fail",
            "not ready until /healthcheck/ok",
            fail,
        ),
        (
            Method::POST,
            "/healthcheck/ok",
            "take /healthcheck/fail back",
            succeed,
        ),
        (Method::POST, "/quitquitquit", "drain and end", quit),
    ];
    pages
        .into_iter()
        .fold(table, |table, (method, path, help, act)| {
            let context = context.clone();
            table.route(method, path, help, move |request| {
                let response = act(&context, &request);
                async move { response }
            })
        })
}

fn ready(context: &Context, _: &Request) -> Response {
    let ready = &context.admin.ready;
    if ready.is_ready() {
        return Reply::text(200, "LIVE\n");
    }
    let pending = ready.pending().join(", ");
    Reply::text(503, format!("INITIALIZING: waiting for {pending}\n"))
}

fn version(context: &Context, _: &Request) -> Response {
    Reply::json(200, &context.admin.build)
}

fn logging(context: &Context, _: &Request) -> Response {
    match &context.admin.level {
        Some(level) => Reply::json(200, &json!({ "level": level.current() })),
        None => Reply::text(503, "logging is not set up\n"),
    }
}

fn set_logging(context: &Context, request: &Request) -> Response {
    let body = String::from_utf8_lossy(&request.body);
    let wanted = request.query("level").unwrap_or(body.trim());
    if wanted.is_empty() {
        return Reply::text(400, "give the filter as ?level= or in the body\n");
    }
    let Some(level) = &context.admin.level else {
        return Reply::text(503, "logging is not set up\n");
    };
    match level.set(wanted) {
        Ok(()) => {
            tracing::info!(filter = wanted, "log filter changed");
            logging(context, request)
        }
        Err(error) => Reply::text(400, format!("{error}\n")),
    }
}

fn drain_listeners(context: &Context, _: &Request) -> Response {
    context.admin.drain_listeners.cancel();
    Reply::text(200, "OK\n")
}

fn fail(context: &Context, _: &Request) -> Response {
    let mut failed = context.failed.lock();
    failed.get_or_insert_with(|| context.admin.ready.block("healthcheck/fail"));
    Reply::text(200, "OK\n")
}

fn succeed(context: &Context, _: &Request) -> Response {
    drop(context.failed.lock().take());
    Reply::text(200, "OK\n")
}

fn quit(context: &Context, _: &Request) -> Response {
    context.admin.quit.cancel();
    Reply::text(200, "OK\n")
}
