//! Answers that the proxy gives itself.
//!
//! To a gRPC call an answer is a gRPC status (200 with `grpc-status`, no body), to everybody else
//! a status with a short text, as in Envoy.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

/// `grpc-status`.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the proxy's own.
pub fn reply(status: StatusCode, body: Bytes, grpc: bool) -> Response<Bytes> {
    if grpc {
        return grpc_reply(status, &body);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if !response.body().is_empty() {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn grpc_reply(status: StatusCode, message: &[u8]) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(status)));
    if let Ok(value) = HeaderValue::from_str(&percent_encode(message)) {
        headers.insert(GRPC_MESSAGE, value);
    }
    response
}

/// The gRPC status of an HTTP status (gRPC's `http-grpc-status-mapping`).
pub fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2, "Responses").
fn percent_encode(message: &[u8]) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b'%' => out.push_str("%25"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => {
                out.push('%');
                for digit in [byte >> 4, byte & 0xf] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
    out
}
