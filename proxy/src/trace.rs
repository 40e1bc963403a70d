//! Trace context: which headers carry it, and request ids.
//!
//! W3C `traceparent` and `tracestate`, B3 (single and multiple) and `x-request-id` pass through
//! untouched; the proxy makes a request id where there is none. No span is exported.

use http::{HeaderName, HeaderValue};

/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A random UUID, version 4 (RFC 9562), as a header's value.
pub fn request_id(rng: &mut fastrand::Rng) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (rng.u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (index, byte) in text.iter_mut().enumerate() {
        if !matches!(index, 8 | 13 | 18 | 23) {
            shift -= 4;
            *byte = HEX[((bits >> shift) & 0xf) as usize];
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        let id = request_id(&mut fastrand::Rng::with_seed(7));
        let id = id.to_str().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&id.as_bytes()[19]));
        assert_eq!(id.matches('-').count(), 4);
        assert_ne!(
            id,
            request_id(&mut fastrand::Rng::with_seed(8))
                .to_str()
                .unwrap()
        );
    }
}
