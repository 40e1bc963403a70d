//! A sidecar: the rules of `millrace-agent init` in a pod's network namespace, and a proxy of the pod's
//! own there, which pilot serves as `sidecar~…`. The pod's node needs no process of ours.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};
use parking_lot::Mutex;

use serde_json::Value;

use super::{Epochs, Mesh, MeshPod};
use crate::http::Response;

/// The user whose connections the rules leave alone.
const UID: u32 = 1337;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// The proxy of one pod; it ends when this is dropped, the rules stay.
#[derive(Debug)]
pub struct Sidecar {
    proxy: Mutex<Epochs>,
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
        let dir = state_dir(mesh, pod)?.display().to_string();
        let (url, ip) = (mesh.pilot().xds_url(), pod.ip().to_string());
        let given = [
            ["--xds-addr", &url],
            ["--pod-name", pod.name()],
            ["--pod-namespace", &pod.options().namespace],
            ["--node-ip", &ip],
            ["--state-dir", &dir],
            ["--run-dir", &dir],
        ];
        let all = ["--sidecar"].into_iter().chain(given.into_iter().flatten());
        let all = all.chain(arguments.iter().copied()).map(str::to_owned);
        let program = mesh.cluster().binary("millrace-proxy")?;
        let proxy = Epochs::start(pod, "sidecar", program, all.collect())?;
        Ok(Self {
            proxy: Mutex::new(proxy),
        })
    }

    /// As [`Epochs::replace`].
    pub fn replace(&self, pod: &MeshPod) -> anyhow::Result<Value> {
        self.proxy.lock().replace(pod)
    }

    /// As [`Epochs::ended`].
    pub fn ended(&self) -> anyhow::Result<()> {
        self.proxy.lock().ended()
    }

    /// Gets a page of the admin port, from inside the pod that the sidecar is in.
    pub fn admin(&self, pod: &MeshPod, path: &str) -> anyhow::Result<Response> {
        pod.get(ADMIN, "admin", path)
    }

    /// The proxy's process.
    pub fn pid(&self) -> u32 {
        self.proxy.lock().newest().pid()
    }

    /// Sends a signal to the proxy.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.proxy.lock().newest().signal(signal)
    }

    /// The proxy's exit status, when it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.proxy.lock().newest().exited()
    }

    /// What the proxy printed so far.
    pub fn log(&self) -> String {
        self.proxy.lock().newest().log()
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
