//! The server's side of a stream, common to both variants: subscriptions, what the client was
//! sent, one outstanding response per type, and the order of pushes (make before break).
//!
//! In: requests, views of the configuration. Out: the next response ([`Session::poll`]), what a
//! request meant ([`Reception`]), the state of each type. The variants ([`crate::delta::server`],
//! [`crate::sotw::server`]) say how a type's difference becomes a response. Driven by
//! [`crate::server`].
//!
//! Order (xDS protocol, "Eventual consistency considerations"): what a client newly asks for is
//! answered at once. Changes of the configuration go out by [`TypeUrl::push_rank`], each type
//! after the earlier ones were acknowledged; removals wait until all that is done and go the other
//! way round. A client that does not answer holds back only its own type after
//! [`SessionConfig::ack_hold`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::proto;
use crate::resource::EncodedResource;
use crate::subscription::{Selection, Subscription, SubscriptionChange, WILDCARD, is_glob};
use crate::{TypeUrl, Version};

mod heartbeat;
mod held;
mod status;

pub use crate::wire::Pieces;

use heartbeat::Heartbeats;
pub use held::Held;
pub use status::{SyncState, TypeStatus};

/// Counts configurations; higher is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An immutable configuration of one client.
pub trait ConfigView: Send + Sync + 'static {
    /// The generation it shows.
    fn generation(&self) -> Generation;

    /// Resources of a type that the selection covers and that exist: named ones, members of
    /// collections and, with the wildcard, all that the node is meant to have. Order is kept in
    /// responses; names are unique. Runs on the stream's task: it should only look up cached
    /// encodings.
    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>>;

    /// The names within a selection that may be new, different or gone since a generation; none where
    /// they are not known, and all of it is compared.
    fn changed(
        &self,
        type_url: &TypeUrl,
        since: Generation,
        selection: &Selection,
    ) -> Option<Vec<String>> {
        let _ = (type_url, since, selection);
        None
    }
}

/// One of the protocol's variants: how requests and responses look, and how a type's state and a
/// view become the content of a response.
pub trait Variant: Sized + Send + Sync + 'static {
    /// `DiscoveryRequest` or `DeltaDiscoveryRequest`.
    type Request: Send + 'static;
    /// `DiscoveryResponse` or `DeltaDiscoveryResponse`.
    type Response: Send + 'static;

    /// The fields that both variants' requests have.
    fn header(request: &Self::Request) -> RequestHeader<'_>;

    /// Applies a request's names to the subscription and to what the client is believed to have.
    fn subscribe(
        state: &mut TypeState,
        type_url: &TypeUrl,
        request: &Self::Request,
    ) -> SubscriptionChange;

    /// Whether a request that answers an older response is to be ignored with all it says.
    const STALE_REQUESTS_ARE_VOID: bool;

    /// What answers [`TypeState::requested`]; consumes it. None when there is nothing to say.
    fn requested(state: &mut TypeState, query: &Query<'_>) -> Option<Draft>;

    /// New and changed resources; nothing is taken away. None when there are none, with
    /// [`TypeState::surplus`] set accordingly.
    fn updates(state: &mut TypeState, query: &Query<'_>) -> Option<Draft>;

    /// Takes away what is no longer in the view.
    fn removals(state: &mut TypeState, query: &Query<'_>) -> Option<Draft>;

    /// What renews the TTLs of these resources.
    fn heartbeat(
        state: &mut TypeState,
        query: &Query<'_>,
        resources: Vec<Arc<EncodedResource>>,
    ) -> Draft;

    /// Whether a client that says this of itself can be told TTLs.
    fn tells_ttls(client_features: &[String]) -> bool;

    /// The message on the wire.
    fn response(type_url: &TypeUrl, draft: Draft, envelope: &Envelope<'_>) -> Self::Response;

    /// The same message as bytes, which share the resources' bodies.
    fn pieces(type_url: &TypeUrl, draft: Draft, envelope: &Envelope<'_>) -> Pieces;
}

/// The common fields of requests.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeader<'a> {
    /// Type URL.
    pub type_url: &'a str,
    /// Node, in a stream's first request at least.
    pub node: Option<&'a proto::Node>,
    /// Nonce of the response that the request answers.
    pub nonce: &'a str,
    /// Present in NACKs.
    pub error: Option<&'a proto::Status>,
}

/// A view, asked for one type.
pub struct Query<'a> {
    view: &'a dyn ConfigView,
    type_url: &'a TypeUrl,
    max_bytes: usize,
}

impl Query<'_> {
    /// The type asked for.
    pub fn type_url(&self) -> &TypeUrl {
        self.type_url
    }

    /// Content at which a delta response is cut; the rest follows in the next one.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// The generation shown.
    pub fn generation(&self) -> Generation {
        self.view.generation()
    }

    /// The part of a type's subscription that may have changed since the client had all of it; none
    /// where that is not known.
    pub fn changed(&self, state: &TypeState) -> Option<Selection> {
        let selection = state.subscription.selection();
        let names = self.view.changed(self.type_url, state.synced, selection)?;
        Some(names.into_iter().collect())
    }

    /// Existing resources that the selection covers.
    pub fn resources(&self, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        if selection.is_empty() {
            return Vec::new();
        }
        let mut resources = self.view.resources(self.type_url, selection);
        let mut seen = HashSet::with_capacity(resources.len());
        resources.retain(|resource| {
            let name = resource.shared_name();
            if !resource.is_selected_by(selection) {
                return false;
            }
            // Two resources of one name would replace each other for ever.
            let unique = seen.insert(name.clone());
            if !unique {
                tracing::warn!(type_url = ?self.type_url, %name, "resource exists twice, keeping the first");
            }
            unique
        });
        resources
    }
}

/// The content of a response.
#[derive(Debug)]
pub struct Draft {
    /// Resources to send.
    pub resources: Vec<Arc<EncodedResource>>,
    /// Names to remove (delta only).
    pub removed: Vec<String>,
    /// Names that mean nothing, told in the way of types that are asked for by aliases (delta only).
    pub unresolved: Vec<String>,
    /// Version of the whole.
    pub version: Version,
    /// Whether more of the same kind follows in another response.
    pub truncated: bool,
    /// Whether the client has these resources, and only their TTLs are renewed.
    pub is_heartbeat: bool,
}

/// What a response has beside its content.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Its nonce.
    pub nonce: &'a str,
    /// What the control plane calls itself.
    pub identifier: &'a str,
    /// Whether the client can be told TTLs.
    pub tells_ttls: bool,
}

