//! What a service answers.

use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::json;

/// A status with a body of JSON or HTML.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
}

impl Reply {
    pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, body.into()),
            Err(error) => Self::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// JSON that another service wrote.
    pub(crate) fn bytes(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            kind: "application/json",
            body,
        }
    }

    pub(crate) fn html(body: String) -> Self {
        Self {
            status: StatusCode::OK,
            kind: "text/html; charset=utf-8",
            body: body.into(),
        }
    }

    pub(crate) fn text(body: &'static str) -> Self {
        Self {
            status: StatusCode::OK,
            kind: "text/plain; charset=utf-8",
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    pub(crate) fn error(status: StatusCode, message: &str) -> Self {
        Self::bytes(status, json!({ "error": message }).to_string().into())
    }

    pub(crate) fn not_found() -> Self {
        Self::error(StatusCode::NOT_FOUND, "not found")
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, http::HeaderValue::from_static(self.kind));
        response
    }
}

/// The parts of a path, without empty ones.
pub(crate) fn segments(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .collect()
}
