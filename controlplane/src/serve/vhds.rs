//! VHDS: virtual hosts by the host that a request is for, for Envoys that ask for them so.
//!
//! Input: route configurations and listeners as everybody gets them; output: the same without virtual hosts, and each
//! virtual host when it is asked for. A client says in its metadata how it asks: `VHDS: <the cluster of pilot in its
//! bootstrap>`, or `ads` where it can over its one stream, which Envoy cannot. Called by [`super::MeshView`].

use std::sync::Arc;

use millrace_xds::EncodedResource;
use millrace_xds::node::Node;
use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3::filter::ConfigType;
use millrace_xds::proto::envoy::config::route::v3::Vhds;
use millrace_xds::proto::envoy::extensions::filters::http::on_demand::v3::OnDemand;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use millrace_xds::proto::{Listener, RouteConfiguration, VirtualHost, pack, unpack};

use core::api_config_source::ApiType;
use core::config_source::ConfigSourceSpecifier;
use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

/// The key of metadata by which a client asks.
const KEY: &str = "VHDS";
/// Over the stream that the client has.
const ADS: &str = "ads";
const ON_DEMAND: &str = "envoy.filters.http.on_demand";

/// How a client asks for virtual hosts.
#[derive(Clone, Debug)]
pub(super) struct OnDemandHosts {
    source: core::ConfigSource,
}

impl OnDemandHosts {
    /// What a client says of itself; none where it is given all virtual hosts of a port at once.
    pub(super) fn of_node(node: &Node) -> Option<Self> {
        let cluster = node.text(KEY).filter(|text| !text.is_empty())?;
        let specifier = if cluster == ADS {
            ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})
        } else {
            let grpc = EnvoyGrpc {
                cluster_name: cluster.to_owned(),
                ..Default::default()
            };
            ConfigSourceSpecifier::ApiConfigSource(core::ApiConfigSource {
                api_type: ApiType::DeltaGrpc.into(),
                transport_api_version: core::ApiVersion::V3.into(),
                grpc_services: vec![core::GrpcService {
                    target_specifier: Some(TargetSpecifier::EnvoyGrpc(grpc)),
                    ..Default::default()
                }],
                ..Default::default()
            })
        };
        Some(Self {
            source: core::ConfigSource {
                resource_api_version: core::ApiVersion::V3.into(),
                config_source_specifier: Some(specifier),
                ..Default::default()
            },
        })
    }

    /// A route configuration that says where its virtual hosts are to be asked for.
    pub(super) fn routes(&self, resource: &Arc<EncodedResource>) -> Arc<EncodedResource> {
        let Ok(routes) = unpack::<RouteConfiguration>(&resource.to_any()) else {
            return Arc::clone(resource);
        };
        let routes = RouteConfiguration {
            virtual_hosts: Vec::new(),
            vhds: Some(Vhds {
                config_source: Some(self.source.clone()),
            }),
            ..routes
        };
        Arc::new(EncodedResource::encode(&routes).with_ttl(resource.ttl()))
    }

    /// A listener whose requests wait for their virtual host.
    pub(super) fn listener(resource: &Arc<EncodedResource>) -> Arc<EncodedResource> {
        let Ok(mut listener) = unpack::<Listener>(&resource.to_any()) else {
            return Arc::clone(resource);
        };
        let default = listener.default_filter_chain.as_mut();
        for chain in listener.filter_chains.iter_mut().chain(default) {
            for filter in &mut chain.filters {
                let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else {
                    continue;
                };
                let Ok(mut manager) = unpack::<http::HttpConnectionManager>(config) else {
                    continue;
                };
                if let Some(http::http_connection_manager::RouteSpecifier::Rds(_)) =
                    manager.route_specifier
                {
                    manager.http_filters.insert(0, on_demand());
                    *config = pack(&manager);
                }
            }
        }
        Arc::new(EncodedResource::encode(&listener).with_ttl(resource.ttl()))
    }
}

fn on_demand() -> http::HttpFilter {
    http::HttpFilter {
        name: ON_DEMAND.to_owned(),
        config_type: Some(http::http_filter::ConfigType::TypedConfig(pack(
            &OnDemand::default(),
        ))),
        ..Default::default()
    }
}

/// The route configuration and the host that a name asks for; a host has no slash in it.
pub(super) fn asked(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('/').filter(|(_, host)| !host.is_empty())
}

