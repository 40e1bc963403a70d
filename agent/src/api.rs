//! The agent's HTTP API on `agent.sock`: status, pods, capture at run time, logs, metrics.
//!
//! Reads come from the [`View`] that the reconciler publishes; changes go to the pod source or,
//! as commands, to the reconciler, and are answered when they are carried out.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use millrace_runtime::admin::{Reply, Request, Response, Routes};
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::{self, Metrics};
use millrace_runtime::telemetry::LevelHandle;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use crate::bpf::{self, LogLevel};
use crate::broker::chain;
use crate::integrity::{self, ForeignStatus, Integrity};
use crate::iptables;
use crate::kernel::Kernel;
use crate::pods::{PodSource, PutError, describe};
use crate::reconcile::Command;
use crate::redirect::Wish;
use crate::status::{NodeStatus, PodStatus, View};

/// What the routes need.
#[derive(Clone)]
pub struct Api {
    /// Pods come and go here.
    pub source: Arc<dyn PodSource>,
    /// What is.
    pub view: watch::Receiver<Arc<View>>,
    /// Requests to the reconciler.
    pub commands: mpsc::Sender<Command>,
    /// Counters and kernel-side log level.
    pub kernel: Kernel,
    /// What the watch over capture knows.
    pub integrity: Integrity,
    /// This process's log level.
    pub level: LevelHandle,
    /// This process's metrics.
    pub metrics: Metrics,
}

impl Api {
    /// The route table.
    pub fn routes(self) -> Routes {
        self.view_routes()
            .merge(self.pod_routes())
            .merge(self.process_routes())
    }

    fn view_routes(&self) -> Routes {
        let (status, list, one) = (self.clone(), self.clone(), self.clone());
        Routes::new()
            .get(
                "/status",
                "the node: capture, broker, proxies, problems",
                move |_| {
                    let api = status.clone();
                    async move { Reply::json(200, &api.node()) }
                },
            )
            .get(
                "/pods",
                "every pod: captured how, why, since when, healthy",
                move |_| {
                    let api = list.clone();
                    async move { Reply::json(200, &api.pods(|_| true)) }
                },
            )
            .get("/pods/{uid}", "one pod", move |request| {
                let api = one.clone();
                async move { api.pod(&request) }
            })
    }

    fn pod_routes(&self) -> Routes {
        let (put, delete, capture, refresh) =
            (self.clone(), self.clone(), self.clone(), self.clone());
        Routes::new()
            .route(
                Method::POST,
                "/pods",
                "adds or replaces a pod (description as body)",
                move |request| {
                    let api = put.clone();
                    async move { api.put(&request.body).await }
                },
            )
            .route(
                Method::DELETE,
                "/pods/{uid}",
                "removes a pod that was added here",
                move |request| {
                    let api = delete.clone();
                    async move { api.delete(&request).await }
                },
            )
            .route(
                Method::PUT,
                "/pods/{uid}/capture",
                "captures a pod by {\"mode\": \"auto|ebpf|iptables|none\"}",
                move |request| {
                    let api = capture.clone();
                    async move { api.capture(&request).await }
                },
            )
            .route(
                Method::POST,
                "/refresh",
                "looks at every pod and rule now",
                move |_| {
                    let api = refresh.clone();
                    async move { api.refresh().await }
                },
            )
    }

    fn process_routes(&self) -> Routes {
        let api = || self.clone();
        let (get_log, put_log, counters, scrape) = (api(), api(), api(), api());
        let (accelerated, probed) = (api(), api());
        Routes::new()
            .get("/probe", "what this kernel and host can do", move |_| {
                let foreign = probed.integrity.node().foreign;
                async move { probe(foreign).await }
            })
            .get("/log", "log levels: this process's and the eBPF programs'", move |_| {
                let api = get_log.clone();
                async move { api.levels() }
            })
            .route(
                Method::PUT,
                "/log",
                "sets {\"level\": \"debug\", \"bpf\": \"off|error|warn|info|debug|trace\"}, either or both",
                move |request| {
                    let api = put_log.clone();
                    async move { api.set_levels(&request) }
                },
            )
            .get("/counters", "outcomes counted in the kernel, traffic per pod", move |_| {
                let api = counters.clone();
                async move { api.counters() }
            })
            .get("/acceleration", "promoted connections, one entry per end", move |_| {
                let api = accelerated.clone();
                async move { api.accelerated().await }
            })
            .get("/metrics", "Prometheus metrics", move |_| {
                let api = scrape.clone();
                async move { Reply::with_type(200, metrics::CONTENT_TYPE, api.metrics.encode()) }
            })
            .get("/version", "this build", |_| async {
                Reply::json(200, &BuildInfo::of("millrace-agent"))
            })
    }

    fn node(&self) -> NodeStatus {
        let view = self.view.borrow().clone();
        view.node.with_live(&self.kernel, &self.integrity)
    }

