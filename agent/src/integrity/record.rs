//! What was found broken, repaired and answered, for one pod or for the node. Pure but for the clock's time.

use std::collections::BTreeMap;
use std::time::SystemTime;

use millrace_runtime::handoff::{Breakage, Cause, Family};
use serde::{Deserialize, Serialize};

use super::canary::{Outcome, Way};
use crate::bpf::{ForeignProgram, Order};
use crate::status::rfc3339;

/// Something that happened to a part of capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339.
    pub at: String,
    /// To which part.
    pub cause: Cause,
    /// What exactly.
    pub detail: String,
}

/// How canaries of a pod fare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canaries {
    /// When one was last answered on every way, RFC 3339.
    pub last_success: Option<String>,
    /// The same in seconds since 1970, for the metric.
    pub last_success_seconds: Option<u64>,
    /// Each way that the pod's settings capture.
    pub ways: BTreeMap<Way, WayStatus>,
}

/// One way of a canary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayStatus {
    /// Answered by the pod's own listener; `None` if nobody can tell, with the reason.
    pub ok: Option<bool>,
    /// Why not.
    pub reason: Option<String>,
    /// How many were not answered.
    pub failures: u64,
}

/// A pod's capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIntegrity {
    /// What is broken now.
    pub broken: Vec<Breakage>,
    /// What broke last.
    pub last_broken: Option<Event>,
    /// What was last found in order again.
    pub last_repaired: Option<Event>,
    /// How often each part broke.
    pub broken_total: BTreeMap<Cause, u64>,
    /// How often each part was in order again.
    pub repaired_total: BTreeMap<Cause, u64>,
    /// Its canaries.
    pub canary: Canaries,
    /// Rules and programs of others in its namespace that interfere with capture.
    pub foreign: Vec<String>,
}

/// What concerns all pods of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIntegrity {
    /// What is broken now.
    pub broken: Vec<Breakage>,
    /// What broke last.
    pub last_broken: Option<Event>,
    /// What was last found in order again.
    pub last_repaired: Option<Event>,
    /// How often each part broke.
    pub broken_total: BTreeMap<Cause, u64>,
    /// How often each part was in order again.
    pub repaired_total: BTreeMap<Cause, u64>,
    /// cgroup programs of others at the hooks that capture uses.
    pub foreign: Vec<ForeignStatus>,
}

/// A cgroup program of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForeignStatus {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name; empty where it could not be asked for.
    pub name: String,
    /// The hook, as `bpftool` names it.
    pub hook: String,
    /// Where it is attached.
    pub at: String,
    /// Whether it runs before Millrace's program.
    pub order: Order,
}

impl ForeignStatus {
    pub(super) fn of(program: &ForeignProgram, name: String) -> Self {
        let at = program.at.as_ref().map(|path| path.display().to_string());
        Self {
            id: program.id,
            name,
            hook: program.hook.to_owned(),
            at: at.unwrap_or_default(),
            order: program.order,
        }
    }

    /// On one line.
    pub fn describe(&self) -> String {
        let order = match self.order {
            Order::Before => "BEFORE Millrace's, which sees what it made of the destination",
            Order::After => "after Millrace's, which it cannot disturb",
            Order::Alone => "where Millrace has none",
        };
        format!(
            "{} program {} ({}) at {} runs {order}",
            self.hook, self.name, self.id, self.at
        )
    }
}

/// What has been found out so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    now: PodIntegrity,
    /// What the last comparison found; canaries come and go on their own.
    compared: Vec<Breakage>,
    /// Ways on which a canary was ever answered.
    answered: Vec<Way>,
}

impl Record {
    pub(super) fn status(&self) -> PodIntegrity {
        self.now.clone()
    }

    pub(super) fn causes(&self) -> Vec<Cause> {
        self.now.broken.iter().map(|broken| broken.cause).collect()
    }

    pub(super) fn problem(&self) -> Option<String> {
        let broken: Vec<String> = self.now.broken.iter().map(describe).collect();
        (!broken.is_empty()).then(|| format!("capture is not intact: {}", broken.join("; ")))
    }

    /// A comparison found this; true if anything is new.
    pub(super) fn compared(&mut self, found: Vec<Breakage>) -> bool {
        self.compared = found;
        self.update()
    }

    /// Others' rules and programs; true if they are other than before.
    pub(super) fn foreign(&mut self, foreign: Vec<String>) -> bool {
        let changed = self.now.foreign != foreign;
        self.now.foreign = foreign;
        changed
    }

    /// Canaries of these families came back, or not; true if anything is new but the time.
    pub(super) fn canaries(
        &mut self,
        families: &[Family],
        outcomes: &BTreeMap<Way, Outcome>,
    ) -> bool {
        let canary = &mut self.now.canary;
        let stays = |way: &Way| outcomes.contains_key(way) || !families.contains(&way.family());
        canary.ways.retain(|way, _| stays(way));
        for (way, outcome) in outcomes {
            let known = self.answered.contains(way);
            let status = canary.ways.entry(*way).or_default();
            status.reason = outcome.reason();
            status.ok = match outcome {
                Outcome::Answered => Some(true),
                Outcome::Unreachable(_) => None,
                // A firewall between node and pod may keep these out for good.
                Outcome::Silent if way.is_inbound() && !known => None,
                Outcome::Silent | Outcome::Lost(_) => Some(false),
            };
            status.failures += u64::from(status.ok == Some(false));
            if status.ok == Some(true) && !known {
                self.answered.push(*way);
            }
        }
        if canary.ways.values().any(|way| way.ok == Some(true))
            && canary.ways.values().all(|way| way.ok != Some(false))
        {
            let now = SystemTime::now();
            canary.last_success = Some(rfc3339(now));
            let since = now.duration_since(SystemTime::UNIX_EPOCH);
            canary.last_success_seconds = since.ok().map(|since| since.as_secs());
        }
        self.update()
    }

