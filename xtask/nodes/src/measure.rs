//! What is measured, one thing after the other.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Args;
use crate::expect::Expectation;
use crate::figures::{millis, summary};
use crate::mesh::{self, Mesh, SHARED, Version};
use crate::node::{Node, Wants};
use crate::pilot::Pilot;

/// New nodes whose first service is timed, one at a time.
const NEW_NODES: usize = 50;
/// A burst is over when no node was sent anything for this long.
const QUIET: Duration = Duration::from_secs(2);
/// The first node waits for the pilot to read everything; nodes are started this many at a time.
const TOGETHER: usize = 50;
/// Between two pods of a rolling restart.
const PACE: Duration = Duration::from_millis(10);

struct Bench {
    mesh: Mesh,
    directory: PathBuf,
    pilot: Pilot,
    nodes: Vec<Node>,
    expectation: Expectation,
}

/// Runs everything and gives the figures.
pub(crate) async fn run(args: &Args) -> anyhow::Result<Value> {
    let mesh = Mesh {
        services: args.services.max(1),
        endpoints: (args.endpoints / args.services.max(1)).max(1),
        nodes: args.nodes.max(1),
    };
    let scratch = tempfile::tempdir().context("a place for the mesh's files")?;
    let directory = scratch.path().join("config");
    std::fs::create_dir_all(&directory)?;
    mesh.write(&directory)?;
    let started = Instant::now();
    let pilot = Pilot::start(&args.pilot, scratch.path(), &directory).await?;
    let mut bench = Bench {
        mesh,
        directory,
        pilot,
        nodes: Vec::new(),
        expectation: Expectation::default(),
    };
    let (first, all) = bench.connect(started).await?;
    let connected = bench.pilot.usage()?;
    let initial = bench.received();
    say("endpoint changes");
    let endpoints = bench.endpoint_changes(args.changes, false).await?;
    let shared = bench
        .endpoint_changes(args.changes.div_ceil(5), true)
        .await?;
    say("route changes");
    let routes = bench.route_changes(args.changes).await?;
    say("new nodes");
    let new_nodes = bench.new_nodes().await?;
    say("rolling restart");
    let restart = bench.rolling_restart(args.restarts).await?;
    say("subscriptions on demand");
    let on_demand = bench.on_demand().await?;
    let after = bench.pilot.usage()?;
    Ok(json!({
        "services": mesh.services,
        "endpoints": mesh.services * mesh.endpoints,
        "nodes": mesh.nodes,
        "nodes_of_a_namespace": mesh.nodes_of(mesh.namespaces() - 1).len(),
        "first_node_served_ms": millis(first),
        "all_nodes_served_ms": millis(all),
        "initial_bytes": initial.bytes,
        "initial_cpu_ms": millis(connected.cpu),
        "connected_rss_bytes": connected.rss,
        "endpoint_change": endpoints,
        "endpoint_change_to_all_nodes": shared,
        "route_change": routes,
        "new_node": new_nodes,
        "rolling_restart": restart,
        "on_demand": on_demand,
        "rss_bytes": after.rss,
        "peak_rss_bytes": after.peak,
    }))
}

/// What all nodes have been sent.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    bytes: u64,
    /// Of these, the resources that were expected.
    changed: u64,
    /// And those that the node had in the same version.
    again: u64,
    resources: u64,
}

/// A change of the configuration, and who is to see it.
struct Change<'a> {
    /// The resources that show it.
    names: Vec<String>,
    nodes: Vec<usize>,
    write: Box<dyn FnOnce() -> anyhow::Result<()> + 'a>,
}

impl Bench {
    fn wants(&self, node: usize) -> Wants {
        let namespaces = self.mesh.namespaces_on(node).into_iter();
        let clusters = |namespace: usize| {
            let reached = self.mesh.reached_from(namespace).into_iter();
            reached.flat_map(Mesh::clusters_of).collect()
        };
        Wants {
            name: mesh::node_name(node),
            namespaces: namespaces
                .map(|ns| (format!("n{ns}"), clusters(ns)))
                .collect(),
            pods: self.mesh.pods_on(node),
            names: false,
        }
    }

    fn node(&self, number: usize, wants: Wants) -> anyhow::Result<Node> {
        Node::start(&self.pilot.xds, number, wants, self.expectation.clone())
    }

