//! Accelerated connections as the agent handles them: the message program on its map, promotion by running
//! the promotion program, and a look at what is promoted.
//!
//! Promoted connections outlive the agent: the map is pinned with the program attached to it, and a socket in
//! it keeps both. Only the promotion program takes an application's live end out of the map, when it has read
//! everything; unread bytes would be lost.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use aya::Pod;
use millrace_ebpf_abi::{
    AccelCommand, AccelOutcome, AccelReport, AccelTraffic, Acceleration, Addr, PodAcceleration,
};

use super::BpfError;
use super::loader::Bpf;
use super::programs::{MESSAGE, MESSAGE_ATTACH_TYPE, PROMOTE};
use super::sys;

const MAP: &str = "ACCELERATED";
const SPLICED: &str = "SPLICED";

/// The programs of acceleration.
pub(super) struct AccelPrograms {
    pub(super) message: OwnedFd,
    pub(super) promote: OwnedFd,
}

/// A connection to be promoted, or to leave the map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Promotion {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// Number of that namespace, as the agent's own has it.
    pub nsid: u32,
    /// Local address of the proxy's end.
    pub local: SocketAddr,
    /// Remote address of the proxy's end.
    pub remote: SocketAddr,
}

/// The proxy's end of a promoted connection that is to be spliced with another's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpliceEnd {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// `SO_COOKIE` of the proxy's end.
    pub cookie: u64,
}

/// One end of a promoted connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AcceleratedEnd {
    /// The pod.
    pub netns_cookie: u64,
    /// Its address.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
    /// Whether it is the proxy's end.
    pub is_proxy: bool,
    /// Whether a socket option sent the connection back to TCP.
    pub returned: bool,
    /// Whether what it sends goes straight into another pod.
    pub spliced: bool,
    /// What it sent since its promotion.
    pub sent: AccelTraffic,
    /// Redirected bytes that the other end has not read.
    pub unread_redirected: u32,
    /// Bytes sent by TCP that the other end has not read.
    pub unread_tcp: u32,
    /// For how long it has redirected nothing.
    pub idle: Duration,
}

impl Bpf {
    /// Whether connections can be accelerated, with the reason if not.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn acceleration(&self) -> Result<(), String> {
        self.accel.as_ref().map(drop).map_err(Clone::clone)
    }

    /// Puts both ends of a connection into the map, or neither.
    ///
    /// # Errors
    ///
    /// If the program cannot be run. That a connection is not promoted is an outcome.
    pub fn promote(&self, promotion: &Promotion) -> Result<AccelOutcome, BpfError> {
        self.command(AccelCommand::PROMOTE, promotion)
    }

    /// Takes the application's end of a promoted connection out of the map, once it has read everything.
    ///
    /// # Errors
    ///
    /// If the program cannot be run. That a connection does not leave is an outcome.
    pub fn leave(&self, promotion: &Promotion) -> Result<AccelOutcome, BpfError> {
        self.command(AccelCommand::LEAVE, promotion)
    }

    /// Lets the applications of two promoted connections send to each other, once the proxy says so, too.
    ///
    /// # Errors
    ///
    /// If the program cannot be run. That they are not spliced is an outcome.
    pub fn splice(&self, ends: [SpliceEnd; 2]) -> Result<AccelOutcome, BpfError> {
        let [here, there] = ends;
        let command = AccelCommand {
            netns_cookie: here.netns_cookie,
            key: here.cookie,
            other_netns_cookie: there.netns_cookie,
            other_key: there.cookie,
            operation: AccelCommand::SPLICE,
            ..AccelCommand::default()
        };
        run(self.program()?, &command).map(|(outcome, _)| outcome)
    }

    fn command(&self, operation: u32, promotion: &Promotion) -> Result<AccelOutcome, BpfError> {
        let command = AccelCommand {
            netns_cookie: promotion.netns_cookie,
            local: Addr::from(promotion.local.ip()),
            remote: Addr::from(promotion.remote.ip()),
            nsid: promotion.nsid,
            operation,
            local_port: promotion.local.port(),
            remote_port: promotion.remote.port(),
            ..AccelCommand::default()
        };
        let (outcome, report) = run(self.program()?, &command)?;
        if outcome == AccelOutcome::Failed {
            tracing::warn!(
                ?promotion,
                operation,
                errno = -report.errno,
                "promotion failed"
            );
        }
        Ok(outcome)
    }

    /// What looks at promoted connections without this being locked meanwhile: there may be many.
    ///
    /// # Errors
    ///
    /// If nothing is accelerated here, or descriptors are short.
    pub fn inspector(&self) -> Result<Inspector, BpfError> {
        let open = |name| {
            let path = self.pins.map(name);
            sys::get(&path).map_err(BpfError::bpffs("opening", &path))
        };
        Ok(Inspector {
            map: open(MAP)?,
            spliced: open(SPLICED)?,
            promote: self.program()?.try_clone().map_err(failed)?,
            path: self.pins.map(MAP),
        })
    }

    /// Sums over the promoted connections of a pod.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn pod_acceleration(&self, netns_cookie: u64) -> Result<PodAcceleration, BpfError> {
        self.maps.acceleration.of(netns_cookie)
    }

    /// Switches an enrolled pod's acceleration, for live connections too; a pod that is not enrolled stays so.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or written.
    pub fn set_acceleration(
        &mut self,
        netns_cookie: u64,
        setting: Acceleration,
    ) -> Result<(), BpfError> {
        match self.maps.policies.get(netns_cookie)? {
            Some(policy) if policy.acceleration() != setting => self
                .maps
                .policies
                .insert(netns_cookie, policy.with_acceleration(setting)),
            _ => Ok(()),
        }
    }

    /// Attaches the message program to the map; without it nothing is promoted.
    pub(super) fn attach_accel(&mut self) {
        let Ok(programs) = &self.accel else { return };
        let path = self.pins.map(MAP);
        let attached = sys::get(&path).and_then(|map| {
            sys::attach_to_map(programs.message.as_fd(), map.as_fd(), MESSAGE_ATTACH_TYPE)
        });
        if let Err(error) = attached {
            self.accel = Err(format!("{MESSAGE} cannot be attached: {error}"));
        }
    }

    fn program(&self) -> Result<&OwnedFd, BpfError> {
        let programs = self.accel.as_ref();
        let programs = programs.map_err(|reason| failed(io::Error::other(reason.clone())))?;
        Ok(&programs.promote)
    }
}

