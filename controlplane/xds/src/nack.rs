//! NACKs: from rejected resources to the `google.rpc.Status` of a request, and back.
//!
//! The message is for people and for servers that only log it; the details carry each bad
//! resource as `envoy.service.discovery.v3.ResourceError`, so that our pilot knows them by name.
//! Used by the clients' and servers' state machines.

use crate::proto::envoy::service::discovery::v3::{ResourceError as WireError, ResourceName};
use crate::proto::{self, Status};
use crate::resource::ResourceError;

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// Resources spelled out in a NACK; a response may hold thousands, and the first ones tell what
/// is wrong.
const MAX_LISTED: usize = 50;

/// The status that rejects these resources by name.
pub fn status(rejected: &[ResourceError]) -> Status {
    let listed = &rejected[..rejected.len().min(MAX_LISTED)];
    let mut lines: Vec<String> = listed.iter().map(ToString::to_string).collect();
    if rejected.len() > listed.len() {
        lines.push(format!("and {} more", rejected.len() - listed.len()));
    }
    Status {
        code: INVALID_ARGUMENT,
        message: lines.join("\n"),
        details: listed.iter().map(detail).collect(),
    }
}

/// The bad resources that a NACK names; empty when the client does not do so.
pub fn rejected(status: &Status) -> Vec<ResourceError> {
    status
        .details
        .iter()
        .filter_map(|any| proto::unpack::<WireError>(any).ok())
        .map(|error| ResourceError {
            name: error.resource_name.unwrap_or_default().name,
            message: error.error_detail.unwrap_or_default().message,
        })
        .collect()
}

fn detail(error: &ResourceError) -> proto::Any {
    proto::pack(&WireError {
        resource_name: Some(ResourceName {
            name: error.name.clone(),
            ..Default::default()
        }),
        error_detail: Some(Status {
            code: INVALID_ARGUMENT,
            message: error.message.clone(),
            details: Vec::new(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(count: usize) -> Vec<ResourceError> {
        (0..count)
            .map(|n| ResourceError {
                name: format!("r{n}"),
                message: "bad".into(),
            })
            .collect()
    }

    #[test]
    fn nack_names_the_bad_resources_for_people_and_programs() {
        let status = status(&errors(2));
        assert_eq!(status.message, "r0: bad\nr1: bad");
        assert_eq!(rejected(&status), errors(2));
    }

    #[test]
    fn nack_of_many_resources_stays_small() {
        let status = status(&errors(1000));
        assert!(status.message.ends_with("and 950 more"));
        assert_eq!(rejected(&status).len(), MAX_LISTED);
    }
}