/// What the client is believed to have under a name.
#[derive(Clone, Debug)]
pub enum Sent {
    /// This version, which it brought from an earlier stream.
    Brought(Version),
    /// This version, to be kept until it is told otherwise.
    Version(Version),
    /// This resource, which is needed: for its TTL, for its aliases, or because it may have to be sent again once
    /// the view has it no longer.
    Resource(Arc<EncodedResource>),
    /// Some version that it may have forgotten since, because it asked again.
    Unsure,
    /// It was told that the name (or collection) does not exist.
    Absent,
}

impl Sent {
    /// What there is to remember of a resource that goes out.
    pub fn of(resource: &Arc<EncodedResource>) -> Self {
        if resource.ttl().is_some() || !resource.aliases().is_empty() {
            return Self::Resource(Arc::clone(resource));
        }
        Self::Version(resource.version().clone())
    }

    /// Whether the client has exactly this, for as long as it is to have it.
    pub fn is(&self, resource: &EncodedResource) -> bool {
        match self {
            Self::Brought(sent) => sent == resource.version(),
            Self::Version(sent) => sent == resource.version() && resource.ttl().is_none(),
            Self::Resource(sent) => {
                sent.version() == resource.version() && sent.ttl() == resource.ttl()
            }
            Self::Unsure | Self::Absent => false,
        }
    }

    /// Whether the client has or may have some version.
    pub fn exists(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// How far a type is with the newest view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The client has been sent all of it.
    #[default]
    Clean,
    /// Changes may be due.
    Updates,
    /// Changes are sent, removals may be due.
    Removals,
}

/// One type on one stream.
#[derive(Debug, Default)]
pub struct TypeState {
    /// What the client asks for.
    pub subscription: Subscription,
    /// What it is believed to have.
    pub sent: Held,
    /// Terms that must be answered, whether or not they changed.
    pub requested: BTreeSet<String>,
    /// Names unsubscribed while the wildcard or a collection may still cover them: the client must
    /// be told whether they stay (xDS protocol, "Unsubscribing from Resources").
    pub recheck: BTreeSet<String>,
    /// Whether a response is owed even if it is empty, so that the client can end its
    /// initialisation.
    pub answer_due: bool,
    /// Set by [`Variant::updates`] when it finds no change: whether the client has something that
    /// is not in the view, so that looking for removals is worth it.
    pub surplus: bool,
    phase: Phase,
    in_flight: Option<InFlight>,
    history: status::History,
    heartbeats: Heartbeats,
    /// The newest generation that the client has all of.
    synced: Generation,
}

/// A response without an answer yet.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Its nonce.
    pub nonce: String,
    /// Its version.
    pub version: Version,
    /// When it was sent.
    pub sent_at: Instant,
    /// Names in it.
    pub resources: Vec<Arc<str>>,
}

