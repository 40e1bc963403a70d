//! A simulated node: subscribes as the node proxy does, answers everything with an ACK, keeps versions
//! and counts bytes, and serves nothing.
//!
//! Listeners of its namespaces and pods first; a namespace's routes once its listener is there, the
//! clusters once the routes are, endpoints once the cluster is.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use millrace_xds::TypeUrl;
use millrace_xds::client::{Client, ClientConfig, Event, Events, Update, client};
use millrace_xds::node::Node as Identity;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::expect::Expectation;

/// What a node wants.
#[derive(Clone, Debug)]
pub(crate) struct Wants {
    /// Of the node, as pods name it.
    pub(crate) name: String,
    /// Namespaces, each with the clusters that its routes lead to.
    pub(crate) namespaces: Vec<(String, Vec<String>)>,
    /// Its pods, as `namespace/name`.
    pub(crate) pods: Vec<String>,
    /// Whether it asks for the table of names.
    pub(crate) names: bool,
}

/// Bytes that came, as names, versions and bodies of resources.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) bytes: AtomicU64,
    /// Of these, resources that were expected.
    pub(crate) expected: AtomicU64,
    /// Bytes of resources that the node had in the same version.
    pub(crate) again: AtomicU64,
    pub(crate) resources: AtomicU64,
}

/// A node at work; its stream ends when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) counts: Arc<Counts>,
    driver: JoinHandle<()>,
    consumer: JoinHandle<()>,
    served: Option<oneshot::Receiver<Instant>>,
    started: Instant,
}

impl Node {
    /// Connects.
    pub(crate) fn start(
        server: &str,
        number: usize,
        wants: Wants,
        expectation: Expectation,
    ) -> anyhow::Result<Self> {
        let id = format!("node~127.0.0.1~{}~cluster.local", wants.name);
        let identity = Identity {
            id,
            ..Identity::default()
        };
        let identity = identity.with_metadata("NODE_NAME", wants.name.as_str());
        let (handle, events, driver) =
            client(ClientConfig::new(server, identity)).context("the pilot's address")?;
        let counts = Arc::new(Counts::default());
        let (done, complete) = oneshot::channel();
        let started = Instant::now();
        let mut terms: Vec<String> = wants
            .namespaces
            .iter()
            .map(|(ns, _)| format!("{ns}/*"))
            .collect();
        terms.extend(wants.pods.iter().map(|pod| format!("pod/{pod}")));
        handle.subscribe(&TypeUrl::LISTENER, terms);
        if wants.names {
            handle.subscribe(&TypeUrl::NAME_TABLE, ["*"]);
        }
        let consumer = Consumer {
            number,
            handle,
            missing: missing(&wants),
            wants,
            versions: HashMap::new(),
            counts: Arc::clone(&counts),
            expectation,
            done: Some(done),
        };
        Ok(Self {
            counts,
            driver: tokio::spawn(driver.run()),
            consumer: tokio::spawn(consumer.run(events)),
            served: Some(complete),
            started,
        })
    }

    /// Waits until it has everything; how long that took since it began to connect.
    pub(crate) async fn served(&mut self) -> anyhow::Result<Duration> {
        let complete = self.served.take().context("asked twice")?;
        let at = complete.await.context("the node ended")?;
        Ok(at.saturating_duration_since(self.started))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
        self.consumer.abort();
    }
}

/// The names of everything that a node is to get.
fn missing(wants: &Wants) -> HashSet<String> {
    let mut all = HashSet::new();
    for (namespace, clusters) in &wants.namespaces {
        all.insert(format!("L{namespace}/0.0.0.0_80"));
        all.insert(format!("R{namespace}/80"));
        for cluster in clusters {
            all.insert(format!("C{cluster}"));
            all.insert(format!("E{cluster}"));
        }
    }
    all.extend(wants.pods.iter().map(|pod| format!("Lpod/{pod}")));
    all.extend(wants.names.then(|| "Nnametable".to_owned()));
    all
}

/// What takes a node's events.
struct Consumer {
    number: usize,
    handle: Client,
    wants: Wants,
    missing: HashSet<String>,
    versions: HashMap<u64, u64>,
    counts: Arc<Counts>,
    expectation: Expectation,
    done: Option<oneshot::Sender<Instant>>,
}

impl Consumer {
    async fn run(mut self, mut events: Events) {
        while let Some(event) = events.next().await {
            if let Event::Update(update) = event {
                self.take(&update);
                update.commit();
            }
        }
    }

    fn take(&mut self, update: &Update) {
        let now = Instant::now();
        let letter = letter(&update.type_url);
        let mut names = Vec::new();
        for resource in &update.resources {
            let bytes =
                (resource.name.len() + resource.version.len() + resource.body.value.len()) as u64;
            self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.counts.resources.fetch_add(1, Ordering::Relaxed);
            let key = hash(&(letter, &resource.name));
            let version = hash(&resource.version);
            if self.versions.insert(key, version) == Some(version) {
                self.counts.again.fetch_add(bytes, Ordering::Relaxed);
            }
            if self.expectation.arrived(self.number, &resource.name, now) {
                self.counts.expected.fetch_add(bytes, Ordering::Relaxed);
            }
            if self.done.is_some() {
                self.missing.remove(&format!("{letter}{}", resource.name));
                names.push(resource.name.as_str());
            }
        }
        if self.done.is_some() {
            self.follow(&update.type_url, &names);
        }
        if self.missing.is_empty()
            && let Some(done) = self.done.take()
        {
            self.missing = HashSet::new();
            // Nobody may be waiting.
            done.send(now).ok();
        }
    }

    /// Subscribes to what these lead to.
    fn follow(&self, type_url: &TypeUrl, names: &[&str]) {
        if *type_url == TypeUrl::LISTENER {
            let routes = names
                .iter()
                .filter_map(|name| name.strip_suffix("/0.0.0.0_80"));
            let routes: Vec<String> = routes.map(|ns| format!("{ns}/80")).collect();
            self.handle.subscribe(&TypeUrl::ROUTE, routes);
        } else if *type_url == TypeUrl::ROUTE {
            for (namespace, clusters) in &self.wants.namespaces {
                if names
                    .iter()
                    .any(|name| name.strip_suffix("/80") == Some(namespace))
                {
                    self.handle.subscribe(&TypeUrl::CLUSTER, clusters);
                }
            }
        } else if *type_url == TypeUrl::CLUSTER {
            self.handle.subscribe(&TypeUrl::ENDPOINT, names);
        }
    }
}

fn letter(type_url: &TypeUrl) -> char {
    let known = [
        (TypeUrl::LISTENER, 'L'),
        (TypeUrl::ROUTE, 'R'),
        (TypeUrl::CLUSTER, 'C'),
        (TypeUrl::ENDPOINT, 'E'),
    ];
    let found = known.iter().find(|(known, _)| known == type_url);
    found.map_or('N', |(_, letter)| *letter)
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
