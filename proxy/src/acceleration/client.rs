//! The client of the agent's `accel.sock`: passes requests on in batches and takes the answers in.
//!
//! Runs on the control thread for as long as the process lives. Input: [`Ask`]s of lanes.
//! Output: their connections' phase, and whether asking is of any use. An agent that goes away changes nothing for
//! what is promoted; what became of requests that it had not answered each lane asks the kernel.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::accel::{ACCEL_VERSION, MAX_PROMOTIONS};
use millrace_runtime::handoff::{
    AccelCall, AccelConnection, AccelReply, Acceleration, HandoffError, PromotionResult, Refusal,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::entry::{Phase, Returned};
use super::{Accelerator, Agent, Ask};
use crate::pods::LocalPods;

/// First pause before another attempt to reach the agent.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long the agent may take to answer `Hello`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the pods' settings are compared with what is promoted.
const SETTINGS: Duration = Duration::from_secs(1);

/// The client; see the module's documentation.
pub struct Client {
    path: PathBuf,
    accelerator: Accelerator,
    asks: mpsc::Receiver<Ask>,
    /// Who waits for what became of a splice, by the request's number.
    splices: HashMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    pods: Arc<LocalPods>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the agent speaks protocol version {0}, this proxy {ACCEL_VERSION}")]
    Version(u32),
    #[error("no welcome from the agent")]
    NoWelcome,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(
        path: PathBuf,
        (accelerator, asks): (Accelerator, mpsc::Receiver<Ask>),
        pods: Arc<LocalPods>,
    ) -> Self {
        Self {
            path,
            accelerator,
            asks,
            splices: HashMap::new(),
            pods,
        }
    }

    /// Keeps a session with the agent, for as long as the process lives.
    pub async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    pause = RETRY_MIN;
                    let error = self.session(&connection).await;
                    tracing::info!(%error, "lost the agent, no further connection is accelerated");
                }
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "no agent to accelerate");
                }
            }
            self.accelerator.set_agent(Agent::Absent);
            self.let_go();
            tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self) -> Result<AccelConnection, Ended> {
        let connection = AccelConnection::connect(&self.path)?;
        let hello = AccelCall::Hello {
            version: ACCEL_VERSION,
            pid: std::process::id(),
        };
        connection.send(&hello, &[]).await?;
        let answer = tokio::time::timeout(WELCOME_TIMEOUT, connection.recv()).await;
        let answer = answer.map_err(|_| Ended::NoWelcome)??;
        let AccelReply::Welcome {
            version,
            unavailable,
        } = answer.ok_or(Ended::Closed)?.message
        else {
            return Err(Ended::NoWelcome);
        };
        if version != ACCEL_VERSION {
            return Err(Ended::Version(version));
        }
        let agent = match unavailable {
            None => Agent::Ready,
            Some(reason) => {
                tracing::info!(reason, "connections cannot be accelerated on this node");
                Agent::Unavailable(reason)
            }
        };
        self.accelerator.set_agent(agent);
        Ok(connection)
    }

    /// Passes requests and answers on until the connection ends; says why it did.
    async fn session(&mut self, connection: &AccelConnection) -> Ended {
        let mut settings = tokio::time::interval(SETTINGS);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut next, mut calls) = (Vec::new(), VecDeque::new());
        loop {
            // Not biased: every arm is cancel-safe and none may starve another. Requests are sent
            // beside receiving, so that two full sockets cannot block each other.
            tokio::select! {
                received = connection.recv() => match received {
                    Ok(Some(received)) => self.answered(&received.message),
                    Ok(None) => return Ended::Closed,
                    Err(error) => return error.into(),
                },
                sent = send(connection, calls.front()), if !calls.is_empty() => match sent {
                    Ok(()) => drop(calls.pop_front()),
                    Err(error) => return error.into(),
                },
                _ = self.asks.recv_many(&mut next, MAX_PROMOTIONS), if calls.is_empty() => {
                    calls.extend(self.wanted(next.drain(..)));
                }
                _ = settings.tick() => self.follow_settings(),
            }
        }
    }

    fn answered(&mut self, reply: &AccelReply) {
        match reply {
            AccelReply::Promoted { results } => {
                for result in results {
                    self.resolve(result);
                }
            }
            AccelReply::Left { results } => {
                for result in results {
                    self.left(result);
                }
            }
            AccelReply::Spliced { results } => {
                for result in results {
                    let Some(waiting) = self.splices.remove(&result.id) else {
                        continue;
                    };
                    if waiting.send(result.refused.map_or(Ok(()), Err)).is_err() {
                        tracing::debug!(id = result.id, "nobody waits for a splice any more");
                    }
                }
            }
            AccelReply::Welcome { .. } => tracing::warn!("unexpected welcome from the agent"),
        }
    }

    fn resolve(&self, result: &PromotionResult) {
        let stats = self.accelerator.stats();
        match result.refused {
            None => stats.promoted(),
            Some(why) => stats.refused(why),
        }
        // The connection may have been closed meanwhile, or its lane not have waited.
        let Some(entry) = self.accelerator.entry(result.id) else {
            return;
        };
        let then = match result.refused {
            None => Phase::Promoted,
            // By an earlier request that was not waited for, maybe: the lane asks the kernel.
            Some(Refusal::InUse) => Phase::Unanswered,
            Some(why) => Phase::Refused(why),
        };
        if entry.answered(Phase::Asked, then) && matches!(then, Phase::Refused(_)) {
            self.accelerator.forget(result.id);
        }
        tracing::debug!(pod = %entry.pod().spec.qualified_name(), refused = ?result.refused,
            "the agent answered");
    }

    fn left(&self, result: &PromotionResult) {
        if result.refused.is_none() {
            self.accelerator.stats().left();
        }
        if let Some(entry) = self.accelerator.entry(result.id) {
            let then = result.refused.map_or(Phase::Left, Phase::Stays);
            entry.answered(Phase::Leaving, then);
        }
    }

    /// What was asked and not answered will not be.
    fn let_go(&mut self) {
        self.splices.clear();
        while let Ok(ask) = self.asks.try_recv() {
            let Ask::Entry(entry) = ask else { continue };
            // Never sent, so that everything is as it was.
            if entry.answered(Phase::Asked, Phase::Refused(Refusal::Failed)) {
                self.accelerator.forget(entry.id());
            } else {
                entry.answered(Phase::Leaving, Phase::Stays(Refusal::Unavailable));
            }
        }
        for entry in self.accelerator.entries() {
            let asked = entry.answered(Phase::Asked, Phase::Unanswered);
            if asked || entry.answered(Phase::Leaving, Phase::Unanswered) {
                self.accelerator.stats().unanswered();
            }
        }
    }

    /// What this wants of the agent; a connection whose lane did not wait wants nothing any more.
    fn wanted(&mut self, asks: impl Iterator<Item = Ask>) -> Vec<AccelCall> {
        let (mut promote, mut leave, mut splice) = (Vec::new(), Vec::new(), Vec::new());
        for ask in asks {
            match ask {
                Ask::Entry(entry) => match entry.phase() {
                    Phase::Asked => promote.push(entry.request()),
                    Phase::Leaving => leave.push(entry.request()),
                    _ => {}
                },
                Ask::Splice(request, answer) if !answer.is_closed() => {
                    self.splices.insert(request.id, answer);
                    splice.push(request);
                }
                Ask::Splice(..) => {}
            }
        }
        let mut calls = vec![
            AccelCall::Promote { requests: promote },
            AccelCall::Leave { requests: leave },
            AccelCall::Splice { requests: splice },
        ];
        calls.retain(|call| !call.is_empty());
        calls
    }

    /// Connections of pods whose setting no longer allows them return to TCP.
    fn follow_settings(&self) {
        for entry in self.accelerator.entries() {
            let pod = self.pods.by_uid(&entry.pod().spec.uid);
            let setting = pod.map_or(Acceleration::Off, |pod| Acceleration::of(&pod.spec));
            if entry.is_promoted()
                && !entry.carries().is_allowed(setting)
                && entry.give_up(Returned::Setting)
            {
                self.accelerator.stats().returned(Returned::Setting);
            }
        }
    }
}

async fn send(connection: &AccelConnection, call: Option<&AccelCall>) -> Result<(), HandoffError> {
    match call {
        Some(call) => connection.send(call, &[]).await,
        None => Ok(()),
    }
}
