//! Which capabilities a process keeps, and starting a child that has none.
//!
//! Each command of the agent gives up at its start what it does not need, from the bounding set
//! too, so that the tools it runs have no more than it has itself.

use std::collections::HashSet;
use std::io;
use std::thread;

use caps::{CapSet, Capability, CapsHashSet};

/// `millrace-agent run`: loads programs and attaches them; it never enters a pod.
pub const AGENT: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// `millrace-agent broker`: enters namespaces, makes sockets and rules there, hands its socket to
/// the proxy's user.
pub const BROKER: [Capability; 6] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
];

/// What `millrace-agent node` cannot do without: giving the proxy another user, and the broker what
/// it enters namespaces with. Without those of [`AGENT`] there is still iptables.
pub const LAUNCHER: [Capability; 5] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_CHOWN,
];

/// What the broker cannot do without.
pub const ENTERING: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// Why privileges could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused.
    #[error("capabilities cannot be given up")]
    Caps(#[from] caps::errors::CapsError),
    /// A child could not be started.
    #[error("process cannot be started")]
    Spawn(#[from] io::Error),
    /// The process was given too few.
    #[error("this process lacks {0}; run it as root or give it these capabilities")]
    Lacking(String),
}

/// Fails with the names of those of `needed` that the calling thread does not have.
///
/// # Errors
/// When one is lacking, or the kernel does not say.
pub fn require(needed: &[Capability]) -> Result<(), PrivilegeError> {
    let have = caps::read(None, CapSet::Effective)?;
    let lacking: Vec<String> = needed
        .iter()
        .filter(|capability| !have.contains(capability))
        .map(ToString::to_string)
        .collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(PrivilegeError::Lacking(lacking.join(", ")))
    }
}

/// Fails as [`require`] does unless the calling thread may use eBPF. To the kernel `CAP_SYS_ADMIN`
/// stands for each of [`AGENT`] here (kernel/bpf/syscall.c, `bpf_token_capable`).
///
/// # Errors
/// When a capability is lacking, or the kernel does not say.
pub fn require_ebpf() -> Result<(), PrivilegeError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)? {
        return Ok(());
    }
    require(&AGENT)
}

/// Gives up every capability of the calling thread that is not in `keep`. To be called before
/// other threads exist.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(keep: &[Capability]) -> Result<(), PrivilegeError> {
    let keep: CapsHashSet = keep.iter().copied().collect();
    drop_bounding(&keep)?;
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let have = caps::read(None, set)?;
        caps::set(None, set, &have.intersection(&keep).copied().collect())?;
    }
    Ok(())
}

fn drop_bounding(keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        // Without it the set cannot be changed, and a process that was given few capabilities
        // was given a small bounding set too.
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding)?.difference(keep) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    Ok(())
}

/// Runs `spawn` on a thread whose children can never have a capability: empty bounding,
/// inheritable and ambient sets, and no new privileges. The child's user is `spawn`'s affair.
///
/// # Errors
/// When the kernel refuses or the child cannot be started.
pub fn without_any<T: Send>(
    spawn: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, PrivilegeError> {
    thread::scope(|scope| {
        let restricted = scope.spawn(|| {
            drop_bounding(&HashSet::new())?;
            caps::clear(None, CapSet::Ambient)?;
            caps::clear(None, CapSet::Inheritable)?;
            nix::sys::prctl::set_no_new_privs().map_err(io::Error::from)?;
            Ok(spawn()?)
        });
        restricted
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the starting thread died").into()))
    })
}
