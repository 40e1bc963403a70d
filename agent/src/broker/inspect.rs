//! What of a pod is not as the broker left it, for the agent's watch over capture.
//!
//! Cheap as long as nothing changes: one call asks all pods' sockets at once, those that listen and those on which
//! the kernel tells of changed rules. Only a pod in which something stirs, or that has not been asked for a
//! while (legacy iptables tells nobody), is asked by itself; only where its rule set has changed is its
//! namespace entered and read (`integrity::inside`).

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{Breakage, CanarySocket, Cause, Inspection, PodUid, ProgramName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;

use super::capture::{Applied, Plan};
use super::hub::{Hub, HubError, in_pod};
use super::netns::NetnsError;
use super::sockets::LabelledListener;
use super::state::{Pod, State};
use crate::integrity::{Found, Generation, Generations, Seen, canary_sockets, look};

/// Longest time between two readings of a namespace whose changes are counted ...
const READ_AGAIN: Duration = Duration::from_mins(10);
/// ... and of one with legacy tables; and longest time in which a pod is not asked by itself.
const READ_UNCOUNTED: Duration = Duration::from_secs(30);
/// Most readings for one answer that take a tool and that nothing calls for but time.
const READINGS: usize = 16;
/// Pods in one answer to `Inspect`: with all that can be said of each it stays below the largest message.
const PAGE: usize = 8;
/// Most program ids in one answer.
const MOST_NAMES: usize = 1024;
/// Longest text of one finding.
const LONGEST: usize = 400;

/// What was found in a pod's namespace, and when that was true.
#[derive(Debug, Default)]
pub(super) struct Watched {
    generations: Option<Arc<Generations>>,
    /// Generation and time of the last reading that found everything in place ...
    intact: Option<(Generation, Instant)>,
    /// ... and what the rules were like.
    seen: Option<Seen>,
    found: Found,
    /// When it was last asked for its generation.
    asked: Option<Instant>,
    /// What the broker put there last, and what came of it.
    put: Option<(Plan, Applied)>,
}

/// What was found in a namespace right after it was brought in line.
#[derive(Debug)]
pub(super) struct Looked {
    generations: Arc<Generations>,
    generation: Generation,
    found: Found,
}

impl Looked {
    /// In the calling thread's namespace, if it can be read without a tool.
    pub(super) fn now(plan: &Plan) -> Option<Self> {
        let generations = Generations::open();
        // Before reading: a change meanwhile is then heard of.
        let generation = generations.now();
        let found = look(plan, None, false)?;
        Some(Self {
            generations: Arc::new(generations),
            generation,
            found,
        })
    }
}

/// Whether a namespace has to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    No,
    Sometime,
    Now,
}

impl Watched {
    /// The broker itself has changed the rules: what they are like now counts.
    pub(super) fn forget(&mut self) {
        self.intact = None;
        self.seen = None;
        self.put = None;
    }

    /// The same, and this is what it put there and found there then.
    pub(super) fn put(&mut self, plan: Plan, applied: Applied, looked: Option<Looked>) {
        self.forget();
        self.put = Some((plan, applied));
        if let Some(looked) = looked {
            self.generations = Some(looked.generations);
            self.asked = Some(Instant::now());
            self.keep(looked.generation, looked.found);
        }
    }

    fn keep(&mut self, generation: Generation, mut found: Found) {
        if found.broken.is_empty() {
            self.intact = Some((generation, Instant::now()));
            self.seen = found.seen.take();
        } else {
            // What the rules are like counts only while they are intact.
            self.intact = None;
        }
        self.found = found;
    }

    /// Whether the pod is to be asked although nothing is heard of it.
    fn is_due(&self) -> bool {
        let known = self.generations.as_ref().and_then(|known| known.notices());
        let asked = self.asked.is_some_and(|at| at.elapsed() < READ_UNCOUNTED);
        known.is_none() || self.intact.is_none() || !asked
    }

    /// Whether there is something to say of the pod.
    fn has_findings(&self) -> bool {
        !self.found.broken.is_empty() || !self.found.foreign.is_empty()
    }

