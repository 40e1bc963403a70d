//! A pod is switched between eBPF and iptables while it works: no connection fails, old ones go on, and every
//! new one is captured once, by one of the two.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use millrace_e2e::load::{Connections, Load};
use millrace_e2e::{CAPTURE, Service};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, Node, PodOptions, require, until};

const HTTP: u16 = 8080;
const TCP: u16 = 9000;
const SOON: Duration = Duration::from_secs(20);
/// There and back, three times.
const SWITCHES: [&str; 6] = ["iptables", "ebpf", "iptables", "ebpf", "iptables", "ebpf"];
/// Requests, and connections of bytes, that have to succeed between two switches.
const BETWEEN: u64 = 20;

/// Counts, in a node's own namespace, packets to addresses of services. Nobody has those, so that such a packet
/// can only have left a pod past the proxy. The kernel counts: nothing is missed.
struct Leaks<'a> {
    node: &'a Node,
}

impl<'a> Leaks<'a> {
    fn watch(node: &'a Node, services: &[IpAddr]) -> anyhow::Result<Self> {
        for service in services {
            let mut rule = Command::new(tool(*service));
            rule.args(["-w", "-t", "raw", "-A", "PREROUTING", "-d"])
                .arg(service.to_string());
            node.stdout(rule)?;
        }
        Ok(Self { node })
    }

    fn packets(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for tool in ["iptables", "ip6tables"] {
            let mut list = Command::new(tool);
            list.args(["-w", "-t", "raw", "-vnxL", "PREROUTING"]);
            let listed = self.node.stdout(list)?;
            // Two lines of headings, then a rule on each line, its packets first.
            for line in listed.lines().skip(2) {
                let packets = line.split_whitespace().next().context("no counter")?;
                total += packets.parse::<u64>().with_context(|| line.to_owned())?;
            }
        }
        Ok(total)
    }
}

fn tool(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() {
        "iptables"
    } else {
        "ip6tables"
    }
}

/// Connections that carry bytes, of each family: some that last, and one after another.
struct Streams {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Streams {
    /// Starts both kinds.
    fn start(pod: &Arc<MeshPod>, to: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let mut streams = Self {
            stop: Arc::default(),
            made: Arc::default(),
            threads: Vec::new(),
        };
        streams.add(pod, to, false)?;
        streams.add(pod, to, true)?;
        Ok(streams)
    }

    /// Starts more of a kind, and waits until they are there.
    fn add(
        &mut self,
        pod: &Arc<MeshPod>,
        to: [SocketAddr; 2],
        lasting: bool,
    ) -> anyhow::Result<()> {
        for to in to {
            let (pod, stop) = (Arc::clone(pod), Arc::clone(&self.stop));
            let made = Arc::clone(&self.made);
            self.threads
                .push(thread::spawn(move || work(&pod, to, lasting, &stop, &made)));
        }
        self.more(2)
    }

    /// Waits until so many more connections were made.
    fn more(&self, connections: u64) -> anyhow::Result<()> {
        let goal = self.made.load(Ordering::Relaxed) + connections;
        until(SOON, || {
            let made = self.made.load(Ordering::Relaxed);
            ensure!(made >= goal, "{made} of {goal} connections");
            Ok(())
        })
    }

    /// Ends them all; how many there were, if none failed.
    fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(self.made.load(Ordering::Relaxed))
    }
}

/// The clients hold their pod, which would otherwise outlive a test that fails.
impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn work(
    pod: &MeshPod,
    to: SocketAddr,
    lasting: bool,
    stop: &AtomicBool,
    made: &AtomicU64,
) -> anyhow::Result<()> {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let mut stream = pod.connect(to)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut first = true;
        while first || lasting && !stop.load(Ordering::Relaxed) {
            number += 1;
            let sent = number.to_be_bytes();
            stream.write_all(&sent)?;
            let mut back = [0; 8];
            stream
                .read_exact(&mut back)
                .with_context(|| format!("message {number} to {to}, lasting {lasting}"))?;
            ensure!(back == sent, "{back:?} for {sent:?}");
            if first {
                made.fetch_add(1, Ordering::Relaxed);
            }
            first = false;
        }
    }
    Ok(())
}

