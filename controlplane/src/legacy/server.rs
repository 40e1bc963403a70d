//! The era's discovery port: answers polls over HTTP from the newest snapshot.
//!
//! Every proxy asks once a second for everything, so documents are kept as long as no change comes. Paths that mean
//! nothing are answered 404 with the segment that is wrong; before the first snapshot all are answered 503, upon
//! which Envoy keeps what it has.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use millrace_runtime::admin::{Reply, Request, Response, Routes, Server};
use millrace_xds::server::Generation;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::names::ServiceKey;
use super::{Client, Renderer, clusters, endpoints, listeners};
use crate::metrics::PilotMetrics;
use crate::model::names::ObjectName;
use crate::serve::{MeshSource, Published};
use crate::snapshot::MeshSnapshot;

/// Documents kept of one generation; paths are chosen by clients.
const MAX_KEPT: usize = 16 * 1024;
/// What has been logged as left out; beyond it nothing more is.
const MAX_LOGGED: usize = 1024;
/// Connections at a time: one for each proxy, which keeps it between polls.
const MAX_CONNECTIONS: usize = 4096;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    Listeners(String),
    Clusters(String),
    Routes(u16, String),
    Endpoints(ServiceKey),
}

/// The port's state.
#[derive(Debug)]
pub(crate) struct Discovery {
    source: Arc<MeshSource>,
    metrics: PilotMetrics,
    kept: Mutex<(Generation, HashMap<Question, Bytes>)>,
    logged: Mutex<BTreeSet<String>>,
}

/// A segment of a path that means nothing, and why.
struct Unknown(String);

impl Unknown {
    fn segment(name: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{name}: {error}\n"))
    }
}

impl Discovery {
    /// Answers from a source.
    pub(crate) fn new(source: Arc<MeshSource>, metrics: PilotMetrics) -> Self {
        Self {
            source,
            metrics,
            kept: Mutex::default(),
            logged: Mutex::default(),
        }
    }

    /// Serves it where an address is given, and says at which one.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(crate) async fn start(
        self,
        address: Option<SocketAddr>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<SocketAddr>> {
        let Some(address) = address else {
            return Ok(None);
        };
        let server = Server::bind_tcp(address)
            .await
            .with_context(|| format!("binding seed-era discovery to {address}"))?
            .max_connections(MAX_CONNECTIONS);
        let bound = server.local_addr();
        tasks.spawn(server.serve(self.routes(), stop.clone()));
        Ok(bound)
    }

