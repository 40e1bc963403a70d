//! `status` of Istio's form: conditions, `validationMessages`, `observedGeneration`.

use serde_json::{Value, json};

use super::{EXECUTED, Moment, Verdict, executed, items, shortened, text};
use crate::model::problem::{Problem, Reason, Severity};

/// The condition that istiod writes after its analysis.
const PASSED: &str = "PassedAnalysis";

/// What the status of an object with these problems should say; none where it says that already.
pub fn status(problems: &[Problem], before: &Value, moment: Moment<'_>) -> Option<Value> {
    let known = items(&before["conditions"]);
    let ours = [passed(problems), executed(problems)];
    let ours = ours.map(|verdict| verdict.render(moment, &known));
    let foreign = |condition: &&Value| condition["type"] != PASSED && condition["type"] != EXECUTED;
    let mut conditions: Vec<Value> = known.iter().filter(foreign).cloned().collect();
    conditions.extend(ours);
    let messages: Vec<Value> = problems.iter().map(message).collect();
    let status = json!({
        "conditions": conditions,
        "validationMessages": messages,
        "observedGeneration": moment.generation,
    });
    let same = |key: &str| before[key] == status[key];
    let generation = match &before["observedGeneration"] {
        // istiod writes it as text.
        Value::String(text) => text.parse() == Ok(moment.generation),
        other => *other == moment.generation,
    };
    let unchanged = same("conditions") && same("validationMessages") && generation;
    (!unchanged).then_some(status)
}

/// Whether nothing is wrong that somebody would have to change.
fn passed(problems: &[Problem]) -> Verdict {
    let wrong =
        |problem: &&Problem| !matches!(problem.reason, Reason::NotExecuted | Reason::UnknownField);
    let texts: Vec<String> = problems.iter().filter(wrong).map(text).collect();
    let holds = texts.is_empty();
    Verdict {
        kind: PASSED,
        holds,
        reason: if holds {
            "NoErrorsFound"
        } else {
            "ErrorsFound"
        },
        message: shortened(&texts),
    }
}

/// One problem as Istio's `AnalysisMessageBase` has it, with what is wrong beside it.
fn message(problem: &Problem) -> Value {
    let level = match problem.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let reason = problem.reason.as_str();
    json!({ "level": level, "type": {"name": text(problem), "code": reason} })
}
