//! Clusters as tests use them: pods reach each other, act in their own places, and leave nothing.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::raw::{End, exchange_half_closed};
use millrace_testkit::{Cluster, PodOptions, clean, echo, eventually, require};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn pods_reach_each_other_on_one_node_and_across_nodes() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let (first, second) = (cluster.node("n1")?, cluster.node("n2")?);
    let (a, b, c) = (first.pod("a")?, first.pod("b")?, second.pod("c")?);

    for server in [&b, &c] {
        for ip in [server.ip(), server.ip6()] {
            let echo = echo::http(server.listen((ip, 0).into())?, server.name())?;
            let mut client = Client::connect(&a, echo.address())?;
            for path in ["/1", "/2"] {
                let (_, seen) = echo::ask(&mut client, &Request::get("b", path))?;
                assert_eq!(
                    (seen.server.as_str(), seen.path.as_str()),
                    (server.name(), path)
                );
                assert!([a.ip(), a.ip6()].contains(&seen.remote.ip()), "{seen:?}");
            }
            assert_eq!(echo.accepted(), 1, "the connection is reused");
        }
    }
    Ok(())
}

#[test]
fn a_pods_way_out_stays_where_it_is_when_other_pods_come() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let pod = node.pod("first")?;
    let gateway = || {
        let mut command = Command::new("ip");
        command.args(["-o", "link", "show", "br0"]);
        let shown = node.stdout(command)?;
        let address = shown.split("link/ether ").nth(1).context("no address")?;
        anyhow::Ok(address.split(' ').next().map(str::to_owned))
    };
    let before = gateway()?;
    // A bridge without an address of its own takes the lowest of its ports'.
    let others: Vec<_> = (0..8)
        .map(|number| node.pod(&format!("other{number}")))
        .collect::<anyhow::Result<_>>()?;
    assert_eq!(gateway()?, before);
    drop((pod, others));
    Ok(())
}

#[test]
fn half_close_reaches_a_tcp_echo_server() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let (a, b) = (node.pod("a")?, node.pod("b")?);
    let echo = echo::tcp(b.listen(b.at(0))?)?;
    let mut stream = a.connect(echo.address())?;
    let answer = exchange_half_closed(&mut stream, b"to the end", SOON)?;
    assert_eq!(answer, (b"to the end".to_vec(), End::Closed));
    Ok(())
}

#[test]
fn processes_run_in_their_pod() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let pod = node.pod_with(PodOptions::named("web").namespace("shop"))?;
    let script = "cat /proc/self/cgroup /etc/resolv.conf; hostname; id -u; ip -br address";
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let mut process = pod.launch("look", command)?.uid(1000).spawn()?;
    assert!(process.wait(SOON)?.success());

    let log = process.log();
    assert!(
        log.contains(&format!("/n1/pods/pod{}/app", pod.uid())),
        "{log}"
    );
    assert!(
        log.contains("search shop.svc.cluster.local svc.cluster.local"),
        "{log}"
    );
    assert!(log.contains("\nweb\n1000\n"), "{log}");
    assert!(
        log.contains("10.244.1.2/24") && log.contains("fd00:244:1::2/64"),
        "{log}"
    );
    let mut mounts = Command::new("cat");
    mounts.arg("/proc/self/mounts");
    let mounts = pod.stdout(mounts)?;
    assert!(
        !mounts.contains("nsfs"),
        "a pod keeps namespaces alive: {mounts}"
    );
    Ok(())
}

#[test]
fn an_address_is_taken_over_by_the_next_pod() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let client = node.pod("client")?;
    let first = node.pod_with(PodOptions::named("first").number(77))?;
    let echo = echo::http(first.listen(first.at(80))?, "first")?;
    let address = echo.address();
    assert_eq!(
        client.get(address, "x", "/")?.headers.first("x-server"),
        Some("first")
    );
    // The server's descriptors keep the namespace alive; the pod must be unreachable all the same.
    drop(first);

    let second = node.pod_with(PodOptions::named("second").number(77))?;
    let _second = echo::http(second.listen(address)?, "second")?;
    assert_eq!(
        client.get(address, "x", "/")?.headers.first("x-server"),
        Some("second")
    );
    drop(echo);
    Ok(())
}

#[test]
fn pods_beyond_the_first_253_are_reached_from_their_node_and_from_another() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let (node, other) = (cluster.node("n1")?, cluster.node("n2")?);
    let late = node.pod_with(PodOptions::named("late").number(300))?;
    assert_eq!(late.ip(), IpAddr::from([10, 245, 1, 44]));
    let _echo = echo::http(late.listen(late.at(80))?, "late")?;
    for client in [node.pod("client")?, other.pod("client")?] {
        let answer = client.get(late.at(80), "x", "/")?;
        assert_eq!(answer.headers.first("x-server"), Some("late"));
    }
    for number in [0, 1, 255, 256, 257, 511, 1023] {
        let refused = node.pod_with(PodOptions::named("none").number(number));
        assert!(refused.is_err(), "{number}");
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_a_run() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let id = cluster.id().as_str().to_owned();
    let node = cluster.node("n1")?;
    let pod = node.pod("a")?;
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let process = pod.spawn("sleep", sleep)?;
    assert!(!clean::traces(&id)?.is_empty());
    drop((cluster, node, pod, process));
    assert_eq!(clean::traces(&id)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() -> anyhow::Result<()> {
    require!(cluster);
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().context("stdout")?).lines();
    let id = loop {
        let line = lines.next().context("the victim ended")??;
        if let Some((_, id)) = line.split_once("run id ") {
            break id.to_owned();
        }
    };
    let made = clean::traces(&id)?;
    ensure!(made.len() > 3, "the victim made little: {made:?}");
    victim.kill()?;
    victim.wait()?;

    // Another test's first cluster may do it before this one.
    clean::dead()?;
    assert_eq!(clean::traces(&id)?, Vec::<String>::new());
    Ok(())
}

#[test]
#[ignore = "run and killed by the_next_run_removes_what_a_killed_one_left"]
fn victim() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let pod = node.pod("a")?;
    let mut command = Command::new("sh");
    command.args(["-c", "setsid sleep 1000 & sleep 1000"]);
    let _process = pod.spawn("sleep", command)?;
    println!("run id {}", cluster.id().as_str());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    std::thread::park();
    Ok(())
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let mut process = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("1000");
            node.spawn("sleep", command)
        });
        asked.join().unwrap()
    })?;
    eventually(SOON, "the thread's child runs", || {
        process.exited().is_none()
    });
    let pid = process.pid();
    assert!(node.cgroup().pids().contains(&pid));
    process.kill()?;
    assert!(!node.cgroup().pids().contains(&pid));
    Ok(())
}