    /// The time until the first node is served, which waits for pilot to read everything, and until
    /// all are.
    async fn connect(&mut self, started: Instant) -> anyhow::Result<(Duration, Duration)> {
        say("first node");
        let mut node = self.node(0, self.wants(0))?;
        node.served().await?;
        let first = started.elapsed();
        self.nodes.push(node);
        say("all nodes");
        let begin = Instant::now();
        while self.nodes.len() < self.mesh.nodes {
            let from = self.nodes.len();
            for number in from..(from + TOGETHER).min(self.mesh.nodes) {
                let node = self.node(number, self.wants(number))?;
                self.nodes.push(node);
            }
            for node in &mut self.nodes[from..] {
                node.served().await?;
            }
        }
        Ok((first, begin.elapsed()))
    }

    fn received(&self) -> Received {
        let mut all = Received::default();
        for node in &self.nodes {
            all.bytes += node.counts.bytes.load(Ordering::Relaxed);
            all.changed += node.counts.expected.load(Ordering::Relaxed);
            all.again += node.counts.again.load(Ordering::Relaxed);
            all.resources += node.counts.resources.load(Ordering::Relaxed);
        }
        all
    }

    /// Endpoints that come and go, each timed until every node whose pods may call the service has it.
    async fn endpoint_changes(&self, changes: usize, shared: bool) -> anyhow::Result<Value> {
        let services = self.plain_services(shared);
        let step = (services.len() / changes.max(1)).max(1);
        let change = |number: usize| {
            let service = services[number * step % services.len()];
            let lap = number * step / services.len();
            let version = Version {
                // Where all is one namespace, both kinds of services are the same ones.
                down: lap.is_multiple_of(2).then_some(usize::from(shared)),
                ..Version::default()
            };
            Change {
                names: Mesh::clusters_of(service),
                nodes: self.mesh.interested_in(service),
                write: Box::new(move || self.write_service(service, version)),
            }
        };
        self.time(changes, change).await
    }

    /// Weights that change, each timed until every node of the namespace has the routes.
    async fn route_changes(&self, changes: usize) -> anyhow::Result<Value> {
        let split: Vec<usize> = self.services_where(false, Mesh::is_split);
        let change = |number: usize| {
            let service = split[number % split.len()];
            let weight = 10 + u8::try_from(number / split.len() % 80).unwrap_or(0);
            let namespace = Mesh::namespace_of(service);
            Change {
                names: vec![format!("n{namespace}/80")],
                nodes: self.mesh.nodes_of(namespace),
                write: Box::new(move || mesh::write_rule(&self.directory, service, weight)),
            }
        };
        self.time(changes, change).await
    }

    fn plain_services(&self, shared: bool) -> Vec<usize> {
        self.services_where(shared, |service| !Mesh::is_split(service))
    }

    /// Services of the shared namespace or of the others, where there are any.
    fn services_where(&self, shared: bool, fits: impl Fn(usize) -> bool) -> Vec<usize> {
        let only = self.mesh.namespaces() == 1;
        let all = (0..self.mesh.services).filter(|service| fits(*service));
        let mut services: Vec<usize> = all
            .filter(|service| only || (Mesh::namespace_of(*service) == SHARED) == shared)
            .collect();
        if services.is_empty() {
            services.push(0);
        }
        services
    }

    fn write_service(&self, service: usize, version: Version) -> anyhow::Result<()> {
        let hosts = self.mesh.nodes_of(Mesh::namespace_of(service));
        self.mesh
            .write_service(&self.directory, service, &hosts, version)
    }

