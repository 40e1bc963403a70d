//! The scene of most faults: a service with a pod on each of two nodes, and a client on the first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, PodOptions, until};

use crate::load::{Connections, Load};
use crate::service::{Backend, Service};

const SOON: Duration = Duration::from_secs(15);

/// Clients of every kind, twice.
pub const CLIENTS: [Connections; 4] = [
    Connections::Kept,
    Connections::New,
    Connections::Kept,
    Connections::New,
];

/// The versions of the service's pods: `v1` beside the client, `v2` on the other node.
pub const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: default}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

/// A mesh of two nodes with the service `echo`: HTTP at [`Scene::HTTP`], bytes at [`Scene::TCP`].
#[derive(Debug)]
pub struct Scene {
    /// The client's pod, on `near`.
    pub client: Arc<MeshPod>,
    /// The service.
    pub service: Service,
    /// Its pods: the first on `near`, the second on `far`.
    pub backends: Vec<Backend>,
    /// The client's node.
    pub near: MeshNode,
    /// The other node.
    pub far: MeshNode,
    /// The mesh.
    pub mesh: Mesh,
}

impl Scene {
    /// The service's HTTP port.
    pub const HTTP: u16 = 8080;
    /// The service's port of an echo of bytes.
    pub const TCP: u16 = 9000;
    /// The `host` of its HTTP port.
    pub const HOST: &str = "echo:8080";

    /// Starts everything and waits until both pods answer the client.
    pub fn start(capture: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let (near, far) = (mesh.node("near")?, mesh.node("far")?);
        let service = Service::new("echo", 1)
            .port("http", Self::HTTP)
            .port("tcp-echo", Self::TCP);
        service.apply(&mesh)?;
        let backends = vec![
            service.backend(&near, "v1", capture)?,
            service.backend(&far, "v2", capture)?,
        ];
        let client = PodOptions::named("client").annotation(crate::CAPTURE, capture);
        let client = Arc::new(near.pod(client)?);
        let scene = Self {
            client,
            service,
            backends,
            near,
            far,
            mesh,
        };
        scene.answered_by("echo-v1")?;
        scene.answered_by("echo-v2")?;
        Ok(scene)
    }

    /// The service's HTTP port.
    pub fn http(&self) -> SocketAddr {
        self.service.at(Self::HTTP)
    }

    /// A new connection to the service's HTTP port.
    pub fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.client, self.http())
    }

    /// One request on a connection of its own.
    pub fn ask(&self) -> anyhow::Result<Response> {
        self.connect()?.send(&Request::get(Self::HOST, "/ask"))
    }

    /// Waits until a request is answered by this pod.
    pub fn answered_by(&self, server: &str) -> anyhow::Result<()> {
        until(SOON, || {
            let answer = self.ask()?;
            let from = answer.headers.first("x-server").unwrap_or("-");
            ensure!(from == server, "{} from {from}", answer.status);
            Ok(())
        })
        .with_context(|| {
            let clusters = self.near.admin("/clusters").map(|page| page.text());
            format!("{server} never answered: {clusters:?}\n{}", self.near.log())
        })
    }

    /// Puts rules for the service into pilot's directory.
    pub fn rule(&self, yaml: &str) -> anyhow::Result<()> {
        self.mesh.pilot().apply("rule.yaml", yaml)
    }

    /// All requests to this version of the service; returns once the client's proxy serves this rule
    /// alone and has written it down. An answer of that version would not show it: without a rule every
    /// version answers.
    pub fn only(&self, version: &str) -> anyhow::Result<()> {
        self.rule(&format!(
            "{SUBSETS}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: default}}
spec:
  hosts: [echo]
  http: [{{route: [{{destination: {{host: echo, subset: {version}}}}}]}}]
"
        ))?;
        let subset = |version: &str| format!("outbound|{}|{version}|echo.", Self::HTTP);
        until(SOON, || {
            let dump = self
                .near
                .admin("/config_dump?resource=dynamic_route_configs")?;
            let routes = dump.json()?;
            let text = routes["configs"].to_string();
            let others = ["v1", "v2"].iter().filter(|other| **other != version);
            ensure!(
                text.contains(&subset(version))
                    && !others.into_iter().any(|o| text.contains(&subset(o))),
                "the rule has not arrived: {text}"
            );
            ensure!(
                routes["freshness"]["saved"] == true,
                "{}",
                routes["freshness"]
            );
            Ok(())
        })
    }

    /// Starts clients of every kind.
    pub fn load(&self) -> anyhow::Result<Load> {
        Load::start(&self.client, self.http(), Self::HOST, &CLIENTS)
    }

    /// Waits until a line of the near node's access log satisfies `wanted`, and returns it.
    pub fn logged(
        &self,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<serde_json::Value> {
        logged(&self.near, wanted)
    }
}

/// Waits until a line of a node's access log satisfies `wanted`, and returns it.
pub fn logged(
    node: &MeshNode,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> anyhow::Result<serde_json::Value> {
    until(SOON, || {
        let log = node.log();
        let lines = log.lines().rev();
        let mut entries = lines.filter_map(|line| serde_json::from_str(line).ok());
        entries
            .find(&wanted)
            .ok_or_else(|| anyhow::anyhow!("no such line in the access log"))
    })
}
