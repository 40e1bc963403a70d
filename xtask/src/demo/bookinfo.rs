//! Bookinfo's processes in pods of the mesh's two nodes, and once more outside the mesh.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Pod, PodOptions, Process, until};
use serde::Serialize;

use crate::client::Called;
use crate::workspace;

pub(super) const PORT: u16 = 9080;
const START: Duration = Duration::from_secs(20);

/// A pod of the application.
struct Workload {
    pod: &'static str,
    app: &'static str,
    version: &'static str,
    node: usize,
    command: &'static [&'static str],
}

/// The six of the sample, spread so that calls cross nodes and stay on them.
const WORKLOADS: [Workload; 6] = [
    Workload {
        pod: "productpage-v1",
        app: "productpage",
        version: "v1",
        node: 0,
        command: &["productpage"],
    },
    Workload {
        pod: "details-v1",
        app: "details",
        version: "v1",
        node: 1,
        command: &["details"],
    },
    Workload {
        pod: "ratings-v1",
        app: "ratings",
        version: "v1",
        node: 1,
        command: &["ratings"],
    },
    Workload {
        pod: "reviews-v1",
        app: "reviews",
        version: "v1",
        node: 0,
        command: &["reviews", "--version", "v1"],
    },
    Workload {
        pod: "reviews-v2",
        app: "reviews",
        version: "v2",
        node: 1,
        command: &["reviews", "--version", "v2"],
    },
    Workload {
        pod: "reviews-v3",
        app: "reviews",
        version: "v3",
        node: 1,
        command: &["reviews", "--version", "v3"],
    },
];

/// More replicas of reviews v1.
const REPLICAS: [Workload; 2] = [
    Workload {
        pod: "reviews-v1-2",
        app: "reviews",
        version: "v1",
        node: 1,
        command: &["reviews", "--version", "v1"],
    },
    Workload {
        pod: "reviews-v1-3",
        app: "reviews",
        version: "v1",
        node: 0,
        command: &["reviews", "--version", "v1"],
    },
];

/// An application pod with its process.
pub(super) struct App {
    pub(super) pod: MeshPod,
    pub(super) node: usize,
    process: Process,
}

/// A command that shows something of what runs.
#[derive(Debug, Serialize)]
pub(super) struct WayIn {
    pub(super) shows: String,
    pub(super) command: String,
}

/// The application, its clients, and its twin outside the mesh.
pub(super) struct Bookinfo {
    pub(super) apps: Vec<App>,
    /// A plain client on each node.
    pub(super) clients: Vec<MeshPod>,
    pub(super) outside: Outside,
    pub(super) nodes: Vec<MeshNode>,
    program: PathBuf,
}

/// The same processes in pods that no mesh captures, calling each other by address.
pub(super) struct Outside {
    pub(super) client: Pod,
    pub(super) page: SocketAddr,
    _servers: Vec<(Pod, Process)>,
}

impl Bookinfo {
    pub(super) fn deploy(mesh: &Mesh) -> anyhow::Result<Self> {
        let objects = examples().join("bookinfo.yaml");
        let text = fs::read_to_string(&objects)
            .with_context(|| format!("reading {}", objects.display()))?;
        mesh.pilot().apply("bookinfo.yaml", &text)?;
        let nodes = vec![mesh.node("node-a")?, mesh.node("node-b")?];
        let bookinfo = mesh.cluster().binary("millrace-bookinfo")?;
        let outside = Outside::deploy(&nodes, &bookinfo)?;
        let clients = nodes
            .iter()
            .map(|node| node.pod(PodOptions::named(&format!("client-{}", node.name()))))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut this = Self {
            apps: Vec::new(),
            clients,
            outside,
            nodes,
            program: bookinfo,
        };
        for workload in &WORKLOADS {
            this.start(workload)?;
        }
        Ok(this)
    }

    /// Brings reviews v1 to three replicas.
    pub(super) fn scale(&mut self) -> anyhow::Result<()> {
        REPLICAS
            .iter()
            .try_for_each(|workload| self.start(workload))
    }

    fn start(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let options = PodOptions::named(workload.pod)
            .label("app", workload.app)
            .label("version", workload.version)
            .service_account(&format!("bookinfo-{}", workload.app))
            .port("http", PORT);
        let pod = self.nodes[workload.node].pod(options)?;
        let mut command = Command::new(&self.program);
        command.args(workload.command);
        let process = pod.launch("app", command)?.uid(1000).spawn()?;
        until(START, || pod.connect(pod.at(PORT)))
            .with_context(|| format!("waiting for {}", workload.pod))?;
        self.apps.push(App {
            pod,
            node: workload.node,
            process,
        });
        Ok(())
    }

