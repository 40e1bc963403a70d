//! A Kubernetes control plane on the mesh's fabric: etcd, kube-apiserver and kube-controller-manager in a namespace
//! of their own, written to with kubectl.
//!
//! Input: YAML under a name, as a file of a directory would have it; output: exactly these objects in the API server.
//! No kubelet and no scheduler run: a pod's state is what the test says, and who backs a service the real controller
//! works out from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::assets;
use crate::cluster::{Cluster, FabricHost};
use crate::kubernetes::{Ports, Servers, documents};
use crate::node::Node;
use crate::spawn::Process;
use crate::wait::until;

/// How long a start may take on a machine that does much else.
const START: Duration = Duration::from_mins(1);
/// Who writes.
const FIELD_MANAGER: &str = "--field-manager=millrace-test";
const PORTS: Ports = Ports {
    secure: 6443,
    client: 2379,
    peer: 2380,
};
const PROGRAMS: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];
/// Pilot's own account, as the manifest of its rights names it.
const PILOT: [&str; 3] = ["millrace-pilot", "--namespace", "millrace-system"];

/// What tells one object from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ObjectId {
    version: String,
    kind: String,
    namespace: String,
    name: String,
}

/// A control plane that runs.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: who asks ends before who answers.
    processes: Vec<Process>,
    servers: Servers,
    host: FabricHost,
    dir: PathBuf,
    /// What was applied under each name.
    applied: Mutex<BTreeMap<String, Vec<ObjectId>>>,
}

impl ControlPlane {
    /// Starts the servers and installs Millrace's manifests from `deploy`.
    pub(super) fn start(cluster: &Cluster, deploy: &Path) -> anyhow::Result<Self> {
        let assets = assets::find().context("no etcd and kube-apiserver")?;
        for program in PROGRAMS {
            let there = assets.join(program).is_file();
            ensure!(there, "{} holds no {program}", assets.display());
        }
        let host = cluster.host("kubernetes")?;
        let dir = cluster.id().state_dir().join("kubernetes/control-plane");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let servers = Servers::prepare(&dir, assets, host.ip(), PORTS)?;
        let mut this = Self {
            processes: Vec::new(),
            servers,
            host,
            dir,
            applied: Mutex::default(),
        };
        let etcd = this.host.spawn("etcd", this.servers.etcd())?;
        let apiserver = this
            .host
            .spawn("kube-apiserver", this.servers.apiserver())?;
        this.processes = vec![apiserver, etcd];
        let ready = until(START, || {
            this.processes
                .iter_mut()
                .try_for_each(Process::ensure_running)?;
            this.kubectl(&["get", "--raw", "/readyz"])
        });
        ready.context("waiting for kube-apiserver")?;
        let controllers = this.servers.controllers();
        let controllers = this.host.spawn("kube-controller-manager", controllers)?;
        this.processes.insert(0, controllers);
        this.install(deploy).context("installing the manifests")?;
        Ok(this)
    }

    fn install(&self, deploy: &Path) -> anyhow::Result<()> {
        // Not the webhook's: pilot runs outside of this cluster, and no Service would lead to it.
        for manifests in ["crds", "kubernetes/pilot-rbac.yaml"] {
            let dir = deploy.join(manifests);
            self.kubectl(&["apply", "--server-side", "-f", &dir.display().to_string()])?;
        }
        let limit = format!("--timeout={}s", START.as_secs());
        let established = [
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            &limit,
        ];
        self.kubectl(&established).map(drop)
    }

    /// A kubeconfig with the rights that pilot's own manifest gives it, and no others.
    pub(super) fn pilot(&self) -> anyhow::Result<PathBuf> {
        let token = self.kubectl(&[&["create", "token"], &PILOT[..]].concat())?;
        self.servers
            .write_kubeconfig("pilot", token.trim(), self.servers.at())
    }

    /// What the API server calls itself.
    pub fn version(&self) -> anyhow::Result<String> {
        let printed = self.kubectl(&["get", "--raw", "/version"])?;
        let version: Value = serde_json::from_str(&printed).context("reading the version")?;
        let version = version["gitVersion"].as_str();
        Ok(version.context("the API server has no version")?.to_owned())
    }

