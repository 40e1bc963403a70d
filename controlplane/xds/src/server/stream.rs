//! One stream: moves requests and generations into the session and responses out of it.
//!
//! In: a call. Out: the stream of its responses, which tonic polls and owns: no task of its own,
//! and a client that does not read is not written to. Called by [`super::service`].

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::connections::Registration;
use super::{
    Acked, ConfigSource, Connection, Connections, Guard, Nacked, ProtocolVariant, Report,
    ServerConfig, Stay,
};
use crate::nack;
use crate::node::Node;
use crate::push::{Answer, ConfigView, Generation, Pieces, Reception, Session, Variant};

/// What a stream begins with.
pub(super) struct Call<S> {
    pub(super) peer: Option<SocketAddr>,
    pub(super) metadata: MetadataMap,
    pub(super) variant: ProtocolVariant,
    pub(super) source: Arc<S>,
    pub(super) config: ServerConfig,
    pub(super) connections: Connections,
    pub(super) guard: Option<Arc<dyn Guard>>,
}

/// The status that ends streams of a server that shuts down.
pub(super) fn draining() -> Status {
    Status::unavailable("the control plane is shutting down")
}

/// Waits until the server shuts down; a dropped server counts as that.
async fn drained(draining: &mut watch::Receiver<bool>) {
    drop(draining.wait_for(|draining| *draining).await);
}

/// The responses of a call; ends when the client ends its requests, with a status when something
/// is wrong.
pub(super) fn responses<V: Variant, S: ConfigSource>(
    call: Call<S>,
    requests: Streaming<V::Request>,
) -> impl Stream<Item = Result<Pieces, Status>> + Send {
    stream::try_unfold(
        Some(Phase::<V, S>::New(Box::new((call, requests)))),
        |phase| async {
            let Some(phase) = phase else {
                return Ok(None);
            };
            let mut open = match phase {
                Phase::New(new) => match Open::start(new.0, new.1).await? {
                    Some(open) => open,
                    None => return Ok(None),
                },
                Phase::Open(open) => open,
            };
            let response = open.next().await?;
            Ok(response.map(|response| (response, Some(Phase::Open(open)))))
        },
    )
}

enum Phase<V: Variant, S: ConfigSource> {
    New(Box<(Call<S>, Streaming<V::Request>)>),
    Open(Box<Open<V, S>>),
}

/// A stream whose first request has come.
struct Open<V: Variant, S: ConfigSource> {
    connection: Arc<Connection>,
    client: Attached<S>,
    requests: Streaming<V::Request>,
    session: Arc<Mutex<Session<V>>>,
    view: S::View,
    generations: watch::Receiver<Generation>,
    draining: watch::Receiver<bool>,
    stay: Stay,
    _registration: Registration,
}

/// The source's handle of the client, given back when the stream is over.
struct Attached<S: ConfigSource> {
    source: Arc<S>,
    client: Option<S::Client>,
}

impl<S: ConfigSource> Attached<S> {
    /// None only while being dropped.
    fn with<T>(&self, f: impl FnOnce(&S, &S::Client) -> T) -> Option<T> {
        self.client.as_ref().map(|client| f(&self.source, client))
    }
}

impl<S: ConfigSource> Drop for Attached<S> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.source.disconnect(client);
        }
    }
}

