//! One Envoy for each node, which listens in its pods' network namespaces by path and connects from within them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::{Node, Process, until};
use serde_json::json;

use crate::bookinfo::{Bookinfo, Envoy, SOON, UID, counted, dumped, nothing_was_refused, pods};

/// What the Envoy may do besides what anybody may: enter network namespaces.
const CAPABILITY: &str = "+sys_admin";

/// A node with its Envoy and the directory in which that finds pods.
struct Worker {
    envoy: Envoy,
    pods: PathBuf,
    node: Node,
}

impl Worker {
    fn start(bookinfo: &Bookinfo, name: &str, api_type: &str) -> anyhow::Result<Self> {
        let node = bookinfo.mesh.cluster().node(name)?;
        let pods = bookinfo
            .mesh
            .cluster()
            .id()
            .state_dir()
            .join(format!("pods-{name}"));
        fs::create_dir(&pods).with_context(|| format!("creating {}", pods.display()))?;
        let id = format!("node~{}~{}~cluster.local", node.ip(), node.name());
        let metadata = json!({ "NODE_NAME": node.name(), "NETNS_DIR": pods });
        let line = bookinfo.envoy(name, (&id, metadata), api_type)?;
        let mut command = Command::new("setpriv");
        let uid = UID.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        command.args(["--inh-caps", CAPABILITY, "--ambient-caps", CAPABILITY]);
        command.args(&line);
        let process = node.spawn("envoy", command)?;
        Ok(Self {
            envoy: Envoy::ready(process, &node)?,
            pods,
            node,
        })
    }

    /// A pod, whose namespace has its name before anybody is told of the pod, as a CNI plugin can see to.
    fn pod(
        &self,
        bookinfo: &Bookinfo,
        name: &str,
        arguments: &[String],
    ) -> anyhow::Result<(MeshPod, Option<Process>)> {
        let link = self.pods.join(format!("default_{name}"));
        let (pod, app) = bookinfo.pod(&self.node, name, arguments, |pod| {
            symlink(pod.netns().path(), &link).context("naming a namespace")
        })?;
        until(SOON, || {
            let listeners = dumped(&self.node, "dynamic_listeners")?;
            for kind in ["outbound", "pod"] {
                let listener = format!("{kind}/default/{name}");
                ensure!(listeners.contains(&listener), "{listener} is not there");
            }
            let warming = counted(&self.node, "total_listeners_warming")?;
            ensure!(warming == 0, "{warming} listeners wait");
            Ok(())
        })
        .with_context(|| self.envoy.log())?;
        Ok((pod, app))
    }
}

/// Bookinfo on two nodes, each with an Envoy that speaks this variant to pilot.
pub(crate) fn run(envoy: &Path, api_type: &str) -> anyhow::Result<()> {
    let bookinfo = Bookinfo::new(envoy)?;
    let one = Worker::start(&bookinfo, "one", api_type)?;
    let two = Worker::start(&bookinfo, "two", api_type)?;
    let mut members = Vec::new();
    for (name, arguments) in pods() {
        // So that calls are made within a node and between them, both ways.
        let worker = match name {
            "ratings-v1" | "reviews-v3" => &two,
            _ => &one,
        };
        members.push(worker.pod(&bookinfo, name, &arguments)?);
    }
    let Some((client, _)) = members.last() else {
        anyhow::bail!("no pods");
    };
    bookinfo.judge(client, &one.node)?;
    for worker in [&one, &two] {
        let rated = counted(&worker.node, "cluster.outbound.*ratings.*upstream_rq_200")?;
        let name = worker.node.name();
        ensure!(rated > 0, "the Envoy of {name} saw no call to ratings");
    }
    calls_leave_their_pod(&members)?;
    for worker in [&one, &two] {
        let name = worker.node.name();
        nothing_was_refused(name, &worker.node).with_context(|| worker.envoy.log())?;
    }
    Ok(())
}

/// The Envoy's connection to a server is in the namespace of the client that it is for, where network policy sees it.
fn calls_leave_their_pod(members: &[(MeshPod, Option<Process>)]) -> anyhow::Result<()> {
    let pod = |name: &str| {
        let mut pods = members.iter().map(|(pod, _)| pod);
        pods.find(|pod| pod.name() == name).context("no such pod")
    };
    let mut list = Command::new("ss");
    list.args(["-Htn", "state", "established", "dport", "=", ":9080"]);
    let found = pod("productpage-v1")?.stdout(list)?;
    let server = pod("reviews-v1")?.at(9080).to_string();
    ensure!(
        found.contains(&server),
        "no connection to {server}: {found}"
    );
    Ok(())
}
