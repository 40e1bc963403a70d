//! One mode: a node whose pods are captured and accelerated in one way, with a server and clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{Pod, PodOptions, Process, until};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Mode;
use super::counts::Counts;
use super::peer::Flooded;

const HTTP: u16 = 9080;
const BYTES: u16 = 9082;
const LATE: u16 = 9083;
const NEVER: u16 = 9084;
const CONTROL: u16 = 9090;
const START: Duration = Duration::from_secs(20);

/// A mode, ready to be used.
pub(super) struct Lane {
    pub(super) mode: Mode,
    number: u8,
    host: String,
    address: IpAddr,
    /// The same service's address in IPv6.
    address6: IpAddr,
    pub(super) clients: Vec<MeshPod>,
    _application: Process,
    server: MeshPod,
    node: MeshNode,
}

/// What all lanes have in common.
pub(super) struct Setting<'a> {
    pub(super) mesh: &'a Mesh,
    /// This very program, where pods may execute it.
    pub(super) program: &'a Path,
    pub(super) seed: u64,
    /// Clients of a lane.
    pub(super) clients: usize,
    pub(super) threads: u32,
}

impl Lane {
    pub(super) fn start(setting: &Setting<'_>, mode: Mode, number: u8) -> anyhow::Result<Self> {
        let name = format!("{}-{}", mode.capture, mode.acceleration);
        let host = format!("echo-{name}.default.svc.cluster.local");
        let address = Ipv4Addr::new(10, 96, 50, number).into();
        let address6 = Ipv6Addr::new(0xfd00, 0x96, 50, 0, 0, 0, 0, number.into()).into();
        let mesh = setting.mesh;
        let service = format!("echo-{name}");
        mesh.pilot().apply(
            &format!("{service}.yaml"),
            &manifest(&service, [address, address6]),
        )?;
        let node = mesh.node(&name)?;
        let options = |pod: &str| {
            PodOptions::named(&format!("{pod}-{name}"))
                .annotation("millrace.io/capture", mode.capture)
                .annotation("millrace.io/acceleration", mode.acceleration)
        };
        let server = options("server")
            .label("app", &service)
            .port("http", HTTP)
            .port("tcp-bytes", BYTES)
            .port("tcp-late", LATE)
            .port("tcp-never", NEVER);
        let server = node.pod(server)?;
        let application = server.spawn("peer", serve(setting, mode))?;
        until(START, || {
            server.connect((Ipv4Addr::LOCALHOST, CONTROL).into())
        })?;
        let clients = (0..setting.clients)
            .map(|client| node.pod(options(&format!("client{client}"))))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for pod in clients.iter().chain([&server]) {
            let captured = node.captured(pod)?;
            ensure!(
                captured == mode.capture,
                "{} is captured by {captured}",
                pod.name()
            );
        }
        let lane = Self {
            mode,
            number,
            host,
            address,
            address6,
            clients,
            _application: application,
            server,
            node,
        };
        for client in &lane.clients {
            lane.await_service(client)?;
        }
        Ok(lane)
    }

    /// Waits until a client's connection reaches the server by way of the proxy.
    pub(super) fn await_service(&self, client: &MeshPod) -> anyhow::Result<()> {
        until(START, || {
            let at = (self.address, HTTP).into();
            let answer = client.get(at, &self.host, "/0/0/5/0/1")?;
            ensure!(answer.status == 200 && answer.body.len() == 5, "{answer:?}");
            ensure!(
                answer
                    .headers
                    .first("x-envoy-upstream-service-time")
                    .is_some(),
                "the call did not pass the proxy"
            );
            Ok(())
        })
        .with_context(|| format!("waiting for {} to be reached", self.host))
    }

    /// Starts the clients; each reports when the time is over.
    pub(super) fn call(
        &self,
        setting: &Setting<'_>,
        seed: u64,
        seconds: f64,
    ) -> anyhow::Result<Vec<Child>> {
        let start = |(index, pod): (usize, &MeshPod)| {
            let client = usize::from(self.number) * setting.clients + index;
            let mut command = Command::new(setting.program);
            command
                .args(["stress-peer", "call", "--host", &self.host])
                .args(["--to", &self.address.to_string()])
                .args(["--to", &self.address6.to_string()])
                .args(["--http", &HTTP.to_string(), "--bytes", &BYTES.to_string()])
                .args(["--late", &LATE.to_string()])
                .args(["--client", &client.to_string()])
                .args(["--seconds", &seconds.to_string()])
                .args(["--threads", &setting.threads.to_string()])
                .args(["--call-seed", &seed.to_string()]);
            common(&mut command, setting, self.mode);
            if self.mode.capture == "ebpf" {
                command.arg("--same-tuples");
            }
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            pod.launch("call", command)?.start()
        };
        self.clients.iter().enumerate().map(start).collect()
    }

