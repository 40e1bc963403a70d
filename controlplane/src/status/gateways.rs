//! `status` of the Gateway API's gateways: whether they are accepted and served, and of each listener how many routes
//! are attached to it. The reasons are those of the specification.

use serde_json::{Value, json};

use super::{Moment, Verdict, executed, items, shortened, text};
use crate::model::problem::{Problem, Severity};

/// What the status of a gateway with these listeners and problems should say; none where it says that already.
/// `attached` has the number of routes at each listener.
pub fn status(
    listeners: &Value,
    attached: &[usize],
    problems: &[Problem],
    before: &Value,
    moment: Moment<'_>,
) -> Option<Value> {
    let known = items(&before["conditions"]);
    let refused: Vec<String> = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(text)
        .collect();
    let verdicts = [
        verdict("Accepted", &refused, "Accepted", "ListenersNotValid"),
        verdict("Programmed", &refused, "Programmed", "Invalid"),
        executed(problems),
    ];
    let ours = verdicts.map(|verdict| verdict.render(moment, &known));
    let is_ours = |condition: &&Value| ours.iter().any(|own| own["type"] == condition["type"]);
    let mut conditions: Vec<Value> = known.iter().filter(|it| !is_ours(it)).cloned().collect();
    conditions.extend(ours.iter().cloned());
    let of_listeners = items(&before["listeners"]);
    let all = items(listeners);
    let all = all.iter().enumerate().map(|(index, listener)| {
        let name = &listener["name"];
        let known = of_listeners.iter().find(|known| known["name"] == *name);
        let known = known
            .map(|known| items(&known["conditions"]))
            .unwrap_or_default();
        let routes = attached.get(index).copied().unwrap_or_default();
        listener_status(index, name, routes, problems, &known, moment)
    });
    let status = json!({ "conditions": conditions, "listeners": all.collect::<Vec<_>>() });
    let same = |key: &str| before[key] == status[key];
    (!(same("conditions") && same("listeners"))).then_some(status)
}

fn listener_status(
    index: usize,
    name: &Value,
    attached: usize,
    problems: &[Problem],
    known: &[Value],
    moment: Moment<'_>,
) -> Value {
    let here = format!("spec.listeners[{index}].");
    let at = |problem: &&Problem| problem.field.starts_with(&here);
    let protocol = format!("{here}protocol");
    let unsupported: Vec<String> = problems
        .iter()
        .filter(|problem| problem.field == protocol)
        .map(text)
        .collect();
    let wrong = problems.iter().filter(at);
    let wrong: Vec<String> = wrong
        .filter(|problem| problem.severity == Severity::Error)
        .map(text)
        .chain(unsupported.clone())
        .collect();
    let kinds: Vec<Value> = ["HTTPRoute", "GRPCRoute"]
        .iter()
        .filter(|_| unsupported.is_empty())
        .map(|kind| json!({"group": "gateway.networking.k8s.io", "kind": kind}))
        .collect();
    let verdicts = [
        verdict("Accepted", &unsupported, "Accepted", "UnsupportedProtocol"),
        verdict("Programmed", &wrong, "Programmed", "Invalid"),
        verdict("ResolvedRefs", &[], "ResolvedRefs", ""),
    ];
    let conditions = verdicts.map(|verdict| verdict.render(moment, known));
    json!({
        "name": name, "supportedKinds": kinds, "attachedRoutes": attached, "conditions": conditions,
    })
}

/// A condition that holds unless something stands against it.
fn verdict(
    kind: &'static str,
    against: &[String],
    well: &'static str,
    ill: &'static str,
) -> Verdict {
    let holds = against.is_empty();
    Verdict {
        kind,
        holds,
        reason: if holds { well } else { ill },
        message: shortened(against),
    }
}
