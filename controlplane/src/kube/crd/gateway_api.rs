//! `gateway.networking.k8s.io`: routes, `ReferenceGrant`, and gateways.

use serde::Deserialize;

use super::{Metadata, Unexecuted};

/// Any kind of the group.
#[derive(Clone, Debug, Deserialize)]
pub struct ApiObject<S> {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: S,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What an `HTTPRoute` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HttpRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub use_default_gateways: Option<Unexecuted>,
    pub hostnames: Vec<String>,
    pub rules: Vec<HttpRouteRule>,
}

/// What a route belongs to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub section_name: Option<String>,
    pub port: Option<u32>,
}

/// One rule of an `HTTPRoute`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HttpRouteRule {
    pub name: Option<String>,
    pub matches: Vec<HttpRouteMatch>,
    pub filters: Vec<HttpRouteFilter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<RouteTimeouts>,
    pub retry: Option<RouteRetry>,
    pub session_persistence: Option<Unexecuted>,
}

/// Conditions on a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HttpRouteMatch {
    pub path: Option<PathMatch>,
    pub headers: Vec<NamedMatch>,
    pub query_params: Vec<NamedMatch>,
    pub method: Option<String>,
}

/// A condition on a path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct PathMatch {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub value: Option<String>,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct NamedMatch {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub name: String,
    pub value: String,
}

/// What happens to a request or response on its way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HttpRouteFilter {
    #[serde(rename = "type")]
    pub kind: String,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_redirect: Option<RequestRedirect>,
    pub url_rewrite: Option<UrlRewrite>,
    pub request_mirror: Option<Unexecuted>,
    pub cors: Option<Unexecuted>,
    pub external_auth: Option<Unexecuted>,
    pub extension_ref: Option<Unexecuted>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HeaderModifier {
    pub set: Vec<HeaderValue>,
    pub add: Vec<HeaderValue>,
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct HeaderValue {
    pub name: String,
    pub value: String,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct RequestRedirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
    pub port: Option<u32>,
    pub status_code: Option<u16>,
}

/// Changes of path and host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct UrlRewrite {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct PathModifier {
    #[serde(rename = "type")]
    pub kind: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

/// Where requests or connections go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct BackendRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u32>,
    pub weight: Option<i64>,
    pub filters: Vec<HttpRouteFilter>,
}

/// Times for a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct RouteTimeouts {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}

/// How failures are retried.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct RouteRetry {
    pub codes: Vec<u32>,
    pub attempts: Option<u32>,
    pub backoff: Option<Unexecuted>,
}

/// What a `GRPCRoute` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrpcRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub use_default_gateways: Option<Unexecuted>,
    pub hostnames: Vec<String>,
    pub rules: Vec<GrpcRouteRule>,
}

/// One rule of a `GRPCRoute`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrpcRouteRule {
    pub name: Option<String>,
    pub matches: Vec<GrpcRouteMatch>,
    pub filters: Vec<HttpRouteFilter>,
    pub backend_refs: Vec<BackendRef>,
    pub session_persistence: Option<Unexecuted>,
}

/// Conditions on a call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrpcRouteMatch {
    pub method: Option<GrpcMethod>,
    pub headers: Vec<NamedMatch>,
}

/// A condition on a call's service and method.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrpcMethod {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub service: Option<String>,
    pub method: Option<String>,
}

/// What a `TCPRoute` or a `TLSRoute` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct ConnectionRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub use_default_gateways: Option<Unexecuted>,
    pub hostnames: Vec<String>,
    pub rules: Vec<ConnectionRouteRule>,
}

/// One rule of a `TCPRoute` or a `TLSRoute`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct ConnectionRouteRule {
    pub name: Option<String>,
    pub backend_refs: Vec<BackendRef>,
}

/// What a `ReferenceGrant` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct ReferenceGrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

/// Who may refer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

/// What may be referred to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GrantTo {
    pub group: String,
    pub kind: String,
    pub name: Option<String>,
}

/// What a `Gateway` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<GatewayListener>,
    pub addresses: Option<Unexecuted>,
    pub infrastructure: Option<Unexecuted>,
    pub allowed_listeners: Option<Unexecuted>,
    pub tls: Option<Unexecuted>,
    pub default_scope: Option<Unexecuted>,
}

/// A port of a `Gateway`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GatewayListener {
    pub name: String,
    pub hostname: Option<String>,
    pub port: u32,
    pub protocol: String,
    pub tls: Option<Unexecuted>,
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Which routes a listener takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct AllowedRoutes {
    pub namespaces: Option<RouteNamespaces>,
    pub kinds: Option<Unexecuted>,
}

/// The namespaces of routes that a listener takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct RouteNamespaces {
    pub from: Option<String>,
    pub selector: Option<Unexecuted>,
}

/// What a `GatewayClass` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are the Gateway API's, documented there"
)]
pub struct GatewayClassSpec {
    pub controller_name: String,
    pub parameters_ref: Option<Unexecuted>,
    pub description: Option<String>,
}
