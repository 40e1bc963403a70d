//! What is wrong with somebody's configuration, in the words of that configuration.
//!
//! Made by the readers, the validation and the analysis; shown at `/debug/config_errors`, in logs and
//! as a metric. A problem never stops another object from being served.

use std::fmt;

use serde::Serialize;

/// How much of the object is served in spite of the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The object, as it stands in the file, is refused; its last good version keeps serving.
    Error,
    /// The object is served, but not all it says is executed.
    Warning,
    /// The object is served as it says, and could say it better.
    Info,
}

/// What kind of problem it is, stable for alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The file cannot be read or is not YAML.
    Unreadable,
    /// A field has a wrong type or value.
    Invalid,
    /// A field that the kind does not have.
    UnknownField,
    /// A field or kind that this release reads but does not execute.
    NotExecuted,
    /// A name that points at nothing.
    UnknownReference,
    /// A reference that the owner of what it points at has not allowed.
    NotPermitted,
    /// Two objects claim the same thing; one of them wins.
    Conflict,
    /// A part that nothing can reach.
    Unreachable,
    /// Something that is executed as it stands, and is seldom meant so.
    Unclear,
}

impl Severity {
    /// The severity as JSON and metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

impl Reason {
    /// The reason as JSON and metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Invalid => "invalid",
            Self::UnknownField => "unknown_field",
            Self::NotExecuted => "not_executed",
            Self::UnknownReference => "unknown_reference",
            Self::NotPermitted => "not_permitted",
            Self::Conflict => "conflict",
            Self::Unreachable => "unreachable",
            Self::Unclear => "unclear",
        }
    }
}

/// One thing wrong, before it is known where the object came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the object is refused.
    pub severity: Severity,
    /// The kind of problem.
    pub reason: Reason,
    /// The field's path from the object's root, such as `spec.http[0].route`; empty for the whole object.
    pub field: String,
    /// What is wrong, in a sentence without the field's name.
    pub message: String,
}

impl Finding {
    /// A field that makes the object unusable.
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            reason: Reason::Invalid,
            field: field.into(),
            message: message.into(),
        }
    }

    /// A field that is understood and not executed.
    pub fn not_executed(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::warning(Reason::NotExecuted, field, message)
    }

    /// A problem that leaves the object served.
    pub fn warning(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            reason,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// A finding with its place: what an operator needs to open the right file at the right line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Whether the object is refused.
    pub severity: Severity,
    /// The kind of problem.
    pub reason: Reason,
    /// The file, relative to the configuration directory; absent for objects without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in the file, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The object, as `Kind namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field's path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