/// Looks at promoted connections.
pub struct Inspector {
    map: OwnedFd,
    spliced: OwnedFd,
    promote: OwnedFd,
    path: PathBuf,
}

impl Inspector {
    /// Every end of a promoted connection, as long as it lives. Two system calls for each.
    ///
    /// # Errors
    ///
    /// If the map cannot be listed or the program not be run.
    pub fn ends(&self) -> Result<Vec<AcceleratedEnd>, BpfError> {
        let keys = sys::keys(self.map.as_fd()).map_err(BpfError::bpffs("listing", &self.path))?;
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            let command = AccelCommand {
                key,
                operation: AccelCommand::INSPECT,
                ..AccelCommand::default()
            };
            let (outcome, report) = run(&self.promote, &command)?;
            // It may have closed meanwhile.
            if outcome == AccelOutcome::Done {
                ends.push(end(&report));
            }
        }
        Ok(ends)
    }

    /// Cookies of applications' ends that were spliced and are in the map no more.
    ///
    /// # Errors
    ///
    /// If the maps cannot be listed.
    pub fn gone(&self) -> Result<BTreeSet<u64>, BpfError> {
        let keys =
            |map: &OwnedFd| sys::keys(map.as_fd()).map_err(BpfError::bpffs("listing", &self.path));
        // In this order: one that is spliced meanwhile is not taken for one that is gone.
        let spliced = keys(&self.spliced)?;
        if spliced.is_empty() {
            return Ok(BTreeSet::new());
        }
        let present = keys(&self.map)?;
        Ok(spliced.difference(&present).copied().collect())
    }

    /// Forgets what a spliced application sent.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn forget(&self, cookie: u64) -> Result<(), BpfError> {
        sys::remove(self.spliced.as_fd(), cookie).map_err(BpfError::bpffs("writing", &self.path))
    }
}

fn run(program: &OwnedFd, command: &AccelCommand) -> Result<(AccelOutcome, AccelReport), BpfError> {
    let mut packet = [0_u8; AccelReport::PACKET];
    packet[AccelCommand::AT..AccelReport::AT].copy_from_slice(bytes_of(command));
    let value = sys::test_run(program.as_fd(), &mut packet).map_err(failed)?;
    let mut report = AccelReport::default();
    bytes_of_mut(&mut report).copy_from_slice(&packet[AccelReport::AT..]);
    Ok((AccelOutcome::from_value(value), report))
}

fn failed(source: io::Error) -> BpfError {
    BpfError::Run {
        program: PROMOTE,
        source,
    }
}

fn end(report: &AccelReport) -> AcceleratedEnd {
    use millrace_ebpf_abi::AccelSocket;
    AcceleratedEnd {
        netns_cookie: report.netns_cookie,
        local: SocketAddr::new(IpAddr::from(report.local), report.local_port),
        remote: SocketAddr::new(IpAddr::from(report.remote), report.remote_port),
        is_proxy: report.flags & AccelSocket::PROXY != 0,
        returned: report.flags & AccelSocket::OPTION != 0,
        spliced: report.spliced != 0,
        sent: report.answer.sent,
        unread_redirected: report.answer.unread_redirected,
        unread_tcp: report.answer.unread_tcp,
        idle: Duration::from_nanos(report.idle_ns),
    }
}

#[expect(unsafe_code, reason = "plain data as the bytes that it is")]
fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` has no padding and any byte may be read.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

#[expect(unsafe_code, reason = "plain data as the bytes that it is")]
fn bytes_of_mut<T: Pod>(value: &mut T) -> &mut [u8] {
    // SAFETY: as for `bytes_of`, and any bytes make a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}
