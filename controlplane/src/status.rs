//! Statuses: what pilot made of an object, as its owner reads it with kubectl.
//!
//! Pure: input is an object's problems and the status that it has, output the status that it should have, or nothing
//! where that is the same. [`istio`] is for kinds of Istio's form, [`routes`] and
//! [`gateways`] for those of the Gateway API. What others
//! wrote into a status stays. Written by [`crate::kube::status`].

pub mod gateways;
pub mod istio;
pub mod routes;

use serde_json::{Value, json};

use crate::model::problem::{Problem, Reason};

/// What all that is not executed comes to: a condition that names the fields.
const EXECUTED: &str = "millrace.io/Executed";

/// When and of what a status is.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The generation of the object that was judged.
    pub generation: i64,
    /// The time, as RFC 3339 text.
    pub now: &'a str,
}

/// One condition before it has a time.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    /// The condition as an object, with the time of `before` where it says the same there.
    fn render(self, moment: Moment<'_>, before: &[Value]) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let known = before.iter().find(|known| known["type"] == self.kind);
        let since = known
            .filter(|known| known["status"] == status)
            .and_then(|known| known["lastTransitionTime"].as_str());
        json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since.unwrap_or(moment.now),
            "observedGeneration": moment.generation,
        })
    }
}

/// Whether every field is executed, and which are not.
fn executed(problems: &[Problem]) -> Verdict {
    let left_out: Vec<String> = problems
        .iter()
        .filter(|problem| matches!(problem.reason, Reason::NotExecuted | Reason::UnknownField))
        .map(text)
        .collect();
    let holds = left_out.is_empty();
    Verdict {
        kind: EXECUTED,
        holds,
        reason: if holds { "Executed" } else { "NotExecuted" },
        message: shortened(&left_out),
    }
}

/// Field and message: the object is the one that the status is of.
fn text(problem: &Problem) -> String {
    match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    }
}

/// The longest message that the schema of a condition takes.
const MAX_MESSAGE: usize = 32768;

fn shortened(texts: &[String]) -> String {
    let mut message = texts.join("; ");
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// The items of a list; none where it is no list.
fn items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests;
