//! Against a stand-in.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::registry::fake::{self, Mesh};

fn listing(instances: &[(&str, &str, &str)]) -> Value {
    let instances: Vec<_> = instances
        .iter()
        .map(|(vip, address, status)| {
            json!({"instanceId": address, "ipAddr": address, "status": status, "vipAddress": vip,
                "port": {"$": 80, "@enabled": "true"}})
        })
        .collect();
    json!({"applications": {"application": [{"name": "APP", "instance": instances}]}})
}

#[tokio::test]
async fn services_follow_the_servers_list() {
    let first = listing(&[("web", "10.0.0.1", "UP"), ("db", "10.0.1.1", "UP")]);
    let list = Arc::new(Mutex::new(Some(first)));
    let shared = Arc::clone(&list);
    let server = fake::serve(move |path| {
        let list = shared.lock().clone();
        async move {
            match list {
                Some(list) if path == "/eureka/apps" => (200, None, list.to_string()),
                _ => (503, None, "not ready".to_owned()),
            }
        }
    })
    .await;
    let registry = EurekaRegistry {
        address: format!("{}/eureka/", server.address),
        interval: Duration::from_millis(20),
    };
    let mut mesh = Mesh::of(Box::new(registry));
    mesh.until("synced", |mesh| mesh.synced).await;
    assert_eq!(
        mesh.shown(),
        ["db.eureka:80 10.0.1.1", "web.eureka:80 10.0.0.1"]
    );

    *list.lock() = Some(listing(&[
        ("web", "10.0.0.1", "DOWN"),
        ("web", "10.0.0.2", "UP"),
    ]));
    mesh.until("what changed is known", |mesh| {
        mesh.shown() == ["web.eureka:80 10.0.0.2"]
    })
    .await;

    *list.lock() = None;
    mesh.until("it is said that it cannot be read", |mesh| {
        mesh.problems.len() == 1
    })
    .await;
    let problem = &mesh.problems[0];
    assert!(
        problem.contains("registry eureka cannot be read"),
        "{problem}"
    );
    assert!(
        problem.ends_with("status 503 Service Unavailable: not ready"),
        "{problem}"
    );
    assert_eq!(mesh.shown(), ["web.eureka:80 10.0.0.2"]);
    *list.lock() = Some(listing(&[]));
    mesh.until("nothing is wrong, and nothing there", |mesh| {
        mesh.problems.is_empty() && mesh.shown().is_empty()
    })
    .await;
}
