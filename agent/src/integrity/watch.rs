//! The rhythm: compares, sends canaries, keeps records, asks the reconciler for repairs.
//!
//! One task that changes nothing itself. Its cost is bounded: comparing asks the kernel for numbers, rules are
//! read only where their number changed, canaries start at most [`CANARIES_PER_SECOND`] times a second.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{
    AgentAnswer, AgentRequest, Breakage, CaptureMode, Cause, Family, Inspection, PodUid,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::canary::{self, Outcome, Way};
use super::record::ForeignStatus;
use super::{CANARIES_PER_SECOND, COMPARE, Integrity, Notice, Subject, Subjects};
use crate::bpf::{ForeignProgram, Order};
use crate::broker::chain;
use crate::kernel::{Compared, Kernel};

/// How often cgroups are searched for programs of others.
const SEARCH: Duration = Duration::from_secs(10);
/// How soon a canary follows one that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// The watching task.
pub struct Watch {
    integrity: Integrity,
    kernel: Kernel,
    subjects: watch::Receiver<Arc<Subjects>>,
    notices: mpsc::Sender<Notice>,
    /// `None`: no canaries.
    interval: Option<Duration>,
    due: HashMap<PodUid, Due>,
    pace: Pace,
    under_way: JoinSet<Sent>,
    names: HashMap<u32, String>,
    /// Programs of others that choose sockets in pods.
    lookups: BTreeSet<u32>,
    /// Programs that ran before ours and were overtaken once; some insist.
    overtaken: HashSet<u32>,
    searched: Option<Instant>,
}

/// Keeps canaries apart, however many are due: after a repair, or where many fail again and again.
#[derive(Debug, Default)]
struct Pace {
    next: Option<Instant>,
}

impl Pace {
    const APART: Duration = Duration::from_millis(1000 / CANARIES_PER_SECOND as u64);

    /// The pod whose canary has been due for longest, if one may start.
    fn pick(&mut self, due: &HashMap<PodUid, Due>, now: Instant) -> Option<PodUid> {
        if self.next.is_some_and(|next| next > now) {
            return None;
        }
        let (uid, _) = due
            .iter()
            .filter(|(_, due)| !due.under_way && due.at <= now)
            .min_by_key(|(_, due)| due.at)?;
        self.next = Some(now + Self::APART);
        Some(uid.clone())
    }
}

/// When a pod's next canary is sent.
struct Due {
    at: Instant,
    under_way: bool,
    failed_in_row: u32,
    /// Whose turn it is where both families do not go together.
    family: Family,
}

impl Due {
    /// Where a node has so many pods that each has its turn less often, a turn is one family's: most of what can
    /// break, breaks for both.
    fn families(&self, subject: &Subject, is_crowded: bool) -> Vec<Family> {
        let both = [Family::V4, Family::V6];
        let has = |family: &Family| {
            let is_v4 = *family == Family::V4;
            subject.ips.iter().any(|ip| ip.is_ipv4() == is_v4)
        };
        if is_crowded && both.iter().all(has) {
            vec![self.family]
        } else {
            both.to_vec()
        }
    }
}

/// A canary that came back.
struct Sent {
    subject: Subject,
    proxies: Vec<u32>,
    families: Vec<Family>,
    outcomes: Option<BTreeMap<Way, Outcome>>,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new(
        integrity: Integrity,
        kernel: Kernel,
        subjects: watch::Receiver<Arc<Subjects>>,
        notices: mpsc::Sender<Notice>,
        interval: Option<Duration>,
    ) -> Self {
        Self {
            integrity,
            kernel,
            subjects,
            notices,
            interval,
            due: HashMap::new(),
            pace: Pace::default(),
            under_way: JoinSet::new(),
            names: HashMap::new(),
            lookups: BTreeSet::new(),
            overtaken: HashSet::new(),
            searched: None,
        }
    }

