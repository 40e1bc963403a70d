//! The server's side of incremental xDS: differences by name and version.
//!
//! In: subscriptions by difference, views. Out: the content of delta responses. Called by
//! [`crate::push::Session`].
//!
//! Rules: xDS protocol, "Incremental xDS".

use std::collections::HashSet;
use std::sync::Arc;

use crate::TypeUrl;
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::Resource;
use crate::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::push::{Draft, Envelope, Pieces, Query, RequestHeader, Sent, TypeState, Variant};
use crate::resource::{EncodedResource, wrapped};
use crate::subscription::{Selection, SubscriptionChange, WILDCARD, is_glob};
use crate::version::Version;

/// `DeltaAggregatedResources`.
#[derive(Debug)]
pub struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    // "the server must honor changes to the subscription state even if the nonce is stale"
    const STALE_REQUESTS_ARE_VOID: bool = false;

    fn header(request: &DeltaDiscoveryRequest) -> RequestHeader<'_> {
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
        request: &DeltaDiscoveryRequest,
    ) -> SubscriptionChange {
        let first = state.subscription.is_new();
        let change = state.subscription.apply_delta(
            type_url,
            &request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        if !change.unsubscribed.is_empty() {
            state.forget_unselected();
        }
        for term in &change.unsubscribed {
            recheck_what_stays_covered(state, term);
        }
        if first {
            let selection = state.subscription.selection();
            let mut brought = Vec::new();
            for (name, version) in &request.initial_resource_versions {
                if selection.contains(name) {
                    let version = Version::from(version.as_str());
                    brought.push((name.as_str().into(), Sent::Brought(version)));
                }
            }
            state.sent.extend(brought);
        }
        for term in &change.subscribed {
            state.recheck.remove(term);
            state.answer_due |= term == WILDCARD;
            if !first {
                state.doubt(term);
            } else if state.sent.get(term).is_some() {
                continue;
            }
            state.requested.insert(term.clone());
        }
        change
    }

    fn requested(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let requested: Selection = state.requested.iter().collect();
        // Whether a rechecked name stays is decided by the rest of the subscription.
        let asked = if state.recheck.is_empty() {
            &requested
        } else {
            state.subscription.selection()
        };
        let mut resources = query.resources(asked);
        resources.retain(|r| r.is_selected_by(&requested) || state.recheck.contains(r.name()));
        // Whoever waits for an alias waits for a resource that says so, also where it has that already.
        for resource in resources
            .iter()
            .filter(|r| r.is_asked_for_by_alias(&requested))
        {
            state.sent.remove(resource.name());
        }
        let missing = missing_terms(state, &requested, &resources);

        let (resources, truncated) = take_changed(state, resources, query.max_bytes());
        let mut removed = Vec::new();
        if truncated {
            // What has gone out need not be looked at again for the rest.
            for resource in &resources {
                state.requested.remove(resource.name());
                for alias in resource.aliases() {
                    state.requested.remove(alias);
                }
            }
        } else {
            removed = missing;
            for term in &removed {
                mark_absent(state, term);
            }
            state.requested.clear();
            state.recheck.clear();
        }
        let answer_due = std::mem::take(&mut state.answer_due);
        let mut unresolved = Vec::new();
        if *query.type_url() == TypeUrl::VIRTUAL_HOST {
            // A name without a host is the route configuration's: clients that follow it have that.
            unresolved = removed.extract_if(.., |name| name.contains('/')).collect();
        }
        let even_if_empty = answer_due || !unresolved.is_empty();
        let draft = draft(query, resources, removed, truncated, even_if_empty)?;
        Some(Draft {
            unresolved,
            ..draft
        })
    }

    fn updates(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let changed = query.changed(state);
        let asked = changed.as_ref().unwrap_or(state.subscription.selection());
        let resources = query.resources(asked);
        let in_view = resources.len();
        let missing = changed.as_ref().map(|changed| {
            let existing: HashSet<&str> = resources.iter().map(|r| r.name()).collect();
            let mut names = changed.names().filter(|name| !existing.contains(name));
            names.any(|name| state.has(name))
        });
        let (resources, truncated) = take_changed(state, resources, query.max_bytes());
        match missing {
            Some(missing) => state.surplus = missing,
            None => state.note_surplus(in_view),
        }
        draft(query, resources, Vec::new(), truncated, false)
    }

    fn removals(state: &mut TypeState, query: &Query<'_>) -> Option<Draft> {
        let changed = query.changed(state);
        let asked = changed.as_ref().unwrap_or(state.subscription.selection());
        let resources = query.resources(asked);
        let existing: HashSet<&str> = resources.iter().map(|r| r.name()).collect();
        let is_gone = |name: &&str| !existing.contains(name);
        let gone: Vec<String> = if let Some(changed) = &changed {
            let held = changed.names().filter(|name| state.has(name));
            held.filter(is_gone).map(str::to_owned).collect()
        } else {
            let held = state.held().map(|(name, _)| name.as_ref());
            held.filter(is_gone).map(str::to_owned).collect()
        };
        for name in &gone {
            mark_absent(state, name);
        }
        draft(query, Vec::new(), gone, false, false)
    }

    fn heartbeat(
        _: &mut TypeState,
        query: &Query<'_>,
        resources: Vec<Arc<EncodedResource>>,
    ) -> Draft {
        Draft {
            resources,
            removed: Vec::new(),
            unresolved: Vec::new(),
            version: Version::from(query.generation().to_string().as_str()),
            truncated: false,
            is_heartbeat: true,
        }
    }

    // The wrapper that has the TTL is part of every response.
    fn tells_ttls(_: &[String]) -> bool {
        true
    }

    fn response(
        type_url: &TypeUrl,
        draft: Draft,
        envelope: &Envelope<'_>,
    ) -> DeltaDiscoveryResponse {
        let resources = draft.resources.iter();
        let unresolved = draft.unresolved.iter().map(|name| Resource {
            name: name.clone(),
            aliases: vec![name.clone()],
            ..Default::default()
        });
        DeltaDiscoveryResponse {
            system_version_info: draft.version.as_str().to_owned(),
            type_url: type_url.as_str().to_owned(),
            resources: unresolved
                .chain(resources.map(|resource| wrapped(resource, draft.is_heartbeat)))
                .collect(),
            removed_resources: draft.removed,
            nonce: envelope.nonce.to_owned(),
            control_plane: Some(ControlPlane {
                identifier: envelope.identifier.to_owned(),
            }),
            ..Default::default()
        }
    }

    fn pieces(type_url: &TypeUrl, mut draft: Draft, envelope: &Envelope<'_>) -> Pieces {
        let with_content = if draft.is_heartbeat {
            Vec::new()
        } else {
            std::mem::take(&mut draft.resources)
        };
        let mut pieces = Pieces::of(&Self::response(type_url, draft, envelope));
        for resource in &with_content {
            let around = wrapped(resource, true);
            pieces.put_with_any(RESOURCES, &around, RESOURCE, resource);
        }
        pieces
    }
}

