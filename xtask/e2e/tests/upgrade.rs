//! The proxy, or the whole node, is replaced again and again while everything that connections can carry is under way: no
//! request fails, no connection is reset, no byte is wrong, and connections outlive the process that
//! accepted them.

#[path = "upgrade/alone.rs"]
mod alone;
#[path = "upgrade/traffic.rs"]
mod traffic;

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, Scene};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::{MeshNode, Role};
use millrace_testkit::{PodOptions, require, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic::{Eager, HELD, SOON, Special, Traffic, WEB_SOCKET, Ways, request, special};

const ACCELERATION: &str = "millrace.io/acceleration";

/// The newest proxy's page about hand-overs.
fn page(node: &MeshNode) -> anyhow::Result<Value> {
    let socket = node.run_dir().join("proxy/admin.sock");
    Client::unix(&socket)?
        .send(&Request::get("admin", "/handover"))?
        .json()
}

/// Fails unless a new connection of the client's is accelerated.
fn promotes(scene: &Scene) -> anyhow::Result<()> {
    let mut client = Eager::new(scene.client.connect(scene.http())?)?;
    for number in 0..16 {
        request(&mut client, number)?;
    }
    promoted(&scene.near)
}

/// Fails unless some connection is accelerated, where the kernel can do that.
fn promoted(node: &MeshNode) -> anyhow::Result<()> {
    let socket = node.run_dir().join("proxy/admin.sock");
    let page = Client::unix(&socket)?.send(&Request::get("admin", "/acceleration"))?;
    let page = page.json()?;
    if page["agent"]["state"] == "unavailable" {
        return Ok(());
    }
    let connections = page["connections"].as_array().context("no connections")?;
    let mut states = connections.iter().map(|connection| &connection["state"]);
    ensure!(states.any(|state| state == "promoted"), "{page}");
    Ok(())
}

/// What is replaced, and how.
#[derive(Clone, Copy, Debug)]
enum Replaced {
    /// The proxy alone.
    Proxy,
    /// Agent, broker and proxy, one after the other.
    InTurn,
    /// All three in the same instant.
    AtOnce,
}

/// The processes that the launcher starts again when they have ended.
const OTHERS: [Role; 2] = [Role::Broker, Role::Agent];

/// Ends these processes, and waits until others do their work.
fn replace(
    scene: &Scene,
    roles: &[Role],
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let node = &scene.near;
    let ended = roles.iter().map(|role| node.signal(*role, Signal::SIGTERM));
    let ended = ended.collect::<anyhow::Result<Vec<_>>>()?;
    meanwhile()?;
    for (role, ended) in roles.iter().zip(ended) {
        until(SOON, || {
            let now = node.pid(*role).context("none runs")?;
            ensure!(now != ended, "{role:?} {ended} still runs");
            let status = node.agent("/status")?.json()?;
            ensure!(status["broker_connected"] == true, "{status}");
            anyhow::Ok(())
        })?;
    }
    node.captured(&scene.client)?;
    node.captured(&scene.backends[0].pod).map(drop)
}

/// Replaces the proxy, which the launcher does beside the one that runs, and others with it; waits until
/// the old one is told to end.
fn upgrade(scene: &Scene, replaced: Replaced) -> anyhow::Result<()> {
    let node = &scene.near;
    let old = page(node)?["pid"].clone();
    let proxy = || node.signal(Role::Launcher, Signal::SIGHUP).map(drop);
    match replaced {
        Replaced::Proxy => proxy()?,
        Replaced::InTurn => {
            for role in OTHERS.iter().rev() {
                replace(scene, &[*role], || Ok(()))?;
            }
            proxy()?;
        }
        Replaced::AtOnce => replace(scene, &OTHERS, proxy)?,
    }
    until(SOON, || {
        let status = node.agent("/status")?.json()?;
        let proxies = status["proxies"].as_array().context("no proxies")?;
        let serves = |proxy: &&Value| proxy["draining"] == false;
        let serving: Vec<_> = proxies.iter().filter(serves).collect();
        ensure!(
            serving.len() == 1 && serving[0]["pid"] != old,
            "{proxies:?}"
        );
        ensure!(page(node)?["pid"] == serving[0]["pid"], "another answers");
        ensure!(status["broker_connected"] == true, "no broker");
        Ok(())
    })
    .context("upgrading")
}

/// Upgrades so many times while everything that a connection can carry is under way.
fn many_upgrades(capture: &str, rounds: u32, replaced: Replaced) -> anyhow::Result<()> {
    let scene = Scene::start(capture)?;
    let service = special();
    service.apply(&scene.mesh)?;
    let options = PodOptions::named("special")
        .label("app", "special")
        .annotation(CAPTURE, capture);
    let (_pod, special) = scene.near.serving_pod(options, Special::serve)?;
    // Connections that are in the kernel's map move as well as plain ones.
    scene.client.annotate(ACCELERATION, "on")?;
    if capture == "ebpf" {
        until(SOON, || promotes(&scene)).context("connections in the kernel's map")?;
    }
    let ways = Ways {
        client: Arc::clone(&scene.client),
        http: scene.http(),
        tcp: scene.service.at(Scene::TCP),
        held: service.at(HELD),
        web_socket: service.at(WEB_SOCKET),
    };
    let mut traffic = Traffic::start(ways, rounds)?;
    for _ in 0..rounds {
        let pages = || Ok(vec![page(&scene.near)?]);
        traffic.across(&special, || upgrade(&scene, replaced), pages)?;
    }
    if capture == "ebpf" {
        // They moved with their connections.
        until(SOON, || promoted(&scene.near))?;
    }
    let finished = traffic.finish(&format!("{capture}, {replaced:?}"));
    finished.with_context(|| scene.near.log())
}

#[test]
fn twenty_upgrades_in_a_row_lose_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 20, Replaced::Proxy)
}

#[test]
fn upgrades_of_a_whole_node_lose_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 3, Replaced::InTurn)
}

#[test]
fn a_node_replaced_in_one_instant_loses_nothing() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("ebpf", 4, Replaced::AtOnce)
}

#[test]
fn upgrades_lose_nothing_where_iptables_capture() -> anyhow::Result<()> {
    require!(cluster);
    many_upgrades("iptables", 5, Replaced::Proxy)
}
