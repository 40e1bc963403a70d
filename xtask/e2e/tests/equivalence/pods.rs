//! What a pod goes through besides its traffic: processes before and after it is captured, probes of its
//! kubelet, ports of its host, and its end.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::{Host, PodOptions, until};
use nix::sys::signal::Signal;

use crate::observation::Observation;
use crate::scene::{FAMILIES, PLACES, SOON, Scene};
use crate::server;

fn ask(from: &Host, to: SocketAddr) -> anyhow::Result<Seen> {
    // A host that no service has: the address decides.
    Seen::of(&from.get(to, "somebody", "/")?)
}

fn way(seen: &Seen) -> &'static str {
    if seen.header("x-request-id").is_some() {
        "through the proxy"
    } else {
        "straight"
    }
}

/// Checks of the kubelet, which connects from the host's own namespace.
pub(crate) fn probes(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let pod = &scene.near.member;
    for (family, ip) in [("v4", pod.ip()), ("v6", pod.ip6())] {
        let http = ask(scene.node(), SocketAddr::new(ip, server::HTTP));
        let http = http.map(|it| format!("{} as {}", way(&it), scene.who(it.remote.ip())));
        seen.see_result(format!("{family}: HTTP"), http);
        let open = scene.node().connect(SocketAddr::new(ip, server::ECHO));
        seen.see(
            format!("{family}: TCP, somebody listens"),
            succeeds(open.is_ok()),
        );
        let closed = scene
            .node()
            .connect(SocketAddr::new(ip, server::CLOSED_TCP));
        seen.see(
            format!("{family}: TCP, nobody listens"),
            succeeds(closed.is_ok()),
        );
    }
    Ok(seen)
}

fn succeeds(connected: bool) -> &'static str {
    if connected { "succeeds" } else { "fails" }
}

/// A port of the node that leads to the pod, as a network plugin's `portmap` does it.
pub(crate) fn host_ports(scene: &Scene) -> anyhow::Result<Observation> {
    const PORT: u16 = 8088;
    let mut seen = Observation::default();
    let (node, pod) = (scene.node(), &scene.near.member);
    for (tool, at, to) in [
        ("iptables", node.ip(), pod.ip()),
        ("ip6tables", node.ip6(), pod.ip6()),
    ] {
        for chain in ["PREROUTING", "OUTPUT"] {
            let to = SocketAddr::new(to, server::HTTP).to_string();
            let mut rule = Command::new(tool);
            rule.args(["-w", "-t", "nat", "-A", chain, "-p", "tcp"])
                .args(["-d", &at.to_string(), "--dport", &PORT.to_string()])
                .args(["-j", "DNAT", "--to-destination", &to]);
            node.stdout(rule)?;
        }
    }
    let clients: [(&str, &Host); 4] = [
        ("from outside", &scene.outside),
        ("from a pod of the node", &scene.client),
        ("from a pod of another node", &scene.far.member),
        ("from the node itself", node),
    ];
    for (who, client) in clients {
        for (family, ip) in [("v4", node.ip()), ("v6", node.ip6())] {
            let found = ask(client, SocketAddr::new(ip, PORT));
            let found = found.map(|it| {
                let (from, to) = (scene.who(it.remote.ip()), scene.whose(it.local));
                format!("{} as {from} to {to}, {}", it.server, way(&it))
            });
            seen.see_result(format!("{who} {family}"), found);
        }
    }
    Ok(seen)
}

/// Processes that run before the pod is captured, while that is done, and after.
pub(crate) fn init_containers(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let outside = |v6: bool| {
        let ip = if v6 {
            scene.outside.ip6()
        } else {
            scene.outside.ip()
        };
        SocketAddr::new(ip, server::HTTP)
    };
    let pod = scene.late(PodOptions::named("late").label("app", "late"))?;
    let own: [IpAddr; 2] = [pod.ip(), pod.ip6()];
    let called = |pod: &MeshPod, v6: bool| {
        let it = ask(pod, outside(v6))?;
        let whose = if own.contains(&it.remote.ip().to_canonical()) {
            "its own"
        } else {
            "another"
        };
        anyhow::Ok(format!("{} with {whose} address", way(&it)))
    };
    for (family, v6) in FAMILIES {
        seen.see_result(format!("before, {family}"), called(&pod, v6));
    }
    let mut failed = 0;
    let member = scene.capture(pod, |pod| failed += u32::from(called(pod, false).is_err()))?;
    seen.see(
        "meanwhile",
        if failed == 0 {
            "all answered"
        } else {
            "refused"
        },
    );
    for (family, v6) in FAMILIES {
        until(SOON, || {
            let how = called(&member, v6)?;
            ensure!(how.starts_with("through"), "{how}");
            anyhow::Ok(())
        })
        .ok();
        seen.see_result(format!("after, {family}"), called(&member, v6));
    }
    for place in PLACES {
        let to = scene.service(place, server::HTTP, false);
        let answer = Client::connect(&member, to)
            .and_then(|mut client| client.send(&Request::get(&format!("{place}:8080"), "/")));
        seen.see_result(
            format!("after, {place}"),
            answer.map(|answer| answer.status),
        );
    }
    Ok(seen)
}

