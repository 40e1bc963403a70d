//! From Istio's objects to the model: the only place that judges their fields.
//!
//! Input: a CRD as it was written; output: the model's object, or none when an error was found, and
//! every finding with its field path. Pure, so that the registries, the admission webhook and `millctl analyze` give the
//! same answers.

mod destination_rule;
mod egress_rule;
mod fault;
mod fields;
mod gateway_api;
mod hash;
mod outlier;
mod route_rule;
mod service_entry;
mod shadow;
mod sidecar;
mod virtual_service;

pub use self::destination_rule::destination_rule;
pub use self::egress_rule::egress_rule;
pub use self::fields::{DEFAULT_RETRY_ON, parse_duration};
pub use self::gateway_api::{
    gateway, gateway_class, grpc_route, http_route, istio_gateway, reference_grant, tcp_route,
    tls_route,
};
pub use self::route_rule::route_rule;
pub use self::service_entry::{service_entry, workload_entry};
pub use self::sidecar::sidecar;
pub use self::virtual_service::virtual_service;

use crate::model::problem::{Finding, Severity};

/// An object after judgement.
#[derive(Debug)]
pub struct Validated<T> {
    /// The object; absent when a finding is an error.
    pub object: Option<T>,
    /// Everything there is to say about it.
    pub findings: Vec<Finding>,
}

impl<T> Validated<T> {
    /// An object that nothing is wrong with.
    pub fn good(object: T) -> Self {
        Self {
            object: Some(object),
            findings: Vec::new(),
        }
    }

    /// An object with findings; dropped when one of them is an error.
    pub fn judged(object: T, findings: Vec<Finding>) -> Self {
        let refused = findings
            .iter()
            .any(|finding| finding.severity == Severity::Error);
        Self {
            object: (!refused).then_some(object),
            findings,
        }
    }
}

#[cfg(test)]
mod tests;
