//! Any interleaving of configuration changes, subscriptions, lost streams, slow consumers and
//! NACKs ends with every client having exactly what it should have: the client and server state
//! machines of each variant against each other, over a network that the test controls.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, too, may panic"
)]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use millrace_xds::delta::client::{self, DeltaClient, ResponseUpdate};
use millrace_xds::delta::server::Delta;
use millrace_xds::proto::{self, Node};
use millrace_xds::push::{Session, SessionConfig, Variant};
use millrace_xds::sotw::client::{self as sotw_client, SotwClient};
use millrace_xds::sotw::server::Sotw;
use millrace_xds::{RawResource, ResourceError, Selection, TypeUrl};
use proptest::prelude::*;
use support::{World, content, encode};
use tokio::time::Instant;

const TYPES: [TypeUrl; 4] = [
    TypeUrl::CLUSTER,
    TypeUrl::ENDPOINT,
    TypeUrl::LISTENER,
    TypeUrl::ROUTE,
];
const NAMES: [&str; 5] = ["a", "hidden", "ns/a", "ns/b", "hidden/c"];
const TERMS: [&str; 7] = ["*", "ns/*", "hidden/*", "a", "hidden", "ns/a", "missing"];

/// Contents that the consumer rejects.
fn is_bad(content: u8) -> bool {
    content % 5 == 4
}

#[derive(Clone, Debug)]
enum Step {
    Set(usize, usize, u8),
    Remove(usize, usize),
    Publish,
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    ClientSends,
    ServerSends,
    ServerReceives,
    ClientReceives,
    Finish(usize),
    Reconnect,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = 0..TYPES.len();
    let name = 0..NAMES.len();
    let term = 0..TERMS.len();
    prop_oneof![
        4 => (kind.clone(), name.clone(), 0..12_u8).prop_map(|(t, n, c)| Step::Set(t, n, c)),
        2 => (kind.clone(), name).prop_map(|(t, n)| Step::Remove(t, n)),
        3 => Just(Step::Publish),
        3 => (kind.clone(), term.clone()).prop_map(|(t, n)| Step::Subscribe(t, n)),
        2 => (kind, term).prop_map(|(t, n)| Step::Unsubscribe(t, n)),
        5 => Just(Step::ClientSends),
        5 => Just(Step::ServerSends),
        5 => Just(Step::ServerReceives),
        5 => Just(Step::ClientReceives),
        4 => (0..3_usize).prop_map(Step::Finish),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Wait),
    ]
}

type Held = BTreeMap<TypeUrl, BTreeMap<String, u8>>;

/// Applies what is good and says what is bad.
fn apply(
    held: &mut Held,
    type_url: &TypeUrl,
    resources: &[RawResource],
    removed: &[String],
) -> Vec<ResourceError> {
    let of_type = held.entry(type_url.clone()).or_default();
    for name in removed {
        of_type.remove(name);
    }
    let mut rejected = Vec::new();
    for resource in resources {
        let content = content(type_url, &resource.body.value);
        if is_bad(content) {
            rejected.push(ResourceError {
                name: resource.name.clone(),
                message: format!("bad content {content}"),
            });
        } else {
            of_type.insert(resource.name.clone(), content);
        }
    }
    rejected
}

/// What is held must be what exists; bad versions leave the last good one, whatever it was.
fn check(held: &Held, world: &World, type_url: &TypeUrl, wanted: &Selection, deletions: bool) {
    let empty = BTreeMap::new();
    let held = held.get(type_url).unwrap_or(&empty);
    let expected = world.expected(type_url, wanted);
    for (name, content) in &expected {
        if !is_bad(*content) {
            assert_eq!(held.get(name), Some(content), "{type_url:?} {name}");
        }
    }
    for (name, content) in held {
        assert!(!is_bad(*content), "{type_url:?} {name} is bad");
        if deletions {
            assert!(
                expected.contains_key(name),
                "{type_url:?} {name} should be gone"
            );
        }
    }
}

fn session_config() -> SessionConfig {
    SessionConfig {
        // Small enough to cut responses.
        max_response_bytes: 70,
        ..SessionConfig::default()
    }
}

/// Both ends of a delta session, the network between them and a consumer.
struct DeltaModel {
    world: World,
    published: World,
    client: DeltaClient,
    server: Session<Delta>,
    requests: VecDeque<proto::DeltaDiscoveryRequest>,
    responses: VecDeque<proto::DeltaDiscoveryResponse>,
    /// Applied, but the server does not know yet.
    unfinished: Vec<(client::Received, Vec<ResourceError>)>,
    wanted: BTreeMap<TypeUrl, Selection>,
    held: Held,
    now: Instant,
    streams: u64,
}

