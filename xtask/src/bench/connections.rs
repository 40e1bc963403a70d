//! `cargo xtask bench connections`: many connections at once on one node, and what becomes of those that are
//! too many.
//!
//! Three parts. *Through*: connections through the proxy, as many as were asked for and its limit of open
//! files holds. *Waiting*: all that were asked for, captured while the proxy takes none, so that they are the kernel's
//! alone. *Ports*: more from one pod than it has local ports.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes are far below 2^52"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{Cluster, PodOptions, Process, until};
use serde_json::{Value, json};

use super::lane::{Service, backend};
use super::memory::{self, Memory};
use super::ports::{self, HTTP, SINK, TCP};
use super::setting::Setting;
use super::{Args, report};
use crate::client::{Answered, Held};
use crate::ui::{self, Step};

/// Connections of one pod: a client's limit of open files, and what waits in the backlog of its two
/// or more listening sockets, must hold them.
const PER_POD: usize = 4000;
/// Connections of one server, which holds one file for each.
const PER_SERVER: usize = 12_000;
/// What the proxy needs for itself and for the pools of its pods.
const SPARE_FILES: usize = 2000;
/// Local ports of the pod that runs out of them.
const PORTS: (u16, u16) = (40_000, 41_999);

const SET_UP: Duration = Duration::from_mins(5);
const CLOSE: Duration = Duration::from_mins(1);

/// Everything that is read before and while connections are held.
struct Reading {
    memory: Memory,
    kernel_bytes: u64,
    maps: BTreeMap<String, u64>,
    counters: BTreeMap<String, u64>,
}

/// One part's outcome.
struct Part {
    name: &'static str,
    asked: usize,
    pods: usize,
    held: Held,
    alive: Option<usize>,
    before: Reading,
    during: Reading,
    after: BTreeMap<String, u64>,
}

struct Scene {
    node: MeshNode,
    service: Service,
    clients: Vec<MeshPod>,
    _servers: Vec<(MeshPod, Process)>,
    scratch: PathBuf,
}

pub(super) fn run(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let asked = args.connections;
    let scene = {
        let _step = Step::begin("set up");
        Scene::build(cluster, setting, asked)?
    };
    let mut parts = Vec::new();
    let fits = scene.fits()?.min(asked);
    parts.push(scene.part("through", fits, &spread(fits), true)?);
    let pod = scene.clients.first().context("no client")?;
    pod.run(|| {
        let range = format!("{} {}", PORTS.0, PORTS.1);
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).context("narrowing the ports")
    })?;
    parts.push(scene.ports()?);
    scene.node.admin_request("POST", "/drain_listeners")?;
    parts.push(scene.part("waiting", asked, &spread(asked), false)?);
    drop(scene);
    args.write(&parts.iter().map(Part::json).collect::<Vec<_>>())?;
    ui::result(report::machine()?);
    ui::result(setting);
    for part in &parts {
        ui::result(part.describe());
    }
    Ok(())
}

