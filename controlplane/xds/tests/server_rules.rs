//! The server's state machines, rule by rule; each test names the part of the xDS protocol
//! specification (Envoy's `api-docs/xds_protocol`) that it holds the server to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_xds::delta::server::Delta;
use millrace_xds::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Status,
};
use millrace_xds::push::{
    Answer, ConfigView, Generation, Reception, Session, SessionConfig, SyncState,
};
use millrace_xds::sotw::server::Sotw;
use millrace_xds::{EncodedResource, Selection, TypeUrl};
use support::{World, content};
use tokio::time::Instant;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const LDS: TypeUrl = TypeUrl::LISTENER;
const RDS: TypeUrl = TypeUrl::ROUTE;

struct DeltaServer {
    world: World,
    session: Session<Delta>,
    now: Instant,
}

impl DeltaServer {
    fn new(resources: &[(TypeUrl, &str, u8)]) -> Self {
        Self::with_config(resources, SessionConfig::default())
    }

    fn with_config(resources: &[(TypeUrl, &str, u8)], config: SessionConfig) -> Self {
        let mut world = World::default();
        for (type_url, name, content) in resources {
            world.set(type_url, name, *content);
        }
        Self {
            world,
            session: Session::new(config, 7, Generation(0)),
            now: Instant::now(),
        }
    }

    fn receive(&mut self, request: &DeltaDiscoveryRequest) -> Reception {
        self.session.receive(request).unwrap()
    }

    fn subscribe(&mut self, type_url: &TypeUrl, names: &[&str]) {
        let mut request = request(type_url);
        request.resource_names_subscribe = strings(names);
        self.receive(&request);
    }

    fn unsubscribe(&mut self, type_url: &TypeUrl, names: &[&str]) {
        let mut request = request(type_url);
        request.resource_names_unsubscribe = strings(names);
        self.receive(&request);
    }

    fn poll(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.session.poll(self.now, &self.world)
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) -> Reception {
        let mut ack = request(&TypeUrl::from(response.type_url.as_str()));
        ack.response_nonce.clone_from(&response.nonce);
        self.receive(&ack)
    }

    fn nack(&mut self, response: &DeltaDiscoveryResponse, message: &str) -> Reception {
        let mut nack = request(&TypeUrl::from(response.type_url.as_str()));
        nack.response_nonce.clone_from(&response.nonce);
        nack.error_detail = Some(Status {
            message: message.into(),
            ..Default::default()
        });
        self.receive(&nack)
    }

    fn publish(&mut self) {
        let generation = self.world.publish();
        self.session.advance(generation, |_, _| true);
    }

    /// Acknowledges everything until there is nothing to send; gives the responses in words.
    fn settle(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(response) = self.poll() {
            sent.push(words(&response));
            self.ack(&response);
        }
        sent
    }
}

fn request(type_url: &TypeUrl) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.as_str().into(),
        ..Default::default()
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// `CDS a=1 -b`: resources with their contents, removals.
fn words(response: &DeltaDiscoveryResponse) -> String {
    let type_url = TypeUrl::from(response.type_url.as_str());
    let resources = response.resources.iter().map(|resource| {
        let content = content(&type_url, &resource.resource.as_ref().unwrap().value);
        format!("{}={content}", resource.name)
    });
    let removed = response
        .removed_resources
        .iter()
        .map(|name| format!("-{name}"));
    std::iter::once(type_url.short_name().to_owned())
        .chain(resources)
        .chain(removed)
        .collect::<Vec<_>>()
        .join(" ")
}

// "Knowing When a Requested Resource Does Not Exist" (incremental).
#[test]
fn missing_name_is_answered_as_removed_and_sent_when_it_appears() {
    let mut server = DeltaServer::new(&[]);
    server.subscribe(&EDS, &["a"]);
    assert_eq!(server.settle(), ["EDS -a"]);

    server.world.set(&EDS, "a", 1);
    server.publish();
    assert_eq!(server.settle(), ["EDS a=1"]);
}

#[test]
fn empty_collection_is_answered_as_removed() {
    let mut server = DeltaServer::new(&[(LDS, "ns/deep/x", 1)]);
    server.subscribe(&LDS, &["ns/*"]);
    assert_eq!(server.settle(), ["LDS -ns/*"]);

    server.world.set(&LDS, "ns/a", 1);
    server.publish();
    assert_eq!(server.settle(), ["LDS ns/a=1"]);
    server.world.remove(&LDS, "ns/a");
    server.publish();
    assert_eq!(server.settle(), ["LDS -ns/a"]);
}

