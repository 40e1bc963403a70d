//! A sidecar: the rules of `millrace-agent init` in a pod's network namespace, and a proxy of the pod's
//! own there, which pilot serves as `sidecar~…`. The pod's node needs no process of ours.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};
use parking_lot::Mutex;

use super::{Mesh, MeshPod};
use crate::http::Response;
use crate::spawn::Process;
use crate::wait::until;

/// The user whose connections the rules leave alone.
const UID: u32 = 1337;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const START: Duration = Duration::from_secs(30);

/// The proxy of one pod; it ends when this is dropped, the rules stay.
#[derive(Debug)]
pub struct Sidecar {
    proxy: Mutex<Process>,
}

impl Sidecar {
    /// Writes the rules of `millrace-agent init` into the pod's namespace, as its init container. From
    /// here on the pod's connections are refused until [`Sidecar::start`].
    pub fn capture(mesh: &Mesh, pod: &MeshPod, arguments: &[&str]) -> anyhow::Result<()> {
        let mut init = Command::new(mesh.cluster().binary("millrace-agent")?);
        init.arg("init").args(arguments);
        pod.stdout(init)
            .with_context(|| format!("capturing {}", pod.name()))
            .map(drop)
    }

    /// Starts the proxy in the pod and waits until it is ready.
    pub fn start(mesh: &Mesh, pod: &MeshPod, arguments: &[&str]) -> anyhow::Result<Self> {
        let dir = state_dir(mesh, pod)?;
        let mut command = Command::new(mesh.cluster().binary("millrace-proxy")?);
        command
            .arg("--sidecar")
            .args(["--xds-addr", &mesh.pilot().xds_url()])
            .args(["--pod-name", pod.name()])
            .args(["--pod-namespace", &pod.options().namespace])
            .args(["--node-ip", &pod.ip().to_string()])
            .arg("--state-dir")
            .arg(&dir)
            .arg("--run-dir")
            .arg(&dir)
            .args(arguments);
        let proxy = pod.launch("sidecar", command)?.uid(UID).spawn()?;
        let sidecar = Self {
            proxy: Mutex::new(proxy),
        };
        until(START, || {
            sidecar.proxy.lock().ensure_running()?;
            let ready = sidecar.admin(pod, "/ready")?;
            ensure!(ready.status == 200, "{}", ready.text().trim());
            anyhow::Ok(())
        })
        .with_context(|| format!("the sidecar of {}:\n{}", pod.name(), sidecar.log()))?;
        Ok(sidecar)
    }

    /// Gets a page of the admin port, from inside the pod that the sidecar is in.
    pub fn admin(&self, pod: &MeshPod, path: &str) -> anyhow::Result<Response> {
        pod.get(ADMIN, "admin", path)
    }

    /// The proxy's process.
    pub fn pid(&self) -> u32 {
        self.proxy.lock().pid()
    }

    /// Sends a signal to the proxy.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.proxy.lock().signal(signal)
    }

    /// The proxy's exit status, when it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.proxy.lock().exited()
    }

    /// What the proxy printed so far.
    pub fn log(&self) -> String {
        self.proxy.lock().log()
    }
}

/// A directory that the proxy's user may write to.
fn state_dir(mesh: &Mesh, pod: &MeshPod) -> anyhow::Result<PathBuf> {
    let dir = mesh
        .cluster()
        .id()
        .state_dir()
        .join("sidecars")
        .join(pod.uid());
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    chown(&dir, Some(Uid::from_raw(UID)), Some(Gid::from_raw(UID)))
        .with_context(|| format!("giving {} to the proxy", dir.display()))?;
    Ok(dir)
}