    /// Runs kubectl as somebody who may do everything, and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.servers.program("kubectl");
        command.arg("--kubeconfig").arg(self.servers.admin());
        command.args(arguments);
        self.host.stdout(command)
    }

    /// The command line of such a kubectl, for a person.
    pub fn kubectl_line(&self) -> String {
        let program = self.servers.program("kubectl");
        format!(
            "nsenter --target {} --net {} --kubeconfig {}",
            self.host.sandbox_pid(),
            program.get_program().to_string_lossy(),
            self.servers.admin().display()
        )
    }

    /// Makes the objects of `yaml` be there, and those that were applied under this name before and are not in it go.
    pub(super) fn apply(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        let mut applied = self.applied.lock();
        let objects = documents(yaml).with_context(|| format!("reading {name}"))?;
        let ids: Vec<ObjectId> = objects.iter().map(ObjectId::of).collect::<Result<_, _>>()?;
        let (specs, statuses): (Vec<Value>, Vec<Option<Value>>) =
            objects.into_iter().map(without_status).unzip();
        self.apply_list(name, &specs, &[])?;
        let statuses: Vec<Value> = statuses.into_iter().flatten().collect();
        if !statuses.is_empty() {
            self.apply_list(name, &statuses, &["--subresource=status"])?;
        }
        let before = applied.insert(name.to_owned(), ids.clone());
        let gone = before.into_iter().flatten().filter(|id| !ids.contains(id));
        self.delete(name, gone)
    }

    /// Makes what was applied under a name go.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let ids = self.applied.lock().remove(name);
        let ids = ids.with_context(|| format!("nothing was applied as {name}"))?;
        self.delete(name, ids.into_iter())
    }

    /// Makes the node known, as its kubelet would.
    pub(super) fn register(&self, node: &Node) -> anyhow::Result<()> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name()},
            "status": {
                // Server-side apply takes one address of a type.
                "addresses": [{"type": "InternalIP", "address": node.ip()}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        self.apply(&format!("node-{}", node.name()), &object.to_string())
    }

    fn apply_list(&self, name: &str, items: &[Value], more: &[&str]) -> anyhow::Result<()> {
        let file = self.write(name, items)?;
        let file = file.display().to_string();
        let arguments = [
            "apply",
            "--server-side",
            "--force-conflicts",
            FIELD_MANAGER,
            "-f",
            &file,
        ];
        self.kubectl(&[&arguments[..], more].concat())
            .map(drop)
            .with_context(|| format!("applying {name}"))
    }

    fn delete(&self, name: &str, ids: impl Iterator<Item = ObjectId>) -> anyhow::Result<()> {
        let items: Vec<Value> = ids.map(|id| id.reference()).collect();
        if items.is_empty() {
            return Ok(());
        }
        let file = self.write(name, &items)?;
        let file = file.display().to_string();
        // No kubelet would say that a pod has ended.
        let arguments = [
            "delete",
            "--ignore-not-found",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ];
        self.kubectl(&[&arguments[..], &["-f", &file]].concat())
            .map(drop)
            .with_context(|| format!("deleting {name}"))
    }

    fn write(&self, name: &str, items: &[Value]) -> anyhow::Result<PathBuf> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let path = self.dir.join(format!("{name}.json"));
        fs::write(&path, list.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl ObjectId {
    fn of(object: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        Ok(Self {
            version: text(&object["apiVersion"]).context("an object without apiVersion")?,
            kind: text(&object["kind"]).context("an object without kind")?,
            namespace: text(&metadata["namespace"]).unwrap_or_default(),
            name: text(&metadata["name"]).context("an object without a name")?,
        })
    }

    /// As much of the object as names it.
    fn reference(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if !self.namespace.is_empty() {
            metadata["namespace"] = json!(self.namespace);
        }
        json!({"apiVersion": self.version, "kind": self.kind, "metadata": metadata})
    }
}

/// What may be written to an object, and what to its status; its uid the server chooses.
fn without_status(mut object: Value) -> (Value, Option<Value>) {
    let status = object
        .as_object_mut()
        .and_then(|object| object.remove("status"));
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    let status = status.and_then(|status| {
        let mut reference = ObjectId::of(&object).ok()?.reference();
        reference["status"] = status;
        Some(reference)
    });
    (object, status)
}