// A client's initialisation waits for its first wildcard response, so that cannot be withheld.
#[test]
fn wildcard_without_resources_is_answered_by_an_empty_response() {
    let mut server = DeltaServer::new(&[]);
    server.subscribe(&CDS, &[]);
    assert_eq!(server.settle(), ["CDS"]);
}

// "Subscribing to Resources".
#[test]
fn repeated_subscription_is_answered_although_nothing_changed() {
    let mut server = DeltaServer::new(&[(EDS, "a", 1)]);
    server.subscribe(&EDS, &["a"]);
    assert_eq!(server.settle(), ["EDS a=1"]);
    server.subscribe(&EDS, &["a"]);
    assert_eq!(server.settle(), ["EDS a=1"]);
}

// "Unsubscribing from Resources": the exception for names under a wildcard.
#[test]
fn unsubscription_under_a_wildcard_says_whether_the_resource_stays() {
    let mut server = DeltaServer::new(&[(CDS, "a", 1), (CDS, "hidden", 2)]);
    server.subscribe(&CDS, &["*", "a", "hidden"]);
    assert_eq!(server.settle(), ["CDS a=1 hidden=2"]);
    server.unsubscribe(&CDS, &["a", "hidden"]);
    assert_eq!(server.settle(), ["CDS a=1 -hidden"]);
}

#[test]
fn unsubscription_alone_is_not_answered() {
    let mut server = DeltaServer::new(&[(EDS, "a", 1)]);
    server.subscribe(&EDS, &["a"]);
    server.settle();
    server.unsubscribe(&EDS, &["a"]);
    server.world.set(&EDS, "a", 2);
    server.publish();
    assert!(server.settle().is_empty());
}

// "Incremental xDS": initial_resource_versions.
#[test]
fn new_stream_sends_only_what_changed_since_the_old_one() {
    let mut server = DeltaServer::new(&[(CDS, "same", 1), (CDS, "newer", 2)]);
    let version = |name: &str, content: u8| {
        let resource = support::encode(&CDS, name, content);
        (name.to_owned(), resource.version().to_string())
    };
    let mut first = request(&CDS);
    first.initial_resource_versions =
        [version("same", 1), version("newer", 1), version("gone", 1)].into();
    server.receive(&first);
    assert_eq!(server.settle(), ["CDS newer=2", "CDS -gone"]);
}

#[test]
fn explicit_names_with_known_versions_are_not_resent() {
    let mut server = DeltaServer::new(&[(EDS, "a", 1), (EDS, "b", 1)]);
    let known = support::encode(&EDS, "a", 1).version().to_string();
    let mut first = request(&EDS);
    first.resource_names_subscribe = strings(&["a", "b"]);
    first.initial_resource_versions = [("a".to_owned(), known)].into();
    server.receive(&first);
    assert_eq!(server.settle(), ["EDS b=1"]);
}

// "the server must honor changes to the subscription state even if the nonce is stale".
#[test]
fn delta_honours_subscriptions_with_a_stale_nonce() {
    let mut server = DeltaServer::new(&[(EDS, "a", 1), (EDS, "b", 1)]);
    server.subscribe(&EDS, &["a"]);
    let response = server.poll().unwrap();
    let mut stale = request(&EDS);
    stale.response_nonce = "stale".into();
    stale.resource_names_subscribe = strings(&["b"]);
    let reception = server.receive(&stale);
    assert!(matches!(reception.answer, Some(Answer::Stale)));
    assert!(server.poll().is_none(), "the first response is unanswered");
    server.ack(&response);
    assert_eq!(server.settle(), ["EDS b=1"]);
}

// "Eventual consistency considerations": make before break.
#[test]
fn changes_go_out_in_push_order_and_removals_in_reverse_after_them() {
    let all = [CDS, EDS, LDS, RDS];
    let old: Vec<_> = all.iter().map(|t| (t.clone(), "old", 1)).collect();
    let mut server = DeltaServer::new(&old);
    for type_url in all.iter().rev() {
        server.subscribe(type_url, &["*"]);
    }
    server.settle();
    for type_url in &all {
        server.world.remove(type_url, "old");
        server.world.set(type_url, "new", 1);
    }
    server.publish();
    assert_eq!(
        server.settle(),
        [
            "CDS new=1",
            "EDS new=1",
            "LDS new=1",
            "RDS new=1", //
            "RDS -old",
            "LDS -old",
            "EDS -old",
            "CDS -old",
        ]
    );
}

