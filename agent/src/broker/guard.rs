//! The guard of a pod that fails closed: inside its namespace, what is subject to capture and is not
//! Millrace's own is refused, however it was sent.
//!
//! It lives in nftables, so it outlives pins and processes: with every process of Millrace gone,
//! a connection of the pod is reset instead of leaving un-proxied. In pods that nat rules capture, open
//! ones too, it also takes the proxy's mark off whatever an application has put it on.

mod older;
mod script;
mod steered;

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};

use millrace_runtime::handoff::{CaptureMode, IptablesConfig};
use socket2::{Domain, Socket, Type};

use super::creator;
use crate::iptables;
use script::{PROOF_BIT, Wanted};
pub(crate) use script::{STEERED, UNHELD};
pub use steered::Steered;

/// The name of the guard's tables.
pub const TABLE: &str = "millrace_guard";

/// Why the guard could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// There is no `nft`.
    #[error(
        "no guard for a pod that fails closed: nft is not installed (package nftables); \
         or set millrace.io/on-capture-loss: open"
    )]
    NotInstalled,
    /// `nft` could not be run.
    #[error("nft cannot be run")]
    Exec(#[source] io::Error),
    /// `nft` refused.
    #[error("nft failed: {0}")]
    Refused(String),
}

/// What the guard of one pod shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// What capture leaves alone, which passes.
    pub config: IptablesConfig,
    /// How the pod is captured.
    pub mode: CaptureMode,
    /// Refuses what is not captured.
    pub closed: bool,
}

/// What of it the host can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Why a forged mark would be believed, if it would.
    pub marks: Option<String>,
    /// Why packet sockets are not held, if they are not.
    pub packet_sockets: Option<String>,
}

impl Guard {
    /// Whether it wants to hear that inbound connections are steered.
    pub fn hears(&self) -> bool {
        self.closed && self.mode.is_by_programs()
    }

    /// Puts the guard into the calling thread's namespace, replacing an earlier one in one step. Where the
    /// host cannot do all of it, as much as it can.
    ///
    /// The thread is left in the host's cgroup namespace.
    ///
    /// # Errors
    /// [`GuardError::NotInstalled`] where there is no `nft`: the pod is captured, but nothing holds
    /// what capture misses; else when `nft` refuses even the least of the rules.
    pub fn install(&self) -> Result<Hold, GuardError> {
        let own = creator::own();
        creator::enter_host_cgroups();
        let mut devices = devices();
        let mut hold = Hold::default();
        if own.is_none() {
            hold.marks = Some("the broker has no cgroup2 of its own".to_owned());
        }
        let mut creator = own.as_ref();
        let mut with_devices = true;
        // A guard that is there has judged every connection; before the first one nothing has.
        let older = if nft(&script::watching()).is_ok() {
            older::came_in()
        } else {
            Vec::new()
        };
        let node = if self.hears() {
            steered::node_addresses()
        } else {
            Vec::new()
        };
        loop {
            let wanted = Wanted {
                config: &self.config,
                mode: self.mode,
                closed: self.closed,
                creator,
                devices: with_devices.then_some(&*devices),
                older: &older,
                node: &node,
            };
            match nft(&wanted.script()) {
                Ok(()) if creator.is_none() || is_known(self.config.proxy_mark) => return Ok(hold),
                Ok(()) => {
                    hold.marks = Some("the kernel counts levels of cgroups differently".to_owned());
                    creator = None;
                }
                Err(GuardError::Refused(why))
                    if with_devices && self.closed && !devices.is_empty() =>
                {
                    let before = std::mem::replace(&mut devices, self::devices());
                    // One that went meanwhile says nothing about the others.
                    if devices == before {
                        hold.packet_sockets = Some(why);
                        with_devices = false;
                    }
                }
                Err(GuardError::Refused(why)) if creator.is_some() => {
                    // What was refused may have been this alone.
                    (hold.marks, hold.packet_sockets) = (Some(why), None);
                    (creator, with_devices) = (None, true);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Tells a guard that may be in the calling thread's namespace of this broker, whose sockets are the proxy's from
/// now on; none there is fine.
pub fn admit() {
    if !is_there(libc::NFPROTO_INET) {
        return;
    }
    let Some(own) = creator::own() else { return };
    creator::enter_host_cgroups();
    if let Err(error) = nft(&script::admission(&own)) {
        tracing::debug!(%error, "no guard to be told of this broker");
    }
}

/// Removes the guard from the calling thread's namespace; none there is fine.
///
/// # Errors
/// When `nft` refuses.
pub fn remove() -> Result<(), GuardError> {
    if ![libc::NFPROTO_INET, libc::NFPROTO_NETDEV]
        .into_iter()
        .any(is_there)
    {
        return Ok(());
    }
    let script: String = ["inet", "netdev"]
        .map(|family| format!("table {family} {TABLE} {{ }}\ndelete table {family} {TABLE}\n"))
        .concat();
    match nft(&script) {
        Err(GuardError::NotInstalled) => Ok(()),
        result => result,
    }
}

/// Whether there is the guard's table of an `NFPROTO_`, or the kernel does not say: asking costs a message,
/// `nft` a process.
fn is_there(family: libc::c_int) -> bool {
    iptables::has_table(family, TABLE).unwrap_or(true)
}

/// Whether the rules take a socket of this process for the proxy's: they drop such a datagram, which its sender
/// is told. It is sent to this host and leaves it in no case.
fn is_known(mark: u32) -> bool {
    let sent = |domain, to: SocketAddr| -> io::Result<usize> {
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        socket.set_mark(mark | PROOF_BIT)?;
        socket.send_to(&[], &to.into())
    };
    let discard = 9;
    let v4 = sent(Domain::IPV4, (Ipv4Addr::LOCALHOST, discard).into());
    let refused = |result: io::Result<usize>| {
        result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    refused(v4) || refused(sent(Domain::IPV6, (Ipv6Addr::LOCALHOST, discard).into()))
}

/// A device of the calling thread's namespace on which packet sockets would pass this guard, although it could hold
/// them there: one that came later than those on which they are `held`. None where it `says` that it cannot.
pub fn unheld(says: bool, held: &[String]) -> Option<String> {
    let mut devices = devices().into_iter();
    devices.find(|device| !says && !held.contains(device))
}

/// Every device of the calling thread's namespace but loopback.
fn devices() -> Vec<String> {
    names(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
}

/// The devices that a `/proc/net/dev` lists, but loopback.
pub fn names(listed: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name != "lo" && !name.contains('"'))
        .collect()
}

fn nft(script: &str) -> Result<(), GuardError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GuardError::NotInstalled,
            _ => GuardError::Exec(error),
        })?;
    let mut stdin = child.stdin.take();
    let written = stdin
        .as_mut()
        .map_or(Ok(()), |stdin| stdin.write_all(script.as_bytes()));
    drop(stdin);
    // Also where it read nothing: it then says why, and is to be waited for.
    let output = child.wait_with_output().map_err(GuardError::Exec)?;
    if output.status.success() {
        return written.map_err(GuardError::Exec);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(GuardError::Refused(
        stderr.split_whitespace().collect::<Vec<_>>().join(" "),
    ))
}

#[cfg(test)]
mod tests;
