//! What the broker looks at inside a pod: rules, guard, rules of others. Works in the calling thread's network
//! namespace and changes nothing there.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use millrace_runtime::handoff::{Breakage, CanarySocket, Cause, Families, Family};
use socket2::{Domain, Protocol, Socket, Type};

use super::rules;
use crate::broker::capture::Plan;
use crate::broker::guard;
use crate::iptables::{self, IptablesError};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What is not as the plan has it.
    pub broken: Vec<Breakage>,
    /// Rules of others that capture or mark.
    pub foreign: Vec<String>,
    /// The guard as the kernel lists it, to compare with later.
    pub guard: Option<String>,
}

/// Compares the namespace with `plan`; `guard` is what the guard was like when it was intact.
pub fn look(plan: &Plan, guard: Option<&str>) -> Found {
    let mut found = Found::default();
    if let Err(error) = plan.verify() {
        let detail = match error {
            IptablesError::NotThere { missing, .. } => format!("missing: {missing}"),
            other => crate::broker::chain(&other),
        };
        found.broken.push(Breakage {
            cause: Cause::Rules,
            detail,
        });
    }
    let all = nft(&["-s", "list", "ruleset"]);
    if plan.is_guarded() {
        let detail = match &all {
            Ok(listing) => compare(listing, guard, &mut found),
            // A pod without a guard for want of `nft` says so by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("its rules cannot be read: {error}")),
        };
        found.broken.extend(detail.map(|detail| Breakage {
            cause: Cause::Guard,
            detail,
        }));
    }
    if let Ok(listing) = &all {
        found.foreign = rules::foreign(listing, &iptables::listings());
    }
    found
}

/// What the guard is like now, and what is wrong with it.
fn compare(listing: &str, then: Option<&str>, found: &mut Found) -> Option<String> {
    let table = |family: &str| rules::table(listing, &format!("{family} {}", guard::TABLE));
    let Some(inet) = table("inet") else {
        return Some(format!("table inet {} is gone", guard::TABLE));
    };
    // The second is where the kernel can have it.
    let netdev = table("netdev").unwrap_or_default();
    let unheld = guard::unheld(&inet, &netdev);
    let now = inet + &netdev;
    let wrong = if then.is_some_and(|then| then != now) {
        Some(format!("table inet {} was altered", guard::TABLE))
    } else if !now.contains("hook output") {
        Some(format!("table inet {} is empty", guard::TABLE))
    } else {
        unheld.map(|device| format!("packet sockets are not held on {device}, which is new"))
    };
    found.guard = Some(now);
    wrong
}

/// Runs `nft`; an error where it is not installed or refuses.
fn nft(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes the sockets of one canary: unmarked, so that capture takes them for an application's, and with a hop
/// limit that ends at the node whatever gets past it.
///
/// # Errors
/// When a socket cannot be made.
pub fn canary_sockets(families: Families) -> io::Result<(Vec<CanarySocket>, Vec<OwnedFd>)> {
    let present = [(Family::V4, families.v4), (Family::V6, families.v6)];
    let mut made = (Vec::new(), Vec::new());
    for (family, _) in present.into_iter().filter(|(_, present)| *present) {
        for datagram in [false, true] {
            made.0.push(CanarySocket { family, datagram });
            made.1.push(canary_socket(family, datagram)?);
        }
    }
    Ok(made)
}

fn canary_socket(family: Family, datagram: bool) -> io::Result<OwnedFd> {
    let (kind, protocol) = if datagram {
        (Type::DGRAM, Protocol::UDP)
    } else {
        (Type::STREAM, Protocol::TCP)
    };
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
    match family {
        Family::V4 => socket.set_ttl_v4(1)?,
        Family::V6 => socket.set_unicast_hops_v6(1)?,
    }
    Ok(socket.into())
}
