//! A pod vanishes while it is asked or asks, and another one gets its address: nothing of the old one,
//! neither a connection nor who it was, ever reaches the new one.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, CAPTURES, Scene, Service, logged};
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Client, Request, Response, Server};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, PodOptions, require, until};

const HTTP: u16 = 8080;
const SOON: Duration = Duration::from_secs(15);

/// A pod of a service that answers `/` at once with its own name and never answers `/wait`.
struct Waiting {
    asked: Arc<AtomicBool>,
    // The server ends first, as the processes of a pod do.
    _server: Server,
    pod: MeshPod,
}

fn waiting(
    node: &MeshNode,
    service: &str,
    name: &str,
    number: u16,
    capture: &str,
) -> anyhow::Result<Waiting> {
    let options = PodOptions::named(name)
        .label("app", service)
        .port("http", HTTP)
        .number(number)
        .annotation(CAPTURE, capture);
    let asked = Arc::new(AtomicBool::new(false));
    let (flag, own) = (Arc::clone(&asked), name.to_owned());
    let (pod, server) = node.serving_pod(options, move |pod| {
        let listener = pod.listen((Ipv6Addr::UNSPECIFIED, HTTP).into())?;
        Server::http(listener, move |request, peer| {
            if request.path == "/wait" {
                flag.store(true, Ordering::Release);
                // Longer than any test; the pod's end ends it.
                std::thread::park();
            }
            Response::new(200, peer.remote.to_string()).header("x-server", &own)
        })
    })?;
    Ok(Waiting {
        asked,
        _server: server,
        pod,
    })
}

impl Waiting {
    fn is_asked(&self) -> anyhow::Result<()> {
        until(SOON, || {
            ensure!(self.asked.load(Ordering::Acquire), "not asked yet");
            Ok(())
        })
    }
}

struct Stage {
    mesh: Mesh,
    near: MeshNode,
    far: MeshNode,
    client: MeshPod,
    old: Service,
    new: Service,
}

fn stage(capture: &str) -> anyhow::Result<Stage> {
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let (near, far) = (mesh.node("near")?, mesh.node("far")?);
    let (old, new) = (Service::new("old", 1), Service::new("new", 2));
    let (old, new) = (old.port("http", HTTP), new.port("http", HTTP));
    old.apply(&mesh)?;
    new.apply(&mesh)?;
    let client = near.pod(PodOptions::named("client").annotation(CAPTURE, capture))?;
    Ok(Stage {
        mesh,
        near,
        far,
        client,
        old,
        new,
    })
}

fn answered(
    client: &MeshPod,
    to: SocketAddr,
    host: &str,
    server: &str,
) -> anyhow::Result<Response> {
    until(SOON, || {
        let answer = client.get(to, host, "/")?;
        let from = answer.headers.first("x-server").unwrap_or("-").to_owned();
        ensure!(
            from == server,
            "{} from {from}: {}",
            answer.status,
            answer.text()
        );
        Ok(answer)
    })
}

#[test]
fn a_request_to_a_pod_that_vanishes_is_answered_with_503_and_never_reaches_its_successor()
-> anyhow::Result<()> {
    require!(cluster);
    for (capture, across) in [
        ("ebpf", false),
        ("ebpf", true),
        ("iptables", false),
        ("iptables", true),
    ] {
        let stage = stage(capture)?;
        let node = if across { &stage.far } else { &stage.near };
        let first = waiting(node, "old", "first", 77, capture)?;
        answered(&stage.client, stage.old.at(HTTP), "old:8080", "first")?;

        // One connection with a request under way, one that is idle in the proxy's pool.
        let mut caught = Client::connect(&stage.client, stage.old.at(HTTP))?;
        caught.write(b"GET /wait HTTP/1.1\r\nhost: old:8080\r\n\r\n")?;
        first.is_asked()?;
        let mut kept = Client::connect(&stage.client, stage.old.at(HTTP))?;
        assert_eq!(kept.send(&Request::get("old:8080", "/"))?.status, 200);

        let begun = Instant::now();
        let address = first.pod.ip();
        drop(first);
        let answer = caught.receive("GET")?;
        eprintln!(
            "{capture}, across nodes {across}: told after {:?}",
            begun.elapsed()
        );
        assert_eq!(answer.status, 503, "{capture}: {}", answer.text());
        let entry = logged(&stage.near, |entry| entry["path"] == "/wait")?;
        // The request may have been tried again at an address where nobody listens any more; across
        // nodes it is the other proxy's answer that is passed on.
        let flag = entry["response_flags"].as_str().unwrap_or_default();
        let told = flag.contains("UC") || flag.contains("UF") || (across && flag == "-");
        assert!(told, "{capture}: {entry}");

        let second = waiting(node, "new", "second", 77, capture)?;
        assert_eq!(second.pod.ip(), address);
        answered(&stage.client, stage.new.at(HTTP), "new:8080", "second")?;
        // The old service has no pod any more: its requests are answered, and not by the new one.
        for _ in 0..20 {
            let answer = kept.send(&Request::get("old:8080", "/"))?;
            assert_eq!(answer.status, 503, "{capture}: {:?}", answer.headers);
            let answer = stage.client.get(stage.old.at(HTTP), "old:8080", "/")?;
            assert_eq!(answer.status, 503, "{capture}: {:?}", answer.headers);
        }
        assert!(!second.asked.load(Ordering::Acquire));
        drop(second);
        drop(stage.mesh);
    }
    Ok(())
}

