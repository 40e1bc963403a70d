//! Carries out what the plan says of one pod: calls to the broker and writes into the maps, in the
//! order that `redirect::handover` gives. Pods are worked on side by side, so what is done here
//! has the pod to itself and touches no other.

use std::os::fd::AsFd;
use std::sync::Arc;

use millrace_runtime::handoff::accel::ACCELERATION_ANNOTATION;
use millrace_runtime::handoff::{
    AgentAnswer, AgentRequest, BrokerFault, CaptureMode, OnCaptureLoss, PodSpec, PodUid,
};

use super::{Decided, Handle, Tracked};
use crate::bpf::PodEnrolment;
use crate::broker::chain;
use crate::broker_client::{Answer, BrokerClient, CallError};
use crate::enroll::{self, Desired, Todo};
use crate::kernel::Kernel;
use crate::redirect::{Step, acceleration, handover};

/// What has to be done about one pod, and the pod itself.
pub(super) struct Job {
    pub(super) uid: PodUid,
    pub(super) work: Work,
    pub(super) broker: Arc<BrokerClient>,
    pub(super) kernel: Kernel,
}

/// The two things that can be done about a pod.
pub(super) enum Work {
    /// End its capture and give it up.
    Release(Tracked),
    /// Bring it in line; a pod that is new is not tracked yet.
    InLine(Todo, Box<Decided>, Option<Tracked>),
}

/// A job that came to its end.
pub(super) struct Finished {
    pub(super) uid: PodUid,
    /// The pod as it is now; `None` when it is gone.
    pub(super) pod: Option<Tracked>,
    /// Whether its capture has to be decided anew, or why not all was carried out.
    pub(super) result: Result<bool, CallError>,
}

impl Job {
    /// Does the work.
    pub(super) async fn carry_out(self) -> Finished {
        let (uid, hands) = (
            self.uid.clone(),
            Hands {
                uid: self.uid,
                broker: self.broker,
                kernel: self.kernel,
            },
        );
        let (pod, result) = match self.work {
            Work::Release(mut pod) => match hands.release(&pod).await {
                Ok(()) => (None, Ok(false)),
                Err(error) => {
                    pod.failed(chain(&error));
                    (Some(pod), Err(error))
                }
            },
            Work::InLine(todo, decided, pod) => {
                let pod = pod.unwrap_or_else(|| Tracked::new(Arc::clone(&decided.desired.pod)));
                let (pod, result) = hands.bring_in_line(todo, &decided, pod).await;
                (Some(pod), result)
            }
        };
        Finished { uid, pod, result }
    }
}

/// What the work is done with.
struct Hands {
    uid: PodUid,
    broker: Arc<BrokerClient>,
    kernel: Kernel,
}

impl Hands {
    /// Ends a pod's capture without a gap in what it may do, then gives it up.
    async fn release(&self, pod: &Tracked) -> Result<(), CallError> {
        let uid = &self.uid;
        let off = AgentRequest::Capture {
            uid: uid.clone(),
            mode: CaptureMode::None,
            on_loss: OnCaptureLoss::Open,
            iptables: None,
        };
        // The broker may not know the pod any more; the release below says all that matters.
        match self.broker.call(off).await {
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => tracing::debug!(%uid, error = %chain(&error), "rules not taken out"),
            Ok(_) => {}
        }
        if let Some(handle) = &pod.handle
            && let Err(error) = self.kernel.withdraw(handle.cookie)
        {
            tracing::warn!(%uid, error, "pod stays enrolled in eBPF");
        }
        self.broker
            .call(AgentRequest::Release { uid: uid.clone() })
            .await?;
        tracing::info!(%uid, "pod left");
        Ok(())
    }