    pub(super) fn app(&self, name: &str) -> anyhow::Result<&App> {
        self.apps
            .iter()
            .find(|app| app.pod.name() == name)
            .with_context(|| format!("no pod {name}"))
    }

    /// Fails when a process of the application has ended.
    pub(super) fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.apps
            .iter_mut()
            .try_for_each(|app| app.process.ensure_running())
    }

    /// What a person may type, as it stands, while all of it runs.
    pub(super) fn ways_in(&self) -> anyhow::Result<Vec<WayIn>> {
        let mut ways = Vec::new();
        let mut way = |shows: String, command: String| ways.push(WayIn { shows, command });
        if let Some(client) = self.clients.first() {
            // The programs see whoever is in the pod's cgroup, as the guard sees who is not.
            let command = format!(
                "sh -c 'echo $$ > {}/cgroup.procs && exec nsenter --target {} --net --mount --uts \
                 curl -sSf http://productpage:{PORT}/productpage'",
                client.cgroup_dir().display(),
                client.sandbox_pid()
            );
            way(
                "the page, as a client in the mesh sees it".to_owned(),
                command,
            );
            let plane = client.mesh().pilot().control_plane();
            if let Some(plane) = plane {
                way(
                    "what the cluster has".to_owned(),
                    format!(
                        "{} get pods,services,endpointslices,virtualservices,destinationrules,routerules",
                        plane.kubectl_line()
                    ),
                );
            }
        }
        for node in &self.nodes {
            let millctl = node.mesh().cluster().binary("millctl")?;
            let of_node = |arguments: &str| {
                let dir = node.run_dir();
                format!(
                    "{} {arguments} --run-dir {}",
                    millctl.display(),
                    dir.display()
                )
            };
            way(
                format!("what the proxy of {} was told", node.name()),
                of_node("proxy-config endpoints"),
            );
            way(
                format!("how the pods of {} are captured", node.name()),
                of_node("status"),
            );
            way(
                "its log".to_owned(),
                format!("tail {}", node.log_dir().join("node.log").display()),
            );
        }
        Ok(ways)
    }
}

impl Outside {
    fn deploy(nodes: &[MeshNode], bookinfo: &Path) -> anyhow::Result<Self> {
        let mut servers = Vec::new();
        let mut start = |node: usize, name: &str, arguments: &[&str]| {
            let pod = nodes[node].pod_with(PodOptions::named(&format!("outside-{name}")))?;
            let mut command = Command::new(bookinfo);
            command.args(arguments);
            let process = pod.launch("app", command)?.uid(1000).spawn()?;
            until(START, || pod.connect(pod.at(PORT)))
                .with_context(|| format!("waiting for {name}"))?;
            let address = pod.at(PORT);
            servers.push((pod, process));
            anyhow::Ok(address)
        };
        // Where their twins are, so that the same calls cross nodes.
        let details = format!("http://{}", start(1, "details", &["details"])?);
        let ratings = format!("http://{}", start(1, "ratings", &["ratings"])?);
        let reviews = start(
            1,
            "reviews",
            &["reviews", "--version", "v3", "--ratings", &ratings],
        )?;
        let reviews = format!("http://{reviews}");
        let arguments = [
            "productpage",
            "--details",
            &details,
            "--reviews",
            &reviews,
            "--ratings",
            &ratings,
        ];
        let page = start(0, "productpage", &arguments)?;
        let client = nodes[0].pod_with(PodOptions::named("outside-client"))?;
        Ok(Self {
            client,
            page,
            _servers: servers,
        })
    }
}

/// Where the sample's objects and rules are.
pub(super) fn examples() -> PathBuf {
    workspace::root().join("deploy/examples/bookinfo")
}

/// Runs the plain client in a pod.
pub(super) fn call(pod: &Pod, url: &str, arguments: &[&str]) -> anyhow::Result<Called> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command
        .args(["client", "http", "--url", url])
        .args(arguments);
    let printed = pod.stdout(command)?;
    let called: Called =
        serde_json::from_str(&printed).with_context(|| format!("the client said {printed}"))?;
    ensure!(
        called.ok > 0 || !called.errors.is_empty(),
        "the client did nothing"
    );
    Ok(called)
}
