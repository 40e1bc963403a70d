//! The node's eBPF side as the rest of the agent uses it: loaded or, with a reason, not there.
//!
//! Shared by the reconciler, which enrols pods, and the API, which reads counters and sets the
//! log level. No call waits for anything but the kernel.

mod accel;
mod events;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::{Breakage, PodUid};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bpf::{
    Bpf, BpfConfig, BpfError, CounterValue, Enrolled, ForeignProgram, LogLevel, MapOccupancy,
    PodEnrolment, PodTraffic, Replace, netns_cookie, probe,
};
use crate::broker::chain;
use crate::config::AgentConfig;
use crate::integrity::{Subject, Subjects};
use accel::AccelPods;
use events::Tally;

pub use accel::AccelerationCounts;
pub use events::CaptureEvents;

/// How old a count of the maps' elements may be: counting reads every key.
const COUNTED: Duration = Duration::from_secs(5);

/// When the elements of the maps were counted, and what came of it.
type Counted = (Instant, Vec<MapOccupancy>);

/// What a comparison of the kernel with what was decided found.
#[derive(Debug, Default)]
pub struct Compared {
    /// Programs that are not attached to the node's cgroup.
    pub detached: Vec<&'static str>,
    /// What is broken of pods that eBPF captures.
    pub pods: BTreeMap<PodUid, Vec<Breakage>>,
    /// Programs of others that choose sockets in its namespace.
    pub foreign: BTreeMap<PodUid, Vec<ForeignProgram>>,
}

/// The loaded programs, or why there are none; cheap to clone.
#[derive(Clone)]
pub struct Kernel {
    loaded: Arc<Mutex<Result<Bpf, String>>>,
    events: Tally,
    accel: AccelPods,
    occupancy: Arc<Mutex<Option<Counted>>>,
}

impl Kernel {
    /// Loads the programs or adopts those that are attached.
    pub fn load(config: &AgentConfig) -> Self {
        let loaded = load(config).map_err(|reason| {
            tracing::warn!(reason, "no eBPF capture on this node");
            reason
        });
        Self::of(loaded)
    }

    /// A kernel without programs.
    pub fn without(reason: &str) -> Self {
        Self::of(Err(reason.to_owned()))
    }

    fn of(loaded: Result<Bpf, String>) -> Self {
        Self {
            loaded: Arc::new(Mutex::new(loaded)),
            events: Tally::default(),
            accel: AccelPods::default(),
            occupancy: Arc::default(),
        }
    }

    /// Whether pods can be captured by eBPF, with the reason if not.
    pub fn ability(&self) -> Result<(), String> {
        self.with(|_| Ok(()))
    }

    /// Captures a pod.
    ///
    /// # Errors
    /// Says why it cannot be.
    pub fn enroll(&self, pod: &PodEnrolment<'_>) -> Result<(), String> {
        self.with(|bpf| bpf.enroll(pod))
    }

    /// Ends the capture of a pod; fine without programs.
    ///
    /// # Errors
    /// Says what stays.
    pub fn withdraw(&self, netns_cookie: u64) -> Result<(), String> {
        self.events.forget(netns_cookie);
        self.forget_accelerated(netns_cookie);
        match &mut *self.loaded.lock() {
            Ok(bpf) => bpf.withdraw(netns_cookie).map_err(|error| chain(&error)),
            Err(_) => Ok(()),
        }
    }

    /// Ends the capture of every pod that is not wanted.
    pub fn withdraw_others(&self, wanted: impl Fn(&Enrolled) -> bool) {
        let strays = self.with(|bpf| bpf.enrolled()).unwrap_or_default();
        for pod in strays.iter().filter(|pod| !wanted(pod)) {
            tracing::info!(
                netns_cookie = pod.netns_cookie,
                "pod of an earlier agent is gone"
            );
            if let Err(error) = self.withdraw(pod.netns_cookie) {
                tracing::warn!(netns_cookie = pod.netns_cookie, error, "pod stays enrolled");
            }
        }
    }

    /// Lets programs of another version go, once every pod is enrolled in these.
    pub fn take_over(&self) {
        if let Ok(bpf) = &mut *self.loaded.lock()
            && bpf.is_waiting()
            && let Err(error) = bpf.take_over()
        {
            tracing::warn!(error = %chain(&error), "older programs stay in charge");
        }
    }

    /// Compares what is in the kernel with what was decided; nothing is missing without programs.
    pub fn compare(&self, subjects: &Subjects) -> Compared {
        let compared = self.with(|bpf| {
            let mut compared = Compared {
                detached: bpf.detached()?,
                ..Compared::default()
            };
            let listing = bpf.listing()?;
            let by_ebpf = |pod: &&Subject| pod.mode.is_by_programs() && pod.settled;
            for pod in subjects.pods.values().filter(by_ebpf) {
                let (broken, foreign) = bpf.verify(pod.cookie, pod.netns.as_fd(), &listing)?;
                if !broken.is_empty() {
                    compared.pods.insert(pod.uid.clone(), broken);
                }
                if !foreign.is_empty() {
                    compared.foreign.insert(pod.uid.clone(), foreign);
                }
            }
            Ok(compared)
        });
        compared.unwrap_or_else(|reason| {
            tracing::debug!(
                reason,
                "the kernel cannot be compared with what was decided"
            );
            Compared::default()
        })
    }

