//! The launcher: three siblings with the privileges they need, each killable alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/agent.rs"]
mod agent;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use agent::{AgentNode, PATIENCE, agent_command};
use millrace_testkit::{Process, eventually};
use nix::sys::signal::Signal;

macro_rules! node {
    () => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        AgentNode::new(&[])
    }};
}

/// A proxy that does nothing but note its start: epoch and arguments, one file per start.
fn stand_in(node: &AgentNode) -> std::path::PathBuf {
    let path = node.node.run_dir().join("stand-in");
    let script = "#!/bin/sh\n\
        while [ $# -gt 0 ]; do case $1 in --epoch) epoch=$2;; --state-dir) dir=$2;; esac; shift; done\n\
        grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status > $dir/epoch-$epoch.new\n\
        mv $dir/epoch-$epoch.new $dir/epoch-$epoch\n\
        exec sleep 1000\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn launch(node: &AgentNode, proxy: &Path, more: &[&str]) -> Process {
    launch_by(
        agent_command("node"),
        node,
        proxy,
        &node.node.bpffs_dir(),
        more,
    )
}

fn launch_by(
    mut command: Command,
    node: &AgentNode,
    proxy: &Path,
    bpffs: &Path,
    more: &[&str],
) -> Process {
    command
        .arg("--run-dir")
        .arg(node.node.run_dir())
        .arg("--state-dir")
        .arg(node.node.state_dir())
        .arg("--bpffs-dir")
        .arg(bpffs)
        .arg("--pods-dir")
        .arg(node.node.pods_dir())
        .arg("--cgroup")
        .arg(node.node.cgroup_root())
        .arg("--proxy-bin")
        .arg(proxy)
        .args(["--node-name", "n1"])
        .args(more);
    node.node.spawn("node", command).expect("launcher")
}

/// Processes of the node whose command line has all of `words`.
fn processes(node: &AgentNode, words: &[&str]) -> Vec<u32> {
    node.node
        .cgroup()
        .pids()
        .into_iter()
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            words.iter().all(|word| line.contains(word))
        })
        .collect()
}

fn one(node: &AgentNode, words: &[&str]) -> u32 {
    let mut found = Vec::new();
    eventually(PATIENCE, &format!("one process with {words:?}"), || {
        found = processes(node, words);
        found.len() == 1
    });
    found[0]
}

