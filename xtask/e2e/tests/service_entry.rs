//! Hosts outside the cluster through the node's proxy: by the names that its DNS answers, over HTTP and as
//! bytes, found by DNS and by stated addresses, in shares that the endpoints state.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::mounts;
use millrace_testkit::http::{Client, Request, Server};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, FabricHost, PodOptions, echo, require, until};

const SOON: Duration = Duration::from_secs(15);
const HTTP: u16 = 8080;
const TCP: u16 = 3306;

/// A host outside the mesh with two servers of HTTP and one of bytes, and a client in a pod.
struct Outside {
    client: MeshPod,
    _node: MeshNode,
    _servers: Vec<Server>,
    host: FabricHost,
    mesh: Mesh,
}

impl Outside {
    /// `name` is what the node's resolver knows the host by.
    fn start(name: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let host = cluster.host("outside")?;
        let servers = vec![
            echo::http(host.listen((host.ip(), HTTP).into())?, "first")?,
            echo::http(host.listen((host.ip(), HTTP + 1).into())?, "second")?,
            echo::tcp(host.listen((host.ip(), TCP).into())?)?,
        ];
        let hosts = cluster.id().state_dir().join("hosts");
        std::fs::write(&hosts, format!("{} {name}\n", host.ip()))
            .with_context(|| format!("writing {}", hosts.display()))?;
        let wrapper = mounts::after(&format!("mount --bind {} /etc/hosts", hosts.display()));
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let node = mesh.node_through("n1", &wrapper, &[])?;
        let client = node.pod(PodOptions::named("client"))?;
        Ok(Self {
            client,
            _node: node,
            _servers: servers,
            host,
            mesh,
        })
    }

    fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        self.mesh.pilot().apply("entry.yaml", yaml)
    }

    /// The address that pilot gave a host.
    fn address_of(&self, host: &str) -> anyhow::Result<IpAddr> {
        until(SOON, || {
            let page = self.mesh.pilot().debug("/debug/registryz")?.json()?;
            let services = page["services"].as_array().context("no services")?;
            let service = services.iter().find(|service| service["host"] == host);
            let service = service.with_context(|| format!("{host} is not known: {page}"))?;
            let address = service["addresses"][0].as_str().context("no address")?;
            anyhow::Ok(address.parse()?)
        })
    }

    /// The server that answers a request at this address.
    fn server(&self, to: SocketAddr, host: &str) -> anyhow::Result<String> {
        let answer = Client::connect(&self.client, to)?.send(&Request::get(host, "/"))?;
        let from = answer.headers.first("x-server");
        from.map(str::to_owned)
            .with_context(|| format!("{}: {}", answer.status, answer.text()))
    }

    fn answered_by(&self, to: SocketAddr, host: &str, server: &str) -> anyhow::Result<()> {
        until(SOON, || {
            let from = self.server(to, host)?;
            ensure!(from == server, "{from} answers");
            anyhow::Ok(())
        })
    }
}

/// Nobody has the address that the host is given: what arrives was taken there by the proxy.
#[test]
fn a_host_that_dns_knows_is_reached_over_http_and_as_bytes() -> anyhow::Result<()> {
    require!(cluster);
    let outside = Outside::start("api.outside.test")?;
    outside.apply(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: default}
spec:
  hosts: [api.outside.test]
  resolution: DNS
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  - {number: 3306, name: mysql, protocol: MYSQL}
",
    )?;
    let address = outside.address_of("api.outside.test")?;
    outside.answered_by((address, 80).into(), "api.outside.test", "first")?;
    // HTTP is told by its host, wherever the client resolved it to.
    let elsewhere = "192.0.2.1:80".parse()?;
    outside.answered_by(elsewhere, "api.outside.test", "first")?;

    let echoed = until(SOON, || {
        let mut stream = outside.client.connect((address, TCP).into())?;
        stream.write_all(b"hello")?;
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes)?;
        anyhow::Ok(bytes)
    })?;
    assert_eq!(&echoed, b"hello");
    Ok(())
}

#[test]
fn endpoints_that_are_no_pods_share_requests_by_weight_and_follow_routes() -> anyhow::Result<()> {
    require!(cluster);
    let outside = Outside::start("unused.test")?;
    let ip = outside.host.ip();
    let entry = |name: &str, port: u16, weight: u32| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: default}}
spec: {{address: {ip}, ports: {{http: {port}}}, labels: {{app: vm, version: {name}}}, weight: {weight}}}
"
        )
    };
    let service = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: machines, namespace: default}
spec:
  hosts: [machines.test]
  addresses: [10.97.1.1]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: vm}}
  ports: [{number: 80, name: http, protocol: HTTP}]
";
    let both = entry("first", HTTP, 3) + &entry("second", HTTP + 1, 1);
    outside.apply(&format!("{service}{both}"))?;
    let to = "10.97.1.1:80".parse()?;
    outside.answered_by(to, "machines.test", "second")?;
    let mut first = 0;
    let mut client = Client::connect(&outside.client, to)?;
    for _ in 0..200 {
        let answer = client.send(&Request::get("machines.test", "/"))?;
        first += usize::from(answer.headers.first("x-server") == Some("first"));
    }
    // Three quarters of 200, give or take what a least-request choice may lean.
    assert!((110..=190).contains(&first), "{first}");

    let rules = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: machines, namespace: default}
spec:
  host: machines.test
  subsets: [{name: second, labels: {version: second}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: machines, namespace: default}
spec:
  hosts: [machines.test]
  http: [{route: [{destination: {host: machines.test, subset: second}}]}]
";
    outside.apply(&format!("{service}{both}{rules}"))?;
    until(SOON, || {
        for _ in 0..20 {
            let from = outside.server(to, "machines.test")?;
            ensure!(from == "second", "{from} answers: the rule has not arrived");
        }
        anyhow::Ok(())
    })
}
