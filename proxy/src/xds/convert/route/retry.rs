//! Retry policies.

use std::time::Duration;

use http::StatusCode;
use millrace_xds::proto::envoy::config::route::v3 as pb;
use pb::retry_policy::RetryHostPredicate;

use crate::resource::{RetryOn, RetryPolicy};
use crate::xds::convert::value::{optional_duration, positive_duration, u32_or};
use crate::xds::convert::{Cx, Invalid};

/// Envoy's first back-off.
const BASE_INTERVAL: Duration = Duration::from_millis(25);
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

/// Converts a retry policy.
pub(super) fn convert(cx: &mut Cx, m: &pb::RetryPolicy) -> Result<RetryPolicy, Invalid> {
    let retriable_status_codes = cx.each(
        "retriable_status_codes",
        &m.retriable_status_codes,
        |cx, code| status(cx, *code),
    )?;
    let (base_interval, max_interval) = back_off(cx, m)?;
    let avoid = cx.each("retry_host_predicate", &m.retry_host_predicate, |cx, p| {
        Ok(avoids_previous_hosts(cx, p))
    })?;
    let attempts = m.host_selection_retry_max_attempts;
    Ok(RetryPolicy {
        on: conditions(cx, &m.retry_on),
        num_retries: u32_or(m.num_retries.as_ref(), 1),
        per_try_timeout: optional_duration(cx, "per_try_timeout", m.per_try_timeout.as_ref())?
            .filter(|t| !t.is_zero()),
        retriable_status_codes,
        base_interval,
        max_interval,
        avoid_previous_hosts: avoid.contains(&true),
        host_selection_attempts: u32::try_from(attempts.max(1)).unwrap_or(u32::MAX),
    })
}

/// Envoy ignores conditions it does not know; here they are listed too.
fn conditions(cx: &mut Cx, text: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for token in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match RetryOn::named(token) {
            Some(condition) => on = on.union(condition),
            None => cx.at("retry_on", |cx| {
                cx.key(token, |cx| cx.note("", "is not retried on"));
            }),
        }
    }
    on
}

fn status(cx: &Cx, code: u32) -> Result<StatusCode, Invalid> {
    u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| cx.invalid(format_args!("{code} is not a status")))
}

fn back_off(cx: &mut Cx, m: &pb::RetryPolicy) -> Result<(Duration, Duration), Invalid> {
    let Some(back_off) = &m.retry_back_off else {
        return Ok((BASE_INTERVAL, BASE_INTERVAL * 10));
    };
    cx.at("retry_back_off", |cx| {
        let base = positive_duration(
            cx,
            "base_interval",
            back_off.base_interval.as_ref(),
            Duration::ZERO,
        )?
        .max(Duration::from_millis(1));
        let max = optional_duration(cx, "max_interval", back_off.max_interval.as_ref())?;
        let max = max.unwrap_or_else(|| base.saturating_mul(10));
        if max < base {
            return Err(cx.bad("max_interval", "must not be less than base_interval"));
        }
        Ok((base, max))
    })
}

fn avoids_previous_hosts(cx: &mut Cx, m: &RetryHostPredicate) -> bool {
    if m.name == PREVIOUS_HOSTS {
        return true;
    }
    cx.key(&m.name, |cx| cx.note("", "hosts are not excluded by it"));
    false
}