impl DeltaModel {
    fn new() -> Self {
        let world = World::default();
        let mut model = Self {
            published: world.clone(),
            world,
            client: DeltaClient::new(Node::default(), Duration::from_secs(15)),
            server: Session::new(session_config(), 0, World::default().publish()),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            unfinished: Vec::new(),
            wanted: BTreeMap::new(),
            held: Held::new(),
            now: Instant::now(),
            streams: 0,
        };
        model.reconnect();
        model
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        self.requests.clear();
        self.responses.clear();
        let generation = millrace_xds::push::Generation(self.published.generation);
        self.server = Session::new(session_config(), self.streams, generation);
        self.client.close();
        self.client.open();
    }

    /// Whether the step did anything.
    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Set(kind, name, content) => self.world.set(&TYPES[*kind], NAMES[*name], *content),
            Step::Remove(kind, name) => self.world.remove(&TYPES[*kind], NAMES[*name]),
            Step::Publish => {
                let generation = self.world.publish();
                self.published = self.world.clone();
                self.server.advance(generation, |_, _| true);
            }
            Step::Subscribe(kind, term) => {
                self.client.subscribe(&TYPES[*kind], [TERMS[*term]]);
                let wanted = self.wanted.entry(TYPES[*kind].clone()).or_default();
                wanted.insert(TERMS[*term]);
            }
            Step::Unsubscribe(kind, term) => {
                self.client.unsubscribe(&TYPES[*kind], [TERMS[*term]]);
                let wanted = self.wanted.entry(TYPES[*kind].clone()).or_default();
                wanted.remove(TERMS[*term]);
                let held = self.held.entry(TYPES[*kind].clone()).or_default();
                held.retain(|name, _| wanted.contains(name));
            }
            Step::ClientSends => {
                let request = self.client.poll_request(self.now);
                let sent = request.is_some();
                self.requests.extend(request);
                return sent;
            }
            Step::ServerSends => {
                let response = self.server.poll(self.now, &self.published);
                let sent = response.is_some();
                self.responses.extend(response);
                return sent;
            }
            Step::ServerReceives => {
                let request = self.requests.pop_front();
                return request.is_some_and(|request| {
                    self.server.receive(&request).unwrap();
                    true
                });
            }
            Step::ClientReceives => {
                let response = self.responses.pop_front();
                return response.is_some_and(|response| {
                    self.client_receives(response);
                    true
                });
            }
            Step::Finish(index) => {
                if *index >= self.unfinished.len() {
                    return false;
                }
                let (received, rejected) = self.unfinished.remove(*index);
                self.client.finish(received.verdict(rejected));
            }
            Step::Reconnect => self.reconnect(),
            Step::Wait => self.now += Duration::from_secs(20),
        }
        true
    }

    fn client_receives(&mut self, response: proto::DeltaDiscoveryResponse) {
        assert_eq!(
            self.responses
                .iter()
                .filter(|r| r.type_url == response.type_url)
                .count(),
            0,
            "two responses of one type under way"
        );
        match self.client.receive(response) {
            client::Reception::Update(update) => {
                let ResponseUpdate {
                    type_url,
                    resources,
                    removed,
                    received,
                    ..
                } = update;
                let rejected = apply(&mut self.held, &type_url, &resources, &removed);
                self.unfinished.push((received, rejected));
            }
            client::Reception::Ignored { .. } => {}
        }
    }

    fn settle(&mut self) {
        self.step(&Step::Publish);
        let moves = [
            Step::ClientSends,
            Step::ServerReceives,
            Step::ServerSends,
            Step::ClientReceives,
            Step::Finish(0),
        ];
        for _ in 0..10_000 {
            let mut busy = false;
            for step in &moves {
                busy |= self.step(step);
            }
            if !busy {
                return;
            }
        }
        panic!("client and server do not come to rest");
    }

    fn check(&self) {
        for (type_url, wanted) in &self.wanted {
            check(&self.held, &self.published, type_url, wanted, true);
            // What the client would claim on a new stream the consumer really has.
            let empty = BTreeMap::new();
            let held = self.held.get(type_url).unwrap_or(&empty);
            for (name, version) in self.client.known(type_url) {
                let held = held
                    .get(name)
                    .map(|content| encode(type_url, name, *content));
                let held = held.as_ref().map(|resource| resource.version().as_str());
                assert_eq!(held, Some(version), "{type_url:?} {name}");
            }
        }
    }
}

/// Both ends of a state-of-the-world session.
struct SotwModel {
    world: World,
    published: World,
    client: SotwClient,
    server: Session<Sotw>,
    requests: VecDeque<proto::DiscoveryRequest>,
    responses: VecDeque<proto::DiscoveryResponse>,
    unfinished: Vec<(sotw_client::ResponseUpdate, Vec<ResourceError>)>,
    wanted: BTreeMap<TypeUrl, Selection>,
    held: Held,
    now: Instant,
    streams: u64,
}

impl SotwModel {
    fn new() -> Self {
        let mut model = Self {
            world: World::default(),
            published: World::default(),
            client: SotwClient::new(Node::default()),
            server: Session::new(session_config(), 0, World::default().publish()),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            unfinished: Vec::new(),
            wanted: BTreeMap::new(),
            held: Held::new(),
            now: Instant::now(),
            streams: 0,
        };
        model.reconnect();
        model
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        self.requests.clear();
        self.responses.clear();
        let generation = millrace_xds::push::Generation(self.published.generation);
        self.server = Session::new(session_config(), self.streams, generation);
        self.client.close();
        self.client.open();
    }