impl<V: Variant, S: ConfigSource> Open<V, S> {
    /// Waits for the first request and introduces the client to the source. None when the client
    /// left at once.
    async fn start(
        call: Call<S>,
        mut requests: Streaming<V::Request>,
    ) -> Result<Option<Box<Self>>, Status> {
        let mut draining = call.connections.draining();
        let first = tokio::select! {
            first = timeout(call.config.first_request_timeout, requests.message()) => first,
            () = drained(&mut draining) => return Err(self::draining()),
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no request came in time"))??;
        let Some(first) = first else {
            return Ok(None);
        };
        let node = V::header(&first).node.cloned();
        let node = node.ok_or_else(|| Status::invalid_argument("first request without a node"))?;
        let mut connection = Connection {
            id: call.connections.next_id(),
            node: Arc::new(Node::from(node)),
            peer: call.peer,
            variant: call.variant,
            metadata: call.metadata,
            proven: false,
        };
        let mut stay: Stay = Box::pin(pending());
        if let Some(guard) = &call.guard {
            let admitted = tokio::select! {
                admitted = timeout(call.config.first_request_timeout, guard.admit(&connection)) => admitted,
                () = drained(&mut draining) => return Err(self::draining()),
            };
            stay = admitted.map_err(|_| {
                Status::unavailable("who the client is was not found out in time")
            })??;
            connection.proven = true;
        }
        let connection = Arc::new(connection);
        let client = call.source.connect(&connection)?;
        let mut generations = call.source.generations();
        generations.mark_unchanged();
        let view = call.source.view(&client);
        let session = Session::new(call.config.session, connection.id.0, view.generation());
        let session = Arc::new(Mutex::new(session));
        tracing::info!(
            connection = %connection.id, node = %connection.node.id, peer = ?connection.peer,
            variant = ?connection.variant, "xds client connected"
        );
        let mut open = Box::new(Self {
            client: Attached {
                source: call.source,
                client: Some(client),
            },
            requests,
            view,
            generations,
            draining,
            stay,
            _registration: call.connections.insert(connection.clone(), session.clone()),
            session,
            connection,
        });
        open.receive(&first)?;
        Ok(Some(open))
    }

    /// The next response; none when the client has ended its requests.
    async fn next(&mut self) -> Result<Option<Pieces>, Status> {
        loop {
            let now = Instant::now();
            let (response, deadline) = {
                let mut session = self.session.lock();
                let response = session.poll_pieces(now, &self.view);
                (response, session.deadline(now))
            };
            if let Some(response) = response {
                return Ok(Some(response));
            }
            tokio::select! {
                // Requests first: an ACK that is there already lets the newest generation go out
                // at once instead of waiting for another turn.
                biased;
                message = self.requests.message() => match message? {
                    Some(request) => self.receive(&request)?,
                    None => return Ok(None),
                },
                changed = self.generations.changed() => {
                    changed.map_err(|_| draining())?;
                    self.advance();
                }
                () = drained(&mut self.draining) => return Err(draining()),
                status = &mut self.stay => return Err(status),
                () = sleep_until(deadline.unwrap_or(now)), if deadline.is_some() => {}
            }
        }
    }

    fn advance(&mut self) {
        let Some(view) = self.client.with(S::view) else {
            return;
        };
        self.view = view;
        let mut session = self.session.lock();
        session.advance(self.view.generation(), |since, type_url| {
            self.client
                .with(|source, client| source.affects(client, since, type_url))
                .unwrap_or(true)
        });
    }

    fn receive(&mut self, request: &V::Request) -> Result<(), Status> {
        let mut session = self.session.lock();
        let reception = session
            .receive(request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let selection = reception
            .subscription_changed
            .then(|| session.selection(&reception.type_url).cloned())
            .flatten();
        drop(session);
        self.report(&reception);
        if let Some(selection) = &selection {
            let type_url = &reception.type_url;
            tracing::debug!(
                connection = %self.connection.id, ?type_url, terms = selection.terms().count(),
                "subscription changed"
            );
            self.client.with(|source, client| {
                source.report(
                    client,
                    Report::Subscribed {
                        type_url,
                        selection,
                        added: &reception.subscribed,
                    },
                );
            });
        }
        Ok(())
    }

    fn report(&self, reception: &Reception) {
        let type_url = &reception.type_url;
        let report = match &reception.answer {
            Some(Answer::Acked(response)) => Report::Acked(Acked {
                type_url,
                version: &response.version,
                nonce: &response.nonce,
                latency: response.sent_at.elapsed(),
            }),
            Some(Answer::Nacked(response, status)) => {
                tracing::warn!(
                    connection = %self.connection.id, node = %self.connection.node.id, ?type_url,
                    version = %response.version, message = %status.message, "response rejected"
                );
                Report::Nacked(Nacked {
                    type_url,
                    version: &response.version,
                    nonce: &response.nonce,
                    message: &status.message,
                    resources: &response.resources,
                    rejected: nack::rejected(status),
                })
            }
            Some(Answer::Stale) | None => return,
        };
        self.client
            .with(|source, client| source.report(client, report));
    }
}

impl<V: Variant, S: ConfigSource> Drop for Open<V, S> {
    fn drop(&mut self) {
        tracing::info!(
            connection = %self.connection.id, node = %self.connection.node.id,
            "xds client disconnected"
        );
    }
}
