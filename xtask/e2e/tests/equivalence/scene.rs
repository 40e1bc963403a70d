//! The scene of every behaviour: a client, a server beside it and one on another node, and a world outside
//! the mesh; captured in one of the three ways, with the same names and addresses in each.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::CAPTURE;
use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod, Sidecar};
use millrace_testkit::{Cluster, Host, Node, Pod, PodOptions, until};

use crate::outside::Outside;
use crate::rules;
use crate::server::{self, Servers};

const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
/// How long a scene may take to get somewhere.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A way of capturing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The node's proxy, reached by kernel programs.
    Ebpf,
    /// The node's proxy, reached by nat rules.
    Iptables,
    /// A proxy in each pod, reached by the rules of `millrace-agent init`.
    Sidecar,
}

impl Mode {
    /// All of them; the first is what the others are compared with.
    pub(crate) const ALL: [Self; 3] = [Self::Ebpf, Self::Iptables, Self::Sidecar];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::Sidecar => "sidecar",
        }
    }
}

/// The address families, and what they are called.
pub(crate) const FAMILIES: [(&str, bool); 2] = [("v4", false), ("v6", true)];
/// The services behind which one server each is: beside the client, and on another node.
pub(crate) const PLACES: [&str; 2] = ["near", "far"];

/// A node, with agent, broker and proxy, or without any of them.
enum Ground {
    Served(Box<MeshNode>),
    Bare(Node),
}

impl Deref for Ground {
    type Target = Node;

    fn deref(&self) -> &Node {
        match self {
            Self::Served(node) => node,
            Self::Bare(node) => node,
        }
    }
}

/// A captured pod.
pub(crate) struct Member {
    // The proxy goes before the pod that it is in.
    sidecar: Option<Sidecar>,
    pod: MeshPod,
}

impl Member {
    /// The pod's sidecar, where it has one.
    pub(crate) fn sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.as_ref()
    }
}

impl Deref for Member {
    type Target = MeshPod;

    fn deref(&self) -> &MeshPod {
        &self.pod
    }
}

/// A captured pod with servers.
pub(crate) struct Backend {
    /// The servers.
    pub(crate) servers: Servers,
    /// The pod.
    pub(crate) member: Member,
}

/// Everything that a behaviour may use.
pub(crate) struct Scene {
    /// How its pods are captured.
    pub(crate) mode: Mode,
    /// The client, on the node `near`.
    pub(crate) client: Member,
    /// The server of the service `near`, on the client's node.
    pub(crate) near: Backend,
    /// The server of the service `far`, on the other node.
    pub(crate) far: Backend,
    /// Who is not of the mesh.
    pub(crate) outside: Outside,
    nodes: [Ground; 2],
    mesh: Mesh,
}