    /// Programs of others at the hooks of capture; with `whole` nothing of it is of before.
    ///
    /// # Errors
    /// Says why they cannot be looked for.
    pub fn foreign(&self, whole: bool) -> Result<Vec<ForeignProgram>, String> {
        self.with(|bpf| bpf.foreign(whole))
    }

    /// Attaches programs that were detached.
    pub fn restore(&self) {
        if let Err(error) = self.with(Bpf::restore) {
            tracing::warn!(error, "programs stay detached");
        }
    }

    /// Lets the programs of these hooks run before all others.
    pub fn go_first(&self, hooks: &[&str]) {
        if let Err(error) = self.with(|bpf| bpf.go_first(hooks)) {
            tracing::warn!(error, ?hooks, "other programs still run before Millrace's");
        }
    }

    /// Tells the programs whether a proxy is there.
    pub fn set_proxy_gone(&self, gone: bool) {
        if let Ok(bpf) = &mut *self.loaded.lock()
            && let Err(error) = bpf.set_proxy_gone(gone)
        {
            tracing::warn!(error = %chain(&error), gone, "programs do not know of the proxy");
        }
    }

    /// Tells the programs in which cgroups broker and proxies live.
    pub fn set_trusted(&self, cgroups: &[u64]) {
        if let Ok(bpf) = &mut *self.loaded.lock()
            && let Err(error) = bpf.set_trusted(cgroups)
        {
            tracing::warn!(error = %chain(&error), "programs do not know the proxy's sockets");
        }
    }

    /// Counters of the programs.
    ///
    /// # Errors
    /// Says why there are none.
    pub fn counters(&self) -> Result<Vec<CounterValue>, String> {
        self.with(|bpf| bpf.counters())
    }

    /// L4 telemetry of enrolled pods.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn traffic(&self) -> Result<Vec<PodTraffic>, String> {
        self.with(|bpf| bpf.traffic())
    }

    /// Connections of the pod that were not captured as they should have been.
    pub fn capture_events(&self, netns_cookie: u64) -> CaptureEvents {
        self.events.of(netns_cookie)
    }

    /// How full the programs' maps are, counted at most every [`COUNTED`]; nothing without
    /// programs.
    pub fn occupancy(&self) -> Vec<MapOccupancy> {
        let mut known = self.occupancy.lock();
        match &*known {
            Some((at, maps)) if at.elapsed() < COUNTED => maps.clone(),
            _ => {
                let maps = self.with(|bpf| bpf.occupancy()).unwrap_or_default();
                *known = Some((Instant::now(), maps.clone()));
                maps
            }
        }
    }

    /// How much the programs say.
    ///
    /// # Errors
    /// Says why it is not known.
    pub fn log_level(&self) -> Result<LogLevel, String> {
        self.with(|bpf| bpf.log_level())
    }

    /// Sets how much the programs say.
    ///
    /// # Errors
    /// Says why it cannot be set.
    pub fn set_log_level(&self, level: LogLevel) -> Result<(), String> {
        self.with(|bpf| bpf.set_log_level(level))
    }

    /// Starts the tasks that bring the programs' own log lines and events into this process's
    /// log. Must be called within the runtime.
    pub fn follow_logs(&self) {
        match self.with(Bpf::log_pump) {
            Ok(None) => tracing::debug!("the programs' log is read already"),
            Ok(Some(pump)) => {
                tokio::spawn(async move {
                    if let Err(error) = pump.run().await {
                        tracing::warn!(%error, "log lines of the programs are not read any more");
                    }
                });
            }
            Err(reason) => tracing::debug!(reason, "the programs write no log"),
        }
        if let Ok(mut events) = self.with(|bpf| bpf.events()) {
            let tally = self.events.clone();
            tokio::spawn(async move {
                loop {
                    match events.next().await {
                        Ok(event) => {
                            tracing::debug!(?event, "kernel event");
                            tally.count(&event);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "events of the programs are not read any more");
                            return;
                        }
                    }
                }
            });
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Bpf) -> Result<T, BpfError>) -> Result<T, String> {
        match &mut *self.loaded.lock() {
            Ok(bpf) => work(bpf).map_err(|error| chain(&error)),
            Err(reason) => Err(reason.clone()),
        }
    }
}

fn load(config: &AgentConfig) -> Result<Bpf, String> {
    // What the probe says is what happens: a node without one of the features uses iptables.
    let found = probe();
    found.ebpf()?;
    let cgroup = match &config.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => found
            .cgroup2
            .ok_or("no cgroup2 file system in /proc/self/mounts")?,
    };
    let host_netns_cookie = match config.host_netns_cookie {
        Some(cookie) => cookie,
        None => netns_cookie().map_err(|error| format!("no network namespace cookies: {error}"))?,
    };
    let bpf = Bpf::load_or_adopt(&BpfConfig {
        bpffs_dir: config.paths.bpffs_dir.clone(),
        cgroup,
        host_netns_cookie,
        log_level: LogLevel::Off,
        replace: Replace::Changed,
        experiment: 0,
        max_entries: Vec::new(),
    })
    .map_err(|error| chain(&error))?;
    tracing::info!(adoption = ?bpf.adoption(), "eBPF programs are in place");
    Ok(bpf)
}
