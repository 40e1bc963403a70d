//! `status.parents` of the Gateway API's routes, for the parents that are the mesh's: whether a route is accepted there, and
//! whether its references lead somewhere. The reasons are those of the specification.

use serde_json::{Value, json};

use super::{Moment, Verdict, executed, items, shortened, text};
use crate::model::problem::{Problem, Reason, Severity};

/// Who says so.
pub const CONTROLLER: &str = "millrace.io/mesh-controller";

/// What the status of a route with these parents and problems should say; none where it says that already. Of a
/// gateway `is_gateway` says whether it is the mesh's.
pub fn status(
    parents: &Value,
    is_gateway: &dyn Fn(&Value) -> bool,
    problems: &[Problem],
    before: &Value,
    moment: Moment<'_>,
) -> Option<Value> {
    let known = items(&before["parents"]);
    let is_ours = |parent: &&Value| parent["controllerName"] == CONTROLLER;
    let mut all: Vec<Value> = known
        .iter()
        .filter(|parent| !is_ours(parent))
        .cloned()
        .collect();
    for (index, reference) in items(parents).into_iter().enumerate() {
        if !is_service(&reference) && !is_gateway(&reference) {
            continue;
        }
        let mut ours = known.iter().filter(is_ours);
        let conditions = ours
            .find(|parent| parent["parentRef"] == reference)
            .map(|parent| items(&parent["conditions"]))
            .unwrap_or_default();
        let verdicts = [
            accepted(problems, index),
            resolved(problems),
            executed(problems),
        ];
        let rendered = verdicts.map(|verdict| verdict.render(moment, &conditions));
        all.push(json!({
            "parentRef": reference, "controllerName": CONTROLLER, "conditions": rendered,
        }));
    }
    (all != known).then(|| json!({ "parents": all }))
}

/// Whether a parent is a service, whatever gateways there are.
fn is_service(reference: &Value) -> bool {
    let kind = (reference["group"].as_str(), reference["kind"].as_str());
    [
        (Some(""), Some("Service")),
        (Some("networking.istio.io"), Some("ServiceEntry")),
    ]
    .contains(&kind)
}

/// Whether the route holds at a parent.
fn accepted(problems: &[Problem], index: usize) -> Verdict {
    let here = format!("spec.parentRefs[{index}]");
    let at_parent = |problem: &&Problem| {
        let rest = problem.field.strip_prefix(&here);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let refused: Vec<String> = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(text)
        .collect();
    let mut about = problems.iter().filter(at_parent);
    let (reason, texts) = if !refused.is_empty() {
        ("UnsupportedValue", refused)
    } else if let Some(problem) = about
        .clone()
        .find(|it| it.reason == Reason::UnknownReference)
    {
        ("NoMatchingParent", vec![text(problem)])
    } else if let Some(problem) = about.find(|it| it.reason == Reason::Invalid) {
        ("UnsupportedValue", vec![text(problem)])
    } else {
        ("Accepted", Vec::new())
    };
    Verdict {
        kind: "Accepted",
        holds: texts.is_empty(),
        reason,
        message: shortened(&texts),
    }
}

/// Whether all backends are there and may be used.
fn resolved(problems: &[Problem]) -> Verdict {
    let missing: Vec<&Problem> = problems
        .iter()
        .filter(|problem| problem.field.contains(".backendRefs["))
        .filter(|problem| {
            matches!(
                problem.reason,
                Reason::UnknownReference | Reason::NotPermitted
            ) || problem.field.ends_with("].kind")
        })
        .collect();
    let reason = match missing.first() {
        None => "ResolvedRefs",
        Some(problem) if problem.reason == Reason::NotPermitted => "RefNotPermitted",
        Some(problem) if problem.reason == Reason::UnknownReference => "BackendNotFound",
        Some(_) => "InvalidKind",
    };
    let texts: Vec<String> = missing.into_iter().map(text).collect();
    Verdict {
        kind: "ResolvedRefs",
        holds: texts.is_empty(),
        reason,
        message: shortened(&texts),
    }
}
