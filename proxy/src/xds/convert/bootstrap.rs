//! A static bootstrap: its resources, node, admin port and source of dynamic resources.

use millrace_xds::json::{self, JsonError};
use millrace_xds::node::Node;
use millrace_xds::proto;
use millrace_xds::proto::envoy::config::bootstrap::v3 as pb;
use millrace_xds::proto::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use millrace_xds::proto::envoy::config::core::v3::api_config_source::ApiType;
use millrace_xds::proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use millrace_xds::proto::envoy::config::core::v3::grpc_service::TargetSpecifier;
use millrace_xds::proto::envoy::config::core::v3::{ApiConfigSource, ConfigSource};
use serde_json::Value;

use super::address::socket_addr;
use super::value::enumeration;
use super::{Converted, Cx, Invalid, Unsupported};
use crate::bootstrap::Admin;
use crate::resource::{Cluster, Listener};

/// What a bootstrap holds.
pub(crate) struct Static {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) clusters: Vec<Cluster>,
    /// Listeners whose routes may name unknown clusters (`validate_clusters: false`).
    pub(crate) unchecked_listeners: Vec<String>,
    pub(crate) node: Option<Node>,
    pub(crate) admin: Option<Admin>,
    pub(crate) dynamic: Option<Dynamic>,
    pub(crate) unsupported: Vec<(String, Vec<Unsupported>)>,
}

/// What comes from a control plane.
pub(crate) struct Dynamic {
    /// The static cluster that it is behind.
    pub(crate) server: String,
    pub(crate) listeners: bool,
    pub(crate) clusters: bool,
}

/// Reads a bootstrap of today's form.
pub(crate) fn read(value: &Value) -> Result<Static, Invalid> {
    let m: pb::Bootstrap = json::from_value(value).map_err(|error| not_a_bootstrap(&error))?;
    let mut cx = Cx::new("bootstrap", "");
    let mut unsupported = Vec::new();
    let resources = m.static_resources.clone().unwrap_or_default();
    if !resources.secrets.is_empty() {
        cx.note("static_resources.secrets", "TLS is not supported");
    }
    let clusters = each(&resources.clusters, "clusters", &mut unsupported, |m| {
        super::cluster(&proto::pack(m).value, false)
    })?;
    let listeners = each(&resources.listeners, "listeners", &mut unsupported, |m| {
        super::listener(&proto::pack(&named(m)).value)
    })?;
    let unchecked = resources.listeners.iter().filter(|l| is_unchecked(l));
    let parsed = Static {
        unchecked_listeners: unchecked.map(|l| named(l).name).collect(),
        listeners,
        clusters,
        node: m.node.clone().map(Node::from),
        admin: admin(&mut cx, m.admin.as_ref())?,
        dynamic: match &m.dynamic_resources {
            Some(dynamic) => cx.at("dynamic_resources", |cx| self::dynamic(cx, dynamic))?,
            None => None,
        },
        unsupported,
    };
    note_rest(&mut cx, value);
    let own = cx.into_unsupported();
    Ok(Static {
        unsupported: std::iter::once(("bootstrap".to_owned(), own))
            .filter(|(_, list)| !list.is_empty())
            .chain(parsed.unsupported)
            .collect(),
        ..parsed
    })
}

/// Top-level fields that are read; the others, which tune what this proxy does not have, are
/// listed.
const READ: [&str; 5] = [
    "node",
    "static_resources",
    "dynamic_resources",
    "admin",
    // Says only that the file is to be read as it is.
    "use_tcp_for_dns_lookups",
];

fn note_rest(cx: &mut Cx, value: &Value) {
    for field in value.as_object().into_iter().flat_map(|o| o.keys()) {
        if !READ.contains(&field.as_str()) {
            cx.note(field, "is not supported and has no effect");
        }
    }
}

fn not_a_bootstrap(error: &JsonError) -> Invalid {
    let (field, reason) = match error {
        JsonError::UnknownField { path, message } => {
            (path.clone(), format!("{message} has no field of this name"))
        }
        JsonError::Invalid { path, reason } => (path.clone(), reason.clone()),
        other => (String::new(), other.to_string()),
    };
    Invalid {
        resource: "bootstrap".to_owned(),
        field,
        reason,
    }
}

