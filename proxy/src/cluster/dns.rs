//! Addresses of `STRICT_DNS` and `LOGICAL_DNS` clusters: one task per cluster asks again and
//! again.
//!
//! Input: the DNS clusters of the configuration. Output: a [`Resolution`] whenever a cluster's
//! addresses change, and one after the first try, however it ended. A host that does not
//! resolve keeps its last good addresses. Driven by `xds::client`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::resource::cluster::{DnsFamily, DnsHosts};
use crate::resource::{
    Cluster, ClusterKind, ClusterName, Endpoint, Endpoints, HealthStatus, Locality,
    LocalityEndpoints,
};

#[cfg(test)]
mod tests;

/// Answers that the owner has not taken yet; resolving waits for it beyond that.
const BACKLOG: usize = 64;
/// A record that lives shorter than this is still asked for no more often.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Envoy's default overprovisioning factor.
const OVERPROVISIONING: u32 = 140;

/// Addresses of a cluster.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its endpoints; none while no host has ever resolved.
    pub endpoints: Arc<Endpoints>,
}

/// What DNS says of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// How long they hold.
    pub ttl: Duration,
}

/// A question in flight.
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send + 'a>>;

/// Whoever answers questions: the system's resolver, or a test.
pub trait Lookup: Send + Sync {
    /// Resolves `host`; an error says why it has no address.
    fn lookup<'a>(&'a self, host: &'a str, family: DnsFamily) -> LookupFuture<'a>;
}

/// The tasks of all DNS clusters.
pub struct DnsClusters {
    lookup: Arc<dyn Lookup>,
    tasks: HashMap<ClusterName, Task>,
    sender: mpsc::Sender<Resolution>,
}

struct Task {
    cluster: Arc<Cluster>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl DnsClusters {
    /// No clusters yet; resolutions arrive at the receiver.
    pub fn new(lookup: Arc<dyn Lookup>) -> (Self, mpsc::Receiver<Resolution>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let clusters = Self {
            lookup,
            tasks: HashMap::new(),
            sender,
        };
        (clusters, receiver)
    }

    /// Resolves exactly these clusters from now on. To be called on a Tokio runtime.
    pub fn set(&mut self, clusters: &[Arc<Cluster>]) {
        let wanted: HashMap<_, _> = clusters.iter().map(|c| (c.name.clone(), c)).collect();
        self.tasks.retain(|name, task| {
            wanted
                .get(name)
                .is_some_and(|cluster| Arc::ptr_eq(cluster, &task.cluster))
        });
        for (name, cluster) in wanted {
            if !self.tasks.contains_key(&name) {
                let task = Task {
                    handle: tokio::spawn(resolve(
                        cluster.clone(),
                        self.lookup.clone(),
                        self.sender.clone(),
                    )),
                    cluster: cluster.clone(),
                };
                self.tasks.insert(name, task);
            }
        }
    }
}

async fn resolve(cluster: Arc<Cluster>, lookup: Arc<dyn Lookup>, out: mpsc::Sender<Resolution>) {
    let (hosts, logical) = match &cluster.kind {
        ClusterKind::StrictDns(hosts) => (hosts, false),
        ClusterKind::LogicalDns(hosts) => (hosts, true),
        _ => return,
    };
    let mut known: Vec<Vec<IpAddr>> = vec![Vec::new(); hosts.hosts.len()];
    let mut told: Option<Vec<SocketAddr>> = None;
    loop {
        let asked = Instant::now();
        let pause = round(&cluster.name, hosts, lookup.as_ref(), &mut known).await;
        let addresses = addresses(hosts, &known, logical, told.as_deref());
        if told.as_ref() != Some(&addresses) {
            let endpoints = Arc::new(endpoints(hosts, &addresses, &known));
            let resolution = Resolution {
                cluster: cluster.name.clone(),
                endpoints,
            };
            if out.send(resolution).await.is_err() {
                return;
            }
            told = Some(addresses);
        }
        tokio::time::sleep_until(asked + pause).await;
    }
}

/// Asks for every host once; returns the time until the next round.
async fn round(
    cluster: &ClusterName,
    hosts: &DnsHosts,
    lookup: &dyn Lookup,
    known: &mut [Vec<IpAddr>],
) -> Duration {
    let questions = hosts.hosts.iter().map(|(host, _)| async move {
        match host.parse::<IpAddr>() {
            Ok(ip) => Ok(Answer {
                ips: vec![ip],
                ttl: Duration::MAX,
            }),
            Err(_) => lookup.lookup(host, hosts.family).await,
        }
    });
    let answers = futures_util::future::join_all(questions).await;
    let mut pause = hosts.refresh_rate;
    for ((known, answer), (host, _)) in known.iter_mut().zip(answers).zip(&hosts.hosts) {
        match answer {
            Ok(answer) => {
                if hosts.respect_ttl {
                    pause = pause.min(answer.ttl.max(MIN_TTL));
                }
                *known = answer.ips;
                known.sort_unstable();
                known.dedup();
            }
            Err(error) if known.is_empty() => {
                tracing::warn!(%cluster, host, error, "host does not resolve");
            }
            Err(error) => {
                tracing::warn!(%cluster, host, error, "host does not resolve, its last addresses stay");
            }
        }
    }
    pause
}

/// The addresses to use: all of them, or for a logical cluster one, which stays the same for as
/// long as DNS gives it.
fn addresses(
    hosts: &DnsHosts,
    known: &[Vec<IpAddr>],
    logical: bool,
    told: Option<&[SocketAddr]>,
) -> Vec<SocketAddr> {
    let all = hosts.hosts.iter().zip(known).flat_map(|((_, port), ips)| {
        ips.iter()
            .map(|ip| SocketAddr::new(ip.to_canonical(), *port))
    });
    if !logical {
        return all.collect();
    }
    let all: Vec<_> = all.collect();
    let before = told.and_then(<[_]>::first).filter(|a| all.contains(a));
    before.or(all.first()).copied().into_iter().collect()
}

fn endpoints(hosts: &DnsHosts, addresses: &[SocketAddr], known: &[Vec<IpAddr>]) -> Endpoints {
    let host_of = |address: &SocketAddr| {
        let mut named = hosts.hosts.iter().zip(known);
        named
            .find(|((_, port), ips)| {
                *port == address.port() && ips.iter().any(|ip| ip.to_canonical() == address.ip())
            })
            .map(|((host, _), _)| host.as_str().into())
    };
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            Arc::new(Endpoint {
                address: *address,
                hostname: host_of(address),
                weight: 1,
                health: HealthStatus::Unknown,
                canary: false,
                workload: None,
            })
        })
        .collect();
    Endpoints {
        localities: vec![LocalityEndpoints {
            locality: Locality::default(),
            priority: 0,
            weight: u32::try_from(endpoints.len()).unwrap_or(u32::MAX).max(1),
            endpoints,
        }],
        overprovisioning_factor: OVERPROVISIONING,
    }
}

