//! Access logs: file and standard streams.

use millrace_xds::proto::envoy::config::accesslog::v3::AccessLog as PbAccessLog;
use millrace_xds::proto::envoy::config::accesslog::v3::access_log::ConfigType;
use millrace_xds::proto::envoy::config::core::v3::SubstitutionFormatString;
use millrace_xds::proto::envoy::config::core::v3::substitution_format_string::Format;
use millrace_xds::proto::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use millrace_xds::proto::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat as FileFormat;
use millrace_xds::proto::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use millrace_xds::proto::google::protobuf::value::Kind;
use millrace_xds::proto::google::protobuf::{Any, Struct};
use millrace_xds::proto::unpack;

use super::value::{data_source, type_name};
use super::{Cx, Invalid};
use crate::resource::AccessLog;
use crate::resource::listener::AccessLogFormat;

const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
const STDERR: &str = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";

/// Converts the access logs of one field; those of other kinds are noted.
pub(super) fn convert(
    cx: &mut Cx,
    field: &str,
    logs: &[PbAccessLog],
) -> Result<Vec<AccessLog>, Invalid> {
    let logs = cx.each(field, logs, one)?;
    Ok(logs.into_iter().flatten().collect())
}

fn one(cx: &mut Cx, m: &PbAccessLog) -> Result<Option<AccessLog>, Invalid> {
    if m.filter.is_some() {
        cx.note("filter", "every record is written");
    }
    let Some(ConfigType::TypedConfig(any)) = &m.config_type else {
        return Err(cx.bad("typed_config", "is required"));
    };
    cx.at("typed_config", |cx| match type_name(any) {
        FILE => file(cx, any).map(Some),
        STDOUT => {
            let m: StdoutAccessLog = cx.unpacked(unpack(any))?;
            let format = match &m.access_log_format {
                Some(stdout_access_log::AccessLogFormat::LogFormat(f)) => log_format(cx, f)?,
                None => None,
            };
            Ok(Some(stream("/dev/stdout", format)))
        }
        STDERR => {
            let m: StderrAccessLog = cx.unpacked(unpack(any))?;
            let format = match &m.access_log_format {
                Some(stderr_access_log::AccessLogFormat::LogFormat(f)) => log_format(cx, f)?,
                None => None,
            };
            Ok(Some(stream("/dev/stderr", format)))
        }
        other => {
            let effect = "no records are written to this access log";
            cx.key(other, |cx| cx.note("", effect));
            Ok(None)
        }
    })
}

fn stream(path: &str, format: Option<AccessLogFormat>) -> AccessLog {
    AccessLog {
        path: path.to_owned(),
        format,
    }
}

#[expect(deprecated, reason = "control planes still send these forms")]
fn file(cx: &mut Cx, any: &Any) -> Result<AccessLog, Invalid> {
    let m: FileAccessLog = cx.unpacked(unpack(any))?;
    if m.path.is_empty() {
        return Err(cx.bad("path", "is required"));
    }
    let format = match &m.access_log_format {
        None => None,
        Some(FileFormat::Format(text)) => text_format(text),
        Some(FileFormat::JsonFormat(fields)) => {
            Some(cx.at("json_format", |cx| json_format(cx, fields)))
        }
        Some(FileFormat::TypedJsonFormat(fields)) => {
            Some(cx.at("typed_json_format", |cx| json_format(cx, fields)))
        }
        Some(FileFormat::LogFormat(format)) => log_format(cx, format)?,
    };
    Ok(AccessLog {
        path: m.path,
        format,
    })
}

#[expect(deprecated, reason = "control planes still send text_format")]
fn log_format(
    cx: &mut Cx,
    m: &SubstitutionFormatString,
) -> Result<Option<AccessLogFormat>, Invalid> {
    cx.at("log_format", |cx| match &m.format {
        None => Err(cx.invalid("a format is required")),
        Some(Format::TextFormat(text)) => Ok(text_format(text)),
        Some(Format::TextFormatSource(source)) => {
            let bytes = data_source(cx, "text_format_source", source)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| cx.bad("text_format_source", "is not UTF-8"))?;
            Ok(text_format(&text))
        }
        Some(Format::JsonFormat(fields)) => {
            Ok(Some(cx.at("json_format", |cx| json_format(cx, fields))))
        }
    })
}

/// An empty format is the default one.
fn text_format(text: &str) -> Option<AccessLogFormat> {
    (!text.is_empty()).then(|| AccessLogFormat::Text(text.to_owned()))
}

fn json_format(cx: &mut Cx, m: &Struct) -> AccessLogFormat {
    let mut fields = Vec::with_capacity(m.fields.len());
    for (name, value) in &m.fields {
        match &value.kind {
            Some(Kind::StringValue(text)) => fields.push((name.clone(), text.clone())),
            Some(Kind::NumberValue(number)) => fields.push((name.clone(), number.to_string())),
            Some(Kind::BoolValue(value)) => fields.push((name.clone(), value.to_string())),
            Some(Kind::StructValue(_) | Kind::ListValue(_) | Kind::NullValue(_)) | None => {
                cx.key(name, |cx| {
                    cx.note("", "nested fields are left out of the record");
                });
            }
        }
    }
    fields.sort_unstable();
    AccessLogFormat::Json(fields)
}