/// The sum of a metric's series that have these labels, as a node's proxy counts them.
fn counted(node: &MeshNode, metric: &str, labels: &[&str]) -> anyhow::Result<u64> {
    let page = node.get(
        SocketAddr::from(([127, 0, 0, 1], 15020)),
        "metrics",
        "/metrics",
    )?;
    let mut total = 0;
    for line in page.text().lines().filter(|line| line.starts_with(metric)) {
        if labels.iter().all(|label| line.contains(label)) {
            let (_, value) = line.rsplit_once(' ').context("no value")?;
            total += value.parse::<u64>()?;
        }
    }
    Ok(total)
}

#[test]
fn a_pod_is_switched_under_load_and_every_connection_is_captured_once() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let (near, far) = (mesh.node("near")?, mesh.node("far")?);
    let service = Service::new("echo", 1)
        .port("http", HTTP)
        .port("tcp-echo", TCP);
    service.apply(&mesh)?;
    let backend = service.backend(&far, "v1", "ebpf")?;
    let client = Arc::new(near.pod(PodOptions::named("client").annotation(CAPTURE, "ebpf"))?);
    until(SOON, || {
        let answer = client.get(service.at(HTTP), "echo:8080", "/ready")?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })?;
    let leaks = Leaks::watch(&near, &[service.ip(), service.ip6()])?;
    let of_source = ["reporter=\"source\"", "destination_service_name=\"echo\""];
    let of_destination = ["reporter=\"destination\""];
    let (requests, opened) = ("istio_requests_total", "istio_tcp_connections_opened_total");
    let before = counted(&near, requests, &of_source)?;
    let before_there = counted(&far, requests, &of_destination)?;

    let clients = [Connections::Kept, Connections::New, Connections::New];
    let load = Load::start(&client, service.at(HTTP), "echo:8080", &clients)?;
    let both = [service.at(TCP), SocketAddr::new(service.ip6(), TCP)];
    let mut streams = Streams::start(&client, both)?;
    for mode in SWITCHES {
        // Both sides: what the client connects, and what its server accepts.
        near.switch(&client, mode)?;
        far.switch(&backend.pod, mode)?;
        load.more(BETWEEN)?;
        streams.more(BETWEEN)?;
        // Streams that begin under this mode outlast it, as those do that have begun before.
        streams.add(&client, both, true)?;
    }
    let outcome = load.stop()?;
    let connections = streams.stop()?;
    outcome.ensure_flawless()?;

    until(SOON, || {
        let by_source = counted(&near, requests, &of_source)? - before;
        let by_destination = counted(&far, requests, &of_destination)? - before_there;
        ensure!(
            (by_source, by_destination) == (outcome.answered, outcome.answered),
            "{} requests, counted {by_source} and {by_destination} times",
            outcome.answered
        );
        let by_source = counted(&near, opened, &of_source)?;
        let by_destination = counted(&far, opened, &of_destination)?;
        ensure!(
            (by_source, by_destination) == (connections, connections),
            "{connections} connections, counted {by_source} and {by_destination} times"
        );
        Ok(())
    })?;
    assert_eq!(leaks.packets()?, 0, "packets went past the proxy");
    println!(
        "{} switches, {} requests, slowest {:?}, {connections} connections of bytes",
        2 * SWITCHES.len(),
        outcome.answered,
        outcome.slowest
    );

    // What watches sees what it is to see.
    near.switch(&client, "none")?;
    for to in both {
        assert!(
            client
                .connect_within(to, Duration::from_millis(100))
                .is_err()
        );
    }
    assert!(leaks.packets()? >= 2, "the watch is blind");
    Ok(())
}