/// The resolver of the system: `/etc/hosts` and the servers of `/etc/resolv.conf`. Answers are
/// not cached, as each cluster says how often it asks.
#[derive(Default)]
pub struct SystemLookup {
    resolvers: parking_lot::Mutex<HashMap<&'static str, TokioResolver>>,
}

impl SystemLookup {
    fn resolver(&self, family: DnsFamily) -> Result<TokioResolver, String> {
        let (key, strategy) = match family {
            DnsFamily::Auto => ("auto", LookupIpStrategy::Ipv6thenIpv4),
            DnsFamily::V4Only => ("v4", LookupIpStrategy::Ipv4Only),
            DnsFamily::V6Only => ("v6", LookupIpStrategy::Ipv6Only),
            DnsFamily::V4Preferred => ("v4-preferred", LookupIpStrategy::Ipv4thenIpv6),
            DnsFamily::All => ("all", LookupIpStrategy::Ipv4AndIpv6),
        };
        let mut resolvers = self.resolvers.lock();
        if let Some(resolver) = resolvers.get(key) {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio()
            .map_err(|error| format!("cannot read the system's resolver configuration: {error}"))?;
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        options.cache_size = 0;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        resolvers.insert(key, resolver.clone());
        Ok(resolver)
    }
}

impl Lookup for SystemLookup {
    fn lookup<'a>(&'a self, host: &'a str, family: DnsFamily) -> LookupFuture<'a> {
        Box::pin(async move {
            let resolver = self.resolver(family)?;
            let found = resolver
                .lookup_ip(host)
                .await
                .map_err(|error| error.to_string())?;
            let ips: Vec<_> = found.iter().collect();
            if ips.is_empty() {
                return Err("no address".to_owned());
            }
            let now = std::time::Instant::now();
            Ok(Answer {
                ips,
                ttl: found.valid_until().saturating_duration_since(now),
            })
        })
    }
}
