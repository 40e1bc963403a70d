use std::collections::BTreeMap;
use std::net::SocketAddr;

use millrace_runtime::ready::Ready;
use millrace_xds::node::Node;
use millrace_xds::push::{ConfigView, Generation};
use millrace_xds::server::{AdsService, ConfigSource, Connection, Report, ServerConfig};
use millrace_xds::{EncodedResource, RawResource, Selection};
use tonic::Status;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::cluster::dns::SystemLookup;
use crate::snapshot::Snapshot;
use crate::xds::state::tests::{cluster, endpoints, listener, raw, route};

/// A control plane whose resources a test changes.
#[derive(Default)]
struct Plane {
    world: Mutex<World>,
    generations: watch::Sender<Generation>,
    nacked: Mutex<Vec<String>>,
}

#[derive(Clone, Default)]
struct World {
    generation: u64,
    resources: BTreeMap<(TypeUrl, String), Arc<EncodedResource>>,
}

impl ConfigView for World {
    fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let of_type = self.resources.iter().filter(|((t, _), _)| t == type_url);
        of_type
            .filter(|((_, name), _)| selection.contains(name))
            .map(|(_, resource)| resource.clone())
            .collect()
    }
}

impl ConfigSource for Plane {
    type Client = ();
    type View = World;

    fn connect(&self, _: &Connection) -> Result<(), Status> {
        Ok(())
    }

    fn generations(&self) -> watch::Receiver<Generation> {
        self.generations.subscribe()
    }

    fn view(&self, (): &()) -> World {
        self.world.lock().clone()
    }

    fn report(&self, (): &(), report: Report<'_>) {
        if let Report::Nacked(nacked) = report {
            let names = nacked.rejected.iter().map(ToString::to_string);
            self.nacked.lock().extend(names);
        }
    }
}

impl Plane {
    fn set(&self, resources: impl IntoIterator<Item = RawResource>) {
        let mut world = self.world.lock();
        for raw in resources {
            let type_url = TypeUrl::from(raw.body.type_url.as_str());
            let body = raw.body.value.clone().into();
            let encoded = EncodedResource::from_bytes(type_url.clone(), &raw.name, body);
            world.resources.insert((type_url, raw.name), encoded.into());
        }
        world.generation += 1;
        self.generations.send_replace(Generation(world.generation));
    }

    async fn serve(self: &Arc<Self>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = AdsService::new(self.clone(), ServerConfig::default()).into_server();
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        address
    }
}

struct Running {
    store: Arc<Store>,
    ready: Ready,
    handle: Handle,
    interest: Interest,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(server: &str, state_file: Option<PathBuf>) -> Running {
    let (store, ready, interest) = (Arc::new(Store::new()), Ready::new(), Interest::new());
    let node = Node {
        id: "node~10.0.0.1~n~cluster.local".into(),
        ..Node::default()
    };
    let (control, handle) = Config {
        mode: Mode::Node,
        fixed: Resources::default(),
        server: Some(ClientConfig::new(server, node)),
        state_file,
        interest: interest.clone(),
        lookup: Arc::new(SystemLookup::default()),
        store: store.clone(),
        manager: Arc::new(Manager::new()),
        ready: Some(ready.block("configuration")),
    }
    .start()
    .unwrap();
    let stop = CancellationToken::new();
    Running {
        store,
        ready,
        handle,
        interest,
        task: tokio::spawn(control.run(stop.clone())),
        stop,
    }
}

impl Running {
    fn local(&self) {
        self.interest.pods([("default".to_owned(), "a".to_owned())]);
    }

