//! `ratings`: stars by reviewer; they can be changed with a POST or PUT.

use std::collections::{BTreeMap, HashMap};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::Mutex;

use crate::reply::{Reply, segments};
use crate::server::App;

/// The largest request body and the most products that a caller can make the service keep.
const MAX_BODY: usize = 64 << 10;
const MAX_PRODUCTS: usize = 10_000;

type Stars = BTreeMap<String, u8>;

/// The ratings service.
#[derive(Debug, Default)]
pub(crate) struct Ratings {
    /// What callers stored; other products have the usual stars.
    stored: Mutex<HashMap<u64, Stars>>,
}

impl App for Ratings {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        match segments(&path)[..] {
            ["health"] => Reply::json(StatusCode::OK, &json!({ "status": "Ratings is healthy" })),
            ["ratings", id] => {
                let Ok(id) = id.parse() else {
                    return Reply::error(
                        StatusCode::BAD_REQUEST,
                        "please provide numeric product ID",
                    );
                };
                if matches!(*request.method(), Method::POST | Method::PUT) {
                    return self.store(id, request.into_body()).await;
                }
                let stars = self.stored.lock().await.get(&id).cloned();
                shown(id, &stars.unwrap_or_else(usual))
            }
            _ => Reply::not_found(),
        }
    }
}

impl Ratings {
    async fn store(&self, id: u64, body: Incoming) -> Reply {
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Reply::error(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let Ok(stars) = serde_json::from_slice::<Stars>(&body) else {
            return Reply::error(StatusCode::BAD_REQUEST, "please provide valid ratings JSON");
        };
        let mut stored = self.stored.lock().await;
        if stored.len() >= MAX_PRODUCTS && !stored.contains_key(&id) {
            return Reply::error(
                StatusCode::INSUFFICIENT_STORAGE,
                "too many products are rated",
            );
        }
        stored.insert(id, stars.clone());
        shown(id, &stars)
    }
}

fn usual() -> Stars {
    Stars::from([("Reviewer1".to_owned(), 5), ("Reviewer2".to_owned(), 4)])
}

fn shown(id: u64, stars: &Stars) -> Reply {
    Reply::json(StatusCode::OK, &json!({ "id": id, "ratings": stars }))
}
