//! Works several pods off side by side: most of the time of each is spent waiting for the broker, and a node
//! that starts has hundreds of them.
//!
//! A pod is taken out of the table while it is worked on, so nobody else can change it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::PodUid;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::carry_out::{Finished, Job, Work};
use super::{Decided, Reconciler, Tracked};
use crate::broker::chain;
use crate::broker_client::BrokerClient;
use crate::enroll::{self, Desired, Plan, Todo};

/// Pods worked on at a time; the broker takes twice as many calls.
const AT_A_TIME: usize = 16;
/// How long pods are begun with before what came meanwhile (a proxy that is gone, a request) has its turn.
const ROUND: Duration = Duration::from_secs(1);

/// What is to be done about a pod.
enum Next {
    Release(PodUid),
    InLine(Todo),
}

impl Reconciler {
    /// Plans and carries out; true when there is more to do at once.
    pub(super) async fn work_off(
        &mut self,
        decided: &BTreeMap<PodUid, Decided>,
        desired: &BTreeMap<PodUid, Desired>,
    ) -> bool {
        let Plan { release, in_line } = enroll::plan(desired, &self.actual());
        let release = release.into_iter().map(Next::Release);
        let again = self.each(release.collect(), decided).await;
        let in_line = in_line.into_iter().map(Next::InLine);
        self.each(in_line.collect(), decided).await || again
    }

    /// Begins with as many as a round has time for.
    async fn each(&mut self, todo: Vec<Next>, decided: &BTreeMap<PodUid, Decided>) -> bool {
        let until = Instant::now() + ROUND;
        let mut todo = todo.into_iter();
        let mut under_way = JoinSet::new();
        let mut again = false;
        loop {
            while under_way.len() < AT_A_TIME
                && Instant::now() < until
                && let Some(broker) = self.broker.clone()
                && let Some(next) = todo.next()
            {
                if let Some(job) = self.begin(next, decided, broker) {
                    under_way.spawn(job.carry_out());
                }
            }
            match under_way.join_next().await {
                Some(Ok(finished)) => again |= self.finish(finished),
                // A pod whose work panicked is adopted anew.
                Some(Err(error)) => tracing::error!(%error, "work on a pod was cut short"),
                None => break,
            }
        }
        self.broker.is_some() && (again || todo.len() > 0)
    }

    /// Takes the pod out of the table; `None` while it waits for another try.
    fn begin(
        &mut self,
        next: Next,
        decided: &BTreeMap<PodUid, Decided>,
        broker: Arc<BrokerClient>,
    ) -> Option<Job> {
        let (Next::Release(uid) | Next::InLine(Todo { uid, .. })) = &next;
        if self.pods.get(uid).is_some_and(Tracked::waits) {
            return None;
        }
        let uid = uid.clone();
        let work = match next {
            Next::Release(_) => Work::Release(self.pods.remove(&uid)?),
            Next::InLine(todo) => {
                let decided = Box::new(decided.get(&uid)?.clone());
                Work::InLine(todo, decided, self.pods.remove(&uid))
            }
        };
        Some(Job {
            uid,
            work,
            broker,
            kernel: self.kernel.clone(),
        })
    }

    /// Puts the pod back as it is now; true when its capture has to be decided anew.
    fn finish(&mut self, finished: Finished) -> bool {
        let Finished { uid, pod, result } = finished;
        if let Some(mut pod) = pod {
            // What was lost meanwhile is the connection that it was adopted over.
            pod.adopted &= self.broker.is_some();
            self.pods.insert(uid.clone(), pod);
        }
        match result {
            Ok(again) => again,
            Err(error) => {
                if !error.is_fatal() {
                    tracing::warn!(%uid, error = %chain(&error), "not carried out, trying again");
                } else if self.broker.is_some() {
                    self.disconnect(&error);
                }
                false
            }
        }
    }
}