impl Scene {
    fn build(cluster: &Cluster, setting: &Setting, asked: usize) -> anyhow::Result<Self> {
        let mesh = Mesh::start_with(cluster, &setting.mesh_config())?;
        let service = Service::numbered("held", 1);
        mesh.pilot().apply("held.yaml", &service.manifest())?;
        // A service has 1024 connections unless its owner allows more.
        let rule = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": { "name": service.name, "namespace": "default" },
            "spec": {
                "host": service.host,
                "trafficPolicy": { "connectionPool": { "tcp": { "maxConnections": 10_000_000 } } },
            },
        });
        mesh.pilot().apply("rule.yaml", &rule.to_string())?;
        let node = mesh.node_with("node", &["--workers", &setting.workers.to_string()])?;
        let with_port = |pod: PodOptions, (name, port): (&str, u16)| pod.port(name, port);
        let servers = (0..asked.div_ceil(PER_SERVER))
            .map(|at| {
                let options =
                    PodOptions::named(&format!("server-{at}")).label("app", &service.name);
                let server = node.pod(ports::ALL.into_iter().fold(options, with_port))?;
                let backend = backend(&server)?;
                Ok((server, backend))
            })
            .collect::<anyhow::Result<_>>()?;
        // One more: the first runs out of ports on purpose.
        let clients: Vec<MeshPod> = (0..=asked.div_ceil(PER_POD))
            .map(|at| node.pod(PodOptions::named(&format!("client-{at}"))))
            .collect::<anyhow::Result<_>>()?;
        let to = (service.address, HTTP).into();
        until(SET_UP, || {
            let answer = clients[0].get(to, &service.host, "/1k")?;
            ensure!(answer.status == 200, "status {}", answer.status);
            Ok(())
        })?;
        Ok(Self {
            scratch: clients[0].log_dir().to_owned(),
            node,
            service,
            clients,
            _servers: servers,
        })
    }

    /// How many connections, of two files each, the proxy can hold.
    fn fits(&self) -> anyhow::Result<usize> {
        let pid = self.node.pid(Role::Proxy).context("no proxy")?;
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next());
        let limit: usize = soft
            .and_then(|soft| soft.parse().ok())
            .unwrap_or(usize::MAX);
        let used = usize::try_from(memory::Process::read(pid)?.descriptors)?;
        Ok(limit.saturating_sub(used + SPARE_FILES) / 2)
    }

    /// Connections to two ports of the service, as many to each as one pod has ports and half of them over.
    fn ports(&self) -> anyhow::Result<Part> {
        let room = usize::from(PORTS.1 - PORTS.0) + 1;
        let share = room * 3 / 4;
        self.part("ports", 2 * share, &[(0, share), (0, share)], false)
    }

    fn part(
        &self,
        name: &'static str,
        asked: usize,
        shares: &[(usize, usize)],
        echo: bool,
    ) -> anyhow::Result<Part> {
        let _step = Step::begin(format!("{name}: {asked} connections"));
        let before = Reading::of(&self.node)?;
        let release = self.scratch.join(format!("{name}.release"));
        let holders = shares
            .iter()
            .enumerate()
            .map(|(at, share)| self.holder(&format!("{name}-{at}"), *share, at, &release, echo))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut held = Held::default();
        for holder in &holders {
            let share: Held = line(holder, 0)?;
            held.established += share.established;
            held.seconds = held.seconds.max(share.seconds);
            held.latencies.p50_us = held.latencies.p50_us.max(share.latencies.p50_us);
            held.latencies.p99_us = held.latencies.p99_us.max(share.latencies.p99_us);
            for (error, count) in share.errors {
                *held.errors.entry(error).or_default() += count;
            }
        }
        let during = Reading::of(&self.node)?;
        fs::write(&release, "").context("letting the connections go")?;
        let mut alive = echo.then_some(0);
        for mut holder in holders {
            if let Some(alive) = &mut alive {
                *alive += line::<Answered>(&holder, 1)?.alive;
            }
            holder.wait(CLOSE)?;
        }
        Ok(Part {
            name,
            asked,
            pods: shares.len(),
            held,
            alive,
            before,
            during,
            after: Reading::of(&self.node)?.maps,
        })
    }

    fn holder(
        &self,
        name: &str,
        (pod, count): (usize, usize),
        at: usize,
        release: &FilePath,
        echo: bool,
    ) -> anyhow::Result<Process> {
        // The echo's port, and in the last part another besides.
        let port = if echo || at.is_multiple_of(2) {
            TCP
        } else {
            SINK
        };
        let mut command = Command::new(super::generator()?);
        command
            .args(["client", "hold", "--to"])
            .arg(SocketAddr::new(self.service.address, port).to_string())
            .args(["--connections", &count.to_string()])
            .arg("--until")
            .arg(release);
        if echo {
            command.arg("--echo");
        }
        self.clients[pod].spawn(name, command)
    }
}

/// The clients but the first, with how many connections each makes.
fn spread(count: usize) -> Vec<(usize, usize)> {
    let pods = count.div_ceil(PER_POD).max(1);
    (0..pods)
        .map(|at| (at + 1, count / pods + usize::from(at < count % pods)))
        .collect()
}

