//! Several pilots of one mesh: a node whose pilot ends goes on at another, and is sent what changed alone.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_controlplane::model::names::ObjectName;
use millrace_xds::TypeUrl;
use millrace_xds::client::{self, ClientConfig, Event, Events};
use millrace_xds::node::Node;
use millrace_xds::server::{ConfigSource as _, Generation};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Longer than anything here takes on a busy machine; a failure, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);
const NODE: &str = "node~10.0.0.1~node-a~cluster.local";
const CLUSTER: &str = "outbound|80||reviews.default.svc.cluster.local";

fn mesh(pods: u8) -> String {
    let pod = |number: u8| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: reviews-{number}, labels: {{app: reviews}}}}\n\
             spec: {{nodeName: node-b, containers: [{{name: c}}]}}\n\
             status: {{phase: Running, podIP: 10.1.0.{number}}}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  clusterIP: 10.96.0.1\n  \
                   selector: {app: reviews}\n  ports: [{name: http, port: 80}]\n---\n\
                   apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  \
                   hosts: [reviews]\n  http: [{timeout: 3s, route: [{destination: {host: reviews}}]}]\n";
    service.to_owned() + &(1..=pods).map(pod).collect::<String>()
}

async fn start(directory: &Path) -> Pilot {
    let flags = [
        "pilot",
        "--xds-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
        "--config-dir",
    ];
    let flags = flags.into_iter().map(Into::into);
    let flags = flags.chain([directory.as_os_str().to_owned()]);
    let pilot = Pilot::start(Config::parse_from(flags), None).await.unwrap();
    let mut generations = pilot.source().generations();
    let first = generations.wait_for(|generation| *generation > Generation::default());
    tokio::time::timeout(PATIENCE, first)
        .await
        .unwrap()
        .unwrap();
    pilot
}

/// The names of resources that are sent, gone ones too, until something holds.
async fn sent(
    events: &mut Events,
    mut holds: impl FnMut(&Event, &[String]) -> bool,
) -> Vec<String> {
    let mut names = Vec::new();
    let waiting = async {
        while let Some(event) = events.next().await {
            if let Event::Update(update) = &event {
                names.extend(
                    update
                        .resources
                        .iter()
                        .map(|resource| resource.name.clone()),
                );
                names.extend(update.removed.iter().map(|name| format!("-{name}")));
            }
            let done = holds(&event, &names);
            if let Event::Update(update) = event {
                update.commit();
            }
            if done {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(in_time.is_ok(), "not in time; sent so far: {names:?}");
    names
}

#[tokio::test]
async fn a_node_goes_on_at_another_replica_and_is_sent_only_what_changed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    fs::write(&file, mesh(1)).unwrap();
    let pilots = [start(directory.path()).await, start(directory.path()).await];
    let [one, other] = pilots.each_ref().map(|pilot| pilot.addresses().xds);
    let node = Node {
        id: NODE.to_owned(),
        ..Node::default()
    };
    let servers = format!("http://{one},http://{other}");
    let (client, mut events, driver) = client::client(ClientConfig::new(servers, node)).unwrap();
    let driver = tokio::spawn(driver.run());
    client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
    client.subscribe(&TypeUrl::ENDPOINT, [CLUSTER]);
    client.subscribe(&TypeUrl::LISTENER, ["default/*"]);
    client.subscribe(&TypeUrl::ROUTE, ["default/80"]);
    client.subscribe(&TypeUrl::NAME_TABLE, ["*"]);
    let first = sent(&mut events, |_, names| names.len() == 6).await;
    assert!(first.iter().all(|name| !name.starts_with('-')), "{first:?}");

    // What was committed is known to the state machine once its answer is on its way.
    let is_known = || !client.known(&TypeUrl::NAME_TABLE).is_empty();
    let known = async {
        while !(is_known() && client.known(&TypeUrl::LISTENER).len() == 2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
    let has_node = |pilot: &Pilot| pilot.source().client_of(NODE).is_some();
    let (ending, staying): (Vec<_>, Vec<_>) = pilots.into_iter().partition(has_node);
    assert_eq!((ending.len(), staying.len()), (1, 1), "one has the node");
    for pilot in ending {
        pilot.stop().await;
    }
    sent(&mut events, |event, _| matches!(event, Event::Connected)).await;

    fs::write(&file, mesh(2)).unwrap();
    let after = sent(&mut events, |_, names| {
        names.iter().any(|name| name == CLUSTER)
    })
    .await;
    assert_eq!(after, [CLUSTER], "endpoints changed, and nothing else");
    assert!(staying.iter().all(has_node));
    for pilot in staying {
        pilot.stop().await;
    }
    driver.abort();
}

/// A way to a pilot that can be cut, with all that is on it.
struct Relay {
    address: SocketAddr,
    /// Where it leads; nowhere while nobody is there.
    target: watch::Sender<Option<SocketAddr>>,
    /// Bytes that came back this way.
    bytes: Arc<AtomicU64>,
    /// Connections that are on it.
    open: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Relay {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, targets) = watch::channel(None);
        let (bytes, open) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&bytes), Arc::clone(&open));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let to = *targets.borrow();
                if let Some(to) = to {
                    connections.spawn(carry(client, to, targets.clone(), counts.clone()));
                }
            }
        });
        Self {
            address,
            target,
            bytes,
            open,
            tasks,
        }
    }

    fn is_used(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }
}