    /// Adopts and captures as far as that is needed; true when the decision has to be taken anew.
    async fn bring_in_line(
        &self,
        todo: Todo,
        decided: &Decided,
        mut pod: Tracked,
    ) -> (Tracked, Result<bool, CallError>) {
        let desired = &decided.desired;
        if todo.adopt
            && let Err(error) = self.adopt(desired, &mut pod).await
        {
            pod.failed(chain(&error));
            return (pod, Err(error));
        }
        // Adoption may have brought another namespace, or other sockets.
        let capture = todo.capture || !enroll::is_in_force(pod.applied.as_ref(), desired);
        if !capture || !pod.adopted || pod.handle.is_none() {
            return (pod, Ok(false));
        }
        let result = self.capture(decided, &mut pod).await;
        if let Err(error) = &result {
            pod.failed(chain(error));
        }
        (pod, result)
    }

    /// Lets the broker take a pod on.
    async fn adopt(&self, desired: &Desired, pod: &mut Tracked) -> Result<(), CallError> {
        let uid = &self.uid;
        let request = AgentRequest::Adopt {
            pod: Box::new(described(desired)),
        };
        let handle = handle(self.broker.call(request).await?)?;
        let before = pod.handle.as_ref().map(|old| (old.cookie, &old.labels));
        let same = before == Some((handle.cookie, &handle.labels));
        let stale = before
            .map(|(cookie, _)| cookie)
            .filter(|c| *c != handle.cookie);
        pod.adopted = true;
        pod.pod = Arc::clone(&desired.pod);
        pod.handle = Some(handle);
        pod.succeeded();
        if !same {
            pod.capture_anew();
        }
        if let Some(cookie) = stale
            && let Err(error) = self.kernel.withdraw(cookie)
        {
            tracing::warn!(%uid, error, "the pod's old namespace stays enrolled in eBPF");
        }
        let in_force = pod.applied.as_ref().map(|(mode, _)| *mode);
        if in_force == Some(desired.mode) {
            // A broker that is new has to know what is in force.
            self.tell_broker(desired, pod)
                .await
                .inspect_err(|_| pod.capture_anew())?;
        }
        Ok(())
    }

    /// Brings a pod's capture in line; true when the decision has to be taken anew.
    async fn capture(&self, decided: &Decided, pod: &mut Tracked) -> Result<bool, CallError> {
        let desired = &decided.desired;
        let uid = &self.uid;
        let mut complete = true;
        for step in handover(desired.mode) {
            match step {
                Step::EnrollEbpf => match self.enroll(desired, pod) {
                    Ok(enrolled) => complete &= enrolled,
                    Err(reason) => {
                        tracing::warn!(%uid, reason, "pod cannot be captured by eBPF");
                        pod.refused = Some(reason);
                        return Ok(true);
                    }
                },
                Step::WithdrawEbpf => self.withdraw(pod)?,
                Step::TellBroker => self.tell_broker(desired, pod).await?,
            }
        }
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
    fn enroll(&self, desired: &Desired, pod: &Tracked) -> Result<bool, String> {
        let handle = pod.handle.as_ref().ok_or("the pod is not adopted")?;
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

    fn withdraw(&self, pod: &Tracked) -> Result<(), CallError> {
        if let Some(handle) = &pod.handle {
            self.kernel.withdraw(handle.cookie).map_err(|message| {
                CallError::Fault(BrokerFault {
                    retryable: true,
                    message,
                })
            })?;
        }
        Ok(())
    }

    async fn tell_broker(&self, desired: &Desired, pod: &mut Tracked) -> Result<(), CallError> {
        let families = pod.handle.as_ref().map(|handle| handle.families);
        let rules = desired.settings.iptables(families.unwrap_or_default());
        let answer = self
            .broker
            .call(AgentRequest::Capture {
                uid: self.uid.clone(),
                mode: desired.mode,
                on_loss: desired.settings.on_loss,
                iptables: Some(Box::new(rules)),
            })
            .await?;
        if let AgentAnswer::Captured {
            detail, problem, ..
        } = answer.answer
        {
            pod.detail = detail;
            pod.lacks = problem;
        }
        Ok(())
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
