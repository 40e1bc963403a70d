//! A node with agent, broker and proxy, and pods that agent and pilot are told of.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{DATAPLANE_MODE, Mesh};
use crate::http::{Client, Request, Response};
use crate::node::Node;
use crate::pod::{Pod, PodOptions};
use crate::spawn::Process;
use crate::wait::until;

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const START: Duration = Duration::from_secs(30);
/// The proxy drains first, within the launcher's own limit of a minute.
const END: Duration = Duration::from_secs(75);
const CAPTURE: Duration = Duration::from_secs(20);

/// One of a node's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `millrace-agent node`, which starts the others.
    Launcher,
    /// `millrace-agent run`.
    Agent,
    /// `millrace-agent broker`.
    Broker,
    /// `millrace-proxy`.
    Proxy,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Launcher, Self::Agent, Self::Broker, Self::Proxy];

    fn matches(self, arguments: &[String]) -> bool {
        let program = arguments
            .first()
            .map_or("", |program| program.rsplit('/').next().unwrap_or(program));
        let command = arguments.get(1).map_or("", String::as_str);
        match self {
            Self::Launcher => (program, command) == ("millrace-agent", "node"),
            Self::Agent => (program, command) == ("millrace-agent", "run"),
            Self::Broker => (program, command) == ("millrace-agent", "broker"),
            Self::Proxy => program == "millrace-proxy",
        }
    }
}

/// A node of the mesh.
#[derive(Debug)]
pub struct MeshNode {
    launcher: Mutex<Option<Process>>,
    node: Node,
    mesh: Mesh,
    wrapper: Vec<String>,
    arguments: Vec<String>,
}

impl MeshNode {
    pub(super) fn start(
        mesh: &Mesh,
        name: &str,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let node = mesh.cluster.node(name)?;
        mesh.pilot.register(&node)?;
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (wrapper, arguments) = (owned(wrapper), owned(arguments));
        let node = Self {
            launcher: Mutex::new(None),
            node,
            mesh: mesh.clone(),
            wrapper,
            arguments,
        };
        node.resume()?;
        Ok(node)
    }

    /// Starts the node's processes, if they do not run, and waits until the proxy is ready.
    pub fn resume(&self) -> anyhow::Result<()> {
        let mut launcher = self.launcher.lock();
        if launcher
            .as_mut()
            .is_some_and(|launcher| launcher.exited().is_none())
        {
            return Ok(());
        }
        let launcher = launcher.insert(self.node.spawn("node", self.command()?)?);
        until(START, || {
            launcher.ensure_running()?;
            let ready = self.admin("/ready")?;
            ensure!(
                ready.status == 200,
                "the proxy is not ready: {}",
                ready.text().trim()
            );
            Ok(())
        })
        .with_context(|| {
            format!(
                "starting the node {}:\n{}",
                self.node.name(),
                launcher.log()
            )
        })
    }

    /// Ends the node's processes as an uninstall does; what they made stays.
    pub fn stop(&self) -> anyhow::Result<()> {
        match self.launcher.lock().as_mut() {
            Some(launcher) => launcher.stop(END).map(drop),
            None => Ok(()),
        }
    }

