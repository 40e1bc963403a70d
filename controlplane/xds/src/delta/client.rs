//! The client's side of incremental ADS: what is wanted, what is known, what to send next.
//!
//! In: subscriptions, responses, verdicts on them, the opening and loss of streams. Out: requests
//! ([`DeltaClient::poll_request`]) and updates for the consumer. What it knows outlives streams,
//! so a new one resumes with `initial_resource_versions`. Driven by [`crate::client::Driver`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::TypeUrl;
use crate::nack;
use crate::proto::envoy::service::discovery::v3::Resource;
use crate::proto::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::{RawResource, ResourceError};
use crate::subscription::{Selection, WILDCARD, is_glob};

/// A version that no resource has: the server sends the resource again, or removes it.
const UNSETTLED: &str = "";

/// The state of one logical session, which may span several streams.
#[derive(Debug)]
pub struct DeltaClient {
    node: proto::Node,
    resource_timeout: Duration,
    /// By push order, so that roots are asked for before what they refer to.
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    /// Number of the current stream; verdicts on responses of older ones are not sent.
    stream: u64,
    open: bool,
    node_sent: bool,
    next_token: u64,
}

#[derive(Debug, Default)]
struct TypeState {
    wanted: Selection,
    /// Versions of the resources that the consumer holds, or may hold ([`UNSETTLED`]).
    known: BTreeMap<String, String>,
    /// Whether the first request of this stream is sent; then changes go by difference.
    started: bool,
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    /// Wanted terms that the server has said nothing of yet: since when, on this stream.
    awaiting: BTreeMap<String, Option<Instant>>,
    /// Whether a response came while everything was wanted.
    wildcard_answered: bool,
    /// When resources that the consumer holds, or is given, are to be forgotten.
    lapses: BTreeMap<String, Instant>,
    /// Responses whose verdicts are due, in order of receipt: verdicts take effect in this order.
    outstanding: VecDeque<Outstanding>,
    /// ACKs and NACKs to send.
    answers: VecDeque<Answer>,
}

#[derive(Debug)]
struct Outstanding {
    token: u64,
    /// Its resources: the consumer may hold them already.
    names: Vec<String>,
    /// Those that were unwanted for a while since. If they are wanted again, nobody knows whether
    /// the consumer forgot them before or after it saw this response.
    dropped: BTreeSet<String>,
    verdict: Option<Verdict>,
}

#[derive(Debug)]
struct Answer {
    nonce: String,
    error: Option<proto::Status>,
}

/// A response's part for the consumer, and what to give back with the verdict.
#[derive(Debug)]
pub struct ResponseUpdate {
    /// Type of all its resources.
    pub type_url: TypeUrl,
    /// The server's version of the whole, for display.
    pub system_version: String,
    /// New and changed resources that are wanted.
    pub resources: Vec<RawResource>,
    /// Resources that are gone or do not exist; empty collections as `<prefix>/*`.
    pub removed: Vec<String>,
    /// Turns into the verdict.
    pub received: Received,
}

/// A response that awaits its verdict.
#[derive(Debug)]
pub struct Received {
    type_url: TypeUrl,
    stream: u64,
    nonce: String,
    token: u64,
    /// Name and version.
    resources: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Received {
    /// All resources were applied, except these.
    pub fn verdict(self, rejected: Vec<ResourceError>) -> Verdict {
        Verdict {
            received: self,
            rejected,
        }
    }
}

/// What the consumer made of a response.
#[derive(Debug)]
pub struct Verdict {
    received: Received,
    rejected: Vec<ResourceError>,
}

/// What became of a response.
#[derive(Debug)]
pub enum Reception {
    /// It is for the consumer.
    Update(ResponseUpdate),
    /// It is answered already and changes nothing.
    Ignored {
        /// Why.
        reason: String,
    },
}

impl DeltaClient {
    /// A session that has no stream yet.
    pub fn new(node: proto::Node, resource_timeout: Duration) -> Self {
        Self {
            node,
            resource_timeout,
            types: BTreeMap::new(),
            stream: 0,
            open: false,
            node_sent: false,
            next_token: 0,
        }
    }

    /// Adds a resource that the consumer holds from before.
    pub fn restore(&mut self, type_url: &TypeUrl, name: &str, version: &str) {
        let state = self.state(type_url);
        state.known.insert(name.to_owned(), version.to_owned());
    }

    /// Wants more: names, collections or the wildcard.
    pub fn subscribe<'a>(&mut self, type_url: &TypeUrl, terms: impl IntoIterator<Item = &'a str>) {
        let state = self.state(type_url);
        for term in terms {
            if !state.wanted.insert(term) {
                continue;
            }
            if state.started {
                // After an unsubscription that is not sent yet, this is a repeated subscription,
                // which the server must answer in full.
                state.unsubscribe.remove(term);
                state.subscribe.insert(term.to_owned());
            }
            if !state.is_answered(term) {
                state.awaiting.insert(term.to_owned(), None);
            }
        }
    }

