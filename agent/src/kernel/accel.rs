//! Which pods' connections may be promoted, by the names that the proxy knows, and what came of it.
//!
//! The kernel's own sums are read when they are asked for; here are the refusals, and the pods whose
//! acceleration was ended because a program of theirs does not read.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::handoff::accel::{self as handoff, SpliceRequest};
use millrace_runtime::handoff::{PodUid, PromotionRequest, PromotionResult, Refusal};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Kernel;
use crate::bpf::{
    AccelOutcome, AcceleratedEnd, Acceleration, Bpf, BpfError, Inspector, PodAcceleration,
    Promotion, SpliceEnd, nsid,
};
use crate::broker::chain;

/// What acceleration does for a pod, since its capture or, for the last four, the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccelerationCounts {
    /// Connections promoted.
    pub promoted: u64,
    /// Messages moved past TCP.
    pub redirected_messages: u64,
    /// Their bytes.
    pub redirected_bytes: u64,
    /// Messages of promoted connections that went by TCP.
    pub tcp_messages: u64,
    /// Their bytes.
    pub tcp_bytes: u64,
    /// Those of them that went by TCP because too much was unread.
    pub capped: u64,
    /// Connections that returned to TCP because of a socket option.
    pub returned: u64,
    /// Times that an application had redirected and other bytes to read.
    pub mixed: u64,
    /// Connections spliced with one of another pod's.
    pub spliced: u64,
    /// Directions of them that went back to the proxy.
    pub unspliced: u64,
    /// Messages moved straight into another pod.
    pub spliced_messages: u64,
    /// Their bytes.
    pub spliced_bytes: u64,
    /// Connections that were not promoted, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Connections that were not spliced, by reason.
    pub not_spliced: BTreeMap<String, u64>,
    /// Connections whose application did not read.
    pub stalled: u64,
    /// Acceleration was ended because of them, until the agent starts again.
    pub suspended: bool,
}

#[derive(Debug)]
struct Pod {
    netns_cookie: u64,
    nsid: u32,
    setting: Acceleration,
}