    /// Whether the kernel carries messages here.
    pub(super) fn is_accelerated(&self) -> bool {
        self.mode.capture == "ebpf" && self.mode.acceleration != "off"
    }

    /// Gives all pods another setting of acceleration, while they go on.
    pub(super) fn accelerate(&self, setting: &str) -> anyhow::Result<()> {
        let mut pods = self.clients.iter().chain([&self.server]);
        pods.try_for_each(|pod| pod.annotate("millrace.io/acceleration", setting))
    }

    /// Kills one of the node's processes.
    pub(super) fn kill(&self, role: Role) -> anyhow::Result<()> {
        self.node.signal(role, Signal::SIGKILL).map(drop)
    }

    /// Lets a client write to the server that never reads.
    pub(super) fn flood(
        &self,
        setting: &Setting<'_>,
        chunk: usize,
        seconds: f64,
    ) -> anyhow::Result<Flooded> {
        let client = self.clients.first().context("a lane without clients")?;
        let mut command = Command::new(setting.program);
        command
            .args(["stress-peer", "flood"])
            .args(["--to", &format!("{}:{NEVER}", self.address)])
            .args(["--chunk", &chunk.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        let told = client.stdout(command)?;
        serde_json::from_str(told.trim()).with_context(|| format!("what the client said: {told}"))
    }

    /// A request as any other program of the client's pod sends it.
    pub(super) fn ask(&self) -> anyhow::Result<()> {
        let client = self.clients.first().context("a lane without clients")?;
        let answer = client.get((self.address, HTTP).into(), &self.host, "/0/0/100/0/0")?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(())
    }

    /// The pods of a client and of the server.
    pub(super) fn ends(&self) -> [&Pod; 2] {
        [self.clients.first().unwrap_or(&self.server), &self.server]
    }

    /// What the server has seen so far.
    pub(super) fn served(&self) -> anyhow::Result<Counts> {
        let stream = self.server.connect((Ipv4Addr::LOCALHOST, CONTROL).into())?;
        let text = std::io::read_to_string(stream).context("reading the server's report")?;
        serde_json::from_str(&text).context("reading the server's report")
    }

    /// The proxy's counters of acceleration.
    pub(super) fn accelerated(&self) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
        let page = self.node.admin("/stats/prometheus")?.text();
        let lines = page.lines().filter_map(|line| {
            let line = line.strip_prefix("millrace_proxy_acceleration_")?;
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), json!(value.parse::<f64>().ok()?)))
        });
        Ok(lines.collect())
    }

    /// What a person may want to read when something was wrong.
    pub(super) fn log(&self) -> String {
        self.node.log()
    }
}

/// The report that a client printed.
pub(super) fn report<T: DeserializeOwned>(child: Child) -> anyhow::Result<T> {
    let output = child.wait_with_output().context("waiting for a client")?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| {
        format!(
            "a client ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })
}

fn serve(setting: &Setting<'_>, mode: Mode) -> Command {
    let mut command = Command::new(setting.program);
    command.args(["stress-peer", "serve"]);
    for (flag, port) in [
        ("--http", HTTP),
        ("--bytes", BYTES),
        ("--late", LATE),
        ("--never", NEVER),
        ("--control", CONTROL),
    ] {
        command.args([flag, &format!("[::]:{port}")]);
    }
    common(&mut command, setting, mode);
    command
}

fn common(command: &mut Command, setting: &Setting<'_>, mode: Mode) {
    command.args(["--seed", &setting.seed.to_string()]);
    if mode.spares_splice() {
        command.arg("--no-splice");
    }
}

/// The service, as a Kubernetes object.
fn manifest(name: &str, addresses: [IpAddr; 2]) -> String {
    let port = |name: &str, port: u16| json!({ "name": name, "port": port, "targetPort": port });
    let ports = [
        port("http", HTTP),
        port("tcp-bytes", BYTES),
        port("tcp-late", LATE),
        port("tcp-never", NEVER),
    ];
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "selector": { "app": name },
            "ports": ports,
        },
    })
    .to_string()
}