    fn command(&self) -> anyhow::Result<Command> {
        // The proxy runs as a user of its own, beside the agent that starts it.
        let cluster = &self.mesh.cluster;
        cluster.binary("millrace-proxy")?;
        let agent = cluster.binary("millrace-agent")?;
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(agent);
                command
            }
            None => Command::new(agent),
        };
        command.arg("node");
        let defaults = [
            ("--node-name", self.node.name().into()),
            ("--xds-addr", self.mesh.pilot.xds_url().into()),
            ("--run-dir", self.node.run_dir()),
            ("--state-dir", self.node.state_dir()),
            ("--pods-dir", self.node.pods_dir()),
            ("--bpffs-dir", self.node.bpffs_dir()),
            ("--cgroup", self.node.cgroup_root().into()),
        ];
        // An argument that is given replaces the usual one.
        let given = |flag: &str| self.arguments.iter().any(|argument| argument == flag);
        for (flag, value) in defaults.iter().filter(|(flag, _)| !given(flag)) {
            command.arg(flag).arg(value);
        }
        command
            .args(["--proxy-arg", &format!("--node-ip={}", self.node.ip())])
            .args(&self.arguments);
        Ok(command)
    }

    /// Makes a pod that opts in, tells agent and pilot of it, and waits until it is captured.
    pub fn pod(&self, options: PodOptions) -> anyhow::Result<MeshPod> {
        let (label, value) = DATAPLANE_MODE;
        let pod = self.announce(options.label(label, value))?;
        self.captured(&pod)?;
        Ok(pod)
    }

    /// As [`MeshNode::pod`], for a pod that is ready only when it serves: agent and pilot are told of
    /// it after `serve`, whose value is returned with it.
    pub fn serving_pod<T>(
        &self,
        options: PodOptions,
        serve: impl FnOnce(&Pod) -> anyhow::Result<T>,
    ) -> anyhow::Result<(MeshPod, T)> {
        let (label, value) = DATAPLANE_MODE;
        let (pod, served) = self.announce_serving(options.label(label, value), serve)?;
        self.captured(&pod)?;
        Ok((pod, served))
    }

    /// Makes a pod that agent and pilot are told of, as its options are.
    pub fn announce(&self, options: PodOptions) -> anyhow::Result<MeshPod> {
        let (pod, ()) = self.announce_serving(options, |_| Ok(()))?;
        Ok(pod)
    }

    fn announce_serving<T>(
        &self,
        options: PodOptions,
        serve: impl FnOnce(&Pod) -> anyhow::Result<T>,
    ) -> anyhow::Result<(MeshPod, T)> {
        let pod = self.node.pod_with(options)?;
        let served = serve(&pod)?;
        Ok((self.introduce(pod)?, served))
    }

    /// Tells agent and pilot of a pod of the node that is there already.
    pub fn introduce(&self, pod: Pod) -> anyhow::Result<MeshPod> {
        MeshPod::make(&self.mesh, &self.node, pod)
    }

    /// Waits until the agent says that the pod is captured, and returns how: `ebpf` or `iptables`.
    pub fn captured(&self, pod: &Pod) -> anyhow::Result<String> {
        until(CAPTURE, || {
            let status = self.pod_status(pod)?;
            match status["capture"].as_str() {
                Some(mode @ ("ebpf" | "iptables")) if status["healthy"] == true => {
                    Ok(mode.to_owned())
                }
                _ => bail!("{status}"),
            }
        })
        .with_context(|| format!("waiting for the capture of {}", pod.name()))
    }

    /// Asks the agent to capture a pod in another way (`ebpf`, `iptables`, `none`; `auto` takes the
    /// request back), and waits until it does.
    pub fn switch(&self, pod: &Pod, mode: &str) -> anyhow::Result<()> {
        let path = format!("/pods/{}/capture", pod.uid());
        let body = json!({ "mode": mode }).to_string();
        self.agent_request(&Request::new("PUT", "agent", &path).body(body))?;
        until(CAPTURE, || {
            let status = self.pod_status(pod)?;
            let there = status["capture"] == mode || mode == "auto";
            ensure!(there && status["healthy"] == true, "{status}");
            Ok(())
        })
        .with_context(|| format!("switching {} to {mode}", pod.name()))
    }

    /// What the agent says of a pod.
    pub fn pod_status(&self, pod: &Pod) -> anyhow::Result<Value> {
        let pods = self.agent("/pods")?.json()?;
        let pods = pods["pods"].as_array().or_else(|| pods.as_array());
        let pods = pods.context("the agent lists no pods")?;
        let status = pods.iter().find(|status| status["uid"] == pod.uid());
        status
            .cloned()
            .with_context(|| format!("the agent does not know {}", pod.name()))
    }

    /// Gets a page of the proxy's admin port.
    pub fn admin(&self, path: &str) -> anyhow::Result<Response> {
        self.node.get(ADMIN, "admin", path)
    }

    /// Sends a request to the proxy's admin port.
    pub fn admin_request(&self, method: &str, path: &str) -> anyhow::Result<Response> {
        Client::connect(&self.node, ADMIN)?.send(&Request::new(method, "admin", path))
    }

    /// Gets a page of the agent's API.
    pub fn agent(&self, path: &str) -> anyhow::Result<Response> {
        self.agent_request(&Request::get("agent", path))
    }

    /// Sends a request to the agent's API.
    pub fn agent_request(&self, request: &Request) -> anyhow::Result<Response> {
        let response = Client::unix(&self.node.run_dir().join("agent.sock"))?.send(request)?;
        let shown = || format!("{} {}: {}", request.method, request.path, response.text());
        ensure!(
            (200..300).contains(&response.status),
            "{}: {}",
            shown(),
            response.status
        );
        Ok(response)
    }

    /// The id of one of the node's processes, while it runs.
    pub fn pid(&self, role: Role) -> Option<u32> {
        self.node.cgroup().pids().into_iter().find(|pid| {
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments: Vec<String> = arguments.split('\0').map(str::to_owned).collect();
            role.matches(&arguments)
        })
    }

    /// The ids of all processes that are the mesh's on this node.
    pub fn pids(&self) -> Vec<u32> {
        Role::ALL
            .iter()
            .filter_map(|role| self.pid(*role))
            .collect()
    }

    /// Sends a signal to one of the node's processes and returns the id it had.
    pub fn signal(&self, role: Role, signal: Signal) -> anyhow::Result<u32> {
        let pid = self
            .pid(role)
            .with_context(|| format!("no {role:?} runs"))?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("sending {signal} to {role:?}"))?;
        Ok(pid)
    }

    /// What the node's processes printed so far.
    pub fn log(&self) -> String {
        self.launcher
            .lock()
            .as_ref()
            .map(Process::log)
            .unwrap_or_default()
    }

    /// The mesh that the node belongs to.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }
}

