//! Desired against actual: which pods to adopt, capture anew or release. Pure.
//!
//! `reconcile.rs` carries the plan out and makes it anew after every event, so a plan needs no
//! memory and what it says may fail.

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

/// What to do. Releases come first, as a new pod may have the address of an old one; apart from
/// that no pod waits for another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods to give up: gone, or no longer enrolled.
    pub release: Vec<PodUid>,
    /// Pods that are not as they should be.
    pub in_line: Vec<Todo>,
}

/// What one pod needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Todo {
    /// The pod.
    pub uid: PodUid,
    /// The broker has to take it on, or to learn its new description.
    pub adopt: bool,
    /// Its capture has to be brought in line, after that.
    pub capture: bool,
}

/// Compares.
pub fn plan(desired: &BTreeMap<PodUid, Desired>, actual: &BTreeMap<PodUid, Actual>) -> Plan {
    let gone = actual.keys().filter(|uid| !desired.contains_key(*uid));
    let needs = desired.iter().filter_map(|(uid, want)| {
        let is = actual.get(uid);
        let moved =
            is.is_none_or(|is| is.pod.netns != want.pod.netns || is.pod.ips != want.pod.ips);
        let todo = Todo {
            uid: uid.clone(),
            adopt: is.is_none_or(|is| !is.adopted || is.pod != want.pod),
            capture: moved || !is_in_force(is.and_then(|is| is.applied.as_ref()), want),
        };
        (todo.adopt || todo.capture).then_some(todo)
    });
    Plan {
        release: gone.cloned().collect(),
        in_line: needs.collect(),
    }
}

/// Whether mode and settings are those that are wanted.
pub fn is_in_force(applied: Option<&(CaptureMode, CaptureSettings)>, want: &Desired) -> bool {
    applied.is_some_and(|(mode, settings)| *mode == want.mode && *settings == want.settings)
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

    fn todo(uid: &str, adopt: bool, capture: bool) -> Plan {
        let uid = uid.into();
        Plan {
            in_line: vec![Todo {
                uid,
                adopt,
                capture,
            }],
            ..Plan::default()
        }
    }

    #[test]
    fn nothing_is_done_when_all_is_as_it_should_be() {
        let want = desired(&["a", "b"], CaptureMode::Ebpf);
        let is = actual(&["a", "b"], CaptureMode::Ebpf);
        assert_eq!(plan(&want, &is), Plan::default());
    }

    #[test]
    fn pods_that_left_are_released_before_others_come() {
        let want = desired(&["b"], CaptureMode::Ebpf);
        let is = actual(&["a"], CaptureMode::Ebpf);
        let expected = Plan {
            release: vec!["a".into()],
            ..todo("b", true, true)
        };
        assert_eq!(plan(&want, &is), expected);
    }

    #[test]
    fn a_new_mode_is_captured_without_adoption() {
        let want = desired(&["a"], CaptureMode::Iptables);
        let is = actual(&["a"], CaptureMode::Ebpf);
        assert_eq!(plan(&want, &is), todo("a", false, true));
    }

    #[test]
    fn a_new_broker_adopts_without_touching_capture() {
        let want = desired(&["a"], CaptureMode::Ebpf);
        let mut is = actual(&["a"], CaptureMode::Ebpf);
        for pod in is.values_mut() {
            pod.adopted = false;
        }
        assert_eq!(plan(&want, &is), todo("a", true, false));
    }

    #[test]
    fn a_pod_with_another_namespace_is_adopted_and_captured_anew() {
        let mut want = desired(&["a"], CaptureMode::Ebpf);
        let is = actual(&["a"], CaptureMode::Ebpf);
        for pod in want.values_mut() {
            Arc::make_mut(&mut pod.pod).netns = "/run/netns/other".into();
        }
        assert_eq!(plan(&want, &is), todo("a", true, true));
    }
}
