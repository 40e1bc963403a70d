//! Request and response headers on their way through: hop-by-hop headers, `x-envoy-*`,
//! `x-forwarded-*` and request ids, as Istio's sidecar has them.

use std::net::IpAddr;

use http::header::{self, Entry};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::flags::details;
use crate::resource::HttpConnectionManager;
use crate::trace;

/// `x-forwarded-for`.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `x-forwarded-proto`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `x-forwarded-host`.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `x-envoy-internal`.
const ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
/// `keep-alive`.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `proxy-connection`.
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers by which a caller tells this proxy what to do; from others than trusted callers they
/// are taken off (Envoy's `ConnectionManagerUtility::cleanInternalHeaders`).
const INTERNAL_ONLY: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// Headers that only an edge takes off.
const EDGE_ONLY: [HeaderName; 4] = [
    HeaderName::from_static("x-envoy-external-address"),
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-downstream-service-cluster"),
    HeaderName::from_static("x-envoy-downstream-service-node"),
];

/// Why a request is refused for its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Status of the answer.
    pub status: StatusCode,
    /// Details of the answer.
    pub details: &'static str,
}

/// Checks how an HTTP/1.1 request is framed, beyond what hyper refuses itself (what is not
/// `chunked` at its end) and `framing` finds (two lengths): one coding, and none but `chunked`
/// (RFC 9112 sections 6.1 and 6.3).
///
/// # Errors
/// Where the body's length could be read in two ways, or its coding is not known.
pub fn check_framing(headers: &HeaderMap) -> Result<(), Refused> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some() {
        return Err(Refused {
            status: StatusCode::BAD_REQUEST,
            details: details::HTTP1_BAD_TRANSFER_ENCODING,
        });
    }
    if !chunked {
        return Err(Refused {
            status: StatusCode::NOT_IMPLEMENTED,
            details: details::HTTP1_BAD_TRANSFER_ENCODING,
        });
    }
    Ok(())
}

/// Whether an authority is a host and a port to everybody: of what RFC 3986 section 3.2 allows, neither a
/// user (RFC 9110 section 4.2.4) nor a comma, which joins two headers into one.
pub fn is_authority(value: &HeaderValue) -> bool {
    let is = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    !value.is_empty() && value.as_bytes().iter().all(is)
}

/// Takes hop-by-hop headers off a request, those that `Connection` names included. `te: trailers`
/// stays, as gRPC needs it.
///
/// # Errors
/// Where `Connection` names a header that carries what other hops rely on.
pub fn strip_request_hops(headers: &mut HeaderMap) -> Result<(), Refused> {
    if headers.contains_key(header::CONNECTION) {
        strip_nominated(headers)?;
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    // The proxy answers 100 itself once the upstream takes the body.
    headers.remove(header::EXPECT);
    if let Some(te) = headers.get(header::TE) {
        let trailers = te
            .as_bytes()
            .split(|b| *b == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    Ok(())
}

fn strip_nominated(headers: &mut HeaderMap) -> Result<(), Refused> {
    let mut nominated = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',') {
            let token = token.trim_ascii();
            let known = [&b"close"[..], b"keep-alive", b"te", b"upgrade"];
            if token.is_empty() || known.iter().any(|k| token.eq_ignore_ascii_case(k)) {
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(token) else {
                continue;
            };
            let needed = [
                header::HOST,
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                FORWARDED_FOR,
                FORWARDED_HOST,
                FORWARDED_PROTO,
            ];
            if needed.contains(&name) {
                return Err(Refused {
                    status: StatusCode::BAD_REQUEST,
                    details: "invalid_connection_header",
                });
            }
            nominated.push(name);
        }
    }
    headers.remove(header::CONNECTION);
    for name in nominated {
        headers.remove(name);
    }
    Ok(())
}

/// Takes hop-by-hop headers off a response.
pub fn strip_response_hops(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        if let Err(refused) = strip_nominated(headers) {
            tracing::debug!(?refused, "a response nominates what it must not");
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
}

/// Joins the crumbs of a cookie that HTTP/2 may split (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = [first.as_bytes(), b"; ", second.as_bytes()].concat();
    for crumb in crumbs {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Where a request came from, in Envoy's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client, as far as it can be trusted.
    pub remote: IpAddr,
    /// Whether the caller may steer this proxy by `x-envoy-*`.
    pub internal: bool,
}

/// Brings `x-forwarded-*`, `x-envoy-*` and `x-request-id` into the state in which filters and
/// routes see them (Envoy's `ConnectionManagerUtility::mutateRequestHeaders`).
pub fn sanitise(headers: &mut HeaderMap, hcm: &HttpConnectionManager, peer: IpAddr) -> Origin {
    let (remote, trusted) = if hcm.use_remote_address {
        let first = !headers.contains_key(FORWARDED_FOR);
        append_forwarded_for(headers, peer);
        (peer, first)
    } else {
        from_forwarded_for(headers, hcm.xff_num_trusted_hops).unwrap_or((peer, false))
    };
    let internal = trusted && is_private(remote);
    let edge = hcm.use_remote_address && !internal;
    clean_envoy(headers, internal, edge);
    if let Entry::Vacant(proto) = headers.entry(FORWARDED_PROTO) {
        proto.insert(HeaderValue::from_static("http"));
    }
    let keep_id = !edge || hcm.preserve_external_request_id;
    if hcm.generate_request_id && !(keep_id && headers.contains_key(trace::REQUEST_ID)) {
        let id = trace::request_id(&mut fastrand::Rng::new());
        headers.insert(trace::REQUEST_ID, id);
    }
    Origin { remote, internal }
}

fn clean_envoy(headers: &mut HeaderMap, internal: bool, edge: bool) {
    let any = headers
        .keys()
        .any(|name| name.as_str().starts_with("x-envoy-"));
    if any && !internal {
        headers.remove(ENVOY_INTERNAL);
        for name in &INTERNAL_ONLY {
            headers.remove(name);
        }
        if edge {
            for name in &EDGE_ONLY {
                headers.remove(name);
            }
        }
    }
    if internal {
        headers.insert(ENVOY_INTERNAL, HeaderValue::from_static("true"));
    }
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    let text = match headers.get(FORWARDED_FOR).and_then(|v| v.to_str().ok()) {
        Some(before) => format!("{before},{peer}"),
        None => peer.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// The address that stands `hops` before the last, and whether it is the only one.
fn from_forwarded_for(headers: &HeaderMap, hops: u32) -> Option<(IpAddr, bool)> {
    let value = headers.get(FORWARDED_FOR)?.to_str().ok()?;
    let address = value.rsplit(',').nth(hops as usize)?.trim();
    Some((address.parse().ok()?, !value.contains(',')))
}

/// Private ranges as Envoy's `isInternalAddress` has them: RFC 1918, RFC 4193 and loopback.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback(),
    }
}

/// The protocol that a request asks to switch to, where it does so correctly.
pub fn upgrade_of(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    if *method == Method::CONNECT {
        return None;
    }
    let protocol = headers.get(header::UPGRADE)?;
    let asked = headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    // h2c is refused by ignoring it, as RFC 9113 section 3.1 does away with it.
    let h2c = protocol
        .as_bytes()
        .get(..3)
        .is_some_and(|p| p.eq_ignore_ascii_case(b"h2c"));
    (asked && !h2c).then(|| protocol.clone())
}
