//! Header names and mutations.

use http::{HeaderName, HeaderValue};
use millrace_xds::proto::envoy::config::core::v3::HeaderValueOption;
use millrace_xds::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use super::value::enumeration;
use super::{Cx, Invalid};
use crate::resource::header::{HeaderAppend, HeaderMutation, HeaderSet};
use crate::route::headers;

/// Names of the four fields that make up the mutations of one level.
const REQUEST: [&str; 2] = ["request_headers_to_add", "request_headers_to_remove"];
const RESPONSE: [&str; 2] = ["response_headers_to_add", "response_headers_to_remove"];

/// Mutations of request headers.
pub(super) fn request(
    cx: &mut Cx,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Result<HeaderMutation, Invalid> {
    mutation(cx, REQUEST, add, remove)
}

/// Mutations of response headers.
pub(super) fn response(
    cx: &mut Cx,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Result<HeaderMutation, Invalid> {
    mutation(cx, RESPONSE, add, remove)
}

fn mutation(
    cx: &mut Cx,
    fields: [&str; 2],
    add: &[HeaderValueOption],
    remove: &[String],
) -> Result<HeaderMutation, Invalid> {
    let set = cx.each(fields[0], add, set)?;
    let remove = cx.each(fields[1], remove, |cx, name| mutable_name(cx, name))?;
    Ok(HeaderMutation {
        set: set.into_iter().flatten().collect(),
        remove,
    })
}

fn set(cx: &mut Cx, option: &HeaderValueOption) -> Result<Option<HeaderSet>, Invalid> {
    let Some(header) = &option.header else {
        return Err(cx.bad("header", "is required"));
    };
    let name = cx.at("header.key", |cx| mutable_name(cx, &header.key))?;
    let action = append_action(cx, option)?;
    let raw = if header.raw_value.is_empty() {
        header.value.clone().into_bytes()
    } else {
        header.raw_value.clone()
    };
    if raw.is_empty() && !option.keep_empty_value {
        return Ok(None);
    }
    let value = HeaderValue::from_bytes(&raw)
        .map_err(|_| cx.bad("header.value", "not a valid header value"))?;
    let set = HeaderSet {
        name,
        value,
        action,
    };
    headers::check(&set).map_err(|error| cx.bad("header.value", error))?;
    Ok(Some(set))
}

fn append_action(cx: &mut Cx, option: &HeaderValueOption) -> Result<HeaderAppend, Invalid> {
    let action: HeaderAppendAction = enumeration(cx, "append_action", option.append_action)?;
    #[expect(deprecated, reason = "control planes still send it")]
    let append = option.append.as_ref();
    if let Some(append) = append {
        if action != HeaderAppendAction::AppendIfExistsOrAdd {
            return Err(cx.bad("append", "append and append_action exclude each other"));
        }
        return Ok(if append.value {
            HeaderAppend::AppendIfExistsOrAdd
        } else {
            HeaderAppend::OverwriteIfExistsOrAdd
        });
    }
    Ok(match action {
        HeaderAppendAction::AppendIfExistsOrAdd => HeaderAppend::AppendIfExistsOrAdd,
        HeaderAppendAction::AddIfAbsent => HeaderAppend::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => HeaderAppend::OverwriteIfExistsOrAdd,
        HeaderAppendAction::OverwriteIfExists => HeaderAppend::OverwriteIfExists,
    })
}

/// The name of a header that mutations may touch: Envoy forbids pseudo headers and `host`.
fn mutable_name(cx: &Cx, name: &str) -> Result<HeaderName, Invalid> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(cx.invalid(format_args!(
            "{name:?}: pseudo headers and host may not be modified"
        )));
    }
    header_name(cx, name)
}

/// An ordinary header's name.
pub(super) fn header_name(cx: &Cx, name: &str) -> Result<HeaderName, Invalid> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| cx.invalid(format_args!("{name:?} is not a valid header name")))
}
