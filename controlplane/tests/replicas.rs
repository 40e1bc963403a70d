//! Two pilots of one mesh: a node whose pilot ends goes on at the other.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_xds::TypeUrl;
use millrace_xds::client::{self, ClientConfig, Event, Events};
use millrace_xds::node::Node;
use millrace_xds::server::{ConfigSource as _, Generation};

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