/// The virtual host of a route configuration that requests for a host are for. What a wildcard takes is made for that
/// host alone, so that no host is waited for in vain and none is there twice.
pub(super) fn virtual_host(routes: &EncodedResource, host: &str) -> Option<EncodedResource> {
    let routes: RouteConfiguration = unpack(&routes.to_any()).ok()?;
    let asked = host.to_ascii_lowercase();
    let exact = |it: &&VirtualHost| it.domains.contains(&asked);
    if let Some(found) = routes.virtual_hosts.iter().find(exact) {
        let alias = |domain: &String| format!("{}/{domain}", routes.name);
        let domains: Vec<String> = found
            .domains
            .iter()
            .filter(|domain| !domain.contains('*'))
            .cloned()
            .collect();
        let aliases = domains.iter().map(alias).collect();
        let own = VirtualHost {
            domains,
            ..found.clone()
        };
        return Some(encode(&routes.name, &own).with_aliases(aliases));
    }
    let longest = |it: &&VirtualHost| {
        it.domains
            .iter()
            .filter(|domain| covers(domain, &asked))
            .map(String::len)
            .max()
    };
    let covering = routes
        .virtual_hosts
        .iter()
        .filter(|it| longest(it).is_some());
    let found = covering.max_by_key(longest)?;
    let own = VirtualHost {
        name: asked.clone(),
        domains: vec![asked],
        ..found.clone()
    };
    let resource = encode(&routes.name, &own);
    Some(resource.with_aliases(vec![format!("{}/{host}", routes.name)]))
}

fn encode(routes: &str, host: &VirtualHost) -> EncodedResource {
    EncodedResource::encode_as(&format!("{routes}/{}", host.name), host)
}

/// Whether a domain with a wildcard at its beginning takes a host.
fn covers(domain: &str, host: &str) -> bool {
    domain.strip_prefix('*').is_some_and(|suffix| {
        host.ends_with(suffix) && (suffix.is_empty() || host.len() > suffix.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, domains: &[&str]) -> VirtualHost {
        VirtualHost {
            name: name.to_owned(),
            domains: domains.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn routes() -> EncodedResource {
        EncodedResource::encode(&RouteConfiguration {
            name: "ns/9080".to_owned(),
            virtual_hosts: vec![
                host("reviews:9080", &["reviews:9080", "reviews"]),
                host(
                    "*.example.com:9080",
                    &["*.example.com:9080", "*.example.com"],
                ),
                host("allow_any", &["*"]),
            ],
            ..Default::default()
        })
    }

    fn found(asked: &str) -> (String, Vec<String>, Vec<String>) {
        let resource = virtual_host(&routes(), asked).unwrap();
        let body: VirtualHost = unpack(&resource.to_any()).unwrap();
        (
            resource.name().to_owned(),
            resource.aliases().to_vec(),
            body.domains,
        )
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_is_found_by_each_of_its_domains_under_one_name() {
        let aliases = texts(&["ns/9080/reviews:9080", "ns/9080/reviews"]);
        let expected = (
            "ns/9080/reviews:9080".to_owned(),
            aliases,
            texts(&["reviews:9080", "reviews"]),
        );
        assert_eq!(found("reviews"), expected);
        assert_eq!(found("Reviews:9080"), expected);
    }

    #[test]
    fn what_a_wildcard_takes_is_a_host_of_its_own() {
        for asked in ["a.example.com", "b.example.com:9080", "unknown"] {
            let (name, aliases, domains) = found(asked);
            assert_eq!(name, format!("ns/9080/{asked}"));
            assert_eq!((aliases, domains), (vec![name], texts(&[asked])));
        }
    }

    #[test]
    fn a_route_configuration_has_no_hosts_and_says_where_they_are() {
        let node = |value: &str| Node::default().with_metadata("VHDS", value);
        assert!(OnDemandHosts::of_node(&Node::default()).is_none());
        let hosts = OnDemandHosts::of_node(&node("xds")).unwrap();
        let made = hosts.routes(&Arc::new(routes()));
        let made: RouteConfiguration = unpack(&made.to_any()).unwrap();
        assert!(made.virtual_hosts.is_empty());
        let source = made.vhds.unwrap().config_source.unwrap();
        let Some(ConfigSourceSpecifier::ApiConfigSource(api)) = source.config_source_specifier
        else {
            panic!("{source:?}");
        };
        assert_eq!(api.api_type(), ApiType::DeltaGrpc);
    }
}
