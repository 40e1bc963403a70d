//! Consistent hashing: the balancer of a cluster, and what routes to it make the hash of.
//!
//! Each client gets what it executes: stock Envoy all of it; gRPC's own clients rings (gRFC A42), over a header or, for
//! what is kept by the client's address, over the channel; Millrace's proxy all of it where it says that it hashes.

use millrace_xds::proto::Cluster;
use millrace_xds::proto::envoy::config::cluster::v3 as cluster;
use millrace_xds::proto::envoy::config::route::v3::route_action as action;
use millrace_xds::proto::envoy::r#type::v3 as kinds;
use millrace_xds::proto::google::protobuf::UInt64Value;

use action::hash_policy::{
    ConnectionProperties, Cookie, FilterState, Header, PolicySpecifier, QueryParameter,
};
use cluster::cluster::{LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};

use super::view::Program;
use super::wrap::duration;
use super::{ProxyView, Translator, cluster as clusters};
use crate::model::node::Feature;
use crate::model::policy::{ConsistentHash, HashKey, HashTable};

/// By which a client of gRPC's knows its channel.
const CHANNEL: &str = "io.grpc.channel_id";

/// Makes a cluster choose by hash, where its client does.
pub(super) fn balance(view: &ProxyView, cluster: &mut Cluster, hash: &ConsistentHash) {
    if !view.executes(Feature::Hashing) {
        return;
    }
    let table = match (
        view.program(),
        policy(view.program(), &hash.key),
        hash.table,
    ) {
        (Program::Grpc, None, _) => {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            return;
        }
        (Program::Grpc, _, HashTable::Maglev(_)) => {
            HashTable::Ring(crate::model::policy::MINIMUM_RING_SIZE)
        }
        (_, _, table) => table,
    };
    match table {
        HashTable::Ring(size) => {
            cluster.lb_policy = LbPolicy::RingHash.into();
            cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: Some(UInt64Value { value: size }),
                ..Default::default()
            }));
        }
        HashTable::Maglev(size) => {
            cluster.lb_policy = LbPolicy::Maglev.into();
            let size = size.map(|value| UInt64Value { value });
            cluster.lb_config = size.map(|size| {
                LbConfig::MaglevLbConfig(MaglevLbConfig {
                    table_size: Some(size),
                })
            });
        }
    }
}

/// What requests to any of these clusters are hashed by.
pub(super) fn policies<'n>(
    translator: &Translator<'_>,
    clusters: impl Iterator<Item = &'n str>,
) -> Vec<action::HashPolicy> {
    let program = translator.view.program();
    let mut policies = Vec::new();
    for key in keys(translator, clusters) {
        policies.extend(policy(program, &key).map(|specifier| action::HashPolicy {
            policy_specifier: Some(specifier),
            ..Default::default()
        }));
    }
    policies
}

/// What connections to any of these clusters are hashed by: of a connection only its source is known.
pub(super) fn of_connections<'n>(
    translator: &Translator<'_>,
    clusters: impl Iterator<Item = &'n str>,
) -> Vec<kinds::HashPolicy> {
    use kinds::hash_policy::{PolicySpecifier, SourceIp};
    let keys = keys(translator, clusters);
    let by_source = keys.contains(&HashKey::SourceIp);
    let policy = || kinds::HashPolicy {
        policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})),
    };
    by_source.then(policy).into_iter().collect()
}

/// The keys of these clusters, each once.
fn keys<'n>(translator: &Translator<'_>, clusters: impl Iterator<Item = &'n str>) -> Vec<HashKey> {
    let mut keys = Vec::new();
    // Nothing is looked up for those who hash nothing.
    let clusters = clusters.filter(|_| translator.view.executes(Feature::Hashing));
    for name in clusters {
        let source = clusters::source(translator, name);
        let key = source.and_then(|source| source.hash().map(|hash| hash.key.clone()));
        keys.extend(key.filter(|key| !keys.contains(key)));
    }
    keys
}

/// A key in the words of routes; none where the client cannot make a hash of it.
fn policy(program: Program, key: &HashKey) -> Option<PolicySpecifier> {
    let specifier = match (program, key) {
        (Program::Grpc, HashKey::Cookie { .. } | HashKey::QueryParameter(_)) => return None,
        (_, HashKey::Header(name)) => PolicySpecifier::Header(Header {
            header_name: name.clone(),
            ..Default::default()
        }),
        (Program::Grpc, HashKey::SourceIp) => PolicySpecifier::FilterState(FilterState {
            key: CHANNEL.to_owned(),
        }),
        (Program::Envoy | Program::Millrace, HashKey::SourceIp) => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
        }
        (Program::Envoy | Program::Millrace, HashKey::Cookie { name, path, ttl }) => {
            PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                path: path.clone(),
                ttl: ttl.and_then(duration),
                ..Default::default()
            })
        }
        (Program::Envoy | Program::Millrace, HashKey::QueryParameter(name)) => {
            PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
        }
    };
    Some(specifier)
}
