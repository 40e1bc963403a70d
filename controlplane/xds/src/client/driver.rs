//! Keeps one stream to the control plane: connects, reconnects with pauses, moves messages between
//! the stream, the state machine and the consumer.
//!
//! In: a [`ClientConfig`], the shared session. Out: events, the connection's state. Run by the
//! caller of [`super::client`] as a task of its own.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::connect::Server;
use super::{ClientConfig, ConnectionState, Event, InvalidServer, Shared, Update};
use crate::delta::client::Reception;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Requests that the transport has not taken yet. One is enough: the state machine merges what
/// comes after it.
const REQUEST_BACKLOG: usize = 1;

/// A control plane may put a node's whole configuration into one response.
pub(super) const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// The task behind a [`super::Client`].
#[derive(Debug)]
#[must_use = "a driver does nothing until it runs"]
pub struct Driver {
    config: ClientConfig,
    servers: Vec<Server>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    state: watch::Sender<ConnectionState>,
}

/// Why a stream ended.
enum End {
    /// The consumer is gone.
    Closed,
    /// The connection broke or was refused.
    Failed(String),
}

impl Driver {
    pub(super) fn new(
        config: ClientConfig,
        shared: Arc<Shared>,
        events: mpsc::Sender<Event>,
        state: watch::Sender<ConnectionState>,
    ) -> Result<Self, InvalidServer> {
        let servers = Server::all(&config)?;
        Ok(Self {
            config,
            servers,
            shared,
            events,
            state,
        })
    }

    /// Runs until [`super::Events`] is dropped. Cancelling is safe: the server sees the stream end.
    pub async fn run(self) {
        tokio::select! {
            // Not biased: a TTL passes with and without a stream.
            () = self.keep_connected() => {}
            () = self.forget_lapsed() => {}
        }
        self.state.send_replace(ConnectionState::Closed);
    }

