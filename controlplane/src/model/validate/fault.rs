//! `fault` of a `VirtualService`'s route.

use std::time::Duration;

use super::fields::Judge;
use crate::kube::crd;
use crate::model::route::{AbortStatus, Fault};

/// Judges a fault; none where it does nothing.
pub(super) fn fault(
    judge: &mut Judge<'_>,
    fault: &crd::Fault,
    route: &crd::HttpRoute,
    field: &str,
) -> Option<Fault> {
    if route.redirect.is_some() || route.direct_response.is_some() {
        judge.error(
            field,
            "a fault goes with requests that are sent on, not with redirect or directResponse",
        );
    }
    if fault.delay.is_none() && fault.abort.is_none() {
        judge.error(field, "one of delay and abort is needed");
    }
    judge.executed_by_others(field);
    let delay = fault.delay.as_ref();
    let abort = fault.abort.as_ref();
    let result = Fault {
        delay: delay.and_then(|delay| self::delay(judge, delay, &format!("{field}.delay"))),
        abort: abort.and_then(|abort| self::abort(judge, abort, &format!("{field}.abort"))),
    };
    (result.delay.is_some() || result.abort.is_some()).then_some(result)
}

fn delay(judge: &mut Judge<'_>, delay: &crd::Delay, field: &str) -> Option<(Duration, u32)> {
    judge.not_executed(
        delay.exponential_delay.as_ref(),
        format!("{field}.exponentialDelay"),
    );
    let time = judge.duration(delay.fixed_delay.as_deref(), &format!("{field}.fixedDelay"));
    if delay.fixed_delay.is_none() || time.is_some_and(|time| time.is_zero()) {
        judge.error(format!("{field}.fixedDelay"), "a time above 0 is needed");
    }
    let share = match (delay.percentage, delay.percent) {
        (None, Some(percent)) => {
            let percent = u8::try_from(percent).unwrap_or(u8::MAX);
            share(judge, f64::from(percent), &format!("{field}.percent"))
        }
        (percentage, _) => percentage_of(judge, percentage, field, "delayed"),
    };
    time.map(|time| (time, share))
}

fn abort(judge: &mut Judge<'_>, abort: &crd::Abort, field: &str) -> Option<(AbortStatus, u32)> {
    judge.not_executed(abort.http2_error.as_ref(), format!("{field}.http2Error"));
    let status = match (abort.http_status, abort.grpc_status.as_deref()) {
        (Some(status), None) => {
            let known = u16::try_from(status).ok();
            let known = known.filter(|status| (200..=600).contains(status));
            if known.is_none() {
                let message = format!("{status} is not a status code from 200 to 600");
                judge.error(format!("{field}.httpStatus"), message);
            }
            known.map(AbortStatus::Http)
        }
        (None, Some(name)) => {
            let known = GRPC_STATUSES.iter().position(|known| *known == name);
            if known.is_none() {
                let message = format!("{name:?} is not a status of gRPC such as UNAVAILABLE");
                judge.error(format!("{field}.grpcStatus"), message);
            }
            known
                .and_then(|code| u32::try_from(code).ok())
                .map(AbortStatus::Grpc)
        }
        _ => {
            judge.error(field, "exactly one of httpStatus and grpcStatus is needed");
            None
        }
    };
    let share = percentage_of(judge, abort.percentage, field, "aborted");
    status.map(|status| (status, share))
}

/// gRPC's statuses, each at its number.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Of a million requests so many: none where nothing is said, as Istio has it, which is seldom meant.
fn percentage_of(
    judge: &mut Judge<'_>,
    percentage: Option<crd::Percentage>,
    field: &str,
    done: &str,
) -> u32 {
    let field = format!("{field}.percentage");
    let Some(percentage) = percentage else {
        judge.warn_invalid(field, format!("without it no request is {done}"));
        return 0;
    };
    share(judge, percentage.value, &format!("{field}.value"))
}

fn share(judge: &mut Judge<'_>, percent: f64, field: &str) -> u32 {
    if !(0.0..=100.0).contains(&percent) {
        judge.error(field, "it is not between 0 and 100");
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and a million"
    )]
    let share = (percent * 10_000.0).round() as u32;
    share
}
