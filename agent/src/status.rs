//! What the agent tells about its node and pods: on `agent.sock`, to `millctl` and in dumps.
//!
//! Plain data, written by `reconcile.rs` after every change and read by `api.rs`, which adds what
//! the kernel counts.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::handoff::{CaptureMode, Families, OnCaptureLoss, PodUid, ProxyState};
use serde::{Deserialize, Serialize};

use crate::integrity::{Integrity, NodeIntegrity, PodIntegrity};
use crate::kernel::{AccelerationCounts, CaptureEvents, Kernel};
use crate::pods::SourceProblem;
use crate::redirect::Wish;

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Identity.
    pub uid: PodUid,
    /// Name within its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Whether it opted in.
    pub enrolled: bool,
    /// How it is captured now.
    pub capture: CaptureMode,
    /// Why so.
    pub reason: String,
    /// What a person asked for at run time, if anything.
    pub requested: Option<Wish>,
    /// Since when it is captured like this, RFC 3339.
    pub since: String,
    /// Captured as it should be, with a proxy to serve it.
    pub healthy: bool,
    /// What is wrong, if it is not healthy.
    pub problem: Option<String>,
    /// Who owns its capture.
    pub owner: String,
    /// `SO_NETNS_COOKIE` of its namespace.
    pub netns_cookie: Option<u64>,
    /// Address families of its namespace.
    pub families: Option<Families>,
    /// What happens when its capture is lost.
    pub on_capture_loss: OnCaptureLoss,
    /// `auto`, `on` or `off`.
    pub acceleration: String,
    /// What the broker did inside it.
    pub detail: String,
    /// Annotations that could not be read.
    pub annotation_problems: Vec<String>,
    /// Connections that eBPF did not capture as it should, since the agent's start.
    #[serde(default)]
    pub capture_events: CaptureEvents,
    /// What acceleration does for it.
    #[serde(default)]
    pub accelerated: AccelerationCounts,
    /// Whether its capture is as it should be, and what was found and repaired.
    #[serde(default)]
    pub integrity: PodIntegrity,
}

/// How full a map of the eBPF programs is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatus {
    /// Its name.
    pub map: String,
    /// Elements in it.
    pub used: usize,
    /// Elements that it can hold.
    pub capacity: u32,
}

/// Something that this node can do or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    /// It can.
    pub available: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// The agent's build.
    pub build: BuildInfo,
    /// The agent's process.
    pub pid: u32,
    /// When the agent started, RFC 3339.
    pub started: String,
    /// The operator's setting for all pods.
    pub capture: Wish,
    /// Whether the eBPF programs are loaded.
    pub ebpf: Ability,
    /// Whether connections can be accelerated.
    #[serde(default)]
    pub acceleration: Ability,
    /// Whether the broker is connected.
    pub broker_connected: bool,
    /// Proxies that the broker knows, oldest epoch first.
    pub proxies: Vec<ProxyState>,
    /// No proxy has been heard of for the deadline.
    pub proxy_gone: bool,
    /// Every pod of the source was looked at once.
    pub synced: bool,
    /// Pods known, captured by eBPF, by iptables, and not healthy.
    pub pods: PodCounts,
    /// Descriptions that could not be used.
    pub problems: Vec<SourceProblem>,
    /// Maps of the eBPF programs; none where these are not loaded.
    #[serde(default)]
    pub maps: Vec<MapStatus>,
    /// Whether what captures all pods is as it should be.
    #[serde(default)]
    pub integrity: NodeIntegrity,
}

impl NodeStatus {
    /// The same with how full the maps are now and what the watch over capture knows.
    #[must_use]
    pub fn with_live(&self, kernel: &Kernel, integrity: &Integrity) -> Self {
        let maps = kernel.occupancy().into_iter().map(|map| MapStatus {
            map: map.map.to_owned(),
            used: map.used,
            capacity: map.capacity,
        });
        Self {
            maps: maps.collect(),
            integrity: integrity.node(),
            ..self.clone()
        }
    }
}

impl PodStatus {
    /// The same with what programs and the watch over capture have reported up to now.
    #[must_use]
    pub fn with_live(&self, kernel: &Kernel, integrity: &Integrity) -> Self {
        Self {
            capture_events: self
                .netns_cookie
                .map(|cookie| kernel.capture_events(cookie))
                .unwrap_or_default(),
            accelerated: self
                .netns_cookie
                .map(|cookie| kernel.pod_acceleration(cookie))
                .unwrap_or_default(),
            integrity: integrity.pod(&self.uid),
            ..self.clone()
        }
    }
}

/// Numbers of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCounts {
    /// All of them.
    pub known: usize,
    /// Those that opted in.
    pub enrolled: usize,
    /// Captured by eBPF.
    pub ebpf: usize,
    /// Captured by iptables.
    pub iptables: usize,
    /// Enrolled and not healthy.
    pub unhealthy: usize,
}

impl PodCounts {
    /// Counts `pods`.
    pub fn of(pods: &[PodStatus]) -> Self {
        let count = |wanted: &dyn Fn(&PodStatus) -> bool| pods.iter().filter(|p| wanted(p)).count();
        Self {
            known: pods.len(),
            enrolled: count(&|pod| pod.enrolled),
            ebpf: count(&|pod| pod.capture.is_by_programs()),
            iptables: count(&|pod| pod.capture.is_by_rules()),
            unhealthy: count(&|pod| pod.enrolled && !pod.healthy),
        }
    }
}

/// Everything that the API shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node.
    pub node: NodeStatus,
    /// Its pods, by uid.
    pub pods: Vec<PodStatus>,
}

/// A moment as RFC 3339, UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Days since 1970 → year, month, day of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years, the year beginning in March (Hinnant, "chrono-compatible algorithms").
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_254_924, "2026-11-21T09:55:24Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
