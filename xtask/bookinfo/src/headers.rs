//! Which request headers a service passes on to the services it calls.
//!
//! Without this a mesh sees the hops of one request as unrelated requests: the proxy adds trace
//! headers to what arrives, and only the application knows which outgoing call it causes.

use http::HeaderMap;

/// Trace context of every common format, the request's id, and what identifies its user.
const FORWARDED: [&str; 20] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "traceparent",
    "tracestate",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "sw8",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
];

/// The headers of an outgoing call that is made on behalf of `request`.
pub(crate) fn forward_headers(request: &HeaderMap) -> HeaderMap {
    let mut forwarded = HeaderMap::new();
    for name in FORWARDED {
        for value in request.get_all(name) {
            forwarded.append(name, value.clone());
        }
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_context_and_user_travel_on_and_nothing_else() {
        let mut request = HeaderMap::new();
        for name in [
            "x-request-id",
            "x-b3-traceid",
            "traceparent",
            "tracestate",
            "end-user",
        ] {
            request.insert(name, http::HeaderValue::from_static("1"));
        }
        request.insert("accept", http::HeaderValue::from_static("*/*"));
        request.insert("host", http::HeaderValue::from_static("productpage"));
        let forwarded = forward_headers(&request);
        assert_eq!(forwarded.len(), 5);
        assert!(!forwarded.contains_key("host") && !forwarded.contains_key("accept"));
    }
}
