//! `config.istio.io/v1alpha2` `RouteRule`, the seed-era form.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Metadata, StringMatch, Unexecuted};

/// A `RouteRule`.
#[derive(Clone, Debug, Deserialize)]
pub struct RouteRule {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: RouteRuleSpec,
}

/// What a `RouteRule` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct RouteRuleSpec {
    pub destination: IstioService,
    #[serde(default)]
    pub precedence: i32,
    #[serde(default, rename = "match")]
    pub condition: Option<MatchCondition>,
    #[serde(default)]
    pub route: Vec<DestinationWeight>,
    #[serde(default)]
    pub redirect: Option<HttpRedirect>,
    #[serde(default)]
    pub rewrite: Option<HttpRewrite>,
    #[serde(default)]
    pub websocket_upgrade: Option<bool>,
    #[serde(default)]
    pub http_req_timeout: Option<HttpTimeout>,
    #[serde(default)]
    pub http_req_retries: Option<HttpRetry>,
    #[serde(default)]
    pub http_fault: Option<Unexecuted>,
    #[serde(default)]
    pub l4_fault: Option<Unexecuted>,
    #[serde(default)]
    pub mirror: Option<Unexecuted>,
    #[serde(default)]
    pub cors_policy: Option<Unexecuted>,
    #[serde(default)]
    pub append_headers: BTreeMap<String, String>,
}

/// A service by its parts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct IstioService {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub domain: Option<String>,
    pub service: Option<String>,
    pub labels: Option<Unexecuted>,
}

/// Conditions on a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct MatchCondition {
    pub source: Option<Unexecuted>,
    pub tcp: Option<Unexecuted>,
    pub udp: Option<Unexecuted>,
    pub request: Option<MatchRequest>,
}

/// Conditions on a request's headers; `uri`, `scheme`, `method` and `authority` are among them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct MatchRequest {
    pub headers: BTreeMap<String, StringMatch>,
}

/// A group of endpoints and its share.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct DestinationWeight {
    pub destination: Option<IstioService>,
    pub labels: BTreeMap<String, LabelValue>,
    pub weight: Option<i64>,
}

/// A label's value. Numbers are read too, to explain the usual slip of putting `weight` here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "the forms are named by their types")]
pub enum LabelValue {
    Text(String),
    Number(i64),
    Other(f64),
    Truth(bool),
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpRedirect {
    pub uri: Option<String>,
    pub authority: Option<String>,
}

/// Changes of path and authority.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpRewrite {
    pub uri: Option<String>,
    pub authority: Option<String>,
}

/// Time for a response.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpTimeout {
    pub simple_timeout: Option<SimpleTimeout>,
    pub custom: Option<Unexecuted>,
}

/// A fixed time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SimpleTimeout {
    pub timeout: Option<String>,
    pub override_header_name: Option<Unexecuted>,
}

/// How failures are retried.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct HttpRetry {
    pub simple_retry: Option<SimpleRetry>,
    pub custom: Option<Unexecuted>,
}

/// A fixed number of tries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct SimpleRetry {
    pub attempts: u32,
    pub per_try_timeout: Option<String>,
    pub override_header_name: Option<Unexecuted>,
}
