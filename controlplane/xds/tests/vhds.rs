//! Resources that are asked for by aliases, as virtual hosts are: answered by a resource that says so, or by one that says
//! there is none.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, may panic")]

use std::sync::Arc;

use millrace_xds::delta::server::Delta;
use millrace_xds::proto::envoy::config::route::v3::Route;
use millrace_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, VirtualHost};
use millrace_xds::push::{ConfigView, Generation, Session, SessionConfig};
use millrace_xds::{EncodedResource, Selection, TypeUrl};
use tokio::time::Instant;

const VHDS: TypeUrl = TypeUrl::VIRTUAL_HOST;

struct Hosts(Vec<Arc<EncodedResource>>);

impl ConfigView for Hosts {
    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn resources(&self, _: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let all = self.0.iter();
        all.filter(|host| host.is_selected_by(selection))
            .cloned()
            .collect()
    }
}

/// Reviews, by its name or two others; `routes` is what is changed about it.
fn reviews(routes: usize) -> Hosts {
    let host = VirtualHost {
        name: "reviews:9080".to_owned(),
        routes: vec![Route::default(); routes],
        ..Default::default()
    };
    let aliases = ["9080/reviews:9080", "9080/reviews"];
    let resource = EncodedResource::encode_as("9080/reviews:9080", &host);
    Hosts(vec![Arc::new(
        resource.with_aliases(aliases.map(str::to_owned).into()),
    )])
}

struct Server {
    session: Session<Delta>,
    generation: u64,
}

impl Server {
    fn new() -> Self {
        Self {
            session: Session::new(SessionConfig::default(), 7, Generation(0)),
            generation: 0,
        }
    }

    fn request(&mut self, subscribe: &[&str], unsubscribe: &[&str], nonce: &str) {
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let request = DeltaDiscoveryRequest {
            type_url: VHDS.as_str().into(),
            resource_names_subscribe: texts(subscribe),
            resource_names_unsubscribe: texts(unsubscribe),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        self.session.receive(&request).unwrap();
    }

    /// The next response, accepted.
    fn next(&mut self, hosts: &Hosts) -> Option<DeltaDiscoveryResponse> {
        let response = self.session.poll(Instant::now(), hosts)?;
        self.request(&[], &[], &response.nonce);
        Some(response)
    }

    fn publish(&mut self) {
        self.generation += 1;
        self.session
            .advance(Generation(self.generation), |_, _| true);
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<(&str, bool)> {
    let resources = response.resources.iter();
    resources
        .map(|resource| (resource.name.as_str(), resource.resource.is_some()))
        .collect()
}

#[test]
fn whoever_asks_by_an_alias_is_given_the_resource_with_it() {
    let (mut server, hosts) = (Server::new(), reviews(1));
    server.request(&["9080/reviews"], &[], "");
    let response = server.next(&hosts).unwrap();
    assert_eq!(names(&response), [("9080/reviews:9080", true)]);
    assert!(
        response.resources[0]
            .aliases
            .contains(&"9080/reviews".to_owned())
    );
    assert!(response.removed_resources.is_empty());
    assert!(server.next(&hosts).is_none());
    // Another request of the client waits for the other alias, whatever it has already.
    server.request(&["9080/reviews:9080"], &[], "");
    assert_eq!(
        names(&server.next(&hosts).unwrap()),
        [("9080/reviews:9080", true)]
    );
    // It stays as long as it is asked for by any of its names.
    server.request(&[], &["9080/reviews"], "");
    server.publish();
    assert!(server.next(&hosts).is_none());
}

#[test]
fn a_host_that_nobody_knows_is_told_as_an_alias_without_content() {
    let (mut server, nobody) = (Server::new(), Hosts(Vec::new()));
    server.request(&["9080", "9080/reviews"], &[], "");
    let response = server.next(&nobody).unwrap();
    assert_eq!(names(&response), [("9080/reviews", false)]);
    assert_eq!(response.resources[0].aliases, ["9080/reviews"]);
    assert_eq!(response.removed_resources, ["9080"]);
    assert!(server.next(&nobody).is_none());
    server.publish();
    assert_eq!(
        names(&server.next(&reviews(1)).unwrap()),
        [("9080/reviews:9080", true)]
    );
}

#[test]
fn changes_and_removals_go_by_the_resources_own_name() {
    let mut server = Server::new();
    server.request(&["9080/reviews"], &[], "");
    server.next(&reviews(1)).unwrap();
    server.publish();
    assert!(server.next(&reviews(1)).is_none());
    server.publish();
    assert_eq!(
        names(&server.next(&reviews(2)).unwrap()),
        [("9080/reviews:9080", true)]
    );
    server.publish();
    let removal = server.next(&Hosts(Vec::new())).unwrap();
    assert_eq!(removal.removed_resources, ["9080/reviews:9080"]);
    assert!(removal.resources.is_empty());
}

#[test]
fn the_rest_of_a_cut_answer_comes_after_what_has_gone_out() {
    let mut server = Server::new();
    let config = SessionConfig {
        max_response_bytes: 1,
        ..SessionConfig::default()
    };
    server.session = Session::new(config, 7, Generation(0));
    let host = |name: &str| {
        let host = VirtualHost {
            name: name.to_owned(),
            ..Default::default()
        };
        let resource = EncodedResource::encode_as(&format!("9080/{name}:9080"), &host);
        Arc::new(resource.with_aliases(vec![format!("9080/{name}")]))
    };
    let hosts = Hosts(vec![host("a"), host("b"), host("c")]);
    server.request(&["9080/a", "9080/b", "9080/c"], &[], "");
    for name in ["9080/a:9080", "9080/b:9080", "9080/c:9080"] {
        assert_eq!(names(&server.next(&hosts).unwrap()), [(name, true)]);
    }
    assert!(server.next(&hosts).is_none());
}
