//! `networking.istio.io` `Gateway`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Metadata, SidecarPort, Unexecuted};

/// An Istio `Gateway`.
#[derive(Clone, Debug, Deserialize)]
pub struct IstioGateway {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: IstioGatewaySpec,
    #[serde(default, rename = "status")]
    _status: Option<Unexecuted>,
}

/// What an Istio `Gateway` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct IstioGatewaySpec {
    pub selector: BTreeMap<String, String>,
    pub servers: Vec<GatewayServer>,
}

/// A port of an Istio `Gateway`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct GatewayServer {
    pub port: Option<SidecarPort>,
    pub hosts: Vec<String>,
    pub bind: Option<String>,
    pub name: Option<String>,
    pub default_endpoint: Option<String>,
    pub tls: Option<Unexecuted>,
}