/// A pod whose only process does its work in the mesh and ends: what is left of the pod, and what keeps it.
pub(crate) fn jobs(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let job = scene.member(PodOptions::named("job").label("app", "job"))?;
    let witness = Namespace::of(scene, &job)?;
    let to = scene.service("near", server::HTTP, false);
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} && printf 'GET / HTTP/1.1\\r\\nhost: near:8080\\r\\n\\r\\n' >&3 && head -n1 <&3",
        to.ip(),
        to.port()
    );
    let mut work = Command::new("bash");
    work.args(["-c", &script]);
    let said = job.stdout(work);
    seen.see_result("the work", said.map(|said| said.trim().to_owned()));
    let left: Vec<String> = processes(&job).into_iter().map(|(_, name)| name).collect();
    seen.see("processes left when it has ended", left.join(" "));
    if let Some(sidecar) = job.sidecar() {
        sidecar.signal(Signal::SIGTERM)?;
    }
    let alone = until(SOON, || {
        let left = processes(&job);
        ensure!(left.is_empty(), "{left:?}");
        anyhow::Ok(())
    });
    seen.see_result(
        "processes left when all were asked to end",
        alone.map(|()| "none"),
    );
    let uid = job.uid().to_owned();
    drop(job);
    seen.see_result(
        "the namespace of the removed pod",
        witness.gone().map(|()| "gone"),
    );
    let known = until(SOON, || {
        if let Some(node) = scene.mesh_node() {
            let pods = node.agent("/pods")?.text();
            ensure!(!pods.contains(&uid), "the agent has it");
            let dump = node.admin("/config_dump")?.text();
            ensure!(!dump.contains("pod/default/job"), "the proxy has it");
        }
        anyhow::Ok(())
    });
    seen.see_result("what the node knows of it", known.map(|()| "nothing"));
    Ok(seen)
}

/// The processes of a pod but the one that holds its namespaces, as a pause container does.
fn processes(pod: &MeshPod) -> Vec<(u32, String)> {
    fn below(dir: &Path, found: &mut Vec<u32>) {
        let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            below(&entry.path(), found);
        }
    }
    let mut pids = Vec::new();
    below(pod.cgroup_dir(), &mut pids);
    let named = |pid: u32| {
        let proc = Path::new("/proc").join(pid.to_string());
        let zombie = fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
        (!zombie).then(|| (pid, name.trim().to_owned()))
    };
    pids.into_iter()
        .filter(|pid| *pid != pod.sandbox_pid())
        .filter_map(named)
        .collect()
}

/// A pod's network namespace, seen from its node: one end of a pair of devices is in it, and the kernel takes
/// the other away when the namespace is no more, whoever else may have held it.
struct Namespace<'a> {
    scene: &'a Scene,
}

const WITNESS: &str = "witness";

impl<'a> Namespace<'a> {
    fn of(scene: &'a Scene, pod: &MeshPod) -> anyhow::Result<Self> {
        let mut link = Command::new("ip");
        link.args([
            "link", "add", WITNESS, "type", "veth", "peer", "name", "held",
        ])
        .args(["netns", pod.netns().name()]);
        scene
            .node()
            .stdout(link)
            .context("putting a device into the pod")?;
        Ok(Self { scene })
    }

    fn gone(&self) -> anyhow::Result<()> {
        // The kernel takes namespaces apart one after another, those of everybody on the machine.
        until(SOON * 6, || {
            let mut show = Command::new("ip");
            show.args(["link", "show", WITNESS]);
            let there = self.scene.node().output(show)?.status.success();
            ensure!(!there, "somebody keeps the namespace");
            anyhow::Ok(())
        })
    }
}
