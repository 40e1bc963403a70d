//! One `AdmissionReview`: an object that somebody wants to write, and whether it may be.
//!
//! Pure: input is the review's JSON and the mesh, output the answer's JSON and how it went. Errors of the object itself
//! refuse it; everything else is a warning, which kubectl shows to whoever writes. An object of which only the metadata
//! changes is never refused: a finalizer must come off what was written before anybody judged it.

use serde_json::{Value, json};
use thiserror::Error;

use crate::analysis::judge;
use crate::model::problem::{Problem, Severity};
use crate::snapshot::MeshSnapshot;

const VERSION: &str = "admission.k8s.io/v1";
/// Longer warnings are cut by the API server, in the middle of a character if need be.
const MAX_WARNING: usize = 256;
/// More would not be shown: all warnings together get 4096 bytes.
const MAX_WARNINGS: usize = 16;

/// How a review went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong.
    Allowed,
    /// It may be written, and something is wrong.
    Warned,
    /// It may not be written.
    Refused,
}

impl Outcome {
    /// As metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Refused => "refused",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum InvalidReview {
    /// It is not JSON.
    #[error("the review is not JSON")]
    NotJson(#[from] serde_json::Error),
    /// It is not a review, or of another version.
    #[error("not an AdmissionReview of {VERSION} with a request: {0}")]
    Foreign(String),
}

/// Answers a review. Without a mesh, as long as nothing has been read, objects are judged by themselves alone.
///
/// # Errors
/// When it is no review.
pub fn answer(
    review: &[u8],
    mesh: Option<&MeshSnapshot>,
    domain: &str,
) -> Result<(Value, Outcome), InvalidReview> {
    let mut review: Value = serde_json::from_slice(review)?;
    let is = review["apiVersion"] == VERSION && review["kind"] == "AdmissionReview";
    let Some(uid) = review["request"]["uid"].as_str().filter(|_| is) else {
        let given = format!("{} {}", review["apiVersion"], review["kind"]);
        return Err(InvalidReview::Foreign(given));
    };
    let uid = uid.to_owned();
    let object = review["request"]["object"].take();
    let unchanged = is_unchanged(&review["request"]["oldObject"], &object);
    let problems = judge(named(object), mesh, domain).1;
    let (errors, rest): (Vec<_>, Vec<_>) = problems
        .into_iter()
        .partition(|problem| problem.severity == Severity::Error && !unchanged);
    let warnings: Vec<String> = rest.iter().take(MAX_WARNINGS).map(warning).collect();
    let mut response = json!({"uid": uid, "allowed": errors.is_empty()});
    let outcome = match (&errors[..], &warnings[..]) {
        ([], []) => Outcome::Allowed,
        ([], _) => Outcome::Warned,
        _ => Outcome::Refused,
    };
    if !errors.is_empty() {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        response["status"] = json!({
            "status": "Failure", "code": 400, "reason": "BadRequest", "message": all.join("; "),
        });
    }
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    let answer = json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response});
    Ok((answer, outcome))
}

/// An object that the API server will name has no name yet.
fn named(mut object: Value) -> Value {
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return object;
    };
    let prefix = metadata.remove("generateName");
    let unnamed = metadata
        .get("name")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty);
    if let Some(prefix) = prefix.as_ref().and_then(Value::as_str).filter(|_| unnamed) {
        metadata.insert("name".to_owned(), format!("{prefix}*").into());
    }
    object
}

/// Whether nothing is different that could be judged.
fn is_unchanged(before: &Value, object: &Value) -> bool {
    let going = object["metadata"]["deletionTimestamp"].is_string();
    going || (before.is_object() && before["spec"] == object["spec"])
}

/// A warning: the API server says itself which object it is about.
fn warning(problem: &Problem) -> String {
    let text = match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    };
    if text.len() <= MAX_WARNING {
        return text;
    }
    let short = |at: &usize| *at <= MAX_WARNING - "...".len();
    let ends = text.char_indices().map(|(at, _)| at).take_while(short);
    format!("{}...", &text[..ends.last().unwrap_or(0)])
}

#[cfg(test)]
mod tests;