    fn pods(&self, wanted: impl Fn(&PodStatus) -> bool) -> Vec<PodStatus> {
        let view = self.view.borrow().clone();
        view.pods
            .iter()
            .filter(|pod| wanted(pod))
            .map(|pod| pod.with_live(&self.kernel, &self.integrity))
            .collect()
    }

    fn pod(&self, request: &Request) -> Response {
        match self.pods(|pod| pod.uid.0 == request.param("uid")).first() {
            Some(pod) => Reply::json(200, pod),
            None => unknown(request),
        }
    }

    async fn put(&self, body: &Bytes) -> Response {
        let text = String::from_utf8_lossy(body);
        let pods = match describe::pods(&text) {
            Ok(pods) => pods,
            Err(error) => {
                return Reply::json(
                    400,
                    &json!({"error": error.reason, "line": error.line, "field": error.field}),
                );
            }
        };
        let mut uids = Vec::with_capacity(pods.len());
        for pod in pods {
            uids.push(pod.uid.clone());
            if let Err(error) = self.source.put(pod) {
                return put_error(&error);
            }
        }
        self.refresh().await;
        Reply::json(200, &self.pods(|pod| uids.contains(&pod.uid)))
    }

    async fn delete(&self, request: &Request) -> Response {
        match self.source.delete(&request.param("uid").into()) {
            Ok(true) => {
                self.refresh().await;
                Reply::json(200, &json!({"deleted": request.param("uid")}))
            }
            Ok(false) => unknown(request),
            Err(error) => put_error(&error),
        }
    }

    async fn capture(&self, request: &Request) -> Response {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            mode: String,
        }
        let wish = match serde_json::from_slice::<Body>(&request.body) {
            Ok(body) => body.mode.parse::<Wish>(),
            Err(error) => Err(error.to_string()),
        };
        let wish = match wish {
            // "auto" takes the request back: annotation and node setting count again.
            Ok(Wish::Auto) => None,
            Ok(wish) => Some(wish),
            Err(error) => return Reply::json(400, &json!({"error": error, "field": "mode"})),
        };
        let uid = request.param("uid").into();
        let (done, carried_out) = oneshot::channel();
        let sent = self.commands.send(Command::Request { uid, wish, done });
        if sent.await.is_err() {
            return Reply::json(503, &json!({"error": "the agent is stopping"}));
        }
        match carried_out.await {
            Ok(true) => self.pod(request),
            Ok(false) => unknown(request),
            Err(_) => Reply::json(503, &json!({"error": "the agent is stopping"})),
        }
    }

    async fn refresh(&self) -> Response {
        let (done, carried_out) = oneshot::channel();
        let sent = self.commands.send(Command::Refresh { done }).await;
        if sent.is_err() || carried_out.await.is_err() {
            return Reply::json(503, &json!({"error": "the agent is stopping"}));
        }
        Reply::json(200, &self.node())
    }

    fn levels(&self) -> Response {
        let bpf = self.kernel.log_level().map(level_name);
        Reply::json(
            200,
            &json!({
                "level": self.level.current(),
                "bpf": bpf.as_ref().ok(),
                "bpf_unavailable": bpf.as_ref().err(),
            }),
        )
    }

    fn set_levels(&self, request: &Request) -> Response {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            level: Option<String>,
            bpf: Option<String>,
        }
        let body: Body = match serde_json::from_slice(&request.body) {
            Ok(body) => body,
            Err(error) => return Reply::json(400, &json!({"error": error.to_string()})),
        };
        let bpf = match body.bpf.as_deref().map(level_of).transpose() {
            Ok(bpf) => bpf,
            Err(error) => return Reply::json(400, &json!({"error": error, "field": "bpf"})),
        };
        if let Some(filter) = &body.level
            && let Err(error) = self.level.set(&bpf::with_programs(filter))
        {
            return Reply::json(400, &json!({"error": chain(&error), "field": "level"}));
        }
        if let Some(level) = bpf
            && let Err(error) = self.kernel.set_log_level(level)
        {
            return Reply::json(409, &json!({"error": error, "field": "bpf"}));
        }
        self.levels()
    }

    async fn accelerated(&self) -> Response {
        if let Err(reason) = self.kernel.acceleration() {
            return Reply::json(409, &json!({"error": reason}));
        }
        let kernel = self.kernel.clone();
        let looked = tokio::task::spawn_blocking(move || kernel.accelerated()).await;
        let ends = match looked.map_err(|error| error.to_string()).flatten() {
            Ok(ends) => ends,
            Err(error) => return Reply::json(409, &json!({"error": error})),
        };
        let ends: Vec<_> = ends
            .iter()
            .map(|end| {
                json!({
                    "pod": self.pod_name(end.netns_cookie),
                    "local": end.local.to_string(),
                    "remote": end.remote.to_string(),
                    "end": if end.is_proxy { "proxy" } else { "application" },
                    "returned_to_tcp": end.returned,
                    "spliced": end.spliced,
                    "redirected_messages": end.sent.redirected_messages,
                    "redirected_bytes": end.sent.redirected_bytes,
                    "tcp_messages": end.sent.tcp_messages,
                    "tcp_bytes": end.sent.tcp_bytes,
                    "unread_redirected": end.unread_redirected,
                    "unread_tcp": end.unread_tcp,
                    "idle_ms": u64::try_from(end.idle.as_millis()).unwrap_or(u64::MAX),
                })
            })
            .collect();
        Reply::json(200, &json!({"ends": ends}))
    }

    fn pod_name(&self, netns_cookie: u64) -> Option<String> {
        let view = self.view.borrow();
        let pod = view
            .pods
            .iter()
            .find(|pod| pod.netns_cookie == Some(netns_cookie))?;
        Some(format!("{}/{}", pod.namespace, pod.name))
    }

    fn counters(&self) -> Response {
        let counters = match self.kernel.counters() {
            Ok(counters) => counters,
            Err(error) => return Reply::json(409, &json!({"error": error})),
        };
        let counters: Vec<_> = counters
            .iter()
            .map(|c| json!({"hook": c.counter.hook(), "outcome": c.counter.outcome(), "value": c.value}))
            .collect();
        let traffic: Vec<_> = self
            .kernel
            .traffic()
            .unwrap_or_default()
            .iter()
            .map(|t| {
                json!({
                    "pod": self.pod_name(t.netns_cookie),
                    "netns_cookie": t.netns_cookie,
                    "direction": crate::metrics::direction(t.direction),
                    "opened": t.sums.opened,
                    "closed": t.sums.closed,
                    "sent_bytes": t.sums.sent_bytes,
                    "received_bytes": t.sums.received_bytes,
                    "rtt_us_sum": t.sums.rtt_us_sum,
                    "retransmits": t.sums.retransmits,
                })
            })
            .collect();
        Reply::json(200, &json!({"counters": counters, "traffic": traffic}))
    }
}

