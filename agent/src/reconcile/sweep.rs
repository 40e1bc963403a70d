//! What an earlier agent left that nobody wants any more: removed from the broker once per broker, and from the maps
//! once every wanted pod is known to be in them. Called at the end of every round of `reconcile`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_runtime::handoff::{AgentAnswer, AgentRequest, PodUid};

use super::Reconciler;
use crate::broker::chain;
use crate::broker_client::{BrokerClient, CallError};
use crate::enroll::Desired;

/// A pod that could not be adopted this often holds up nobody else.
const HOPELESS: u32 = 4;

impl Reconciler {
    /// Once per broker: what nobody wants any more is removed from it.
    pub(super) async fn finish_sync(&mut self, desired: &BTreeMap<PodUid, Desired>) {
        let settled = desired.keys().all(|uid| {
            let pod = self.pods.get(uid);
            // A handle may be of the broker before.
            pod.is_some_and(|pod| pod.adopted || pod.problem.is_some())
        });
        let Some(broker) = self
            .broker
            .as_ref()
            .filter(|_| settled && !self.told_synced)
        else {
            return;
        };
        let swept = sweep(broker, |uid| desired.contains_key(uid)).await;
        match swept {
            Ok(()) => {
                self.told_synced = true;
                let set = self.sets.borrow().clone();
                self.store.keep(|uid| set.pods.contains_key(uid));
            }
            Err(error) if error.is_fatal() => self.disconnect(&error),
            Err(error) => tracing::warn!(error = %chain(&error), "leftovers are not removed"),
        }
    }

    /// Takes out of the maps who is not wanted any more, until every wanted pod has been adopted
    /// once; a pod that keeps failing does not hold that up, but keeps what has its addresses.
    pub(super) fn sweep_kernel(&mut self, desired: &BTreeMap<PodUid, Desired>) {
        if self.swept || !self.told_synced {
            return;
        }
        let tracked = |uid: &PodUid| self.pods.get(uid);
        let adopted = |uid: &PodUid| tracked(uid).is_some_and(|pod| pod.handle.is_some());
        let hopeless = |uid: &PodUid| tracked(uid).is_some_and(|pod| pod.retry.tries() >= HOPELESS);
        if !desired.keys().all(|uid| adopted(uid) || hopeless(uid)) {
            return;
        }
        let cookies: Vec<u64> = self
            .pods
            .values()
            .filter_map(|pod| Some(pod.handle.as_ref()?.cookie))
            .collect();
        let waiting: Vec<IpAddr> = desired
            .iter()
            .filter(|(uid, _)| !adopted(uid))
            .flat_map(|(_, desired)| desired.pod.ips.iter().copied())
            .collect();
        self.kernel.withdraw_others(|enrolled| {
            cookies.contains(&enrolled.netns_cookie)
                || enrolled.ips.iter().any(|ip| waiting.contains(ip))
        });
        self.kernel.take_over();
        self.swept = desired.keys().all(adopted);
    }
}

/// Releases the broker's pods that are not `wanted`.
async fn sweep(broker: &BrokerClient, wanted: impl Fn(&PodUid) -> bool) -> Result<(), CallError> {
    let mut after = None;
    loop {
        let list = AgentRequest::List {
            after: after.take(),
        };
        let AgentAnswer::Pods { pods, more, .. } = broker.call(list).await?.answer else {
            return Err(CallError::Unexpected);
        };
        after = pods.last().map(|pod| pod.uid.clone());
        for pod in pods.into_iter().filter(|pod| !wanted(&pod.uid)) {
            broker.call(AgentRequest::Release { uid: pod.uid }).await?;
        }
        if !more {
            break;
        }
    }
    broker.call(AgentRequest::Synced).await.map(drop)
}