    /// Wants less. Resources that nothing else covers are forgotten at once.
    pub fn unsubscribe<'a>(
        &mut self,
        type_url: &TypeUrl,
        terms: impl IntoIterator<Item = &'a str>,
    ) {
        let state = self.state(type_url);
        for term in terms {
            if !state.wanted.remove(term) {
                continue;
            }
            if state.started {
                state.subscribe.remove(term);
                state.unsubscribe.insert(term.to_owned());
            }
            state.awaiting.remove(term);
        }
        let wanted = &state.wanted;
        state.known.retain(|name, _| wanted.contains(name));
        state.lapses.retain(|name, _| wanted.contains(name));
        for response in &mut state.outstanding {
            let names = response.names.iter();
            let unwanted = names.filter(|name| !wanted.contains(name)).cloned();
            response.dropped.extend(unwanted);
        }
    }

    /// What is wanted of a type.
    pub fn wanted(&self, type_url: &TypeUrl) -> Option<&Selection> {
        self.types.get(&key(type_url)).map(|state| &state.wanted)
    }

    /// Names and versions that the consumer certainly holds of a type.
    pub fn known(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&str, &str)> {
        self.types
            .get(&key(type_url))
            .into_iter()
            .flat_map(|state| &state.known)
            .filter(|(_, version)| *version != UNSETTLED)
            .map(|(name, version)| (name.as_str(), version.as_str()))
    }

    /// Wanted terms of a type that the server has said nothing of yet.
    pub fn unanswered(&self, type_url: &TypeUrl) -> impl Iterator<Item = &str> {
        let state = self.types.get(&key(type_url)).into_iter();
        state.flat_map(|state| state.awaiting.keys().map(String::as_str))
    }

    /// A new stream is open; everything wanted will be asked for anew.
    pub fn open(&mut self) {
        self.stream += 1;
        self.open = true;
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.started = false;
            state.subscribe.clear();
            state.unsubscribe.clear();
            state.answers.clear();
            let terms = state.wanted.terms();
            let unanswered = terms.filter(|term| !state.is_answered(term));
            state.awaiting = unanswered.map(|term| (term, None)).collect();
        }
    }

    /// The stream is lost.
    pub fn close(&mut self) {
        self.open = false;
        for state in self.types.values_mut() {
            state.awaiting.values_mut().for_each(|since| *since = None);
        }
    }

    /// The next request to send, if there is one: first requests of types, ACKs and NACKs,
    /// changes of subscriptions.
    pub fn poll_request(&mut self, now: Instant) -> Option<DeltaDiscoveryRequest> {
        if !self.open {
            return None;
        }
        let mut request = self
            .types
            .iter_mut()
            .find_map(|((_, type_url), state)| state.poll_request(type_url, now))?;
        if !std::mem::replace(&mut self.node_sent, true) {
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    /// A response of the current stream.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Reception {
        self.receive_at(response, Instant::now())
    }

    /// A response of the current stream that came at this time, from which its TTLs count.
    pub fn receive_at(&mut self, response: DeltaDiscoveryResponse, now: Instant) -> Reception {
        let type_url = TypeUrl::from(response.type_url.as_str());
        let (stream, token) = (self.stream, self.next_token);
        self.next_token += 1;
        let state = self.types.entry(key(&type_url)).or_default();
        if let Some(name) = duplicate_name(&response) {
            let reason = format!("the response names {name} more than once");
            let message = "is in the response more than once".into();
            let error = nack::status(&[ResourceError { name, message }]);
            return state.ignore(response.nonce, Some(error), reason);
        }
        let removed = state.removed_names(&response.removed_resources);
        let mut contents = response.resources.iter().map(|it| it.resource.is_some());
        let only_renews = contents.len() > 0 && !contents.any(|has_content| has_content);
        state.renew(&response.resources, now);
        let resources = state.wanted_resources(response.resources);
        for name in resources.iter().map(|resource| &resource.name) {
            state.answered(name);
        }
        state.awaiting.remove(WILDCARD);
        state.wildcard_answered |= state.wanted.is_wildcard();
        for name in &removed {
            state.awaiting.remove(name);
            state.lapses.remove(name);
        }
        if state.wanted.is_empty() && resources.is_empty() && removed.is_empty() {
            let reason = format!("nothing of {type_url:?} is subscribed to");
            return state.ignore(response.nonce, None, reason);
        }
        if only_renews && removed.is_empty() {
            return state.ignore(response.nonce, None, "it only renews TTLs".to_owned());
        }
        state.outstanding.push_back(Outstanding {
            token,
            names: resources.iter().map(|r| r.name.clone()).collect(),
            dropped: BTreeSet::new(),
            verdict: None,
        });
        let received = Received {
            type_url: type_url.clone(),
            stream,
            nonce: response.nonce,
            token,
            resources: resources
                .iter()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            removed: removed.clone(),
        };
        Reception::Update(ResponseUpdate {
            type_url,
            system_version: response.system_version_info,
            resources,
            removed,
            received,
        })
    }

    /// The consumer is done with a response. Verdicts of one type take effect, and are sent, in
    /// the order in which the responses came.
    pub fn finish(&mut self, verdict: Verdict) {
        let stream = self.stream;
        let state = self.state(&verdict.received.type_url.clone());
        let token = verdict.received.token;
        if let Some(entry) = state.outstanding.iter_mut().find(|o| o.token == token) {
            entry.verdict = Some(verdict);
        }
        while let Some(decided) = state.outstanding.pop_front_if(|o| o.verdict.is_some()) {
            if let Some(verdict) = decided.verdict {
                state.apply(verdict, &decided.dropped, stream);
            }
        }
    }

    /// Wanted names that the server has said nothing of in time, once each per stream.
    pub fn expire(&mut self, now: Instant) -> Vec<(TypeUrl, Vec<String>)> {
        let timeout = self.resource_timeout;
        let overdue = |since: &Option<Instant>| since.is_some_and(|at| now >= at + timeout);
        self.types
            .iter_mut()
            .filter_map(|((_, type_url), state)| {
                let expired = state.awaiting.extract_if(.., |_, since| overdue(since));
                let names: Vec<String> = expired.map(|(name, _)| name).collect();
                (!names.is_empty()).then(|| (type_url.clone(), names))
            })
            .collect()
    }

    /// Forgets resources of a type whose TTLs have passed (xDS protocol, "TTL"); the consumer has to as well. What is
    /// wanted by its name is asked for again. Call until there are none.
    pub fn lapse(&mut self, now: Instant) -> Option<(TypeUrl, Vec<String>)> {
        self.types.iter_mut().find_map(|((_, type_url), state)| {
            let lapsed = state.lapses.extract_if(.., |_, at| *at <= now);
            let names: Vec<String> = lapsed.map(|(name, _)| name).collect();
            for name in &names {
                state.forget(name);
            }
            (!names.is_empty()).then(|| (type_url.clone(), names))
        })
    }

    /// When [`DeltaClient::lapse`] will next have something.
    pub fn next_lapse(&self) -> Option<Instant> {
        let lapses = self.types.values().flat_map(|state| state.lapses.values());
        lapses.min().copied()
    }

    /// When [`DeltaClient::expire`] will next have something.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self
            .types
            .values()
            .flat_map(|state| state.awaiting.values());
        waits
            .flatten()
            .min()
            .map(|since| *since + self.resource_timeout)
    }

    fn state(&mut self, type_url: &TypeUrl) -> &mut TypeState {
        self.types.entry(key(type_url)).or_default()
    }
}

