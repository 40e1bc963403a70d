//! What the broker looks at inside a pod: rules, guard, rules of others. Works in the calling thread's network
//! namespace and changes nothing there.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use millrace_runtime::handoff::{Breakage, CanarySocket, Cause, Families, Family};
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Protocol, Socket, Type};

use super::rules;
use super::ruleset::{Digest, Ruleset, Table};
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
    /// What the rules were like, to compare with later; `None` where the kernel does not tell.
    pub seen: Option<Seen>,
}

/// Rules that were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The guard.
    guard: Digest,
    /// Every rule there is, and what shall be there.
    whole: Digest,
    /// Those of others that capture or mark.
    foreign: Vec<String>,
}

/// Compares the namespace with `plan`; `then` is what its rules were like when everything was in place. As long as
/// they are the same, and while there are no others but the guard, no tool is run; `None` where one would have to be
/// but `may_run_tools` says that it may not.
pub fn look(plan: &Plan, then: Option<&Seen>, may_run_tools: bool) -> Option<Found> {
    let ruleset = Ruleset::read();
    let whole = ruleset.as_ref().ok().map(|now| identify(plan, now));
    let uncounted = iptables::has_any_legacy();
    let same = then.filter(|then| !uncounted && Some(then.whole) == whole);
    let others = uncounted || ruleset.as_ref().map_or(true, |now| now.has_others);
    if same.is_none() && !may_run_tools && (others || plan.has_rules()) {
        return None;
    }
    let mut found = Found::default();
    if let Some(same) = same {
        found.foreign.clone_from(&same.foreign);
    } else {
        found.broken.extend(rules_missing(plan));
        if others && let Ok(listing) = nft(&["-s", "list", "ruleset"]) {
            found.foreign = rules::foreign(&listing, &iptables::listings());
        }
    }
    if plan.is_guarded() {
        let wrong = match &ruleset {
            Ok(now) => wrong_with_guard(now, then),
            Err(error) => Some(format!("its rules cannot be read: {error}")),
        };
        // A pod without a guard for want of `nft` says so by itself.
        found
            .broken
            .extend(wrong.filter(|_| has_nft()).map(|detail| Breakage {
                cause: Cause::Guard,
                detail,
            }));
    }
    found.seen = ruleset.ok().zip(whole).map(|(now, whole)| Seen {
        guard: now.guard,
        whole,
        foreign: found.foreign.clone(),
    });
    Some(found)
}

/// The rules there are, and what the plan makes of them.
fn identify(plan: &Plan, now: &Ruleset) -> Digest {
    let mut digest = Sha256::new();
    digest.update(now.whole);
    digest.update(format!("{plan:?} {:?}", plan.present()));
    digest.finalize().into()
}

fn rules_missing(plan: &Plan) -> Option<Breakage> {
    let detail = match plan.verify().err()? {
        IptablesError::NotThere { missing, .. } => format!("missing: {missing}"),
        other => crate::broker::chain(&other),
    };
    Some(Breakage {
        cause: Cause::Rules,
        detail,
    })
}

fn wrong_with_guard(now: &Ruleset, then: Option<&Seen>) -> Option<String> {
    let table = guard::TABLE;
    let altered = then.is_some_and(|then| then.guard != now.guard);
    match now.table {
        Table::Gone => return Some(format!("table inet {table} is gone")),
        _ if altered => return Some(format!("table inet {table} was altered")),
        Table::Empty => return Some(format!("table inet {table} is empty")),
        Table::Judges => {}
    }
    let unheld = guard::unheld(now.says_unheld, &now.held)?;
    Some(format!(
        "packet sockets are not held on {unheld}, which is new"
    ))
}

fn has_nft() -> bool {
    let asked = nft(&["--version"]);
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
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
