//! Desired against actual: which pods to adopt, capture anew or release. Pure.
//!
//! `reconcile.rs` carries the actions out and runs the plan again after every event, so a plan
//! needs no memory and an action may fail.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_runtime::handoff::{CaptureMode, PodSpec, PodUid};

use crate::redirect::CaptureSettings;

/// A pod as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its description.
    pub pod: Arc<PodSpec>,
    /// How it shall be captured.
    pub mode: CaptureMode,
    /// With which settings.
    pub settings: CaptureSettings,
}

/// A pod as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual {
    /// The description that the broker has.
    pub pod: Arc<PodSpec>,
    /// The broker that adopted it is still there.
    pub adopted: bool,
    /// Mode and settings in force; `None` when nothing was carried out completely.
    pub applied: Option<(CaptureMode, CaptureSettings)>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the pod up: it is gone, or no longer enrolled.
    Release(PodUid),
    /// Let the broker take it on, or learn its new description.
    Adopt(PodUid),
    /// Bring its capture in line.
    Capture(PodUid),
}

/// What to do, in order: releases first, as a new pod may have the address of an old one.
pub fn plan(desired: &BTreeMap<PodUid, Desired>, actual: &BTreeMap<PodUid, Actual>) -> Vec<Action> {
    let gone = actual
        .keys()
        .filter(|uid| !desired.contains_key(*uid))
        .map(|uid| Action::Release(uid.clone()));
    let mut actions: Vec<Action> = gone.collect();
    let mut captures = Vec::new();
    for (uid, want) in desired {
        let is = actual.get(uid);
        if is.is_none_or(|is| !is.adopted || is.pod != want.pod) {
            actions.push(Action::Adopt(uid.clone()));
        }
        let in_force = is.and_then(|is| is.applied.as_ref());
        let moved =
            is.is_none_or(|is| is.pod.netns != want.pod.netns || is.pod.ips != want.pod.ips);
        let fits = in_force
            .is_some_and(|(mode, settings)| *mode == want.mode && *settings == want.settings);
        if moved || !fits {
            captures.push(Action::Capture(uid.clone()));
        }
    }
    actions.extend(captures);
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Arc<PodSpec> {
        Arc::new(PodSpec {
            uid: name.into(),
            name: name.to_owned(),
            netns: format!("/run/netns/{name}").into(),
            ..PodSpec::default()
        })
    }

    fn desired(names: &[&str], mode: CaptureMode) -> BTreeMap<PodUid, Desired> {
        let want = |name: &&str| {
            let settings = CaptureSettings::default();
            let pod = pod(name);
            (
                pod.uid.clone(),
                Desired {
                    pod,
                    mode,
                    settings,
                },
            )
        };
        names.iter().map(want).collect()
    }

    fn actual(names: &[&str], mode: CaptureMode) -> BTreeMap<PodUid, Actual> {
        let is = |name: &&str| {
            let pod = pod(name);
            let applied = Some((mode, CaptureSettings::default()));
            (
                pod.uid.clone(),
                Actual {
                    pod,
                    adopted: true,
                    applied,
                },
            )
        };
        names.iter().map(is).collect()
    }

    #[test]
    fn nothing_is_done_when_all_is_as_it_should_be() {
        let want = desired(&["a", "b"], CaptureMode::Ebpf);
        let is = actual(&["a", "b"], CaptureMode::Ebpf);
        assert_eq!(plan(&want, &is), []);
    }

    #[test]
    fn pods_that_left_are_released_before_others_come() {
        let want = desired(&["b"], CaptureMode::Ebpf);
        let is = actual(&["a"], CaptureMode::Ebpf);
        let expected = [
            Action::Release("a".into()),
            Action::Adopt("b".into()),
            Action::Capture("b".into()),
        ];
        assert_eq!(plan(&want, &is), expected);
    }

    #[test]
    fn a_new_mode_is_captured_without_adoption() {
        let want = desired(&["a"], CaptureMode::Iptables);
        let is = actual(&["a"], CaptureMode::Ebpf);
        assert_eq!(plan(&want, &is), [Action::Capture("a".into())]);
    }

    #[test]
    fn a_new_broker_adopts_without_touching_capture() {
        let want = desired(&["a"], CaptureMode::Ebpf);
        let mut is = actual(&["a"], CaptureMode::Ebpf);
        for pod in is.values_mut() {
            pod.adopted = false;
        }
        assert_eq!(plan(&want, &is), [Action::Adopt("a".into())]);
    }

    #[test]
    fn a_pod_with_another_namespace_is_adopted_and_captured_anew() {
        let mut want = desired(&["a"], CaptureMode::Ebpf);
        let is = actual(&["a"], CaptureMode::Ebpf);
        for pod in want.values_mut() {
            Arc::make_mut(&mut pod.pod).netns = "/run/netns/other".into();
        }
        let expected = [Action::Adopt("a".into()), Action::Capture("a".into())];
        assert_eq!(plan(&want, &is), expected);
    }
}
