//! `networking.istio.io` `VirtualService`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Metadata, Unexecuted};

/// A `VirtualService`.
#[derive(Clone, Debug, Deserialize)]
pub struct VirtualService {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: VirtualServiceSpec,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What a `VirtualService` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct VirtualServiceSpec {
    pub hosts: Vec<String>,
    pub gateways: Vec<String>,
    pub http: Vec<HttpRoute>,
    pub tls: Vec<TlsRoute>,
    pub tcp: Vec<TcpRoute>,
    pub export_to: Vec<String>,
}

/// One HTTP route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpRoute {
    pub name: String,
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    pub route: Vec<HttpDestination>,
    pub redirect: Option<Redirect>,
    pub direct_response: Option<DirectResponse>,
    pub delegate: Option<Delegate>,
    pub rewrite: Option<Rewrite>,
    pub timeout: Option<String>,
    pub retries: Option<Retries>,
    pub fault: Option<Fault>,
    pub mirror: Option<Unexecuted>,
    pub mirrors: Option<Unexecuted>,
    pub mirror_percent: Option<Unexecuted>,
    #[serde(alias = "mirror_percent")]
    pub mirror_percentage: Option<Unexecuted>,
    pub cors_policy: Option<Unexecuted>,
    pub headers: Option<Headers>,
}

/// Failures that are made on purpose.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Fault {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
}

/// A delay before a request is sent on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Delay {
    pub fixed_delay: Option<String>,
    pub exponential_delay: Option<Unexecuted>,
    pub percentage: Option<Percentage>,
    pub percent: Option<i64>,
}

/// An answer in the place of the server's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Abort {
    pub http_status: Option<i64>,
    pub grpc_status: Option<String>,
    pub http2_error: Option<Unexecuted>,
    pub percentage: Option<Percentage>,
}

/// Of 100 requests so many.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Percentage {
    pub value: f64,
}

/// The `VirtualService` that says more of a route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Delegate {
    pub name: String,
    pub namespace: Option<String>,
}

/// Conditions on a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpMatch {
    pub name: String,
    pub uri: Option<StringMatch>,
    pub ignore_uri_case: bool,
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    pub headers: BTreeMap<String, StringMatch>,
    pub without_headers: BTreeMap<String, StringMatch>,
    pub query_params: BTreeMap<String, StringMatch>,
    pub port: Option<u16>,
    pub source_labels: Option<Unexecuted>,
    pub source_namespace: Option<String>,
    pub gateways: Vec<String>,
    pub stat_prefix: Option<Unexecuted>,
}

/// How a text is compared; all absent means that it need only be there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct StringMatch {
    pub exact: Option<String>,
    pub prefix: Option<String>,
    pub regex: Option<String>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpDestination {
    pub destination: Destination,
    pub weight: Option<i64>,
    pub headers: Option<Headers>,
}

/// A service, some of its endpoints, and a port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Destination {
    pub host: String,
    pub subset: Option<String>,
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct PortSelector {
    pub number: u16,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Redirect {
    pub uri: Option<String>,
    pub authority: Option<String>,
    pub scheme: Option<String>,
    pub port: Option<u16>,
    pub derive_port: Option<String>,
    pub redirect_code: Option<u16>,
}

/// An answer by the proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct DirectResponse {
    pub status: u16,
    #[serde(default)]
    pub body: Option<Body>,
}

/// The body of an answer by the proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Body {
    pub string: Option<String>,
    pub bytes: Option<String>,
}

/// Changes of path and authority.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Rewrite {
    pub uri: Option<String>,
    pub authority: Option<String>,
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A pattern and its substitution.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct RegexRewrite {
    #[serde(rename = "match")]
    pub pattern: String,
    pub rewrite: String,
}

/// How failures are retried.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Retries {
    pub attempts: u32,
    pub per_try_timeout: Option<String>,
    pub retry_on: Option<String>,
    pub retry_remote_localities: Option<bool>,
    pub retry_ignore_previous_hosts: Option<bool>,
    pub backoff: Option<Unexecuted>,
}

/// Changes of headers, both ways.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct Headers {
    pub request: HeaderOperations,
    pub response: HeaderOperations,
}

/// Changes of headers, one way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HeaderOperations {
    pub set: BTreeMap<String, String>,
    pub add: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

/// One TCP route.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct TcpRoute {
    #[serde(rename = "match")]
    pub matches: Vec<TcpMatch>,
    pub route: Vec<TcpDestination>,
}

/// Conditions on a connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct TcpMatch {
    pub port: Option<u16>,
    pub destination_subnets: Option<Unexecuted>,
    pub source_labels: Option<Unexecuted>,
    pub source_namespace: Option<String>,
    pub source_subnet: Option<Unexecuted>,
    pub gateways: Vec<String>,
}

/// One route of TLS connections, by the server name that clients ask for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct TlsRoute {
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    pub route: Vec<TcpDestination>,
}

/// Conditions on a TLS connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct TlsMatch {
    pub sni_hosts: Vec<String>,
    pub port: Option<u16>,
    pub destination_subnets: Option<Unexecuted>,
    pub source_labels: Option<Unexecuted>,
    pub source_namespace: Option<String>,
    pub gateways: Vec<String>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct TcpDestination {
    pub destination: Destination,
    pub weight: Option<i64>,
}