#[test]
fn later_types_wait_for_the_acknowledgement_of_earlier_ones() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1), (RDS, "r", 1)]);
    server.subscribe(&CDS, &["*"]);
    server.subscribe(&RDS, &["r"]);
    server.settle();
    server.world.set(&CDS, "c", 2);
    server.world.set(&RDS, "r", 2);
    server.publish();

    let cluster = server.poll().unwrap();
    assert_eq!(words(&cluster), "CDS c=2");
    assert!(server.poll().is_none());
    server.ack(&cluster);
    assert_eq!(words(&server.poll().unwrap()), "RDS r=2");
}

#[test]
fn client_that_does_not_answer_holds_back_others_for_a_limited_time() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1), (RDS, "r", 1)]);
    server.subscribe(&CDS, &["*"]);
    server.subscribe(&RDS, &["r"]);
    server.settle();
    server.world.set(&CDS, "c", 2);
    server.world.set(&RDS, "r", 2);
    server.publish();
    server.poll().unwrap();
    assert!(server.poll().is_none());

    server.now = server.session.deadline(server.now).unwrap();
    assert_eq!(words(&server.poll().unwrap()), "RDS r=2");
}

#[test]
fn what_a_client_newly_asks_for_waits_for_no_other_type() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1), (EDS, "e", 1)]);
    server.subscribe(&CDS, &["*"]);
    server.poll().unwrap();
    server.subscribe(&EDS, &["e"]);
    assert_eq!(words(&server.poll().unwrap()), "EDS e=1");
}

#[test]
fn generations_that_come_while_a_response_is_unanswered_are_merged() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1)]);
    server.subscribe(&CDS, &["*"]);
    let first = server.poll().unwrap();
    for content in 2..10 {
        server.world.set(&CDS, "c", content);
        server.publish();
        assert!(server.poll().is_none());
    }
    server.ack(&first);
    assert_eq!(server.settle(), ["CDS c=9"]);
}

// "ACK and NACK semantics summary".
#[test]
fn nack_is_reported_and_the_rejected_version_is_not_sent_again() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1)]);
    server.subscribe(&CDS, &["*"]);
    let response = server.poll().unwrap();
    let reception = server.nack(&response, "no good");
    let Some(Answer::Nacked(rejected, status)) = reception.answer else {
        panic!("not a NACK");
    };
    assert_eq!(status.message, "no good");
    assert_eq!(rejected.resources[0].as_ref(), "c");
    server.publish();
    assert!(server.settle().is_empty());
    let status = &server.session.status(server.now)[0];
    assert_eq!(status.state, SyncState::Error);
    assert_eq!(status.last_error.as_deref(), Some("no good"));

    server.world.set(&CDS, "c", 2);
    server.publish();
    assert_eq!(server.settle(), ["CDS c=2"]);
    assert_eq!(
        server.session.status(server.now)[0].state,
        SyncState::Synced
    );
}

#[test]
fn large_content_is_cut_into_several_responses() {
    let clusters: Vec<_> = (0..10).map(|n| format!("cluster-{n}")).collect();
    let resources: Vec<_> = clusters.iter().map(|n| (CDS, n.as_str(), 1)).collect();
    let config = SessionConfig {
        max_response_bytes: 100,
        ..SessionConfig::default()
    };
    let mut server = DeltaServer::with_config(&resources, config);
    server.subscribe(&CDS, &["*"]);
    let sent = server.settle();
    assert!(sent.len() > 2, "{sent:?}");
    let resources: usize = sent.iter().map(|s| s.split(' ').count() - 1).sum();
    assert_eq!(resources, 10);
}

#[test]
fn unaffected_types_are_not_compared() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1)]);
    server.subscribe(&CDS, &["*"]);
    server.settle();
    server.world.set(&CDS, "c", 2);
    let generation = server.world.publish();
    server.session.advance(generation, |_, _| false);
    assert!(server.settle().is_empty());
}

#[test]
fn request_without_a_type_ends_the_stream() {
    let mut server = DeltaServer::new(&[]);
    let request = DeltaDiscoveryRequest::default();
    assert!(server.session.receive(&request).is_err());
}

#[test]
fn unanswered_response_shows_as_stale() {
    let mut server = DeltaServer::new(&[(CDS, "c", 1)]);
    server.subscribe(&CDS, &["*"]);
    server.poll().unwrap();
    server.now += Duration::from_millis(1500);
    let status = &server.session.status(server.now)[0];
    assert_eq!(status.state, SyncState::Stale);
    assert_eq!(status.unanswered_ms, Some(1500));
    assert_eq!(status.resources, 1);
}

struct SotwServer {
    world: World,
    session: Session<Sotw>,
}

