//! What is measured, one thing after the other.

use std::path::{Path, PathBuf};
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
use crate::rule::Proxy;

/// New nodes whose first service is timed, one at a time.
const NEW_NODES: usize = 50;
/// A burst is over when no node was sent anything for this long.
const QUIET: Duration = Duration::from_secs(2);
/// The first node waits for the pilot to read everything; nodes are started this many at a time.
const TOGETHER: usize = 50;
/// Between two pods of a rolling restart.
const PACE: Duration = Duration::from_millis(10);
/// Between two rules.
const REST: Duration = Duration::from_millis(50);

struct Bench {
    mesh: Mesh,
    directory: PathBuf,
    pilot: Pilot,
    /// When pilot was.
    started: Instant,
    nodes: Vec<Node>,
    expectation: Expectation,
}

/// Runs everything and gives the figures.
pub(crate) async fn run(args: &Args) -> anyhow::Result<Value> {
    let scratch = tempfile::tempdir().context("a place for the mesh's files")?;
    let mut bench = Bench::start(args, scratch.path()).await?;
    let mut figures = Figures::default();
    let mesh = bench.mesh;
    figures.note("services", json!(mesh.services));
    figures.note("endpoints", json!(mesh.services * mesh.endpoints));
    figures.note("nodes", json!(mesh.nodes));
    let interested = mesh.nodes_of(mesh.namespaces() - 1).len();
    figures.note("nodes_of_a_namespace", json!(interested));
    let first = bench.connect_first().await?;
    figures.note("first_node_served_ms", json!(millis(first)));
    figures.note("read_rss_bytes", json!(bench.pilot.usage()?.rss));
    let alone = bench.rules(args, scratch.path()).await?;
    figures.note("rule_in_force_with_one_node", alone);
    let all = bench.connect_all().await?;
    let connected = bench.pilot.usage()?;
    figures.note("all_nodes_served_ms", json!(millis(all)));
    figures.note("initial_bytes", json!(bench.received().bytes));
    figures.note("initial_cpu_ms", json!(millis(connected.cpu)));
    figures.note("connected_rss_bytes", json!(connected.rss));
    bench.changes(args.changes, &mut figures).await?;
    let rules = bench.rules(args, scratch.path()).await?;
    figures.note("rule_in_force", rules);
    figures.note("new_node", bench.new_nodes().await?);
    let restart = bench.rolling_restart(args.restarts).await?;
    figures.note("rolling_restart", restart);
    figures.note("on_demand", bench.on_demand().await?);
    let after = bench.pilot.usage()?;
    figures.note("rss_bytes", json!(after.rss));
    figures.note("peak_rss_bytes", json!(after.peak));
    Ok(Value::Object(figures.0))
}

/// What has been measured so far.
#[derive(Debug, Default)]
struct Figures(serde_json::Map<String, Value>);

impl Figures {
    /// Keeps a figure, and shows it: a run takes minutes.
    fn note(&mut self, name: &str, value: Value) {
        eprintln!("    {name}: {value}");
        self.0.insert(name.to_owned(), value);
    }
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
    async fn start(args: &Args, scratch: &Path) -> anyhow::Result<Self> {
        let mesh = Mesh {
            services: args.services.max(1),
            endpoints: (args.endpoints / args.services.max(1)).max(1),
            nodes: args.nodes.max(1),
        };
        let directory = scratch.join("config");
        std::fs::create_dir_all(&directory)?;
        mesh.write(&directory)?;
        let started = Instant::now();
        let pilot = Pilot::start(&args.pilot, scratch, &directory).await?;
        Ok(Self {
            mesh,
            directory,
            pilot,
            started,
            nodes: Vec::new(),
            expectation: Expectation::default(),
        })
    }

    /// Endpoints and routes that change, of services that some nodes have and of such that all have.
    async fn changes(&self, changes: usize, figures: &mut Figures) -> anyhow::Result<()> {
        let endpoints = self.endpoint_changes(changes, false).await?;
        figures.note("endpoint_change", endpoints);
        let shared = self.endpoint_changes(changes.div_ceil(5), true).await?;
        figures.note("endpoint_change_to_all_nodes", shared);
        let routes = self.route_changes(changes, false).await?;
        figures.note("route_change", routes);
        let shared = self.route_changes(changes.div_ceil(20), true).await?;
        figures.note("route_change_to_all_nodes", shared);
        Ok(())
    }

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

    /// The time until the first node is served, which waits for pilot to read everything.
    async fn connect_first(&mut self) -> anyhow::Result<Duration> {
        let mut node = self.node(0, self.wants(0))?;
        node.served().await?;
        self.nodes.push(node);
        Ok(self.started.elapsed())
    }

    /// The time until all others are served.
    async fn connect_all(&mut self) -> anyhow::Result<Duration> {
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
        Ok(begin.elapsed())
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

    /// Weights that change, each timed until every node of the namespace has the routes; of a shared service,
    /// until every node of the mesh has those of one of its namespaces.
    async fn route_changes(&self, changes: usize, shared: bool) -> anyhow::Result<Value> {
        let split: Vec<usize> = self.services_where(shared, Mesh::is_split);
        let change = |number: usize| {
            let service = split[number % split.len()];
            // Where all is one namespace, both kinds of services are the same ones.
            let weight = u8::try_from(number / split.len() % 40).unwrap_or(0);
            let weight = weight + if shared { 50 } else { 10 };
            let namespace = Mesh::namespace_of(service);
            let of = |namespace: usize| format!("n{namespace}/80");
            let names = if shared {
                (0..self.mesh.namespaces()).map(of).collect()
            } else {
                vec![of(namespace)]
            };
            Change {
                names,
                nodes: self.mesh.interested_in(service),
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

    /// Rules that are written, each timed until a proxy answers by it.
    async fn rules(&self, args: &Args, scratch: &Path) -> anyhow::Result<Value> {
        let Some(binary) = &args.proxy else {
            return Ok(Value::Null);
        };
        let services = self.services_where(false, Mesh::is_split);
        let service = *services.last().context("a mesh without services")?;
        let namespace = format!("n{}", Mesh::namespace_of(service));
        let proxy = Proxy::start(binary, scratch, &self.pilot.xds, &namespace).await?;
        let mut connection = proxy.connect().await?;
        let host = mesh::host(service);
        mesh::write_answer(&self.directory, service, "first")?;
        connection.until(&host, "first").await?;
        let mut times = Vec::new();
        for number in 0..args.changes {
            // Not in step with anything that pilot does at intervals.
            tokio::time::sleep(REST + PACE * u32::try_from(number % 7)?).await;
            let answer = format!("answer-{number}");
            let start = Instant::now();
            mesh::write_answer(&self.directory, service, &answer)?;
            let seen = connection.until(&host, &answer).await?;
            times.push(seen.saturating_duration_since(start));
        }
        mesh::write_rule(&self.directory, service, 90)?;
        Ok(summary(&times))
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
        // Without a Sidecar its routes have every service; clusters and endpoints it asks for by name.
        let (unscoped_bytes, _) = self.caller("all", &few, false).await?;
        let (all_bytes, all_time) = self.caller("all", &all, false).await?;
        let (with_names, _) = self.caller("few", &few, true).await?;
        Ok(json!({
            "services": few.len(),
            "bytes": few_bytes,
            "unscoped_bytes": unscoped_bytes,
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