/// `DeltaDiscoveryResponse.resources`, and `Resource.resource` in it.
const RESOURCES: u32 = 2;
const RESOURCE: u32 = 2;

/// "Unsubscribing from Resources": when the wildcard (here: or a collection) may still cover what
/// was unsubscribed, the client must be told whether it does.
fn recheck_what_stays_covered(state: &mut TypeState, term: &str) {
    if term == WILDCARD {
        return;
    }
    let covered: Vec<Arc<str>> = if is_glob(term) {
        let glob: Selection = [term].into_iter().collect();
        let selection = state.subscription.selection();
        let members = state.held().map(|(name, _)| name);
        members
            .filter(|name| glob.contains(name) && !selection.names_exactly(name))
            .cloned()
            .collect()
    } else if state.subscription.selection().contains(term) {
        vec![term.into()]
    } else {
        Vec::new()
    };
    for name in covered {
        state.sent.remove(&name);
        state.recheck.insert(name.to_string());
    }
}

/// Requested names and collections that do not exist and of which the client holds nothing: "the
/// server will send a response that contains that resource's name in `removed_resources`". What it
/// does hold is taken away in its turn, by [`Delta::removals`].
fn missing_terms(
    state: &TypeState,
    requested: &Selection,
    resources: &[Arc<EncodedResource>],
) -> Vec<String> {
    let aliases = resources.iter().flat_map(|r| r.aliases());
    let existing: HashSet<&str> = aliases
        .map(String::as_str)
        .chain(resources.iter().map(|r| r.name()))
        .collect();
    let names = requested
        .names()
        .chain(state.recheck.iter().map(String::as_str));
    let names = names
        .filter(|name| !existing.contains(name))
        .filter(|name| matches!(state.sent.get(name), None | Some(Sent::Unsure)))
        .map(str::to_owned);
    let globs = requested.glob_prefixes().filter_map(|prefix| {
        let term = format!("{prefix}/*");
        let glob: Selection = [&term].into_iter().collect();
        let held = state.held().any(|(name, _)| glob.contains(name));
        let exists = existing.iter().any(|name| glob.contains(name));
        (!held && !exists).then_some(term)
    });
    names.chain(globs).collect()
}

/// Picks what the client does not have yet and notes it as sent, up to a limit of bytes.
fn take_changed(
    state: &mut TypeState,
    resources: Vec<Arc<EncodedResource>>,
    max_bytes: usize,
) -> (Vec<Arc<EncodedResource>>, bool) {
    let (mut taken, mut sent) = (Vec::new(), Vec::new());
    let (mut bytes, mut truncated) = (0, false);
    for resource in resources {
        let known = state.sent.get(resource.name());
        if known.is_some_and(|sent| sent.is(&resource)) {
            state.adopt(&resource);
            continue;
        }
        bytes += resource.body().len() + resource.name().len();
        if bytes > max_bytes && !taken.is_empty() {
            truncated = true;
            break;
        }
        sent.push((resource.shared_name().clone(), Sent::of(&resource)));
        taken.push(resource);
    }
    state.sent.extend(sent);
    (taken, truncated)
}

fn mark_absent(state: &mut TypeState, term: &str) {
    if state.subscription.selection().has(term) {
        state.sent.insert(term.into(), Sent::Absent);
    } else {
        state.sent.remove(term);
    }
}

fn draft(
    query: &Query<'_>,
    resources: Vec<Arc<EncodedResource>>,
    removed: Vec<String>,
    truncated: bool,
    even_if_empty: bool,
) -> Option<Draft> {
    (even_if_empty || !resources.is_empty() || !removed.is_empty()).then(|| Draft {
        resources,
        removed,
        unresolved: Vec::new(),
        version: Version::from(query.generation().to_string().as_str()),
        truncated,
        is_heartbeat: false,
    })
}
