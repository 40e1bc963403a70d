//! Pilot in a namespace of its own, with the directory of YAML that it watches.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;

use crate::cluster::{Cluster, FabricHost};
use crate::http::Response;
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
    config: PathBuf,
    mesh_config: PathBuf,
}

impl Pilot {
    pub(super) fn start(cluster: &Cluster, mesh_config: &str) -> anyhow::Result<Self> {
        let host = cluster.host("pilot")?;
        let dir = cluster.id().state_dir().join("pilot");
        let config = dir.join("config");
        fs::create_dir_all(&config).with_context(|| format!("creating {}", config.display()))?;
        let settings = dir.join("mesh.yaml");
        fs::write(&settings, mesh_config)
            .with_context(|| format!("writing {}", settings.display()))?;
        let pilot = Self {
            process: Mutex::new(None),
            host,
            program: cluster.binary("millrace-pilot")?,
            config,
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
            .arg("--config-dir")
            .arg(&self.config)
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

    /// The directory that pilot watches.
    pub fn config_dir(&self) -> &Path {
        &self.config
    }

    /// Puts a file of YAML into the watched directory, or replaces it, in one step.
    pub fn apply(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        let path = self.config.join(name);
        let nascent = self.config.join(format!(".{name}.new"));
        fs::write(&nascent, yaml).with_context(|| format!("writing {}", nascent.display()))?;
        fs::rename(&nascent, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// Takes a file out of the watched directory.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.config.join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
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