impl TypeState {
    fn poll_request(&mut self, type_url: &TypeUrl, now: Instant) -> Option<DeltaDiscoveryRequest> {
        let mut request = DeltaDiscoveryRequest {
            type_url: type_url.as_str().to_owned(),
            ..Default::default()
        };
        if self.started {
            let answer = self.answers.pop_front();
            if answer.is_none() && self.subscribe.is_empty() && self.unsubscribe.is_empty() {
                return None;
            }
            if let Some(answer) = answer {
                request.response_nonce = answer.nonce;
                request.error_detail = answer.error;
            }
            request.resource_names_subscribe =
                std::mem::take(&mut self.subscribe).into_iter().collect();
            request.resource_names_unsubscribe =
                std::mem::take(&mut self.unsubscribe).into_iter().collect();
        } else {
            if self.wanted.is_empty() {
                return None;
            }
            self.started = true;
            if !is_plain_wildcard(&self.wanted) || !type_url.has_legacy_wildcard() {
                request.resource_names_subscribe = self.wanted.terms().collect();
            }
            request.initial_resource_versions = self.claimed_versions();
        }
        for since in self.awaiting.values_mut() {
            since.get_or_insert(now);
        }
        Some(request)
    }

    /// What the server may take as held. Resources of undecided responses are held in a version
    /// that is not settled, so none is claimed: they are sent again, or removed.
    fn claimed_versions(&self) -> HashMap<String, String> {
        let known = self
            .known
            .iter()
            .map(|(name, version)| (name, version.as_str()));
        let undecided = self.outstanding.iter().flat_map(|response| &response.names);
        known
            .chain(undecided.map(|name| (name, UNSETTLED)))
            .filter(|(name, _)| self.wanted.contains(name))
            .map(|(name, version)| (name.clone(), version.to_owned()))
            .collect()
    }

