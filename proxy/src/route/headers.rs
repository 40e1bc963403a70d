//! Header mutations of routes, compiled: values with `%COMMAND%` operators become templates.
//!
//! Within a level removals come before additions; levels are applied from the most specific to
//! the least (Envoy's `HeaderParser::evaluateHeaders`).

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::access_log::format::Template;
use crate::access_log::{InvalidFormat, Record};
use crate::resource::HeaderMutation;
use crate::resource::header::{HeaderAppend, HeaderSet};

/// Mutations of one level.
#[derive(Clone, Debug, Default)]
pub struct Mutations {
    request: Edits,
    response: Edits,
}

/// Mutations of one level and direction.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    set: Vec<Set>,
    remove: Vec<HeaderName>,
}

#[derive(Clone, Debug)]
struct Set {
    name: HeaderName,
    value: SetValue,
    action: HeaderAppend,
}

#[derive(Clone, Debug)]
enum SetValue {
    Fixed(HeaderValue),
    Template(Template),
}

/// Whether a header's value can be executed; conversion refuses what cannot.
///
/// # Errors
/// Names the operator that is not known.
pub fn check(set: &HeaderSet) -> Result<(), InvalidFormat> {
    compile_value(&set.value).map(|_| ())
}

impl Mutations {
    /// Compiles the mutations of one level.
    pub fn compile(request: &HeaderMutation, response: &HeaderMutation) -> Self {
        Self {
            request: Edits::compile(request),
            response: Edits::compile(response),
        }
    }

    /// Those of requests.
    pub fn request(&self) -> &Edits {
        &self.request
    }

    /// Those of responses.
    pub fn response(&self) -> &Edits {
        &self.response
    }
}

impl Edits {
    fn compile(mutation: &HeaderMutation) -> Self {
        Self {
            set: mutation.set.iter().map(Set::compile).collect(),
            remove: mutation.remove.clone(),
        }
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Changes `headers`; templates take their values from `record`.
    pub fn apply(&self, headers: &mut HeaderMap, record: &Record<'_>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for set in &self.set {
            set.apply(headers, record);
        }
    }
}

impl Set {
    fn compile(set: &HeaderSet) -> Self {
        let value = compile_value(&set.value).unwrap_or_else(|error| {
            // Conversion refuses such a value; a hand-made configuration gets it as it stands.
            tracing::warn!(header = %set.name, %error, "header value is taken literally");
            SetValue::Fixed(set.value.clone())
        });
        Self {
            name: set.name.clone(),
            value,
            action: set.action,
        }
    }

    fn apply(&self, headers: &mut HeaderMap, record: &Record<'_>) {
        let present = headers.contains_key(&self.name);
        let wanted = match self.action {
            HeaderAppend::AppendIfExistsOrAdd | HeaderAppend::OverwriteIfExistsOrAdd => true,
            HeaderAppend::AddIfAbsent => !present,
            HeaderAppend::OverwriteIfExists => present,
        };
        if !wanted {
            return;
        }
        let Some(value) = self.value(record) else {
            return;
        };
        if self.action == HeaderAppend::AppendIfExistsOrAdd {
            headers.append(self.name.clone(), value);
        } else {
            headers.insert(self.name.clone(), value);
        }
    }

    /// `None` where the rendered text cannot be a header's value.
    fn value(&self, record: &Record<'_>) -> Option<HeaderValue> {
        match &self.value {
            SetValue::Fixed(value) => Some(value.clone()),
            SetValue::Template(template) => {
                let mut text = Vec::new();
                template.render(record, &mut text);
                HeaderValue::from_bytes(&text).ok()
            }
        }
    }
}

fn compile_value(value: &HeaderValue) -> Result<SetValue, InvalidFormat> {
    let Ok(text) = value.to_str() else {
        return Ok(SetValue::Fixed(value.clone()));
    };
    if !text.contains('%') {
        return Ok(SetValue::Fixed(value.clone()));
    }
    Template::new(text).map(SetValue::Template)
}