    /// The paths.
    fn routes(self) -> Routes {
        let this = Arc::new(self);
        let page = |kind: &'static str, answer: Page| {
            let this = Arc::clone(&this);
            move |request: Request| {
                let response = this.answer(kind, &request, answer);
                async move { response }
            }
        };
        Routes::new()
            .get(
                "/v1/listeners/{service-cluster}/{service-node}",
                "LDS: the listeners of a sidecar",
                page("LDS", Self::listeners),
            )
            .get(
                "/v1/clusters/{service-cluster}/{service-node}",
                "CDS: the clusters that its routes and listeners name",
                page("CDS", Self::clusters),
            )
            .get(
                "/v1/routes/{route-config-name}/{service-cluster}/{service-node}",
                "RDS: the virtual hosts of a port",
                page("RDS", Self::virtual_hosts),
            )
            .get(
                "/v1/registration/{service-key}",
                "SDS: the endpoints of <host>|<port name>|<labels>",
                page("SDS", Self::endpoints),
            )
            .get(
                "/v1/registration",
                "all services with their endpoints",
                page("SDS", |_, published, _| {
                    Ok(Body::of(&endpoints::registrations(&published.snapshot)))
                }),
            )
            .get(
                "/v1/az/{service-cluster}/{service-node}",
                "the zone that a sidecar's pod is in",
                page("AZ", |_, published, request| {
                    zone(&published.snapshot, &client(request)?)
                }),
            )
    }

    fn answer(&self, kind: &'static str, request: &Request, page: Page) -> Response {
        let published = self.source.published();
        if published.generation == Generation::default() {
            return Reply::text(503, "the registry has not been read yet\n");
        }
        match page(self, &published, request) {
            Ok(Body(content_type, body)) => {
                self.metrics.polled(kind);
                Reply::with_type(200, content_type, body)
            }
            Err(Unknown(message)) => {
                tracing::debug!(kind, message = message.trim_end(), "unknown path");
                Reply::text(404, message)
            }
        }
    }

    fn listeners(&self, published: &Published, request: &Request) -> Result<Body, Unknown> {
        let (client, node) = (client(request)?, node(request));
        Ok(self.kept(published, Question::Listeners(node), || {
            let (document, left_out) = listeners::document(&published.snapshot, &client);
            (encode(&document), left_out)
        }))
    }

    fn clusters(&self, published: &Published, request: &Request) -> Result<Body, Unknown> {
        let (client, node) = (client(request)?, node(request));
        Ok(self.kept(published, Question::Clusters(node), || {
            let (document, left_out) = clusters::document(&published.snapshot, &client);
            (encode(&document), left_out)
        }))
    }

    fn virtual_hosts(&self, published: &Published, request: &Request) -> Result<Body, Unknown> {
        let (client, node) = (client(request)?, node(request));
        let name = request.param("route-config-name");
        let port: u16 = name.parse().map_err(|error| {
            let error = format!("{name:?} is not a port ({error})");
            Unknown::segment("route-config-name", &error)
        })?;
        Ok(self.kept(published, Question::Routes(port, node), || {
            let mut renderer = Renderer::new(&published.snapshot, &client);
            let body = encode(&renderer.routes(port));
            (body, renderer.left_out().iter().cloned().collect())
        }))
    }

    fn endpoints(&self, published: &Published, request: &Request) -> Result<Body, Unknown> {
        let key = request.param("service-key").parse();
        let key: ServiceKey = key.map_err(|error| Unknown::segment("service-key", &error))?;
        Ok(self.kept(published, Question::Endpoints(key.clone()), || {
            let hosts = endpoints::hosts(&published.snapshot, &key);
            (encode(&hosts), Vec::new())
        }))
    }

    /// The document of this generation, made if nobody has asked before.
    fn kept(
        &self,
        published: &Published,
        question: Question,
        make: impl FnOnce() -> (Bytes, Vec<String>),
    ) -> Body {
        {
            let mut kept = self.kept.lock();
            if kept.0 < published.generation {
                *kept = (published.generation, HashMap::new());
            }
            if kept.0 == published.generation
                && let Some(body) = kept.1.get(&question)
            {
                return Body(JSON, body.clone());
            }
        }
        let (body, left_out) = make();
        self.log(left_out);
        let mut kept = self.kept.lock();
        if kept.0 == published.generation && kept.1.len() < MAX_KEPT {
            kept.1.insert(question, body.clone());
        }
        Body(JSON, body)
    }

    /// Says once what a rule asks for in vain.
    fn log(&self, left_out: Vec<String>) {
        let mut logged = self.logged.lock();
        for what in left_out {
            if logged.len() < MAX_LOGGED && logged.insert(what.clone()) {
                tracing::warn!(%what, "the v1 API cannot say what a rule asks for");
            }
        }
    }
}

type Page = fn(&Discovery, &Published, &Request) -> Result<Body, Unknown>;

const JSON: &str = "application/json";

struct Body(&'static str, Bytes);

impl Body {
    fn of(document: &impl Serialize) -> Self {
        Self(JSON, encode(document))
    }
}

#[expect(
    clippy::expect_used,
    reason = "every key of these documents is text, and memory is all it writes to"
)]
fn encode(document: &impl Serialize) -> Bytes {
    let body = serde_json::to_vec_pretty(document);
    body.expect("documents have text for keys").into()
}

fn node(request: &Request) -> String {
    request.param("service-node").to_owned()
}

fn client(request: &Request) -> Result<Client, Unknown> {
    let client = request.param("service-node").parse();
    client.map_err(|error: crate::translate::InvalidView| Unknown::segment("service-node", &error))
}

fn zone(snapshot: &MeshSnapshot, client: &Client) -> Result<Body, Unknown> {
    let workload = Renderer::new(snapshot, client).workload();
    let unknown = |what: &str| Unknown::segment("service-node", &format!("{} {what}", client.pod));
    let workload = workload.ok_or_else(|| unknown("is no pod of the mesh"))?;
    let node = workload.node.as_deref().unwrap_or_default();
    let node = snapshot.nodes.get(&ObjectName::new("", node));
    let zone = node.map_or("", |node| &node.locality.zone);
    if zone.is_empty() {
        return Err(unknown("is in no known zone"));
    }
    Ok(Body("text/plain", zone.to_owned().into()))
}
