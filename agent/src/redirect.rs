//! Decides how a pod is captured, and is the only place that knows both ways.
//!
//! Pure: the pod's labels and annotations, the node's settings and abilities in, a [`Choice`]
//! with its reason out. The order in which a change is carried out is `handover`.

use std::collections::BTreeMap;
use std::str::FromStr;

use ipnet::IpNet;
use millrace_runtime::handoff::accel::ACCELERATION_ANNOTATION as ACCELERATION;
use millrace_runtime::handoff::{
    self, CaptureMode, Families, IptablesConfig, OnCaptureLoss, PodSpec,
};
use serde::{Deserialize, Serialize};

use crate::bpf::{self, Acceleration, CapturePolicy};

/// Label by which a pod or its namespace opts in.
pub const DATAPLANE_MODE: &str = "millrace.io/dataplane-mode";
/// Annotation that forces a capture mode.
pub const CAPTURE: &str = "millrace.io/capture";
/// Annotation for what happens when capture is lost.
pub const ON_CAPTURE_LOSS: &str = "millrace.io/on-capture-loss";

/// What somebody asks for: a person at run time, a pod's annotation, the node's flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// The best that the node can do.
    #[default]
    Auto,
    /// eBPF.
    Ebpf,
    /// iptables.
    Iptables,
    /// No capture.
    None,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "ebpf" => Ok(Self::Ebpf),
            "iptables" => Ok(Self::Iptables),
            "none" | "off" => Ok(Self::None),
            other => Err(format!("{other:?} is not auto, ebpf, iptables or none")),
        }
    }
}

/// What the node can and shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAbilities {
    /// The operator's setting for all pods.
    pub wish: Wish,
    /// Why the eBPF programs do not work here, if they do not.
    pub ebpf: Result<(), String>,
}

/// How a pod shall be captured, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The mode.
    pub mode: CaptureMode,
    /// For people.
    pub reason: String,
}

impl Choice {
    fn new(mode: CaptureMode, reason: impl Into<String>) -> Self {
        Self {
            mode,
            reason: reason.into(),
        }
    }
}

/// Whether the pod opted in, by its own label or, where it has none, by its namespace's; with the
/// reason if not.
pub fn enrolled(pod: &PodSpec) -> Result<(), String> {
    let own = pod.labels.get(DATAPLANE_MODE).map(|mode| (mode, ""));
    let label = own.or_else(|| {
        let mode = pod.namespace_labels.get(DATAPLANE_MODE)?;
        Some((mode, " of its namespace"))
    });
    match label.map(|(mode, whose)| (mode.as_str(), whose)) {
        Some(("node", _)) => Ok(()),
        Some(("none", whose)) => Err(format!("label {DATAPLANE_MODE}=none{whose} excludes it")),
        Some((other, whose)) => Err(format!(
            "label {DATAPLANE_MODE}={other}{whose} is not the node's affair"
        )),
        None => Err(format!("no label {DATAPLANE_MODE}=node")),
    }
}

/// Chooses the mode of an enrolled pod; `at_run_time` is what a person asked for through the API.
/// `refused` is why eBPF failed for this very pod, if it was tried.
pub fn choose(
    at_run_time: Option<Wish>,
    settings: &CaptureSettings,
    node: &NodeAbilities,
    refused: Option<&str>,
) -> Choice {
    let (wish, who) = match (at_run_time, settings.capture) {
        (Some(wish), _) => (wish, "set at run time"),
        (None, Some(wish)) => (wish, "annotation millrace.io/capture"),
        (None, None) => (node.wish, "node setting"),
    };
    let ebpf = match (&node.ebpf, refused) {
        (Err(reason), _) => Err(reason.as_str()),
        (Ok(()), Some(reason)) => Err(reason),
        (Ok(()), None) => Ok(()),
    };
    match (wish, ebpf) {
        (Wish::None, _) => Choice::new(CaptureMode::None, format!("{who}: none")),
        (Wish::Iptables, _) => Choice::new(CaptureMode::Iptables, format!("{who}: iptables")),
        (Wish::Ebpf, Ok(())) => Choice::new(CaptureMode::Ebpf, format!("{who}: ebpf")),
        (Wish::Auto, Ok(())) => Choice::new(CaptureMode::Ebpf, "every eBPF feature is available"),
        // Asked for or not: a pod that opted in is captured by what works.
        (Wish::Ebpf, Err(reason)) => Choice::new(
            CaptureMode::Iptables,
            format!("{who}: ebpf, which cannot be done: {reason}"),
        ),
        (Wish::Auto, Err(reason)) => {
            Choice::new(CaptureMode::Iptables, format!("no eBPF: {reason}"))
        }
    }
}