/// A mesh node is a node with processes.
impl Deref for MeshNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// A pod that agent and pilot know; dropping it takes it away from both and removes it.
#[derive(Debug)]
pub struct MeshPod {
    pod: Pod,
    description: PathBuf,
    manifest: String,
    mesh: Mesh,
}

impl MeshPod {
    pub(super) fn make(mesh: &Mesh, node: &Node, pod: Pod) -> anyhow::Result<Self> {
        let description = node.pods_dir().join(format!("{}.json", pod.uid()));
        let manifest = format!("pod-{}.yaml", pod.uid());
        let pod = Self {
            pod,
            description,
            manifest,
            mesh: mesh.clone(),
        };
        pod.tell()?;
        Ok(pod)
    }

    /// The mesh that the pod belongs to.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Tells the agent that the pod opts in now, as a label on a pod that runs already does.
    pub fn opt_in(&self) -> anyhow::Result<()> {
        let (label, value) = DATAPLANE_MODE;
        let mut description = self.pod.description();
        description["labels"][label] = json!(value);
        self.describe(&description)
    }

    /// Takes the pod away from pilot alone, as Kubernetes takes the endpoint of a pod that is being
    /// deleted away while the pod still runs.
    pub fn retire(&self) -> anyhow::Result<()> {
        self.mesh.pilot.remove(&self.manifest)
    }

    /// Tells pilot alone whether the pod is ready, as Kubernetes does after a probe.
    pub fn set_ready(&self, ready: bool) -> anyhow::Result<()> {
        let mut manifest = self.pod.manifest();
        manifest["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
        self.mesh.pilot.apply(&self.manifest, &manifest.to_string())
    }

    /// Tells the agent of another value of one of the pod's annotations.
    pub fn annotate(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let mut description = self.pod.description();
        description["annotations"][key] = json!(value);
        self.describe(&description)
    }

    /// Tells the agent of another value of one of the pod's labels.
    pub fn relabel(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let mut description = self.pod.description();
        description["labels"][key] = json!(value);
        self.describe(&description)
    }

    fn tell(&self) -> anyhow::Result<()> {
        self.mesh
            .pilot
            .apply(&self.manifest, &self.pod.manifest().to_string())?;
        self.describe(&self.pod.description())
    }

    fn describe(&self, description: &Value) -> anyhow::Result<()> {
        let nascent = self.description.with_extension("new");
        fs::write(&nascent, description.to_string())
            .with_context(|| format!("writing {}", nascent.display()))?;
        fs::rename(&nascent, &self.description)
            .with_context(|| format!("writing {}", self.description.display()))
    }
}

/// A mesh pod is a pod.
impl Deref for MeshPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl Drop for MeshPod {
    fn drop(&mut self) {
        // In the order of a deletion: endpoints first, then the pod. The run's directory may be gone.
        self.mesh.pilot.remove(&self.manifest).ok();
        fs::remove_file(&self.description).ok();
    }
}