    /// What is in the namespace, if that is known to be all of `plan`: nobody has changed a rule since it was
    /// read.
    fn holds(&self, plan: &Plan) -> Option<&Applied> {
        let known = |(put, left): &&(Plan, Applied)| put == plan && left.problem.is_none();
        let (_, applied) = self.put.as_ref().filter(known)?;
        let (then, _) = self.intact.as_ref()?;
        let now = self.generations.as_ref()?.now();
        (!now.has_uncounted() && *then == now).then_some(applied)
    }

    fn need(&self, generation: &Generation) -> Need {
        let again = if generation.has_uncounted() {
            READ_UNCOUNTED
        } else {
            READ_AGAIN
        };
        match &self.intact {
            None if self.found.broken.is_empty() => Need::Sometime,
            None => Need::Now,
            Some((then, _)) if then != generation => Need::Now,
            Some((_, at)) if at.elapsed() >= again => Need::Sometime,
            Some(_) => Need::No,
        }
    }
}

impl Hub {
    /// Looks at a page of pods; those of which there is nothing to say are left out.
    pub(super) async fn inspect(
        &self,
        after: Option<&PodUid>,
    ) -> (Vec<Inspection>, Option<PodUid>) {
        let uids = rest_to_look_at(&self.state.lock(), after);
        let mut page = Vec::new();
        let mut readings = READINGS;
        for (uid, stirs) in uids {
            if let Some(inspection) = self.inspect_one(&uid, stirs, &mut readings).await {
                page.push(inspection);
            }
            if page.len() == PAGE {
                return (page, Some(uid));
            }
        }
        (page, None)
    }

    async fn inspect_one(
        &self,
        uid: &PodUid,
        stirs: bool,
        readings: &mut usize,
    ) -> Option<Inspection> {
        let mut broken = self.dead_listeners(uid)?;
        let read = if stirs {
            self.read_rules(uid, readings).await
        } else {
            Ok(())
        };
        let state = self.state.lock();
        let found = &state.pods.get(uid)?.watched.found;
        if let Err(error) = read {
            tracing::debug!(%uid, error = %super::chain(&error), "pod is not looked into");
        }
        broken.extend(found.broken.iter().cloned());
        for breakage in &mut broken {
            shorten(&mut breakage.detail);
        }
        let foreign = found.foreign.clone();
        let anything = !broken.is_empty() || !foreign.is_empty();
        anything.then(|| Inspection {
            uid: uid.clone(),
            broken,
            foreign,
        })
    }

    fn dead_listeners(&self, uid: &PodUid) -> Option<Vec<Breakage>> {
        let state = self.state.lock();
        let pod = state.pods.get(uid)?;
        let dead: Vec<String> = pod
            .dead()
            .map(|listener| {
                let label = &listener.label;
                format!(
                    "port {} ({:?} {})",
                    label.role.port(),
                    label.role,
                    label.index
                )
            })
            .collect();
        let breakage = (!dead.is_empty()).then(|| Breakage {
            cause: Cause::Listener,
            detail: format!("no longer listening: {}", dead.join(", ")),
        });
        Some(breakage.into_iter().collect())
    }

    /// What a plan left in a pod, if nothing has to be done for it to be so now.
    pub(super) fn in_place(&self, uid: &PodUid, plan: &Plan) -> Option<Applied> {
        self.with_pod(uid, |pod| pod.watched.holds(plan).cloned())?
    }

    /// Reads the pod's rules if they may have changed; `readings` is how often merely to be sure.
    async fn read_rules(&self, uid: &PodUid, readings: &mut usize) -> Result<(), HubError> {
        let Some((netns, known)) = self.with_pod(uid, |pod| {
            (Arc::clone(&pod.netns), pod.watched.generations.clone())
        }) else {
            return Ok(());
        };
        let generations = match known {
            Some(known) => known,
            None => Arc::new(
                netns
                    .run_async(Generations::open)
                    .await
                    .map_err(in_pod(uid))?,
            ),
        };
        // Before reading: a change meanwhile is then heard of.
        generations.take_notices();
        let generation = generations.now();
        let need = self.with_pod(uid, |pod| {
            pod.watched.generations = Some(generations);
            pod.watched.asked = Some(Instant::now());
            pod.watched.need(&generation)
        });
        let need = need.unwrap_or(Need::No);
        if need == Need::No || self.read_now(uid, &generation, false).await? {
            return Ok(());
        }
        if need == Need::Sometime {
            let Some(left) = readings.checked_sub(1) else {
                return Ok(());
            };
            *readings = left;
        }
        self.read_now(uid, &generation, true).await.map(drop)
    }

