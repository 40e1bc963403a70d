//! One path, ready to be measured: a client pod, a server pod, and what lies between.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::path::Path as FilePath;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, Node, Pod, PodOptions, Process, until};
use serde_json::json;

use super::Path;
use super::envoy::{self, Upstream};
use super::ports::{self, HTTP, HTTP2, ONCE, PROXY_UID, SINK, SOURCE, TCP};
use super::setting::Setting;
use super::workload::Target;

const START: Duration = Duration::from_secs(20);
/// How long a proxy may take to be asked for its first route, cluster and endpoints.
const WARM: Duration = Duration::from_secs(10);

pub(super) struct Lane {
    pub(super) path: Path,
    host: String,
    address: IpAddr,
    _backend: Process,
    between: Between,
    client: AnyPod,
    server: AnyPod,
}

/// What lies between client and server.
enum Between {
    Nothing,
    Sidecars([Process; 2]),
    Node(Box<MeshNode>),
}

/// A pod that a mesh knows, or one that none does.
enum AnyPod {
    Plain(Pod),
    Mesh(MeshPod),
}

impl Deref for AnyPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        match self {
            Self::Plain(pod) => pod,
            Self::Mesh(pod) => pod,
        }
    }
}

impl Lane {
    pub(super) fn target(&self) -> Target<'_> {
        Target {
            client: &self.client,
            address: self.address,
            host: &self.host,
        }
    }

    /// The pods in which the applications are: the client's and the server's.
    pub(super) fn pods(&self) -> [&Pod; 2] {
        [&self.client, &self.server]
    }

    /// Client, server and what lies between, of this path alone.
    pub(super) fn cgroup(&self) -> &FilePath {
        self.client.node_cgroup_dir()
    }

    /// The node whose proxy is in between, where there is one.
    pub(super) fn node(&self) -> Option<&MeshNode> {
        match &self.between {
            Between::Node(node) => Some(node),
            Between::Nothing | Between::Sidecars(_) => None,
        }
    }

    pub(super) fn scratch(&self) -> &FilePath {
        self.client.log_dir()
    }

    /// The processes whose CPU time and memory are the mesh's; pilot serves all and counts for none.
    pub(super) fn mesh_pids(&self) -> Vec<u32> {
        match &self.between {
            Between::Nothing => Vec::new(),
            Between::Sidecars(proxies) => proxies.iter().map(Process::pid).collect(),
            Between::Node(node) => node.pids(),
        }
    }

    /// One request, so that a lane that does not work is found before it is measured.
    fn check(&self) -> anyhow::Result<()> {
        let to = (self.address, HTTP).into();
        let authority = format!("{}:{HTTP}", self.host);
        let answer = until(WARM, || {
            let answer = self.client.get(to, &authority, "/1k")?;
            ensure!(
                answer.status == 200,
                "status {}: {}",
                answer.status,
                answer.text()
            );
            Ok(answer)
        })?;
        ensure!(
            answer.body.len() == 1024,
            "a body of {} bytes",
            answer.body.len()
        );
        let proxied = answer
            .headers
            .first("x-envoy-upstream-service-time")
            .is_some();
        let expected = !matches!(self.between, Between::Nothing);
        ensure!(
            proxied == expected,
            "the call did not take this path: {:?}",
            answer.headers
        );
        Ok(())
    }
}

/// Sets up every path in a part of the cluster of its own.
pub(super) fn build(
    cluster: &Cluster,
    paths: &[Path],
    setting: &Setting,
) -> anyhow::Result<Vec<Lane>> {
    let needs_mesh = paths.iter().any(|path| path.annotations().is_some());
    let mesh = needs_mesh
        .then(|| Mesh::start_with(cluster, &setting.mesh_config()))
        .transpose()?;
    let builder = Builder {
        cluster,
        setting,
        mesh,
    };
    (1..)
        .zip(paths)
        .map(|(number, path)| {
            let lane = builder.lane(*path, number);
            lane.with_context(|| format!("setting up {}", path.name()))
        })
        .collect()
}

struct Builder<'a> {
    cluster: &'a Cluster,
    setting: &'a Setting,
    mesh: Option<Mesh>,
}

/// A service of a lane: nobody has its address, so a call to it only arrives if it was captured.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) address: IpAddr,
}

