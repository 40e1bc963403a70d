//! A state-of-the-world stream with reconnects, for whoever asks servers that know no delta: one that serves
//! objects of configuration often is such.
//!
//! In: a [`ClientConfig`], what is wanted. Out: [`StateEvent`]s, one at a time, of which each update is to be
//! finished. It has no task of its own: it goes on while [`StateStream::next`] is waited for.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::connect::Server;
use super::driver::{MAX_MESSAGE, describe, with_causes};
use super::{ClientConfig, InvalidServer};
use crate::TypeUrl;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::{self, DiscoveryRequest, DiscoveryResponse};
use crate::resource::ResourceError;
use crate::sotw::client::{Reception, ResponseUpdate, SotwClient};
use crate::subscription::Selection;

/// Requests that the transport has not taken yet; whoever sends waits for room.
const REQUEST_BACKLOG: usize = 16;

/// What happened.
#[derive(Debug)]
pub enum StateEvent {
    /// A stream is open, the first or a new one.
    Connected,
    /// A response, to be given to [`StateStream::finish`].
    Update(ResponseUpdate),
    /// There is no stream; the next call connects after this pause.
    Disconnected {
        /// Why.
        error: String,
        /// The pause.
        retry_in: Duration,
    },
}

/// The stream, over all its connections.
#[derive(Debug)]
pub struct StateStream {
    config: ClientConfig,
    servers: Vec<Server>,
    machine: SotwClient,
    open: Option<Open>,
    random: fastrand::Rng,
    /// Which of the servers is next; each stream begins somewhere else.
    turn: usize,
    failures: u32,
    pause: Option<Duration>,
}

#[derive(Debug)]
struct Open {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    since: Instant,
}

impl StateStream {
    /// A stream that nothing is wanted of yet.
    ///
    /// # Errors
    /// When the server's address is malformed.
    pub fn new(config: ClientConfig) -> Result<Self, InvalidServer> {
        let mut random = fastrand::Rng::new();
        Ok(Self {
            servers: Server::all(&config)?,
            machine: SotwClient::new(proto::Node::from(&config.node)),
            config,
            open: None,
            turn: random.usize(..1024),
            random,
            failures: 0,
            pause: None,
        })
    }

    /// Wants everything of a type.
    pub fn want_all(&mut self, type_url: &TypeUrl) {
        self.machine.set_wanted(type_url, Selection::everything());
    }

    /// An update was applied but for these resources: an ACK, or a NACK that names them.
    pub fn finish(&mut self, update: &ResponseUpdate, rejected: &[ResourceError]) {
        self.machine.finish(update, rejected);
    }

    /// Waits for what happens next. Whoever stops waiting ends the stream.
    pub async fn next(&mut self) -> StateEvent {
        if self.open.is_none() {
            if let Some(pause) = self.pause.take() {
                tokio::time::sleep(pause).await;
            }
            return match Box::pin(self.connect()).await {
                Ok(open) => {
                    self.open = Some(open);
                    StateEvent::Connected
                }
                Err(error) => self.lost(error, Duration::ZERO),
            };
        }
        loop {
            let Some(open) = &mut self.open else {
                return self.lost("the stream is gone".to_owned(), Duration::ZERO);
            };
            let lived = open.since.elapsed();
            while let Some(request) = self.machine.poll_request() {
                if open.requests.send(request).await.is_err() {
                    // Its responses end with the reason.
                    break;
                }
            }
            match open.responses.message().await {
                Ok(Some(response)) => match self.machine.receive(response) {
                    Reception::Update(update) => return StateEvent::Update(update),
                    Reception::Rejected(error) => {
                        tracing::warn!(server = %self.config.server, %error, "response rejected");
                    }
                },
                Ok(None) => return self.lost("the server closed the stream".to_owned(), lived),
                Err(status) => return self.lost(describe(&status), lived),
            }
        }
    }

    async fn connect(&mut self) -> Result<Open, String> {
        let count = self.servers.len().max(1);
        let server = self.servers.get(self.turn % count);
        let server = server.ok_or("no server is configured")?;
        let connect = server.connect(self.turn / count);
        self.turn = self.turn.wrapping_add(1);
        let channel = tokio::time::timeout(self.config.connect_timeout, connect)
            .await
            .map_err(|_| "connecting timed out".to_owned())?
            .map_err(|error| with_causes(&error))?;
        let mut service = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = mpsc::channel(REQUEST_BACKLOG);
        self.machine.open();
        // Many servers send headers with their first response only, so the first requests must be
        // on their way before the call returns.
        let machine = &mut self.machine;
        let first = async {
            while let Some(request) = machine.poll_request() {
                if requests.send(request).await.is_err() {
                    break;
                }
            }
        };
        let call = service.stream_aggregated_resources(Request::new(ReceiverStream::new(outgoing)));
        let (answer, ()) = tokio::join!(call, first);
        let answer = answer.map_err(|status| describe(&status))?;
        Ok(Open {
            requests,
            responses: answer.into_inner(),
            since: Instant::now(),
        })
    }

    fn lost(&mut self, error: String, lived: Duration) -> StateEvent {
        self.open = None;
        self.machine.close();
        if lived >= self.config.backoff.reset_after {
            self.failures = 0;
        }
        self.failures += 1;
        let retry_in = self.config.backoff.pause(self.failures, &mut self.random);
        self.pause = Some(retry_in);
        StateEvent::Disconnected { error, retry_in }
    }
}