#[test]
fn a_pod_that_gets_the_address_of_another_gets_none_of_its_connections() -> anyhow::Result<()> {
    require!(cluster);
    for (capture, across) in [("ebpf", false), ("ebpf", true), ("iptables", false)] {
        let stage = stage(capture)?;
        let node = if across { &stage.far } else { &stage.near };
        let server = waiting(node, "old", "server", 50, capture)?;
        let options = |name: &str| {
            PodOptions::named(name)
                .number(88)
                .service_account(name)
                .annotation(CAPTURE, capture)
        };
        // The connections on which the node's proxy asks for a pod. What the far proxy makes of them
        // is its own affair: it serves an address, as a sidecar does.
        let connections = |pod: &MeshPod| -> anyhow::Result<BTreeSet<String>> {
            answered(pod, stage.old.at(HTTP), "old:8080", "server")?;
            let path = format!("/{}", pod.name());
            let mut client = Client::connect(pod, stage.old.at(HTTP))?;
            for _ in 0..20 {
                let answer = client.send(&Request::get("old:8080", &path))?;
                assert_eq!(answer.status, 200);
                assert!(
                    answer.text().contains(&pod.ip().to_string())
                        || answer.text().contains(&pod.ip6().to_string())
                );
            }
            logged(&stage.near, |entry| entry["path"] == path)?;
            let log = stage.near.log();
            let entries = log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let own = entries.filter(|entry| entry["path"] == path);
            Ok(own
                .map(|entry| {
                    format!(
                        "{} to {}",
                        entry["upstream_local_address"], entry["upstream_host"]
                    )
                })
                .collect())
        };
        let alice = stage.near.pod(options("alice"))?;
        let (address, uid) = (alice.ip(), alice.uid().to_owned());
        let of_alice = connections(&alice)?;
        // An answer is under way for her when her processes end and her network goes.
        let mut caught = Client::connect(&alice, stage.old.at(HTTP))?;
        caught.write(b"GET /wait HTTP/1.1\r\nhost: old:8080\r\n\r\n")?;
        server.is_asked()?;
        drop(caught);
        drop(alice);

        let bob = stage.near.pod(options("bob"))?;
        assert_eq!(bob.ip(), address);
        assert_ne!(bob.uid(), uid);
        let of_bob = connections(&bob)?;
        assert!(
            of_alice.is_disjoint(&of_bob),
            "{capture}: connections of the old pod are used: {of_alice:?} {of_bob:?}"
        );
        // The node knows one pod of this address, and it is the new one.
        let pods = stage.near.agent("/pods")?.json()?;
        let pods = pods["pods"].as_array().or_else(|| pods.as_array()).cloned();
        let names: Vec<_> = pods
            .context("no pods")?
            .iter()
            .filter(|pod| pod["ips"].to_string().contains(&format!("\"{address}\"")))
            .map(|pod| pod["service_account"].clone())
            .collect();
        assert_eq!(names, ["bob"], "{capture}");
        drop(server);
    }
    Ok(())
}

/// The longest that a request may wait for a pod whose network went before its processes did.
const NOTICED: Duration = Duration::from_secs(20);

#[test]
fn load_goes_on_while_other_pods_of_the_service_vanish() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    for _ in 0..2 {
        let doomed = scene.service.backend(&scene.near, "doomed", "ebpf")?;
        scene.answered_by("echo-doomed")?;
        let load = scene.load()?;
        load.more(200)?;
        // The network goes while its processes still answer, then they end.
        let endpoint = format!("::{}:", doomed.pod.ip());
        drop(doomed.pod);
        drop(doomed.servers);
        until(SOON, || {
            let clusters = scene.near.admin("/clusters")?.text();
            ensure!(!clusters.contains(&endpoint), "{endpoint} is still there");
            Ok(())
        })?;
        let known = Instant::now();
        load.more(200)?;
        let outcome = load.stop()?;
        eprintln!(
            "{} failed of {}, the slowest answer took {:?}: {:?}",
            outcome.failures.len(),
            outcome.answered,
            outcome.slowest,
            outcome.failures
        );
        // What is under way fails, once; what is begun when the pod is known to be gone is never sent
        // to it.
        for failure in &outcome.failures {
            assert!(failure.begun < known, "{failure:?}");
            assert!(failure.failed - failure.begun < NOTICED, "{failure:?}");
        }
        let load = scene.load()?;
        load.more(200)?;
        load.stop()?.ensure_flawless()?;
    }
    Ok(())
}

#[test]
fn the_namespace_of_a_pod_that_vanished_is_not_kept_alive() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let pod = scene
            .near
            .pod(PodOptions::named("brief").annotation(CAPTURE, capture))?;
        let answer = pod.get(scene.http(), Scene::HOST, "/brief")?;
        assert_eq!(answer.status, 200);
        Seen::of(&answer)?;
        let cookie = scene.near.pod_status(&pod)?["netns_cookie"].clone();
        let before = sockets(&scene.near);
        drop(pod);
        until(SOON, || {
            let dump = scene.near.agent("/pods")?.text();
            ensure!(!dump.contains("\"brief\""), "the agent knows it");
            let now = sockets(&scene.near);
            ensure!(now < before, "{before} sockets before, {now} now");
            Ok(())
        })
        .with_context(|| format!("{capture}: {cookie} {}", scene.near.log()))?;
    }
    Ok(())
}

/// Sockets that the node's processes hold.
fn sockets(node: &MeshNode) -> usize {
    let descriptors = node
        .pids()
        .into_iter()
        .filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok());
    descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}
