//! The Eureka registry: the instances that a server lists at `/apps`, asked for every few seconds as Eureka's own clients
//! do.
//!
//! Input: the server's JSON; output: a service per virtual address (`vipAddress`) of the instances that are UP. A
//! virtual address with a dot is the host as it stands, any other `<address>.eureka`. What is known keeps serving while
//! the server cannot be asked.

mod applications;

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_runtime::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use self::applications::Answer;
use super::fetch::{self, Server};
use super::outside::Told;
use super::{Registry, RegistryError, RegistryEvent, Running, Sink};

const NAME: &str = "eureka";
/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The registry.
#[derive(Debug)]
pub struct EurekaRegistry {
    address: String,
    interval: Duration,
}

impl EurekaRegistry {
    /// The registry of the server at `http://host:port/eureka`.
    pub fn new(address: String) -> Self {
        Self {
            address,
            interval: INTERVAL,
        }
    }
}

impl Registry for EurekaRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let server = Server::new(&self.address)
                .map_err(|source| RegistryError::Address { name: NAME, source })?;
            let mut poll = Poll {
                server,
                interval: self.interval,
                backoff: Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter(),
                told: Told::new(NAME),
                synced: false,
                sink,
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = poll.run() => ended,
            }
        })
    }
}

/// The registry at work.
struct Poll {
    server: Server,
    interval: Duration,
    backoff: Backoff,
    told: Told,
    synced: bool,
    sink: Sink,
}

impl Poll {
    async fn run(&mut self) -> Result<(), RegistryError> {
        loop {
            let (mut events, wait) = self.ask().await;
            events.extend(self.told.problems());
            if !self.synced && self.backoff.tries() == 0 {
                self.synced = true;
                events.push(RegistryEvent::Synced);
            }
            for event in events {
                let sent = self.sink.send(event).await;
                sent.map_err(|_| RegistryError::Closed { name: NAME })?;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// What is new, and how long until the next question.
    async fn ask(&mut self) -> (Vec<RegistryEvent>, Duration) {
        match self.server.get::<Answer>("/apps", PATIENCE).await {
            Ok((answer, _)) => {
                self.backoff.reset();
                self.told.set_broken(NAME, None);
                (self.take(&answer), self.interval)
            }
            Err(error) => {
                let message = format!("{}/apps: {}", self.server.base(), fetch::chain(&error));
                self.told.set_broken(NAME, Some(message));
                (Vec::new(), self.backoff.next_delay().unwrap_or(BACKOFF.1))
            }
        }
    }

    fn take(&mut self, answer: &Answer) -> Vec<RegistryEvent> {
        let services = answer.services();
        let now: BTreeSet<&String> = services.keys().collect();
        let gone = self.told.names().into_iter();
        let gone: Vec<String> = gone.filter(|name| !now.contains(name)).collect();
        let mut events = Vec::new();
        for name in gone {
            events.extend(self.told.put(&name, None));
        }
        for (name, listed) in services {
            events.extend(self.told.put(&name, Some(listed)));
        }
        events
    }
}

#[cfg(test)]
mod tests;