/// Carries a connection until either end, or the way, is gone.
async fn carry(
    mut client: TcpStream,
    to: SocketAddr,
    mut targets: watch::Receiver<Option<SocketAddr>>,
    (bytes, open): (Arc<AtomicU64>, Arc<AtomicUsize>),
) {
    let Ok(mut server) = TcpStream::connect(to).await else {
        return;
    };
    open.fetch_add(1, Ordering::SeqCst);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from_server.read(&mut buffer).await.unwrap_or(0);
            bytes.fetch_add(read as u64, Ordering::SeqCst);
            if read == 0 || to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = back => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = targets.wait_for(|target| *target != Some(to)) => {}
    }
    open.fetch_sub(1, Ordering::SeqCst);
}

const SERVICES: u8 = 60;

fn cluster(number: u8) -> String {
    format!("outbound|80||s{number}.default.svc.cluster.local")
}

/// Services with a pod each, and one more pod for each of these.
fn many(more: &[u8]) -> String {
    let pod = |number: u8, which: u8| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: s{number}-{which}, labels: {{app: s{number}}}}}\n\
             spec: {{nodeName: node-b, containers: [{{name: c}}]}}\n\
             status: {{phase: Running, podIP: 10.1.{number}.{which}}}\n"
        )
    };
    let service = |number: u8| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec:\n  clusterIP: 10.96.0.{number}\n  \
             selector: {{app: s{number}}}\n  ports: [{{name: http, port: 80}}]\n"
        )
    };
    let all = (1..=SERVICES).flat_map(|number| [service(number), pod(number, 1)]);
    all.chain(more.iter().map(|number| pod(*number, 2)))
        .collect()
}

async fn knows(pilot: &Pilot, number: u8) {
    let name = ObjectName::new("default", &format!("s{number}-2"));
    let mut generations = pilot.source().generations();
    let told = generations.wait_for(|_| {
        pilot
            .source()
            .published()
            .snapshot
            .workloads
            .contains_key(&name)
    });
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
}

#[tokio::test]
async fn of_three_replicas_any_may_die_while_the_mesh_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    // In one step: half of a file is a mesh too.
    let put = |changed: &[u8]| {
        let beside = directory.path().join("mesh.new");
        fs::write(&beside, many(changed)).unwrap();
        fs::rename(&beside, &file).unwrap();
    };
    put(&[]);
    let (mut pilots, mut relays) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (pilot, relay) = (start(directory.path()).await, Relay::new().await);
        relay.target.send_replace(Some(pilot.addresses().xds));
        pilots.push(pilot);
        relays.push(relay);
    }
    let servers: Vec<_> = relays
        .iter()
        .map(|relay| format!("http://{}", relay.address))
        .collect();
    let node = Node {
        id: NODE.to_owned(),
        ..Node::default()
    };
    let mut config = ClientConfig::new(servers.join(","), node);
    // Each end here is a first one.
    config.backoff.reset_after = Duration::ZERO;
    let (client, mut events, driver) = client::client(config).unwrap();
    let driver = tokio::spawn(driver.run());
    let clusters: Vec<String> = (1..=SERVICES).map(cluster).collect();
    client.subscribe(&TypeUrl::CLUSTER, &clusters);
    client.subscribe(&TypeUrl::ENDPOINT, &clusters);
    client.subscribe(&TypeUrl::LISTENER, ["default/*"]);
    client.subscribe(&TypeUrl::ROUTE, ["default/80"]);
    client.subscribe(&TypeUrl::NAME_TABLE, ["*"]);
    let all = 2 * clusters.len() + 4;
    sent(&mut events, |_, names| names.len() == all).await;
    let types = [
        TypeUrl::CLUSTER,
        TypeUrl::ENDPOINT,
        TypeUrl::LISTENER,
        TypeUrl::ROUTE,
        TypeUrl::NAME_TABLE,
    ];
    let known = async {
        while types
            .iter()
            .map(|kind| client.known(kind).len())
            .sum::<usize>()
            < all
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
    let carried = |relays: &[Relay]| -> u64 {
        let all = relays.iter();
        all.map(|relay| relay.bytes.load(Ordering::SeqCst)).sum()
    };
    let whole = carried(&relays);

    let mut died = BTreeMap::<usize, u32>::new();
    let mut random = fastrand::Rng::with_seed(7);
    let mut changed = Vec::new();
    for number in 1..=9 {
        let before = carried(&relays);
        let holder = relays.iter().position(Relay::is_used).unwrap();
        changed.push(number);
        // The change is on its way, has come, or comes later.
        let late = random.bool();
        if !late {
            put(&changed);
        }
        relays[holder].target.send_replace(None);
        pilots.remove(holder).stop().await;
        if late {
            put(&changed);
        }
        let names = sent(&mut events, |event, names| {
            let Event::Update(update) = event else {
                return false;
            };
            let address = format!("10.1.{number}.2");
            let mut bodies = update.resources.iter().map(|resource| &resource.body.value);
            names.last() == Some(&cluster(number))
                && bodies.any(|body| {
                    body.windows(address.len())
                        .any(|at| at == address.as_bytes())
                })
        })
        .await;
        let own = names.iter().all(|name| *name == cluster(number));
        assert!(own, "{number} changed, sent were {names:?}");
        let resumed = carried(&relays) - before;
        println!("{whole} bytes at first, {resumed} after replica {holder} died");
        assert!(
            resumed * 10 < whole,
            "{resumed} bytes, and {whole} at first"
        );
        *died.entry(holder).or_default() += 1;
        pilots.insert(holder, start(directory.path()).await);
        let address = pilots[holder].addresses().xds;
        relays[holder].target.send_replace(Some(address));
        for pilot in &pilots {
            knows(pilot, number).await;
        }
    }
    assert_eq!(died.len(), 3, "each died: {died:?}");
    driver.abort();
    for pilot in pilots {
        pilot.stop().await;
    }
    for relay in &mut relays {
        relay.tasks.abort_all();
    }
}