/// The `at`th report that a process has printed.
fn line<T: serde::de::DeserializeOwned>(process: &Process, at: usize) -> anyhow::Result<T> {
    until(SET_UP, || {
        let log = process.log();
        let report = log.lines().filter(|line| line.starts_with('{')).nth(at);
        let report = report.with_context(|| format!("nothing reported yet: {log}"))?;
        Ok::<T, anyhow::Error>(serde_json::from_str(report)?)
    })
}

impl Reading {
    fn of(node: &MeshNode) -> anyhow::Result<Self> {
        let status = node.agent("/status")?.json()?;
        let counters = node.agent("/counters")?.json()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let maps = list(&status["maps"]);
        let counters = list(&counters["counters"]);
        Ok(Self {
            memory: Memory::read(node)?,
            kernel_bytes: memory::kernel_bytes()?,
            maps: maps
                .iter()
                .map(|map| (text(&map["map"]), number(&map["used"])))
                .collect(),
            counters: counters
                .iter()
                .map(|it| {
                    let name = format!("{}/{}", text(&it["hook"]), text(&it["outcome"]));
                    (name, number(&it["value"]))
                })
                .collect(),
        })
    }
}

impl Part {
    /// What the kernel programs counted meanwhile.
    fn counted(&self) -> BTreeMap<&str, u64> {
        let before = |name: &String| self.before.counters.get(name).copied().unwrap_or_default();
        self.during
            .counters
            .iter()
            .map(|(name, value)| (name.as_str(), value.saturating_sub(before(name))))
            .filter(|(_, value)| *value > 0)
            .collect()
    }

    fn per_connection(&self, before: u64, during: u64) -> f64 {
        during.saturating_sub(before) as f64 / self.held.established.max(1) as f64
    }

    fn proxy_bytes(&self) -> f64 {
        let of = |reading: &Reading| reading.memory.proxy.pss_bytes;
        self.per_connection(of(&self.before), of(&self.during))
    }

    fn kernel_bytes(&self) -> f64 {
        self.per_connection(self.before.kernel_bytes, self.during.kernel_bytes)
    }

    fn per_second(&self) -> f64 {
        self.held.established as f64 / self.held.seconds.max(f64::MIN_POSITIVE)
    }

    fn json(&self) -> Value {
        json!({
            "report": "connections",
            "part": self.name,
            "asked": self.asked,
            "clients": self.pods,
            "established": self.held.established,
            "errors": self.held.errors,
            "alive_in_the_end": self.alive,
            "established_per_second": self.per_second(),
            "connect_p50_us": self.held.latencies.p50_us,
            "connect_p99_us": self.held.latencies.p99_us,
            "proxy_bytes_per_connection": self.proxy_bytes().round(),
            "kernel_bytes_per_connection": self.kernel_bytes().round(),
            "memory": self.during.memory.json(),
            "maps": self.during.maps,
            "maps_afterwards": self.after,
            "counted": self.counted(),
        })
    }

    fn describe(&self) -> String {
        let list = |entries: &BTreeMap<&str, u64>| {
            let entries: Vec<_> = entries
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            entries.join(", ")
        };
        let maps = |maps: &BTreeMap<String, u64>| {
            list(
                &maps
                    .iter()
                    .map(|(name, used)| (name.as_str(), *used))
                    .collect(),
            )
        };
        let errors: BTreeMap<&str, u64> = self
            .held
            .errors
            .iter()
            .map(|(error, count)| (error.as_str(), *count as u64))
            .collect();
        format!(
            "{}: {} of {} connections from {} clients, {:.0}/s, connect p50 {:.0} us, p99 {:.0} us\n  \
             not made: {}\n  answered in the end: {}\n  \
             each: {:.1} KB of the proxy, {:.1} KB of the kernel\n  \
             maps: {}\n  maps afterwards: {}\n  counted: {}",
            self.name,
            self.held.established,
            self.asked,
            self.pods,
            self.per_second(),
            self.held.latencies.p50_us,
            self.held.latencies.p99_us,
            if errors.is_empty() {
                "none".to_owned()
            } else {
                list(&errors)
            },
            self.alive
                .map_or("not asked".to_owned(), |alive| alive.to_string()),
            self.proxy_bytes() / 1e3,
            self.kernel_bytes() / 1e3,
            maps(&self.during.maps),
            maps(&self.after),
            list(&self.counted())
        )
    }
}
