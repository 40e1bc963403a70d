//! One blocking query, asked again and again.
//!
//! By Consul's rules: the index of an answer goes with the next question; one that goes backwards, or is zero, begins
//! anew. Failures are waited out, longer each time.

use std::time::Duration;

use http::HeaderMap;
use millrace_runtime::backoff::Backoff;
use serde::de::DeserializeOwned;

use crate::registry::fetch::{self, Server};

/// How long an agent holds a question to which nothing is new; it adds up to a sixteenth.
const WAIT: Duration = Duration::from_mins(1);
/// How much later than that an answer may come.
const GRACE: Duration = Duration::from_secs(15);
/// Between questions that were answered without anything new: an agent that does not block is not flooded.
const PAUSE: Duration = Duration::from_secs(1);
/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

#[derive(Debug)]
pub(super) struct Question {
    server: Server,
    path: String,
    index: u64,
    backoff: Backoff,
    /// How long the next question has to wait.
    pause: Duration,
}

impl Question {
    pub(super) fn new(server: Server, path: String) -> Self {
        Self {
            server,
            path,
            index: 0,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter(),
            pause: Duration::ZERO,
        }
    }

    /// The next answer; why there is none.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        tokio::time::sleep(self.pause).await;
        let (index, wait) = (self.index, WAIT.as_secs());
        // An index at the first question would make the agent wait for a change.
        let path = match index {
            0 => self.path.clone(),
            _ => format!("{}?index={index}&wait={wait}s", self.path),
        };
        match self.server.get(&path, WAIT + WAIT / 16 + GRACE).await {
            Ok((document, headers)) => {
                self.backoff.reset();
                self.index = next_index(index, stated_index(&headers));
                self.pause = if self.index == index || self.index == 0 {
                    PAUSE
                } else {
                    Duration::ZERO
                };
                Ok(document)
            }
            Err(error) => {
                self.index = 0;
                self.pause = self.backoff.next_delay().unwrap_or(BACKOFF.1);
                let chain = fetch::chain(&error);
                Err(format!("{}{}: {chain}", self.server.base(), self.path))
            }
        }
    }
}

fn stated_index(headers: &HeaderMap) -> u64 {
    let text = headers.get("x-consul-index");
    let text = text.and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The index of the next question.
fn next_index(before: u64, stated: u64) -> u64 {
    if stated < before { 0 } else { stated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_backwards_begins_anew() {
        assert_eq!(next_index(0, 7), 7);
        assert_eq!(next_index(7, 7), 7);
        assert_eq!(next_index(7, 9), 9);
        assert_eq!(next_index(9, 3), 0);
        assert_eq!(stated_index(&HeaderMap::new()), 0);
    }
}
