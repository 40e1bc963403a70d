//! A worker of the proxy on a thread of its own, serving HTTP from a static configuration, and
//! raw peers on both sides of it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::StatusCode;
use millrace_proxy::cluster::Manager;
use millrace_proxy::http::connection;
use millrace_proxy::listener::DownstreamInfo;
use millrace_proxy::listener::server_first::ServerFirst;
use millrace_proxy::listener::stats::ListenerStats;
use millrace_proxy::metrics::{Telemetry, TelemetryCollector};
use millrace_proxy::pods::{LocalPod, LocalPods, Want};
use millrace_proxy::resource::*;
use millrace_proxy::snapshot::{Resources, Store};
use millrace_proxy::socket::Stream;
use millrace_proxy::worker::Parts;
use millrace_runtime::handoff::{CaptureMode, Families, Family, PodSpec, SocketKind};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

/// What a proxy of a test is made of.
pub(crate) struct Setup {
    pub(crate) hcm: HttpConnectionManager,
    pub(crate) routes: RouteConfiguration,
    pub(crate) clusters: Vec<Cluster>,
}

/// A running proxy; it ends on drop.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) manager: Arc<Manager>,
    pub(crate) store: Arc<Store>,
    /// Pods of the proxy's node.
    pub(crate) pods: Arc<LocalPods>,
    resources: Resources,
    telemetry: Arc<Telemetry>,
    log: PathBuf,
    dir: tempfile::TempDir,
    writer: Option<millrace_proxy::access_log::sink::Writer>,
    stop: CancellationToken,
    drain: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

pub(crate) const ROUTES: &str = "test";
pub(crate) const LOG_FORMAT: &str = concat!(
    "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT% %GRPC_STATUS_NUMBER% %ROUTE_NAME%\n",
);

impl Setup {
    /// Everything goes to cluster `main` at these addresses.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        let route = route("/", forward(ClusterSpecifier::Cluster("main".into())));
        Self {
            hcm: hcm(),
            routes: routes(vec![route]),
            clusters: vec![cluster("main", addresses)],
        }
    }

    pub(crate) fn action(mut self, edit: impl FnOnce(&mut RouteAction)) -> Self {
        let vhost = Arc::make_mut(&mut self.routes.virtual_hosts[0]);
        let route = Arc::make_mut(&mut vhost.routes[0]);
        let Action::Forward(action) = &mut route.action else {
            panic!("the first route forwards");
        };
        edit(Arc::make_mut(action));
        self
    }

    pub(crate) fn cluster(mut self, edit: impl FnOnce(&mut Cluster)) -> Self {
        edit(&mut self.clusters[0]);
        self
    }

    pub(crate) fn hcm(mut self, edit: impl FnOnce(&mut HttpConnectionManager)) -> Self {
        edit(&mut self.hcm);
        self
    }

    pub(crate) fn start(self) -> Proxy {
        Proxy::start(self)
    }
}

