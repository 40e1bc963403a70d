//! Format strings: text with `%COMMAND%` operators, alone or as the values of a JSON object.

use http::HeaderName;

use super::command::{Command, Value};
use super::{Record, Which};
use crate::resource::AccessLogFormat;

/// Istio's default format.
pub const ISTIO_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% ",
    "%CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ",
    "\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" ",
    "\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// Why a format cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFormat {
    /// No such operator.
    #[error("unknown command operator %{0}%")]
    Unknown(String),
    /// A `%` or `(` without its end.
    #[error("command operator {0:?} is not closed")]
    Unclosed(String),
    /// Not a header name.
    #[error("{0:?} is not a header name")]
    Header(String),
    /// The length after `:` is no number.
    #[error("the length of command operator %{0}% is not a number")]
    Length(String),
}

/// A compiled format.
#[derive(Clone, Debug)]
pub struct Compiled(Shape);

#[derive(Clone, Debug)]
enum Shape {
    Text(Template),
    Json(Vec<(String, Template)>),
}

/// Text with operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Command(Command),
}

impl Template {
    /// Compiles a format string; `%%` is a `%`.
    ///
    /// # Errors
    /// Names the operator that is not known or not closed.
    pub fn new(format: &str) -> Result<Self, InvalidFormat> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = format;
        while let Some(start) = rest.find('%') {
            literal.push_str(&rest[..start]);
            let after = &rest[start + 1..];
            if let Some(tail) = after.strip_prefix('%') {
                literal.push('%');
                rest = tail;
                continue;
            }
            let end = operator_end(after).ok_or_else(|| InvalidFormat::Unclosed(after.into()))?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Command(Command::parse(&after[..end])?));
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// Whether it is the same for every record.
    pub fn is_literal(&self) -> bool {
        !self.0.iter().any(|p| matches!(p, Part::Command(_)))
    }

    /// Writes it for a record.
    pub fn render(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Command(command) => command.value(record).write(out),
            }
        }
    }

    fn commands(&self) -> impl Iterator<Item = &Command> {
        self.0.iter().filter_map(|part| match part {
            Part::Command(command) => Some(command),
            Part::Literal(_) => None,
        })
    }

    /// As a JSON value: a lone operator keeps its type and is `null` where absent.
    fn render_json(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        if let [Part::Command(command)] = self.0.as_slice() {
            match command.value(record) {
                Value::Absent => return out.extend_from_slice(b"null"),
                number @ Value::Number(_) => return number.write(out),
                _ => {}
            }
        }
        let mut text = Vec::new();
        self.render(record, &mut text);
        json_string(&text, out);
    }
}

impl Compiled {
    /// Compiles a log's format; `None` is Istio's default.
    ///
    /// # Errors
    /// See [`Template::new`].
    pub fn new(format: Option<&AccessLogFormat>) -> Result<Self, InvalidFormat> {
        Ok(Self(match format {
            None => Shape::Text(Template::new(ISTIO_DEFAULT)?),
            Some(AccessLogFormat::Text(text)) => Shape::Text(Template::new(text)?),
            Some(AccessLogFormat::Json(fields)) => Shape::Json(
                fields
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), Template::new(value)?)))
                    .collect::<Result<_, InvalidFormat>>()?,
            ),
        }))
    }

    /// Writes a record as this format has it.
    pub fn render(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        match &self.0 {
            Shape::Text(template) => template.render(record, out),
            Shape::Json(fields) => {
                out.push(b'{');
                for (index, (key, template)) in fields.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json_string(key.as_bytes(), out);
                    out.push(b':');
                    template.render_json(record, out);
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }

    /// The headers of `which` that it prints.
    pub fn headers(&self, which: Which) -> impl Iterator<Item = &HeaderName> {
        let templates: Box<dyn Iterator<Item = &Template>> = match &self.0 {
            Shape::Text(template) => Box::new(std::iter::once(template)),
            Shape::Json(fields) => Box::new(fields.iter().map(|(_, template)| template)),
        };
        templates
            .flat_map(Template::commands)
            .flat_map(move |command| command.headers(which))
    }
}

/// Where the operator that begins at 0 ends; a `%` within parentheses does not end it
/// (`START_TIME(%Y)`).
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => return Some(index),
            _ => {}
        }
    }
    None
}

fn json_string(text: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(text);
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if u32::from(c) < 0x20 => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
