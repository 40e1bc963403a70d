//! `millrace-agent cleanup`: ends all capture on a node.
//!
//! The order keeps pods connected: rules and guards inside pods go first (through the broker, or
//! directly when none runs), then the programs with their pins, then state.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use millrace_runtime::handoff::{AgentAnswer, AgentRequest, PodSpec};

use crate::bpf::Bpf;
use crate::broker::netns::Namespace;
use crate::broker::{capture, chain, routes};
use crate::broker_client::BrokerClient;
use crate::config::Paths;
use crate::pods::PodSource as _;
use crate::pods::local::LocalSource;

/// Cleans the node; says what was removed.
///
/// # Errors
/// When something of ours stays.
pub async fn node(paths: &Paths, pods_dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    match BrokerClient::connect(&paths.broker_socket()).await {
        Ok((broker, _events)) => done.extend(release_all(&broker).await?),
        Err(_) => done.extend(clean_described(pods_dir)?),
    }
    if paths.bpffs_dir.exists() {
        Bpf::clean(&paths.bpffs_dir).context("removing the eBPF programs")?;
        done.push(format!(
            "eBPF programs pinned in {}",
            paths.bpffs_dir.display()
        ));
    }
    let state = paths.state_dir.join("agent.json");
    match fs::remove_file(&state) {
        Ok(()) => done.push(format!("state {}", state.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("removing {}", state.display())),
    }
    Ok(done)
}

/// Undoes `init` in the current network namespace.
///
/// # Errors
/// When rules stay.
pub fn here() -> anyhow::Result<Vec<String>> {
    capture::remove().context("removing the capture rules of this network namespace")?;
    routes::remove(routes::families());
    routes::remove_sidecar_source();
    Ok(vec!["rules of this network namespace".to_owned()])
}

async fn release_all(broker: &BrokerClient) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    loop {
        let list = AgentRequest::List { after: None };
        let AgentAnswer::Pods { pods, .. } = broker.call(list).await?.answer else {
            anyhow::bail!("the broker does not list its pods");
        };
        if pods.is_empty() {
            return Ok(done);
        }
        for pod in pods {
            broker
                .call(AgentRequest::Release {
                    uid: pod.uid.clone(),
                })
                .await
                .with_context(|| format!("releasing pod {}", pod.uid))?;
            done.push(format!("rules, routes and sockets of pod {}", pod.uid));
        }
    }
}

fn clean_described(pods_dir: &Path) -> anyhow::Result<Vec<String>> {
    if !pods_dir.exists() {
        return Ok(Vec::new());
    }
    let source = LocalSource::of_all_nodes(pods_dir)?;
    source.scan();
    let set = source.watch().borrow().clone();
    let mut done = Vec::new();
    for pod in set.pods.values() {
        match clean_pod(pod) {
            Ok(()) => done.push(format!("rules and routes of pod {}", pod.qualified_name())),
            Err(error) => {
                // A pod whose namespace is gone has nothing left to clean.
                tracing::warn!(pod = %pod.qualified_name(), %error, "pod not cleaned");
            }
        }
    }
    Ok(done)
}

fn clean_pod(pod: &PodSpec) -> Result<(), String> {
    let netns = Namespace::open(&pod.netns).map_err(|error| chain(&error))?;
    netns
        .run(|| {
            let removed = capture::remove();
            routes::remove(routes::families());
            removed
        })
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))
}