impl Builder<'_> {
    fn lane(&self, path: Path, number: u8) -> anyhow::Result<Lane> {
        let service = Service::numbered(&format!("backend-{}", path.name()), number);
        let lane = match path {
            Path::Direct => self.direct(path, service),
            Path::SidecarIptables | Path::EnvoySidecarIptables => self.sidecars(path, service),
            Path::NodeIptables | Path::NodeEbpfPlain | Path::NodeEbpf | Path::NodeEbpfOn => {
                self.node(path, service)
            }
        }?;
        lane.check()?;
        Ok(lane)
    }

    fn direct(&self, path: Path, service: Service) -> anyhow::Result<Lane> {
        let node = self.cluster.node(path.name())?;
        let (client, server) = plain_pods(&node)?;
        Ok(Lane {
            path,
            host: service.host,
            address: server.ip(),
            _backend: backend(&server)?,
            between: Between::Nothing,
            client,
            server,
        })
    }

    fn sidecars(&self, path: Path, service: Service) -> anyhow::Result<Lane> {
        let node = self.cluster.node(path.name())?;
        let (client, server) = plain_pods(&node)?;
        let backend = backend(&server)?;
        let upstream = Upstream {
            host: &service.host,
            address: server.ip(),
        };
        let start = |pod: &Pod, upstream: Option<&Upstream<'_>>| {
            let config = envoy::config_file(pod, upstream, self.setting)?;
            let command = self.sidecar(path, &config)?;
            let process = pod.launch("proxy", command)?.uid(PROXY_UID).spawn()?;
            until(START, || pod.connect((Ipv4Addr::LOCALHOST, 15001).into()))
                .with_context(|| format!("waiting for the proxy:\n{}", process.log()))?;
            self.redirect(pod)?;
            anyhow::Ok(process)
        };
        let between = [start(&client, Some(&upstream))?, start(&server, None)?];
        Ok(Lane {
            path,
            host: service.host,
            address: service.address,
            _backend: backend,
            between: Between::Sidecars(between),
            client,
            server,
        })
    }

    /// The proxy of one pod; both kinds read the same file.
    fn sidecar(&self, path: Path, config: &FilePath) -> anyhow::Result<Command> {
        let workers = self.setting.workers.to_string();
        if path == Path::EnvoySidecarIptables {
            return envoy::command(self.cluster, config, &workers);
        }
        let mut command = Command::new(self.cluster.binary("millrace-proxy")?);
        command
            .arg("-c")
            .arg(config)
            .args(["--workers", &workers, "--log-level", "warn"]);
        Ok(command)
    }

    /// Writes the init container's rules into the pod.
    fn redirect(&self, pod: &Pod) -> anyhow::Result<()> {
        let mut init = Command::new(self.cluster.binary("millrace-agent")?);
        init.arg("init");
        pod.stdout(init).map(drop)
    }

    fn node(&self, path: Path, service: Service) -> anyhow::Result<Lane> {
        let mesh = self.mesh.as_ref().context("no mesh was started")?;
        mesh.pilot()
            .apply(&format!("{}.yaml", service.name), &service.manifest())?;
        let node = mesh.node_with(
            path.name(),
            &["--workers", &self.setting.workers.to_string()],
        )?;
        let (capture, acceleration) = path.annotations().context("no path of a node")?;
        let options = |name: &str| {
            PodOptions::named(&format!("{name}-{}", path.name()))
                .annotation("millrace.io/capture", capture)
                .annotation("millrace.io/acceleration", acceleration)
        };
        let server = options("server").label("app", &service.name);
        let with_port = |pod: PodOptions, (name, port): (&str, u16)| pod.port(name, port);
        let server = node.pod(ports::ALL.into_iter().fold(server, with_port))?;
        let client = node.pod(options("client"))?;
        for pod in [&client, &server] {
            let captured = node.captured(pod)?;
            ensure!(
                captured == capture,
                "{} is captured by {captured}",
                pod.name()
            );
        }
        Ok(Lane {
            path,
            host: service.host,
            address: service.address,
            _backend: backend(&server)?,
            between: Between::Node(Box::new(node)),
            client: AnyPod::Mesh(client),
            server: AnyPod::Mesh(server),
        })
    }
}

impl Service {
    pub(super) fn numbered(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            host: format!("{name}.default.svc.cluster.local"),
            address: Ipv4Addr::new(10, 96, 100, number).into(),
        }
    }

    /// As a Kubernetes object.
    pub(super) fn manifest(&self) -> String {
        let port =
            |name: &str, port: u16| json!({ "name": name, "port": port, "targetPort": port });
        let ports = ports::ALL.map(|(name, number)| port(name, number));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "clusterIP": self.address,
                "selector": { "app": self.name },
                "ports": ports,
            },
        })
        .to_string()
    }
}

fn plain_pods(node: &Node) -> anyhow::Result<(AnyPod, AnyPod)> {
    Ok((
        AnyPod::Plain(node.pod("client")?),
        AnyPod::Plain(node.pod("server")?),
    ))
}

pub(super) fn backend(pod: &Pod) -> anyhow::Result<Process> {
    let mut command = Command::new(super::generator()?);
    let at = |port: u16| format!("[::]:{port}");
    command.args([
        "backend",
        "--http",
        &at(HTTP),
        "--http2",
        &at(HTTP2),
        "--tcp",
        &at(TCP),
        "--once",
        &at(ONCE),
        "--sink",
        &at(SINK),
        "--source",
        &at(SOURCE),
    ]);
    let process = pod.spawn("backend", command)?;
    until(START, || pod.connect(pod.at(TCP)))?;
    Ok(process)
}