    /// The family of a canary that failed, if one did.
    pub(super) fn failed_family(&self) -> Option<Family> {
        let mut ways = self.now.canary.ways.iter();
        let failed = ways.find(|(_, status)| status.ok == Some(false));
        failed.map(|(way, _)| way.family())
    }

    /// The pod is captured anew or not at all: what canaries said is of the past.
    pub(super) fn forget_canaries(&mut self) {
        self.now.canary.ways.clear();
        self.update();
    }

    fn update(&mut self) -> bool {
        let mut broken = self.compared.clone();
        let failed = self.now.canary.ways.iter();
        let failed: Vec<String> = failed
            .filter(|(_, way)| way.ok == Some(false))
            .map(|(way, status)| match &status.reason {
                Some(reason) => format!("{way}: {reason}"),
                None => way.to_string(),
            })
            .collect();
        if !failed.is_empty() {
            broken.push(Breakage {
                cause: Cause::Canary,
                detail: failed.join(", "),
            });
        }
        let has = |list: &[Breakage], cause| list.iter().any(|b| b.cause == cause);
        let at = || rfc3339(SystemTime::now());
        for breakage in broken.iter().filter(|b| !has(&self.now.broken, b.cause)) {
            *self.now.broken_total.entry(breakage.cause).or_default() += 1;
            self.now.last_broken = Some(event(at(), breakage));
        }
        for breakage in self.now.broken.iter().filter(|b| !has(&broken, b.cause)) {
            *self.now.repaired_total.entry(breakage.cause).or_default() += 1;
            self.now.last_repaired = Some(event(at(), breakage));
        }
        let changed = self.now.broken != broken;
        self.now.broken = broken;
        changed
    }
}

fn event(at: String, breakage: &Breakage) -> Event {
    Event {
        at,
        cause: breakage.cause,
        detail: breakage.detail.clone(),
    }
}

fn describe(breakage: &Breakage) -> String {
    format!("{}: {}", breakage.cause, breakage.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn breakage(cause: Cause) -> Breakage {
        Breakage {
            cause,
            detail: "x".to_owned(),
        }
    }

    #[test]
    fn what_breaks_and_what_is_repaired_is_counted_once() {
        let mut record = Record::default();
        assert!(record.compared(vec![breakage(Cause::Rules)]));
        assert!(!record.compared(vec![breakage(Cause::Rules)]));
        assert!(record.compared(vec![breakage(Cause::Rules), breakage(Cause::Guard)]));
        assert!(record.compared(vec![breakage(Cause::Guard)]));
        assert!(record.compared(Vec::new()));
        let status = record.status();
        for cause in [Cause::Rules, Cause::Guard] {
            assert_eq!(status.broken_total[&cause], 1);
            assert_eq!(status.repaired_total[&cause], 1);
        }
        assert_eq!(status.last_repaired.unwrap().cause, Cause::Guard);
        assert_eq!(record.problem(), None);
    }

    #[test]
    fn a_lost_canary_is_a_breakage_until_one_arrives() {
        let mut record = Record::default();
        let lost = Outcome::Lost("refused".to_owned());
        assert!(record.canaries(&BOTH, &BTreeMap::from([(Way::Outbound4, lost)])));
        assert_eq!(
            record.problem().unwrap(),
            "capture is not intact: canary: outbound4: refused"
        );
        // What a comparison finds does not touch it.
        assert!(!record.compared(Vec::new()));
        assert!(record.canaries(
            &BOTH,
            &BTreeMap::from([(Way::Outbound4, Outcome::Answered)])
        ));
        let status = record.status();
        assert_eq!(status.repaired_total[&Cause::Canary], 1);
        assert_eq!(status.canary.ways[&Way::Outbound4].failures, 1);
        assert!(status.canary.last_success.is_some());
    }

    #[test]
    fn silence_towards_a_pod_counts_only_where_there_was_an_answer_before() {
        let mut record = Record::default();
        let silent = BTreeMap::from([(Way::Inbound4, Outcome::Silent)]);
        assert!(!record.canaries(&BOTH, &silent));
        assert_eq!(record.status().canary.ways[&Way::Inbound4].ok, None);
        record.canaries(&BOTH, &BTreeMap::from([(Way::Inbound4, Outcome::Answered)]));
        assert!(record.canaries(&BOTH, &silent));
    }

    #[test]
    fn what_was_said_of_a_family_stays_until_its_turn() {
        let mut record = Record::default();
        let answered = |way| BTreeMap::from([(way, Outcome::Answered)]);
        let lost = || Outcome::Lost("refused".to_owned());
        record.canaries(
            &BOTH,
            &BTreeMap::from([(Way::Dns4, lost()), (Way::Dns6, lost())]),
        );
        assert_eq!(record.failed_family(), Some(Family::V4));
        record.canaries(&[Family::V4], &answered(Way::Dns4));
        assert_eq!(record.failed_family(), Some(Family::V6));
        assert!(record.problem().is_some());
        record.canaries(&[Family::V6], &answered(Way::Outbound6));
        assert_eq!(record.problem(), None);
        let ways = record.status().canary.ways;
        assert!(
            ways.into_keys().eq([Way::Outbound6, Way::Dns4]),
            "the settings exclude the other"
        );
    }
}