    /// Watches until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut compare = tokio::time::interval(COMPARE);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let again = Arc::clone(&self.integrity.again);
        loop {
            let next = self.next_canary();
            // Not biased: every arm is rare.
            tokio::select! {
                () = stop.cancelled() => return,
                _ = compare.tick() => self.compare().await,
                () = again.notified() => {
                    self.searched = None;
                    self.hurry();
                    self.compare().await;
                }
                changed = self.subjects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.know();
                }
                Some(sent) = self.under_way.join_next() => if let Ok(sent) = sent {
                    self.came_back(sent);
                },
                () = tokio::time::sleep_until(next) => self.send(),
            }
        }
    }

    fn now(&mut self) -> Arc<Subjects> {
        self.subjects.borrow().clone()
    }

    /// Takes note of pods that came and went.
    fn know(&mut self) {
        let subjects = self.subjects.borrow_and_update().clone();
        self.due.retain(|uid, _| subjects.pods.contains_key(uid));
        {
            let mut state = self.integrity.state.lock();
            state.pods.retain(|uid, _| subjects.pods.contains_key(uid));
            for (uid, subject) in &subjects.pods {
                let record = state.pods.entry(uid.clone()).or_default();
                if subject.mode == CaptureMode::None {
                    record.compared(Vec::new());
                    record.forget_canaries();
                }
            }
        }
        let now = Instant::now();
        let mut new = 0;
        for uid in subjects.pods.keys() {
            self.due.entry(uid.clone()).or_insert_with(|| {
                let at = now + Pace::APART * new;
                new += 1;
                Due {
                    at,
                    under_way: false,
                    failed_in_row: 0,
                    family: Family::V4,
                }
            });
        }
    }

    async fn compare(&mut self) {
        let subjects = self.now();
        let (kernel, pods) = (self.kernel.clone(), subjects.clone());
        let compared = tokio::task::spawn_blocking(move || kernel.compare(&pods)).await;
        let compared = compared.unwrap_or_default();
        let inspected = inspect(&subjects).await;
        let lookups = compared.foreign.values().flatten();
        self.lookups = lookups.map(|program| program.id).collect();
        self.learn_names(&subjects, self.lookups.clone()).await;
        let mut changed = self.search(&subjects).await;
        changed |= self.keep(&subjects, &compared, inspected.as_ref());
        if !compared.detached.is_empty() {
            self.tell(Notice::Programs);
        }
        for (uid, subject) in &subjects.pods {
            let mut causes = self.integrity.broken(uid);
            // Those have notices of their own.
            causes.retain(|cause| ![Cause::Program, Cause::Canary].contains(cause));
            if subject.settled && !causes.is_empty() {
                self.tell(Notice::Pod(uid.clone(), causes));
            }
        }
        if changed {
            self.tell(Notice::Changed);
        }
    }

    /// Keeps what was found; true if anything is new. Without the broker's word what it said last stays.
    fn keep(
        &self,
        subjects: &Subjects,
        compared: &Compared,
        inspected: Option<&BTreeMap<PodUid, Inspection>>,
    ) -> bool {
        let mut state = self.integrity.state.lock();
        let detached = (!compared.detached.is_empty()).then(|| Breakage {
            cause: Cause::Program,
            detail: format!("not attached: {}", compared.detached.join(", ")),
        });
        let mut changed = state.node.compared(detached.iter().cloned().collect());
        if let Some(detached) = &detached
            && changed
        {
            tracing::warn!(detached.detail, "eBPF programs were detached");
        }
        let Some(inspected) = inspected else {
            return changed;
        };
        for (uid, subject) in subjects.pods.iter().filter(|(_, pod)| pod.settled) {
            let mut broken = compared.pods.get(uid).cloned().unwrap_or_default();
            if subject.mode.is_by_programs() {
                broken.extend(detached.clone());
            }
            let seen = inspected.get(uid);
            broken.extend(seen.iter().flat_map(|seen| seen.broken.iter().cloned()));
            let mut foreign = seen.map(|seen| seen.foreign.clone()).unwrap_or_default();
            for program in compared.foreign.get(uid).into_iter().flatten() {
                foreign.push(lookup_program(program, self.names.get(&program.id)));
            }
            let record = state.pods.entry(uid.clone()).or_default();
            if record.compared(broken) {
                changed = true;
                log(&subject.name, record.problem());
            }
            if record.foreign(foreign.clone()) {
                changed = true;
                for line in foreign {
                    tracing::warn!(
                        pod = subject.name,
                        foreign = line,
                        "capture may be interfered with"
                    );
                }
            }
        }
        changed
    }

    /// Looks for programs of others; true if there are other ones than before.
    async fn search(&mut self, subjects: &Subjects) -> bool {
        if self.searched.is_some_and(|at| at.elapsed() < SEARCH) {
            return false;
        }
        let whole = self.searched.replace(Instant::now()).is_none();
        let kernel = self.kernel.clone();
        let found = tokio::task::spawn_blocking(move || kernel.foreign(whole)).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(
                    error,
                    "programs of others at hooks of capture cannot be looked for"
                );
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "looking for programs of others ended early");
                return false;
            }
        };
        let ids: BTreeSet<u32> = found.iter().map(|program| program.id).collect();
        let used = |id: &u32| ids.contains(id) || self.lookups.contains(id);
        self.names.retain(|id, _| used(id));
        self.learn_names(subjects, ids).await;
        let before = found.iter().filter(|p| p.order == Order::Before);
        let new = before.filter(|program| self.overtaken.insert(program.id));
        let hooks: Vec<&'static str> = new.map(|program| program.hook).collect();
        if !hooks.is_empty() {
            self.tell(Notice::Overtaken(hooks));
        }
        self.overtaken
            .retain(|id| found.iter().any(|p| p.id == *id));
        let foreign: Vec<ForeignStatus> = found.iter().map(|p| self.named(p)).collect();
        let mut state = self.integrity.state.lock();
        if state.foreign == foreign {
            return false;
        }
        for program in foreign.iter().filter(|p| !state.foreign.contains(p)) {
            tracing::warn!(
                program = program.describe(),
                "another program at a hook of capture"
            );
        }
        for program in state.foreign.iter().filter(|p| !foreign.contains(p)) {
            tracing::info!(program = program.describe(), "it is like that no more");
        }
        state.foreign = foreign;
        true
    }

    async fn learn_names(&mut self, subjects: &Subjects, ids: BTreeSet<u32>) {
        let unknown = ids.into_iter().filter(|id| !self.names.contains_key(id));
        let ids: Vec<u32> = unknown.collect();
        let Some(broker) = subjects.broker.as_ref().filter(|_| !ids.is_empty()) else {
            return;
        };
        if let Ok(answer) = broker.call(AgentRequest::ProgramNames { ids }).await
            && let AgentAnswer::ProgramNames { programs } = answer.answer
        {
            self.names.extend(
                programs
                    .into_iter()
                    .map(|program| (program.id, program.name)),
            );
        }
    }

    fn named(&self, program: &ForeignProgram) -> ForeignStatus {
        let name = self.names.get(&program.id).cloned();
        ForeignStatus::of(program, name.unwrap_or_default())
    }

    /// The time of the next canary, far away where there is none.
    fn next_canary(&self) -> Instant {
        let waiting = self.due.values().filter(|due| !due.under_way);
        let next = waiting.map(|due| due.at).min();
        let far = Instant::now() + COMPARE;
        let next = next.filter(|_| self.interval.is_some()).unwrap_or(far);
        self.pace.next.map_or(next, |free| next.max(free))
    }

    /// What was repaired is looked at by the next canary at once.
    fn hurry(&mut self) {
        let now = Instant::now();
        let state = self.integrity.state.lock();
        for (uid, due) in &mut self.due {
            let broken = state.pods.get(uid).is_some_and(|r| r.problem().is_some());
            if broken {
                due.at = due.at.min(now);
            }
        }
    }

    /// Sends the canary that is due.
    fn send(&mut self) {
        let Some(interval) = self.interval else {
            return;
        };
        let subjects = self.now();
        let pods = u32::try_from(self.due.len()).unwrap_or(u32::MAX);
        let turns = Pace::APART * pods;
        let is_crowded = turns > interval;
        let now = Instant::now();
        let Some(uid) = self.pace.pick(&self.due, now) else {
            return;
        };
        let Some(due) = self.due.get_mut(&uid) else {
            return;
        };
        due.at = now + interval.max(turns);
        let subject = subjects.pods.get(&uid).filter(|s| s.is_captured());
        let (Some(subject), Some(broker)) = (subject, &subjects.broker) else {
            return;
        };
        if subjects.proxies.is_empty() {
            return;
        }
        due.under_way = true;
        let (subject, broker) = (subject.clone(), Arc::clone(broker));
        let proxies = subjects.proxies.clone();
        let families = due.families(&subject, is_crowded);
        self.under_way.spawn(async move {
            let outcomes = canary::send_twice(&broker, &subject, &families).await;
            let outcomes = outcomes.inspect_err(|error| {
                tracing::debug!(pod = subject.name, error = %chain(error), "no canary sent");
            });
            Sent {
                subject,
                proxies,
                families,
                outcomes: outcomes.ok(),
            }
        });
    }

    fn came_back(&mut self, sent: Sent) {
        let subjects = self.now();
        let uid = &sent.subject.uid;
        let Some(due) = self.due.get_mut(uid) else {
            return;
        };
        due.under_way = false;
        // It says something only if pod and proxies are those it was sent through.
        let same = |now: &Subject| {
            now.settled && now.cookie == sent.subject.cookie && now.mode == sent.subject.mode
        };
        let valid = subjects.pods.get(uid).is_some_and(same) && subjects.proxies == sent.proxies;
        let Some(outcomes) = sent.outcomes.filter(|_| valid) else {
            due.at = due.at.min(Instant::now() + AGAIN);
            return;
        };
        let (changed, failed) = {
            let mut state = self.integrity.state.lock();
            let record = state.pods.entry(uid.clone()).or_default();
            let changed = record.canaries(&sent.families, &outcomes);
            if changed {
                log(&sent.subject.name, record.problem());
            }
            (changed, record.failed_family())
        };
        if let Some(family) = failed {
            due.at = Instant::now() + AGAIN;
            due.family = family;
            due.failed_in_row += 1;
            // What writing everything anew did not cure, it will hardly cure the next time.
            if due.failed_in_row.is_power_of_two() {
                self.tell(Notice::Pod(uid.clone(), vec![Cause::Canary]));
            }
        } else {
            due.failed_in_row = 0;
            due.family = match due.family {
                Family::V4 => Family::V6,
                Family::V6 => Family::V4,
            };
        }
        if changed {
            self.tell(Notice::Changed);
        }
    }

    fn tell(&self, notice: Notice) {
        // A reconciler with that much to do hears of it at the next comparison.
        if let Err(error) = self.notices.try_send(notice) {
            tracing::debug!(%error, "notice not taken");
        }
    }
}

