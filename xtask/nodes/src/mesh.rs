//! The mesh: which services, pods and nodes there are, and the YAML that says so.
//!
//! A hundred services to a namespace; a node has pods of ten namespaces. A mesh-wide `Sidecar` lets pods
//! call their own namespace and the shared one, as meshes of this size are run. Every tenth service is
//! split over two versions by a `VirtualService`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Services of a namespace.
const NAMESPACE: usize = 100;
/// Namespaces that a node has pods of.
const NODE_NAMESPACES: usize = 10;
/// One service in so many is split over two versions.
const SPLIT: usize = 10;
/// The namespace whose services everybody calls.
pub(crate) const SHARED: usize = 0;
/// Services that a client of the namespace `few` calls.
pub(crate) const FEW: usize = 50;
/// The port of every service.
const PORT: u16 = 80;

/// Sizes, from which everything else follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mesh {
    pub(crate) services: usize,
    /// Of each service.
    pub(crate) endpoints: usize,
    pub(crate) nodes: usize,
}

/// What changes while the mesh runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Version {
    /// An endpoint that is not ready.
    pub(crate) down: Option<usize>,
    /// How many of the pods, from the first, have been replaced once more than the others.
    pub(crate) replaced: usize,
    /// How often all pods were replaced before.
    pub(crate) round: usize,
}

impl Mesh {
    pub(crate) fn namespaces(&self) -> usize {
        self.services.div_ceil(NAMESPACE)
    }

    pub(crate) fn namespace_of(service: usize) -> usize {
        service / NAMESPACE
    }

    pub(crate) fn services_in(&self, namespace: usize) -> std::ops::Range<usize> {
        let first = namespace * NAMESPACE;
        first..(first + NAMESPACE).min(self.services)
    }

    fn node_namespaces(&self) -> usize {
        NODE_NAMESPACES.min(self.namespaces())
    }

    /// The namespaces that a node has pods of.
    pub(crate) fn namespaces_on(&self, node: usize) -> Vec<usize> {
        let count = self.node_namespaces();
        let all = (0..count).map(|at| (node * count + at) % self.namespaces());
        all.collect()
    }

    /// The nodes that have pods of a namespace.
    pub(crate) fn nodes_of(&self, namespace: usize) -> Vec<usize> {
        let has = |node: &usize| self.namespaces_on(*node).contains(&namespace);
        (0..self.nodes).filter(has).collect()
    }

    /// The nodes that are told of a service: where pods may call it.
    pub(crate) fn interested_in(&self, service: usize) -> Vec<usize> {
        match Self::namespace_of(service) {
            SHARED => (0..self.nodes).collect(),
            namespace => self.nodes_of(namespace),
        }
    }

    pub(crate) fn is_split(service: usize) -> bool {
        service.is_multiple_of(SPLIT)
    }

    /// The clusters that routes to a service lead to.
    pub(crate) fn clusters_of(service: usize) -> Vec<String> {
        let host = host(service);
        if Self::is_split(service) {
            let subset = |name: &str| format!("outbound|{PORT}|{name}|{host}");
            vec![subset("v1"), subset("v2")]
        } else {
            vec![format!("outbound|{PORT}||{host}")]
        }
    }

    /// The services that pods of a namespace may call.
    pub(crate) fn reached_from(&self, namespace: usize) -> Vec<usize> {
        let shared = self.services_in(SHARED);
        if namespace == SHARED {
            shared.collect()
        } else {
            shared.chain(self.services_in(namespace)).collect()
        }
    }

    /// The pods of a node, as `namespace/name`.
    pub(crate) fn pods_on(&self, node: usize) -> Vec<String> {
        let mut pods = Vec::new();
        for namespace in self.namespaces_on(node) {
            let hosts = self.nodes_of(namespace);
            for service in self.services_in(namespace) {
                for at in 0..self.endpoints {
                    if self.node_of(&hosts, service, at) == Some(node) {
                        pods.push(format!("n{namespace}/{}", pod_name(service, at, 0)));
                    }
                }
            }
        }
        pods
    }

    fn node_of(&self, hosts: &[usize], service: usize, at: usize) -> Option<usize> {
        let pod = service * self.endpoints + at;
        hosts.get(pod.checked_rem(hosts.len())?).copied()
    }