/// Limits of a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// How long an unanswered response holds back other types.
    pub ack_hold: Duration,
    /// Content at which a delta response is cut; gRPC clients accept 4 MiB by default.
    pub max_response_bytes: usize,
    /// What the control plane calls itself in responses.
    pub identifier: String,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            ack_hold: Duration::from_secs(15),
            max_response_bytes: 2 * 1024 * 1024,
            identifier: "millrace-pilot".to_owned(),
        }
    }
}

/// What a request meant.
#[derive(Debug)]
pub struct Reception {
    /// Its type.
    pub type_url: TypeUrl,
    /// What it says of a response.
    pub answer: Option<Answer>,
    /// Whether the subscription changed.
    pub subscription_changed: bool,
    /// The terms that it asks for now, whether or not it did before.
    pub subscribed: Vec<String>,
}

/// What a request says of a response.
#[derive(Debug)]
pub enum Answer {
    /// The outstanding response was accepted.
    Acked(InFlight),
    /// The outstanding response was rejected.
    Nacked(InFlight, proto::Status),
    /// It is about an older response.
    Stale,
}

/// A request that breaks the protocol; the stream ends.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Aggregated streams need a type in every request.
    #[error("request without a type URL on an aggregated stream")]
    NoTypeUrl,
}

/// The server's side of one stream.
#[derive(Debug)]
pub struct Session<V> {
    config: SessionConfig,
    /// Makes nonces of different streams different.
    nonce_prefix: String,
    next_nonce: u64,
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    generation: Generation,
    tells_ttls: bool,
    variant: std::marker::PhantomData<fn() -> V>,
}

impl<V: Variant> Session<V> {
    /// A stream without requests; `stream_id` sets its nonces apart from other streams'.
    pub fn new(config: SessionConfig, stream_id: u64, generation: Generation) -> Self {
        Self {
            config,
            nonce_prefix: format!("{stream_id:x}"),
            next_nonce: 1,
            types: BTreeMap::new(),
            generation,
            tells_ttls: V::tells_ttls(&[]),
            variant: std::marker::PhantomData,
        }
    }

