//! Finds out which filter chain a connection belongs to, without stalling servers that speak
//! first.
//!
//! Most chains need no byte of the connection. Where the client's first bytes decide (unnamed
//! ports), the client has a short quiet window to send them; after that, or at once where the
//! destination's server is known to speak first, the upstream of the chain for raw TCP is opened
//! and whoever speaks first decides. The open upstream goes to that chain, or is closed unused.

use std::time::Duration;

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::filter_chain::Candidates;
use super::inspector::{Detected, Inspector};
use super::stats::Refusal;
use super::{DownstreamInfo, DownstreamStream};
use crate::resource::{FilterChain, Listener, NetworkFilter, TcpProxy};
use crate::tcp;
use crate::worker::Worker;

#[cfg(test)]
mod tests;

/// How long a client may stay silent before its server gets the chance to speak. A client that
/// speaks first does so within a round trip on loopback, which is far below this.
pub const QUIET_WINDOW: Duration = Duration::from_millis(50);
/// How long a silent connection may stay undecided where the listener sets no limit.
const UNDECIDED_LIMIT: Duration = Duration::from_hours(1);
/// ... and where the upstream of the chain for raw TCP cannot be opened.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(5);

/// The chain that takes a connection.
#[derive(Debug)]
pub struct Choice {
    /// The chain.
    pub chain: Arc<FilterChain>,
    /// Its upstream, where it was opened to see who speaks first.
    pub upstream: Option<tcp::Connected>,
}

impl From<&Arc<FilterChain>> for Choice {
    fn from(chain: &Arc<FilterChain>) -> Self {
        Self {
            chain: chain.clone(),
            upstream: None,
        }
    }
}

/// What became of the choice.
#[derive(Debug)]
pub enum Chosen<T> {
    /// A chain takes the connection.
    Chain(Choice),
    /// The connection is to be handed over before that is known.
    Parked(T),
}

/// Chooses the chain and writes its name into `info`, unless `park` is ready before. Bytes that were
/// read are back in `stream`.
///
/// # Errors
/// Says why the connection is to be reset.
pub async fn choose<T>(
    worker: &Worker,
    stream: &mut DownstreamStream,
    info: &mut DownstreamInfo,
    listener: &Listener,
    park: impl Future<Output = T>,
) -> Result<Chosen<T>, Refusal> {
    let candidates = Candidates::narrow(listener, info.orig_dst);
    let needs = candidates.needs();
    let mut choice = if needs.any() {
        let mut detection = Detection {
            worker,
            info,
            listener,
            candidates: &candidates,
            inspector: Inspector::new(needs),
        };
        // biased: what has arrived decides; it need not be handed over undecided.
        let choice = tokio::select! {
            biased;
            choice = detection.run(stream) => choice.map(Chosen::Chain),
            turn = park => Ok(Chosen::Parked(turn)),
        };
        detection.inspector.finish(stream);
        match choice? {
            Chosen::Chain(choice) => choice,
            parked @ Chosen::Parked(_) => return Ok(parked),
        }
    } else {
        candidates
            .select(&Detected::default(), info.peer)
            .ok_or(Refusal::NoFilterChain)?
            .into()
    };
    info.filter_chain.clone_from(&choice.chain.name);
    if !matches!(choice.chain.filter, NetworkFilter::Tcp(_)) {
        choice.upstream = None;
    }
    Ok(Chosen::Chain(choice))
}

struct Detection<'a> {
    worker: &'a Worker,
    info: &'a mut DownstreamInfo,
    listener: &'a Listener,
    candidates: &'a Candidates<'a>,
    inspector: Inspector,
}