    /// Writes all of it into an empty directory.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let sidecars = sidecar("istio-system", &format!("./*, n{SHARED}/*"))
            + &sidecar("few", &few_hosts(self))
            + &sidecar("all", "*/*")
            + &caller("few")
            + &caller("all");
        put(directory, "mesh.yaml", &sidecars)?;
        for namespace in 0..self.namespaces() {
            let hosts = self.nodes_of(namespace);
            std::fs::create_dir_all(directory.join(format!("n{namespace}")))?;
            for service in self.services_in(namespace) {
                self.write_service(directory, service, &hosts, Version::default())?;
                if Self::is_split(service) {
                    write_rule(directory, service, 90)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a service with its pods and endpoints.
    pub(crate) fn write_service(
        &self,
        directory: &Path,
        service: usize,
        hosts: &[usize],
        version: Version,
    ) -> anyhow::Result<()> {
        let namespace = Self::namespace_of(service);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: n{namespace}}}\nspec:\n  \
             clusterIP: 172.20.{}.{}\n  selector: {{app: s{service}}}\n  ports: [{{name: http, port: {PORT}, targetPort: 8080}}]\n",
            service / 256,
            service % 256
        );
        let mut endpoints = String::new();
        for at in 0..self.endpoints {
            let round = version.round + usize::from(at < version.replaced);
            let pod = pod_name(service, at, round);
            let address = address(service * self.endpoints + at, round);
            let node = self.node_of(hosts, service, at);
            let node = node.map_or_else(|| "elsewhere".to_owned(), node_name);
            let ready = version.down != Some(at);
            write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: n{namespace}, \
                 labels: {{app: s{service}, version: v{}, pod-template-hash: 5d4f8c7b6}}}}\n\
                 spec: {{nodeName: {node}, serviceAccountName: s{service}, containers: [{{name: app, \
                 ports: [{{containerPort: 8080}}]}}]}}\n\
                 status: {{podIP: {address}, phase: Running, conditions: [{{type: Ready, status: '{}'}}]}}\n",
                at % 2 + 1,
                if ready { "True" } else { "False" },
            )?;
            writeln!(
                endpoints,
                "- {{addresses: [{address}], conditions: {{ready: {ready}}}, nodeName: {node}, \
                 targetRef: {{kind: Pod, name: {pod}, namespace: n{namespace}}}}}"
            )?;
        }
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: s{service}-x, namespace: n{namespace}, labels: {{kubernetes.io/service-name: s{service}}}}}\n\
             ports: [{{name: http, port: 8080}}]\nendpoints:\n{endpoints}",
        )?;
        put(directory, &format!("n{namespace}/s{service}.yaml"), &text)
    }
}

/// Lets the proxy answer for a service that is split itself, with this text.
pub(crate) fn write_answer(directory: &Path, service: usize, answer: &str) -> anyhow::Result<()> {
    let route = format!("directResponse: {{status: 200, body: {{string: {answer}}}}}");
    write_route(directory, service, &route)
}

/// Writes the rules of a service that is split; `weight` is the first version's.
pub(crate) fn write_rule(directory: &Path, service: usize, weight: u8) -> anyhow::Result<()> {
    let other = 100 - weight;
    let route = format!(
        "timeout: 5s\n    route:\n    - {{destination: {{host: s{service}, subset: v1}}, weight: {weight}}}\n    \
         - {{destination: {{host: s{service}, subset: v2}}, weight: {other}}}"
    );
    write_route(directory, service, &route)
}

fn write_route(directory: &Path, service: usize, route: &str) -> anyhow::Result<()> {
    let namespace = Mesh::namespace_of(service);
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: s{service}, namespace: n{namespace}}}\nspec:\n  host: s{service}\n  \
         subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: s{service}, namespace: n{namespace}}}\nspec:\n  hosts: [s{service}]\n  http:\n  \
         - {route}\n"
    );
    let file = format!("n{namespace}/s{service}-rules.yaml");
    put(directory, &file, &text)
}

/// Puts a file in its place in one step.
fn put(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    let file = path.file_name().context("a file without a name")?;
    let beside = path.with_file_name(format!(".{}", file.to_string_lossy()));
    std::fs::write(&beside, text).with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, &path).with_context(|| format!("writing {}", path.display()))
}

fn sidecar(namespace: &str, hosts: &str) -> String {
    let hosts: Vec<String> = hosts
        .split(", ")
        .map(|host| format!("\"{host}\""))
        .collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: {namespace}}}\n\
         spec: {{egress: [{{hosts: [{}]}}]}}\n",
        hosts.join(", ")
    )
}

/// A pod that calls and is not called.
fn caller(namespace: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: caller, namespace: {namespace}}}\n\
         spec: {{nodeName: of-{namespace}, containers: [{{name: app}}]}}\n\
         status: {{podIP: 10.255.0.{}, phase: Running}}\n",
        if namespace == "few" { 1 } else { 2 }
    )
}

/// Fifty services, evenly out of all.
pub(crate) fn few(mesh: &Mesh) -> Vec<usize> {
    let count = FEW.min(mesh.services);
    (0..count).map(|at| at * mesh.services / count).collect()
}

fn few_hosts(mesh: &Mesh) -> String {
    let hosts = few(mesh)
        .into_iter()
        .map(|service| format!("n{}/{}", Mesh::namespace_of(service), host(service)));
    hosts.collect::<Vec<_>>().join(", ")
}

pub(crate) fn node_name(node: usize) -> String {
    format!("node-{node}")
}

fn pod_name(service: usize, at: usize, round: usize) -> String {
    format!("s{service}-5d4f8c7b6-{round}x{at}")
}

pub(crate) fn host(service: usize) -> String {
    format!(
        "s{service}.n{}.svc.cluster.local",
        Mesh::namespace_of(service)
    )
}

/// A pod's address: another each time that it is replaced.
fn address(pod: usize, round: usize) -> String {
    format!(
        "10.{}.{}.{}",
        (round % 64) * 2 + pod / 65536,
        pod / 256 % 256,
        pod % 256
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Mesh = Mesh {
        services: 250,
        endpoints: 4,
        nodes: 7,
    };

    #[test]
    fn every_pod_is_on_a_node_that_has_its_namespace() {
        let pods: usize = (0..SMALL.nodes).map(|node| SMALL.pods_on(node).len()).sum();
        assert_eq!(pods, SMALL.services * SMALL.endpoints);
        assert_eq!(SMALL.namespaces(), 3);
        assert_eq!(SMALL.interested_in(5).len(), SMALL.nodes);
    }

    #[test]
    fn addresses_are_unique_through_a_restart() {
        let pods = 0..100_000;
        let all = pods.flat_map(|pod| [address(pod, 0), address(pod, 1)]);
        let distinct: std::collections::HashSet<String> = all.collect();
        assert_eq!(distinct.len(), 200_000);
    }
}
