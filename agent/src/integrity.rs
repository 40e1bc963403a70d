//! Whether capture works, pod by pod, and what is done where it does not.
//!
//! Three ways of looking. `bpf::verify` compares the kernel with what was decided; the broker compares each
//! namespace with what it left there (`broker::inspect`, `inside`); a canary goes the way of an application's
//! connection and must be answered by the pod's own listener (`canary`), which also finds what nobody thought
//! of. `watch` does all that on a rhythm, `record` keeps what was found; repairs are the reconciler's, so that no
//! two changes of a pod overlap. Programs and rules of others that would interfere are named, never removed.

mod canary;
mod generation;
mod inside;
mod metrics;
mod record;
mod rules;
mod ruleset;
mod watch;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{CaptureMode, Cause, Families, PodUid};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

pub use canary::Way;
pub use generation::{Generation, Generations};
pub use inside::{Found, Seen, canary_sockets, look};
pub use metrics::register;
pub use record::{Canaries, ForeignStatus, NodeIntegrity, PodIntegrity, WayStatus};
pub use watch::Watch;

use crate::bpf::{foreign_at, program_name};
use crate::broker_client::BrokerClient;
use crate::redirect::CaptureSettings;
use record::Record;

/// How often the kernel and the namespaces are compared with what should be.
const COMPARE: Duration = Duration::from_secs(2);
/// Default time between two canaries of a pod.
pub const CANARY_INTERVAL: Duration = Duration::from_secs(10);
/// Most canaries that start in a second; on a full node each pod has its turn less often.
const CANARIES_PER_SECOND: u32 = 4;
/// Notices that may wait for the reconciler.
const NOTICES: usize = 64;

/// A captured pod, as the reconciler has it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The pod.
    pub uid: PodUid,
    /// Namespace and name, for people.
    pub name: String,
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// What its namespace has.
    pub families: Families,
    /// Its addresses.
    pub ips: Vec<std::net::IpAddr>,
    /// How it is captured.
    pub mode: CaptureMode,
    /// With which settings.
    pub settings: CaptureSettings,
    /// Nothing of its capture is being changed.
    pub settled: bool,
}

impl Subject {
    fn is_captured(&self) -> bool {
        self.settled && self.mode != CaptureMode::None
    }
}

/// What the watch works on.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// The connected broker.
    pub broker: Option<Arc<BrokerClient>>,
    /// Proxies that are connected and accept; without one no canary is answered.
    pub proxies: Vec<u32>,
    /// Captured pods.
    pub pods: BTreeMap<PodUid, Subject>,
}

/// What the reconciler is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Programs of the node's cgroup are not attached.
    Programs,
    /// Programs of others run before ours at these hooks, and did not when last asked.
    Overtaken(Vec<&'static str>),
    /// Something of a pod's capture is broken.
    Pod(PodUid, Vec<Cause>),
    /// What is shown has changed.
    Changed,
}

#[derive(Debug, Default)]
struct State {
    node: Record,
    pods: BTreeMap<PodUid, Record>,
    foreign: Vec<ForeignStatus>,
    /// The watch is to look again once the reconciler is through.
    repaired: bool,
}

/// What is known of capture's integrity; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Integrity {
    state: Arc<Mutex<State>>,
    again: Arc<Notify>,
}

impl Integrity {
    /// What is known of a pod.
    pub fn pod(&self, uid: &PodUid) -> PodIntegrity {
        let state = self.state.lock();
        state.pods.get(uid).map(Record::status).unwrap_or_default()
    }

    /// What is known of the node.
    pub fn node(&self) -> NodeIntegrity {
        let state = self.state.lock();
        let node = state.node.status();
        NodeIntegrity {
            broken: node.broken,
            last_broken: node.last_broken,
            last_repaired: node.last_repaired,
            broken_total: node.broken_total,
            repaired_total: node.repaired_total,
            foreign: state.foreign.clone(),
        }
    }

    /// Why the pod's capture is not intact, if it is not.
    pub fn problem(&self, uid: &PodUid) -> Option<String> {
        let state = self.state.lock();
        state.pods.get(uid)?.problem()
    }

    /// What of the pod's capture is broken now.
    fn broken(&self, uid: &PodUid) -> Vec<Cause> {
        let state = self.state.lock();
        state.pods.get(uid).map(Record::causes).unwrap_or_default()
    }

    /// Something is being repaired.
    pub fn repaired(&self) {
        self.state.lock().repaired = true;
    }

    /// Everything has been carried out; what was repaired is looked at again at once.
    pub fn look_again(&self) {
        if std::mem::take(&mut self.state.lock().repaired) {
            self.again.notify_one();
        }
    }
}

/// cgroup programs of others on a node where no agent runs; names only where the caller may ask for them.
pub fn foreign_here(cgroup: &Path) -> Vec<ForeignStatus> {
    let found = foreign_at(cgroup).unwrap_or_default();
    found
        .iter()
        .map(|program| ForeignStatus::of(program, program_name(program.id).unwrap_or_default()))
        .collect()
}

/// The two ends between watch and reconciler.
pub fn notices() -> (mpsc::Sender<Notice>, mpsc::Receiver<Notice>) {
    mpsc::channel(NOTICES)
}
