//! How each pod is captured, and what changes (nothing) when one is switched to iptables.

use anyhow::Context as _;
use millrace_testkit::mesh::{MeshNode, MeshPod};
use serde::Serialize;

use super::bookinfo::Bookinfo;
use super::narrate::Narrator;
use super::rules;
use super::split::Split;

/// How a pod is captured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CapturedPod {
    node: String,
    pod: String,
    ip: String,
    capture: String,
    reason: String,
    since: String,
    healthy: bool,
    /// Whether it is captured as well as its node can: by eBPF, unless the node cannot use it.
    pub(super) ok: bool,
}

/// A pod that was switched at run time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Switched {
    pub(super) pod: String,
    pub(super) from: String,
    pub(super) to: String,
    /// What was measured while it was switched.
    pub(super) split: Split,
    /// What was measured after it was switched back.
    pub(super) after: Split,
}

impl Switched {
    pub(super) fn ok(&self) -> bool {
        self.split.ok && self.after.ok && self.from != self.to
    }
}

impl CapturedPod {
    fn of(node: &MeshNode, pod: &MeshPod) -> anyhow::Result<Self> {
        let status = node.pod_status(pod)?;
        let text = |key: &str| status[key].as_str().unwrap_or("-").to_owned();
        let healthy = status["healthy"] == true;
        let able = node.agent("/status")?.json()?["ebpf"]["available"] == true;
        let asked = status["requested"].is_string();
        Ok(Self {
            node: node.name().to_owned(),
            pod: pod.name().to_owned(),
            ip: pod.ip().to_string(),
            capture: text("capture"),
            reason: text("reason"),
            since: text("since"),
            healthy,
            ok: healthy && (status["capture"] == "ebpf" || !able || asked),
        })
    }

    fn show(&self, narrator: &Narrator) {
        narrator.check(
            self.ok,
            format_args!(
                "{:<8} {:<16} {:<13} {:<9} since {} ({})",
                self.node, self.pod, self.ip, self.capture, self.since, self.reason
            ),
        );
    }
}

/// Shows every pod of the mesh.
pub(super) fn table(bookinfo: &Bookinfo, narrator: &Narrator) -> anyhow::Result<Vec<CapturedPod>> {
    let apps = bookinfo.apps.iter().map(|app| (app.node, &app.pod));
    let clients = bookinfo.clients.iter().enumerate();
    let mut shown = Vec::new();
    for (node, pod) in apps.chain(clients) {
        let captured = CapturedPod::of(&bookinfo.nodes[node], pod)?;
        captured.show(narrator);
        shown.push(captured);
    }
    Ok(shown)
}

/// Switches the product page to iptables while it runs, measures, and switches it back.
pub(super) fn switch(
    bookinfo: &Bookinfo,
    requests: u64,
    narrator: &Narrator,
) -> anyhow::Result<Switched> {
    narrator.title("One pod switched to iptables, while it runs");
    let app = bookinfo.app("productpage-v1")?;
    let node = &bookinfo.nodes[app.node];
    let last = rules::STEPS.last().context("no steps")?;
    let from = CapturedPod::of(node, &app.pod)?.capture;
    let to = if from == "iptables" {
        "ebpf"
    } else {
        "iptables"
    };

    node.switch(&app.pod, to)?;
    CapturedPod::of(node, &app.pod)?.show(narrator);
    let split = rules::measure(to, last.shares(), bookinfo, requests, narrator)?;

    node.switch(&app.pod, &from)?;
    CapturedPod::of(node, &app.pod)?.show(narrator);
    let after = rules::measure(&from, last.shares(), bookinfo, requests, narrator)?;
    let pod = app.pod.name().to_owned();
    Ok(Switched {
        pod,
        from,
        to: to.to_owned(),
        split,
        after,
    })
}
