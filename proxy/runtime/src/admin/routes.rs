//! The route table: method and path pattern → handler, with path parameters and query values.
//!
//! A pattern is a path whose segments may be `{name}`, which match one segment, percent-decoded. A path that
//! exists under another method is answered 405 with `Allow`, an unknown one 404 with the table.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode, Uri};
use serde::Serialize;

use super::Body;

/// An admin answer.
pub type Response = http::Response<Body>;

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = Box<dyn Fn(Request) -> Answer + Send + Sync>;
type Observer = Box<dyn Fn(&Method, &Uri, StatusCode) + Send + Sync>;

/// A request that matched a route.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Path parameters by name, percent-decoded.
    pub params: BTreeMap<String, String>,
    /// Query values by name, percent-decoded, in order of appearance.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A path parameter; empty when the pattern has none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// The first query value of that name; empty for a bare `?name`.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Builds answers.
#[derive(Debug)]
pub struct Reply;

impl Reply {
    /// Plain text with `status`.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Response {
        Self::with_type(status, "text/plain; charset=utf-8", body)
    }

    /// A JSON document with `status`, indented for people.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        match serde_json::to_vec_pretty(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self::with_type(status, "application/json", body)
            }
            Err(error) => Self::text(500, format!("answer cannot be encoded: {error}\n")),
        }
    }

    /// Any body with `status` and a content type.
    pub fn with_type(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
        let mut response = Response::new(Body::new(body.into()));
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(
            CACHE_CONTROL,
            HeaderValue::from_static("no-cache, max-age=0"),
        );
        response
    }
}

struct Route {
    method: Method,
    pattern: String,
    help: String,
    handler: Handler,
}

/// The table of an admin server.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Route>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.routes.iter().map(|route| &route.pattern))
            .finish()
    }
}

impl Routes {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route; `help` is what the table at `/` says about it.
    #[must_use]
    pub fn route<F, Fut>(mut self, method: Method, pattern: &str, help: &str, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        self.routes.push(Route {
            method,
            pattern: pattern.to_owned(),
            help: help.to_owned(),
            handler: Box::new(move |request| Box::pin(handler(request))),
        });
        self
    }

    /// Adds a `GET` route.
    #[must_use]
    pub fn get<F, Fut>(self, pattern: &str, help: &str, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::GET, pattern, help, handler)
    }

    /// Adds all routes of another table.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    /// Has `observer` told of every answer, for an access log.
    #[must_use]
    pub fn observed(
        mut self,
        observer: impl Fn(&Method, &Uri, StatusCode) + Send + Sync + 'static,
    ) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Answers one request.
    pub async fn dispatch(&self, method: &Method, uri: &Uri, body: Bytes) -> Response {
        let response = self.answer(method, uri, body).await;
        if let Some(observer) = &self.observer {
            observer(method, uri, response.status());
        }
        response
    }

    async fn answer(&self, method: &Method, uri: &Uri, body: Bytes) -> Response {
        let mut allowed = Vec::new();
        for route in &self.routes {
            let Some(params) = match_path(&route.pattern, uri.path()) else {
                continue;
            };
            let head = *method == Method::HEAD && route.method == Method::GET;
            if route.method == *method || head {
                let request = Request {
                    params,
                    query: parse_query(uri.query().unwrap_or_default()),
                    body,
                };
                return (route.handler)(request).await;
            }
            allowed.push(route.method.as_str());
        }
        if !allowed.is_empty() {
            return not_allowed(&allowed);
        }
        let status = if uri.path() == "/" { 200 } else { 404 };
        Reply::text(status, self.table())
    }

    fn table(&self) -> String {
        let lines: Vec<String> = self
            .routes
            .iter()
            .map(|route| {
                let method = route.method.as_str();
                format!("  {method:6} {}  {}", route.pattern, route.help)
            })
            .collect();
        format!("admin routes:\n{}\n", lines.join("\n"))
    }
}

fn not_allowed(allowed: &[&str]) -> Response {
    let allow = allowed.join(", ");
    let mut response = Reply::text(405, format!("method not allowed, use {allow}\n"));
    if let Ok(value) = HeaderValue::from_str(&allow) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

fn match_path(pattern: &str, path: &str) -> Option<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    let mut wanted = pattern.split('/');
    let mut given = path.split('/');
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(wanted), Some(given)) => {
                if let Some(name) = wanted.strip_prefix('{').and_then(|n| n.strip_suffix('}')) {
                    if given.is_empty() {
                        return None;
                    }
                    params.insert(name.to_owned(), percent_decode(given, false));
                } else if wanted != given {
                    return None;
                }
            }
            _ => return None,
        }
    }
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        })
        .collect()
}

/// Decodes `%XX` (and `+` in queries); a malformed escape stays as it is.
fn percent_decode(text: &str, plus: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match bytes[at] {
            b'%' => {
                if let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2)) {
                    out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                    at += 3;
                    continue;
                }
                out.push(b'%');
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
