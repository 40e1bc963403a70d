//! `reviews`: two opinions; v1 without stars, v2 with black and v3 with red ones from `ratings`.

use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::headers::forward_headers;
use crate::reply::{Reply, segments};
use crate::server::App;
use crate::upstream::Upstream;

const OPINIONS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!",
    ),
    (
        "Reviewer2",
        "Absolutely fun and entertaining. The play lacks thematic depth when compared to other \
         plays by Shakespeare.",
    ),
];

/// One deployment of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    V1,
    V2,
    V3,
}

impl Version {
    /// The colour of the stars, and how long this version waits for them.
    fn stars(self) -> Option<(&'static str, Duration)> {
        match self {
            Self::V1 => None,
            Self::V2 => Some(("black", Duration::from_secs(10))),
            Self::V3 => Some(("red", Duration::from_millis(2500))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
}

/// The reviews service.
#[derive(Debug)]
pub(crate) struct Reviews {
    version: Version,
    ratings: Upstream,
    pod: String,
}

impl Reviews {
    pub(crate) fn new(version: Version, ratings: &str) -> anyhow::Result<Self> {
        let pod = std::fs::read_to_string("/proc/sys/kernel/hostname")?
            .trim()
            .to_owned();
        Ok(Self {
            version,
            ratings: Upstream::new(ratings)?,
            pod,
        })
    }

    async fn reviews(&self, id: &str, headers: &HeaderMap) -> Reply {
        let Ok(number) = id.parse::<u64>() else {
            return Reply::error(StatusCode::BAD_REQUEST, "please provide numeric product id");
        };
        let stars = match self.version.stars() {
            None => None,
            Some((color, limit)) => {
                let answer = self.ratings(number, headers, limit).await;
                if let Err(error) = &answer {
                    eprintln!("{error:#}");
                }
                Some((color, answer.ok()))
            }
        };
        let reviews: Vec<Value> = OPINIONS
            .iter()
            .map(|(reviewer, text)| {
                let mut review = json!({ "reviewer": reviewer, "text": text });
                if let Some((color, ratings)) = &stars {
                    review["rating"] = rating(reviewer, color, ratings.as_ref());
                }
                review
            })
            .collect();
        let body = json!({
            "id": id,
            "version": self.version.name(),
            "podname": self.pod,
            "clustername": Value::Null,
            "reviews": reviews,
        });
        Reply::json(StatusCode::OK, &body)
    }

    async fn ratings(
        &self,
        id: u64,
        headers: &HeaderMap,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let answer = self
            .ratings
            .get(&format!("/ratings/{id}"), headers, limit)
            .await?;
        ensure!(
            answer.status.is_success(),
            "ratings answered {}",
            answer.status
        );
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

fn rating(reviewer: &str, color: &str, ratings: Option<&Value>) -> Value {
    match ratings.and_then(|ratings| ratings["ratings"][reviewer].as_u64()) {
        Some(stars) => json!({ "stars": stars, "color": color }),
        None => json!({ "error": "Ratings service is currently unavailable" }),
    }
}

impl App for Reviews {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        match segments(request.uri().path())[..] {
            ["health"] => Reply::json(StatusCode::OK, &json!({ "status": "Reviews is healthy" })),
            ["reviews", id] => self.reviews(id, &forward_headers(request.headers())).await,
            _ => Reply::not_found(),
        }
    }
}
