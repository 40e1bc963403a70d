//! What is done to a request's head before it is routed: host and path are checked and brought into the form
//! that routes match, hop-by-hop headers taken off, forwarding headers put into order.
//!
//! Input: a head as the client sent it, and how its connection is served. Output: the same head, changed, or why it
//! is refused. Called by `http::stream` for every request and by `simulate`; no state, no I/O.

use std::net::IpAddr;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version, header};

use super::headers::{self, Origin, Refused};
use super::path;
use crate::flags::details;
use crate::resource::HttpConnectionManager;
use crate::route::match_vhost::strip_port;
use crate::upstream::attempt::Outgoing;

/// A head that is refused as not valid.
pub(super) fn bad(details: &'static str) -> Refused {
    Refused {
        status: StatusCode::BAD_REQUEST,
        details,
    }
}

/// Headers and host of a request from `peer`.
///
/// # Errors
/// Where it has no host, or one that is none, or a header that cannot be taken off.
pub fn admit(
    head: &mut Outgoing,
    hcm: &HttpConnectionManager,
    peer: IpAddr,
    version: Version,
) -> Result<Origin, Refused> {
    let headers = &mut head.headers;
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(bad(details::MULTIPLE_HOSTS));
    }
    if head.authority.is_empty() {
        return Err(bad(details::MISSING_HOST));
    }
    if !headers::is_authority(&head.authority) {
        return Err(bad(details::INVALID_AUTHORITY));
    }
    headers.remove(header::HOST);
    if version < Version::HTTP_2 {
        head.upgrade = headers::upgrade_of(&head.method, headers);
    }
    headers::strip_request_hops(headers)?;
    let origin = headers::sanitise(headers, hcm, peer);
    if hcm.strip_any_host_port
        && let Ok(text) = head.authority.to_str()
        && let Ok(value) = HeaderValue::from_str(strip_port(text))
    {
        head.authority = value;
    }
    Ok(origin)
}

/// The path in the form that routes match.
///
/// # Errors
/// Where it is no absolute path.
pub fn normalise(head: &mut Outgoing, hcm: &HttpConnectionManager) -> Result<(), Refused> {
    let text = head.path.as_str();
    if head.method == Method::CONNECT || text == "*" {
        return Ok(());
    }
    let refused = bad(details::ABSOLUTE_PATH_REJECTED);
    if !text.starts_with('/') {
        return Err(refused);
    }
    if hcm.normalize_path || hcm.merge_slashes {
        let normal = path::normalise(text, hcm.merge_slashes).ok_or(refused)?;
        if normal != text {
            head.path = PathAndQuery::try_from(normal.as_ref()).map_err(|_| refused)?;
        }
    }
    Ok(())
}
