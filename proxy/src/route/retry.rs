//! Whether a failed try is repeated, and when.
//!
//! Pure: [`RetryState`] holds what a request may still do; `upstream::router` asks it after each
//! try.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::resource::{RetryOn, RetryPolicy};

/// `x-envoy-retry-on`.
pub const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
/// `x-envoy-retry-grpc-on`.
pub const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
/// `x-envoy-max-retries`.
pub const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
/// `x-envoy-retriable-status-codes`.
pub const RETRIABLE_STATUS_CODES: HeaderName =
    HeaderName::from_static("x-envoy-retriable-status-codes");

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response's status and, on a response without body, its `grpc-status`.
    Response(StatusCode, Option<u32>),
    /// The connection could not be opened.
    ConnectFailure,
    /// HTTP/2 `REFUSED_STREAM`, or a GOAWAY that leaves the stream out.
    RefusedStream,
    /// Reset or closed; `sent` tells whether any of the request may have been received.
    Reset {
        /// Whether bytes of the request were sent.
        sent: bool,
    },
    /// The try's own timeout passed.
    PerTryTimeout,
    /// A circuit breaker is open.
    Overflow,
}

/// What a request may still repeat.
#[derive(Clone, Debug)]
pub struct RetryState {
    on: RetryOn,
    left: u32,
    tried: u32,
    codes: Vec<StatusCode>,
    base: Duration,
    max: Duration,
}

impl RetryState {
    /// The state at the beginning; `None` where nothing is ever repeated. Headers count only
    /// where `internal`, as Envoy removes them from external requests.
    pub fn new(policy: Option<&RetryPolicy>, headers: &HeaderMap, internal: bool) -> Option<Self> {
        let mut on = policy.map_or(RetryOn::default(), |p| p.on);
        let mut left = policy.map_or(1, |p| p.num_retries);
        let mut codes = policy.map_or_else(Vec::new, |p| p.retriable_status_codes.clone());
        if internal {
            let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
            if let Some(value) = text(RETRY_ON) {
                on = on.union(parse_on(value));
            }
            if let Some(value) = text(RETRY_GRPC_ON) {
                on = on.union(parse_on(value));
            }
            if let Some(value) = text(MAX_RETRIES).and_then(|v| v.parse().ok()) {
                left = value;
            }
            if let Some(value) = text(RETRIABLE_STATUS_CODES) {
                codes.extend(
                    value
                        .split(',')
                        .filter_map(|c| c.trim().parse::<StatusCode>().ok()),
                );
            }
        }
        if on == RetryOn::default() || left == 0 {
            return None;
        }
        let base = policy.map_or(Duration::from_millis(25), |p| p.base_interval);
        Some(Self {
            on,
            left,
            tried: 0,
            codes,
            base,
            max: policy.map_or(base * 10, |p| p.max_interval),
        })
    }

    /// What is repeated.
    pub fn on(&self) -> RetryOn {
        self.on
    }

    /// How often it may still be.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Further statuses that are repeated.
    pub fn statuses(&self) -> &[StatusCode] {
        &self.codes
    }

    /// Whether the policy names this outcome, whatever is left.
    pub fn wants(&self, outcome: Outcome) -> bool {
        let has = |condition| self.on.contains(condition);
        match outcome {
            Outcome::Response(status, grpc) => self.wants_status(status) || self.wants_grpc(grpc),
            Outcome::ConnectFailure => {
                has(RetryOn::CONNECT_FAILURE)
                    || has(RetryOn::FIVE_XX)
                    || has(RetryOn::RESET)
                    || has(RetryOn::RESET_BEFORE_REQUEST)
            }
            Outcome::RefusedStream => {
                has(RetryOn::REFUSED_STREAM) || has(RetryOn::FIVE_XX) || has(RetryOn::RESET)
            }
            Outcome::Reset { sent } => {
                has(RetryOn::FIVE_XX)
                    || has(RetryOn::GATEWAY_ERROR)
                    || has(RetryOn::RESET)
                    || (!sent && has(RetryOn::RESET_BEFORE_REQUEST))
            }
            Outcome::PerTryTimeout => {
                has(RetryOn::FIVE_XX) || has(RetryOn::GATEWAY_ERROR) || has(RetryOn::RESET)
            }
            Outcome::Overflow => false,
        }
    }

    /// Whether a retry is left. Counts it as taken.
    pub fn take(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.tried += 1;
        true
    }

    /// How long to wait before the retry just taken: fully jittered exponential back-off, as
    /// Envoy's: uniform in `0..min(base * (2^n - 1), max)`.
    pub fn backoff(&self) -> Duration {
        self.backoff_with(&mut fastrand::Rng::new())
    }

    /// As [`RetryState::backoff`], from a given source of randomness.
    pub fn backoff_with(&self, rng: &mut fastrand::Rng) -> Duration {
        let factor = (1u32 << self.tried.min(16)) - 1;
        let bound = self.base.saturating_mul(factor).min(self.max);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(rng.u64(0..micros))
    }

    fn wants_status(&self, status: StatusCode) -> bool {
        let has = |condition| self.on.contains(condition);
        (has(RetryOn::FIVE_XX) && status.is_server_error())
            || (has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504))
            || (has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT)
            || (has(RetryOn::RETRIABLE_STATUS_CODES) && self.codes.contains(&status))
    }

    fn wants_grpc(&self, status: Option<u32>) -> bool {
        let condition = match status {
            Some(1) => RetryOn::CANCELLED,
            Some(4) => RetryOn::DEADLINE_EXCEEDED,
            Some(8) => RetryOn::RESOURCE_EXHAUSTED,
            Some(13) => RetryOn::INTERNAL,
            Some(14) => RetryOn::UNAVAILABLE,
            _ => return false,
        };
        self.on.contains(condition)
    }
}

/// Conditions of `x-envoy-retry-on` and `x-envoy-retry-grpc-on`; unknown ones are left out, as in
/// Envoy.
pub fn parse_on(value: &str) -> RetryOn {
    value
        .split(',')
        .filter_map(|condition| RetryOn::named(condition.trim()))
        .fold(RetryOn::default(), RetryOn::union)
}

/// Whether a method may be sent twice although the first may have been executed (RFC 9110
/// section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
