//! What of a pod is not as the broker left it, for the agent's watch over capture.
//!
//! Cheap as long as nothing changes: a few questions to sockets that are held anyway. Only where the rule set
//! of a namespace has changed, or has not been looked at for a while (legacy iptables tells nobody), is it
//! entered and read (`integrity::inside`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{Breakage, CanarySocket, Cause, Inspection, PodUid, ProgramName};
use tokio::time::Instant;

use super::capture::{Applied, Plan};
use super::hub::{Hub, HubError, in_pod};
use super::netns::NetnsError;
use crate::integrity::{Found, Generation, Generations, canary_sockets, look};

/// Longest time between two readings of a namespace whose changes are counted ...
const READ_AGAIN: Duration = Duration::from_mins(10);
/// ... and of one with legacy tables.
const READ_UNCOUNTED: Duration = Duration::from_secs(30);
/// Most readings for one answer that nothing calls for but time.
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
    /// Generation and time of the last reading that found everything in place.
    intact: Option<(Generation, Instant)>,
    found: Found,
    /// What the broker put there last, and what came of it.
    put: Option<(Plan, Applied)>,
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
        self.found.guard = None;
        self.put = None;
    }

    /// The same, and this is what it put there.
    pub(super) fn put(&mut self, plan: Plan, applied: Applied) {
        self.forget();
        self.put = Some((plan, applied));
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
        let uids: Vec<PodUid> = {
            let state = self.state.lock();
            let rest = state
                .pods
                .keys()
                .filter(|uid| after.is_none_or(|a| *uid > a));
            rest.cloned().collect()
        };
        let mut page = Vec::new();
        let mut readings = READINGS;
        for uid in uids {
            if let Some(inspection) = self.inspect_one(&uid, &mut readings).await {
                page.push(inspection);
            }
            if page.len() == PAGE {
                return (page, Some(uid));
            }
        }
        (page, None)
    }

    async fn inspect_one(&self, uid: &PodUid, readings: &mut usize) -> Option<Inspection> {
        let mut broken = self.dead_listeners(uid)?;
        let read = self.read_rules(uid, readings).await;
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
        // Before reading: a change meanwhile is then seen the next time.
        let generation = generations.now();
        let need = self.with_pod(uid, |pod| {
            pod.watched.generations = Some(generations);
            pod.watched.need(&generation)
        });
        match need {
            Some(Need::Now) => {}
            Some(Need::Sometime) if *readings > 0 => *readings -= 1,
            _ => return Ok(()),
        }
        self.read_now(uid, generation).await
    }

    async fn read_now(&self, uid: &PodUid, generation: Generation) -> Result<(), HubError> {
        // Not while the broker itself is writing them.
        let _turn = self.turn(uid).await;
        let lost = self.state.lock().lost;
        let Some((netns, plan, guard)) = self.with_pod(uid, |pod| {
            let plan = Plan::new(
                pod.capture,
                pod.on_loss,
                pod.iptables.clone(),
                pod.spec.ips.clone(),
                lost,
            );
            let guard = pod.watched.found.guard.clone();
            (Arc::clone(&pod.netns), plan, guard)
        }) else {
            return Ok(());
        };
        let known = guard.clone();
        let mut found = netns
            .run_async(move || look(&plan, known.as_deref()))
            .await
            .map_err(in_pod(uid))?;
        self.with_pod(uid, |pod| {
            if found.broken.is_empty() {
                pod.watched.intact = Some((generation, Instant::now()));
            } else {
                // What the guard is like counts only while it is intact.
                found.guard = guard;
                pod.watched.intact = None;
            }
            pod.watched.found = found;
        });
        Ok(())
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

    fn with_pod<T>(
        &self,
        uid: &PodUid,
        work: impl FnOnce(&mut super::state::Pod) -> T,
    ) -> Option<T> {
        self.state.lock().pods.get_mut(uid).map(work)
    }
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
