//! Proxies that no launcher replaces and no broker gives sockets: sidecars, and one that runs from a file.
//! Each is replaced by starting its next epoch beside it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use millrace_e2e::{Scene, Service};
use millrace_testkit::http::Server;
use millrace_testkit::mesh::{Epochs, Mesh, MeshPod, Sidecar};
use millrace_testkit::{Cluster, Node, Pod, PodOptions, require};
use serde_json::{Value, json};

use crate::traffic::{HELD, SOON, Special, Traffic, WEB_SOCKET, Ways, special};

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const ROUNDS: u32 = 20;
/// Another user than the proxy's.
const STRANGER: u32 = 1338;

/// A node without a process of ours, and the services `echo` and `special` on it.
struct Ground {
    mesh: Mesh,
    node: Node,
    services: [Service; 2],
}

impl Ground {
    fn new() -> anyhow::Result<Self> {
        let mesh = Mesh::start(&Cluster::new()?)?;
        let echo = Service::new("echo", 1)
            .port("http", Scene::HTTP)
            .port("tcp-echo", Scene::TCP);
        let services = [echo, special()];
        for service in &services {
            service.apply(&mesh)?;
        }
        let node = mesh.cluster().node("bare")?;
        Ok(Self {
            mesh,
            node,
            services,
        })
    }

    fn pod<T>(
        &self,
        name: &str,
        serve: impl FnOnce(&Pod) -> anyhow::Result<T>,
    ) -> anyhow::Result<(MeshPod, T)> {
        let options = PodOptions::named(name).label("app", name);
        self.mesh.pod(&self.node, options, serve)
    }
}

/// A pod with a sidecar, which goes before it.
struct Member {
    sidecar: Sidecar,
    pod: Arc<MeshPod>,
}

impl Member {
    fn new(mesh: &Mesh, pod: MeshPod) -> anyhow::Result<Self> {
        Sidecar::capture(mesh, &pod, &["--redirect-dns"])?;
        Ok(Self {
            sidecar: Sidecar::start(
                mesh,
                &pod,
                &[
                    "--workers",
                    "2",
                    "-l",
                    "info,millrace_proxy::handover=debug",
                ],
            )?,
            pod: Arc::new(pod),
        })
    }

    fn replace(&self) -> anyhow::Result<()> {
        self.sidecar.replace(&self.pod).map(drop)
    }

    fn page(&self) -> anyhow::Result<Value> {
        self.sidecar.admin(&self.pod, "/handover")?.json()
    }
}

#[test]
fn sidecars_are_replaced_twenty_times_and_lose_nothing() -> anyhow::Result<()> {
    require!(cluster);
    let ground = Ground::new()?;
    let [echo, held] = &ground.services;
    let (pod, _servers) = ground.pod("echo", |pod| echo.serve("echo", pod))?;
    let server = Member::new(&ground.mesh, pod)?;
    let (pod, special) = ground.pod("special", Special::serve)?;
    let late = Member::new(&ground.mesh, pod)?;
    let (pod, ()) = ground.pod("client", |_| Ok(()))?;
    let client = Member::new(&ground.mesh, pod)?;
    let ways = Ways {
        client: Arc::clone(&client.pod),
        http: echo.at(Scene::HTTP),
        tcp: echo.at(Scene::TCP),
        held: held.at(HELD),
        web_socket: held.at(WEB_SOCKET),
    };
    let members = [client, server, late];
    let mut traffic = Traffic::start(ways, ROUNDS)?;
    for _ in 0..ROUNDS {
        let upgrade = || members.iter().try_for_each(Member::replace);
        traffic.across(&special, upgrade, || {
            members.iter().map(Member::page).collect()
        })?;
    }
    let logs = || {
        members
            .each_ref()
            .map(|member| member.sidecar.log())
            .join("\n")
    };
    traffic.finish("sidecars").with_context(logs)?;
    members.iter().try_for_each(|member| member.sidecar.ended())
}

/// A proxy from a file, in a pod before those of the services.
struct Front {
    epochs: Epochs,
    pod: MeshPod,
    program: PathBuf,
    arguments: Vec<String>,
    special: Special,
    _servers: (Vec<Server>, [MeshPod; 2]),
    ground: Ground,
}