impl Scene {
    /// Starts everything and waits until every port of every service is served with the rules in force.
    pub(crate) fn start(mode: Mode) -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        rules::apply(&mesh)?;
        let outside = Outside::start(&cluster)?;
        let nodes = [
            ground(&mesh, mode, "near", &outside)?,
            ground(&mesh, mode, "far", &outside)?,
        ];
        let near = backend(&mesh, mode, &nodes[0], "near")?;
        let far = backend(&mesh, mode, &nodes[1], "far")?;
        let (client, ()) = capture(&mesh, mode, &nodes[0], options("client"), |_| Ok(()))?;
        let scene = Self {
            mode,
            client,
            near,
            far,
            outside,
            nodes,
            mesh,
        };
        scene.ready()?;
        Ok(scene)
    }

    /// The client's node, as its kubelet acts.
    pub(crate) fn node(&self) -> &Node {
        &self.nodes[0]
    }

    /// The client's node with its agent; none where pods have sidecars.
    pub(crate) fn mesh_node(&self) -> Option<&MeshNode> {
        match &self.nodes[0] {
            Ground::Served(node) => Some(node),
            Ground::Bare(_) => None,
        }
    }

    /// The server of one of the services.
    pub(crate) fn backend(&self, place: &str) -> &Backend {
        if place == "near" {
            &self.near
        } else {
            &self.far
        }
    }

    /// One more captured pod on the client's node, gone when it is dropped.
    pub(crate) fn member(&self, options: PodOptions) -> anyhow::Result<Member> {
        let made = capture(&self.mesh, self.mode, &self.nodes[0], options, |_| Ok(()));
        made.map(|(member, ())| member)
    }

    /// A pod on the client's node that nobody captures yet, and what is done to capture it then: the
    /// closure is called in between, when it is decided but not done, again and again where that takes time.
    pub(crate) fn late(&self, options: PodOptions) -> anyhow::Result<MeshPod> {
        let options = options.annotation(CAPTURE, self.mode.name());
        self.mesh
            .pod(&self.nodes[0], options, |_| Ok(()))
            .map(|(pod, ())| pod)
    }

    /// Captures a pod made by [`Scene::late`], and calls `meanwhile` while that is done.
    pub(crate) fn capture(
        &self,
        pod: MeshPod,
        mut meanwhile: impl FnMut(&MeshPod),
    ) -> anyhow::Result<Member> {
        let sidecar = match &self.nodes[0] {
            Ground::Served(node) => {
                pod.opt_in()?;
                until(SOON, || {
                    meanwhile(&pod);
                    let status = node.pod_status(&pod)?;
                    let done = status["capture"] == self.mode.name() && status["healthy"] == true;
                    ensure!(done, "{status}");
                    anyhow::Ok(())
                })?;
                None
            }
            Ground::Bare(_) => {
                Sidecar::capture(&self.mesh, &pod, INIT)?;
                meanwhile(&pod);
                Some(Sidecar::start(&self.mesh, &pod, PROXY)?)
            }
        };
        Ok(Member { sidecar, pod })
    }

    /// A service's address and port.
    #[expect(clippy::unused_self, reason = "services are part of the scene")]
    pub(crate) fn service(&self, name: &str, port: u16, v6: bool) -> SocketAddr {
        SocketAddr::new(rules::address(name, v6), port)
    }

    /// One request of the client over a connection of its own.
    pub(crate) fn ask(&self, to: SocketAddr, request: &Request) -> anyhow::Result<Response> {
        Client::connect(&self.client, to)?.send(request)
    }

    /// Who has an address, where that is somebody; the address itself otherwise.
    pub(crate) fn who(&self, ip: IpAddr) -> String {
        let ip = ip.to_canonical();
        let mut known = vec![
            ("outside", self.outside.ip()),
            ("outside", self.outside.ip6()),
        ];
        for (name, pod) in [
            ("client", &*self.client),
            ("near", &*self.near.member),
            ("far", &*self.far.member),
        ] {
            known.extend([(name, pod.ip()), (name, pod.ip6())]);
        }
        for (name, node) in [("node near", &self.nodes[0]), ("node far", &self.nodes[1])] {
            known.extend([(name, node.ip()), (name, node.ip6())]);
            known.extend(node.gateways().map(|gateway| (name, gateway)));
        }
        for (name, _) in rules::SERVICES {
            known.extend([false, true].map(|v6| (name, rules::address(name, v6))));
        }
        let found = known.iter().find(|(_, address)| *address == ip);
        found.map_or_else(|| ip.to_string(), |(name, _)| (*name).to_owned())
    }

    /// Who has an address, and the port.
    pub(crate) fn whose(&self, address: SocketAddr) -> String {
        format!("{}:{}", self.who(address.ip()), address.port())
    }

    /// The metrics of every proxy of the scene.
    pub(crate) fn metrics(&self) -> anyhow::Result<Vec<String>> {
        let members = [&self.client, &self.near.member, &self.far.member];
        let hosts: Vec<&Host> = match self.mode {
            Mode::Sidecar => members.map(|member| &**member.pod).into(),
            Mode::Ebpf | Mode::Iptables => self.nodes.iter().map(|node| &***node).collect(),
        };
        let page = |host: &Host| {
            let page = host.get(METRICS, "metrics", "/stats/prometheus")?;
            ensure!(page.status == 200, "{}", page.status);
            Ok(page.text())
        };
        hosts.into_iter().map(page).collect()
    }

    /// What the proxy that serves the client printed.
    pub(crate) fn log(&self) -> String {
        match (self.mesh_node(), self.client.sidecar()) {
            (Some(node), _) => node.log(),
            (None, Some(sidecar)) => sidecar.log(),
            (None, None) => String::new(),
        }
    }

    fn ready(&self) -> anyhow::Result<()> {
        // Only the rules answer so.
        let request = Request::get("routed:8080", "/ready");
        until(SOON, || {
            let answer = self
                .ask(self.service("routed", server::HTTP, false), &request)
                .map_err(|error| anyhow::anyhow!("{error:#}"))?;
            ensure!(answer.status == 299, "{}: {}", answer.status, answer.text());
            anyhow::Ok(())
        })
        .context("waiting for the rules")?;
        for place in PLACES {
            for (family, v6) in FAMILIES {
                let to = self.service(place, server::HTTP, v6);
                until(SOON, || {
                    let answer = self.ask(to, &Request::get(&format!("{place}:8080"), "/"))?;
                    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
                    anyhow::Ok(())
                })
                .with_context(|| format!("waiting for {place} over {family}"))?;
                for port in [server::ECHO, server::SOME_BYTES, server::CONTROL] {
                    until(SOON, || self.answers(self.service(place, port, v6)))
                        .with_context(|| format!("waiting for {place}:{port} over {family}"))?;
                }
            }
        }
        Ok(())
    }
}

