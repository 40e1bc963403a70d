//! Against a stand-in that blocks as an agent does.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::model::analyze::analyze;
use crate::registry::fake::{self, Answer, Fake, Mesh};

#[derive(Clone, Debug, Default)]
struct Catalog {
    index: u64,
    services: BTreeMap<String, Value>,
    is_down: bool,
}

struct StandIn {
    catalog: Arc<watch::Sender<Catalog>>,
    server: Fake,
}

impl StandIn {
    async fn start() -> Self {
        let catalog = Arc::new(watch::Sender::new(Catalog {
            index: 10,
            ..Catalog::default()
        }));
        let shared = Arc::clone(&catalog);
        let server = fake::serve(move |path| answer(shared.subscribe(), path)).await;
        Self { catalog, server }
    }

    fn change(&self, change: impl FnOnce(&mut Catalog)) {
        self.catalog.send_modify(|catalog| {
            catalog.index += 1;
            change(catalog);
        });
    }

    fn registry(&self) -> Mesh {
        let address = self.server.address.clone();
        let agent = Agent {
            address,
            token: Some("secret".to_owned()),
        };
        Mesh::of(Box::new(ConsulRegistry::new(agent)))
    }
}

/// Holds a question with the current index until that moves, or the agent goes down.
async fn answer(mut catalog: watch::Receiver<Catalog>, path: String) -> Answer {
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let asked: Option<u64> = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("index=")?.parse().ok());
    let now = catalog.wait_for(|catalog| catalog.is_down || Some(catalog.index) != asked);
    let now = now.await.unwrap().clone();
    if now.is_down {
        return (500, None, "No cluster leader".to_owned());
    }
    let body = match path.strip_prefix("/v1/health/service/") {
        Some(name) => now.services.get(name).cloned().unwrap_or(json!([])),
        None => now
            .services
            .keys()
            .map(|name| (name.clone(), json!([])))
            .collect(),
    };
    (200, Some(now.index), body.to_string())
}

fn instance(address: &str, port: u16, status: &str) -> Value {
    json!({
        "Node": {"Node": "n", "Address": address, "Datacenter": "dc1"},
        "Service": {"ID": format!("{address}:{port}"), "Port": port, "Meta": {"protocol": "http"}},
        "Checks": [{"Status": status}],
    })
}

#[tokio::test]
async fn services_follow_the_catalog() {
    let consul = StandIn::start().await;
    consul.change(|catalog| {
        let web = json!([
            instance("10.0.0.1", 80, "passing"),
            instance("10.0.0.2", 80, "passing"),
            instance("10.0.0.3", 81, "passing")
        ]);
        catalog.services.insert("web".to_owned(), web);
        catalog.services.insert(
            "db".to_owned(),
            json!([instance("10.0.1.1", 5432, "passing")]),
        );
    });
    let mut mesh = consul.registry();
    mesh.until("synced", |mesh| mesh.synced).await;
    let all = [
        "db.service.consul:5432 10.0.1.1",
        "web.service.consul:80 10.0.0.1 10.0.0.2",
        "web.service.consul:81 10.0.0.3",
    ];
    assert_eq!(mesh.shown(), all, "all of it is known when it is synced");
    let snapshot = mesh.index.snapshot();
    assert_eq!(analyze(&snapshot), [], "ports of one host are no conflict");
    assert_eq!(
        snapshot.allocated.len(),
        2,
        "each host has an address for DNS"
    );

    consul.change(|catalog| {
        let web = json!([
            instance("10.0.0.1", 80, "critical"),
            instance("10.0.0.2", 80, "warning")
        ]);
        catalog.services.insert("web".to_owned(), web);
        catalog.services.remove("db");
        catalog.services.insert(
            "new".to_owned(),
            json!([instance("10.0.2.1", 80, "passing")]),
        );
    });
    let now = [
        "new.service.consul:80 10.0.2.1",
        "web.service.consul:80 10.0.0.2",
    ];
    mesh.until("what changed is known", |mesh| mesh.shown() == now)
        .await;
    assert_eq!(mesh.problems, [""; 0]);
}

#[tokio::test]
async fn what_is_known_serves_while_the_agent_cannot_be_asked() {
    let consul = StandIn::start().await;
    consul.change(|catalog| {
        catalog.services.insert(
            "web".to_owned(),
            json!([instance("10.0.0.1", 80, "passing")]),
        );
    });
    let mut mesh = consul.registry();
    mesh.until("synced", |mesh| mesh.synced).await;
    let known = mesh.shown();
    consul.change(|catalog| catalog.is_down = true);
    mesh.until("both questions are broken", |mesh| mesh.problems.len() == 2)
        .await;
    let problem = &mesh.problems[0];
    assert!(
        problem.contains("registry consul cannot be read"),
        "{problem}"
    );
    assert!(
        problem
            .contains("/v1/catalog/services: status 500 Internal Server Error: No cluster leader"),
        "{problem}"
    );
    assert_eq!(mesh.shown(), known);

    // It comes back with another history, whose index is lower.
    consul.catalog.send_modify(|catalog| {
        *catalog = Catalog {
            index: 2,
            services: [(
                "web".to_owned(),
                json!([instance("10.0.0.9", 80, "passing")]),
            )]
            .into(),
            is_down: false,
        };
    });
    mesh.until("the new state is known", |mesh| {
        mesh.problems.is_empty() && mesh.shown() == ["web.service.consul:80 10.0.0.9"]
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_no_host_is_named() {
    let consul = StandIn::start().await;
    consul.change(|catalog| {
        catalog.services.insert(
            "a..b".to_owned(),
            json!([instance("10.0.0.1", 80, "passing")]),
        );
    });
    let mut mesh = consul.registry();
    mesh.until("synced", |mesh| mesh.synced).await;
    assert_eq!(mesh.shown(), [""; 0]);
    let problem = &mesh.problems[0];
    assert!(
        problem.starts_with("consul service a..b: \"a..b.service.consul\" is not a host name"),
        "{problem}"
    );
}
