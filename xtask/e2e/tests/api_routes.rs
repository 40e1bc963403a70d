//! Routes of the Gateway API that belong to services, and what a Sidecar lets pods call, at a real proxy.

use std::time::Duration;

use anyhow::ensure;
use millrace_e2e::{Backend, Service};
use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, PodOptions, require, until};

const PORT: u16 = 9080;
const SOON: Duration = Duration::from_secs(15);

/// A service and two others behind it, each with one pod, and a client.
struct Shop {
    client: MeshPod,
    front: Service,
    _backends: Vec<Backend>,
    _node: MeshNode,
    mesh: Mesh,
}

impl Shop {
    fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let node = mesh.node("n1")?;
        let mut backends = Vec::new();
        let mut front = None;
        for (number, name) in [(1, "front"), (2, "old"), (3, "new")] {
            let service = Service::new(name, number).port("http", PORT);
            service.apply(&mesh)?;
            backends.push(service.backend(&node, "v1", "ebpf")?);
            front.get_or_insert(service);
        }
        let client = node.pod(PodOptions::named("client"))?;
        let front = front.ok_or_else(|| anyhow::anyhow!("no service"))?;
        Ok(Self {
            client,
            front,
            _backends: backends,
            _node: node,
            mesh,
        })
    }

    fn ask(&self, path: &str) -> anyhow::Result<Response> {
        Client::connect(&self.client, self.front.at(PORT))?.send(&Request::get("front:9080", path))
    }

    /// Waits until requests for a path are answered like this, by a server or with a status.
    fn answered(&self, path: &str, wanted: &str) -> anyhow::Result<()> {
        until(SOON, || {
            let answer = self.ask(path)?;
            let status = answer.status.to_string();
            let from = answer.headers.first("x-server").unwrap_or(&status);
            ensure!(from == wanted, "{path}: {from}");
            anyhow::Ok(())
        })
    }
}

#[test]
fn an_http_route_splits_and_prefers_what_is_more_specific() -> anyhow::Result<()> {
    require!(cluster);
    let shop = Shop::start()?;
    shop.answered("/", "front-v1")?;
    shop.mesh.pilot().apply(
        "route.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: front, port: 9080}]
  rules:
  - backendRefs: [{name: old, port: 9080, weight: 3}, {name: new, port: 9080, weight: 1}]
  - matches: [{path: {value: /new}}]
    backendRefs: [{name: new, port: 9080}]
  - matches: [{path: {type: Exact, value: /new/gone}}]
    backendRefs: [{name: nobody, port: 9080}]
  - matches: [{path: {value: /far}}]
    backendRefs: [{name: far, namespace: other, port: 9080}]
",
    )?;
    // A prefix is of whole segments, an exact path goes before it, and what nobody serves is 500.
    shop.answered("/new/thing", "new-v1")?;
    shop.answered("/new/gone", "500")?;
    shop.answered("/far", "500")?;
    let mut new = 0;
    let mut client = Client::connect(&shop.client, shop.front.at(PORT))?;
    for _ in 0..400 {
        let answer = client.send(&Request::get("front:9080", "/newer"))?;
        match answer.headers.first("x-server") {
            Some("new-v1") => new += 1,
            Some("old-v1") => {}
            other => anyhow::bail!("{}: {other:?}", answer.status),
        }
    }
    // A quarter of 400 is 100; four standard deviations are 35.
    assert!((65..=135).contains(&new), "{new}");
    Ok(())
}

#[test]
fn a_sidecar_takes_away_what_it_does_not_name() -> anyhow::Result<()> {
    require!(cluster);
    let shop = Shop::start()?;
    shop.answered("/", "front-v1")?;
    let sidecar = |hosts: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: default}}\nspec:\n  \
             outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}\n  egress: [{{hosts: [{hosts}]}}]\n"
        )
    };
    let others = "./old.default.svc.cluster.local";
    shop.mesh.pilot().apply("sidecar.yaml", &sidecar(others))?;
    shop.answered("/", "502")?;
    let all = format!("{others}, ./front.default.svc.cluster.local");
    shop.mesh.pilot().apply("sidecar.yaml", &sidecar(&all))?;
    shop.answered("/", "front-v1")
}