fn kill(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

fn capabilities(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace('\t', " ")
}

#[test]
fn the_proxy_has_no_privileges_and_its_siblings_few() {
    let node = node!();
    let _launcher = launch(&node, &stand_in(&node), &[]);
    let noted = node.node.state_dir().join("proxy/epoch-0");
    eventually(PATIENCE, "the proxy starts", || noted.exists());
    let noted = fs::read_to_string(noted).unwrap();
    assert!(noted.contains("Uid:\t1337\t1337\t1337\t1337"), "{noted}");
    assert!(noted.contains("Gid:\t1337\t1337\t1337\t1337"), "{noted}");
    assert!(
        noted.contains("Groups:\t\n") || noted.contains("Groups:\t \n"),
        "{noted}"
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(
            noted.contains(&format!("{set}:\t0000000000000000")),
            "{noted}"
        );
    }
    assert!(noted.contains("NoNewPrivs:\t1"), "{noted}");

    // NET_ADMIN 12, PERFMON 38, BPF 39.
    let agent = one(&node, &["millrace-agent", " run "]);
    let wanted = format!("CapEff: {:016x}", 1_u64 << 12 | 1 << 38 | 1 << 39);
    eventually(PATIENCE, "the agent reduces itself", || {
        capabilities(agent).contains(&wanted)
    });
    assert!(capabilities(agent).contains(&wanted.replace("Eff", "Bnd")));
    // No SYS_ADMIN: it could not enter a namespace if it wanted to.
    let broker = one(&node, &["millrace-agent", " broker "]);
    let wanted = 1_u64 << 21 | 1 << 19 | 1 << 12 | 1 << 13 | 1 | 1 << 1;
    eventually(PATIENCE, "the broker reduces itself", || {
        capabilities(broker).contains(&format!("CapEff: {wanted:016x}"))
    });
}

#[test]
fn each_sibling_is_started_again_and_epochs_rise_by_one() {
    let node = node!();
    let _launcher = launch(&node, &stand_in(&node), &[]);
    for words in [["millrace-agent", " run "], ["millrace-agent", " broker "]] {
        let before = one(&node, &words);
        kill(before, Signal::SIGKILL);
        eventually(PATIENCE, "it is started again", || {
            let now = processes(&node, &words);
            now.len() == 1 && now[0] != before
        });
    }
    let state = node.node.state_dir().join("proxy");
    for epoch in 0..3 {
        eventually(PATIENCE, "the next epoch", || {
            state.join(format!("epoch-{epoch}")).exists()
        });
        assert!(!state.join(format!("epoch-{}", epoch + 1)).exists());
        kill(one(&node, &["sleep", "1000"]), Signal::SIGKILL);
    }
}

#[test]
fn a_stop_ends_everything() {
    let node = node!();
    let mut launcher = launch(&node, &stand_in(&node), &[]);
    one(&node, &["sleep", "1000"]);
    one(&node, &["millrace-agent", " run "]);
    let status = launcher.stop(PATIENCE).expect("stopped");
    assert!(status.success(), "{}", node.log("node"));
    for words in [["millrace-agent", "run"], ["sleep", "1000"]] {
        assert_eq!(processes(&node, &words), Vec::<u32>::new());
    }
}

#[test]
fn either_signal_ends_every_epoch_and_then_the_launcher() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let node = node!();
        let mut launcher = launch(&node, &stand_in(&node), &[]);
        one(&node, &["sleep", "1000"]);
        // The stand-in never says that it is ready, so the older epoch stays beside the newer one.
        launcher.signal(Signal::SIGHUP).expect("signalled");
        eventually(PATIENCE, "two epochs", || {
            processes(&node, &["sleep", "1000"]).len() == 2
        });
        launcher.signal(signal).expect("signalled");
        let status = launcher.wait(PATIENCE).expect("ended");
        assert!(status.success(), "{signal}: {}", node.log("node"));
        for words in [["millrace-agent", "run"], ["sleep", "1000"]] {
            assert_eq!(processes(&node, &words), Vec::<u32>::new(), "{signal}");
        }
    }
}

#[test]
fn siblings_do_not_outlive_a_killed_launcher_and_the_next_one_takes_over() {
    let node = node!();
    let mut launcher = launch(&node, &stand_in(&node), &[]);
    one(&node, &["sleep", "1000"]);
    one(&node, &["millrace-agent", " run "]);
    launcher.kill().expect("killed");
    eventually(PATIENCE, "agent and broker end", || {
        processes(&node, &["millrace-agent"]).is_empty()
    });
    let _next = launch(&node, &stand_in(&node), &[]);
    one(&node, &["millrace-agent", " run "]);
}

#[test]
fn a_changed_certificate_starts_the_next_epoch_and_a_hangup_too() {
    let node = node!();
    let certificate = node.node.run_dir().join("cert.pem");
    fs::write(&certificate, "one").unwrap();
    let watched = certificate.display().to_string();
    let launcher = launch(&node, &stand_in(&node), &["--proxy-watch", &watched]);
    let state = node.node.state_dir().join("proxy");
    let started = |epoch: u32| state.join(format!("epoch-{epoch}")).exists();
    eventually(PATIENCE, "the first epoch", || started(0));
    fs::write(&certificate, "two").unwrap();
    eventually(PATIENCE, "the second epoch", || started(1));
    launcher.signal(Signal::SIGHUP).expect("signalled");
    eventually(PATIENCE, "the third epoch", || started(2));
}

