//! A node that cannot do everything: pods are captured by what works, or stay uncaptured, and in each
//! case the agent says why in words that help.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, Service, mounts, observe_soon};
use millrace_testkit::mesh::{DATAPLANE_MODE, Mesh, MeshNode};
use millrace_testkit::{Cluster, PodOptions, require, until};
use serde_json::Value;

const HTTP: u16 = 8080;
const TCP: u16 = 9000;
const SOON: Duration = Duration::from_secs(20);

/// Takes `CAP_BPF` (39) and `CAP_PERFMON` (38) away from the node's processes for good.
const WITHOUT_BPF: [&str; 2] = ["setpriv", "--bounding-set=-cap_39,-cap_38"];

/// A pod that asks for eBPF on such a node is captured by iptables, and told why by `reason`.
fn falls_back(wrapper: &[&str], arguments: &[&str], reason: &str) -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let node = mesh.node_through("n1", wrapper, arguments)?;
    let service = Service::new("echo", 1)
        .port("http", HTTP)
        .port("tcp-echo", TCP);
    service.apply(&mesh)?;
    let _backend = service.backend(&node, "v1", "auto")?;
    let client = node.pod(PodOptions::named("client").annotation(CAPTURE, "ebpf"))?;

    let status = node.pod_status(&client)?;
    eprintln!("{}", status["reason"]);
    assert_eq!(status["capture"], "iptables", "{status}");
    let told = status["reason"].as_str().unwrap_or_default();
    assert!(told.contains(reason), "not told {reason:?}: {told}");
    assert!(told.len() < 400, "a reason is a sentence: {told}");
    let node_status = node.agent("/status")?.json()?;
    assert_eq!(node_status["ebpf"]["available"], false, "{node_status}");

    let seen = observe_soon(&client, service.at(HTTP), "echo:8080", service.at(TCP))?;
    assert_eq!(seen.server, "echo-v1");
    let sources = [client.ip(), client.ip6()];
    assert!(sources.contains(&seen.source), "{seen:?}");
    Ok(())
}

/// What `GET /probe` of the node's agent says in one line.
fn summary(node: &MeshNode) -> anyhow::Result<String> {
    let probed = node.agent("/probe")?.json()?;
    Ok(probed["summary"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn without_the_right_to_use_ebpf_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "setpriv");
    falls_back(&WITHOUT_BPF, &[], "lacks CAP_BPF")
}

#[test]
fn under_a_seccomp_filter_without_bpf_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    let wrapper = [env!("CARGO_BIN_EXE_without-bpf")];
    falls_back(
        &wrapper,
        &[],
        "a seccomp filter or a security module forbids it",
    )
}

#[test]
fn without_btf_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    let wrapper = mounts::after("mount -t tmpfs none /sys/kernel/btf");
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    falls_back(&wrapper, &[], "no /sys/kernel/btf/vmlinux")
}

#[test]
fn without_cgroup2_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    let mount = millrace_testkit::cgroup2_mount().context("no cgroup2 is mounted")?;
    // The node's processes stay in their cgroups, which only cannot be seen any more.
    let wrapper = mounts::after(&format!("umount -l {}", mount.display()));
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    falls_back(&wrapper, &[], "no cgroup2 file system")
}

#[test]
fn with_a_cgroup_of_the_first_version_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let first = mounts.find_map(|fields| match fields[..] {
        [_, at, "cgroup", ..] => Some(at.to_owned()),
        _ => None,
    });
    // Where there is none, any other directory is as wrong.
    let first = first.unwrap_or_else(|| "/sys/fs".to_owned());
    falls_back(&[], &["--cgroup", &first], &first)
}

#[test]
fn with_neither_ebpf_nor_iptables_the_pod_is_told_why_it_is_not_captured() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "setpriv");
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    // Where distributions keep iptables and nft.
    let mut wrapper = mounts::after("mount -t tmpfs none /usr/sbin");
    wrapper.extend(WITHOUT_BPF.map(str::to_owned));
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let node = mesh.node_through("n1", &wrapper, &[])?;
    let (label, value) = DATAPLANE_MODE;
    let pod = node.announce(PodOptions::named("client").label(label, value))?;
    let status = until(SOON, || {
        let status = node.pod_status(&pod)?;
        ensure!(status["problem"].is_string(), "{status}");
        let problem = status["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("iptables"), "{status}");
        Ok(status)
    })
    .with_context(|| node.log())?;
    assert_eq!(status["capture"], "none", "{status}");
    assert_eq!(status["healthy"], false, "{status}");
    let says = |field: &str, word: &str| {
        let text = status[field].as_str().unwrap_or_default();
        assert!(
            text.contains(word),
            "{field} does not say {word:?}: {status}"
        );
    };
    says("reason", "lacks CAP_BPF");
    says("problem", "no working iptables-restore");
    says("problem", "not installed");

    let summary = summary(&node)?;
    eprintln!("{summary}");
    assert!(summary.starts_with("nothing can be captured"), "{summary}");
    assert!(
        summary.contains("CAP_BPF") && summary.contains("iptables"),
        "{summary}"
    );
    // The agent does not give up: it tries again, and the others of the node are not disturbed.
    assert_eq!(node.admin("/ready")?.status, 200);
    Ok(())
}

/// What `millrace-agent` with these arguments prints when a user without privileges starts it.
fn as_nobody(arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let mut command = Command::new(cluster.binary("millrace-agent")?);
    command.args(arguments);
    let output = node.launch("agent", command)?.uid(65534).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn whoever_is_not_root_is_told_what_is_lacking() -> anyhow::Result<()> {
    require!(cluster);
    for command in ["node", "broker"] {
        let (code, said) = as_nobody(&[command])?;
        eprintln!("{command}: {}", said.trim());
        assert_eq!(code, Some(1), "{command}: {said}");
        assert!(said.contains("lacks CAP_SYS_ADMIN"), "{command}: {said}");
        assert!(said.contains("root"), "{command}: {said}");
        assert_eq!(said.lines().count(), 1, "{command}: {said}");
    }
    let (code, said) = as_nobody(&["init"])?;
    eprintln!("init: {}", said.trim());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("you must be root"), "{said}");

    let (code, said) = as_nobody(&["probe"])?;
    assert_eq!(code, Some(0), "{said}");
    let probed: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let summary = probed["summary"].as_str().unwrap_or_default();
    eprintln!("probe: {summary}");
    assert!(summary.starts_with("nothing can be captured"), "{summary}");
    assert!(summary.contains("lacks CAP_BPF"), "{summary}");
    Ok(())
}