    /// Waits for a snapshot like that.
    async fn until(&self, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut generations = self.store.subscribe();
        let wait = async {
            loop {
                let snapshot = self.store.load();
                if is(&snapshot) {
                    return snapshot;
                }
                generations.changed().await.unwrap();
            }
        };
        let wait = tokio::time::timeout(Duration::from_secs(20), wait);
        wait.await.unwrap_or_else(|_| panic!("never: {what}"))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn one_service() -> [RawResource; 4] {
    [
        listener("default/http", "default/9080"),
        route("default/9080", "c"),
        cluster("c"),
        endpoints("c", "10.0.0.1"),
    ]
}

fn address(snapshot: &Snapshot, cluster: &str) -> Option<String> {
    let entry = snapshot.cluster(cluster)?;
    Some(entry.hosts.first()?.address().to_string())
}

#[tokio::test]
async fn what_pods_need_is_fetched_served_and_followed() {
    let plane = Arc::new(Plane::default());
    plane.set(one_service());
    let running = start(&format!("http://{}", plane.serve().await), None);
    running.local();
    let first = running.until("first configuration", |s| {
        s.listener("default/http").is_some()
    });
    let first = first.await;
    assert_eq!(address(&first, "c").as_deref(), Some("10.0.0.1:80"));
    assert!(first.route_table("default/9080").is_some());
    running.ready.wait().await;
    assert!(running.store.is_open());
    plane.set([endpoints("c", "10.0.0.2")]);
    let moved = |s: &Snapshot| address(s, "c").as_deref() == Some("10.0.0.2:80");
    running.until("new endpoint", moved).await;
    running.end().await;
}

#[tokio::test]
async fn a_control_plane_of_another_version_is_understood_as_far_as_it_goes() {
    // A field that this version has not, number 4000, a text: what a later one would add.
    let later = one_service().map(|mut resource| {
        resource.body.value.extend([0x82, 0xfa, 0x01, 0x01, b'x']);
        resource
    });
    let plane = Arc::new(Plane::default());
    plane.set(later);
    let running = start(&format!("http://{}", plane.serve().await), None);
    running.local();
    let served = running.until("what is known of it", |s| {
        s.listener("default/http").is_some()
    });
    let served = served.await;
    assert_eq!(address(&served, "c").as_deref(), Some("10.0.0.1:80"));
    // It has no table of names and does not know the type, as an earlier one would not; nobody waits for it.
    running.ready.wait().await;
    assert_eq!(*plane.nacked.lock(), [""; 0]);
    running.end().await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_its_last_good_version_serves() {
    let plane = Arc::new(Plane::default());
    plane.set(one_service());
    let running = start(&format!("http://{}", plane.serve().await), None);
    running.local();
    running.until("first", |s| s.cluster("c").is_some()).await;
    let bad = raw(&TypeUrl::CLUSTER, "c", "name: c\ntype: EDS", "2");
    plane.set([bad, endpoints("c", "10.0.0.3")]);
    let moved = |s: &Snapshot| address(s, "c").as_deref() == Some("10.0.0.3:80");
    running.until("the good one of the same push", moved).await;
    let nacked = async {
        while plane.nacked.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), nacked)
        .await
        .unwrap();
    let nacked = plane.nacked.lock().join(" ");
    assert!(
        nacked.contains("c: cluster \"c\": eds_cluster_config"),
        "{nacked}"
    );
    assert_eq!(running.handle.rejected().len(), 1);
    assert_eq!(
        running.handle.freshness()["saved"],
        false,
        "there is no file to be saved in"
    );
    running.end().await;
}

#[tokio::test]
async fn the_last_good_state_serves_without_a_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("xds-state");
    let plane = Arc::new(Plane::default());
    plane.set(one_service());
    let running = start(
        &format!("http://{}", plane.serve().await),
        Some(file.clone()),
    );
    running.local();
    running.until("first", |s| s.cluster("c").is_some()).await;
    running.end().await;

    // Port 9 is discard: nobody is there.
    let running = start("http://127.0.0.1:9", Some(file.clone()));
    let restored = running.until("saved state", |s| s.cluster("c").is_some());
    let restored = restored.await;
    assert_eq!(address(&restored, "c").as_deref(), Some("10.0.0.1:80"));
    running.ready.wait().await;
    let freshness = running.handle.freshness();
    assert_eq!(freshness["serving"], "saved state");
    let handle = running.handle.clone();
    running.end().await;
    assert_eq!(
        handle.freshness()["saved"],
        true,
        "at its end nothing is left to write"
    );

    std::fs::write(&file, "millrace-state/1 x y\nz").unwrap();
    let running = start("http://127.0.0.1:9", Some(file));
    running
        .until("an empty start", |s| s.generation() > 0)
        .await;
    assert!(running.store.load().cluster("c").is_none());
    running.end().await;
}

#[tokio::test]
async fn a_new_control_plane_takes_over_from_the_saved_state() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("xds-state");
    let plane = Arc::new(Plane::default());
    plane.set(one_service());
    let running = start(
        &format!("http://{}", plane.serve().await),
        Some(file.clone()),
    );
    running.local();
    running.until("first", |s| s.cluster("c").is_some()).await;
    running.end().await;

    let plane = Arc::new(Plane::default());
    plane.set(one_service());
    plane.set([
        route("default/9080", "d"),
        cluster("d"),
        endpoints("d", "10.0.0.4"),
    ]);
    let running = start(&format!("http://{}", plane.serve().await), Some(file));
    running.local();
    let replaced = |s: &Snapshot| s.cluster("d").is_some() && s.cluster("c").is_none();
    let now = running.until("the new route", replaced).await;
    assert_eq!(address(&now, "d").as_deref(), Some("10.0.0.4:80"));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_control_plane_or_saved_state_nothing_is_accepted() {
    // Port 9 is discard: nobody is there.
    let running = start("http://127.0.0.1:9", None);
    running.local();
    tokio::time::sleep(WARMING_TIMEOUT * 4).await;
    assert!(!running.store.is_open());
    assert!(!running.ready.is_ready());
    running.end().await;
}