impl Front {
    fn start() -> anyhow::Result<Self> {
        let ground = Ground::new()?;
        let [service, _] = &ground.services;
        let (echo, servers) = ground.pod("echo", |pod| service.serve("echo", pod))?;
        let (late, special) = ground.pod("special", Special::serve)?;
        let (pod, ()) = ground.pod("front", |_| Ok(()))?;
        let to = [
            (&echo, Scene::HTTP),
            (&echo, Scene::TCP),
            (&late, HELD),
            (&late, WEB_SOCKET),
        ];
        let file = ground.mesh.cluster().id().state_dir().join("front.json");
        fs::write(&file, bootstrap(&to).to_string()).context("writing the bootstrap")?;
        let file = file.display().to_string();
        let arguments = ["--config-path", &file, "--concurrency", "2"].map(str::to_owned);
        let program = ground.mesh.cluster().binary("millrace-proxy")?;
        Ok(Self {
            epochs: Epochs::start(&pod, "front", program.clone(), arguments.to_vec())?,
            pod,
            program,
            arguments: arguments.to_vec(),
            special,
            _servers: (servers, [echo, late]),
            ground,
        })
    }
}

#[test]
fn a_proxy_from_a_file_is_replaced_twenty_times_and_loses_nothing() -> anyhow::Result<()> {
    require!(cluster);
    let Front {
        mut epochs,
        pod: front,
        special,
        ground,
        _servers,
        ..
    } = Front::start()?;
    let (client, ()) = ground.pod("client", |_| Ok(()))?;
    let ways = Ways {
        client: Arc::new(client),
        http: front.at(Scene::HTTP),
        tcp: front.at(Scene::TCP),
        held: front.at(HELD),
        web_socket: front.at(WEB_SOCKET),
    };
    let mut traffic = Traffic::start(ways, ROUNDS)?;
    for _ in 0..ROUNDS {
        let upgrade = || epochs.replace(&front).map(drop);
        let page = || Ok(vec![front.get(ADMIN, "admin", "/handover")?.json()?]);
        traffic.across(&special, upgrade, page)?;
    }
    let finished = traffic.finish("from a file");
    finished.with_context(|| epochs.newest().log())?;
    epochs.ended()
}

#[test]
fn another_users_process_is_given_nothing() -> anyhow::Result<()> {
    require!(cluster);
    let mut front = Front::start()?;
    let mut command = Command::new(&front.program);
    command
        .args(&front.arguments)
        .args(["--restart-epoch", "1"]);
    let mut stranger = front
        .pod
        .launch("stranger", command)?
        .uid(STRANGER)
        .spawn()?;
    let status = stranger.wait(SOON)?;
    ensure!(!status.success(), "{}", stranger.log());
    // It found the name, but nobody whose sockets it could have, and the ports are taken.
    let told = stranger.log();
    ensure!(told.contains("cannot be replaced without loss"), "{told}");
    ensure!(told.contains("Address already in use"), "{told}");
    let log = front.epochs.newest().log();
    ensure!(log.contains("a stranger claims the sockets"), "{log}");
    front.epochs.replace(&front.pod).map(drop)
}

/// An Envoy bootstrap with a listener for each of these ports, which leads to the same port of its pod.
fn bootstrap(to: &[(&MeshPod, u16)]) -> Value {
    let address =
        |ip: &str, port| json!({ "socket_address": { "address": ip, "port_value": port } });
    let clusters = to.iter().map(|(pod, port)| {
        let endpoint = json!({ "address": address(&pod.ip().to_string(), *port) });
        json!({
            "name": port.to_string(),
            "connect_timeout": "5s",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": port.to_string(),
                "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }],
            },
        })
    });
    let listeners = to.iter().map(|(_, port)| {
        json!({
            "name": port.to_string(),
            "address": address("0.0.0.0", *port),
            "filter_chains": [{ "filters": [filter(*port)] }],
        })
    });
    json!({
        "admin": { "address": address("127.0.0.1", ADMIN.port()) },
        "static_resources": {
            "listeners": listeners.collect::<Vec<_>>(),
            "clusters": clusters.collect::<Vec<_>>(),
        },
    })
}

/// Bytes at the port of bytes, else HTTP.
fn filter(port: u16) -> Value {
    const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";
    let cluster = port.to_string();
    if port == Scene::TCP {
        return json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{EXTENSIONS}.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": cluster,
                "cluster": cluster,
            },
        });
    }
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } });
    let hosts = json!([{ "name": "all", "domains": ["*"], "routes": [route] }]);
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": cluster,
            "upgrade_configs": [{ "upgrade_type": "websocket" }],
            "route_config": { "name": "all", "virtual_hosts": hosts },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": format!("{EXTENSIONS}.http.router.v3.Router") },
            }],
        },
    })
}