impl Detection<'_> {
    async fn run(&mut self, stream: &mut DownstreamStream) -> Result<Choice, Refusal> {
        let limit = self.listener.listener_filters_timeout;
        let limit = if limit.is_zero() {
            UNDECIDED_LIMIT
        } else {
            limit
        };
        let deadline = self.info.started + limit;
        let raw = self.candidates.select(&Detected::default(), self.info.peer);
        let Some((chain, proxy)) = raw.and_then(tcp_chain) else {
            return match timeout_at(deadline, self.inspector.run(stream)).await {
                Ok(found) => self.matching(found, None),
                Err(_) => self.timed_out(None),
            };
        };
        if !self.worker.server_first.knows(self.info.orig_dst) {
            let quiet = deadline.min(Instant::now() + QUIET_WINDOW);
            if let Ok(found) = timeout_at(quiet, self.inspector.run(stream)).await {
                return self.matching(found, None);
            }
        }
        self.race(stream, chain, &proxy, deadline).await
    }

    /// Opens the upstream of the chain for raw TCP and sees who speaks first.
    async fn race(
        &mut self,
        stream: &mut DownstreamStream,
        chain: &Arc<FilterChain>,
        proxy: &TcpProxy,
        deadline: Instant,
    ) -> Result<Choice, Refusal> {
        // biased here and below: bytes of the client decide, whatever else is true by then.
        let connected = tokio::select! {
            biased;
            found = self.inspector.run(stream) => return self.matching(found, None),
            connected = tcp::connect(self.worker, self.info, proxy) => connected,
        };
        let Ok(upstream) = connected else {
            let deadline = deadline.min(Instant::now() + UNREACHABLE_LIMIT);
            return match timeout_at(deadline, self.inspector.run(stream)).await {
                Ok(found) => self.matching(found, None),
                // The chain tries again and answers as for any other connection.
                Err(_) => Ok(chain.into()),
            };
        };
        let mut first = [0];
        tokio::select! {
            biased;
            found = self.inspector.run(stream) => self.matching(found, Some(upstream)),
            ended = upstream.stream.tcp().peek(&mut first) => {
                if matches!(ended, Ok(1)) {
                    self.server_spoke();
                }
                Ok(Choice { chain: chain.clone(), upstream: Some(upstream) })
            }
            () = tokio::time::sleep_until(deadline) => self.timed_out(Some(upstream)),
        }
    }

    fn server_spoke(&self) {
        if !self.inspector.has_spoken() {
            self.worker.server_first.learn(self.info.orig_dst);
            self.worker.stats.server_first();
        }
    }

    /// The client has spoken.
    fn matching(
        &mut self,
        found: std::io::Result<Detected>,
        upstream: Option<tcp::Connected>,
    ) -> Result<Choice, Refusal> {
        let found = found.map_err(|_| Refusal::Gone)?;
        self.worker.server_first.forget(self.info.orig_dst);
        self.decide(found, upstream)
    }

    fn decide(
        &mut self,
        found: Detected,
        upstream: Option<tcp::Connected>,
    ) -> Result<Choice, Refusal> {
        let chain = self
            .candidates
            .select(&found, self.info.peer)
            .ok_or(Refusal::NoFilterChain)?;
        let raw = self.candidates.select(&Detected::default(), self.info.peer);
        let upstream = upstream.filter(|_| raw.is_some_and(|raw| Arc::ptr_eq(raw, chain)));
        self.info.server_name = found.server_name;
        Ok(Choice {
            chain: chain.clone(),
            upstream,
        })
    }

    /// Envoy's `continue_on_listener_filters_timeout`.
    fn timed_out(&mut self, upstream: Option<tcp::Connected>) -> Result<Choice, Refusal> {
        if !self.listener.continue_on_listener_filters_timeout {
            return Err(Refusal::InspectionTimeout);
        }
        self.decide(Detected::default(), upstream)
    }
}

fn tcp_chain(chain: &Arc<FilterChain>) -> Option<(&Arc<FilterChain>, Arc<TcpProxy>)> {
    match &chain.filter {
        NetworkFilter::Tcp(proxy) => Some((chain, proxy.clone())),
        NetworkFilter::Http(_) => None,
    }
}
