//! The server's side of state-of-the-world xDS: full lists for LDS and CDS, changed resources for
//! the other types.
//!
//! In: subscriptions as full lists, views. Out: the content of responses. Called by
//! [`crate::push::Session`].
//!
//! Rules: xDS protocol, "Grouping Resources into Responses" and "Deleting Resources".

use std::collections::HashSet;
use std::sync::Arc;

use crate::TypeUrl;
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::{self, DiscoveryRequest, DiscoveryResponse};
use crate::push::{Draft, Envelope, Pieces, Query, RequestHeader, Sent, TypeState, Variant};
use crate::resource::{EncodedResource, wrapped};
use crate::subscription::{Selection, SubscriptionChange, WILDCARD};
use crate::version::Version;

/// What clients say that understand resources in wrappers (xDS protocol, "TTL").
const WRAPPED: &str = "xds.config.resource-in-sotw";

/// `StreamAggregatedResources`.
#[derive(Debug)]
pub struct Sotw;

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    // A request states the whole subscription, so one made before the newest response came is
    // superseded by the answer to that response.
    const STALE_REQUESTS_ARE_VOID: bool = true;

    fn header(request: &DiscoveryRequest) -> RequestHeader<'_> {
        RequestHeader {
            type_url: &request.type_url,
            node: request.node.as_ref(),
            nonce: &request.response_nonce,
            error: request.error_detail.as_ref(),
        }
    }

    fn subscribe(
        state: &mut TypeState,
        type_url: &TypeUrl,
        request: &DiscoveryRequest,
    ) -> SubscriptionChange {
        let change = state
            .subscription
            .apply_sotw(type_url, &request.resource_names);
        if !change.unsubscribed.is_empty() {
            state.forget_unselected();
        }
        for term in &change.subscribed {
            // "the server must resend any newly requested resources, even if it previously sent
            // those resources without having been asked for them"
            if !type_url.is_full_state() {
                state.doubt(term);
            }
            state.answer_due |= term == WILDCARD || type_url.is_full_state();
            state.requested.insert(term.clone());
        }
        change
    }

    fn requested(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let requested: Selection = std::mem::take(&mut state.requested).iter().collect();
        let answer_due = std::mem::take(&mut state.answer_due);
        if query.type_url().is_full_state() {
            return answer_due.then(|| full(state, query, Leftover::Keep));
        }
        let resources = changed(state, query.resources(&requested));
        (answer_due || !resources.is_empty()).then(|| partial(resources))
    }

    fn updates(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let resources = query.resources(state.subscription.selection());
        let in_view = resources.len();
        let resources = changed(state, resources);
        state.note_surplus(in_view);
        if resources.is_empty() {
            return None;
        }
        Some(if query.type_url().is_full_state() {
            full(state, query, Leftover::Keep)
        } else {
            partial(resources)
        })
    }

    fn removals(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let resources = query.resources(state.subscription.selection());
        let existing: HashSet<&str> = resources.iter().map(|r| r.name()).collect();
        let before = state.sent.len();
        state.sent.retain(|name, _| existing.contains(name));
        // "for other resource types, the API provides no mechanism for the server to tell the
        // client that resources have been deleted"
        (state.sent.len() < before && query.type_url().is_full_state())
            .then(|| full(state, query, Leftover::Drop))
    }

    fn heartbeat(
        state: &mut TypeState,
        query: &Query<'_>,
        resources: Vec<Arc<EncodedResource>>,
    ) -> Draft {
        // Without one of them, or its content, a client could take it for gone.
        if query.type_url().is_full_state() {
            return full(state, query, Leftover::Keep);
        }
        Draft {
            // Only under the version that the client has is it a heartbeat.
            version: state.known_version(),
            is_heartbeat: true,
            ..partial(resources)
        }
    }

    fn tells_ttls(client_features: &[String]) -> bool {
        client_features.iter().any(|feature| feature == WRAPPED)
    }

    fn response(type_url: &TypeUrl, draft: Draft, envelope: &Envelope<'_>) -> DiscoveryResponse {
        let any = |resource: &Arc<EncodedResource>| {
            packed(resource, draft.is_heartbeat, envelope).unwrap_or_else(|| resource.to_any())
        };
        DiscoveryResponse {
            version_info: draft.version.as_str().to_owned(),
            resources: draft.resources.iter().map(any).collect(),
            type_url: type_url.as_str().to_owned(),
            nonce: envelope.nonce.to_owned(),
            control_plane: Some(ControlPlane {
                identifier: envelope.identifier.to_owned(),
            }),
            ..Default::default()
        }
    }

    fn pieces(type_url: &TypeUrl, mut draft: Draft, envelope: &Envelope<'_>) -> Pieces {
        let resources = std::mem::take(&mut draft.resources);
        let is_heartbeat = draft.is_heartbeat;
        let mut pieces = Pieces::of(&Self::response(type_url, draft, envelope));
        for resource in &resources {
            match packed(resource, is_heartbeat, envelope) {
                Some(any) => pieces.put_message(RESOURCES, &any),
                None => pieces.put_any(RESOURCES, resource),
            }
        }
        pieces
    }
}

/// A resource in its wrapper, where the client is to be told a TTL.
fn packed(
    resource: &EncodedResource,
    is_heartbeat: bool,
    envelope: &Envelope<'_>,
) -> Option<proto::Any> {
    let has_ttl = envelope.tells_ttls && resource.ttl().is_some();
    has_ttl.then(|| proto::pack(&wrapped(resource, is_heartbeat)))
}

/// `DiscoveryResponse.resources`.
const RESOURCES: u32 = 2;

/// What to do with resources that the client has and the view no longer.
#[derive(Clone, Copy, PartialEq)]
enum Leftover {
    /// Others may still refer to them: removal has its own turn.
    Keep,
    Drop,
}

/// The whole state of a type.
fn full(state: &mut TypeState, query: &Query<'_>, leftover: Leftover) -> Draft {
    let mut resources = query.resources(state.subscription.selection());
    if leftover == Leftover::Keep {
        let existing: HashSet<Arc<str>> =
            resources.iter().map(|r| r.shared_name().clone()).collect();
        resources.extend(state.sent.iter().filter_map(|(name, sent)| match sent {
            Sent::Resource(resource) if !existing.contains(name) => Some(resource.clone()),
            _ => None,
        }));
    }
    state.sent = resources
        .iter()
        .map(|r| (r.shared_name().clone(), Sent::Resource(r.clone())))
        .collect();
    partial(resources)
}

/// Picks what the client does not have and notes it as sent.
fn changed(
    state: &mut TypeState,
    resources: Vec<Arc<EncodedResource>>,
) -> Vec<Arc<EncodedResource>> {
    let mut changed = resources;
    changed.retain(|resource| {
        let known = state.sent.get(resource.name());
        !known.is_some_and(|sent| sent.is(resource))
    });
    let sent = changed.iter();
    let sent = sent.map(|resource| (resource.shared_name().clone(), Sent::of(resource)));
    state.sent.extend(sent.collect());
    changed
}

fn partial(resources: Vec<Arc<EncodedResource>>) -> Draft {
    Draft {
        version: Version::of_set(resources.iter().map(|r| (r.name(), r.version()))),
        resources,
        removed: Vec::new(),
        unresolved: Vec::new(),
        truncated: false,
        is_heartbeat: false,
    }
}
