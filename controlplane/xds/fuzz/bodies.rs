//! What is fuzzed: everything that reads bytes or text from outside. The same bodies run as
//! property tests on stable (`tests/fuzz.rs`) and under libfuzzer (`fuzz_targets`). None may
//! panic, hang, or lose what it reads.

use std::sync::Arc;
use std::time::Duration;

use millrace_xds::delta::client::{DeltaClient, Reception};
use millrace_xds::delta::server::Delta;
use millrace_xds::node::NodeId;
use millrace_xds::proto::{
    self, Any, Bootstrap, Cluster, ClusterLoadAssignment, DeltaDiscoveryRequest,
    DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Listener, NameTable, Node,
    RouteConfiguration, Secret,
};
use millrace_xds::push::{ConfigView, Generation, Session, SessionConfig};
use millrace_xds::sotw::client::{Reception as SotwReception, SotwClient};
use millrace_xds::sotw::server::Sotw;
use millrace_xds::{EncodedResource, RawResource, Selection, TypeUrl, WireResource, json};
use prost::Message;
use tokio::time::Instant;

/// A client's requests, arbitrary, to the server's state machines.
pub(crate) fn requests(data: &[u8]) {
    let config = SessionConfig::default;
    let now = Instant::now();
    if let Ok(request) = DeltaDiscoveryRequest::decode(data) {
        let mut session = Session::<Delta>::new(config(), 1, Generation(1));
        for _ in 0..2 {
            if session.receive(&request).is_ok() {
                while session.poll(now, &View).is_some() {}
                session.status(now);
            }
        }
    }
    if let Ok(request) = DiscoveryRequest::decode(data) {
        let node = request.node.clone().map(millrace_xds::node::Node::from);
        if let Some(node) = node {
            // What the pilot reads of a node.
            let _read = (node.namespace(), node.labels(), node.addresses());
        }
        let mut session = Session::<Sotw>::new(config(), 1, Generation(1));
        for _ in 0..2 {
            if session.receive(&request).is_ok() {
                while session.poll(now, &View).is_some() {}
            }
        }
    }
}

/// A server's responses, arbitrary, to the clients' state machines.
pub(crate) fn responses(data: &[u8]) {
    if let Ok(response) = DeltaDiscoveryResponse::decode(data) {
        let mut client = DeltaClient::new(Node::default(), Duration::from_secs(15));
        let type_url = TypeUrl::from(response.type_url.as_str());
        client.subscribe(&type_url, ["*", "a", "ns/*"]);
        client.open();
        while client.poll_request(Instant::now()).is_some() {}
        if let Reception::Update(update) = client.receive(response) {
            for resource in &update.resources {
                decode(resource);
            }
            client.finish(update.received.verdict(Vec::new()));
        }
        // Whatever came is answered.
        assert!(client.poll_request(Instant::now()).is_some());
    }
    if let Ok(response) = DiscoveryResponse::decode(data) {
        let mut client = SotwClient::new(Node::default());
        let type_url = TypeUrl::from(response.type_url.as_str());
        client.set_wanted(&type_url, Selection::everything());
        client.open();
        while client.poll_request().is_some() {}
        if let SotwReception::Update(update) = client.receive(response) {
            client.finish(&update, &[]);
        }
        assert!(client.poll_request().is_some());
    }
}

/// Resources of every type: decoding never panics, and what decodes has one canonical form.
pub(crate) fn resources(data: &[u8]) {
    resource::<Cluster>(data);
    resource::<ClusterLoadAssignment>(data);
    resource::<Listener>(data);
    resource::<RouteConfiguration>(data);
    resource::<Secret>(data);
    resource::<NameTable>(data);
}

/// Text as a static bootstrap, and as a node id.
pub(crate) fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string().parse::<NodeId>().as_ref(), Ok(&id));
    }
    if let Ok(bootstrap) = json::from_yaml::<Bootstrap>(text)
        && let Ok(value) = json::to_value(&bootstrap)
    {
        let again: Bootstrap = json::from_value(&value).expect("own JSON is readable");
        assert_eq!(json::to_value(&again).ok(), Some(value));
    }
}

fn resource<M: WireResource + Clone>(data: &[u8]) {
    let Ok(message) = M::decode(data) else {
        return;
    };
    let first = EncodedResource::encode(&message);
    // Another copy has its maps in another order.
    let copy = M::decode(data).expect("it decoded before");
    assert_eq!(first.version(), EncodedResource::encode(&copy).version());
    M::decode(first.body().clone()).expect("the canonical form decodes");
    // An Any inside may hold anything: then there is no JSON, but no panic either.
    drop(json::any_to_value(&first.to_any()));
}

fn decode(resource: &RawResource) {
    let any: &Any = &resource.body;
    let _decoded = (
        resource.decode::<Cluster>().is_ok(),
        resource.decode::<Listener>().is_ok(),
        proto::unpack::<Secret>(any).is_ok(),
    );
}

struct View;

impl ConfigView for View {
    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn resources(&self, _type_url: &TypeUrl, selection: &Selection) -> Vec<Arc<EncodedResource>> {
        let names = ["a", "b", "ns/a", "ns/b", "ns/a/b"];
        let resources = names.iter().map(|name| {
            EncodedResource::encode(&Cluster {
                name: (*name).into(),
                ..Default::default()
            })
        });
        resources
            .filter(|resource| selection.contains(resource.name()))
            .map(Arc::new)
            .collect()
    }
}