/// Everything that a pod's annotations say about its capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureSettings {
    /// `millrace.io/capture`.
    pub capture: Option<Wish>,
    /// `millrace.io/on-capture-loss`.
    pub on_loss: OnCaptureLoss,
    /// `millrace.io/acceleration`.
    pub acceleration: handoff::Acceleration,
    /// `traffic.sidecar.istio.io/excludeInboundPorts`.
    pub exclude_inbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeInboundPorts`; `None` is `*`.
    pub include_inbound_ports: Option<Vec<u16>>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`.
    pub exclude_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/includeOutboundPorts`.
    pub include_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// `traffic.sidecar.istio.io/includeOutboundIPRanges`; `None` is `*`.
    pub include_outbound_cidrs: Option<Vec<IpNet>>,
}

impl CaptureSettings {
    /// Reads a pod's annotations; its namespace's stand in for those of Millrace's own that the pod
    /// does not have. What cannot be read keeps its default, which captures and fails closed, and
    /// is named in the returned problems.
    pub fn read(pod: &PodSpec) -> (Self, Vec<String>) {
        let mut reader = Reader {
            annotations: &pod.annotations,
            of_namespace: &pod.namespace_annotations,
            problems: Vec::new(),
        };
        let settings = Self {
            capture: reader.one(CAPTURE, |text| text.parse().ok()),
            on_loss: reader
                .one(ON_CAPTURE_LOSS, |text| match text {
                    "closed" => Some(OnCaptureLoss::Closed),
                    "open" => Some(OnCaptureLoss::Open),
                    _ => None,
                })
                .unwrap_or_default(),
            acceleration: reader
                .one(ACCELERATION, handoff::Acceleration::parse)
                .unwrap_or(handoff::Acceleration::DEFAULT),
            exclude_inbound_ports: reader.list("excludeInboundPorts"),
            include_inbound_ports: reader.list_or_all("includeInboundPorts"),
            exclude_outbound_ports: reader.list("excludeOutboundPorts"),
            include_outbound_ports: reader.list("includeOutboundPorts"),
            exclude_outbound_cidrs: reader.list("excludeOutboundIPRanges"),
            include_outbound_cidrs: reader.list_or_all("includeOutboundIPRanges"),
        };
        (settings, reader.problems)
    }

    /// The same settings as nat rules.
    pub fn iptables(&self, families: Families) -> IptablesConfig {
        let mut config = IptablesConfig {
            inbound_ports_include: self.include_inbound_ports.clone(),
            outbound_ports_include: self.include_outbound_ports.clone(),
            outbound_ports_exclude: self.exclude_outbound_ports.clone(),
            outbound_cidrs_include: self.include_outbound_cidrs.clone(),
            outbound_cidrs_exclude: self.exclude_outbound_cidrs.clone(),
            ipv6: families.v6,
            ..IptablesConfig::default()
        };
        config
            .inbound_ports_exclude
            .extend(&self.exclude_inbound_ports);
        config
    }

    /// The same settings as a policy of the eBPF programs.
    pub fn policy(&self) -> CapturePolicy {
        CapturePolicy {
            on_capture_loss: match self.on_loss {
                OnCaptureLoss::Closed => bpf::OnCaptureLoss::Closed,
                OnCaptureLoss::Open => bpf::OnCaptureLoss::Open,
            },
            acceleration: acceleration(self.acceleration),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            include_outbound_ports: self.include_outbound_ports.clone(),
            exclude_outbound_cidrs: self.exclude_outbound_cidrs.clone(),
            include_outbound_cidrs: self.include_outbound_cidrs.clone(),
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            include_inbound_ports: self.include_inbound_ports.clone(),
            ..CapturePolicy::default()
        }
    }
}

/// The programs' word for a setting.
pub fn acceleration(setting: handoff::Acceleration) -> Acceleration {
    match setting {
        handoff::Acceleration::Auto => Acceleration::Auto,
        handoff::Acceleration::On => Acceleration::On,
        handoff::Acceleration::Off => Acceleration::Off,
    }
}

/// One step of a change of capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the pod's policy into the maps.
    EnrollEbpf,
    /// Take it out of the maps.
    WithdrawEbpf,
    /// Let the broker bring rules and guard inside the pod in line with the new mode.
    TellBroker,
}

/// The steps to a mode, in an order in which the pod is captured at every moment: the new way is
/// in place before the old one goes. Both in place together are harmless: what eBPF has sent to
/// the listener goes to 127.0.0.1, which the nat rules leave alone, and what they have redirected
/// arrives at the listener that `sk_lookup` would choose. Nor can connections of both be taken for
/// one another: the rules send to the pod's own address (`iptables::rulesets_at`).
pub fn handover(to: CaptureMode) -> &'static [Step] {
    match to {
        CaptureMode::Ebpf => &[Step::EnrollEbpf, Step::TellBroker],
        CaptureMode::Iptables | CaptureMode::None => &[Step::TellBroker, Step::WithdrawEbpf],
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    of_namespace: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

const ISTIO: &str = "traffic.sidecar.istio.io/";

impl Reader<'_> {
    fn one<T>(&mut self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let own = self.annotations.get(key).map(|text| (text, ""));
        let inherited = || Some((self.of_namespace.get(key)?, " of the namespace"));
        let (text, whose) = own.or_else(inherited)?;
        let text = text.trim();
        let parsed = parse(text);
        if parsed.is_none() {
            self.problems.push(format!(
                "annotation {key}{whose}: {text:?} is not a value it can have"
            ));
        }
        parsed
    }

    fn list<T: FromStr>(&mut self, key: &str) -> Vec<T> {
        self.list_or_all(key).unwrap_or_default()
    }

    /// A comma-separated list; `None` for `*` or no annotation.
    fn list_or_all<T: FromStr>(&mut self, key: &str) -> Option<Vec<T>> {
        let key = format!("{ISTIO}{key}");
        let text = self.annotations.get(&key)?.trim();
        if text == "*" {
            return None;
        }
        let mut items = Vec::new();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let Ok(item) = item.parse() else {
                self.problems
                    .push(format!("annotation {key}: {item:?} cannot be read"));
                return None;
            };
            items.push(item);
        }
        Some(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> NodeAbilities {
        NodeAbilities {
            wish: Wish::Auto,
            ebpf: Ok(()),
        }
    }

    fn unable() -> NodeAbilities {
        NodeAbilities {
            wish: Wish::Auto,
            ebpf: Err("no BTF".to_owned()),
        }
    }

    fn asks(capture: Option<Wish>) -> CaptureSettings {
        CaptureSettings {
            capture,
            ..CaptureSettings::default()
        }
    }

    #[test]
    fn the_choice_follows_run_time_then_annotation_then_node_then_ability() {
        use CaptureMode::{Ebpf, Iptables, None as Off};
        let node = |wish| NodeAbilities { wish, ..able() };
        let cases = [
            (None, None, able(), Ebpf),
            (None, None, unable(), Iptables),
            (None, None, node(Wish::Iptables), Iptables),
            (None, Some(Wish::Ebpf), node(Wish::Iptables), Ebpf),
            (None, Some(Wish::Iptables), able(), Iptables),
            (Some(Wish::Ebpf), Some(Wish::Iptables), able(), Ebpf),
            (Some(Wish::None), None, able(), Off),
            (None, Some(Wish::Ebpf), unable(), Iptables),
        ];
        for (run_time, annotation, node, mode) in cases {
            let choice = choose(run_time, &asks(annotation), &node, None);
            assert_eq!(choice.mode, mode, "{choice:?}");
        }
    }

    #[test]
    fn the_reason_says_why_ebpf_is_not_used() {
        let choice = choose(None, &asks(None), &unable(), None);
        assert_eq!(choice.reason, "no eBPF: no BTF");
        let choice = choose(None, &asks(Some(Wish::Ebpf)), &able(), Some("map is full"));
        assert_eq!(choice.mode, CaptureMode::Iptables);
        assert!(choice.reason.contains("map is full"));
    }

    #[test]
    fn the_new_way_is_in_place_before_the_old_one_goes() {
        assert_eq!(handover(CaptureMode::Ebpf)[0], Step::EnrollEbpf);
        assert_eq!(handover(CaptureMode::Iptables)[0], Step::TellBroker);
        // The guard inside the pod must be gone before nothing captures any more.
        assert_eq!(handover(CaptureMode::None)[0], Step::TellBroker);
    }

    #[test]
    fn only_a_labelled_pod_is_enrolled() {
        let with = |value: &str| PodSpec {
            labels: [(DATAPLANE_MODE.to_owned(), value.to_owned())].into(),
            ..PodSpec::default()
        };
        assert_eq!(enrolled(&with("node")), Ok(()));
        assert!(enrolled(&with("none")).is_err());
        assert!(enrolled(&PodSpec::default()).is_err());
    }

    #[test]
    fn the_namespace_decides_where_the_pod_says_nothing() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let pod = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| PodSpec {
            labels: map(labels),
            annotations: map(annotations),
            namespace_labels: map(&[(DATAPLANE_MODE, "node")]),
            namespace_annotations: map(&[
                (CAPTURE, "iptables"),
                (ON_CAPTURE_LOSS, "open"),
                (ACCELERATION, "maybe"),
                ("traffic.sidecar.istio.io/excludeOutboundPorts", "3306"),
            ]),
            ..PodSpec::default()
        };
        assert_eq!(enrolled(&pod(&[], &[])), Ok(()));
        assert!(enrolled(&pod(&[(DATAPLANE_MODE, "none")], &[])).is_err());
        let (settings, problems) = CaptureSettings::read(&pod(&[], &[]));
        assert_eq!(settings.capture, Some(Wish::Iptables));
        assert_eq!(settings.on_loss, OnCaptureLoss::Open);
        assert_eq!(settings.exclude_outbound_ports, [0_u16; 0], "the pod's own");
        assert!(problems[0].contains("of the namespace"), "{problems:?}");
        let own = [(CAPTURE, "ebpf"), (ON_CAPTURE_LOSS, "closed")];
        let (settings, _) = CaptureSettings::read(&pod(&[], &own));
        assert_eq!(settings.capture, Some(Wish::Ebpf));
        assert_eq!(settings.on_loss, OnCaptureLoss::Closed);
    }

    #[test]
    fn annotations_are_read_and_bad_ones_named() {
        let annotations: BTreeMap<String, String> = [
            (CAPTURE, "iptables"),
            (ON_CAPTURE_LOSS, "ajar"),
            (
                "traffic.sidecar.istio.io/excludeOutboundPorts",
                "3306, 6379",
            ),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.0.0.0/8,fd00::/8",
            ),
            ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "http"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let (settings, problems) = CaptureSettings::read(&PodSpec {
            annotations,
            ..PodSpec::default()
        });
        assert_eq!(settings.capture, Some(Wish::Iptables));
        assert_eq!(settings.on_loss, OnCaptureLoss::Closed);
        assert_eq!(settings.exclude_outbound_ports, [3306, 6379]);
        assert_eq!(settings.include_outbound_cidrs.unwrap().len(), 2);
        assert_eq!(settings.include_inbound_ports, None);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains(ON_CAPTURE_LOSS));
    }
}