    fn want(&mut self, kind: usize, change: impl FnOnce(&mut Selection)) {
        let wanted = self.wanted.entry(TYPES[kind].clone()).or_default();
        change(wanted);
        self.client.set_wanted(&TYPES[kind], wanted.clone());
        let held = self.held.entry(TYPES[kind].clone()).or_default();
        held.retain(|name, _| wanted.contains(name));
    }

    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Set(kind, name, content) => self.world.set(&TYPES[*kind], NAMES[*name], *content),
            Step::Remove(kind, name) => self.world.remove(&TYPES[*kind], NAMES[*name]),
            Step::Publish => {
                let generation = self.world.publish();
                self.published = self.world.clone();
                self.server.advance(generation, |_, _| true);
            }
            Step::Subscribe(kind, term) => self.want(*kind, |wanted| {
                wanted.insert(TERMS[*term]);
            }),
            Step::Unsubscribe(kind, term) => self.want(*kind, |wanted| {
                wanted.remove(TERMS[*term]);
            }),
            Step::ClientSends => {
                let request = self.client.poll_request();
                let sent = request.is_some();
                self.requests.extend(request);
                return sent;
            }
            Step::ServerSends => {
                let response = self.server.poll(self.now, &self.published);
                let sent = response.is_some();
                self.responses.extend(response);
                return sent;
            }
            Step::ServerReceives => {
                let request = self.requests.pop_front();
                return request.is_some_and(|request| {
                    self.server.receive(&request).unwrap();
                    true
                });
            }
            Step::ClientReceives => {
                let Some(response) = self.responses.pop_front() else {
                    return false;
                };
                match self.client.receive(response) {
                    sotw_client::Reception::Update(update) => {
                        let rejected = apply(
                            &mut self.held,
                            &update.type_url,
                            &update.resources,
                            &update.removed,
                        );
                        self.unfinished.push((update, rejected));
                    }
                    sotw_client::Reception::Rejected(error) => panic!("{error}"),
                }
            }
            Step::Finish(_) => {
                if self.unfinished.is_empty() {
                    return false;
                }
                let (update, rejected) = self.unfinished.remove(0);
                self.client.finish(&update, &rejected);
            }
            Step::Reconnect => self.reconnect(),
            Step::Wait => self.now += Duration::from_secs(20),
        }
        true
    }

    fn settle(&mut self) {
        self.step(&Step::Publish);
        let moves = [
            Step::ClientSends,
            Step::ServerReceives,
            Step::ServerSends,
            Step::ClientReceives,
            Step::Finish(0),
        ];
        for _ in 0..10_000 {
            let mut busy = false;
            for step in &moves {
                busy |= self.step(step);
            }
            if !busy {
                return;
            }
        }
        panic!("client and server do not come to rest");
    }

    fn check(&self) {
        for (type_url, wanted) in &self.wanted {
            let deletions = type_url.is_full_state();
            check(&self.held, &self.published, type_url, wanted, deletions);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn delta_converges(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = DeltaModel::new();
        for step in &steps {
            model.step(step);
        }
        model.settle();
        model.check();
    }

    #[test]
    fn sotw_converges(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = SotwModel::new();
        for step in &steps {
            model.step(step);
        }
        model.settle();
        model.check();
    }

    /// A reconnect in a quiet state sends nothing again.
    #[test]
    fn delta_resumes_without_resending(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = DeltaModel::new();
        for step in &steps {
            model.step(step);
        }
        model.settle();
        model.reconnect();
        let mut resent = 0;
        for _ in 0..200 {
            model.step(&Step::ClientSends);
            model.step(&Step::ServerReceives);
            model.step(&Step::ServerSends);
            let good = model.responses.iter().flat_map(|r| r.resources.iter().map(|x| {
                content(&r.type_url.as_str().into(), &x.resource.as_ref().unwrap().value)
            }));
            resent += good.filter(|content| !is_bad(*content)).count();
            model.step(&Step::ClientReceives);
            model.step(&Step::Finish(0));
        }
        prop_assert_eq!(resent, 0);
    }
}

// The trait's header function is what routes a request; both variants must read the same fields.
#[test]
fn headers_agree() {
    let delta = proto::DeltaDiscoveryRequest {
        type_url: "t".into(),
        response_nonce: "n".into(),
        ..Default::default()
    };
    let sotw = proto::DiscoveryRequest {
        type_url: "t".into(),
        response_nonce: "n".into(),
        ..Default::default()
    };
    assert_eq!(Delta::header(&delta).nonce, Sotw::header(&sotw).nonce);
    assert_eq!(Delta::header(&delta).type_url, Sotw::header(&sotw).type_url);
}