fn log(pod: &str, problem: Option<String>) {
    if let Some(problem) = problem {
        tracing::warn!(pod, problem, "capture is not intact");
    } else {
        tracing::info!(pod, "capture is intact again");
    }
}

fn lookup_program(program: &ForeignProgram, name: Option<&String>) -> String {
    let order = match program.order {
        Order::Before => "before Millrace's",
        Order::After => "after Millrace's",
        Order::Alone => "where Millrace has none",
    };
    let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{} program {}{name} runs {order}", program.hook, program.id)
}

/// What the broker has to say of pods; `None` if it does not answer.
async fn inspect(subjects: &Subjects) -> Option<BTreeMap<PodUid, Inspection>> {
    let broker = subjects.broker.as_ref()?;
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let answer = broker.call(AgentRequest::Inspect { after }).await.ok()?;
        let AgentAnswer::Inspected { pods, next } = answer.answer else {
            return None;
        };
        found.extend(pods.into_iter().map(|pod| (pod.uid.clone(), pod)));
        if next.is_none() {
            return Some(found);
        }
        after = next;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use millrace_runtime::handoff::Families;

    use super::*;
    use crate::redirect::CaptureSettings;

    #[test]
    fn however_many_are_due_canaries_start_at_their_pace_and_each_in_its_turn() {
        let start = Instant::now();
        let waiting = |number: u32| Due {
            at: start,
            under_way: false,
            failed_in_row: number,
            family: Family::V4,
        };
        let mut due: HashMap<_, _> = (0..100)
            .map(|number| (PodUid(number.to_string()), waiting(number)))
            .collect();
        let mut pace = Pace::default();
        let mut sent = Vec::new();
        let step = Pace::APART / 10;
        for number in 0..1_100 {
            let now = start + step * number;
            while let Some(uid) = pace.pick(&due, now) {
                // As where every repair makes all that fail due again.
                due.get_mut(&uid).unwrap().at = now + Duration::from_millis(1);
                sent.push(uid);
            }
            assert!(sent.len() <= 1 + usize::try_from(number).unwrap() / 10);
        }
        let first: HashSet<_> = sent[..100].iter().collect();
        assert_eq!(first.len(), 100, "nobody is passed over");
    }

    #[test]
    fn on_a_crowded_node_a_turn_is_one_familys() {
        let due = Due {
            at: Instant::now(),
            under_way: false,
            failed_in_row: 0,
            family: Family::V6,
        };
        let mut subject = Subject {
            uid: PodUid("p".to_owned()),
            name: "p".to_owned(),
            cookie: 1,
            netns: Arc::new(File::open("/proc/self/ns/net").unwrap().into()),
            families: Families { v4: true, v6: true },
            ips: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            mode: CaptureMode::None,
            settings: CaptureSettings::default(),
            settled: true,
        };
        let both = [Family::V4, Family::V6];
        assert_eq!(due.families(&subject, false), both);
        assert_eq!(due.families(&subject, true), [Family::V6]);
        subject.ips.pop();
        assert_eq!(
            due.families(&subject, true),
            both,
            "the other costs nothing"
        );
    }
}
