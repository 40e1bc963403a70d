//! `outlierDetection` of a `DestinationRule`.

use std::time::Duration;

use super::fields::Judge;
use crate::kube::crd;
use crate::model::policy::OutlierDetection;
use crate::model::problem::Finding;

/// Judges when endpoints that fail are left out.
pub(super) fn outlier_detection(
    judge: &mut Judge<'_>,
    outlier: &crd::OutlierDetection,
    field: &str,
) -> OutlierDetection {
    judge.findings.push(Finding::not_executed(
        field,
        "stock Envoys execute it; gRPC's own clients, which count no failures in a row, leave an endpoint out that failed \
         every call of an interval in which it had at least as many; Millrace's proxy does not",
    ));
    let mut count = |value, name: &str| count(judge, value, u32::MAX, format!("{field}.{name}"));
    let errors = count(outlier.consecutive_errors, "consecutiveErrors");
    let consecutive_5xx = count(outlier.consecutive_5xx_errors, "consecutive5xxErrors");
    let gateway = count(
        outlier.consecutive_gateway_errors,
        "consecutiveGatewayErrors",
    );
    let local = outlier.consecutive_local_origin_failures;
    let local = count(local, "consecutiveLocalOriginFailures");
    let splits = outlier.split_external_local_origin_errors;
    let split_field = format!("{field}.splitExternalLocalOriginErrors");
    judge.executed_by_envoy(splits.filter(|splits| *splits).as_ref(), split_field);
    if local.is_some_and(|count| count > 0) && splits != Some(true) {
        let message = "only with splitExternalLocalOriginErrors are these counted apart";
        judge.error(format!("{field}.consecutiveLocalOriginFailures"), message);
    }
    let mut share = |value, name: &str| self::count(judge, value, 100, format!("{field}.{name}"));
    let max_ejection_percent = share(outlier.max_ejection_percent, "maxEjectionPercent");
    let min_health_percent = share(outlier.min_health_percent, "minHealthPercent");
    let min_health_percent = min_health_percent.unwrap_or(0);
    let said = (min_health_percent > 0).then_some(());
    judge.executed_by_envoy(said.as_ref(), format!("{field}.minHealthPercent"));
    OutlierDetection {
        // What the field was called before there were several.
        consecutive_5xx: consecutive_5xx.or(errors.filter(|count| *count > 0)),
        consecutive_gateway: gateway,
        splits_local_origin: splits == Some(true),
        consecutive_local_origin: local,
        interval: time(
            judge,
            outlier.interval.as_deref(),
            format!("{field}.interval"),
        ),
        base_ejection_time: time(
            judge,
            outlier.base_ejection_time.as_deref(),
            format!("{field}.baseEjectionTime"),
        ),
        // As Istio has it, 0 is unset.
        max_ejection_percent: max_ejection_percent.filter(|percent| *percent > 0),
        min_health_percent,
    }
}

fn count(judge: &mut Judge<'_>, value: Option<i64>, limit: u32, field: String) -> Option<u32> {
    let value = value?;
    let count = u32::try_from(value).ok().filter(|count| *count <= limit);
    if count.is_none() {
        judge.error(field, format!("{value} is not between 0 and {limit}"));
    }
    count
}

fn time(judge: &mut Judge<'_>, text: Option<&str>, field: String) -> Option<Duration> {
    let time = judge.duration(text, &field)?;
    if time < Duration::from_millis(1) {
        judge.error(field, "a time of at least 1ms is needed");
    }
    Some(time)
}
