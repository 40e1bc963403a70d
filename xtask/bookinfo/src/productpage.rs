//! `productpage`: the page a browser shows, and the same facts as an API.

use std::time::Duration;

use http::{HeaderMap, Request, StatusCode, header::COOKIE};
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};

use crate::headers::forward_headers;
use crate::page;
use crate::reply::{Reply, segments};
use crate::server::App;
use crate::upstream::Upstream;

/// How long the page waits for another service, and how often it asks for reviews.
const LIMIT: Duration = Duration::from_secs(3);
const REVIEW_TRIES: usize = 2;

/// The product page service.
#[derive(Debug)]
pub(crate) struct ProductPage {
    details: Upstream,
    reviews: Upstream,
    ratings: Upstream,
}

/// What another service answered, or the status and message to answer instead.
type Part = Result<Bytes, (StatusCode, &'static str)>;

impl ProductPage {
    pub(crate) fn new(details: &str, reviews: &str, ratings: &str) -> anyhow::Result<Self> {
        Ok(Self {
            details: Upstream::new(details)?,
            reviews: Upstream::new(reviews)?,
            ratings: Upstream::new(ratings)?,
        })
    }

    async fn details(&self, id: u64, headers: &HeaderMap) -> Part {
        let unavailable = "Sorry, product details are currently unavailable for this book.";
        ask(
            &self.details,
            &format!("/details/{id}"),
            headers,
            unavailable,
        )
        .await
    }

    async fn reviews(&self, id: u64, headers: &HeaderMap) -> Part {
        let unavailable = "Sorry, product reviews are currently unavailable for this book.";
        let path = format!("/reviews/{id}");
        let mut part = ask(&self.reviews, &path, headers, unavailable).await;
        for _ in 1..REVIEW_TRIES {
            if part.is_ok() {
                break;
            }
            part = ask(&self.reviews, &path, headers, unavailable).await;
        }
        part
    }

    async fn ratings(&self, id: u64, headers: &HeaderMap) -> Part {
        let unavailable = "Sorry, product ratings are currently unavailable for this book.";
        ask(
            &self.ratings,
            &format!("/ratings/{id}"),
            headers,
            unavailable,
        )
        .await
    }

    async fn page(&self, user: Option<&str>, headers: &HeaderMap) -> Reply {
        let (details, reviews) = tokio::join!(self.details(0, headers), self.reviews(0, headers));
        let read = |part: Part| match part {
            Ok(body) => serde_json::from_slice::<Value>(&body)
                .map_err(|_| "The service answered something that is not JSON."),
            Err((_, message)) => Err(message),
        };
        Reply::html(page::render(
            &product(),
            &read(details),
            &read(reviews),
            user,
        ))
    }
}

impl App for ProductPage {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let mut headers = forward_headers(request.headers());
        let user = session_user(request.headers());
        if let Some(user) = &user
            && let Ok(value) = user.parse()
        {
            headers.insert("end-user", value);
        }
        let numbered = |id: &str| id.parse::<u64>().ok();
        match segments(request.uri().path())[..] {
            [] | ["index.html"] => Reply::html(page::index()),
            ["health"] => Reply::text("Product page is healthy"),
            ["productpage"] => self.page(user.as_deref(), &headers).await,
            ["api", "v1", "products"] => Reply::json(StatusCode::OK, &json!([product()])),
            ["api", "v1", "products", id, ref rest @ ..] => match (numbered(id), rest) {
                (Some(id), []) => part(self.details(id, &headers).await),
                (Some(id), ["reviews"]) => part(self.reviews(id, &headers).await),
                (Some(id), ["ratings"]) => part(self.ratings(id, &headers).await),
                _ => Reply::not_found(),
            },
            _ => Reply::not_found(),
        }
    }
}

async fn ask(upstream: &Upstream, path: &str, headers: &HeaderMap, message: &'static str) -> Part {
    match upstream.get(path, headers, LIMIT).await {
        Ok(answer) if answer.status == StatusCode::OK => Ok(answer.body),
        Ok(answer) => Err((answer.status, message)),
        Err(error) => {
            eprintln!("{error:#}");
            Err((StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    }
}

fn part(part: Part) -> Reply {
    match part {
        Ok(body) => Reply::bytes(StatusCode::OK, body),
        Err((status, message)) => Reply::error(status, message),
    }
}

fn product() -> Value {
    json!({
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml": "<a href=\"https://en.wikipedia.org/wiki/The_Comedy_of_Errors\">Wikipedia \
            Summary</a>: The Comedy of Errors is one of <b>William Shakespeare's</b> early plays. It \
            is his shortest and one of his most farcical comedies, with a major part of the humour \
            coming from slapstick and mistaken identity, in addition to puns and word play.",
    })
}

/// The user of the session cookie, as the sample's login sets it.
fn session_user(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix("session=").map(str::to_owned))
        .filter(|user| !user.is_empty())
}