impl SotwServer {
    fn new(resources: &[(TypeUrl, &str, u8)]) -> Self {
        let mut world = World::default();
        for (type_url, name, content) in resources {
            world.set(type_url, name, *content);
        }
        Self {
            world,
            session: Session::new(SessionConfig::default(), 7, Generation(0)),
        }
    }

    fn request(&mut self, type_url: &TypeUrl, names: &[&str], nonce: &str) -> Reception {
        self.session
            .receive(&DiscoveryRequest {
                type_url: type_url.as_str().into(),
                resource_names: strings(names),
                response_nonce: nonce.into(),
                ..Default::default()
            })
            .unwrap()
    }

    fn poll(&mut self) -> Option<DiscoveryResponse> {
        self.session.poll(Instant::now(), &self.world)
    }

    fn publish(&mut self) {
        let generation = self.world.publish();
        self.session.advance(generation, |_, _| true);
    }

    /// Polls one response, acknowledges it with the same names, gives it in words.
    fn exchange(&mut self, type_url: &TypeUrl, names: &[&str]) -> Option<String> {
        let response = self.poll()?;
        assert_eq!(response.type_url, type_url.as_str());
        self.request(type_url, names, &response.nonce);
        Some(sotw_words(&response))
    }
}

fn sotw_words(response: &DiscoveryResponse) -> String {
    let type_url = TypeUrl::from(response.type_url.as_str());
    let contents = response.resources.iter().map(|any| {
        let resource = EncodedResource::from_bytes(type_url.clone(), "", any.value.clone().into());
        content(&type_url, resource.body()).to_string()
    });
    contents.collect::<Vec<_>>().join(" ")
}

// "Grouping Resources into Responses".
#[test]
fn sotw_clusters_come_as_full_state_and_endpoints_as_changes() {
    let mut server = SotwServer::new(&[(CDS, "a", 1), (CDS, "b", 2), (EDS, "a", 1), (EDS, "b", 2)]);
    server.request(&CDS, &[], "");
    assert_eq!(server.exchange(&CDS, &[]).unwrap(), "1 2");
    server.request(&EDS, &["a", "b"], "");
    assert_eq!(server.exchange(&EDS, &["a", "b"]).unwrap(), "1 2");

    server.world.set(&CDS, "b", 3);
    server.world.set(&EDS, "b", 3);
    server.publish();
    assert_eq!(server.exchange(&CDS, &[]).unwrap(), "1 3");
    assert_eq!(server.exchange(&EDS, &["a", "b"]).unwrap(), "3");
    assert!(server.poll().is_none());
}

// "Deleting Resources", and make before break: the removal has its own response.
#[test]
fn sotw_removal_comes_after_the_additions() {
    let mut server = SotwServer::new(&[(CDS, "a", 1), (LDS, "l", 1)]);
    server.request(&CDS, &[], "");
    server.exchange(&CDS, &[]);
    server.request(&LDS, &[], "");
    server.exchange(&LDS, &[]);

    server.world.remove(&CDS, "a");
    server.world.set(&CDS, "b", 2);
    server.world.set(&LDS, "l", 2);
    server.publish();
    assert_eq!(server.exchange(&CDS, &[]).unwrap(), "2 1");
    assert_eq!(server.exchange(&LDS, &[]).unwrap(), "2");
    assert_eq!(server.exchange(&CDS, &[]).unwrap(), "2");
    assert!(server.poll().is_none());
}

#[test]
fn sotw_removal_of_the_last_cluster_is_an_empty_response() {
    let mut server = SotwServer::new(&[(CDS, "a", 1)]);
    server.request(&CDS, &[], "");
    server.exchange(&CDS, &[]);
    server.world.remove(&CDS, "a");
    server.publish();
    assert_eq!(server.exchange(&CDS, &[]).unwrap(), "");
}

// "Resource updates": a request with a stale nonce is not answered.
#[test]
fn stale_nonce_is_ignored() {
    let mut server = SotwServer::new(&[(EDS, "a", 1), (EDS, "b", 2)]);
    server.request(&EDS, &["a"], "");
    let first = server.poll().unwrap();
    server.request(&EDS, &["a"], &first.nonce);
    server.world.set(&EDS, "a", 3);
    server.publish();
    let second = server.poll().unwrap();

    let reception = server.request(&EDS, &["a", "b"], &first.nonce);
    assert!(matches!(reception.answer, Some(Answer::Stale)));
    assert!(!reception.subscription_changed);
    assert!(server.poll().is_none());

    let reception = server.request(&EDS, &["a", "b"], &second.nonce);
    assert!(matches!(reception.answer, Some(Answer::Acked(_))));
    assert_eq!(sotw_words(&server.poll().unwrap()), "2");
}

