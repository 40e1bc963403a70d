//! A process of the mesh is killed while clients ask: none of them notices when it is pilot, agent or
//! broker, and when it is the proxy new connections wait.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_e2e::load::Failure;
use millrace_e2e::{CAPTURES, Scene};
use millrace_testkit::http::Request;
use millrace_testkit::mesh::{MeshNode, Role};
use millrace_testkit::{require, until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(20);

/// How much is asked before and after each fault.
const SOME: u64 = 300;

/// Kills a process with SIGKILL and waits until another one runs in its place.
fn kill_and_await(node: &MeshNode, role: Role) -> anyhow::Result<()> {
    let killed = node.signal(role, Signal::SIGKILL)?;
    until(SOON, || {
        let now = node.pid(role).context("none runs")?;
        ensure!(now != killed, "{role:?} {killed} still runs");
        anyhow::Ok(())
    })
    .with_context(|| format!("waiting for another {role:?}"))
}

/// Waits until agent, broker and proxy know each other again and the client's pod is captured.
fn settled(scene: &Scene) -> anyhow::Result<()> {
    scene.near.captured(&scene.client)?;
    until(SOON, || {
        let status = scene.near.agent("/status")?.json()?;
        ensure!(
            status["broker_connected"] == true && status["proxy_gone"] == false,
            "{status}"
        );
        Ok(())
    })
}

/// Kills `role` on the client's node twice under load; not one request may fail.
fn nobody_notices(role: Role) -> anyhow::Result<()> {
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let load = scene.load()?;
        for _ in 0..2 {
            load.more(SOME)?;
            kill_and_await(&scene.near, role)?;
            load.more(SOME)?;
            settled(&scene)?;
        }
        load.more(SOME)?;
        let outcome = load.stop()?;
        eprintln!(
            "{capture}: {role:?} killed twice, {} requests answered, the slowest in {:?}",
            outcome.answered, outcome.slowest
        );
        outcome
            .ensure_flawless()
            .with_context(|| format!("{capture}: {}", scene.near.log()))?;
        assert_eq!(scene.near.captured(&scene.client)?, capture);
    }
    Ok(())
}

#[test]
fn nobody_notices_that_the_agent_is_killed() -> anyhow::Result<()> {
    require!(cluster);
    nobody_notices(Role::Agent)
}

#[test]
fn nobody_notices_that_the_broker_is_killed() -> anyhow::Result<()> {
    require!(cluster);
    nobody_notices(Role::Broker)
}

#[test]
fn nobody_notices_that_agent_and_broker_are_killed_at_once() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let load = scene.load()?;
    load.more(SOME)?;
    scene.near.signal(Role::Agent, Signal::SIGKILL)?;
    kill_and_await(&scene.near, Role::Broker)?;
    load.more(SOME)?;
    settled(&scene)?;
    load.more(SOME)?;
    load.stop()?.ensure_flawless()
}

/// What is begun after the kill only waits; what was begun before is told of.
fn new_connections_wait(
    capture: &str,
    role_of: impl Fn(&Scene) -> &MeshNode,
) -> anyhow::Result<()> {
    let scene = Scene::start(capture)?;
    let node = role_of(&scene);
    let load = scene.load()?;
    // From the end of one proxy to the end of the next.
    let mut lives = Vec::new();
    for _ in 0..3 {
        load.more(SOME)?;
        let end = Instant::now();
        if let Some((_, until)) = lives.last_mut() {
            *until = Some(end);
        }
        let killed = node.signal(Role::Proxy, Signal::SIGKILL)?;
        until(SOON, || {
            ensure!(node.pid(Role::Proxy) != Some(killed), "it still runs");
            Ok(())
        })?;
        let gone = Instant::now();
        // The first to connect waits for the next proxy.
        let mut first = scene.connect().context("connecting without a proxy")?;
        let answer = first.send(&Request::get(Scene::HOST, "/first"))?;
        assert_eq!(answer.status, 200, "{capture}: {}", answer.text());
        eprintln!(
            "{capture}: the first new connection waited {:?}",
            gone.elapsed()
        );
        load.more(SOME)?;
        settled(&scene)?;
        lives.push((gone, None));
    }
    let outcome = load.stop()?;
    eprintln!(
        "{capture}: proxy of {} killed 3 times, {} answered, the slowest in {:?}, {} old ones failed: {:?}",
        node.name(),
        outcome.answered,
        outcome.slowest,
        outcome.failures.len(),
        outcome
            .failures
            .iter()
            .map(|failure| &failure.what)
            .collect::<Vec<_>>()
    );
    for (from, to) in lives {
        let within =
            |failure: &&Failure| failure.opened >= from && to.is_none_or(|to| failure.failed < to);
        let late: Vec<_> = outcome.failures.iter().filter(within).collect();
        assert!(
            late.is_empty(),
            "{capture}: opened after the kill: {late:?}\n{}",
            node.log()
        );
    }
    // A client has at most one request under way, so a kill breaks at most four.
    assert!(outcome.failures.len() <= 12, "{:?}", outcome.failures);
    Ok(())
}

#[test]
fn new_connections_wait_for_the_next_proxy() -> anyhow::Result<()> {
    require!(cluster);
    new_connections_wait("ebpf", |scene| &scene.near)
}

#[test]
fn new_connections_wait_for_the_next_proxy_with_iptables() -> anyhow::Result<()> {
    require!(cluster);
    new_connections_wait("iptables", |scene| &scene.near)
}

