//! What each process may do, and what is left when all is over: the proxy has no privilege, the agent
//! never enters a pod, and clean-up leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURES, Scene};
use millrace_testkit::mesh::{MeshNode, Role};
use millrace_testkit::{Pod, clean, require, until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(20);

/// One line of `/proc/<pid>/status` without its name.
fn status(pid: u32, name: &str) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.strip_prefix(':'));
    Ok(value
        .with_context(|| format!("no {name} of {pid}"))?
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" "))
}

fn of(node: &MeshNode, role: Role) -> anyhow::Result<u32> {
    node.pid(role).with_context(|| format!("no {role:?} runs"))
}

#[test]
fn a_proxy_that_serves_has_no_capability_and_is_not_root() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        for _ in 0..2 {
            for node in [&scene.near, &scene.far] {
                let proxy = of(node, Role::Proxy)?;
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(status(proxy, set)?, "0000000000000000", "{capture} {set}");
                }
                assert_eq!(status(proxy, "Uid")?, "1337 1337 1337 1337");
                assert_eq!(status(proxy, "Gid")?, "1337 1337 1337 1337");
                assert_eq!(status(proxy, "Groups")?, "");
                assert_eq!(status(proxy, "NoNewPrivs")?, "1");
            }
            // As little after a restart.
            let killed = scene.near.signal(Role::Proxy, Signal::SIGKILL)?;
            until(SOON, || {
                ensure!(of(&scene.near, Role::Proxy)? != killed, "it still runs");
                Ok(())
            })?;
            assert_eq!(scene.ask()?.status, 200);
        }
    }
    Ok(())
}

/// Network namespaces in which threads of a process are.
fn namespaces(pid: u32) -> BTreeSet<String> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return BTreeSet::new();
    };
    let links = threads.filter_map(|thread| {
        let thread = thread.ok()?.file_name();
        fs::read_link(format!("/proc/{pid}/task/{}/ns/net", thread.display())).ok()
    });
    links.map(|link| link.display().to_string()).collect()
}

#[test]
fn agent_and_proxy_never_enter_a_pod() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let host = fs::read_link(format!("/proc/{}/ns/net", scene.near.sandbox_pid()))?;
    let host = BTreeSet::from([host.display().to_string()]);
    let (agent, proxy) = (of(&scene.near, Role::Agent)?, of(&scene.near, Role::Proxy)?);
    // Setting the namespace needs CAP_SYS_ADMIN (setns(2)), which neither has: this is what makes the
    // samples below proof of more than the moments at which they were taken.
    let sys_admin = 1_u64 << 21;
    for pid in [agent, proxy] {
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let capabilities = u64::from_str_radix(&status(pid, set)?, 16)?;
            assert_eq!(capabilities & sys_admin, 0, "{set} of {pid}");
        }
    }
    let load = scene.load()?;
    for mode in ["iptables", "ebpf", "iptables", "ebpf"] {
        scene.near.switch(&scene.client, mode)?;
        load.more(100)?;
        assert_eq!(namespaces(agent), host, "{mode}: the agent");
        assert_eq!(namespaces(proxy), host, "{mode}: the proxy");
    }
    assert_eq!(of(&scene.near, Role::Agent)?, agent, "it is the same one");
    load.stop()?.ensure_flawless()
}

/// Everything that Millrace could have left inside a pod.
fn left_inside(pod: &Pod) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    let questions: [(&[&str], &[&str]); 6] = [
        (
            &["nft", "list", "ruleset"],
            &["millrace", "ISTIO", "15001", "15006"],
        ),
        (&["iptables-save"], &["MILLRACE", "ISTIO", "15001"]),
        (&["ip6tables-save"], &["MILLRACE", "ISTIO", "15001"]),
        (&["ip", "rule"], &["fwmark"]),
        (&["ip", "-6", "rule"], &["fwmark"]),
        (&["ss", "-Hltnu"], &[":15001", ":15006", ":15053"]),
    ];
    for (command, traces) in questions {
        let mut asked = Command::new(command[0]);
        asked.args(&command[1..]);
        let said = pod.stdout(asked)?;
        let found = said
            .lines()
            .filter(|line| traces.iter().any(|trace| line.contains(trace)));
        left.extend(found.map(|line| format!("{}: {line}", command.join(" "))));
    }
    Ok(left)
}

#[test]
fn clean_up_leaves_nothing_in_pods_nor_on_the_node() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "bpftool");
    for capture in CAPTURES {
        // With the node's processes and, as after an uninstall that went wrong, without them.
        for running in [true, false] {
            let scene = Scene::start(capture)?;
            let what = format!("{capture}, processes running: {running}");
            assert!(
                !left_inside(&scene.client)?.is_empty(),
                "{what}: the questions find it"
            );
            if !running {
                scene.near.signal(Role::Launcher, Signal::SIGKILL)?;
                // The proxy serves on for the next launcher.
                scene.near.signal(Role::Proxy, Signal::SIGKILL)?;
                until(SOON, || {
                    ensure!(scene.near.pids().is_empty(), "processes are left");
                    Ok(())
                })?;
            }
            let mut cleanup = Command::new(scene.mesh.cluster().binary("millrace-agent")?);
            cleanup
                .arg("cleanup")
                .arg("--run-dir")
                .arg(scene.near.run_dir())
                .arg("--state-dir")
                .arg(scene.near.state_dir())
                .arg("--bpffs-dir")
                .arg(scene.near.bpffs_dir())
                .arg("--pods-dir")
                .arg(scene.near.pods_dir());
            if running {
                // What captures pods ends first, else it would capture them again.
                scene.near.stop()?;
            }
            eprintln!("{what}: {}", scene.near.stdout(cleanup)?.trim());

            let left = left_inside(&scene.client)?;
            assert!(left.is_empty(), "{what}: {left:#?}");
            let pins = fs::read_dir(scene.near.bpffs_dir())?;
            // The kernel puts `maps.debug` and `progs.debug` into every bpffs.
            let own = |name: &String| name.strip_suffix(".debug").is_none();
            let pins = pins.filter_map(|pin| pin.ok()?.file_name().into_string().ok());
            let pins: Vec<_> = pins.filter(own).collect();
            assert!(pins.is_empty(), "{what}: {pins:?}");
            let mut tree = Command::new("bpftool");
            tree.args(["cgroup", "tree"]).arg(scene.near.cgroup_root());
            let attached = scene.near.stdout(tree)?;
            assert!(!attached.contains("millrace_"), "{what}: {attached}");
            // The pod's own traffic goes where it says, as if there had never been a mesh.
            let direct = scene
                .client
                .get(scene.backends[0].pod.at(Scene::HTTP), "x", "/direct")?;
            assert_eq!(direct.headers.first("server"), None, "{what}");
            assert_eq!(direct.status, 200, "{what}");
        }
    }
    Ok(())
}

#[test]
fn a_run_leaves_no_namespace_cgroup_pin_or_process() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let id = scene.mesh.cluster().id().as_str().to_owned();
    let pids = [scene.near.pids(), scene.far.pids()].concat();
    assert!(pids.len() >= 8, "{pids:?}");
    assert!(!clean::traces(&id)?.is_empty());
    drop(scene);
    assert_eq!(clean::traces(&id)?, Vec::<String>::new());
    let left: Vec<_> = pids
        .iter()
        .filter(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("millrace")
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
