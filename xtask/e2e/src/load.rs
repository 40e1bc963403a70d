//! Load from inside a pod: plain clients without retries, and what became of every request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::until;

/// How long the load may take to get further.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One connection for request after request.
    Kept,
    /// A new connection for every request.
    New,
}

/// A request that was not answered with 200.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When its connection was asked for.
    pub opened: Instant,
    /// When the request was begun.
    pub begun: Instant,
    /// When it had failed.
    pub failed: Instant,
    /// What went wrong.
    pub what: String,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How many were answered with 200.
    pub answered: u64,
    /// The others.
    pub failures: Vec<Failure>,
    /// The longest time from the beginning of a request to its answer, the connection included.
    pub slowest: Duration,
}

impl Outcome {
    /// Fails unless every request was answered with 200.
    pub fn ensure_flawless(&self) -> anyhow::Result<()> {
        ensure!(
            self.failures.is_empty(),
            "{} failed, {} were answered; the first failures: {:?}",
            self.failures.len(),
            self.answered,
            self.failures.iter().take(5).collect::<Vec<_>>()
        );
        Ok(())
    }
}

/// Clients that run until they are stopped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Outcome>>,
}

#[derive(Debug)]
struct Shared {
    pod: Arc<MeshPod>,
    to: SocketAddr,
    host: String,
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Load {
    /// Starts one client for each of `clients` in `pod`.
    pub fn start(
        pod: &Arc<MeshPod>,
        to: SocketAddr,
        host: &str,
        clients: &[Connections],
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            pod: Arc::clone(pod),
            to,
            host: host.to_owned(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
        });
        let start = |connections: &Connections| {
            let (shared, connections) = (Arc::clone(&shared), *connections);
            thread::spawn(move || shared.ask(connections))
        };
        let load = Self {
            clients: clients.iter().map(start).collect(),
            shared,
        };
        load.more(clients.len() as u64)?;
        Ok(load)
    }

    /// Waits until so many more requests were answered.
    pub fn more(&self, requests: u64) -> anyhow::Result<()> {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let goal = answered() + requests;
        until(PATIENCE, || {
            let now = answered();
            ensure!(now >= goal, "{now} answered of {goal}");
            Ok(())
        })
        .context("waiting for the load to get further")
    }

    /// Lets every client finish its request, and tells what became of all.
    pub fn stop(mut self) -> anyhow::Result<Outcome> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut total = Outcome::default();
        for client in std::mem::take(&mut self.clients) {
            let outcome = client.join().map_err(|_| anyhow!("a client panicked"))?;
            total.answered += outcome.answered;
            total.failures.extend(outcome.failures);
            total.slowest = total.slowest.max(outcome.slowest);
        }
        Ok(total)
    }
}

/// The clients hold their pod, which would otherwise outlive a test that fails.
impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().ok();
        }
    }
}

impl Shared {
    fn ask(&self, connections: Connections) -> Outcome {
        let mut outcome = Outcome::default();
        let mut kept: Option<(Client, Instant)> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let opened = kept.as_ref().map_or(begun, |(_, opened)| *opened);
            match self.once(kept.take().map(|(client, _)| client)) {
                Ok(client) => {
                    outcome.answered += 1;
                    outcome.slowest = outcome.slowest.max(begun.elapsed());
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    if connections == Connections::Kept && !client.closed() {
                        kept = Some((client, opened));
                    }
                }
                Err(error) => outcome.failures.push(Failure {
                    opened,
                    begun,
                    failed: Instant::now(),
                    what: format!("{error:#}"),
                }),
            }
        }
        outcome
    }

    fn once(&self, client: Option<Client>) -> anyhow::Result<Client> {
        let mut client = match client {
            Some(client) => client,
            None => Client::connect(&self.pod, self.to)?,
        };
        let answer = client.send(&Request::get(&self.host, "/load"))?;
        ensure!(
            answer.status == 200,
            "{}: {}",
            answer.status,
            answer.text().trim()
        );
        Ok(client)
    }
}