impl Proxy {
    fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("access.log");
        let mut hcm = setup.hcm;
        hcm.access_log = vec![AccessLog {
            path: log.display().to_string(),
            format: Some(AccessLogFormat::Text(LOG_FORMAT.into())),
        }];
        let telemetry = Telemetry::new();
        let writer = telemetry.sinks().start().unwrap();
        let (store, manager) = (Arc::new(Store::new()), Arc::new(Manager::new()));
        let mut resources = Resources::default();
        resources
            .routes
            .insert(ROUTES.into(), Arc::new(setup.routes));
        for cluster in setup.clusters {
            resources
                .clusters
                .insert(cluster.name.clone(), Arc::new(cluster));
        }
        store.publish(&resources, &manager);
        let pods = Arc::new(LocalPods::default());
        let parts = Parts {
            store: store.clone(),
            pods: pods.clone(),
            own_addresses: Arc::from([]),
            telemetry: telemetry.clone(),
            stats: ListenerStats::default(),
            server_first: ServerFirst::default(),
            accelerator: millrace_proxy::acceleration::Accelerator::none(),
            handover: millrace_proxy::handover::Handover::none(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, draining) = (stop.clone(), drain.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = LocalSet::new();
            local.block_on(&runtime, run(parts, listener, hcm, stopped, draining));
        });
        Self {
            address,
            manager,
            store,
            pods,
            resources,
            telemetry,
            log,
            dir,
            writer: Some(writer),
            stop,
            drain,
            thread: Some(thread),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// A pod of this node at `ip`, with sockets into it; what it asks for goes to the receiver.
    pub(crate) fn add_pod(&self, uid: &str, ip: IpAddr) -> mpsc::UnboundedReceiver<Want> {
        let (wants, asked) = mpsc::unbounded_channel();
        let spec = PodSpec {
            uid: uid.into(),
            name: uid.into(),
            namespace: "default".into(),
            ips: vec![ip],
            ..PodSpec::default()
        };
        let pod = LocalPod::new(spec, Families::default(), CaptureMode::Ebpf, &wants);
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let sockets = (0..4).map(|_| socket().unwrap().into());
        pod.pool(SocketKind::Delivery, Family::V4)
            .fill(sockets.collect());
        self.pods.insert(&Arc::new(pod));
        asked
    }

    /// Publishes the resources after a change.
    pub(crate) fn update(&mut self, edit: impl FnOnce(&mut Resources)) {
        edit(&mut self.resources);
        self.store.publish(&self.resources, &self.manager);
    }

    pub(crate) fn metrics(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(TelemetryCollector(self.telemetry.clone())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// Ends the proxy and returns its access log.
    pub(crate) fn log(mut self) -> Vec<String> {
        self.end();
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let _ = &self.dir;
        text.lines().map(str::to_owned).collect()
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        drop(self.writer.take());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

async fn run(
    parts: Parts,
    listener: TcpListener,
    hcm: HttpConnectionManager,
    stop: CancellationToken,
    drain: CancellationToken,
) {
    let worker = Rc::new(parts.worker(0));
    let hcm = Arc::new(hcm);
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = drain.cancelled(), if !worker.drain.is_cancelled() => {
                worker.drain.cancel();
                continue;
            }
            accepted = listener.accept() => accepted.unwrap(),
        };
        let local = stream.local_addr().unwrap();
        let info = Rc::new(DownstreamInfo {
            id: worker.next_connection_id(),
            pod: None,
            peer,
            local,
            orig_dst: local,
            direction: TrafficDirection::Outbound,
            listener: "test".into(),
            filter_chain: String::new(),
            server_name: None,
            started: tokio::time::Instant::now(),
        });
        let serving = connection::serve(worker.clone(), Stream::new(stream), info, hcm.clone());
        tokio::task::spawn_local(serving);
    }
}

pub(crate) fn hcm() -> HttpConnectionManager {
    HttpConnectionManager {
        codec: Codec::Auto,
        routes: RouteSource::Rds(ROUTES.into()),
        server_name: Some("istio-envoy".into()),
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        generate_request_id: true,
        preserve_external_request_id: false,
        upgrades: vec!["websocket".into()],
        stream_idle_timeout: Duration::from_mins(5),
        request_headers_timeout: Duration::from_secs(10),
        request_timeout: Duration::ZERO,
        idle_timeout: Duration::from_hours(1),
        max_request_headers_kb: 60,
        max_request_headers_count: 100,
        max_concurrent_streams: 0,
        normalize_path: true,
        merge_slashes: false,
        strip_any_host_port: false,
        access_log: Vec::new(),
    }
}

pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    let endpoints = addresses
        .iter()
        .map(|address| {
            Arc::new(Endpoint {
                address: *address,
                hostname: None,
                weight: 1,
                health: HealthStatus::Healthy,
                canary: false,
                workload: None,
            })
        })
        .collect();
    Cluster {
        name: name.into(),
        alt_stat_name: None,
        kind: ClusterKind::Static(Arc::new(Endpoints {
            localities: vec![LocalityEndpoints {
                locality: Locality::default(),
                priority: 0,
                weight: 1,
                endpoints,
            }],
            overprovisioning_factor: 140,
        })),
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(2),
        default_thresholds: Thresholds::default(),
        high_thresholds: Thresholds::default(),
        protocol: UpstreamProtocol::Http1,
        idle_timeout: Duration::from_hours(1),
        max_connection_duration: Duration::ZERO,
        max_requests_per_connection: 0,
        max_concurrent_streams: 100,
        tcp_keepalive: None,
        bind_source: BindSource::default(),
        panic_threshold: 0,
        added_via_api: true,
        service: None,
        subset: None,
        origin: None,
    }
}

pub(crate) fn routes(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration {
        name: ROUTES.into(),
        virtual_hosts: vec![Arc::new(VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: routes.into_iter().map(Arc::new).collect(),
            request_headers: HeaderMutation::default(),
            response_headers: HeaderMutation::default(),
            retry_policy: None,
            include_request_attempt_count: false,
            origin: None,
        })],
        ignore_port_in_host_matching: false,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    }
}

pub(crate) fn route(prefix: &str, action: Action) -> Route {
    Route {
        name: "default".into(),
        matches: RouteMatch {
            path: PathMatcher::Prefix {
                value: prefix.into(),
                ignore_case: false,
            },
            headers: Vec::new(),
            query: Vec::new(),
            grpc_only: false,
            runtime_fraction: None,
        },
        action,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
        operation: None,
        origin: None,
    }
}

pub(crate) fn forward(cluster: ClusterSpecifier) -> Action {
    Action::Forward(Arc::new(RouteAction {
        cluster,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        timeout: Duration::ZERO,
        idle_timeout: None,
        retry_policy: None,
        path_rewrite: None,
        host_rewrite: None,
        upgrades: Vec::new(),
    }))
}

pub(crate) fn istio_retries() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::CONNECT_FAILURE
            .union(RetryOn::REFUSED_STREAM)
            .union(RetryOn::UNAVAILABLE)
            .union(RetryOn::CANCELLED)
            .union(RetryOn::RETRIABLE_STATUS_CODES),
        num_retries: 2,
        per_try_timeout: None,
        retriable_status_codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Sends bytes and reads until the peer closes.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    stream.read_to_end(&mut answer).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads the head of a message.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Value of a header in the text of a message.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Reads a message: its head and a body of a known length.
pub(crate) fn read_message(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = read_head(stream);
    let length = header(&head, "content-length").map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

/// A server whose every connection is handled by a function on a thread.
pub(crate) fn server(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handle) = (stream.unwrap(), handle.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// An address at which connecting is refused for as long as the socket lives: its port is nobody else's, and
/// nobody listens.
pub(crate) fn refusing() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (address, socket)
}

/// A keep-alive server that answers every request with `answer(head, body)`.
pub(crate) fn responder(
    answer: impl Fn(&str, &[u8]) -> Vec<u8> + Clone + Send + 'static,
) -> SocketAddr {
    server(move |mut stream| {
        loop {
            let (head, body) = read_message(&mut stream);
            if head.is_empty() || stream.write_all(&answer(&head, &body)).is_err() {
                return;
            }
        }
    })
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads until the peer ends the connection.
pub(crate) fn wait_for_end(mut stream: TcpStream) {
    std::io::copy(&mut stream, &mut std::io::sink()).ok();
}
