//! Carries out the plan's actions: calls to the broker and writes into the maps, in the order
//! that `redirect::handover` gives.

use std::os::fd::AsFd;
use std::sync::Arc;

use millrace_runtime::handoff::accel::ACCELERATION_ANNOTATION;
use millrace_runtime::handoff::{AgentAnswer, AgentRequest, CaptureMode, PodSpec, PodUid};

use super::{Decided, Handle, Reconciler, Tracked};
use crate::bpf::PodEnrolment;
use crate::broker::chain;
use crate::broker_client::{Answer, CallError};
use crate::enroll::Desired;
use crate::redirect::{Step, acceleration, handover};

impl Reconciler {
    /// Ends a pod's capture without a gap in what it may do, then gives it up.
    pub(super) async fn release(&mut self, uid: &PodUid) -> Result<(), CallError> {
        let Some(pod) = self.pods.get(uid) else {
            return Ok(());
        };
        if pod.waits() {
            return Ok(());
        }
        let cookie = pod.handle.as_ref().map(|handle| handle.cookie);
        let off = AgentRequest::Capture {
            uid: uid.clone(),
            mode: CaptureMode::None,
            on_loss: millrace_runtime::handoff::OnCaptureLoss::Open,
            iptables: None,
        };
        // The broker may not know the pod any more; the release below says all that matters.
        match self.call(off).await {
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => tracing::debug!(%uid, error = %chain(&error), "rules not taken out"),
            Ok(_) => {}
        }
        if let Some(cookie) = cookie
            && let Err(error) = self.kernel.withdraw(cookie)
        {
            tracing::warn!(%uid, error, "pod stays enrolled in eBPF");
        }
        self.call(AgentRequest::Release { uid: uid.clone() })
            .await?;
        self.pods.remove(uid);
        tracing::info!(%uid, "pod left");
        Ok(())
    }

    /// Lets the broker take a pod on.
    pub(super) async fn adopt(&mut self, desired: &Desired) -> Result<(), CallError> {
        let uid = &desired.pod.uid;
        if self.pods.get(uid).is_some_and(Tracked::waits) {
            return Ok(());
        }
        let request = AgentRequest::Adopt {
            pod: Box::new(described(desired)),
        };
        let adopted = match self.call(request).await {
            Ok(answer) => handle(answer),
            Err(error) => Err(error),
        };
        let tracked = self
            .pods
            .entry(uid.clone())
            .or_insert_with(|| Tracked::new(Arc::clone(&desired.pod)));
        let handle = match adopted {
            Ok(handle) => handle,
            Err(error) => {
                tracked.failed(chain(&error));
                return Err(error);
            }
        };
        let before = tracked.handle.as_ref().map(|old| (old.cookie, &old.labels));
        let same = before == Some((handle.cookie, &handle.labels));
        let stale = before
            .map(|(cookie, _)| cookie)
            .filter(|c| *c != handle.cookie);
        tracked.adopted = true;
        tracked.pod = Arc::clone(&desired.pod);
        tracked.handle = Some(handle);
        tracked.succeeded();
        if !same {
            tracked.capture_anew();
        }
        let in_force = tracked.applied.as_ref().map(|(mode, _)| *mode);
        if let Some(cookie) = stale
            && let Err(error) = self.kernel.withdraw(cookie)
        {
            tracing::warn!(%uid, error, "the pod's old namespace stays enrolled in eBPF");
        }
        if in_force == Some(desired.mode) {
            // A broker that is new has to know what is in force.
            self.tell_broker(desired).await?;
        }
        Ok(())
    }