#[test]
fn a_proxy_that_cannot_be_started_is_tried_again() {
    let node = node!();
    let missing = node.node.run_dir().join("missing");
    let launcher = launch(&node, &missing, &[]);
    eventually(PATIENCE, "several tries", || {
        launcher.log().matches("process not started").count() >= 3
    });
    fs::copy(stand_in(&node), &missing).unwrap();
    eventually(PATIENCE, "it starts", || {
        !processes(&node, &["sleep", "1000"]).is_empty()
    });
    let mut version = Command::new(env!("CARGO_BIN_EXE_millrace-agent"));
    version.arg("version");
    assert!(
        node.node
            .stdout(version)
            .unwrap()
            .starts_with("millrace-agent ")
    );
}

#[test]
fn a_program_replaced_by_a_rename_is_what_is_started_next() {
    let node = node!();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = dir.path().join("millrace-agent");
    fs::hard_link(env!("CARGO_BIN_EXE_millrace-agent"), &program).unwrap();
    let mut command = Command::new(&program);
    command.arg("node");
    let bpffs = node.node.bpffs_dir();
    let launcher = launch_by(command, &node, &stand_in(&node), &bpffs, &[]);
    let roles = [["millrace-agent", " run "], ["millrace-agent", " broker "]];
    let before = roles.map(|words| one(&node, &words));
    let new = dir.path().join("millrace-agent.new");
    fs::copy(env!("CARGO_BIN_EXE_millrace-agent"), &new).unwrap();
    fs::rename(&new, &program).unwrap();
    for (words, old) in roles.iter().zip(before) {
        kill(old, Signal::SIGKILL);
        let mut now = Vec::new();
        eventually(
            PATIENCE,
            &format!("{words:?} again: {}", launcher.log()),
            || {
                now = processes(&node, words);
                now.len() == 1 && now[0] != old
            },
        );
        let runs = fs::read_link(format!("/proc/{}/exe", now[0])).unwrap();
        assert_eq!(runs, program, "the new program");
    }
}

/// Unmounts what the launcher mounted.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_launcher_mounts_bpffs_where_there_is_none() {
    let node = node!();
    let bpffs = Mounted(node.node.state_dir().join("no-bpffs-yet"));
    let launcher = launch_by(
        agent_command("node"),
        &node,
        &stand_in(&node),
        &bpffs.0,
        &[],
    );
    let end = tokio::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = node.status().await {
            break status;
        }
        assert!(tokio::time::Instant::now() < end, "{}", launcher.log());
        tokio::task::yield_now().await;
    };
    assert!(status.ebpf.available, "{:?}", status.ebpf);
    assert!(bpffs.0.join("v2/links").exists() || fs::read_dir(&bpffs.0).unwrap().count() > 0);
}

#[test]
fn the_proxy_drains_for_longer_than_others_may_take_and_the_broker_stays_for_it() {
    let node = node!();
    let proxy = node.node.run_dir().join("draining");
    let state = node.node.state_dir().join("proxy");
    let script = "#!/bin/sh\n\
        while [ $# -gt 0 ]; do case $1 in --state-dir) dir=$2;; esac; shift; done\n\
        drain() { sleep 3; for p in $(cat $dir/siblings); do [ -d /proc/$p ] || exit 1; done\n\
        touch $dir/drained; exit 0; }\n\
        trap drain TERM\n\
        touch $dir/started\n\
        while :; do sleep 0.1; done\n";
    fs::write(&proxy, script).unwrap();
    fs::set_permissions(&proxy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut launcher = launch(&node, &proxy, &["--stop-within", "1"]);
    eventually(PATIENCE, "the proxy starts", || {
        state.join("started").exists()
    });
    let siblings = [["millrace-agent", " run "], ["millrace-agent", " broker "]]
        .map(|words| one(&node, &words).to_string());
    fs::write(state.join("siblings"), siblings.join(" ")).unwrap();
    let status = launcher.stop(PATIENCE).expect("stopped");
    assert!(status.success(), "{}", node.log("node"));
    assert!(state.join("drained").exists(), "{}", node.log("node"));
    assert_eq!(processes(&node, &["millrace-agent"]), Vec::<u32>::new());
}
