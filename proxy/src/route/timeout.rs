//! Which timeouts a request gets: the route's, changed by `x-envoy-*` headers of trusted callers.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::resource::{RetryPolicy, RouteAction};

/// `x-envoy-upstream-rq-timeout-ms`.
pub const RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
/// `x-envoy-upstream-rq-per-try-timeout-ms`.
pub const PER_TRY_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
/// `x-envoy-expected-rq-timeout-ms`, told to the upstream.
pub const EXPECTED_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Bounds of one request; `None` is unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response.
    pub global: Option<Duration>,
    /// Of each try.
    pub per_try: Option<Duration>,
}

impl Timeouts {
    /// The bounds for a request; its headers count only where `internal`, that is where they
    /// were not taken off on the way in.
    pub fn of(
        action: &RouteAction,
        retry: Option<&RetryPolicy>,
        headers: &HeaderMap,
        internal: bool,
    ) -> Self {
        let mut global = positive(action.timeout);
        let mut per_try = retry.and_then(|r| r.per_try_timeout).and_then(positive);
        if internal {
            if let Some(value) = millis(headers, &RQ_TIMEOUT_MS) {
                global = positive(value);
            }
            if let Some(value) = millis(headers, &PER_TRY_TIMEOUT_MS) {
                per_try = positive(value);
            }
        }
        // A try that may take longer than all of them has no bound of its own.
        if let (Some(all), Some(one)) = (global, per_try)
            && one >= all
        {
            per_try = None;
        }
        Self { global, per_try }
    }

    /// What `x-envoy-expected-rq-timeout-ms` tells the upstream.
    pub fn expected(&self) -> Option<Duration> {
        self.per_try.or(self.global)
    }
}

fn positive(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn millis(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    headers
        .get(name)?
        .to_str()
        .ok()?
        .parse()
        .ok()
        .map(Duration::from_millis)
}
