//! Millrace itself in a cluster: pilot on the fabric; agent, broker and proxy on every node; pods that
//! both are told of. Or, in place of all that is on a node, a sidecar in each pod.

mod epochs;
mod kubernetes;
mod node;
mod pilot;
mod registry;
mod sidecar;

use std::path::Path;
use std::sync::Arc;

pub use epochs::Epochs;
pub use kubernetes::ControlPlane;
pub use node::{MeshNode, MeshPod, Role};
pub use pilot::Pilot;
pub use sidecar::Sidecar;

use crate::cluster::Cluster;
use crate::node::Node;
use crate::pod::{Pod, PodOptions};

/// The label by which a pod opts in to the node's proxy.
pub const DATAPLANE_MODE: (&str, &str) = ("millrace.io/dataplane-mode", "node");

/// Settings of a mesh unless others are given: access logs in JSON among the proxy's own lines.
pub const MESH_CONFIG: &str = "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\n";

/// A cluster with a pilot.
#[derive(Clone, Debug)]
pub struct Mesh {
    cluster: Cluster,
    pilot: Arc<Pilot>,
}

impl Mesh {
    /// Starts pilot in the cluster, with nothing configured.
    pub fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_with(cluster, MESH_CONFIG)
    }

    /// As [`Mesh::start`], with a file of Istio's `MeshConfig`.
    pub fn start_with(cluster: &Cluster, mesh_config: &str) -> anyhow::Result<Self> {
        let pilot = Pilot::start(cluster, mesh_config)?;
        Ok(Self::around(cluster, pilot))
    }

    /// As [`Mesh::start_with`], with a Kubernetes control plane for pilot to read, which has the manifests below
    /// `deploy` installed.
    pub fn start_on_kubernetes(
        cluster: &Cluster,
        mesh_config: &str,
        deploy: &Path,
    ) -> anyhow::Result<Self> {
        let pilot = Pilot::start_on_kubernetes(cluster, mesh_config, deploy)?;
        Ok(Self::around(cluster, pilot))
    }

    fn around(cluster: &Cluster, pilot: Pilot) -> Self {
        Self {
            cluster: cluster.clone(),
            pilot: Arc::new(pilot),
        }
    }

    /// The cluster that the mesh is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The control plane.
    pub fn pilot(&self) -> &Pilot {
        &self.pilot
    }

    /// Adds a node with agent, broker and proxy, and waits until they are ready.
    pub fn node(&self, name: &str) -> anyhow::Result<MeshNode> {
        self.node_with(name, &[])
    }

    /// As [`Mesh::node`], with more arguments for `millrace-agent node`.
    pub fn node_with(&self, name: &str, arguments: &[&str]) -> anyhow::Result<MeshNode> {
        self.node_through(name, &[], arguments)
    }

    /// Makes a pod on a node that need not have any process of ours, and tells pilot of it after `serve`,
    /// whose value is returned with it. It is captured by nobody until a [`Sidecar`] is put into it.
    pub fn pod<T>(
        &self,
        node: &Node,
        options: PodOptions,
        serve: impl FnOnce(&Pod) -> anyhow::Result<T>,
    ) -> anyhow::Result<(MeshPod, T)> {
        let pod = node.pod_with(options)?;
        let served = serve(&pod)?;
        Ok((MeshPod::make(self, node, pod)?, served))
    }

    /// As [`Mesh::node_with`], with the launcher started by another program: `wrapper` and its
    /// arguments, to which the launcher's command line is appended. It must `exec` that.
    pub fn node_through(
        &self,
        name: &str,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<MeshNode> {
        MeshNode::start(self, name, wrapper, arguments)
    }
}