fn each<M, T>(
    messages: &[M],
    field: &str,
    unsupported: &mut Vec<(String, Vec<Unsupported>)>,
    convert: impl Fn(&M) -> Result<Converted<T>, Invalid>,
) -> Result<Vec<T>, Invalid> {
    let mut values = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let converted = convert(message)?;
        if !converted.unsupported.is_empty() {
            let resource = format!("static_resources.{field}[{i}]");
            unsupported.push((resource, converted.unsupported));
        }
        values.push(converted.value);
    }
    Ok(values)
}

/// A static listener needs no name; its address then stands for it.
fn named(m: &proto::Listener) -> proto::Listener {
    let mut m = m.clone();
    if m.name.is_empty() {
        let mut cx = Cx::new("listener", "");
        if let Ok(address) = socket_addr(&mut cx, "address", m.address.as_ref()) {
            m.name = address.to_string();
        }
    }
    m
}

fn is_unchecked(m: &proto::Listener) -> bool {
    fn off(value: &Value) -> bool {
        match value {
            Value::Object(fields) => {
                fields.get("validate_clusters") == Some(&Value::Bool(false))
                    || fields.values().any(off)
            }
            Value::Array(items) => items.iter().any(off),
            _ => false,
        }
    }
    json::to_value(m).is_ok_and(|value| off(&value))
}

fn admin(cx: &mut Cx, m: Option<&pb::Admin>) -> Result<Option<Admin>, Invalid> {
    let Some(m) = m.filter(|m| m.address.is_some()) else {
        return Ok(None);
    };
    cx.at("admin", |cx| {
        let logs = super::access_log::convert(cx, "access_log", &m.access_log)?;
        #[expect(deprecated, reason = "it is how the examples are written")]
        let path = Some(m.access_log_path.as_str()).filter(|p| !p.is_empty());
        let path = path.or(logs.first().map(|log| log.path.as_str()));
        Ok(Some(Admin {
            address: socket_addr(cx, "address", m.address.as_ref())?,
            access_log_path: path.map(Into::into),
        }))
    })
}

fn dynamic(cx: &mut Cx, m: &DynamicResources) -> Result<Option<Dynamic>, Invalid> {
    let ads = match &m.ads_config {
        Some(config) => Some(cx.at("ads_config", |cx| server(cx, config))?),
        None => None,
    };
    let mut found = ads.clone();
    for (field, config) in [("lds_config", &m.lds_config), ("cds_config", &m.cds_config)] {
        if let Some(config) = config {
            let server = cx.at(field, |cx| source(cx, config, ads.as_deref()))?;
            if found.as_ref().is_some_and(|first| *first != server) {
                return Err(cx.bad(field, "all resources must come from one control plane"));
            }
            found = Some(server);
        }
    }
    Ok(found.map(|server| Dynamic {
        server,
        listeners: m.lds_config.is_some(),
        clusters: m.cds_config.is_some(),
    }))
}

fn source(cx: &mut Cx, m: &ConfigSource, ads: Option<&str>) -> Result<String, Invalid> {
    match &m.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) => match ads {
            Some(server) => Ok(server.to_owned()),
            None => Err(cx.bad("ads", "ads_config is missing")),
        },
        Some(ConfigSourceSpecifier::ApiConfigSource(config)) => {
            cx.at("api_config_source", |cx| server(cx, config))
        }
        Some(_) => Err(cx.invalid("only ads and api_config_source are supported")),
        None => Err(cx.invalid("a source is required")),
    }
}

/// The cluster of the control plane.
fn server(cx: &mut Cx, m: &ApiConfigSource) -> Result<String, Invalid> {
    match enumeration(cx, "api_type", m.api_type)? {
        ApiType::Grpc | ApiType::DeltaGrpc => {
            cx.note(
                "api_type",
                "resources come by the incremental aggregated stream",
            );
        }
        ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc => {}
        _ => {
            return Err(cx.bad("api_type", "polling by REST is not supported, use GRPC"));
        }
    }
    let mut services = m
        .grpc_services
        .iter()
        .filter_map(|s| s.target_specifier.as_ref());
    let named = match services.next() {
        Some(TargetSpecifier::EnvoyGrpc(service)) => Some(service.cluster_name.clone()),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(cx.bad(
                "grpc_services",
                "google_grpc is not supported, use envoy_grpc",
            ));
        }
        None => m.cluster_names.first().cloned(),
    };
    named
        .filter(|name| !name.is_empty())
        .ok_or_else(|| cx.bad("grpc_services", "names no cluster"))
}