impl Pod {
    fn connection(&self, request: &PromotionRequest) -> Promotion {
        Promotion {
            netns_cookie: self.netns_cookie,
            nsid: self.nsid,
            local: request.local,
            remote: request.remote,
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    refused: HashMap<Refusal, u64>,
    not_spliced: HashMap<Refusal, u64>,
    stalled: u64,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<PodUid, Pod>,
    tallies: HashMap<u64, Tally>,
    /// Spliced applications that have closed, and since when that is known.
    gone: HashMap<u64, Instant>,
}

/// How long what a spliced application sent is remembered when it has closed: the proxy, which counts it, hears of
/// that at once.
const REMEMBERED: Duration = Duration::from_mins(1);

/// The pods; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct AccelPods(Arc<Mutex<Known>>);

impl Kernel {
    /// Whether connections can be accelerated on this node, with the reason if not.
    ///
    /// # Errors
    /// Says why not.
    pub fn acceleration(&self) -> Result<(), String> {
        match &*self.loaded.lock() {
            Ok(bpf) => bpf.acceleration(),
            Err(reason) => Err(reason.clone()),
        }
    }

    /// Lets connections of a captured pod be promoted, as its setting says.
    pub fn accelerate(
        &self,
        uid: &PodUid,
        netns_cookie: u64,
        netns: BorrowedFd<'_>,
        setting: Acceleration,
    ) {
        if self.acceleration().is_err() {
            return;
        }
        let nsid = match nsid(netns) {
            Ok(nsid) => nsid,
            Err(error) => {
                tracing::warn!(%uid, %error, "pod's namespace gets no number, it is not accelerated");
                self.accel.0.lock().pods.remove(uid);
                return;
            }
        };
        let pod = Pod {
            netns_cookie,
            nsid,
            setting,
        };
        let mut known = self.accel.0.lock();
        known.pods.insert(uid.clone(), pod);
        if known.is_suspended(netns_cookie) {
            drop(known);
            self.suspend(netns_cookie);
        }
    }

    /// Promotes a connection, or says why not.
    pub fn promote(&self, request: &PromotionRequest) -> PromotionResult {
        let refused = self.try_promote(request).err();
        if let Some(refusal) = refused {
            let mut known = self.accel.0.lock();
            if let Some(cookie) = known.pods.get(&request.uid).map(|pod| pod.netns_cookie) {
                let tally = known.tallies.entry(cookie).or_default();
                *tally.refused.entry(refusal).or_default() += 1;
            }
        }
        PromotionResult {
            id: request.id,
            refused,
        }
    }

    fn try_promote(&self, request: &PromotionRequest) -> Result<(), Refusal> {
        let promotion = {
            let known = self.accel.0.lock();
            let pod = known.pods.get(&request.uid).ok_or(Refusal::UnknownPod)?;
            if pod.setting == Acceleration::Off || known.is_suspended(pod.netns_cookie) {
                return Err(Refusal::Off);
            }
            pod.connection(request)
        };
        self.run(&request.uid, |bpf| bpf.promote(&promotion))
    }

    /// Lets two applications send to each other, or says why not. Only where both pods' operators vouch.
    pub fn splice(&self, request: &SpliceRequest) -> PromotionResult {
        let refused = self.try_splice(request).err();
        let mut known = self.accel.0.lock();
        for end in &request.ends {
            let pod = known.pods.get(&end.uid).map(|pod| pod.netns_cookie);
            if let (Some(cookie), Some(refusal)) = (pod, refused) {
                let tally = known.tallies.entry(cookie).or_default();
                *tally.not_spliced.entry(refusal).or_default() += 1;
            }
        }
        PromotionResult {
            id: request.id,
            refused,
        }
    }

    fn try_splice(&self, request: &SpliceRequest) -> Result<(), Refusal> {
        let known = self.accel.0.lock();
        let end = |end: &handoff::SpliceEnd| {
            let pod = known.pods.get(&end.uid).ok_or(Refusal::UnknownPod)?;
            if pod.setting != Acceleration::On || known.is_suspended(pod.netns_cookie) {
                return Err(Refusal::Off);
            }
            Ok(SpliceEnd {
                netns_cookie: pod.netns_cookie,
                cookie: end.cookie,
            })
        };
        let ends = [end(&request.ends[0])?, end(&request.ends[1])?];
        drop(known);
        self.run(&request.ends[0].uid, |bpf| bpf.splice(ends))
    }

    /// Takes the application's end of a promoted connection out of the map, or says why not; whatever the
    /// pod's setting is by now.
    pub fn leave(&self, request: &PromotionRequest) -> PromotionResult {
        let promotion = {
            let known = self.accel.0.lock();
            let pod = known.pods.get(&request.uid);
            pod.map(|pod| pod.connection(request))
        };
        let left = match promotion {
            Some(promotion) => self.run(&request.uid, |bpf| bpf.leave(&promotion)),
            None => Err(Refusal::UnknownPod),
        };
        PromotionResult {
            id: request.id,
            refused: left.err(),
        }
    }

    fn run(
        &self,
        uid: &PodUid,
        what: impl FnOnce(&Bpf) -> Result<AccelOutcome, BpfError>,
    ) -> Result<(), Refusal> {
        let outcome = match &*self.loaded.lock() {
            Ok(bpf) if bpf.acceleration().is_err() => return Err(Refusal::Unavailable),
            Ok(bpf) => what(bpf),
            Err(_) => return Err(Refusal::Unavailable),
        };
        match outcome {
            Ok(outcome) => refusal(outcome).map_or(Ok(()), Err),
            Err(error) => {
                tracing::warn!(%uid, error = %chain(&error),
                    "the promotion program did not run");
                Err(Refusal::Failed)
            }
        }
    }

    /// What acceleration does for a pod.
    pub fn pod_acceleration(&self, netns_cookie: u64) -> AccelerationCounts {
        let sums = self
            .with(|bpf| bpf.pod_acceleration(netns_cookie))
            .unwrap_or_default();
        let known = self.accel.0.lock();
        let tally = known.tallies.get(&netns_cookie);
        counts(&sums, tally)
    }

    /// Every end of a promoted connection. May take a while where there are many.
    ///
    /// # Errors
    /// Says why they cannot be listed.
    pub fn accelerated(&self) -> Result<Vec<AcceleratedEnd>, String> {
        let inspector = self.with(|bpf| bpf.inspector())?;
        inspector.ends().map_err(|error| chain(&error))
    }

    /// Ends the acceleration of pods whose programs have left redirected bytes unread for `patience`.
    pub fn suspend_stalled(&self, patience: Duration) {
        if self.acceleration().is_err() {
            return;
        }
        let ends = match self.accelerated() {
            Ok(ends) => ends,
            Err(reason) => {
                tracing::debug!(reason, "promoted connections are not looked at");
                return;
            }
        };
        for end in ends.iter().filter(|end| is_stalled(end, patience)) {
            let mut known = self.accel.0.lock();
            let tally = known.tallies.entry(end.netns_cookie).or_default();
            tally.stalled += 1;
            let first = tally.stalled == 1;
            drop(known);
            if first {
                tracing::warn!(
                    netns_cookie = end.netns_cookie,
                    application = %end.remote,
                    unread = end.unread_redirected,
                    "reader stalled: the pod's connections are not accelerated any more"
                );
                self.suspend(end.netns_cookie);
            }
        }
    }

    /// Forgets what applications sent each other that have closed a while ago.
    pub fn forget_spliced(&self) {
        let Ok(inspector) = self.with(|bpf| bpf.inspector()) else {
            return;
        };
        if let Err(error) = self.forget_gone(&inspector) {
            tracing::warn!(error = %chain(&error), "closed splices are not forgotten");
        }
    }

    fn forget_gone(&self, inspector: &Inspector) -> Result<(), BpfError> {
        let gone = inspector.gone()?;
        let now = Instant::now();
        let long_ago: Vec<u64> = {
            let known = &mut self.accel.0.lock().gone;
            known.retain(|cookie, _| gone.contains(cookie));
            for cookie in gone {
                known.entry(cookie).or_insert(now);
            }
            let old = known
                .iter()
                .filter(|(_, since)| now - **since >= REMEMBERED);
            old.map(|(cookie, _)| *cookie).collect()
        };
        long_ago
            .into_iter()
            .try_for_each(|cookie| inspector.forget(cookie))
    }

    fn suspend(&self, netns_cookie: u64) {
        let done = self.with(|bpf| bpf.set_acceleration(netns_cookie, Acceleration::Off));
        if let Err(reason) = done {
            tracing::warn!(netns_cookie, reason, "the pod stays accelerated");
        }
    }

    /// A pod is captured no more.
    pub(super) fn forget_accelerated(&self, netns_cookie: u64) {
        let mut known = self.accel.0.lock();
        known.pods.retain(|_, pod| pod.netns_cookie != netns_cookie);
        known.tallies.remove(&netns_cookie);
    }
}

impl Known {
    fn is_suspended(&self, netns_cookie: u64) -> bool {
        let tally = self.tallies.get(&netns_cookie);
        tally.is_some_and(|tally| tally.stalled > 0)
    }
}

/// Only what an application does not read: a proxy that waits for a slow peer holds its client back.
fn is_stalled(end: &AcceleratedEnd, patience: Duration) -> bool {
    end.is_proxy && end.unread_redirected > 0 && end.idle >= patience
}

fn counts(sums: &PodAcceleration, tally: Option<&Tally>) -> AccelerationCounts {
    let named = |refusals: &HashMap<Refusal, u64>| {
        let named = |(refusal, count): (&Refusal, &u64)| (refusal.name().to_owned(), *count);
        refusals.iter().map(named).collect()
    };
    let stalled = tally.map_or(0, |tally| tally.stalled);
    AccelerationCounts {
        promoted: sums.promoted,
        redirected_messages: sums.redirected_messages,
        redirected_bytes: sums.redirected_bytes,
        tcp_messages: sums.tcp_messages,
        tcp_bytes: sums.tcp_bytes,
        capped: sums.capped,
        returned: sums.returned,
        mixed: sums.mixed,
        spliced: sums.spliced,
        unspliced: sums.unspliced,
        spliced_messages: sums.spliced_messages,
        spliced_bytes: sums.spliced_bytes,
        refused: tally.map(|tally| named(&tally.refused)).unwrap_or_default(),
        not_spliced: tally
            .map(|tally| named(&tally.not_spliced))
            .unwrap_or_default(),
        stalled,
        suspended: stalled > 0,
    }
}

/// The proxy's word for an outcome; `None` where the connection is promoted.
fn refusal(outcome: AccelOutcome) -> Option<Refusal> {
    Some(match outcome {
        AccelOutcome::Done => return None,
        AccelOutcome::NotFound => Refusal::NotFound,
        AccelOutcome::NotEstablished => Refusal::NotEstablished,
        AccelOutcome::NotProxys => Refusal::NotProxys,
        AccelOutcome::NoCookie => Refusal::Unknown,
        AccelOutcome::NotAccepted => Refusal::NotAccepted,
        AccelOutcome::Blocking => Refusal::Blocking,
        AccelOutcome::SocketOption => Refusal::SocketOption,
        AccelOutcome::Mptcp => Refusal::Mptcp,
        AccelOutcome::InUse => Refusal::InUse,
        AccelOutcome::Unsupported => Refusal::Unsupported,
        AccelOutcome::Full => Refusal::Full,
        AccelOutcome::NoLayout => Refusal::Unavailable,
        AccelOutcome::Withdrawn => Refusal::Withdrawn,
        AccelOutcome::Unread => Refusal::Unread,
        AccelOutcome::Unsettled => Refusal::Unsettled,
        AccelOutcome::Off => Refusal::Off,
        AccelOutcome::Failed | AccelOutcome::Malformed => Refusal::Failed,
    })
}