impl Scene {
    /// Whether a server of bytes answers the client at this address.
    fn answers(&self, to: SocketAddr) -> anyhow::Result<()> {
        let mut stream = self.client.connect(to)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"seen\n")?;
        stream.read_exact(&mut [0; 4]).context("no answer")
    }
}

/// How a sidecar's rules and proxy are asked for, as an injector would.
const INIT: &[&str] = &["--redirect-dns"];
const PROXY: &[&str] = &["--workers", "1"];

fn options(name: &str) -> PodOptions {
    PodOptions::named(name).label("app", name)
}

fn ground(mesh: &Mesh, mode: Mode, name: &str, outside: &Outside) -> anyhow::Result<Ground> {
    let ground = match mode {
        Mode::Sidecar => Ground::Bare(mesh.cluster().node(name)?),
        Mode::Ebpf | Mode::Iptables => {
            let wrapper = outside.with_resolver(mesh.cluster())?;
            let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
            let node = mesh.node_through(name, &wrapper, &["--proxy-arg", "--workers=1"])?;
            Ground::Served(Box::new(node))
        }
    };
    outside.reachable_from(&ground)?;
    Ok(ground)
}

fn capture<T>(
    mesh: &Mesh,
    mode: Mode,
    ground: &Ground,
    options: PodOptions,
    serve: impl FnOnce(&Pod) -> anyhow::Result<T>,
) -> anyhow::Result<(Member, T)> {
    let options = options.annotation(CAPTURE, mode.name());
    let (pod, sidecar, served) = match ground {
        Ground::Served(node) => {
            let (pod, served) = node.serving_pod(options, serve)?;
            ensure!(
                node.captured(&pod)? == mode.name(),
                "captured in another way"
            );
            (pod, None, served)
        }
        Ground::Bare(node) => {
            let (pod, served) = mesh.pod(node, options, serve)?;
            Sidecar::capture(mesh, &pod, INIT)?;
            let sidecar = Sidecar::start(mesh, &pod, PROXY)?;
            (pod, Some(sidecar), served)
        }
    };
    Ok((Member { sidecar, pod }, served))
}

fn backend(mesh: &Mesh, mode: Mode, ground: &Ground, place: &str) -> anyhow::Result<Backend> {
    let mut options = options("echo").label("place", place);
    place.clone_into(&mut options.name);
    let serve = |pod: &Pod| Servers::start(pod, place);
    let (member, servers) = capture(mesh, mode, ground, options, serve)?;
    Ok(Backend { servers, member })
}
