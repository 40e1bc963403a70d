//! `config.istio.io/v1alpha2` `EgressRule`, the seed-era form.

use serde::Deserialize;

use super::{IstioService, Metadata};

/// An `EgressRule`.
#[derive(Clone, Debug, Deserialize)]
pub struct EgressRule {
    /// The metadata.
    pub metadata: Metadata,
    /// The specification.
    pub spec: EgressRuleSpec,
}

/// What an `EgressRule` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct EgressRuleSpec {
    #[serde(alias = "use_egress_proxy")]
    pub use_egress_proxy: bool,
    pub destination: IstioService,
    pub ports: Vec<EgressPort>,
}

/// A port of an `EgressRule`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are Istio's, documented there")]
pub struct EgressPort {
    pub port: u32,
    pub protocol: String,
}