    /// A newer view is there. `affects(since, type)` says whether a type may have changed.
    pub fn advance(
        &mut self,
        generation: Generation,
        affects: impl Fn(Generation, &TypeUrl) -> bool,
    ) {
        self.generation = generation;
        for ((_, type_url), state) in &mut self.types {
            if affects(state.synced, type_url) {
                state.phase = Phase::Updates;
            } else if state.phase == Phase::Clean {
                state.synced = generation;
            }
        }
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// When it breaks the protocol so that the stream cannot go on.
    pub fn receive(&mut self, request: &V::Request) -> Result<Reception, ProtocolError> {
        let header = V::header(request);
        if header.type_url.is_empty() {
            return Err(ProtocolError::NoTypeUrl);
        }
        if let Some(node) = header.node {
            self.tells_ttls = V::tells_ttls(&node.client_features);
        }
        let type_url = TypeUrl::from(header.type_url);
        let mut first = false;
        let state = self
            .types
            .entry((type_url.push_rank(), type_url.clone()))
            .or_insert_with(|| {
                first = true;
                TypeState {
                    phase: Phase::Updates,
                    ..TypeState::default()
                }
            });
        // A stream's first request of a type answers nothing, whatever nonce it brings along from
        // an earlier stream.
        let answer = if first {
            None
        } else {
            state.answer(&header, V::STALE_REQUESTS_ARE_VOID)
        };
        let mut subscription_changed = false;
        let mut subscribed = Vec::new();
        if !(V::STALE_REQUESTS_ARE_VOID && matches!(answer, Some(Answer::Stale))) {
            let change = V::subscribe(state, &type_url, request);
            subscription_changed = first || change != SubscriptionChange::default();
            subscribed = change.subscribed;
        }
        Ok(Reception {
            type_url,
            answer,
            subscription_changed,
            subscribed,
        })
    }

    /// The next response to send, if one is due: call again until there is none.
    pub fn poll(&mut self, now: Instant, view: &dyn ConfigView) -> Option<V::Response> {
        self.poll_as(now, view, V::response)
    }

    /// The same as bytes.
    pub fn poll_pieces(&mut self, now: Instant, view: &dyn ConfigView) -> Option<Pieces> {
        self.poll_as(now, view, V::pieces)
    }

    fn poll_as<T>(
        &mut self,
        now: Instant,
        view: &dyn ConfigView,
        form: impl FnOnce(&TypeUrl, Draft, &Envelope<'_>) -> T,
    ) -> Option<T> {
        let (key, draft) = self
            .poll_requested(view)
            .or_else(|| self.poll_updates(now, view))
            .or_else(|| self.poll_removals(now, view))
            .or_else(|| self.poll_heartbeats(now, view))?;
        let nonce = format!("{}-{}", self.nonce_prefix, self.next_nonce);
        self.next_nonce += 1;
        let state = self.types.get_mut(&key)?;
        let in_flight = InFlight {
            nonce: nonce.clone(),
            version: draft.version.clone(),
            sent_at: now,
            resources: names_of(&draft),
        };
        state.history.sent(&in_flight, self.generation);
        state.in_flight = Some(in_flight);
        if self.tells_ttls {
            state.heartbeats.sent(&draft, now);
        }
        let envelope = Envelope {
            nonce: &nonce,
            identifier: &self.config.identifier,
            tells_ttls: self.tells_ttls,
        };
        Some(form(&key.1, draft, &envelope))
    }

    /// When [`Session::poll`] may have more without further input: an unanswered response stops
    /// holding others back then, or a TTL is to be renewed.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let waiting = self.types.values().any(|state| state.phase != Phase::Clean);
        let holds = self.types.values().filter_map(|state| {
            let until = state.in_flight.as_ref()?.sent_at + self.config.ack_hold;
            (until > now).then_some(until)
        });
        let held_until = holds.min().filter(|_| waiting);
        let idle = self
            .types
            .values()
            .filter(|state| state.in_flight.is_none());
        let renewal = idle.filter_map(|state| state.heartbeats.next(now)).min();
        held_until.into_iter().chain(renewal).min()
    }

    /// The subscription of a type.
    pub fn selection(&self, type_url: &TypeUrl) -> Option<&Arc<Selection>> {
        let state = self.types.get(&(type_url.push_rank(), type_url.clone()))?;
        Some(state.subscription.selection())
    }

    /// The state of every type, in push order.
    pub fn status(&self, now: Instant) -> Vec<TypeStatus> {
        self.types
            .iter()
            .map(|((_, type_url), state)| state.status(type_url, now))
            .collect()
    }

    fn poll_requested(&mut self, view: &dyn ConfigView) -> Option<((u8, TypeUrl), Draft)> {
        let max_bytes = self.config.max_response_bytes;
        self.types.iter_mut().find_map(|(key, state)| {
            if state.in_flight.is_some() || !state.owes_answer() {
                return None;
            }
            let query = query(view, &key.1, max_bytes);
            V::requested(state, &query).map(|draft| (key.clone(), draft))
        })
    }

    fn poll_updates(
        &mut self,
        now: Instant,
        view: &dyn ConfigView,
    ) -> Option<((u8, TypeUrl), Draft)> {
        let (hold, max_bytes) = (self.config.ack_hold, self.config.max_response_bytes);
        for (key, state) in &mut self.types {
            if state.phase == Phase::Updates && state.in_flight.is_none() {
                if let Some(draft) = V::updates(state, &query(view, &key.1, max_bytes)) {
                    return Some((key.clone(), draft));
                }
                if state.surplus {
                    state.phase = Phase::Removals;
                } else {
                    state.phase = Phase::Clean;
                    state.synced = self.generation;
                }
            }
            if state.holds_back(now, hold) {
                return None;
            }
        }
        None
    }

    fn poll_removals(
        &mut self,
        now: Instant,
        view: &dyn ConfigView,
    ) -> Option<((u8, TypeUrl), Draft)> {
        let (hold, max_bytes) = (self.config.ack_hold, self.config.max_response_bytes);
        if self.types.values().any(|state| state.holds_back(now, hold)) {
            return None;
        }
        for (key, state) in self.types.iter_mut().rev() {
            if state.phase != Phase::Removals || state.in_flight.is_some() {
                continue;
            }
            let draft = V::removals(state, &query(view, &key.1, max_bytes));
            if !draft.as_ref().is_some_and(|draft| draft.truncated) {
                state.phase = Phase::Clean;
                state.synced = self.generation;
            }
            if let Some(draft) = draft {
                return Some((key.clone(), draft));
            }
        }
        None
    }
}

impl<V: Variant> Session<V> {
    /// Renews what is due, one type after the other; an unanswered response waits for its answer.
    fn poll_heartbeats(
        &mut self,
        now: Instant,
        view: &dyn ConfigView,
    ) -> Option<((u8, TypeUrl), Draft)> {
        let max_bytes = self.config.max_response_bytes;
        self.types.iter_mut().find_map(|(key, state)| {
            if state.in_flight.is_some() {
                return None;
            }
            let due = state.heartbeats.due(now, &state.sent);
            if due.is_empty() {
                return None;
            }
            let query = query(view, &key.1, max_bytes);
            Some((key.clone(), V::heartbeat(state, &query, due)))
        })
    }
}

impl TypeState {
    /// Version of the newest response that the client accepted, or of the newest at all.
    pub fn known_version(&self) -> Version {
        self.history.known_version()
    }

