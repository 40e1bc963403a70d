//! Writes the [`View`] that the API shows.

use std::sync::Arc;

use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::handoff::{CaptureMode, PodSpec};

use super::{Reconciler, Tracked};
use crate::config::AgentConfig;
use crate::integrity::{NodeIntegrity, PodIntegrity, Subject, Subjects};
use crate::kernel::{AccelerationCounts, CaptureEvents, Kernel};
use crate::redirect::{self, CaptureSettings};
use crate::status::{Ability, NodeStatus, PodCounts, PodStatus, View, rfc3339};

impl Reconciler {
    /// Publishes what is now.
    pub(super) fn publish(&mut self) {
        let set = self.sets.borrow().clone();
        let decided = self.decide();
        let pods: Vec<PodStatus> = set
            .pods
            .values()
            .map(|pod| {
                let reason = match redirect::enrolled(pod) {
                    Err(reason) => Err(reason),
                    Ok(()) => Ok(decided
                        .get(&pod.uid)
                        .map(|decided| decided.choice.clone())
                        .map_or((CaptureMode::None, String::new()), |c| (c.mode, c.reason))),
                };
                self.pod_status(pod, reason)
            })
            .collect();
        let mut view = empty(&self.config, &self.kernel, &self.started);
        view.node.broker_connected = self.broker.is_some();
        view.node.proxies.clone_from(&self.proxies);
        view.node.proxy_gone = self.proxy_gone;
        view.node.synced = set.synced && self.told_synced;
        view.node.pods = PodCounts::of(&pods);
        view.node.problems.clone_from(&set.problems);
        view.pods = pods;
        self.tell_watch();
        self.view.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
    }

    /// Tells the watch what there is to watch over, and what it asked for and got.
    fn tell_watch(&mut self) {
        let pods = self.pods.iter().filter_map(|(uid, tracked)| {
            let handle = tracked.handle.as_ref()?;
            let in_force = tracked.applied.as_ref();
            let settled = in_force.filter(|(mode, _)| *mode == tracked.in_force);
            let subject = Subject {
                uid: uid.clone(),
                name: tracked.pod.qualified_name(),
                cookie: handle.cookie,
                netns: Arc::clone(&handle.netns),
                families: handle.families,
                ips: tracked.pod.ips.clone(),
                mode: tracked.in_force,
                settings: settled
                    .map(|(_, settings)| settings.clone())
                    .unwrap_or_default(),
                settled: settled.is_some() && tracked.adopted,
            };
            Some((uid.clone(), subject))
        });
        let accepting = self.proxies.iter().filter(|proxy| !proxy.draining);
        let proxies = if self.proxy_gone {
            Vec::new()
        } else {
            accepting.map(|proxy| proxy.epoch).collect()
        };
        self.subjects.send_replace(Arc::new(Subjects {
            broker: self.broker.clone(),
            proxies,
            pods: pods.collect(),
        }));
        self.integrity.look_again();
    }

    fn pod_status(
        &mut self,
        pod: &PodSpec,
        decision: Result<(CaptureMode, String), String>,
    ) -> PodStatus {
        let (settings, annotation_problems) = CaptureSettings::read(pod);
        let tracked = self.pods.get(&pod.uid);
        let capture = tracked.map_or(CaptureMode::None, |tracked| tracked.in_force);
        let enrolled = decision.is_ok();
        let wanted = decision
            .as_ref()
            .map_or(CaptureMode::None, |(mode, _)| *mode);
        let problem = if enrolled {
            self.problem(tracked, wanted)
        } else {
            tracked.and_then(|tracked| tracked.problem.clone())
        };
        let since = self.store.captured(&pod.uid, capture);
        PodStatus {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            ips: pod.ips.clone(),
            enrolled,
            capture,
            reason: decision.map_or_else(|reason| reason, |(_, reason)| reason),
            requested: self.store.requested(&pod.uid),
            since: rfc3339(since),
            healthy: enrolled && problem.is_none(),
            problem,
            owner: if capture == CaptureMode::None {
                "none".to_owned()
            } else {
                format!("millrace-agent/{}", self.config.node_name)
            },
            netns_cookie: self.cookie(pod),
            families: tracked.and_then(|tracked| Some(tracked.handle.as_ref()?.families)),
            on_capture_loss: settings.on_loss,
            acceleration: settings.acceleration.to_string(),
            detail: tracked
                .map(|tracked| tracked.detail.clone())
                .unwrap_or_default(),
            annotation_problems,
            capture_events: CaptureEvents::default(),
            accelerated: AccelerationCounts::default(),
            integrity: PodIntegrity::default(),
        }
    }

    /// What is wrong with an enrolled pod, the worst of it.
    fn problem(&self, tracked: Option<&Tracked>, wanted: CaptureMode) -> Option<String> {
        let Some(tracked) = tracked else {
            return Some("not adopted yet, is the broker running?".to_owned());
        };
        if tracked.problem.is_some() {
            return tracked.problem.clone();
        }
        if self.proxy_gone || self.proxies.is_empty() {
            return Some("no proxy is connected".to_owned());
        }
        if tracked.in_force != wanted {
            return Some(format!("to be captured by {wanted}"));
        }
        self.integrity
            .problem(&tracked.pod.uid)
            .or_else(|| tracked.lacks.clone())
    }

    fn cookie(&self, pod: &PodSpec) -> Option<u64> {
        Some(self.pods.get(&pod.uid)?.handle.as_ref()?.cookie)
    }
}

/// A view without pods.
pub(super) fn empty(config: &AgentConfig, kernel: &Kernel, started: &str) -> View {
    let ability = kernel.ability();
    let acceleration = kernel.acceleration();
    View {
        node: NodeStatus {
            node: config.node_name.clone(),
            build: BuildInfo::of("millrace-agent"),
            pid: std::process::id(),
            started: started.to_owned(),
            capture: config.capture,
            ebpf: Ability {
                available: ability.is_ok(),
                reason: ability.err(),
            },
            acceleration: Ability {
                available: acceleration.is_ok(),
                reason: acceleration.err(),
            },
            broker_connected: false,
            proxies: Vec::new(),
            proxy_gone: false,
            synced: false,
            pods: PodCounts::default(),
            problems: Vec::new(),
            maps: Vec::new(),
            integrity: NodeIntegrity::default(),
        },
        pods: Vec::new(),
    }
}