    /// Tells the consumer that resources are gone whose TTLs have passed. Ends when the consumer is gone.
    async fn forget_lapsed(&self) {
        loop {
            let next = self.shared.machine.lock().next_lapse();
            tokio::select! {
                () = self.shared.renewed.notified() => continue,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            // With room in hand nothing that is received in between comes before this.
            let Ok(permit) = self.events.reserve().await else {
                return;
            };
            let lapsed = self.shared.machine.lock().lapse(Instant::now());
            if let Some((type_url, names)) = lapsed {
                tracing::warn!(
                    ?type_url,
                    ?names,
                    "the control plane has not renewed resources in time"
                );
                permit.send(Event::Update(Update::lapsed(type_url, names)));
                self.shared.changed.notify_one();
            }
        }
    }

    async fn keep_connected(&self) {
        let mut random = fastrand::Rng::new();
        let mut failures = 0;
        // Each begins somewhere else, and goes on to the next whenever one fails.
        let mut turn = random.usize(..1024);
        loop {
            let attempt = failures + 1;
            self.state
                .send_replace(ConnectionState::Connecting { attempt });
            let started = Instant::now();
            let end = self.connect_and_serve(turn).await;
            turn = turn.wrapping_add(1);
            self.shared.machine.lock().close();
            let End::Failed(error) = end else {
                break;
            };
            if started.elapsed() >= self.config.backoff.reset_after {
                failures = 0;
            }
            failures += 1;
            let retry_in = self.config.backoff.pause(failures, &mut random);
            tracing::info!(server = %self.config.server, %error, ?retry_in, "control plane disconnected");
            self.state
                .send_replace(ConnectionState::Disconnected { error, retry_in });
            tokio::select! {
                () = self.events.closed() => break,
                () = sleep(retry_in) => {}
            }
        }
    }

    async fn connect_and_serve(&self, turn: usize) -> End {
        let Some(server) = self.servers.get(turn % self.servers.len().max(1)) else {
            return End::Failed("no control plane is configured".to_owned());
        };
        let connect = server.connect(turn / self.servers.len().max(1));
        let connect = tokio::time::timeout(self.config.connect_timeout, connect);
        let channel = tokio::select! {
            () = self.events.closed() => return End::Closed,
            channel = connect => channel,
        };
        match channel {
            Ok(Ok(channel)) => Box::pin(self.serve(channel, server)).await,
            Ok(Err(error)) => End::Failed(with_causes(&error)),
            Err(_) => End::Failed("connecting timed out".to_owned()),
        }
    }

    async fn serve(&self, channel: Channel, server: &Server) -> End {
        let (requests, outgoing) = mpsc::channel(REQUEST_BACKLOG);
        let request = match self.with_metadata(Request::new(ReceiverStream::new(outgoing)), server)
        {
            Ok(request) => request,
            Err(error) => return End::Failed(error),
        };
        let mut service = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        self.shared.machine.lock().open();
        // Many servers send headers with their first response only, so the first requests must be
        // on their way before the call returns.
        let call = pin!(service.delta_aggregated_resources(request));
        let opened = match self.open(call, &requests).await {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        tracing::info!(server = %self.config.server, "control plane connected");
        let control_plane = None;
        self.state
            .send_replace(ConnectionState::Connected { control_plane });
        if self.events.send(Event::Connected).await.is_err() {
            return End::Closed;
        }
        self.exchange(opened.into_inner(), &requests).await
    }

    /// Sends requests until the call has returned.
    async fn open(
        &self,
        mut call: impl Future<Output = Result<Response<Streaming<DeltaDiscoveryResponse>>, Status>>
        + Unpin,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<Response<Streaming<DeltaDiscoveryResponse>>, End> {
        loop {
            tokio::select! {
                // Not biased: neither side can keep the other from its turn.
                () = self.events.closed() => return Err(End::Closed),
                result = &mut call => {
                    return result.map_err(|status| End::Failed(describe(&status)));
                }
                sent = self.send_request(requests) => if !sent {
                    // The transport dropped the stream; the call says why.
                    return call.await.map_err(|status| End::Failed(describe(&status)));
                },
            }
        }
    }

    async fn exchange(
        &self,
        mut responses: Streaming<DeltaDiscoveryResponse>,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> End {
        let mut slot = None;
        let mut sending = true;
        loop {
            let deadline = self.shared.machine.lock().deadline();
            tokio::select! {
                // Not biased: requests, responses and timers all have to make progress.
                () = self.events.closed() => return End::Closed,
                // When the stream takes no more requests, its responses end with the reason.
                sent = self.send_request(requests), if sending => sending = sent,
                permit = self.events.reserve(), if slot.is_none() => match permit {
                    Ok(permit) => slot = Some(permit),
                    Err(_) => return End::Closed,
                },
                message = responses.message(), if slot.is_some() => match message {
                    Ok(Some(response)) => {
                        if let Some(event) = self.receive(response) {
                            // The guard of this branch saw the permit.
                            if let Some(permit) = slot.take() {
                                permit.send(event);
                            }
                        }
                    }
                    Ok(None) => return End::Failed("the server closed the stream".to_owned()),
                    Err(status) => return End::Failed(describe(&status)),
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let expired = self.shared.machine.lock().expire(Instant::now());
                    for (type_url, names) in expired {
                        tracing::warn!(?type_url, ?names, "the control plane says nothing of subscribed resources");
                        if self.events.send(Event::Missing { type_url, names }).await.is_err() {
                            return End::Closed;
                        }
                    }
                }
            }
        }
    }

    fn receive(&self, response: DeltaDiscoveryResponse) -> Option<Event> {
        let identifier = response
            .control_plane
            .as_ref()
            .map(|control_plane| control_plane.identifier.clone());
        self.state.send_if_modified(|state| match state {
            ConnectionState::Connected { control_plane } if *control_plane != identifier => {
                *control_plane = identifier;
                true
            }
            _ => false,
        });
        let reception = self.shared.machine.lock().receive(response);
        self.shared.renewed.notify_one();
        match reception {
            Reception::Update(update) => {
                Some(Event::Update(Update::new(update, self.shared.clone())))
            }
            Reception::Ignored { reason } => {
                tracing::debug!(%reason, "response ignored");
                self.shared.changed.notify_one();
                None
            }
        }
    }

    /// Waits for a request to send and for room to send it; false when the stream takes no more.
    /// Cancelling loses nothing: a request leaves the state machine only with room in hand.
    async fn send_request(&self, requests: &mpsc::Sender<DeltaDiscoveryRequest>) -> bool {
        loop {
            let changed = self.shared.changed.notified();
            let Ok(permit) = requests.reserve().await else {
                return false;
            };
            let request = self.shared.machine.lock().poll_request(Instant::now());
            if let Some(request) = request {
                permit.send(request);
                return true;
            }
            drop(permit);
            changed.await;
        }
    }

    fn with_metadata<T>(
        &self,
        mut request: Request<T>,
        server: &Server,
    ) -> Result<Request<T>, String> {
        let token = self.config.token.as_ref().filter(|_| server.is_private());
        let bearer = token.map(|path| {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("the token {}: {error}", path.display()))?;
            Ok::<_, String>((
                "authorization".to_owned(),
                format!("Bearer {}", text.trim()),
            ))
        });
        let bearer = bearer.transpose()?;
        for (key, value) in self.config.metadata.iter().chain(&bearer) {
            let name = AsciiMetadataKey::from_bytes(key.as_bytes());
            let value = AsciiMetadataValue::try_from(value.as_str());
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(format!("metadata {key} is not valid"));
            };
            request.metadata_mut().insert(name, value);
        }
        Ok(request)
    }
}

pub(super) fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), with_causes(status))
}

/// Transport errors say what happened only in their causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
