//! Stock Envoy as the proxy of a whole node, in its pods' network namespaces.
//!
//! Envoy listens where an address names a namespace's file, and connects in the namespace that the connection's filter
//! state names, which a listener filter sets: so calls leave the client's pod, and deliveries are made inside the
//! server's, while all pods share their clusters. The connections that it keeps are kept apart by that state.

use std::net::IpAddr;

use millrace_xds::proto::envoy::config::core::v3 as core;
use millrace_xds::proto::envoy::config::listener::v3 as proto;
use millrace_xds::proto::envoy::extensions::filters::common::set_filter_state::v3 as state;
use millrace_xds::proto::envoy::extensions::filters::listener::set_filter_state::v3::Config;
use millrace_xds::proto::envoy::extensions::local_address_selectors::filter_state_override::v3 as selector;
use millrace_xds::proto::{Cluster, Listener, pack};

use super::ProxyView;
use super::wrap::{socket, socket_address};
use crate::model::workload::Workload;

/// Before `<namespace>/<pod>` in the names of outbound listeners.
pub(super) const OUTBOUND_PREFIX: &str = "outbound/";

/// What Envoy reads the namespace of a connection to an upstream from.
const STATE: &str = "envoy.network.upstream_bind_override.network_namespace";
/// Connections whose state of this kind differs are never shared.
const HASHABLE: &str = "envoy.hashable_string";

/// The file of a pod's network namespace. An underscore is in no name of Kubernetes'.
fn path(directory: &str, pod: &Workload) -> String {
    format!("{directory}/{}_{}", pod.name.namespace, pod.name.name)
}

/// Moves a listener, whose first filter finds the original destination, into a pod.
pub(super) fn enter(listener: &mut Listener, port: u16, directory: &str, pod: &Workload) {
    let path = path(directory, pod);
    let at = |any: IpAddr| {
        let mut address = socket(any, port);
        if let Some(core::address::Address::SocketAddress(socket)) = &mut address.address {
            socket.network_namespace_filepath.clone_from(&path);
        }
        Some(address)
    };
    let (first, second) = super::listener::any_of(&pod.addresses);
    listener.address = at(first);
    let second = second.map(|second| proto::AdditionalAddress {
        address: at(second),
        ..Default::default()
    });
    listener.additional_addresses = second.into_iter().collect();
    listener.listener_filters.insert(1, remember(&path));
}

/// Has what comes of a connection happen in the namespace that it was accepted in.
fn remember(path: &str) -> proto::ListenerFilter {
    use core::substitution_format_string::Format;
    use state::filter_state_value::{Key, SharedWithUpstream, Value};
    let source = core::data_source::Specifier::InlineString(path.to_owned());
    let value = core::SubstitutionFormatString {
        format: Some(Format::TextFormatSource(core::DataSource {
            specifier: Some(source),
            ..Default::default()
        })),
        ..Default::default()
    };
    let config = Config {
        on_accept: vec![state::FilterStateValue {
            key: Some(Key::ObjectKey(STATE.to_owned())),
            factory_key: HASHABLE.to_owned(),
            value: Some(Value::FormatString(value)),
            shared_with_upstream: SharedWithUpstream::Once.into(),
            ..Default::default()
        }],
    };
    proto::ListenerFilter {
        name: "envoy.filters.listener.set_filter_state".to_owned(),
        config_type: Some(proto::listener_filter::ConfigType::TypedConfig(pack(
            &config,
        ))),
        ..Default::default()
    }
}

/// Has a cluster's connections made in the namespace of the connection that they are for, from these addresses, one of
/// each family.
pub(super) fn bind(view: &ProxyView, cluster: &mut Cluster, [v4, v6]: [&str; 2]) {
    if !matches!(view, ProxyView::Node { netns: Some(_), .. }) {
        return;
    }
    cluster.upstream_bind_config = Some(core::BindConfig {
        source_address: Some(socket_address(v4, 0)),
        extra_source_addresses: vec![core::ExtraSourceAddress {
            address: Some(socket_address(v6, 0)),
            ..Default::default()
        }],
        local_address_selector: Some(core::TypedExtensionConfig {
            name: "envoy.upstream.local_address_selector.filter_state_override".to_owned(),
            typed_config: Some(pack(&selector::Config {})),
        }),
        ..Default::default()
    });
}
