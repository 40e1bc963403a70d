//! Pilot in a namespace of its own, with the directory of YAML or the Kubernetes control plane that it watches.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;

use super::kubernetes::ControlPlane;
use super::registry::Registry;
use crate::cluster::{Cluster, FabricHost};
use crate::http::Response;
use crate::node::Node;
use crate::spawn::Process;
use crate::wait::until;

const XDS_PORT: u16 = 15010;
const HTTP_PORT: u16 = 15014;
const START: Duration = Duration::from_secs(20);

/// A pilot that can be killed and started again.
#[derive(Debug)]
pub struct Pilot {
    process: Mutex<Option<Process>>,
    host: FabricHost,
    program: PathBuf,
    registry: Registry,
    mesh_config: PathBuf,
}

impl Pilot {
    /// Starts it with a directory of YAML for a registry.
    pub(super) fn start(cluster: &Cluster, mesh_config: &str) -> anyhow::Result<Self> {
        let config = directory(cluster).join("config");
        fs::create_dir_all(&config).with_context(|| format!("creating {}", config.display()))?;
        Self::start_with(cluster, mesh_config, Registry::Directory(config))
    }

    /// Starts it with a Kubernetes control plane for a registry.
    pub(super) fn start_on_kubernetes(
        cluster: &Cluster,
        mesh_config: &str,
        deploy: &Path,
    ) -> anyhow::Result<Self> {
        let plane = Box::new(ControlPlane::start(cluster, deploy)?);
        let kubeconfig = plane.pilot()?;
        let registry = Registry::Kubernetes { plane, kubeconfig };
        Self::start_with(cluster, mesh_config, registry)
    }

    fn start_with(
        cluster: &Cluster,
        mesh_config: &str,
        registry: Registry,
    ) -> anyhow::Result<Self> {
        let host = cluster.host("pilot")?;
        let dir = directory(cluster);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let settings = dir.join("mesh.yaml");
        fs::write(&settings, mesh_config)
            .with_context(|| format!("writing {}", settings.display()))?;
        let pilot = Self {
            process: Mutex::new(None),
            host,
            program: cluster.binary("millrace-pilot")?,
            registry,
            mesh_config: settings,
        };
        pilot.resume()?;
        Ok(pilot)
    }

    /// Starts the process, if none runs, and waits until it serves.
    pub fn resume(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock();
        if process
            .as_mut()
            .is_some_and(|process| process.exited().is_none())
        {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        command
            .args(self.registry.arguments())
            .arg("--mesh-config")
            .arg(&self.mesh_config)
            .args(["--xds-addr", &self.at(XDS_PORT).to_string()])
            .args(["--http-addr", &self.at(HTTP_PORT).to_string()]);
        let process = process.insert(self.host.spawn("pilot", command)?);
        until(START, || {
            process.ensure_running()?;
            self.host.connect(self.at(XDS_PORT)).map(drop)
        })
        .context("waiting for pilot")
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&self) -> anyhow::Result<()> {
        // Dropping a process kills it and waits.
        drop(self.process.lock().take());
        Ok(())
    }

    /// The process's id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Process::pid)
    }

    /// Where xDS is served.
    pub fn xds_url(&self) -> String {
        format!("http://{}", self.at(XDS_PORT))
    }

    /// Where metrics and debug pages are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.at(HTTP_PORT)
    }

    /// The directory that pilot watches, if it watches one.
    pub fn config_dir(&self) -> anyhow::Result<&Path> {
        match &self.registry {
            Registry::Directory(path) => Ok(path),
            Registry::Kubernetes { .. } => bail!("pilot reads a Kubernetes API server"),
        }
    }

    /// The control plane that pilot reads, if it reads one.
    pub fn control_plane(&self) -> Option<&ControlPlane> {
        match &self.registry {
            Registry::Directory(_) => None,
            Registry::Kubernetes { plane, .. } => Some(plane),
        }
    }

    /// Makes the objects of `yaml` be there, in the place of all that was applied under this name before: a file of
    /// the watched directory, replaced in one step, or objects of the API server.
    pub fn apply(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        self.registry.apply(name, yaml)
    }

    /// Takes away what was applied under a name.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.registry.remove(name)
    }

    /// Tells pilot's registry of a node.
    pub(super) fn register(&self, node: &Node) -> anyhow::Result<()> {
        self.registry.register(node)
    }

    /// Gets a page of pilot's debug server.
    pub fn debug(&self, path: &str) -> anyhow::Result<Response> {
        let response = self.host.get(self.at(HTTP_PORT), "pilot", path)?;
        ensure!(
            response.status == 200,
            "{path}: {}: {}",
            response.status,
            response.text()
        );
        Ok(response)
    }

    /// What the process printed so far.
    pub fn log(&self) -> String {
        self.process
            .lock()
            .as_ref()
            .map(Process::log)
            .unwrap_or_default()
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ip(), port)
    }
}

fn directory(cluster: &Cluster) -> PathBuf {
    cluster.id().state_dir().join("pilot")
}
