//! Small values that many messages share: durations, wrappers, percentages, packed messages,
//! data sources.

use std::time::Duration;

use millrace_xds::proto::{self, Any, google};
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent};
use proto::envoy::r#type::v3::fractional_percent::DenominatorType;

use super::{Cx, Invalid};

/// Largest file that a data source may name.
const MAX_FILE: u64 = 1024 * 1024;

/// A duration that may not be negative; `default` where it is absent.
pub(super) fn duration(
    cx: &mut Cx,
    field: &str,
    value: Option<&google::protobuf::Duration>,
    default: Duration,
) -> Result<Duration, Invalid> {
    Ok(optional_duration(cx, field, value)?.unwrap_or(default))
}

/// A duration that may not be negative.
pub(super) fn optional_duration(
    cx: &mut Cx,
    field: &str,
    value: Option<&google::protobuf::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let seconds = u64::try_from(value.seconds);
    let nanos = u32::try_from(value.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= 315_576_000_000 => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(cx.bad(field, "out of range")),
    }
}

/// A duration that must be greater than zero.
pub(super) fn positive_duration(
    cx: &mut Cx,
    field: &str,
    value: Option<&google::protobuf::Duration>,
    default: Duration,
) -> Result<Duration, Invalid> {
    let value = duration(cx, field, value, default)?;
    if value.is_zero() {
        return Err(cx.bad(field, "must be greater than 0s"));
    }
    Ok(value)
}

/// The value of a `BoolValue`, or `default`.
pub(super) fn bool_or(value: Option<&google::protobuf::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// The value of a `UInt32Value`, or `default`.
pub(super) fn u32_or(value: Option<&google::protobuf::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |v| v.value)
}

/// An enum's value; what the proto does not define is an error.
pub(super) fn enumeration<E: TryFrom<i32>>(
    cx: &mut Cx,
    field: &str,
    value: i32,
) -> Result<E, Invalid> {
    E::try_from(value).map_err(|_| cx.bad(field, format_args!("unknown value {value}")))
}

/// A share in millionths; the default value is taken, as there is no runtime to override it.
pub(super) fn runtime_fraction(
    cx: &mut Cx,
    field: &str,
    value: &RuntimeFractionalPercent,
) -> Result<u32, Invalid> {
    if !value.runtime_key.is_empty() {
        cx.at(field, |cx| {
            cx.note(
                "runtime_key",
                "there is no runtime; the default value is used",
            );
        });
    }
    let Some(share) = &value.default_value else {
        return Err(cx.bad(field, "default_value is required"));
    };
    let denominator = match DenominatorType::try_from(share.denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return Err(cx.bad(field, "unknown denominator")),
    };
    Ok(share.numerator.saturating_mul(denominator).min(1_000_000))
}

/// The full name of the message in an `Any`.
pub(super) fn type_name(any: &Any) -> &str {
    proto::message_name(&any.type_url)
}

/// The content of a data source.
pub(super) fn data_source(
    cx: &mut Cx,
    field: &str,
    source: &DataSource,
) -> Result<Vec<u8>, Invalid> {
    if source.watched_directory.is_some() {
        cx.at(field, |cx| {
            cx.note("watched_directory", "the file is read once");
        });
    }
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => read_file(path).map_err(|e| cx.bad(field, e)),
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(value) => Ok(value.into_bytes()),
            Err(_) => Err(cx.bad(
                field,
                format_args!("environment variable {name:?} is not set"),
            )),
        },
        None => Err(cx.bad(field, "names no source")),
    }
}

fn read_file(path: &str) -> Result<Vec<u8>, String> {
    let length = std::fs::metadata(path)
        .map_err(|e| format!("cannot read {path:?}: {e}"))?
        .len();
    if length > MAX_FILE {
        return Err(format!("{path:?} is larger than {MAX_FILE} bytes"));
    }
    std::fs::read(path).map_err(|e| format!("cannot read {path:?}: {e}"))
}
