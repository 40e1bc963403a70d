//! Where eBPF does not work, pods are captured by iptables, and the agent says why.

use millrace_e2e::{CAPTURE, Service, observe_soon};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::{Cluster, PodOptions, require};

const HTTP: u16 = 8080;
const TCP: u16 = 9000;

#[test]
fn without_a_bpffs_pods_are_captured_by_iptables() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    // No directory can be made there, so nothing can be pinned and the programs could not outlive
    // the agent.
    let nowhere = "/proc/no-bpffs";
    let node = mesh.node_with("n1", &["--bpffs-dir", nowhere])?;
    let service = Service::new("echo", 1)
        .port("http", HTTP)
        .port("tcp-echo", TCP);
    service.apply(&mesh)?;
    let _backend = service.backend(&node, "v1", "auto")?;
    let client = node.pod(PodOptions::named("client").annotation(CAPTURE, "ebpf"))?;

    let status = node.pod_status(&client)?;
    assert_eq!(status["capture"], "iptables", "{status}");
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("ebpf") && reason.len() > 20,
        "the reason is told: {status}"
    );
    let seen = observe_soon(&client, service.at(HTTP), "echo:8080", service.at(TCP))?;
    assert_eq!(
        (seen.server.as_str(), seen.source),
        ("echo-v1", client.ip())
    );
    Ok(())
}
