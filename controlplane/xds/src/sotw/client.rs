//! The client's side of state-of-the-world ADS.
//!
//! In: subscriptions, responses, verdicts on them, the opening of streams. Out: requests
//! ([`SotwClient::poll_request`]) and updates for the consumer. Millrace's own proxies speak
//! delta; this is the other end of [`super::server`] in tests and for tools that ask a server
//! that knows nothing newer.

use std::collections::{BTreeMap, BTreeSet};

use crate::TypeUrl;
use crate::nack;
use crate::proto::envoy::service::discovery::v3::Resource;
use crate::proto::{self, Any, DiscoveryRequest, DiscoveryResponse};
use crate::resource::{RawResource, ResourceError, name_of};
use crate::subscription::Selection;

/// The state of one logical session, which may span several streams.
#[derive(Debug)]
pub struct SotwClient {
    node: proto::Node,
    types: BTreeMap<(u8, TypeUrl), TypeState>,
    open: bool,
    node_sent: bool,
}

#[derive(Debug, Default)]
struct TypeState {
    wanted: Selection,
    /// Names of resources that the consumer was given and may hold.
    known: BTreeSet<String>,
    /// Version of the newest response that was accepted; outlives streams.
    version: String,
    /// Nonce of the newest response of this stream.
    nonce: String,
    error: Option<proto::Status>,
    /// Whether a request is due.
    due: bool,
    /// Whether the newest response awaits its verdict. A request sent meanwhile would acknowledge
    /// it, so there is none.
    undecided: bool,
}

/// A response's part for the consumer.
#[derive(Debug)]
pub struct ResponseUpdate {
    /// Type of all its resources.
    pub type_url: TypeUrl,
    /// Version of the response.
    pub version: String,
    /// Resources that are wanted.
    pub resources: Vec<RawResource>,
    /// Resources that are gone (LDS and CDS only).
    pub removed: Vec<String>,
}

/// What became of a response.
#[derive(Debug)]
pub enum Reception {
    /// It is for the consumer, who decides by [`SotwClient::finish`].
    Update(ResponseUpdate),
    /// It was rejected already: a resource has no name that could be read, or has it twice.
    Rejected(ResourceError),
}

impl SotwClient {
    /// A session that has no stream yet.
    pub fn new(node: proto::Node) -> Self {
        Self {
            node,
            types: BTreeMap::new(),
            open: false,
            node_sent: false,
        }
    }

    /// Wants exactly these terms of a type.
    pub fn set_wanted(&mut self, type_url: &TypeUrl, wanted: Selection) {
        let state = self.state(type_url);
        if state.wanted != wanted {
            state.known.retain(|name| wanted.contains(name));
            state.wanted = wanted;
            state.due = true;
        }
    }

    /// A new stream is open.
    pub fn open(&mut self) {
        self.open = true;
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.nonce.clear();
            state.error = None;
            state.undecided = false;
            state.due = !state.wanted.is_empty();
        }
    }

    /// The stream is lost.
    pub fn close(&mut self) {
        self.open = false;
    }

    /// The next request to send, if there is one.
    pub fn poll_request(&mut self) -> Option<DiscoveryRequest> {
        if !self.open {
            return None;
        }
        let ((_, type_url), state) = self
            .types
            .iter_mut()
            .find(|(_, state)| state.due && !state.undecided)?;
        state.due = false;
        let first = !std::mem::replace(&mut self.node_sent, true);
        Some(DiscoveryRequest {
            version_info: state.version.clone(),
            node: first.then(|| self.node.clone()),
            resource_names: state.wanted.terms().collect(),
            type_url: type_url.as_str().to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail: state.error.take(),
            ..Default::default()
        })
    }

    /// A response of the current stream.
    pub fn receive(&mut self, response: DiscoveryResponse) -> Reception {
        let type_url = TypeUrl::from(response.type_url.as_str());
        let state = self.state(&type_url);
        state.nonce = response.nonce;
        let resources = match named(&type_url, response.resources) {
            Ok(resources) => resources,
            Err(error) => {
                state.error = Some(nack::status(std::slice::from_ref(&error)));
                state.due = true;
                return Reception::Rejected(error);
            }
        };
        state.undecided = true;
        let names: BTreeSet<&str> = resources.iter().map(|r| r.name.as_str()).collect();
        let gone = state
            .known
            .iter()
            .filter(|name| !names.contains(name.as_str()));
        let removed = if type_url.is_full_state() {
            gone.cloned().collect()
        } else {
            Vec::new()
        };
        let wanted = &state.wanted;
        let mut resources = resources;
        resources.retain(|resource| wanted.contains(&resource.name));
        for name in &removed {
            state.known.remove(name);
        }
        let offered = resources.iter().map(|resource| resource.name.clone());
        state.known.extend(offered);
        Reception::Update(ResponseUpdate {
            type_url,
            version: response.version_info,
            resources,
            removed,
        })
    }

    /// The consumer is done with the newest response of a type.
    pub fn finish(&mut self, update: &ResponseUpdate, rejected: &[ResourceError]) {
        let state = self.state(&update.type_url);
        // Without an undecided response, the one in question came on an earlier stream.
        if !std::mem::take(&mut state.undecided) {
            return;
        }
        state.due = true;
        if rejected.is_empty() {
            state.version.clone_from(&update.version);
        } else {
            state.error = Some(nack::status(rejected));
        }
    }

    fn state(&mut self, type_url: &TypeUrl) -> &mut TypeState {
        self.types
            .entry((type_url.push_rank(), type_url.clone()))
            .or_default()
    }
}

/// Finds each resource's name, in its wrapper or in the message.
fn named(type_url: &TypeUrl, resources: Vec<Any>) -> Result<Vec<RawResource>, ResourceError> {
    let mut found: Vec<RawResource> = Vec::with_capacity(resources.len());
    let mut seen = BTreeSet::new();
    for any in resources {
        let (name, version, body) = match proto::unpack::<Resource>(&any) {
            Ok(wrapper) => {
                // A wrapper without content only renews a TTL, which is not used here.
                let Some(body) = wrapper.resource else {
                    continue;
                };
                (Some(wrapper.name), wrapper.version, body)
            }
            Err(_) => (name_of(type_url, &any), String::new(), any),
        };
        let Some(name) = name else {
            return Err(ResourceError {
                name: String::new(),
                message: format!("a resource of type {} has no readable name", body.type_url),
            });
        };
        if !seen.insert(name.clone()) {
            return Err(ResourceError {
                name,
                message: "is in the response more than once".into(),
            });
        }
        found.push(RawResource {
            name,
            version,
            body,
        });
    }
    Ok(found)
}