#[test]
fn new_connections_wait_for_the_next_proxy_of_the_other_node() -> anyhow::Result<()> {
    require!(cluster);
    new_connections_wait("ebpf", |scene| &scene.far)
}

#[test]
fn the_mesh_serves_on_without_pilot_and_a_new_proxy_too() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        scene.only("v2")?;
        scene.answered_by("echo-v2")?;
        let load = scene.load()?;
        load.more(SOME)?;
        scene.mesh.pilot().kill()?;
        load.more(SOME)?;
        load.stop()?.ensure_flawless().context("pilot killed")?;

        for node in [&scene.near, &scene.far] {
            kill_and_await(node, Role::Proxy)?;
        }
        // The very first request waits and is routed by the last good rules, not by none.
        let answer = scene.ask()?;
        let from = answer.headers.first("x-server");
        assert_eq!(
            (answer.status, from),
            (200, Some("echo-v2")),
            "{capture}: {}\n{}",
            answer.text(),
            scene.near.log()
        );
        settled(&scene)?;
        let load = scene.load()?;
        load.more(SOME)?;

        scene.mesh.pilot().resume()?;
        load.more(SOME)?;
        scene.only("v1")?;
        scene.answered_by("echo-v1")?;
        load.stop()?.ensure_flawless().context("pilot is back")?;
    }
    Ok(())
}

#[test]
fn a_pod_made_without_pilot_is_captured_and_answered() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    scene.mesh.pilot().kill()?;
    let late = scene
        .near
        .pod(millrace_testkit::PodOptions::named("late"))?;
    let answer = until(SOON, || {
        let answer = late.get(scene.http(), Scene::HOST, "/late")?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(answer)
    })
    .with_context(|| scene.near.log())?;
    assert!(answer.headers.first("x-server").is_some());
    Ok(())
}

#[test]
fn rules_change_under_load_and_no_request_fails() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let load = scene.load()?;
        for version in ["v1", "v2", "v1", "v2"] {
            scene.only(version)?;
            scene.answered_by(&format!("echo-{version}"))?;
            load.more(SOME / 2)?;
        }
        scene.mesh.pilot().remove("rule.yaml")?;
        scene.answered_by("echo-v1")?;
        scene.answered_by("echo-v2")?;
        load.more(SOME)?;
        load.stop()?.ensure_flawless().context(capture)?;
    }
    Ok(())
}

#[test]
fn capture_is_switched_under_load_and_no_request_fails() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let mut kept = scene.client.connect(scene.service.at(Scene::TCP))?;
    let load = scene.load()?;
    let pods = [
        (&scene.near, &**scene.client),
        (&scene.near, &scene.backends[0].pod),
        (&scene.far, &scene.backends[1].pod),
    ];
    kept.set_read_timeout(Some(SOON))?;
    for mode in ["iptables", "ebpf", "iptables", "ebpf"] {
        for (node, pod) in pods {
            node.switch(pod, mode)?;
            load.more(SOME / 2)?;
            // A connection that is older than the change carries bytes as before.
            kept.write_all(mode.as_bytes())?;
            let mut echoed = vec![0; mode.len()];
            let echo = kept.read_exact(&mut echoed);
            echo.with_context(|| format!("{} switched to {mode}", pod.name()))?;
            assert_eq!(echoed, mode.as_bytes());
        }
    }
    load.stop()?.ensure_flawless()
}

#[test]
fn pods_come_and_go_under_load_and_no_request_fails() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let load = scene.load()?;
    for round in 0..3 {
        let more = scene
            .service
            .backend(&scene.far, &format!("extra{round}"), "ebpf")?;
        scene.answered_by(&format!("echo-extra{round}"))?;
        load.more(SOME)?;
        // As Kubernetes deletes a pod: its endpoint goes first, the pod serves on until that is known.
        more.pod.retire()?;
        let gone = format!("::{}:", more.pod.ip());
        until(SOON, || {
            let clusters = scene.near.admin("/clusters")?.text();
            ensure!(
                !clusters.contains(&gone),
                "{} is still an endpoint",
                more.pod.ip()
            );
            Ok(())
        })?;
        // Who has not heard of it yet asks the pod, and the pod is still there.
        let direct = SocketAddr::new(more.pod.ip(), Scene::HTTP);
        let answer = scene.client.get(direct, &direct.to_string(), "/direct")?;
        let from = answer.headers.first("x-server");
        assert_eq!(from, Some(more.pod.name()), "{}", answer.text());
        load.more(SOME)?;
    }
    load.stop()?.ensure_flawless()
}

#[test]
fn an_upgrade_of_the_proxy_loses_no_request() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let load = scene.load()?;
        for _ in 0..2 {
            load.more(SOME)?;
            let old = scene.near.pid(Role::Proxy).context("no proxy")?;
            scene.near.signal(Role::Launcher, Signal::SIGHUP)?;
            until(SOON, || {
                let proxies = scene.near.agent("/status")?.json()?["proxies"].clone();
                let proxies = proxies.as_array().context("no proxies")?.clone();
                let takes =
                    |proxy: &serde_json::Value| proxy["pid"] != old && proxy["draining"] == false;
                ensure!(proxies.iter().any(takes), "{proxies:?}");
                Ok(())
            })?;
            load.more(SOME)?;
        }
        let outcome = load.stop()?;
        outcome
            .ensure_flawless()
            .with_context(|| format!("{capture}: {}", scene.near.log()))?;
    }
    Ok(())
}
