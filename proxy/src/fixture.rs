//! What tests of the data path are made of: resources by few words, and a worker that serves
//! them on this thread.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::cluster::Manager;
use crate::listener::accept;
use crate::listener::accepted::Origin;
use crate::listener::server_first::ServerFirst;
use crate::listener::stats::ListenerStats;
use crate::metrics::Telemetry;
use crate::pods::LocalPods;
use crate::resource::*;
use crate::snapshot::{Resources, Store};
use crate::worker::{Parts, Worker};

/// Everything that workers share, with the means to publish configurations.
pub(crate) struct Fixture {
    pub(crate) parts: Parts,
    pub(crate) manager: Manager,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self {
            parts: Parts {
                store: Arc::new(Store::new()),
                pods: Arc::new(LocalPods::default()),
                own_addresses: Arc::from([]),
                telemetry: Telemetry::new(),
                stats: ListenerStats::default(),
                server_first: ServerFirst::default(),
                accelerator: crate::acceleration::Accelerator::none(),
                handover: crate::handover::Handover::none(),
            },
            manager: Manager::new(),
        }
    }

    pub(crate) fn publish(
        &self,
        listeners: impl IntoIterator<Item = Listener>,
        clusters: impl IntoIterator<Item = Cluster>,
    ) {
        let resources = Resources {
            listeners: listeners
                .into_iter()
                .map(|l| (l.name.clone(), Arc::new(l)))
                .collect::<BTreeMap<_, _>>(),
            clusters: clusters
                .into_iter()
                .map(|c| (c.name.clone(), Arc::new(c)))
                .collect::<BTreeMap<_, _>>(),
            ..Resources::default()
        };
        self.parts.store.publish(&resources, &self.manager);
    }

    /// Serves listener `name` on a port of the kernel's choice; to be called in a `LocalSet`.
    pub(crate) async fn listen(&self, name: &str) -> Serving {
        let worker = Rc::new(self.parts.worker(0));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let stop = CancellationToken::new();
        let origin = Origin::Listener(name.into());
        let accepting = accept::run(worker.clone(), socket, origin, stop.clone());
        worker.tasks.spawn_local(accepting);
        Serving {
            worker,
            address,
            _stop: stop.drop_guard(),
        }
    }
}

/// A served listener.
pub(crate) struct Serving {
    pub(crate) worker: Rc<Worker>,
    pub(crate) address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

impl Serving {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

pub(crate) fn listener(name: &str, chains: impl IntoIterator<Item = FilterChain>) -> Listener {
    Listener {
        name: name.into(),
        address: "127.0.0.1:0".parse().unwrap(),
        bind_to_port: true,
        use_original_dst: false,
        direction: TrafficDirection::Outbound,
        workload: None,
        http_inspector: false,
        tls_inspector: false,
        listener_filters_timeout: Duration::ZERO,
        continue_on_listener_filters_timeout: true,
        filter_chains: chains.into_iter().map(Arc::new).collect(),
        default_filter_chain: None,
        access_log: Vec::new(),
    }
}

pub(crate) fn tcp_chain(name: &str, cluster: &str) -> FilterChain {
    FilterChain {
        name: name.into(),
        matches: FilterChainMatch::default(),
        filter: NetworkFilter::Tcp(Arc::new(TcpProxy {
            cluster: ClusterSpecifier::Cluster(cluster.into()),
            idle_timeout: Duration::from_hours(1),
            max_connect_attempts: 1,
            access_log: Vec::new(),
        })),
        origin: None,
    }
}

pub(crate) fn http_chain(name: &str, protocols: &[&str]) -> FilterChain {
    FilterChain {
        name: name.into(),
        matches: FilterChainMatch {
            application_protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
            ..FilterChainMatch::default()
        },
        filter: NetworkFilter::Http(Arc::new(http_connection_manager(name))),
        origin: None,
    }
}

fn http_connection_manager(name: &str) -> HttpConnectionManager {
    HttpConnectionManager {
        codec: Codec::Auto,
        routes: RouteSource::Rds(name.into()),
        server_name: None,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        generate_request_id: false,
        preserve_external_request_id: false,
        upgrades: Vec::new(),
        stream_idle_timeout: Duration::ZERO,
        request_headers_timeout: Duration::ZERO,
        request_timeout: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        max_request_headers_kb: 60,
        max_request_headers_count: 100,
        max_concurrent_streams: 100,
        normalize_path: false,
        merge_slashes: false,
        strip_any_host_port: false,
        access_log: Vec::new(),
    }
}

/// A static cluster of these endpoints.
pub(crate) fn cluster(name: &str, endpoints: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| {
        Arc::new(Endpoint {
            address: *address,
            hostname: None,
            weight: 1,
            health: HealthStatus::Healthy,
            canary: false,
            workload: None,
        })
    };
    Cluster {
        name: name.into(),
        alt_stat_name: None,
        kind: ClusterKind::Static(Arc::new(Endpoints {
            localities: vec![LocalityEndpoints {
                locality: Locality::default(),
                priority: 0,
                weight: 1,
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
            overprovisioning_factor: 140,
        })),
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        default_thresholds: Thresholds::default(),
        high_thresholds: Thresholds::default(),
        protocol: UpstreamProtocol::Http1,
        idle_timeout: Duration::ZERO,
        max_connection_duration: Duration::ZERO,
        max_requests_per_connection: 0,
        max_concurrent_streams: 100,
        tcp_keepalive: None,
        bind_source: BindSource::default(),
        panic_threshold: 50,
        added_via_api: false,
        service: None,
        subset: None,
        origin: None,
    }
}

/// Two ends of one TCP connection.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}