/// What this kernel and host can do, as `/probe` and `millrace-agent probe` tell it.
///
/// `foreign` is what others have attached where an agent runs; where none does, it is looked for.
pub fn abilities(foreign: Option<Vec<ForeignStatus>>) -> serde_json::Value {
    let ebpf = bpf::probe();
    let foreign = foreign.unwrap_or_else(|| {
        let cgroup = ebpf.cgroup2.as_deref();
        cgroup.map(integrity::foreign_here).unwrap_or_default()
    });
    let foreign: Vec<_> = foreign
        .iter()
        .map(|program| json!({"program": program, "text": program.describe()}))
        .collect();
    let usable = ebpf.ebpf();
    let faster = ebpf.acceleration();
    let tools = iptables::available();
    let summary = match (&usable, &tools) {
        (Ok(()), _) => "pods are captured by eBPF".to_owned(),
        (Err(reason), Ok(_)) => {
            format!("pods are captured by iptables, as there is no eBPF: {reason}")
        }
        (Err(reason), Err(error)) => {
            format!(
                "nothing can be captured: no eBPF ({reason}), no iptables ({})",
                chain(error)
            )
        }
    };
    json!({
        "summary": summary,
        "ebpf": {"available": usable.is_ok(), "reason": usable.err()},
        "acceleration": {"available": faster.is_ok(), "reason": faster.err()},
        "iptables": {
            "available": tools.is_ok(),
            "tools": tools.as_ref().ok(),
            "reason": tools.as_ref().err().map(|error| chain(error)),
        },
        "foreign": foreign,
        "kernel": ebpf,
    })
}

async fn probe(foreign: Vec<ForeignStatus>) -> Response {
    match tokio::task::spawn_blocking(|| abilities(Some(foreign))).await {
        Ok(abilities) => Reply::json(200, &abilities),
        Err(error) => Reply::json(500, &json!({"error": error.to_string()})),
    }
}

fn unknown(request: &Request) -> Response {
    Reply::json(
        404,
        &json!({"error": format!("no pod has the uid {:?}", request.param("uid"))}),
    )
}

fn put_error(error: &PutError) -> Response {
    let status = match error {
        PutError::Invalid(_) => 400,
        PutError::Owned { .. } => 409,
        PutError::Write { .. } => 500,
    };
    Reply::json(status, &json!({"error": chain(error)}))
}

const LEVELS: [(LogLevel, &str); 6] = [
    (LogLevel::Off, "off"),
    (LogLevel::Error, "error"),
    (LogLevel::Warn, "warn"),
    (LogLevel::Info, "info"),
    (LogLevel::Debug, "debug"),
    (LogLevel::Trace, "trace"),
];

fn level_name(level: LogLevel) -> &'static str {
    LEVELS
        .iter()
        .find(|(known, _)| *known == level)
        .map_or("off", |(_, name)| name)
}

fn level_of(name: &str) -> Result<LogLevel, String> {
    LEVELS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(level, _)| *level)
        .ok_or_else(|| format!("{name:?} is not off, error, warn, info, debug or trace"))
}
