//! `details`: facts about the book.

use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use crate::reply::{Reply, segments};
use crate::server::App;

/// The details service.
#[derive(Debug)]
pub(crate) struct Details;

impl App for Details {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        match segments(request.uri().path())[..] {
            ["health"] => Reply::json(StatusCode::OK, &json!({ "status": "Details is healthy" })),
            ["details", id] => details(id),
            _ => Reply::not_found(),
        }
    }
}

fn details(id: &str) -> Reply {
    let Ok(id) = id.parse::<u64>() else {
        return Reply::error(StatusCode::BAD_REQUEST, "please provide numeric product id");
    };
    let facts = json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    });
    Reply::json(StatusCode::OK, &facts)
}