    /// Brings a pod's capture in line; true when the decision has to be taken anew.
    pub(super) async fn capture(&mut self, decided: &Decided) -> Result<bool, CallError> {
        let desired = &decided.desired;
        let uid = &desired.pod.uid;
        let ready = |pod: &Tracked| pod.adopted && pod.handle.is_some() && !pod.waits();
        if !self.pods.get(uid).is_some_and(ready) {
            return Ok(false);
        }
        let mut complete = true;
        for step in handover(desired.mode) {
            let outcome = match step {
                Step::EnrollEbpf => match self.enroll(desired) {
                    Ok(enrolled) => {
                        complete &= enrolled;
                        Ok(())
                    }
                    Err(reason) => {
                        tracing::warn!(%uid, reason, "pod cannot be captured by eBPF");
                        if let Some(pod) = self.pods.get_mut(uid) {
                            pod.refused = Some(reason);
                        }
                        return Ok(true);
                    }
                },
                Step::WithdrawEbpf => self.withdraw(uid),
                Step::TellBroker => self.tell_broker(desired).await,
            };
            if let Err(error) = outcome {
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.failed(chain(&error));
                }
                return Err(error);
            }
        }
        let Some(pod) = self.pods.get_mut(uid) else {
            return Ok(false);
        };
        if complete {
            let changed = pod.in_force != desired.mode;
            pod.in_force = desired.mode;
            pod.applied = Some((desired.mode, desired.settings.clone()));
            pod.succeeded();
            if changed {
                tracing::info!(
                    pod = %desired.pod.qualified_name(),
                    mode = %desired.mode,
                    reason = decided.choice.reason,
                    "pod captured"
                );
            }
        } else {
            // Sockets come with the next proxy, and with them an event.
            pod.applied = Some((CaptureMode::None, desired.settings.clone()));
            pod.failed(
                "no proxy has been connected, nothing can take the pod's traffic".to_owned(),
            );
        }
        Ok(false)
    }

    /// Writes the pod into the maps; false when it has no listening sockets yet.
    fn enroll(&self, desired: &Desired) -> Result<bool, String> {
        let handle = self
            .pods
            .get(&desired.pod.uid)
            .and_then(|pod| pod.handle.as_ref())
            .ok_or("the pod is not adopted")?;
        if handle.inbound.is_empty() {
            return Ok(false);
        }
        let setting = acceleration(desired.settings.acceleration);
        self.kernel.enroll(&PodEnrolment {
            netns_cookie: handle.cookie,
            netns: handle.netns.as_fd(),
            ips: desired.pod.ips.clone(),
            policy: desired.settings.policy(),
            inbound_listeners: handle.inbound.iter().map(AsFd::as_fd).collect(),
        })?;
        self.kernel.accelerate(
            &desired.pod.uid,
            handle.cookie,
            handle.netns.as_fd(),
            setting,
        );
        Ok(true)
    }

    fn withdraw(&self, uid: &PodUid) -> Result<(), CallError> {
        let handle = self.pods.get(uid).and_then(|pod| pod.handle.as_ref());
        if let Some(handle) = handle {
            self.kernel.withdraw(handle.cookie).map_err(|message| {
                CallError::Fault(millrace_runtime::handoff::BrokerFault {
                    retryable: true,
                    message,
                })
            })?;
        }
        Ok(())
    }

    async fn tell_broker(&mut self, desired: &Desired) -> Result<(), CallError> {
        let uid = &desired.pod.uid;
        let families = self
            .pods
            .get(uid)
            .and_then(|pod| Some(pod.handle.as_ref()?.families))
            .unwrap_or_default();
        let answer = self
            .call(AgentRequest::Capture {
                uid: uid.clone(),
                mode: desired.mode,
                on_loss: desired.settings.on_loss,
                iptables: Some(Box::new(desired.settings.iptables(families))),
            })
            .await?;
        if let (
            AgentAnswer::Captured {
                detail, problem, ..
            },
            Some(pod),
        ) = (answer.answer, self.pods.get_mut(uid))
        {
            pod.detail = detail;
            pod.lacks = problem;
        }
        Ok(())
    }

    async fn call(&self, request: AgentRequest) -> Result<Answer, CallError> {
        match &self.broker {
            Some(broker) => broker.call(request).await,
            None => Err(CallError::Closed),
        }
    }
}

/// What broker and proxy are told of a pod: its acceleration as its namespace and the default have it.
fn described(desired: &Desired) -> PodSpec {
    let mut pod = desired.pod.for_wire();
    pod.annotations.insert(
        ACCELERATION_ANNOTATION.to_owned(),
        desired.settings.acceleration.to_string(),
    );
    pod
}

fn handle(answer: Answer) -> Result<Handle, CallError> {
    let AgentAnswer::Adopted(adopted) = answer.answer else {
        return Err(CallError::Unexpected);
    };
    let mut fds = answer.fds.into_iter();
    let netns = fds.next().ok_or(CallError::Unexpected)?;
    Ok(Handle {
        cookie: adopted.netns_cookie,
        netns: Arc::new(netns),
        families: adopted.families,
        labels: adopted.inbound,
        inbound: fds.collect(),
    })
}