    /// Reads the pod's rules; false where that takes a tool and none may be run.
    async fn read_now(
        &self,
        uid: &PodUid,
        generation: &Generation,
        may_run_tools: bool,
    ) -> Result<bool, HubError> {
        // Not while the broker itself is writing them.
        let _turn = self.turn(uid).await;
        let lost = self.state.lock().lost;
        let Some((netns, plan, then)) = self.with_pod(uid, |pod| {
            let plan = Plan::new(
                pod.capture,
                pod.on_loss,
                pod.iptables.clone(),
                pod.spec.ips.clone(),
                lost,
            );
            (Arc::clone(&pod.netns), plan, pod.watched.seen.clone())
        }) else {
            return Ok(true);
        };
        let found = netns
            .run_async(move || look(&plan, then.as_ref(), may_run_tools))
            .await
            .map_err(in_pod(uid))?;
        let Some(found) = found else {
            return Ok(false);
        };
        self.with_pod(uid, |pod| pod.watched.keep(generation.clone(), found));
        Ok(true)
    }

    /// Makes the sockets of one canary.
    pub(super) async fn canary_sockets(
        &self,
        uid: &PodUid,
    ) -> Result<(Vec<CanarySocket>, Vec<OwnedFd>), HubError> {
        let (netns, families) = self
            .with_pod(uid, |pod| (Arc::clone(&pod.netns), pod.families))
            .ok_or_else(|| HubError::Unknown(uid.clone()))?;
        netns
            .run_async(move || canary_sockets(families))
            .await
            .map_err(in_pod(uid))?
            .map_err(|source| HubError::Netns {
                pod: uid.clone(),
                source: NetnsError::Enter(source),
            })
    }

    fn with_pod<T>(&self, uid: &PodUid, work: impl FnOnce(&mut Pod) -> T) -> Option<T> {
        self.state.lock().pods.get_mut(uid).map(work)
    }
}

/// Pods after this one of which there is something to say, or that have to be asked, which is the second.
fn rest_to_look_at(state: &State, after: Option<&PodUid>) -> Vec<(PodUid, bool)> {
    let is_rest = |(uid, _): &(&PodUid, &Pod)| after.is_none_or(|after| *uid > after);
    let pods: Vec<(&PodUid, &Pod)> = state.pods.iter().filter(is_rest).collect();
    let mut stirs: Vec<bool> = pods.iter().map(|(_, pod)| pod.watched.is_due()).collect();
    let mut asked = Vec::new();
    let mut owners = Vec::new();
    for (at, (_, pod)) in pods.iter().enumerate() {
        let streams = pod.listeners.iter().filter(|l| !l.label.role.is_datagram());
        // That one is no longer listening is always told.
        let listening =
            streams.map(|l| PollFd::from_borrowed_fd(l.socket.as_fd(), PollFlags::empty()));
        let notices = pod
            .watched
            .generations
            .iter()
            .filter_map(|known| known.notices());
        let notices = notices
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        asked.extend(listening.chain(notices));
        owners.resize(asked.len(), at);
    }
    if let Err(error) = poll(&mut asked, Some(&Timespec::default())) {
        tracing::debug!(%error, "every pod is asked by itself");
        stirs.fill(true);
    }
    for (_, at) in asked
        .iter()
        .zip(owners)
        .filter(|(fd, _)| !fd.revents().is_empty())
    {
        stirs[at] = true;
    }
    let is_dead = |socket: &LabelledListener| socket.label.role.is_datagram() && !socket.is_alive();
    let has_dead = |pod: &Pod| pod.listeners.iter().any(is_dead);
    pods.into_iter()
        .zip(stirs)
        .filter(|((_, pod), stirs)| *stirs || pod.watched.has_findings() || has_dead(pod))
        .map(|((uid, _), stirs)| (uid.clone(), stirs))
        .collect()
}

/// Names of loaded programs; those that are gone are left out.
pub(super) fn program_names(ids: &[u32]) -> Vec<ProgramName> {
    let ids = ids.iter().take(MOST_NAMES);
    ids.filter_map(|id| {
        let name = crate::bpf::program_name(*id).ok()?;
        Some(ProgramName { id: *id, name })
    })
    .collect()
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests;