    /// Makes changes one after the other and times them.
    async fn time<'a>(
        &self,
        changes: usize,
        change: impl Fn(usize) -> Change<'a>,
    ) -> anyhow::Result<Value> {
        let (before, received) = (self.pilot.usage()?, self.received());
        let (mut last, mut each) = (Vec::new(), Vec::new());
        let mut nodes = 0;
        for number in 0..changes {
            let change = change(number);
            let arrivals = self.expectation.set(change.names);
            let start = Instant::now();
            (change.write)()?;
            let times = arrivals.all(&change.nodes, start).await?;
            nodes = change.nodes.len();
            last.extend(times.iter().max().copied());
            each.extend(times);
        }
        let (after, now) = (self.pilot.usage()?, self.received());
        let count = u32::try_from(changes.max(1))?;
        Ok(json!({
            "nodes": nodes,
            "at_every_node": summary(&last),
            "at_a_node": summary(&each),
            "pilot_cpu_ms_per_change": millis(after.cpu.saturating_sub(before.cpu) / count),
            "bytes_per_change": (now.bytes - received.bytes) / u64::from(count),
            "bytes_sent_again": now.again - received.again,
        }))
    }

    /// Nodes that join a mesh at work, one at a time.
    async fn new_nodes(&self) -> anyhow::Result<Value> {
        let mut times = Vec::new();
        let mut bytes = 0;
        for number in 0..NEW_NODES {
            let like = number * self.mesh.nodes / NEW_NODES;
            let wants = Wants {
                name: format!("new-{number}"),
                ..self.wants(like)
            };
            let mut node = self.node(self.mesh.nodes + number, wants)?;
            times.push(node.served().await?);
            bytes = node.counts.bytes.load(Ordering::Relaxed);
        }
        Ok(json!({ "served": summary(&times), "bytes": bytes }))
    }

    /// Pods of whole services replaced one after the other, in all of these services at a time.
    async fn rolling_restart(&self, restarts: usize) -> anyhow::Result<Value> {
        let services = self.plain_services(false);
        let count = (restarts / self.mesh.endpoints).clamp(1, services.len());
        let services = &services[services.len() - count..];
        let names = services.iter().copied().flat_map(Mesh::clusters_of);
        let arrivals = self.expectation.set(names);
        let (usage, before) = (self.pilot.usage()?, self.received());
        let start = Instant::now();
        for replaced in 1..=self.mesh.endpoints {
            for service in services {
                let version = Version {
                    replaced,
                    ..Version::default()
                };
                self.write_service(*service, version)?;
                tokio::time::sleep(PACE).await;
            }
        }
        let lasted = start.elapsed();
        let after = self.quiet().await;
        drop(arrivals);
        let usage_after = self.pilot.usage()?;
        let pods = count * self.mesh.endpoints;
        Ok(json!({
            "pods": pods,
            "lasted_ms": millis(lasted),
            "bytes": after.bytes - before.bytes,
            "bytes_of_changed_resources": after.changed - before.changed,
            "bytes_sent_again": after.again - before.again,
            "resources": after.resources - before.resources,
            "pilot_cpu_ms_per_pod": millis(usage_after.cpu.saturating_sub(usage.cpu) / u32::try_from(pods)?),
        }))
    }

    /// Waits until no node is sent anything any more.
    async fn quiet(&self) -> Received {
        let mut last = self.received();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.received();
            if now.resources == last.resources {
                return now;
            }
            last = now;
        }
    }

    /// A node whose pods call few services beside one whose pods call all, and what the table of all
    /// names costs either.
    async fn on_demand(&self) -> anyhow::Result<Value> {
        let few = mesh::few(&self.mesh);
        let all: Vec<usize> = (0..self.mesh.services).collect();
        let (few_bytes, few_time) = self.caller("few", &few, false).await?;
        let (all_bytes, all_time) = self.caller("all", &all, false).await?;
        let (with_names, _) = self.caller("few", &few, true).await?;
        Ok(json!({
            "services": few.len(),
            "bytes": few_bytes,
            "served_ms": millis(few_time),
            "full_bytes": all_bytes,
            "full_served_ms": millis(all_time),
            "table_of_names_bytes": with_names.saturating_sub(few_bytes),
        }))
    }

    async fn caller(
        &self,
        namespace: &str,
        services: &[usize],
        names: bool,
    ) -> anyhow::Result<(u64, Duration)> {
        let clusters = services.iter().copied().flat_map(Mesh::clusters_of);
        let wants = Wants {
            name: format!("of-{namespace}"),
            namespaces: vec![(namespace.to_owned(), clusters.collect())],
            pods: vec![format!("{namespace}/caller")],
            names,
        };
        let mut node = self.node(self.mesh.nodes + NEW_NODES, wants)?;
        let time = node.served().await?;
        Ok((node.counts.bytes.load(Ordering::Relaxed), time))
    }
}

fn say(what: &str) {
    eprintln!("    {what}");
}
