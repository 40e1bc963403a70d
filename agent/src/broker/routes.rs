//! What a pod's namespace needs so that delivery sockets reach its application with the client's
//! source address: the application's answers, addressed to the client, are routed to loopback.
//!
//! `tcp_fwmark_accept` lets an accepted socket take the mark of the SYN, `fwmark_reflect` does
//! the same for resets of closed ports; a rule on the delivery bit and a `local default` route
//! then keep every marked packet inside. All of it is idempotent.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use millrace_runtime::handoff::{DELIVERY_BIT, Families};

use super::netlink::{CREATE_EXCLUSIVE, CREATE_REPLACE, Request};

/// Routing table of delivered traffic, within each pod.
pub const TABLE: u8 = 100;
/// Priority of the rule: after `local`, before everything that a pod may have of its own.
const PRIORITY: u32 = 100;
/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Istio's address of deliveries over IPv6, which the rules leave alone.
pub const SIDECAR_SOURCE: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTA_OIF: u16 = 4;
const IFA_LOCAL: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;
const RTPROT_STATIC: u8 = 4;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;

/// Why a pod's routing could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A sysctl was refused.
    #[error("sysctl {key} cannot be set in the pod")]
    Sysctl {
        /// Below `/proc/sys/net`.
        key: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The rule was refused.
    #[error("{family} rule for delivered traffic cannot be written")]
    Rule {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The source address of a sidecar was refused.
    #[error("{SIDECAR_SOURCE} cannot be given to the loopback device")]
    SidecarSource {
        /// Why.
        source: io::Error,
    },
    /// The route was refused.
    #[error("{family} route of delivered traffic cannot be written")]
    Route {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Which families the calling thread's namespace has: its loopback addresses can be bound.
pub fn families() -> Families {
    let binds = |address: &str| std::net::UdpSocket::bind(address).is_ok();
    Families {
        v4: binds("127.0.0.1:0"),
        v6: binds("[::1]:0"),
    }
}

/// Prepares the calling thread's namespace for delivery.
///
/// # Errors
/// Names the first step that the kernel refused.
pub fn prepare(families: Families) -> Result<(), RouteError> {
    sysctl("ipv4/tcp_fwmark_accept")?;
    if families.v4 {
        sysctl("ipv4/fwmark_reflect")?;
        apply(&FAMILY_V4)?;
    }
    if families.v6 {
        sysctl("ipv6/fwmark_reflect")?;
        apply(&FAMILY_V6)?;
    }
    Ok(())
}

/// Removes rule and route from the calling thread's namespace; what is not there is fine. The
/// sysctls stay: they concern marked packets only.
pub fn remove(families: Families) {
    for family in [
        families.v4.then_some(&FAMILY_V4),
        families.v6.then_some(&FAMILY_V6),
    ]
    .into_iter()
    .flatten()
    {
        for (what, result) in [
            ("rule", rule(RTM_DELRULE, 0, family).execute()),
            ("route", route(RTM_DELROUTE, 0, family).execute()),
        ] {
            if let Err(error) = result
                && !is_absent(&error)
            {
                tracing::warn!(family = family.name, what, %error, "delivery routing not removed");
            }
        }
    }
}

/// Gives the loopback device of the calling thread's namespace the address that a sidecar's deliveries
/// over IPv6 come from. (IPv4 has all of 127/8 there.)
///
/// # Errors
/// When the kernel refuses the address.
pub fn add_sidecar_source() -> Result<(), RouteError> {
    match sidecar_source(RTM_NEWADDR, CREATE_EXCLUSIVE).execute() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(|source| RouteError::SidecarSource { source }),
    }
}

/// Takes that address away; it is fine where there is none.
pub fn remove_sidecar_source() {
    if let Err(error) = sidecar_source(RTM_DELADDR, 0).execute()
        && !matches!(
            error.raw_os_error(),
            Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
        )
    {
        tracing::warn!(address = %SIDECAR_SOURCE, %error, "address not removed from loopback");
    }
}

/// `ip address … ::6/128 dev lo` (struct `ifaddrmsg`).
fn sidecar_source(kind: u16, flags: u16) -> Request {
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    let body = [FAMILY_V6.number, 128, 0, RT_SCOPE_HOST, a, b, c, d];
    Request::new(kind, flags, &body).address(IFA_LOCAL, SIDECAR_SOURCE)
}

struct RouteFamily {
    name: &'static str,
    number: u8,
}

const FAMILY_V4: RouteFamily = RouteFamily {
    name: "IPv4",
    number: 2,
};
const FAMILY_V6: RouteFamily = RouteFamily {
    name: "IPv6",
    number: 10,
};

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn sysctl(key: &'static str) -> Result<(), RouteError> {
    let path = Path::new("/proc/sys/net").join(key);
    if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    fs::write(&path, "1").map_err(|source| RouteError::Sysctl { key, source })
}

fn apply(family: &RouteFamily) -> Result<(), RouteError> {
    // The route first: a rule that leads to an empty table would let packets fall through.
    route(RTM_NEWROUTE, CREATE_REPLACE, family)
        .execute()
        .map_err(|source| RouteError::Route {
            family: family.name,
            source,
        })?;
    match rule(RTM_NEWRULE, CREATE_EXCLUSIVE, family).execute() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(|source| RouteError::Rule {
            family: family.name,
            source,
        }),
    }
}

/// `ip rule … fwmark 0x10000/0x10000 lookup 100 priority 100` (struct `fib_rule_hdr`).
fn rule(kind: u16, flags: u16, family: &RouteFamily) -> Request {
    let body = [
        family.number,
        0,
        0,
        0,
        TABLE,
        0,
        0,
        FR_ACT_TO_TBL,
        0,
        0,
        0,
        0,
    ];
    Request::new(kind, flags, &body)
        .attribute(FRA_PRIORITY, PRIORITY)
        .attribute(FRA_FWMARK, DELIVERY_BIT)
        .attribute(FRA_FWMASK, DELIVERY_BIT)
        .attribute(FRA_TABLE, u32::from(TABLE))
}

/// `ip route … local default dev lo table 100` (struct `rtmsg`).
fn route(kind: u16, flags: u16, family: &RouteFamily) -> Request {
    let body = [
        family.number,
        0,
        0,
        0,
        TABLE,
        RTPROT_STATIC,
        RT_SCOPE_HOST,
        RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    Request::new(kind, flags, &body).attribute(RTA_OIF, LOOPBACK)
}