    fn wanted_resources(&self, resources: Vec<Resource>) -> Vec<RawResource> {
        resources
            .into_iter()
            .filter(|resource| self.wanted.contains(&resource.name))
            .filter_map(|resource| {
                // Without content it only renews a TTL.
                let body = resource.resource?;
                Some(RawResource {
                    name: resource.name,
                    version: resource.version,
                    body,
                })
            })
            .collect()
    }

    /// Answers a response that the consumer need not see.
    fn ignore(&mut self, nonce: String, error: Option<proto::Status>, reason: String) -> Reception {
        self.answers.push_back(Answer { nonce, error });
        Reception::Ignored { reason }
    }

    /// Takes the TTLs of a response's resources, also of those that it says nothing else of.
    fn renew(&mut self, resources: &[Resource], now: Instant) {
        for resource in resources {
            if !self.wanted.contains(&resource.name) {
                continue;
            }
            let ttl = resource.ttl.as_ref().map(|ttl| {
                let (seconds, nanos) = (ttl.seconds.try_into(), ttl.nanos.try_into());
                Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
            });
            let held = resource.resource.is_some() || self.known.contains_key(&resource.name);
            match ttl.and_then(|ttl| now.checked_add(ttl)) {
                Some(at) if held => self.lapses.insert(resource.name.clone(), at),
                Some(_) => None,
                None => self.lapses.remove(&resource.name),
            };
        }
    }

    /// Forgets a resource whose TTL has passed. A verdict on it that is still to come does not bring it back.
    fn forget(&mut self, name: &str) {
        self.known.remove(name);
        for response in &mut self.outstanding {
            if response.names.iter().any(|given| given == name) {
                response.dropped.insert(name.to_owned());
            }
        }
        if self.wanted.names_exactly(name) {
            if self.started {
                self.subscribe.insert(name.to_owned());
            }
            self.awaiting.insert(name.to_owned(), None);
        }
    }

    /// Removed names that matter here; an emptied collection brings the known members that nothing
    /// else covers.
    fn removed_names(&self, removed: &[String]) -> Vec<String> {
        let mut names = BTreeSet::new();
        for term in removed {
            if is_glob(term) && self.wanted.has(term) {
                let alone: Selection = [term].into_iter().collect();
                let mut rest = self.wanted.clone();
                rest.remove(term);
                let members = self.known.keys();
                names.extend(
                    members
                        .filter(|name| alone.contains(name) && !rest.contains(name))
                        .cloned(),
                );
                names.insert(term.clone());
            } else if self.wanted.contains(term) {
                names.insert(term.clone());
            }
        }
        names.into_iter().collect()
    }

    /// Whether the server need not say anything of a term on a new stream: something of it is
    /// known, and unchanged resources are not sent again.
    fn is_answered(&self, term: &str) -> bool {
        if term == WILDCARD {
            return self.wildcard_answered || !self.known.is_empty();
        }
        let alone: Selection = [term].into_iter().collect();
        self.known.contains_key(term)
            || is_glob(term) && self.known.keys().any(|name| alone.contains(name))
    }

    fn answered(&mut self, name: &str) {
        self.awaiting.remove(name);
        if let Some((prefix, _)) = name.rsplit_once('/') {
            self.awaiting.remove(&format!("{prefix}/*"));
        }
    }

    fn apply(&mut self, verdict: Verdict, dropped: &BTreeSet<String>, stream: u64) {
        let Verdict { received, rejected } = verdict;
        let is_rejected = |name: &String| rejected.iter().any(|error| error.name == *name);
        for (name, version) in received.resources {
            if is_rejected(&name) || !self.wanted.contains(&name) {
                continue;
            }
            if dropped.contains(&name) {
                self.known
                    .entry(name)
                    .or_insert_with(|| UNSETTLED.to_owned());
            } else {
                self.known.insert(name, version);
            }
        }
        for name in received.removed {
            if !is_rejected(&name) {
                self.known.remove(&name);
            }
        }
        if received.stream == stream {
            self.answers.push_back(Answer {
                nonce: received.nonce,
                error: (!rejected.is_empty()).then(|| nack::status(&rejected)),
            });
        }
    }
}

fn key(type_url: &TypeUrl) -> (u8, TypeUrl) {
    (type_url.push_rank(), type_url.clone())
}

/// Whether the request can take the form that servers without explicit wildcards know, too.
fn is_plain_wildcard(selection: &Selection) -> bool {
    selection.is_wildcard() && selection.names().len() == 0 && selection.glob_prefixes().len() == 0
}

/// xDS protocol, "Duplicate Resource Names".
fn duplicate_name(response: &DeltaDiscoveryResponse) -> Option<String> {
    let mut seen = BTreeSet::new();
    let sent = response.resources.iter().map(|resource| &resource.name);
    sent.chain(&response.removed_resources)
        .find(|name| !seen.insert(*name))
        .cloned()
}