#[test]
fn request_without_a_nonce_after_the_first_response_is_stale() {
    let mut server = SotwServer::new(&[(EDS, "a", 1), (EDS, "b", 2)]);
    server.request(&EDS, &["a"], "");
    let response = server.poll().unwrap();
    let reception = server.request(&EDS, &["a", "b"], "");
    assert!(matches!(reception.answer, Some(Answer::Stale)));
    server.request(&EDS, &["a", "b"], &response.nonce);
    assert_eq!(sotw_words(&server.poll().unwrap()), "2");
}

// "the nonce is valid only in the context of an individual xDS stream".
#[test]
fn first_request_of_a_stream_is_answered_whatever_its_nonce() {
    let mut server = SotwServer::new(&[(CDS, "a", 1)]);
    let reception = server.request(&CDS, &[], "6-12");
    assert!(reception.answer.is_none());
    assert_eq!(sotw_words(&server.poll().unwrap()), "1");
}

// "How the client specifies what resources to return": newly requested resources are resent.
#[test]
fn sotw_resubscription_is_answered_although_nothing_changed() {
    let mut server = SotwServer::new(&[(EDS, "a", 1), (EDS, "b", 2)]);
    server.request(&EDS, &["a", "b"], "");
    let response = server.poll().unwrap();
    server.request(&EDS, &["b"], &response.nonce);
    assert!(server.poll().is_none());
    server.request(&EDS, &["a", "b"], &response.nonce);
    assert_eq!(sotw_words(&server.poll().unwrap()), "1");
}

#[test]
fn sotw_listener_that_does_not_exist_is_told_by_absence() {
    let mut server = SotwServer::new(&[(LDS, "a", 1)]);
    server.request(&LDS, &["a", "missing"], "");
    assert_eq!(server.exchange(&LDS, &["a", "missing"]).unwrap(), "1");
    server.world.set(&LDS, "missing", 5);
    server.publish();
    assert_eq!(server.exchange(&LDS, &["a", "missing"]).unwrap(), "1 5");
}

#[test]
fn sotw_versions_are_hashes_of_content() {
    let version = |content: u8| {
        let mut server = SotwServer::new(&[(CDS, "a", content)]);
        server.request(&CDS, &[], "");
        server.poll().unwrap().version_info
    };
    assert_eq!(version(1), version(1));
    assert_ne!(version(1), version(2));
}

#[test]
fn what_a_client_has_is_remembered_by_name_and_version() {
    let mut server = DeltaServer::new(&[(EDS, "a", 1), (EDS, "b", 2)]);
    server.subscribe(&EDS, &["a", "b"]);
    let response = server.poll().unwrap();
    server.ack(&response);
    for resource in server.world.resources[&EDS].values() {
        assert_eq!(
            Arc::strong_count(resource),
            1,
            "{resource:?} is the view's alone"
        );
    }
    // Asked for again, whatever it is believed to have.
    server.subscribe(&EDS, &["a"]);
    assert_eq!(server.poll().unwrap().resources.len(), 1);
    assert!(server.poll().is_none());
}

/// A view that counts what it is asked for by name.
struct Counting {
    world: World,
    asked: AtomicUsize,
}

impl ConfigView for Counting {
    fn generation(&self) -> Generation {
        self.world.generation()
    }

    fn resources(&self, type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let names = selection.names().len();
        self.asked.fetch_add(names, Ordering::Relaxed);
        self.world.resources(type_url, selection)
    }
}

#[test]
fn the_rest_of_a_cut_answer_is_made_without_what_has_gone_out() {
    let mut view = Counting {
        world: World::default(),
        asked: AtomicUsize::new(0),
    };
    let names: Vec<String> = (0..20).map(|at| format!("r{at:02}")).collect();
    for name in &names {
        view.world.set(&EDS, name, 1);
    }
    let config = SessionConfig {
        max_response_bytes: 1,
        ..SessionConfig::default()
    };
    let mut session = Session::<Delta>::new(config, 1, Generation(0));
    let mut subscribe = request(&EDS);
    subscribe.resource_names_subscribe.clone_from(&names);
    session.receive(&subscribe).unwrap();
    let now = Instant::now();
    let mut sent = 0;
    while let Some(response) = session.poll(now, &view) {
        sent += response.resources.len();
        let mut ack = request(&EDS);
        ack.response_nonce.clone_from(&response.nonce);
        session.receive(&ack).unwrap();
    }
    assert_eq!(sent, names.len());
    let asked = view.asked.into_inner();
    // One less each time, and once all to see that nothing is missing.
    assert!(
        asked <= names.len() * (names.len() + 1) / 2 + names.len(),
        "{asked}"
    );
}