    /// Has the client told soon of a resource that it had before this stream, if it has a TTL.
    pub fn adopt(&mut self, resource: &Arc<EncodedResource>) {
        let name = resource.shared_name();
        let claimed = matches!(self.sent.get(name), Some(Sent::Brought(_)));
        if claimed && resource.ttl().is_some() {
            self.sent.insert(name.clone(), Sent::of(resource));
            self.heartbeats.now(name);
        }
    }

    /// Everything that the client has, besides names it was told do not exist.
    pub fn held(&self) -> impl Iterator<Item = (&Arc<str>, &Sent)> {
        self.sent.iter().filter(|(_, sent)| sent.exists())
    }

    /// Whether the client has, or may have, a resource.
    pub fn has(&self, name: &str) -> bool {
        self.sent.get(name).is_some_and(Sent::exists)
    }

    /// Compares with the number of resources in a view that the client has all of.
    pub fn note_surplus(&mut self, in_view: usize) {
        self.surplus = self.held().count() > in_view;
    }

    /// Forgets what the client has of terms that it no longer subscribes to.
    pub fn forget_unselected(&mut self) {
        let selection = self.subscription.selection();
        self.sent.retain(|name, sent| match sent {
            Sent::Absent => selection.has(name),
            Sent::Resource(resource) => resource.is_selected_by(selection),
            _ => selection.contains(name),
        });
        self.requested.retain(|term| selection.has(term));
    }

    /// Takes what the client has of a term as unsure, so that it is sent again.
    pub fn doubt(&mut self, term: &str) {
        if term != WILDCARD && !is_glob(term) {
            match self.sent.get_mut(term) {
                Some(Sent::Absent) => self.sent.remove(term),
                Some(sent) => *sent = Sent::Unsure,
                None => {}
            }
            return;
        }
        let asked: Selection = [term].into_iter().collect();
        self.sent.retain(|name, sent| {
            if sent.exists() && asked.contains(name) {
                *sent = Sent::Unsure;
            }
            sent.exists() || name != term
        });
    }

    fn owes_answer(&self) -> bool {
        self.answer_due || !self.requested.is_empty() || !self.recheck.is_empty()
    }

    /// Whether an unanswered response keeps later types waiting.
    fn holds_back(&self, now: Instant, hold: Duration) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|in_flight| now < in_flight.sent_at + hold)
    }

    fn answer(&mut self, header: &RequestHeader<'_>, nonce_required: bool) -> Option<Answer> {
        let answers = self
            .in_flight
            .take_if(|in_flight| in_flight.nonce == header.nonce);
        let Some(in_flight) = answers else {
            let stale = if header.nonce.is_empty() {
                // In SotW every request after the first response names the newest one, so this
                // was sent before that response came. In delta it is a spontaneous request.
                nonce_required && self.history.has_sent()
            } else {
                !self.history.is_last(header.nonce)
            };
            return stale.then_some(Answer::Stale);
        };
        Some(if let Some(error) = header.error {
            self.history.nacked(&error.message);
            Answer::Nacked(in_flight, error.clone())
        } else {
            self.history.acked(&in_flight);
            Answer::Acked(in_flight)
        })
    }
}

fn query<'a>(view: &'a dyn ConfigView, type_url: &'a TypeUrl, max_bytes: usize) -> Query<'a> {
    Query {
        view,
        type_url,
        max_bytes,
    }
}

fn names_of(draft: &Draft) -> Vec<Arc<str>> {
    let sent = draft.resources.iter().map(|r| r.shared_name().clone());
    let absent = draft.removed.iter().chain(&draft.unresolved);
    sent.chain(absent.map(|name| Arc::from(name.as_str())))
        .collect()
}
