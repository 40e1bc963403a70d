//! An Envoy in every pod.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use millrace_testkit::Process;
use millrace_testkit::mesh::MeshPod;
use serde_json::Value;

use crate::bookinfo::{Bookinfo, Envoy, UID, nothing_was_refused, pods};

/// A pod with its application and its Envoy, which go before it.
struct Member {
    envoy: Envoy,
    _app: Option<Process>,
    pod: MeshPod,
}

/// Bookinfo behind sidecars that speak this variant to pilot.
pub(crate) fn run(envoy: &Path, api_type: &str) -> anyhow::Result<()> {
    let bookinfo = Bookinfo::new(envoy)?;
    let node = bookinfo.mesh.cluster().node("bare")?;
    let mut members = Vec::new();
    for (name, arguments) in pods() {
        let (pod, app) = bookinfo.pod(&node, name, &arguments, |_| Ok(()))?;
        let id = format!(
            "sidecar~{}~{name}.default~default.svc.cluster.local",
            pod.ip()
        );
        let line = bookinfo.envoy(name, (&id, Value::Null), api_type)?;
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        let process = pod.launch("envoy", command)?.uid(UID).spawn()?;
        members.push(Member {
            envoy: Envoy::ready(process, &pod)?,
            _app: app,
            pod,
        });
    }
    let [.., product, client] = &members[..] else {
        anyhow::bail!("no pods");
    };
    bookinfo.judge(&client.pod, &product.pod)?;
    for member in &members {
        let name = member.pod.name();
        nothing_was_refused(name, &member.pod).with_context(|| member.envoy.log())?;
    }
    ensure!(members.len() == pods().len());
    Ok(())
}
