//! A Kubernetes service, and pods with echo servers that it selects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use millrace_testkit::http::Server;
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Pod, PodOptions, echo};
use serde_json::json;

/// A service of the namespace `default`. Nobody has its addresses: a call to them arrives only if it
/// was captured.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    number: u8,
    ports: Vec<(String, u16)>,
}

impl Service {
    /// A service with cluster addresses made from `number`.
    pub fn new(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            number,
            ports: Vec::new(),
        }
    }

    /// With a port, whose name tells its protocol.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    /// The cluster IPv4 address.
    pub fn ip(&self) -> IpAddr {
        Ipv4Addr::new(10, 96, 7, self.number).into()
    }

    /// The cluster IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0x96, 7, 0, 0, 0, 0, self.number.into()).into()
    }

    /// The cluster IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// The service's full name.
    pub fn host(&self) -> String {
        format!("{}.default.svc.cluster.local", self.name)
    }

    /// Tells pilot of the service.
    pub fn apply(&self, mesh: &Mesh) -> anyhow::Result<()> {
        let ports = self.ports.iter();
        let ports =
            ports.map(|(name, port)| json!({ "name": name, "port": port, "targetPort": port }));
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "clusterIP": self.ip(),
                "clusterIPs": [self.ip(), self.ip6()],
                "ipFamilies": ["IPv4", "IPv6"],
                "selector": { "app": self.name },
                "ports": ports.collect::<Vec<_>>(),
            },
        });
        mesh.pilot().apply(
            &format!("service-{}.yaml", self.name),
            &manifest.to_string(),
        )
    }

    /// Starts a pod of this service in this version, captured as asked. Each port has an echo server
    /// that answers with the pod's name: HTTP, unless the port's name begins with `tcp`.
    pub fn backend(
        &self,
        node: &MeshNode,
        version: &str,
        capture: &str,
    ) -> anyhow::Result<Backend> {
        let name = format!("{}-{version}", self.name);
        let mut options = PodOptions::named(&name)
            .label("app", &self.name)
            .label("version", version)
            .annotation(crate::CAPTURE, capture);
        options.ports.clone_from(&self.ports);
        let (pod, servers) = node
            .serving_pod(options, |pod| self.serve(&name, pod))
            .with_context(|| format!("starting {name}"))?;
        Ok(Backend { servers, pod })
    }

    /// Starts the servers of a pod of this name.
    pub fn serve(&self, name: &str, pod: &Pod) -> anyhow::Result<Vec<Server>> {
        let servers = self.ports.iter().map(|(protocol, port)| {
            // Of both families, as most programs listen.
            let listener = pod.listen((Ipv6Addr::UNSPECIFIED, *port).into())?;
            if protocol.starts_with("tcp") {
                echo::tcp(listener)
            } else {
                echo::http(listener, name)
            }
        });
        servers.collect()
    }
}

/// A pod with its echo servers.
#[derive(Debug)]
pub struct Backend {
    /// The servers, in the order of the service's ports.
    pub servers: Vec<Server>,
    /// The pod.
    pub pod: MeshPod,
}
